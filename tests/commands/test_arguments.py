"""A command's own arguments, told from overrides."""

from __future__ import annotations

import pytest

from matrix.commands.arguments import flag, number, split
from matrix.commands.deploy import _action
from matrix.errors import ConfigError

OWN: dict[str, str | None] = {"app": None, "wait": "true"}


def test_its_own_are_taken_out() -> None:
    assert split(["app=x", "model=y", "+a.b=1"], OWN, overrides=True) == (
        {"app": "x", "wait": "true"},
        ["model=y", "+a.b=1"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "app: has to be given"),
        (["app=x", "app=y"], "app=y: given twice"),
        (["app=x", "wiat=false"], r"wiat=false: no such argument \(did you mean wait\?\)"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(arguments, OWN, overrides=False)


def test_a_mistyped_option_is_no_override() -> None:
    with pytest.raises(ConfigError, match=r"--acton: no such argument \(did you mean --action\?\)"):
        split(["app=x", "--acton", "add"], OWN, overrides=True, switches=("--action",))


def test_flags_and_numbers() -> None:
    assert flag({"wait": "True"}, "wait") is True
    assert number({"n": "2.5"}, "n") == 2.5
    with pytest.raises(ConfigError, match="wait=maybe: should be true or false"):
        flag({"wait": "maybe"}, "wait")
    for wrong in ("zero", "0", "-1", "nan"):
        with pytest.raises(ConfigError, match="number above 0"):
            number({"n": wrong}, "n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model=x"], ("add", ["model=x"])),
        (["--action", "remove", "app=x"], ("remove", ["app=x"])),
        (["app=x", "--action=replace"], ("replace", ["app=x"])),
    ],
)
def test_actions(arguments: list[str], expected: tuple[str, list[str]]) -> None:
    assert _action(arguments) == expected


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--action=remvoe: no such action .did you mean remove"):
        _action(["--action", "remvoe"])
