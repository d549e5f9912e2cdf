"""A folder of benchmarks in their own formats, with a question or two of ours in each, and answers to them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from baltoro.eval.tasks.bfcl import CALLING, KINDS
from baltoro.eval.tasks.functions import ACE_NORMAL, ACE_SPECIAL

DOUBLE = {
    "python": ('def double(n: int) -> int:\n    """Twice n."""\n', "    return 2 * n\n",
               "def check(candidate):\n    assert candidate(3) == 6\n"),
    "js": ("/* Twice n. */\nconst double = (n) => {\n", "  return 2 * n;\n}\n",
           "console.assert(double(3) === 6)\nconsole.assert(double(0) === 0)\n"),
    "cpp": ("/* Twice n. */\n#include <vector>\nint twice(int n){\n", "  return 2 * n;\n}\n",
            "#undef NDEBUG\n#include <assert.h>\nint main(){ assert(twice(3) == 6); }\n"),
    "java": ("import java.util.*;\n\nclass Solution {\n    public int twice(int n) {\n",
             "        return 2 * n;\n    }\n}\n",
             "public class Main { public static void main(String[] a) { if (new Solution().twice(3) != 6) "
             "throw new AssertionError(); } }\n"),
}  # fmt: skip
WEATHER: dict[str, Any] = {
    "name": "get.weather", "description": "Weather.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip


def write(folder: Path) -> Path:
    """Returns `folder`, which `--data` may name."""
    _lines(folder / "evals/gsm8k/test.jsonl", [
        {"question": f"Tom has {n} apples and buys 2. How many?", "answer": f"He has <<{n}+2>>\n#### {n + 2}"}
        for n in (3, 998)
    ])  # fmt: skip
    _lines(folder / "evals/math-misc/aime24.jsonl", [{"id": 1, "problem": "What is $20+4$?", "answer": "024"}])
    _lines(folder / "evals/ifeval/input_data.jsonl", [
        {"key": 1, "prompt": "Say hi, without commas.", "instruction_id_list": ["punctuation:no_comma"],
         "kwargs": [{}]},
    ])  # fmt: skip
    archive = folder / "evals/mmlu/mmlu_csv.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in {
            "test/history_test.csv": 'When?,"1, maybe",2,3,4,B\n',
            "test/new_form_test.csv": "question,a,b,c,d,answer\nWhat?,w,x,y,z,3\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text.encode()))
    _text(folder / "evals/bbh/bbh/words.json", json.dumps({"examples": [{"input": "Sort: b a", "target": "a b"}]}))
    _text(folder / "evals/bbh/cot-prompts/words.txt", "canary\n-----\nSort words.\n\nQ: ...\nA: So the answer is x.")
    for kind in KINDS:
        question = {
            "id": f"{kind}_0",
            "question": [[{"role": "user", "content": "Weather in Rome?"}]],
            "function": [WEATHER],
        }
        _lines(folder / f"bfcl/BFCL_v4_{kind}.json", [question])
        if kind in CALLING:
            truth = {"id": f"{kind}_0", "ground_truth": [{"get.weather": {"city": ["Rome"]}}]}
            _lines(folder / f"bfcl/possible_answer/BFCL_v4_{kind}.json", [truth])
    ace = folder / "toolcalling/acebench/data_all/data_en"
    for kind in (*(f"normal_{each}" for each in ACE_NORMAL), *(f"special_{each}" for each in ACE_SPECIAL)):
        question = {"id": f"{kind}_0", "question": "user: Weather in Rome?\n", "function": [WEATHER]}
        _lines(ace / f"data_{kind}.json", [question])
        truth = {"id": f"{kind}_0", "ground_truth": {"get.weather": {"city": "Rome"}}}
        _lines(ace / f"possible_answer/data_{kind}.json", [truth])
    _shop(folder / "toolcalling/tau2/retail")
    prompt, _, test = DOUBLE["python"]
    problem = {
        "task_id": "HumanEval/0",
        "prompt": prompt,
        "entry_point": "double",
        "test": test,
    }
    _lines(folder / "evals/humaneval/HumanEval.jsonl", [problem])
    _lines(folder / "evals/mbpp/mbpp_release_v1.jsonl", [{**problem, "task_id": "MBPP/0"}])
    for language, (declared, _, tests) in DOUBLE.items():
        ending = "\ncheck(double)\n" if language == "python" else ""
        row = {"task_id": f"{language}/0", "prompt": declared, "declaration": declared, "test": tests + ending}
        _lines(folder / f"evals/humaneval-x/humaneval_{language}.jsonl", [row])
    return folder


def right(body: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """What a perfect model says to any of these."""
    asked = body["messages"][-1]["content"]
    if body["messages"][0]["content"].startswith(("You play a user", "You are a customer service agent")):
        return _conversing(body)
    if "tools" in body:
        return "", [("get_weather", '{"city": "Rome"}')]
    for marker, answer in {
        "3 apples": "So 3+2.\n#### 5", "998 apples": "#### $1,000.00", "20+4": "It is \\boxed{24}.",
        "without commas": "Hi there", "When?": "I think.\nAnswer: B", "What?": "**Answer: D**",
        "Sort: b a": "We sort. So the answer is a b.",
    }.items():  # fmt: skip
        if marker in asked:
            return answer, []
    language = next(name for name, (declared, _, _) in DOUBLE.items() if declared.strip() in asked)
    return f"Here:\n```\n{DOUBLE[language][0]}{DOUBLE[language][1]}```\n", []


def _conversing(body: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """User and agent of a shop: cancel, done, bye."""
    if "tools" not in body:
        return ("###STOP###" if "Done" in body["messages"][-1]["content"] else "Cancel #W1, I no longer need it."), []
    if body["messages"][-1]["role"] == "tool":
        return "Done.", []
    return "", [("cancel_pending_order", '{"order_id": "#W1", "reason": "no longer needed"}')]


def shop() -> dict[str, Any]:
    """A database of tau2's form: one user with a gift card, a pending and a delivered order."""
    variants = {
        name: {"item_id": name, "options": {"size": size}, "available": available, "price": price}
        for name, size, available, price in (("1", "S", True, 10.0), ("2", "L", True, 14.5), ("3", "XL", False, 5.0))
    }
    address = {"address1": "a", "address2": "", "city": "c", "country": "USA", "state": "s", "zip": "1"}
    item = {"name": "Shirt", "product_id": "9", "item_id": "1", "price": 10.0, "options": {"size": "S"}}
    orders = {
        order: {"order_id": order, "user_id": "ann_1", "address": address, "items": [item], "status": status,
                "payment_history": [{"transaction_type": "payment", "amount": 10.0, "payment_method_id": method}]}
        for order, status, method in (("#W1", "pending", "gift_card_1"), ("#W2", "delivered", "card_1"))
    }  # fmt: skip
    methods = {"gift_card_1": {"source": "gift_card", "id": "gift_card_1", "balance": 3.0},
               "card_1": {"source": "credit_card", "id": "card_1"}}  # fmt: skip
    user = {"user_id": "ann_1", "name": {"first_name": "Ann", "last_name": "Bee"}, "address": address,
            "email": "ann@example.com", "payment_methods": methods, "orders": list(orders)}  # fmt: skip
    product = {"name": "Shirt", "product_id": "9", "variants": variants}
    return json.loads(json.dumps({"products": {"9": product}, "users": {"ann_1": user}, "orders": orders}))


def _shop(folder: Path) -> None:
    _text(folder / "db.json", json.dumps(shop()))
    _text(folder / "policy.md", "Be kind.")
    parameters = {"type": "object", "properties": {"order_id": {"type": "string"}, "reason": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "cancel_pending_order", "parameters": parameters}}
    _text(folder / "tools.json", json.dumps([tool]))
    action = {"name": "cancel_pending_order", "arguments": {"order_id": "#W1", "reason": "no longer needed"}}
    task = {"id": "0", "user_scenario": {"instructions": {"reason_for_call": "Cancel #W1."}},
            "evaluation_criteria": {"actions": [action], "nl_assertions": None}}  # fmt: skip
    _text(folder / "tasks.json", json.dumps([task]))


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    _text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
