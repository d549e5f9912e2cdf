"""The command line as a shell sees it: exit codes, what goes to stdout, what to stderr."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from baltoro import cli
from baltoro.errors import BaltoroError
from baltoro.kernels.targets import targets
from baltoro.model.batch import Batch
from baltoro.model.load import load
from baltoro.weights.trace import Header, Writer, synthetic
from tests import tiny

BALTORO = [sys.executable, "-m", "baltoro"]


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, stdin: str = "") -> Result:
    """`baltoro ARGUMENTS` in this process, which has torch in memory already."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["baltoro", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as left:
            cli.main()
    return Result(left.value.code or 0, out.getvalue(), err.getvalue())  # type: ignore[arg-type]


def error_of(result: Result, status: int = 1) -> str:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_serve_refuses_a_size_without_a_directory_and_a_directory_for_nothing(tmp_path: Path) -> None:
    assert "name a DIR" in error_of(run("serve", "--prefix-cache-size", "1GiB"), 2)
    assert "nothing to keep" in error_of(run("serve", "--no-prefix-cache", "--prefix-cache", tmp_path / "kept"), 2)
    assert "as 12GiB" in error_of(run("serve", "--prefix-cache", tmp_path / "kept", "--prefix-cache-size", "12"))
    assert not (tmp_path / "kept").exists()


def test_help_lists_every_command() -> None:
    printed = subprocess.run([*BALTORO, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ["chat", "serve", "info", "fetch", "quantize", "forward", "doctor", "pretrain", "sft"]:
        assert re.search(rf"^  {command} ", printed, re.MULTILINE)


def test_help_takes_less_cpu_than_the_promised_wall_time() -> None:
    """0.3 s on a quiet machine. CPU time, because tests share theirs; the best of three, because caches warm up."""
    times: list[float] = []
    for _ in range(3):
        process = subprocess.Popen([*BALTORO, "--help"], stdout=subprocess.DEVNULL)
        usage = os.wait4(process.pid, 0)[2]
        times.append(usage.ru_utime + usage.ru_stime)
    assert min(times) < 0.3


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["serve", "--port", "x"], ["serve", "--port", "70000"], ["forward", "x", "--ids", "1 x", "--out", "y"]],
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    assert "Error: " in error_of(run(*arguments), 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "no-such-model"], "no such file, directory or preset"),
        (["info", "kimi-k2-instruc"], "did you mean kimi-k2-instruct"),
        (["chat", "kimi-k2-instruct", "Hi"], "a config without weights"),
        (["forward", "kimi-k2-base", "--ids", "1", "--out", "x.npy"], "a config without weights"),
        (["pretrain", "no-such-recipe.toml"], "no-such-recipe.toml"),
        (["sft", "no-such-recipe.toml"], "no-such-recipe.toml"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_an_explained_failure_is_exit_1_without_a_traceback(arguments: list[str], says: str) -> None:
    printed = error_of(run(*arguments))
    assert "error: " in printed
    assert says in printed


def test_info_counts_kimi_k2_exactly() -> None:
    facts = json.loads(run("info", "kimi-k2-instruct", "--json").stdout)
    assert facts["parameters"] == 1_026_408_232_448
    assert facts["active_parameters"] == 32_861_500_928
    assert facts["tensor_bytes"] == 1_029_173_256_720
    assert facts["cache_bytes_per_token"] == 70_272


def test_info_reads_well_without_json(tiny_checkpoint: Path) -> None:
    printed = run("info", "kimi-k2-instruct").stdout
    assert re.search(r"^parameters +1,026,408,232,448$", printed, re.MULTILINE)
    assert re.search(r"^checkpoint mismatches +\[\]$", run("info", tiny_checkpoint).stdout, re.MULTILINE)


def test_forward_writes_the_logits_of_every_position(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.bin"
    result = run("forward", tiny_checkpoint, "--ids", "5 6,7", "--out", out)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    logits = np.load(out)
    assert logits.dtype == np.float32
    with torch.inference_mode():
        expected = load(tiny_checkpoint)(Batch.of([[5, 6, 7]])).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    assert list(tmp_path.iterdir()) == [out]


def test_forward_refuses_what_it_cannot_do_and_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert "outside the vocabulary" in error_of(
        run("forward", tiny_checkpoint, "--ids", "99999", "--out", tmp_path / "x")
    )
    assert "cannot be written" in error_of(
        run("forward", tiny_checkpoint, "--ids", "1", "--out", tmp_path / "no" / "x")
    )
    assert list(tmp_path.iterdir()) == []


def test_one_shot_chat_prints_the_answer_alone_and_repeats_it_for_a_seed(tiny_checkpoint: Path) -> None:
    first = run("chat", tiny_checkpoint, "Hello", "--max-tokens", 12, "--seed", 3)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert "loading" in first.stderr
    piped = run("chat", tiny_checkpoint, "--max-tokens", 12, "--seed", 3, stdin="Hello")
    assert piped.stdout == first.stdout


def test_an_empty_prompt_is_wrong_usage(tiny_checkpoint: Path) -> None:
    assert "the prompt is empty" in error_of(run("chat", tiny_checkpoint, stdin="\n"), 2)


@pytest.mark.parametrize(
    ("word", "is_model"),
    [("nano", True), ("kimi-k2-base", True), ("./model", True), (".", True), ("Hello", False), ("and/or what?", False)],
)
def test_a_lone_word_is_a_model_or_a_prompt(word: str, is_model: bool) -> None:
    assert cli.talk.names_model(word) is is_model


def test_tools_come_from_a_list_or_a_request_s_body(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    for document in (tools, {"tools": tools}):
        (tmp_path / "tools.json").write_text(json.dumps(document))
        (tool,) = cli.talk.read_tools(tmp_path / "tools.json")
        assert (tool.name, tool.declaration) == ("now", tools[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not valid JSON"), ('{"tool": []}', "tools"), ("[{}]", "tools[0].type"), (None, "No such file")],
)
def test_a_broken_tools_file_is_explained(tiny_checkpoint: Path, tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "tools.json").write_text(text)
    assert says in error_of(run("chat", tiny_checkpoint, "Hi", "--tools", tmp_path / "tools.json"))


def test_a_taken_port_is_told_before_the_model_loads(tiny_checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        printed = error_of(run("serve", tiny_checkpoint, "--port", port))
    assert f"port {port} on 127.0.0.1 is already in use" in printed
    assert "loading" not in printed


@pytest.mark.parametrize("given", [[], ["--loose-schemas"]])
@pytest.mark.parametrize("where", [[], ["--upstream", "http://127.0.0.1:9"]])
def test_loose_schemas_are_the_model_s_to_know(
    monkeypatch: pytest.MonkeyPatch, given: list[str], where: list[str]
) -> None:
    def opened(*_: Any, loose_schemas: bool, **__: Any) -> None:
        raise BaltoroError(f"loose: {loose_schemas}")

    monkeypatch.setattr("baltoro.llm.LLM.open", opened)
    monkeypatch.setattr("baltoro.llm.LLM.connect", opened)
    assert f"loose: {bool(given)}" in error_of(run("serve", "--port", 0, *given, *where))


def test_default_names_start_with_the_honest_one(tmp_path: Path) -> None:
    assert cli.talk.default_names("nano") == ["nano", "baltoro", "kimi-k2-instruct", "moonshotai/Kimi-K2-Instruct"]
    assert cli.talk.default_names("kimi-k2-instruct")[:2] == ["kimi-k2-instruct", "baltoro"]
    assert cli.talk.default_names(f"{tmp_path}/my-model/")[0] == "my-model"


class Terminal:
    """`baltoro chat` with a pseudo-terminal for all three streams."""

    def __init__(self, *arguments: object) -> None:
        self.heard = ""
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [*BALTORO, *map(str, arguments)])

    def wait_for(self, pattern: str) -> None:
        assert self.hears(pattern, 120), self.heard

    def hears(self, pattern: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.heard):
            if not select.select([self.screen], [], [], max(0, deadline - time.monotonic()))[0]:
                return False
            self.heard += os.read(self.screen, 4096).decode(errors="replace")
        return True

    def interrupt(self, answer: str) -> None:
        """Ctrl-C until `answer`: one that comes between the prompt and readline's wait is noticed with the next key."""
        for _ in range(4):
            os.kill(self.pid, signal.SIGINT)
            if self.hears(answer, 30):
                return
        raise AssertionError(self.heard)

    def type(self, text: str) -> None:
        self.heard = ""
        os.write(self.screen, text.encode())

    def exit_status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_conversation_in_a_real_terminal(tiny_checkpoint: Path) -> None:
    terminal = Terminal("chat", tiny_checkpoint, "--threads", 1, "--temperature", 0)
    terminal.wait_for("> ")
    terminal.type("Hello\r")  # random weights hardly ever stop by themselves: this answer runs into the context
    terminal.wait_for(r"Hello\r\n.")  # the echo, and the first of the answer
    terminal.interrupt(r"\(stopped\)")
    terminal.wait_for("> ")
    terminal.type("/help\r")
    terminal.wait_for("/reset")
    terminal.wait_for("> ")
    terminal.interrupt(r"leaves\)")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.exit_status() == 0


@pytest.fixture
def small_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config without weights that every format can hold."""
    monkeypatch.setattr("baltoro.model.measure.SMALLEST_SCRATCH", 2**22)
    monkeypatch.setattr("baltoro.kernels.memory.last_cache", lambda: 2**20)
    config = tiny.config(hidden_size=256, kv_lora_rank=64, v_head_dim=32, n_routed_experts=8, num_hidden_layers=3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


@pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")
def test_bench_layers_prints_one_json_object_a_row_and_its_progress_beside(small_layers: Path) -> None:
    result = run(
        "bench", "layers", small_layers, "--json", "--seconds", 0.1, "--format", "int4", "--format", "bf16",
        "--context", 9, "--batch", 2, "--tokens", 20, "--bandwidth", 400, "--ram", 768,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["layer"] for row in rows] == ["dense", "mixture", "head", "all", "all"] * 6
    assert [row["format"] for row in rows] == ["int4"] * 15 + ["bf16"] * 15
    assert {row["roof_fraction"] > 0 for row in rows} == {True}
    assert [row["machine"] for row in rows[3:5]] == ["here, 1 thread", "400 GB/s, 768 GB"] or rows[3]["cores"] > 1
    assert "int4: making" in result.stderr and "bf16: prefill, 20 tokens" in result.stderr
    printed = run("bench", "layers", small_layers, "--seconds", 0.1, "--format", "fp8", "--context", 9).stdout
    assert re.search(r"^fp8: a token for each of 1 at context 9$", printed, re.MULTILINE)
    assert re.search(r"^  mixture .* tokens/s .* GB/s .* GFLOP/s", printed, re.MULTILINE)
    assert re.search(r"^  all 3 .*12 x DDR5-4800 .* tokens/s; needs", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--format", "int3"], 2, "'int3' is not one of"),
        (["--ram", "768"], 2, "together with --bandwidth"),
        (["--bandwidth", "400", "--bandwidth", "500", "--ram", "768"], 2, "each --bandwidth needs its --ram"),
        (["--memory", "0.0001"], 1, "raise --memory"),
        (["--context", "2049"], 1, "beyond the model's 2048"),
    ],
)
@pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")
def test_bench_layers_explains_what_it_cannot_do(
    arguments: list[str], status: int, says: str, small_layers: Path
) -> None:
    result = run("bench", "layers", small_layers, *arguments)
    assert says in error_of(result, status)


@pytest.mark.skipif(len(targets()) == 1, reason="no native kernels were built")
def test_bench_layers_stops_at_ctrl_c_without_a_traceback(small_layers: Path) -> None:
    command = [*BALTORO, "bench", "layers", small_layers, "--seconds", "600", "--threads", "1", "--format", "int8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    heard = next(line for line in process.stderr if "decode" in line)
    process.send_signal(signal.SIGINT)
    printed, rest = process.communicate(timeout=120)
    assert (process.returncode, printed.strip()) == (130, "")
    assert "Traceback" not in heard + rest


def test_chat_reads_experts_from_disk_and_records_which_were_chosen(tmp_path: Path) -> None:
    run("quantize", "nano", tmp_path / "packed", "--format", "int8")
    asked = ("chat", tmp_path / "packed", "What is 2 + 2?", "--temperature", 0)
    resident = run(*asked)
    streamed = run(*asked, "--expert-memory", "1MB", "--trace", tmp_path / "trace")
    assert streamed.stdout == resident.stdout
    assert re.search(r"\d+ experts in 0.0 GB, the others are read from disk", streamed.stderr)
    assert "every use is a read" not in streamed.stderr
    replayed = json.loads(run("bench", "trace", tmp_path / "trace", "--budget", 64, "--policy", "lru", "--json").stdout)
    assert replayed["uses"] > 64
    assert "name a file that is not yet there" in error_of(run(*asked, "--trace", tmp_path / "trace"), 1)
    assert "a number and a unit" in error_of(run(*asked, "--expert-memory", "lots"), 1)
    assert "a number and a unit" in error_of(run(*asked, "--expert-memory", ""), 1)
    again = tmp_path / "again"
    assert "is not packed" in error_of(run("chat", "nano", "Hi", "--expert-memory", "1GB", "--trace", again), 1)
    assert not again.exists(), "a model that does not open leaves no trace"
    assert "is not packed" in error_of(run("chat", "nano", "Hi", "--expert-memory", "1GB"), 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("here", "--format", "int8"), "DIR is as it is"),
        (("here", "--layers", 2), "DIR is as it is"),
        (("here", "--directory", "there"), "DIR says where"),
        (("--resident", "--expert-memory", "1GB"), "no expert is streamed"),
    ],
)
def test_bench_stream_refuses_what_it_would_not_honour(arguments: tuple[str | int, ...], says: str) -> None:
    assert says in error_of(run("bench", "stream", *arguments), 2)


@pytest.fixture(scope="module")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    header = Header(model="small", layers=(1, 2), experts=16, experts_per_token=2, expert_bytes=1000)
    path = tmp_path_factory.mktemp("trace") / "routing"
    with Writer(path, header) as writer:
        for layer, chosen in synthetic(header, tokens=50, skew=0.7, sticky=0.3, seed=0):
            writer.add(layer, chosen)
    return path


def test_bench_trace_prints_a_row_for_every_budget_and_policy(routing: Path) -> None:
    result = run("bench", "trace", routing, "--budget", "8, 20kB", "--policy", "lru,belady", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    asked = [(8, "lru"), (8, "belady"), (20, "lru"), (20, "belady")]
    assert [(row["budget_experts"], row["policy"]) for row in rows] == asked
    assert {(row["tokens"], row["uses"]) for row in rows} == {(50, 200)}
    assert [row["bytes_per_token"] for row in rows] == [1000 * row["misses_per_token"] for row in rows]
    assert "small: 50 tokens, 200 uses of experts" in result.stderr
    printed = run("bench", "trace", routing, "--budget", "8").stdout.splitlines()
    assert len(printed) == 5
    assert re.fullmatch(r" +8 experts .*  lru +\d+\.\d+% hit +\d\.\d\d misses a token .* GB a token", printed[0])


def test_bench_trace_reads_a_cut_file_and_says_so(routing: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(routing.read_bytes()[:-1])
    result = run("bench", "trace", tmp_path / "cut", "--budget", "8", "--policy", "lru", "--json")
    assert json.loads(result.stdout)["uses"] == 198
    assert "the last record is cut after 13 bytes and left out" in result.stderr


def test_bench_trace_makes_up_choices_for_a_model_that_is_not_here() -> None:
    result = run(
        "bench",
        "trace",
        "--synthetic",
        "kimi-k2-instruct",
        "--tokens",
        3,
        "--budget",
        "1GB",
        "--policy",
        "lru",
        "--json",
    )
    row = json.loads(result.stdout)
    assert (row["budget_experts"], row["tokens"], row["uses"]) == (22, 3, 3 * 60 * 8)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "either a FILE or --synthetic MODEL"),
        (["x", "--synthetic", "nano"], 2, "either a FILE or --synthetic MODEL"),
        (["/none/trace"], 1, "/none/trace cannot be opened: No such file"),
        (["--synthetic", "nano", "--policy", "lru,best"], 1, "no policy is called 'best'"),
        (["--synthetic", "nano", "--budget", "much"], 1, "a budget of 'much'"),
        (["--synthetic", "nano", "--sticky", "2"], 2, "--sticky"),
    ],
)
def test_bench_trace_explains_what_it_cannot_do(arguments: list[str], status: int, says: str) -> None:
    assert says in error_of(run("bench", "trace", *arguments), status)


# --- quantize --------------------------------------------------------------------------------------------------------


def test_quantize_makes_what_forward_and_chat_take_as_they_take_a_format(tmp_path: Path) -> None:
    made = run("quantize", "nano", tmp_path / "packed", "--format", "int8", "--json")
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["format"] == "int8" and facts["files"] == 5 and 0.005 < facts["errors"]["routed experts"] < 0.01
    for name, arguments in (("ours", [tmp_path / "packed"]), ("theirs", ["nano", "--format", "int8"])):
        assert run("forward", *arguments, "--ids", "1 2 3", "--out", tmp_path / f"{name}.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "ours.npy"), np.load(tmp_path / "theirs.npy"))
    wishes = ("Who are you?", "--temperature", "0", "--max-tokens", "20")
    answers = [run("chat", *model, *wishes) for model in ((tmp_path / "packed",), ("nano", "--format", "int8"))]
    assert answers[0].stdout == answers[1].stdout != ""
    other = run("forward", tmp_path / "packed", "--ids", "1", "--out", tmp_path / "no.npy", "--format", "int4")
    assert "is packed in int8, not in int4" in error_of(other)


def test_quantize_says_what_it_made_and_what_it_refuses(tmp_path: Path) -> None:
    made = run("quantize", "nano", tmp_path / "packed", "--format", "int4")
    assert "5 shards, 2.4 MB in int4" in made.stdout and re.search(r"routed experts +8\.\d\d%", made.stdout)
    assert "already holds a checkpoint" in error_of(run("quantize", "nano", tmp_path / "packed", "--format", "int4"))
    assert "packed in int4 already" in error_of(
        run("quantize", tmp_path / "packed", tmp_path / "other", "--format", "int8")
    )
    assert run("quantize", "nano", tmp_path / "other").returncode == 2


def test_ctrl_c_ends_quantize_with_130_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("baltoro.weights.quantize.shard.write", stopped)
    left = run("quantize", "nano", tmp_path / "packed", "--format", "int4")
    assert left.returncode == 130 and left.stdout == ""
    assert "the same command goes on" in left.stderr


def test_doctor_prints_a_report_or_one_json_object(tiny_checkpoint: Path) -> None:
    result = run("doctor", tiny_checkpoint, "--tokens", 2, "--threads", 1, "--json")
    document = json.loads(result.stdout)
    assert document["facts"]["tokens"] == 2 and document["verdict"]["tokens_per_s"] > 0
    assert "loading" in result.stderr
    printed = run("doctor", tiny_checkpoint, "--tokens", 2, "--threads", 1).stdout
    assert re.search(r"tokens/s measured\n", printed) and re.search(r"^binding +\w", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["tiny", "--url", "http://127.0.0.1:1"], 2, "a server that has its own model"),
        (["--seconds", "1"], 2, "goes with --url"),
        (["--url", "http://127.0.0.1:1"], 1, "does not answer"),
        (["kimi-k2-instruct"], 1, "a config without weights"),
        (["nano", "--expert-memory", "1GB"], 1, "is not packed"),
    ],
)
def test_doctor_explains_what_it_cannot_do(arguments: list[str], status: int, says: str) -> None:
    assert says in error_of(run("doctor", *arguments), status)
