"""The shop of tau2's retail domain: what its functions change, and that a refusal changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baltoro.eval.tasks.retail import Shop
from tests.eval import questions


def order(shop: Shop, name: str) -> dict[str, Any]:
    return json.loads(shop.call("get_order_details", {"order_id": name}))


def balance(shop: Shop) -> float:
    return json.loads(shop.call("get_user_details", {"user_id": "ann_1"}))["payment_methods"]["gift_card_1"]["balance"]


def test_users_are_found_by_what_they_know() -> None:
    shop = Shop(questions.shop())
    assert shop.call("find_user_id_by_email", {"email": "ANN@example.com"}) == "ann_1"
    assert shop.call("find_user_id_by_name_zip", {"first_name": "ann", "last_name": "BEE", "zip": "1"}) == "ann_1"
    assert shop.call("find_user_id_by_email", {"email": "x"}) == "Error: User not found"
    assert json.loads(shop.call("list_all_product_types", {})) == {"Shirt": "9"}
    assert shop.call("calculate", {"expression": "(1 + 2) * 3.5 - -1"}) == "11.5"


def test_a_cancelled_order_gives_the_money_back() -> None:
    shop = Shop(questions.shop())
    shop.call("cancel_pending_order", {"order_id": "#W1", "reason": "ordered by mistake"})
    found = order(shop, "#W1")
    assert (found["status"], found["cancel_reason"]) == ("cancelled", "ordered by mistake")
    assert found["payment_history"][-1] == {
        "transaction_type": "refund", "amount": 10.0, "payment_method_id": "gift_card_1"}  # fmt: skip
    assert balance(shop) == 13.0


def test_other_items_are_paid_or_given_back() -> None:
    shop = Shop(questions.shop())
    asked = {"order_id": "#W1", "item_ids": ["1"], "new_item_ids": ["2"], "payment_method_id": "card_1"}
    shop.call("modify_pending_order_items", asked)
    found = order(shop, "#W1")
    assert (found["status"], found["items"][0]["item_id"], found["items"][0]["price"]) == (
        "pending (item modified)", "2", 14.5)  # fmt: skip
    assert found["payment_history"][-1]["amount"] == 4.5
    shop.call("exchange_delivered_order_items", asked | {"order_id": "#W2"})
    assert order(shop, "#W2")["exchange_price_difference"] == 4.5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cancel_pending_order", {"order_id": "#W2", "reason": "no longer needed"}),
        ("cancel_pending_order", {"order_id": "#W1", "reason": "bored"}),
        ("cancel_pending_order", {"order_id": "#W9", "reason": "no longer needed"}),
        ("cancel_pending_order", {"order_id": "#W1"}),
        ("modify_pending_order_items",
         {"order_id": "#W1", "item_ids": ["1"], "new_item_ids": ["2"], "payment_method_id": "gift_card_1"}),
        ("modify_pending_order_items",
         {"order_id": "#W1", "item_ids": ["1"], "new_item_ids": ["3"], "payment_method_id": "card_1"}),
        ("modify_pending_order_items",
         {"order_id": "#W1", "item_ids": ["1", "1"], "new_item_ids": ["2", "2"], "payment_method_id": "card_1"}),
        ("modify_pending_order_payment", {"order_id": "#W1", "payment_method_id": "gift_card_1"}),
        ("return_delivered_order_items", {"order_id": "#W2", "item_ids": ["2"], "payment_method_id": "card_1"}),
        ("return_delivered_order_items", {"order_id": "#W2", "item_ids": ["1"], "payment_method_id": "card_9"}),
        ("calculate", {"expression": "__import__('os')"}),
        ("calculate", {"expression": "1 / 0"}),
        ("digest", {}),
        ("_order", {"order_id": "#W1", "status": "pending"}),
        ("cancel_pending_order", "no object"),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(name: str, arguments: Any) -> None:
    shop = Shop(questions.shop())
    before = shop.digest()
    assert shop.call(name, arguments).startswith("Error: ")
    assert shop.digest() == before
