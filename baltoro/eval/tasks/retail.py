"""The shop of tau2-bench's retail domain: products, users, orders, and the functions an agent has to serve its users.

Written after the descriptions in the benchmark's tools.json and policy.md (sierra-research/tau2-bench, MIT). What a
function refuses is a text that begins with "Error: ", as an agent reads it; a call changes everything or nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from hashlib import sha256
from typing import Any

Json = Any
_CANCEL = ("no longer needed", "ordered by mistake")
_LOOKING = ("find_", "get_", "list_", "calculate", "transfer_")  # these change nothing
_SUMS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


class Refused(Exception):
    """A call that the shop does not take."""


class Shop:
    """One conversation's copy of the database."""

    def __init__(self, database: Json) -> None:
        """database: this conversation's own, which it changes"""
        self._db = database
        self._functions: Mapping[str, Callable[..., Json]] = {
            name: getattr(self, name)
            for name in dir(type(self))
            if not name.startswith("_") and name not in ("call", "digest")
        }

    def call(self, name: str, arguments: Json) -> str:
        function = self._functions.get(name)
        if function is None or not isinstance(arguments, dict):
            return f"Error: there is no {name}" if function is None else "Error: arguments are no object"
        before = None if name.startswith(_LOOKING) else deepcopy(self._db)
        try:
            result = function(**arguments)
        except (Refused, TypeError, KeyError, ValueError, AttributeError) as error:
            self._db = self._db if before is None else before
            return f"Error: {error}"
        return result if isinstance(result, str) else json.dumps(result)

    def digest(self) -> str:
        """Equal for equal databases."""
        return sha256(json.dumps(self._db, sort_keys=True).encode()).hexdigest()

    # ── looking ──────────────────────────────────────────────────────────────────────────────────

    def find_user_id_by_email(self, email: str) -> str:
        found = (key for key, user in self._db["users"].items() if user["email"].lower() == email.lower())
        return _first(found, "User not found")

    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:  # noqa: A002
        wanted = (first_name.lower(), last_name.lower(), zip)
        found = (
            key
            for key, user in self._db["users"].items()
            if (user["name"]["first_name"].lower(), user["name"]["last_name"].lower(), user["address"]["zip"]) == wanted
        )
        return _first(found, "User not found")

    def get_user_details(self, user_id: str) -> Json:
        return self._of("users", user_id, "User")

    def get_order_details(self, order_id: str) -> Json:
        return self._of("orders", order_id, "Order")

    def get_product_details(self, product_id: str) -> Json:
        return self._of("products", product_id, "Product")

    def get_item_details(self, item_id: str) -> Json:
        found = (each["variants"][item_id] for each in self._db["products"].values() if item_id in each["variants"])
        return _first(found, "Item not found")

    def list_all_product_types(self) -> Json:
        return dict(sorted((each["name"], each["product_id"]) for each in self._db["products"].values()))

    def calculate(self, expression: str) -> str:
        return str(round(_value(ast.parse(expression, mode="eval").body), 2))

    def transfer_to_human_agents(self, summary: str) -> str:  # noqa: ARG002
        return "Transfer successful"

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def cancel_pending_order(self, order_id: str, reason: str) -> Json:
        order = self._order(order_id, "pending")
        if reason not in _CANCEL:
            raise Refused("Invalid reason")
        for payment in list(order["payment_history"]):
            self._give_back(order, payment["payment_method_id"], payment["amount"])
        order["status"], order["cancel_reason"] = "cancelled", reason
        return order

    def modify_pending_order_address(
        self,
        order_id: str,
        address1: str,
        address2: str,
        city: str,
        state: str,
        country: str,
        zip: str,  # noqa: A002
    ) -> Json:
        order = self._order(order_id, "pending")
        order["address"] = _address(address1, address2, city, state, country, zip)
        return order

    def modify_user_address(
        self,
        user_id: str,
        address1: str,
        address2: str,
        city: str,
        state: str,
        country: str,
        zip: str,  # noqa: A002
    ) -> Json:
        user = self._of("users", user_id, "User")
        user["address"] = _address(address1, address2, city, state, country, zip)
        return user

    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> Json:
        order = self._order(order_id, "pending")
        history = order["payment_history"]
        if len(history) != 1 or history[0]["transaction_type"] != "payment":
            raise Refused("There should be exactly one payment for a pending order")
        amount, old = history[0]["amount"], history[0]["payment_method_id"]
        if payment_method_id == old:
            raise Refused("The new payment method should be different from the current one")
        self._take(order, payment_method_id, amount)
        self._give_back(order, old, amount)
        return order

    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Json:
        order = self._order(order_id, "pending")
        pairs = self._pairs(order, item_ids, new_item_ids)
        difference = round(sum(new["price"] - old["price"] for old, new in pairs), 2)
        self._settle(order, payment_method_id, difference)
        for old, new in pairs:
            old |= {"item_id": new["item_id"], "price": new["price"], "options": new["options"]}
        order["status"] = "pending (item modified)"
        return order

    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> Json:
        order = self._order(order_id, "delivered")
        pairs = self._pairs(order, item_ids, new_item_ids)
        difference = round(sum(new["price"] - old["price"] for old, new in pairs), 2)
        self._method(order, payment_method_id, difference)
        order |= {
            "status": "exchange requested",
            "exchange_items": sorted(item_ids), "exchange_new_items": sorted(new_item_ids),
            "exchange_payment_method_id": payment_method_id, "exchange_price_difference": difference,
        }  # fmt: skip
        return order

    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> Json:
        order = self._order(order_id, "delivered")
        method = self._method(order, payment_method_id, 0)
        if method["source"] != "gift_card" and payment_method_id != order["payment_history"][0]["payment_method_id"]:
            raise Refused("Payment method should be the original payment method or a gift card")
        self._items(order, item_ids)
        order |= {"status": "return requested", "return_items": sorted(item_ids),
                  "return_payment_method_id": payment_method_id}  # fmt: skip
        return order

    # ── parts of these ───────────────────────────────────────────────────────────────────────────

    def _of(self, table: str, key: str, title: str) -> Json:
        if key not in self._db[table]:
            raise Refused(f"{title} not found")
        return self._db[table][key]

    def _order(self, order_id: str, status: str) -> Json:
        order = self._of("orders", order_id, "Order")
        if order["status"] != status:
            raise Refused(f"Order is {order['status']}, not {status}")
        return order

    def _items(self, order: Json, item_ids: list[str]) -> list[Json]:
        """Items of the order, each of `item_ids` another one."""
        left = list(order["items"])
        found: list[Json] = []
        for item_id in item_ids:
            item = next((each for each in left if each["item_id"] == item_id), None)
            if item is None:
                raise Refused(f"Item {item_id} not found in the order")
            left = [each for each in left if each is not item]
            found.append(item)
        return found

    def _pairs(self, order: Json, item_ids: list[str], new_item_ids: list[str]) -> list[tuple[Json, Json]]:
        """Items of the order and the variants of the same products that take their place."""
        if len(item_ids) != len(new_item_ids):
            raise Refused("The number of items should match")
        pairs: list[tuple[Json, Json]] = []
        for old, new_id in zip(self._items(order, item_ids), new_item_ids, strict=True):
            new = self._db["products"][old["product_id"]]["variants"].get(new_id)
            if new is None or not new["available"]:
                raise Refused(f"New item {new_id} not found or not available")
            pairs.append((old, new))
        return pairs

    def _method(self, order: Json, payment_method_id: str, amount: float) -> Json:
        method = self._db["users"][order["user_id"]]["payment_methods"].get(payment_method_id)
        if method is None:
            raise Refused("Payment method not found")
        if method["source"] == "gift_card" and method["balance"] < amount:
            raise Refused("Insufficient gift card balance")
        return method

    def _take(self, order: Json, payment_method_id: str, amount: float) -> None:
        self._pay(order, payment_method_id, amount, "payment", -amount)

    def _give_back(self, order: Json, payment_method_id: str, amount: float) -> None:
        self._pay(order, payment_method_id, amount, "refund", amount)

    def _settle(self, order: Json, payment_method_id: str, difference: float) -> None:
        if difference > 0:
            self._take(order, payment_method_id, difference)
        else:
            self._method(order, payment_method_id, 0)
        if difference < 0:
            self._give_back(order, payment_method_id, -difference)

    def _pay(self, order: Json, payment_method_id: str, amount: float, kind: str, gift: float) -> None:
        """gift: what a gift card gains"""
        method = self._method(order, payment_method_id, -gift)
        if method["source"] == "gift_card":
            method["balance"] = round(method["balance"] + gift, 2)
        order["payment_history"].append(
            {"transaction_type": kind, "amount": amount, "payment_method_id": payment_method_id}
        )


def _first(found: Any, otherwise: str) -> Json:
    for each in found:
        return each
    raise Refused(otherwise)


def _address(address1: str, address2: str, city: str, state: str, country: str, zip: str) -> Json:  # noqa: A002
    return {"address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip}


def _value(node: ast.expr) -> float:
    """Of numbers, + - * / and brackets alone."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SUMS:
            try:
                return _SUMS[type(op)](_value(left), _value(right))
            except ZeroDivisionError as error:
                raise Refused("Invalid expression") from error
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case _:
            raise Refused("Invalid expression")
