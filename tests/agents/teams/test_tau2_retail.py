"""Tools of the retail domain over a small shop of our own, in tau2-bench's format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from matrix.agents.teams.tau2.domain import Domain, load_domain
from matrix.agents.teams.tau2.environment import World

ADDRESS = {"address1": "1 Elm", "address2": "", "city": "Reno", "country": "USA", "state": "NV", "zip": "89501"}
ELSEWHERE = {"address1": "2 Oak", "address2": "b", "city": "Bend", "country": "USA", "state": "OR", "zip": "97701"}


def variant(item_id: str, price: float, *, available: bool = True) -> dict[str, Any]:
    return {"item_id": item_id, "options": {"size": item_id}, "available": available, "price": price}


def product(name: str, *variants: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "product_id": name[0], "variants": {one["item_id"]: one for one in variants}}


def order(order_id: str, status: str, paid_by: str, *items: tuple[str, str, float]) -> dict[str, Any]:
    bought = [
        {"name": name, "product_id": name[0], "item_id": item, "price": price, "options": {"size": item}}
        for name, item, price in items
    ]
    total = round(sum(price for _, _, price in items), 2)
    payment = {"transaction_type": "payment", "amount": total, "payment_method_id": paid_by}
    return {
        "order_id": order_id, "user_id": "ann_1", "address": ADDRESS, "items": bought, "status": status,
        "fulfillments": [], "payment_history": [payment],
    }  # fmt: skip


SHOP = {
    "products": {
        "c": product("cup", variant("c1", 10.0), variant("c2", 12.5), variant("c3", 9.0, available=False)),
        "t": product("tray", variant("t1", 30.0), variant("t2", 55.25)),
    },
    "users": {
        "ann_1": {
            "user_id": "ann_1",
            "name": {"first_name": "Ann", "last_name": "Lee"},
            "address": ADDRESS,
            "email": "ann@example.com",
            "payment_methods": {
                "gift": {"source": "gift_card", "id": "gift", "balance": 20.0},
                "card": {"source": "credit_card", "id": "card", "brand": "visa", "last_four": "1234"},
                "pal": {"source": "paypal", "id": "pal"},
            },
            "orders": ["#P", "#G", "#D", "#X"],
        }
    },
    "orders": {
        "#P": order("#P", "pending", "card", ("cup", "c1", 10.0), ("tray", "t1", 30.0)),
        "#G": order("#G", "pending", "gift", ("cup", "c1", 10.0)),
        "#D": order("#D", "delivered", "card", ("cup", "c1", 10.0), ("cup", "c1", 10.0), ("tray", "t1", 30.0)),
        "#X": order("#X", "processed", "card", ("cup", "c1", 10.0)),
    },
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "policy.md").write_text("Be kind.\n")
    (folder / "db.json").write_text(json.dumps(SHOP))
    return load_domain(str(folder), "retail")


@pytest.fixture
def world(shop: Domain) -> World:
    return World(shop, {})


def call(world: World, name: str, **arguments: Any) -> Any:
    result = world.call("assistant", name, json.dumps(arguments))
    assert not result.error, result.content
    return json.loads(result.content) if result.content[0] in "{[" else result.content


def gift(world: World) -> float:
    balance: float = call(world, "get_user_details", user_id="ann_1")["payment_methods"]["gift"]["balance"]
    return balance


def test_reads(world: World) -> None:
    assert call(world, "find_user_id_by_email", email="ANN@example.com") == "ann_1"
    assert call(world, "find_user_id_by_name_zip", first_name="ann", last_name="LEE", zip="89501") == "ann_1"
    assert call(world, "get_item_details", item_id="t2")["price"] == 55.25
    assert list(call(world, "get_product_details", product_id="c")["variants"]) == ["c1", "c2", "c3"]
    assert call(world, "list_all_product_types") == {"cup": "c", "tray": "t"}
    found = call(world, "get_order_details", order_id="#P")
    # Models see what an order may get, as in tau2-bench.
    assert {name for name, value in found.items() if value is None} == {
        "cancel_reason", "exchange_items", "exchange_new_items", "exchange_payment_method_id",
        "exchange_price_difference", "return_items", "return_payment_method_id",
    }  # fmt: skip
    assert world.changes() == {"assistant": {}}


def test_cancel(world: World) -> None:
    cancelled = call(world, "cancel_pending_order", order_id="#P", reason="no longer needed")
    assert (cancelled["status"], cancelled["cancel_reason"]) == ("cancelled", "no longer needed")
    assert [one["transaction_type"] for one in cancelled["payment_history"]] == ["payment", "refund"]
    assert gift(world) == 20.0
    call(world, "cancel_pending_order", order_id="#G", reason="ordered by mistake")
    assert gift(world) == 30.0


def test_exchange(world: World) -> None:
    arguments = {"item_ids": ["t1", "c1"], "new_item_ids": ["t2", "c2"], "payment_method_id": "card"}
    changed = call(world, "exchange_delivered_order_items", order_id="#D", **arguments)
    assert changed["status"] == "exchange requested"
    assert (changed["exchange_items"], changed["exchange_new_items"]) == (["c1", "t1"], ["c2", "t2"])
    assert changed["exchange_price_difference"] == 27.75
    # What is exchanged is only requested.
    assert [item["item_id"] for item in changed["items"]] == ["c1", "c1", "t1"]


def test_return(world: World) -> None:
    arguments = {"item_ids": ["t1", "c1"], "payment_method_id": "gift"}
    changed = call(world, "return_delivered_order_items", order_id="#D", **arguments)
    assert (changed["status"], changed["return_items"]) == ("return requested", ["c1", "t1"])
    assert changed["return_payment_method_id"] == "gift"


def test_modify_items(world: World) -> None:
    arguments = {"item_ids": ["c1"], "new_item_ids": ["c2"], "payment_method_id": "gift"}
    changed = call(world, "modify_pending_order_items", order_id="#P", **arguments)
    assert changed["status"] == "pending (item modified)"
    assert changed["payment_history"][1] == {"transaction_type": "payment", "amount": 2.5, "payment_method_id": "gift"}
    assert gift(world) == 17.5
    assert changed["items"][0] == {
        "name": "cup", "product_id": "c", "item_id": "c2", "price": 12.5, "options": {"size": "c2"},
    }  # fmt: skip
    # It may still go elsewhere and be paid otherwise, but that is all.
    assert call(world, "modify_pending_order_address", order_id="#P", **ELSEWHERE)["address"] == ELSEWHERE
    assert world.call("assistant", "cancel_pending_order", {"order_id": "#P", "reason": "no longer needed"}).error


def test_several_items_get_the_price_of_the_last_one_as_in_tau2_bench(world: World) -> None:
    arguments = {"item_ids": ["c1", "t1"], "new_item_ids": ["c2", "t2"], "payment_method_id": "card"}
    changed = call(world, "modify_pending_order_items", order_id="#P", **arguments)
    assert [(item["item_id"], item["price"]) for item in changed["items"]] == [("c2", 55.25), ("t2", 55.25)]
    assert changed["items"][0]["options"] == {"size": "t2"}


def test_modify_payment(world: World) -> None:
    changed = call(world, "modify_pending_order_payment", order_id="#G", payment_method_id="card")
    assert [(one["transaction_type"], one["payment_method_id"]) for one in changed["payment_history"]] == [
        ("payment", "gift"), ("payment", "card"), ("refund", "gift"),
    ]  # fmt: skip
    assert gift(world) == 30.0


def test_modify_address_of_the_user(world: World) -> None:
    assert call(world, "modify_user_address", user_id="ann_1", **ELSEWHERE)["address"] == ELSEWHERE
    assert call(world, "get_order_details", order_id="#P")["address"] == ADDRESS


ITEMS = {"item_ids": ["c1"], "new_item_ids": ["c2"], "payment_method_id": "card"}


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("get_order_details", {"order_id": "P"}, "Order not found"),
        ("get_user_details", {"user_id": "bob"}, "User not found"),
        ("get_product_details", {"product_id": "c1"}, "Product not found"),
        ("get_item_details", {"item_id": "c"}, "Item not found"),
        ("find_user_id_by_email", {"email": "x"}, "User not found"),
        ("find_user_id_by_name_zip", {"first_name": "Ann", "last_name": "Lee", "zip": "1"}, "User not found"),
        ("calculate", {"expression": "2+x"}, "Invalid characters in expression"),
        ("cancel_pending_order", {"order_id": "#D", "reason": "no longer needed"}, "Non-pending order cannot be cancelled"),
        ("cancel_pending_order", {"order_id": "#P", "reason": "bored"}, "Invalid reason"),
        ("exchange_delivered_order_items", {"order_id": "#P", **ITEMS}, "Non-delivered order cannot be exchanged"),
        ("exchange_delivered_order_items", {"order_id": "#D", **ITEMS, "item_ids": ["c1"] * 3}, "Number of c1 not found."),
        ("exchange_delivered_order_items", {"order_id": "#D", **ITEMS, "new_item_ids": []}, "should match."),
        ("exchange_delivered_order_items", {"order_id": "#D", **ITEMS, "new_item_ids": ["t2"]}, "Variant not found"),
        ("exchange_delivered_order_items", {"order_id": "#D", **ITEMS, "new_item_ids": ["c3"]}, "New item c3 not found or available"),
        ("exchange_delivered_order_items", {"order_id": "#D", **ITEMS, "payment_method_id": "x"}, "Payment method not found"),
        (
            "exchange_delivered_order_items",
            {"order_id": "#D", "item_ids": ["t1"], "new_item_ids": ["t2"], "payment_method_id": "gift"},
            "Insufficient gift card balance to pay for the price difference",
        ),
        ("modify_pending_order_items", {"order_id": "#X", **ITEMS}, "Non-pending order cannot be modified"),
        ("modify_pending_order_items", {"order_id": "#P", **ITEMS, "item_ids": ["c9"]}, "c9 not found"),
        ("modify_pending_order_items", {"order_id": "#P", **ITEMS, "new_item_ids": ["c1"]}, "different from the old item id"),
        (
            "modify_pending_order_items",
            {"order_id": "#P", "item_ids": ["t1"], "new_item_ids": ["t2"], "payment_method_id": "gift"},
            "Insufficient gift card balance to pay for the new item",
        ),
        ("modify_pending_order_payment", {"order_id": "#P", "payment_method_id": "card"}, "different from the current one"),
        ("modify_pending_order_payment", {"order_id": "#P", "payment_method_id": "gift"}, "Insufficient gift card balance"),
        ("modify_pending_order_payment", {"order_id": "#D", "payment_method_id": "pal"}, "Non-pending order cannot be modified"),
        ("modify_pending_order_address", {"order_id": "#X", **ELSEWHERE}, "Non-pending order cannot be modified"),
        ("modify_user_address", {"user_id": "bob", **ELSEWHERE}, "User not found"),
        ("return_delivered_order_items", {"order_id": "#P", "item_ids": ["c1"], "payment_method_id": "card"}, "Non-delivered order"),
        ("return_delivered_order_items", {"order_id": "#D", "item_ids": ["c9"], "payment_method_id": "card"}, "Some item not found"),
        ("return_delivered_order_items", {"order_id": "#D", "item_ids": ["c1"], "payment_method_id": "pal"}, "the original payment method"),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(world: World, name: str, arguments: dict[str, Any], says: str) -> None:
    result = world.call("assistant", name, arguments)
    assert result.error
    assert says in result.content
    assert world.changes() == {"assistant": {}}


def test_a_second_payment_cannot_be_moved(world: World) -> None:
    call(world, "modify_pending_order_payment", order_id="#G", payment_method_id="card")
    again = world.call("assistant", "modify_pending_order_payment", {"order_id": "#G", "payment_method_id": "pal"})
    assert "exactly one payment" in again.content
