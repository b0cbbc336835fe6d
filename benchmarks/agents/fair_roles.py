"""fair-matrix's dummy matcher with rounds that follow from the row: `overhead.py` runs it in fair-matrix's environment.

All else is the release's own: its class draws as before, and what it drew about the agreement is replaced.
"""

from __future__ import annotations

from typing import Any

import coral
import ray
from matrix.agents.examples import ts_interaction_dummy

_Theirs: Any = ts_interaction_dummy.DummyCoralMatchAgent.__ray_metadata__.modified_class


@ray.remote
class Matcher(_Theirs):  # type: ignore[misc]
    """Sees an agreement in the round that the row's number says."""

    async def preprocess(self, orchestrator: Any) -> dict[str, Any]:
        """As theirs, but for the agreement."""
        said: dict[str, Any] = await super().preprocess(orchestrator)
        agree = said["rated_turns"] >= coral.rounds(orchestrator._id)  # noqa: SLF001 - it has no other name
        return {**said, "agreement": agree, "agreement_correctness": agree}
