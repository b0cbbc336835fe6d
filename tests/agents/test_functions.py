"""Functions as tools: what a model reads of them, what it may send, what it gets back."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from matrix.agents.functions import CallError, FunctionTool
from matrix.errors import ConfigError

if TYPE_CHECKING:
    from decimal import Decimal


class Unit(Enum):
    C = "celsius"
    F = "fahrenheit"


class Place(BaseModel):
    city: str
    country: str = "NZ"


def weather(
    place: Place, day: date | None = None, unit: Unit = Unit.C, *, hours: Annotated[int, Field(ge=1, le=24)] = 3
) -> dict[str, Any]:
    """Look up the weather
    of a place.

    It isn't a real one.

    Args:
        place: Where.
        day (date): When; None is
            today.
        hours: For how many hours: at least one.

    Returns:
        temperature: In degrees.
    """
    return {"city": place.city, "country": place.country, "day": day, "unit": unit, "hours": hours}


def tool(function: object, name: str = "tool") -> FunctionTool:
    return FunctionTool(name, function, f"mine:{name}")


async def test_docstring_and_hints_become_the_schema() -> None:
    spec = tool(weather, "weather").spec
    assert spec["type"] == "function"
    assert spec["function"]["name"] == "weather"
    assert spec["function"]["description"] == "Look up the weather of a place."
    parameters = spec["function"]["parameters"]
    assert parameters["additionalProperties"] is False
    assert parameters["required"] == ["place"]
    properties = parameters["properties"]
    assert properties["place"] == {"$ref": "#/$defs/Place", "description": "Where."}
    assert properties["day"]["description"] == "When; None is today."
    assert properties["hours"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 24,
        "default": 3,
        "description": "For how many hours: at least one.",
    }
    assert properties["unit"]["default"] == "celsius"
    assert "title" not in str(properties)


async def test_arguments_arrive_as_their_types() -> None:
    given = await tool(weather).call({"place": {"city": "Napier"}, "day": "2026-11-02", "unit": "fahrenheit"})
    assert given == '{"city":"Napier","country":"NZ","day":"2026-11-02","unit":"fahrenheit","hours":3}'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "place: Field required"),
        ({"place": {"city": 3}}, "place.city: Input should be a valid string"),
        ({"place": {"city": "x"}, "hours": 40}, "hours: Input should be less than or equal to 24"),
        ({"place": {"city": "x"}, "where": 1}, "where: Extra inputs are not permitted"),
        ({"place": {"city": "x"}, "p1": None}, "p1: Extra inputs are not permitted"),
    ],
)
async def test_wrong_arguments_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError) as refused:
        await tool(weather).call(arguments)
    assert str(refused.value) == f"arguments of tool: {said}"


async def test_parameters_may_have_names_that_pydantic_keeps_for_itself() -> None:
    def odd(schema: str, copy: int = 1, model_config: str = "", _hidden: int = 0) -> str:
        return f"{schema} {copy} {model_config} {_hidden}"

    made = tool(odd)
    assert list(made.spec["function"]["parameters"]["properties"]) == ["schema", "copy", "model_config", "_hidden"]
    assert await made.call({"schema": "a", "_hidden": 2}) == "a 1  2"


async def test_defaults_are_the_functions_own() -> None:
    nothing = object()

    def keeps(value: int = nothing) -> str:  # type: ignore[assignment]
        return str(value is nothing)

    assert await tool(keeps).call({}) == "True"


@dataclass
class Found:
    name: str
    score: float


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is", "as it is"),
        ("", ""),
        (None, "null"),
        (3, "3"),
        ([Found("ä", 0.5)], '[{"name":"ä","score":0.5}]'),
        (Place(city="x"), '{"city":"x","country":"NZ"}'),
        ({"a": (1, 2)}, '{"a":[1,2]}'),
    ],
)
async def test_results_become_text(result: object, text: str) -> None:
    async def given():  # type: ignore[no-untyped-def]
        return result

    assert await tool(given).call({}) == text


async def test_a_result_that_json_cannot_hold_is_refused() -> None:
    def given():  # type: ignore[no-untyped-def]
        return threading.Lock()

    with pytest.raises(CallError, match="the tool gave a lock that JSON can't hold"):
        await tool(given).call({})


async def test_what_is_no_plain_function_works_as_well() -> None:
    class Shop:
        def buy(self, what: str) -> str:
            """Buy it."""
            return f"bought {what}"

        async def __call__(self, what: str) -> str:
            return f"called {what}"

    @functools.wraps(weather)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return weather(*args, **kwargs)["city"]

    assert await tool(Shop().buy).call({"what": "tea"}) == "bought tea"
    assert await tool(Shop()).call({"what": "tea"}) == "called tea"
    assert await tool(functools.partial(Shop().buy, what="tea")).call({}) == "bought tea"
    assert await tool(wrapped).call({"place": {"city": "Napier"}}) == "Napier"


async def test_a_function_that_blocks_holds_nobody_up() -> None:
    def slow(seconds: float) -> str:
        time.sleep(seconds)
        return threading.current_thread().name

    begun = time.monotonic()
    made = tool(slow)
    calls = [asyncio.create_task(made.call({"seconds": 0.3})) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert time.monotonic() - begun < 0.25
    assert await asyncio.gather(*calls) == ["tool tool"] * 20
    assert time.monotonic() - begun < 4


async def test_calls_that_hang_leave_the_other_tools_their_threads() -> None:
    free = threading.Event()

    def hangs() -> None:
        free.wait(60)

    made = tool(hangs, "hangs")
    calls = [asyncio.create_task(made.call({})) for _ in range(80)]
    try:
        assert await asyncio.wait_for(tool(lambda: "there").call({}), 5) == "there"
        assert sum(one.name == "tool hangs" for one in threading.enumerate()) <= 64
        for call in calls[:70]:
            call.cancel()
    finally:
        free.set()
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert [type(one) for one in results] == [asyncio.CancelledError] * 70 + [str] * 10


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit(3), KeyError("x")])
async def test_whatever_a_tool_raises_arrives(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(Exception, match=r"x|3"):
        await tool(fails).call({})


class Client:
    pass


def untyped(a, b: int) -> str: ...  # type: ignore[no-untyped-def,empty-body]
def starred(*words: str, **more: int) -> str: ...  # type: ignore[empty-body]
def placed(a: int, /) -> str: ...  # type: ignore[empty-body]
def takes_client(client: Client, many: list[Client]) -> str: ...  # type: ignore[empty-body]
def gives_client() -> Client: ...  # type: ignore[empty-body]
def unreadable(amount: Decimal) -> str: ...  # type: ignore[empty-body]
def fine(a: Any, b: Literal["x", "y"], c: list[dict[str, float]], d: tuple[int, ...] = ()) -> Any: ...


@pytest.mark.parametrize(
    ("function", "messages"),
    [
        (untyped, ["a has no type hint (a: str, for instance)"]),
        (
            starred,
            [
                "takes *words (name each argument: a model sees no others)",
                "takes **more (name each argument: a model sees no others)",
            ],
        ),
        (placed, ["takes a by its place only (arguments come by name)"]),
        (
            takes_client,
            [
                "client is a Client, no type for JSON (types that JSON has a form for: str, int, list[...], Literal, a pydantic model, ...)",
                "many is a list[tests.agents.test_functions.Client], no type for JSON (types that JSON has a form for: str, int, list[...], Literal, a pydantic model, ...)",
            ],
        ),
        (gives_client, ["gives a Client, no type for JSON (return a text, or what JSON has a form for)"]),
        (
            unreadable,
            [
                "has a type hint that can't be read: name 'Decimal' is not defined (import it for real, not only under TYPE_CHECKING)"
            ],
        ),
        (Client, ["is no function (def NAME(argument: type) -> type, or async def)"]),
        (3, ["is no function (def NAME(argument: type) -> type, or async def)"]),
    ],
)
def test_what_a_model_cannot_be_told_is_found_before_the_run(function: object, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as found:
        FunctionTool("search", function, "mine:search")
    assert [str(one) for one in found.value.problems] == [
        f"agents.tools.search.use=mine:search: {one}" for one in messages
    ]


def test_every_type_that_json_has_a_form_for_is_fine() -> None:
    properties = tool(fine).spec["function"]["parameters"]["properties"]
    assert properties["b"] == {"enum": ["x", "y"], "type": "string"}
    assert properties["a"] == {}
