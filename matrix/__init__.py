"""matrix: one composed Hydra config, one experiment of LLM generation at scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matrix.api import Cli as Cli

__version__ = "0.1.0"
__all__ = ["Cli", "__version__"]


def __getattr__(name: str) -> Any:
    """`Cli`, when it is first asked for: importing matrix is part of every command, and stays cheap."""
    if name == "Cli":
        from matrix.api import Cli

        return Cli
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
