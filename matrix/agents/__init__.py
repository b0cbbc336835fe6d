"""Teams of agents. What a file with roles of your own needs stands here; docs/agents.md leads through one."""

from __future__ import annotations

from matrix.agents.role import Role
from matrix.agents.state import State, Turn
from matrix.agents.tools import Tools
from matrix.data.rows import Entry, Response
from matrix.spec.agents import END

__all__ = ["END", "Entry", "Response", "Role", "State", "Tools", "Turn"]
