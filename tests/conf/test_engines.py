"""The files of conf/engine say what the spec would take anyway."""

from __future__ import annotations

from pathlib import Path

import yaml

from matrix.spec.engine import SimulatedEngine

CONF = Path(__file__).parents[2] / "conf" / "engine"


def test_simulated_has_the_defaults_of_the_spec() -> None:
    given = yaml.safe_load((CONF / "simulated.yaml").read_text())
    assert set(given) == set(SimulatedEngine.model_fields)
    assert SimulatedEngine.model_validate(given).model_dump() == SimulatedEngine(kind="simulated").model_dump()
