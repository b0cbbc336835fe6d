"""What models write as calls, and what they get back."""

from __future__ import annotations

import json

import pytest

from matrix.agents.teams.tau2.arithmetic import calculated
from matrix.agents.teams.tau2.domain import TOOLS, load_domain
from matrix.agents.teams.tau2.environment import World
from matrix.agents.teams.tau2.kit import ToolError
from matrix.errors import DataError
from tests.agents.teams.tau2_play import LIBRARY, shared


@pytest.fixture
def world() -> World:
    return World(load_domain(LIBRARY), {})


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("renew_loan", '{"loan_id": "L1"', "not JSON"),
        ("renew_loan", "[1]", "a JSON object, not [1]"),
        ("renew_loan", "null", "a JSON object, not None"),
        ("renew_loan", None, "a JSON object, not None"),
        ("renew_loan", "[" * 100_000, "not JSON"),
        ("renew_loan", "", "needs the argument 'loan_id'"),
        ("renew_loan", "{}", "needs the argument 'loan_id'"),
        ("renew_loan", '{"loan_id": 1}', "should be text, not 1"),
        ("renew_loan", '{"loan_id": null}', "should be text, not None"),
        ("renew_loan", '{"loan_id": "L1", "days": 3}', "has no argument 'days'"),
        ("renew_loan", '{"loan_id": "L9"}', "Loan not found"),
        ("burn_book", "{}", "Tool 'burn_book' not found."),
        ("", "{}", "Tool '' not found."),
        ("assert_due", '{"loan_id": "L1", "expected_due": ""}', "Tool 'assert_due' not found."),
        ("_loan", '{"loan_id": "L1"}', "Tool '_loan' not found."),
        ("__init__", "{}", "Tool '__init__' not found."),
        ("call", "{}", "Tool 'call' not found."),
        ("db", "{}", "Tool 'db' not found."),
    ],
)
def test_a_call_that_makes_no_sense_is_an_error_for_the_model(
    world: World, name: str, arguments: object, says: str
) -> None:
    result = world.call("assistant", name, arguments)
    assert result.error
    assert result.content.startswith("Error: ")
    assert says in result.content
    assert world.changes() == {"assistant": {}}


def test_a_user_without_tools_has_none(world: World) -> None:
    assert world.call("user", "renew_loan", "{}").content == "Error: Tool 'renew_loan' not found."


def test_lists_are_checked_item_by_item() -> None:
    retail = World(load_domain(shared("retail")), {})
    arguments = {"order_id": "#W1", "item_ids": ["1", 2], "payment_method_id": "x"}
    said = retail.call("assistant", "return_delivered_order_items", json.dumps(arguments)).content
    assert "'item_ids' of return_delivered_order_items should be a list of text" in said


def test_results_are_text_or_json(world: World) -> None:
    assert world.call("assistant", "transfer_to_human_agents", {"summary": "x"}).content == "Transfer successful"
    assert json.loads(world.call("assistant", "get_loan", {"loan_id": "L1"}).content)["due"] == "2026-03-02"


@pytest.mark.parametrize("kit", [kit for sides in TOOLS.values() for kit in sides.values()])
def test_tools_are_told_to_models_with_all_that_they_take(kit: type) -> None:
    specs = kit.specs()  # type: ignore[attr-defined]
    assert specs
    for spec in specs:
        assert spec["type"] == "function"
        function = spec["function"]
        assert function["description"]
        assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
        assert all(one["description"] and one["type"] for one in function["parameters"]["properties"].values())
        assert not function["name"].startswith(("assert_", "add_"))


def test_the_retail_domain_has_the_tools_that_tau2_bench_has() -> None:
    specs = {spec["function"]["name"]: spec["function"]["parameters"] for spec in TOOLS["retail"]["assistant"].specs()}
    assert sorted(specs) == [
        "calculate", "cancel_pending_order", "exchange_delivered_order_items", "find_user_id_by_email",
        "find_user_id_by_name_zip", "get_item_details", "get_order_details", "get_product_details", "get_user_details",
        "list_all_product_types", "modify_pending_order_address", "modify_pending_order_items",
        "modify_pending_order_payment", "modify_user_address", "return_delivered_order_items", "transfer_to_human_agents",
    ]  # fmt: skip
    assert specs["exchange_delivered_order_items"]["properties"]["item_ids"]["items"] == {"type": "string"}
    status = next(
        spec["function"]["parameters"]["properties"]["status"]
        for spec in TOOLS["mock"]["assistant"].specs()
        if spec["function"]["name"] == "update_task_status"
    )
    assert status["enum"] == ["pending", "completed"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 2", "4.0"), ("3131.1 + 4777.75 + 367.38", "8276.23"), ("-(1.5 - 4) * 3 / 7", "1.07"), ("7//2", "3.0"),
     ("2**10", "1024.0"), ("  1 ", "1.0"), ("2-+-2", "4.0")],
)  # fmt: skip
def test_sums(expression: str, value: str) -> None:
    assert calculated(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "(", "1/0", "a", "1 2", "()", "...", "1(2)", "10**400", "9**9**9**9", "(-1)**0.5", "__import__('os')", "1.2.3",
     "(" * 200, "-" * 250 + "1", "1" * 299, "1+" * 400 + "1", "0**-1"],
)  # fmt: skip
def test_what_has_no_value_is_an_error(expression: str) -> None:
    if expression == "-" * 250 + "1":
        assert calculated(expression) == "1.0"
        return
    if expression == "1" * 299:
        assert calculated(expression).startswith("1.1")
        return
    with pytest.raises(ToolError):
        calculated(expression)


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        ("/nowhere/retail", None, "/nowhere/retail/policy.md: No such file or directory"),
        ("/nowhere/airline", None, "no tools for a domain 'airline'"),
        (LIBRARY, "retail", "lacks the table 'products' of RetailTools"),
        ("package:matrix.nope/x", "mock", "no installed package 'matrix.nope'"),
        ("package:nope/x", "mock", "no installed package 'nope'"),
    ],
)
def test_a_domain_that_is_not_there(data: str, name: str | None, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load_domain(data, name)


def test_a_task_that_begins_with_the_impossible_is_an_error_of_the_row() -> None:
    begin = {
        "initialization_actions": [{"env_type": "assistant", "func_name": "renew_loan", "arguments": {"loan_id": "L3"}}]
    }
    with pytest.raises(DataError, match="renewed twice"):
        World(load_domain(LIBRARY), {"initial_state": begin})
