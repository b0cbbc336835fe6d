"""The retail domain: orders, products and users of a shop.

Order of the checks, messages and effects are those of tau2-bench, odd ones included: gold databases come from them.
"""

from __future__ import annotations

from collections.abc import Sequence

from matrix.agents.teams.tau2.database import Record
from matrix.agents.teams.tau2.kit import ToolError, writes
from matrix.agents.teams.tau2.shop import ShopTools

_REASONS = ("no longer needed", "ordered by mistake")


class RetailTools(ShopTools):
    """The agent's side: what changes orders and users, and all of ShopTools."""

    @writes
    def cancel_pending_order(self, order_id: str, reason: str) -> Record:
        """Cancel a pending order. Explain what will happen and get an explicit yes of the user before.

        A payment by gift card is refunded to it at once, others take 5 to 7 business days. Gives the cancelled order.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
            reason: Why: 'no longer needed' or 'ordered by mistake'.
        """
        order = self._order(order_id)
        if order["status"] != "pending":
            raise ToolError("Non-pending order cannot be cancelled")
        if reason not in _REASONS:
            raise ToolError("Invalid reason")
        for payment in order["payment_history"]:
            self._method(order["user_id"], payment["payment_method_id"])

        order = self.db.edit("orders", order_id)
        refunds = [{**payment, "transaction_type": "refund"} for payment in order["payment_history"]]
        for refund in refunds:
            self._pay(order["user_id"], refund["payment_method_id"], -refund["amount"])
        order["status"] = "cancelled"
        order["cancel_reason"] = reason
        order["payment_history"] += refunds
        return order

    @writes
    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Record:
        """Exchange items of a delivered order for other variants of the same products. Can be done once for an order.

        Explain what will happen and get an explicit yes of the user before. Gives the order.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
            item_ids: Items to exchange, each such as '1008292230'; an item may be there twice.
            new_item_ids: What to exchange them for: the item at the same place, a variant of the same product.
            payment_method_id: Pays or gets the difference, such as 'gift_card_0000000'; see the user or the order.
        """
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise ToolError("Non-delivered order cannot be exchanged")
        missing = _missing(order, item_ids)
        if missing is not None:
            raise ToolError(f"Number of {missing} not found.")
        if len(item_ids) != len(new_item_ids):
            raise ToolError("The number of items to be exchanged should match.")
        difference = round(_difference(self._pairs(order, item_ids, new_item_ids)), 2)
        method = self._method(order["user_id"], payment_method_id)
        if _is_gift_card(method) and method["balance"] < difference:
            raise ToolError("Insufficient gift card balance to pay for the price difference")

        order = self.db.edit("orders", order_id)
        order["status"] = "exchange requested"
        order["exchange_items"] = sorted(item_ids)
        order["exchange_new_items"] = sorted(new_item_ids)
        order["exchange_payment_method_id"] = payment_method_id
        order["exchange_price_difference"] = difference
        return order

    @writes
    def modify_pending_order_address(
        self,
        order_id: str,
        address1: str,
        address2: str,
        city: str,
        state: str,
        country: str,
        zip: str,  # noqa: A002
    ) -> Record:
        """Change where a pending order goes. Explain what will happen and get an explicit yes of the user before.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
            address1: First line of the address, such as '123 Main St'.
            address2: Second line, such as 'Apt 1' or ''.
            city: City, such as 'San Francisco'.
            state: State, such as 'CA'.
            country: Country, such as 'USA'.
            zip: Zip code, such as '12345'.
        """
        self._pending(order_id)
        order = self.db.edit("orders", order_id)
        order["address"] = _address(address1, address2, city, country, state, zip)
        return order

    @writes
    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Record:
        """Change items of a pending order to other variants of the same products. Can be done once for an order.

        Explain what will happen and get an explicit yes of the user before. Gives the order.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
            item_ids: Items to change, each such as '1008292230'; an item may be there twice.
            new_item_ids: What to change them to: the item at the same place, a variant of the same product.
            payment_method_id: Pays or gets the difference, such as 'gift_card_0000000'; see the user or the order.
        """
        order = self._order(order_id)
        if order["status"] != "pending":
            raise ToolError("Non-pending order cannot be modified")
        missing = _missing(order, item_ids)
        if missing is not None:
            raise ToolError(f"{missing} not found")
        if len(item_ids) != len(new_item_ids):
            raise ToolError("The number of items to be exchanged should match")
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            if item_id == new_item_id:
                raise ToolError("The new item id should be different from the old item id")
        pairs = self._pairs(order, item_ids, new_item_ids)
        difference = _difference(pairs)
        method = self._method(order["user_id"], payment_method_id)
        if _is_gift_card(method) and method["balance"] < difference:
            raise ToolError("Insufficient gift card balance to pay for the new item")

        order = self.db.edit("orders", order_id)
        kind = "payment" if difference > 0 else "refund"
        order["payment_history"].append(_payment(kind, float(abs(difference)), payment_method_id))
        self._pay(order["user_id"], payment_method_id, difference)
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            item = next(item for item in order["items"] if item["item_id"] == item_id)
            # All of them get price and options of the last one: so it is in tau2-bench.
            last = pairs[-1][1]
            item.update(item_id=new_item_id, price=last["price"], options=dict(last["options"]))
        order["status"] = "pending (item modified)"
        return order

    @writes
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> Record:
        """Change how a pending order is paid. Explain what will happen and get an explicit yes of the user before.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
            payment_method_id: The other payment method, such as 'gift_card_0000000'; see the user or the order.
        """
        order = self._pending(order_id)
        method = self._method(order["user_id"], payment_method_id)
        history = order["payment_history"]
        if len(history) != 1 or history[0]["transaction_type"] != "payment":
            raise ToolError("There should be exactly one payment for a pending order")
        before, amount = history[0]["payment_method_id"], history[0]["amount"]
        if before == payment_method_id:
            raise ToolError("The new payment method should be different from the current one")
        if _is_gift_card(method) and method["balance"] < amount:
            raise ToolError("Insufficient gift card balance to pay for the order")
        self._method(order["user_id"], before)

        order = self.db.edit("orders", order_id)
        order["payment_history"] += [_payment("payment", amount, payment_method_id), _payment("refund", amount, before)]
        self._pay(order["user_id"], payment_method_id, amount)
        self._pay(order["user_id"], before, -amount)
        return order

    @writes
    def modify_user_address(
        self,
        user_id: str,
        address1: str,
        address2: str,
        city: str,
        state: str,
        country: str,
        zip: str,  # noqa: A002
    ) -> Record:
        """Change a user's default address. Explain what will happen and get an explicit yes of the user before.

        Args:
            user_id: The user, such as 'sara_doe_496'.
            address1: First line of the address, such as '123 Main St'.
            address2: Second line, such as 'Apt 1' or ''.
            city: City, such as 'San Francisco'.
            state: State, such as 'CA'.
            country: Country, such as 'USA'.
            zip: Zip code, such as '12345'.
        """
        self._user(user_id)
        user = self.db.edit("users", user_id)
        user["address"] = _address(address1, address2, city, country, state, zip)
        return user

    @writes
    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> Record:
        """Return items of a delivered order. Explain what will happen and get an explicit yes of the user before.

        The user gets an email about how and where to send them. Gives the order.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
            item_ids: Items to return, each such as '1008292230'; an item may be there twice.
            payment_method_id: Gets the refund: the order's own, or a gift card; see the user or the order.
        """
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise ToolError("Non-delivered order cannot be returned")
        method = self._method(order["user_id"], payment_method_id)
        if not _is_gift_card(method) and payment_method_id != order["payment_history"][0]["payment_method_id"]:
            raise ToolError("Payment method should be the original payment method")
        if _missing(order, item_ids) is not None:
            raise ToolError("Some item not found")

        order = self.db.edit("orders", order_id)
        order["status"] = "return requested"
        order["return_items"] = sorted(item_ids)
        order["return_payment_method_id"] = payment_method_id
        return order

    def _pending(self, order_id: str) -> Record:
        order = self._order(order_id)
        # An order whose items were modified counts here, and only here.
        if "pending" not in order["status"]:
            raise ToolError("Non-pending order cannot be modified")
        return order

    def _pay(self, user_id: str, payment_method_id: str, amount: float) -> None:
        """Take an amount from a gift card; other methods keep no balance."""
        if _is_gift_card(self._method(user_id, payment_method_id)):
            card = self.db.edit("users", user_id)["payment_methods"][payment_method_id]
            card["balance"] = round(card["balance"] - amount, 2)

    def _pairs(
        self, order: Record, item_ids: Sequence[str], new_item_ids: Sequence[str]
    ) -> list[tuple[Record, Record]]:
        """Items of an order, each with the variant that it is to become."""
        pairs = []
        for item_id, new_item_id in zip(item_ids, new_item_ids, strict=True):
            item = next(item for item in order["items"] if item["item_id"] == item_id)
            variant = self.get_product_details(item["product_id"])["variants"].get(new_item_id)
            if variant is None:
                raise ToolError("Variant not found")
            if not variant["available"]:
                raise ToolError(f"New item {new_item_id} not found or available")
            pairs.append((item, variant))
        return pairs


def _missing(order: Record, item_ids: Sequence[str]) -> str | None:
    """The first of these that the order has not, or not as often."""
    there = [item["item_id"] for item in order["items"]]
    return next((item_id for item_id in item_ids if item_ids.count(item_id) > there.count(item_id)), None)


def _difference(pairs: Sequence[tuple[Record, Record]]) -> float:
    difference: float = 0
    # One after another: since Python 3.12 `sum` gives another last digit.
    for old, new in pairs:
        difference += new["price"] - old["price"]
    return difference


def _is_gift_card(method: Record) -> bool:
    return bool(method["source"] == "gift_card")


def _payment(kind: str, amount: float, payment_method_id: str) -> Record:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": payment_method_id}


def _address(address1: str, address2: str, city: str, country: str, state: str, zip_code: str) -> Record:
    lines = {"address1": address1, "address2": address2}
    return {**lines, "city": city, "country": country, "state": state, "zip": zip_code}
