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


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    _text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
