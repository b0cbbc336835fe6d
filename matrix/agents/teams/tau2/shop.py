"""What the retail domain's tools look up, without changing anything."""

from __future__ import annotations

import json

from matrix.agents.teams.tau2.arithmetic import calculated
from matrix.agents.teams.tau2.database import Record
from matrix.agents.teams.tau2.kit import ToolError, Toolkit, reads

# What an order gets to have in the course of time.
_LATER = (
    "cancel_reason",
    "exchange_items",
    "exchange_new_items",
    "exchange_payment_method_id",
    "exchange_price_difference",
    "return_items",
    "return_payment_method_id",
)


class ShopTools(Toolkit):
    """Orders, products and users to read."""

    tables = ("products", "users", "orders")

    @classmethod
    def whole(cls, table: str, record: Record) -> Record:
        """Orders have all the fields that they may get."""
        return {**record, **{name: record.get(name) for name in _LATER}} if table == "orders" else record

    @reads
    def calculate(self, expression: str) -> str:
        """Work out a sum.

        Args:
            expression: Numbers, + - * /, parentheses and spaces, such as '2 + 2'.
        """
        return calculated(expression)

    @reads
    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:  # noqa: A002 - tau2's name
        """Find a user by name and zip code. Try the email first, and this if it isn't known or gives nobody.

        Args:
            first_name: First name, such as 'John'.
            last_name: Last name, such as 'Doe'.
            zip: Zip code, such as '12345'.
        """
        wanted = (first_name.lower(), last_name.lower(), zip)
        for user_id, user in self.db.items("users"):
            name = user["name"]
            if (name["first_name"].lower(), name["last_name"].lower(), user["address"]["zip"]) == wanted:
                return user_id
        raise ToolError("User not found")

    @reads
    def find_user_id_by_email(self, email: str) -> str:
        """Find a user by email.

        Args:
            email: The address, such as 'something@example.com'.
        """
        for user_id, user in self.db.items("users"):
            if user["email"].lower() == email.lower():
                return user_id
        raise ToolError("User not found")

    @reads
    def get_order_details(self, order_id: str) -> Record:
        """Get an order with its status.

        Args:
            order_id: The order, such as '#W0000000'; the '#' belongs to it.
        """
        return self._order(order_id)

    @reads
    def get_product_details(self, product_id: str) -> Record:
        """Get a product with all its variants.

        Args:
            product_id: The product, such as '6086499569'; it isn't the id of an item.
        """
        product = self.db.find("products", product_id)
        if product is None:
            raise ToolError("Product not found")
        return product

    @reads
    def get_item_details(self, item_id: str) -> Record:
        """Get an item: one variant of a product.

        Args:
            item_id: The item, such as '6086499569'; it isn't the id of a product.
        """
        for _, product in self.db.items("products"):
            if item_id in product["variants"]:
                found: Record = product["variants"][item_id]
                return found
        raise ToolError("Item not found")

    @reads
    def get_user_details(self, user_id: str) -> Record:
        """Get a user, with payment methods and the ids of orders.

        Args:
            user_id: The user, such as 'sara_doe_496'.
        """
        return self._user(user_id)

    @reads
    def list_all_product_types(self) -> str:
        """List the names of all products with their ids. Each product has variants with ids of their own."""
        return json.dumps({product["name"]: key for key, product in self.db.items("products")}, sort_keys=True)

    @reads
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user over to a human agent. Only if the user asks for one, or policy and tools don't allow to help.

        Args:
            summary: Summary of what the user wants.
        """
        del summary
        return "Transfer successful"

    def _order(self, order_id: str) -> Record:
        order = self.db.find("orders", order_id)
        if order is None:
            raise ToolError("Order not found")
        return order

    def _user(self, user_id: str) -> Record:
        user = self.db.find("users", user_id)
        if user is None:
            raise ToolError("User not found")
        return user

    def _method(self, user_id: str, payment_method_id: str) -> Record:
        method: Record | None = self._user(user_id)["payment_methods"].get(payment_method_id)
        if method is None:
            raise ToolError("Payment method not found")
        return method
