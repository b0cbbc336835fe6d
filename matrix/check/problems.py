"""Findings in terms of the config: keys as they are typed, the value, the way out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import NoneType
from typing import Any, get_args

from pydantic_core import ErrorDetails

from matrix.errors import Problem, did_you_mean
from matrix.spec import RunSpec


def is_installed(module: str) -> bool:
    """Whether a module could be imported, without importing it (of `google.genai` only the empty `google`)."""
    parent = module.rpartition(".")[0]
    return (not parent or is_installed(parent)) and find_spec(module) is not None


def not_installed(key: str, value: object, what: str, package: str, instead: str) -> Problem:
    """A part that the config needs and that isn't there."""
    return Problem(key, value, f"{what} is not installed", f"pip install '{package}', or {instead}")


def type_problem(loc: tuple[int | str, ...], detail: ErrorDetails, config: Mapping[str, Any]) -> Problem:
    """Say pydantic's finding in terms of the config.

    Args:
        loc: Where it is, with the names of the tags that pydantic puts into the path.
        detail: What pydantic says.
        config: The whole config.
    """
    path = _typed_path(loc, config)
    key = ".".join(path)
    match detail["type"]:
        case "extra_forbidden":
            return Problem(key, detail["input"], "no such key", did_you_mean(path[-1], _names_beside(loc)))
        case "missing":
            return Problem(key, None, "is missing", f"give it: {key}=VALUE")
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = str(detail.get("ctx", {}).get("expected_tags", "")).replace("'", "")
            given = detail["input"]
            kind = given.get("kind") if isinstance(given, Mapping) else None
            return Problem(f"{key}.kind", kind, "no such kind", f"one of: {kinds}")
        case "value_error":
            return Problem(key, None, str(detail["ctx"]["error"]))
        case _:
            message = detail["msg"].replace("Input should be", "should be").replace("String should", "should")
            return Problem(key, detail["input"], message)


def _typed_path(loc: tuple[int | str, ...], config: Mapping[str, Any]) -> list[str]:
    """Drop the tags that pydantic puts into the path of a discriminated union."""
    path: list[str] = []
    here: Any = config
    may_be_tag = True
    for number, part in enumerate(loc):
        if isinstance(part, str) and isinstance(here, Mapping) and part not in here and number + 1 < len(loc):
            # The tag of a kind that is the default, and isn't given.
            continue
        # A section may have the name of its kind: cluster.slurm of cluster=slurm.
        if may_be_tag and isinstance(here, Mapping) and here.get("kind") == part:
            may_be_tag = False
            continue
        may_be_tag = True
        path.append(str(part))
        here = here.get(part) if isinstance(here, Mapping) else None
    return path


def _names_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Valid names at the place of an unknown key."""
    model: Any = RunSpec
    for part in loc[:-1]:
        model = _given(_step(model, part))
    return list(getattr(model, "model_fields", {}))


def _given(annotation: Any) -> Any:
    """What stands there if it is given: `X` of `X | None`."""
    members = [one for one in get_args(annotation) if one is not NoneType]
    return members[0] if len(members) == 1 and NoneType in get_args(annotation) else annotation


def _step(model: Any, part: int | str) -> Any:
    if isinstance(part, int):
        return get_args(model)[0]
    if hasattr(model, "model_fields"):
        return model.model_fields[part].annotation if part in model.model_fields else model
    if getattr(model, "__origin__", None) is dict:
        return get_args(model)[1]
    return union_member(model, {"kind": part}) or model


def union_member(union: Any, given: Any) -> Any:
    """The class of a discriminated union that a section asks for by its `kind`; None if there is none such.

    The schema of one class takes a fraction of the time of that of them all.
    """
    kind = given.get("kind") if isinstance(given, Mapping) else None
    # An annotated union, as in a dict's values, holds the union itself first.
    members = [member for some in get_args(union) for member in (get_args(some) or (some,))]
    kinds = (member for member in members if "kind" in getattr(member, "model_fields", {}))
    return next((one for one in kinds if kind in get_args(one.model_fields["kind"].annotation)), None)
