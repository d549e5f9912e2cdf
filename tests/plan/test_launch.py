"""Commands and files of every node: read by the engines' own parsers, by PyYAML, by sh, and run against stand-ins.

BALTORO_VLLM_PYTHON, BALTORO_SGLANG_PYTHON and BALTORO_KT_PYTHON name interpreters that have these engines installed;
without them (and without a `vllm` on PATH) the tests that ask parsers are skipped.
"""

from __future__ import annotations

import functools
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from baltoro.errors import PlanError
from baltoro.plan.launch import engines, forms, vllm, yaml
from baltoro.plan.launch.processes import Launch, Site
from baltoro.plan.planner import Plan
from tests.plan.made import plan

SITE = Site(model="/models/kimi k2", tokenizer="/models/kimi k2", hosts=(), devices="mlx5_0")
LAYOUTS = ["tp16", "tp8+pp2", "dp16+ep", "tp16+ep", "tp16+dcp8", "tp8+dp2+ep"]


@functools.cache
def planned(layout: str | None, machine: str = "h200-x16", **changes: Any) -> Plan:
    return plan(machine, layout=layout, **changes)


def launched(engine: str, layout: str | None, machine: str = "h200-x16", **changes: Any) -> tuple[Plan, Launch]:
    found = planned(layout, machine, **changes)
    return found, engines.launch(found, engine, SITE)


def python_of(engine: str) -> str:
    named = os.environ.get(f"BALTORO_{engine}_PYTHON")
    if named is None and engine == "VLLM" and (program := shutil.which("vllm")):
        named = str(Path(program).parent / "python")
    if named is None:
        pytest.skip(f"BALTORO_{engine}_PYTHON names no interpreter with it")
    return named


def parsed(python: str, code: str, lines: list[list[str]]) -> list[dict[str, Any]]:
    """What the engine's own parser makes of each line. code: defines `parser`"""
    program = (
        f"import json, sys\n{code}\n"
        "out = [{k: v if isinstance(v, (int, float, str, bool, type(None))) else str(v) for k, v in "
        "vars(parser.parse_args(line)).items()} for line in json.load(sys.stdin)]\n"
        "print('RESULT' + json.dumps(out))"
    )
    run = subprocess.run([python, "-c", program], input=json.dumps(lines), capture_output=True, text=True)
    found = [line for line in run.stdout.splitlines() if line.startswith("RESULT")]
    assert found, run.stderr[-3000:]
    return json.loads(found[-1].removeprefix("RESULT"))


VLLM_PARSER = """
import argparse
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ModuleNotFoundError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ModuleNotFoundError:
    from vllm.utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
"""
SGLANG_PARSER = """
import argparse
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
"""


def test_vllm_itself_reads_every_command_for_it() -> None:
    lines: list[list[str]] = []
    for layout in LAYOUTS:
        found, launch = launched("vllm", layout)
        lines += [list(process.argv[2:]) for process in launch.processes]
        lines.append(list(vllm.by_ray(found, SITE)[2:]))
    results = parsed(python_of("VLLM"), VLLM_PARSER, [["--model", *line] for line in lines])
    of_layout = {layout: results[3 * place : 3 * place + 3] for place, layout in enumerate(LAYOUTS)}
    head, worker, ray = of_layout["tp16"]
    assert (head["tensor_parallel_size"], head["nnodes"], head["node_rank"], worker["node_rank"]) == (16, 2, 0, 1)
    assert (head["headless"], worker["headless"], worker["master_addr"]) == (False, True, "node0")
    assert (ray["distributed_executor_backend"], ray["nnodes"]) == ("ray", 1)
    head, worker, ray = of_layout["dp16+ep"]
    assert (head["data_parallel_size"], head["data_parallel_size_local"], head["enable_expert_parallel"]) == (
        16,
        8,
        True,
    )
    assert (worker["data_parallel_start_rank"], worker["data_parallel_address"]) == (8, "node0")
    assert ray["data_parallel_backend"] == "ray"
    assert of_layout["tp8+pp2"][0]["pipeline_parallel_size"] == 2
    assert of_layout["tp16+dcp8"][0]["decode_context_parallel_size"] == 8
    for each in results:
        assert (each["max_model_len"], each["tool_call_parser"], each["trust_remote_code"]) == (32768, "kimi_k2", True)


def test_sglang_itself_reads_every_command_for_it() -> None:
    lines: list[list[str]] = []
    for layout in ("tp16", "tp8+pp2", "tp16+ep", "dp16+ep"):
        lines += [list(process.argv[3:]) for process in launched("sglang", layout)[1].processes]
    found = plan("h200-x16", nodes=4, layout="tp32+ep", format="int8")
    apart = engines.launch(found, "sglang", SITE, prefill_nodes=2)
    lines += [list(process.argv[3:]) for process in apart.processes if process.gpus]
    results = parsed(python_of("SGLANG"), SGLANG_PARSER, lines)
    assert (results[0]["tp_size"], results[0]["nnodes"], results[1]["node_rank"]) == (16, 2, 1)
    assert results[2]["pp_size"] == 2
    assert (results[6]["dp_size"], results[6]["enable_dp_attention"], results[6]["ep_size"]) == (16, True, 16)
    *_, prefill, _, decode, last = results
    assert (prefill["disaggregation_mode"], decode["disaggregation_mode"]) == ("prefill", "decode")
    assert (decode["tp_size"], last["node_rank"], last["dist_init_addr"]) == (16, 1, "node2:20000")


def test_ktransformers_own_parser_reads_its_command() -> None:
    lines = [
        list(launched("ktransformers", None, "xeon-8488c-x2", format=format, place="hybrid")[1].processes[0].argv[3:])
        for format in ("fp8", "w4a16", "int4", "int8")
    ]
    results = parsed(python_of("KT"), SGLANG_PARSER, lines)
    assert [each["kt_method"] for each in results] == ["FP8", "RAWINT4", "AMXINT4", "AMXINT8"]
    assert all(each["kt_threadpool_count"] == 2 for each in results)


def test_what_an_engine_cannot_do_is_refused_with_the_way_out() -> None:
    hybrid = planned(None, "epyc-9355-x2", place="hybrid")
    with pytest.raises(PlanError, match="whole model on GPUs") as error:
        engines.launch(hybrid, "vllm", SITE)
    assert "ktransformers" in error.value.hint
    with pytest.raises(PlanError, match="nodes for TGI"):
        launched("tgi", "tp16")
    with pytest.raises(PlanError, match="DCP8"):
        launched("sglang", "tp16+dcp8")
    with pytest.raises(PlanError, match="nodes for prefill"):
        engines.launch(planned("tp16"), "sglang", SITE, prefill_nodes=2)
    with pytest.raises(PlanError, match="too many"):  # a node alone does not hold the model
        engines.launch(planned("tp8+pp2", "h800-x16"), "sglang", SITE, prefill_nodes=1)
    with pytest.raises(PlanError, match="prefill-nodes"):
        engines.launch(planned("tp16"), "vllm", SITE, prefill_nodes=1)
    with pytest.raises(PlanError, match="no format"):
        launched("baltoro", None, "m3-ultra", format="3.3bit", place="ram")


@pytest.mark.parametrize("form", ["compose", "kubernetes"])
def test_files_that_could_not_work_are_not_written(form: str) -> None:
    found, launch = launched("tensorrt-llm", "tp16")
    assert "mpirun -np 16 -H node0:8,node1:8" in forms.files("shell", found, launch, SITE)["node0.sh"]
    with pytest.raises(PlanError, match="mpirun"):
        forms.files(form, found, launch, SITE)
    found, launch = launched("ktransformers", None, "epyc-9355-x2", place="hybrid")
    with pytest.raises(PlanError, match="no image"):
        forms.files(form, found, launch, SITE)
    with pytest.raises(PlanError, match="Ray"):
        forms.files("ray", found, launch, SITE)


def test_tgi_says_that_it_is_in_maintenance_mode() -> None:
    launch = launched("tgi", "tp8", "b200-x8")[1]
    assert any("maintenance mode" in note for note in launch.notes)
    found = planned("tp8", "b200-x8")
    assert "maintenance mode" in forms.files("shell", found, launch, SITE)["node0.sh"]


def test_the_wait_for_health_grows_with_the_model() -> None:
    slow, fast = (launched("vllm", "tp16", disk_bandwidth=rate)[1].load_s for rate in (1e9, 20e9))
    assert slow > 514e9 / 1e9 > fast >= 300  # each node reads half of the terabyte


# ------------------------------------------------------------------------------------------------------- files


def every_launch() -> list[tuple[str, Plan, Launch]]:
    rows = [("vllm", *launched("vllm", layout)) for layout in ("tp16", "dp16+ep")]
    rows += [("vllm", *launched("vllm", "tp8", "b200-x8"))]
    rows += [("sglang", *launched("sglang", "tp8+pp2"))]
    rows += [("tensorrt-llm", *launched("tensorrt-llm", "tp8", "b200-x8"))]
    apart = plan("h200-x16", nodes=4, layout="tp32+ep", format="int8")
    rows += [("sglang", apart, engines.launch(apart, "sglang", SITE, prefill_nodes=2))]
    rows += [("baltoro", *launched("baltoro", None, "desktop", place="disk"))]
    return rows


@pytest.mark.parametrize(
    "name, found, launch", every_launch(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_shell_file_is_a_program_that_sh_accepts(name: str, found: Plan, launch: Launch, tmp_path: Path) -> None:
    files = forms.files("shell", found, launch, SITE)
    if name == "vllm":
        files |= {f"ray-{key}": value for key, value in forms.files("ray", found, launch, SITE).items()}
    assert len(files) >= launch.nodes
    for file, text in files.items():
        (tmp_path / file).write_text(text)
        checked = subprocess.run(["sh", "-n", tmp_path / file], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert all(len(line) < 8 or "None" not in line.split() for line in text.splitlines())


@pytest.mark.parametrize(
    "name, found, launch", every_launch(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_compose_files_have_the_shape_of_compose(name: str, found: Plan, launch: Launch) -> None:
    for node, (file, text) in enumerate(forms.files("compose", found, launch, SITE).items()):
        document = pyyaml.safe_load(text)
        assert file == f"node{node}.compose.yaml"
        assert set(document) <= {"name", "services", "volumes"}
        for service_name, service in document["services"].items():
            process = next(each for each in launch.everything if each.name == service_name)
            assert (*service["entrypoint"], *service["command"]) == process.argv
            assert set(service.get("depends_on", {})) <= set(document["services"])
            for volume in service["volumes"]:
                source = volume.split(":")[0]
                assert source.startswith("/") or source in document["volumes"]
        assert (node == 0 and launch.gateway is not None) == ("gateway" in document["services"])


KINDS = {
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1", "Deployment": "apps/v1", "Service": "v1",
    "PersistentVolumeClaim": "v1",
}  # fmt: skip


@pytest.mark.parametrize(
    "name, found, launch", every_launch(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_kubernetes_objects_fit_together(name: str, found: Plan, launch: Launch, tmp_path: Path) -> None:
    (text,) = forms.files("kubernetes", found, launch, SITE).values()
    documents = list(pyyaml.safe_load_all(text))
    services = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "Service"}
    pods: dict[str, dict[str, Any]] = {}
    for each in documents:
        assert each["apiVersion"] == KINDS[each["kind"]]
        spec, owner = each.get("spec", {}), each["metadata"]["name"]
        if each["kind"] == "Deployment":
            pods[owner] = spec["template"]
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        elif each["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            assert group["size"] > 1
            pods[f"{owner}/leader"], pods[f"{owner}/worker"] = group["leaderTemplate"], group["workerTemplate"]
    for service in services.values():  # each finds exactly one kind of pod, which listens there
        found_pods = [pod for pod in pods.values() if service["selector"].items() <= pod["metadata"]["labels"].items()]
        assert len(found_pods) == 1
        (container,) = found_pods[0]["spec"]["containers"]
        assert service["ports"][0]["targetPort"] in [port["containerPort"] for port in container["ports"]]
    for pod in pods.values():
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "node0" not in json.dumps(container), "plain host names mean nothing in a cluster"
        if container["command"][0] == "/bin/sh":
            script = tmp_path / "command.sh"
            script.write_text(container["command"][2])
            assert subprocess.run(["sh", "-n", script]).returncode == 0
    if launch.gateway is not None:
        command = pods["gateway"]["spec"]["containers"][0]["command"]
        upstream = command[command.index("--upstream") + 1]
        host, port = upstream.removeprefix("http://").split(":")
        assert int(port) == services[host]["ports"][0]["port"]


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_worker_of_kubernetes_is_told_what_its_plain_command_says(index: int, tmp_path: Path) -> None:
    """sh expands a worker's command; the words are those of the node's own command in plain shell."""
    found = plan("h200-x16", nodes=4, layout="dp32+ep", format="int8")
    launch = engines.launch(found, "vllm", SITE)
    (text,) = forms.files("kubernetes", found, launch, SITE).values()
    worker = next(each for each in pyyaml.safe_load_all(text) if each["kind"] == "LeaderWorkerSet")
    (container,) = worker["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
    echo = container["command"][2].replace("exec vllm", "exec printf '%s\\n' vllm", 1)
    environment = {"PATH": os.environ["PATH"], "LWS_WORKER_INDEX": str(index), "LWS_LEADER_ADDRESS": "node0"}
    told = subprocess.run(["/bin/sh", "-c", echo], env=environment, capture_output=True, text=True, check=True)
    assert tuple(told.stdout.splitlines()) == launch.processes[index].argv


@pytest.mark.parametrize(
    "name, found, launch", every_launch(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_systemd_units_start_what_the_launch_says(name: str, found: Plan, launch: Launch) -> None:
    files = forms.files("systemd", found, launch, SITE)
    assert len(files) == len(launch.everything)
    for process, text in zip(launch.everything, files.values(), strict=True):
        sections = [line for line in text.splitlines() if line.startswith("[")]
        assert sections == ["[Unit]", "[Service]", "[Install]"]
        (start,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        words = shlex.split(start.removeprefix("ExecStart=/usr/bin/env "))
        assert tuple(words) == process.argv
        for line in text.splitlines():
            if line.startswith("ExecStartPre="):  # systemd reads $ by itself unless it is doubled
                assert "$" not in line.replace("$$", "")


def test_a_shell_file_starts_in_order_and_ends_everything(tmp_path: Path) -> None:
    """Stand-ins note what happens: the gateway after the engine's first answer, and nothing left after SIGTERM."""
    found, launch = launched("vllm", "tp8", "b200-x8")
    script = tmp_path / "node0.sh"
    text = forms.files("shell", found, launch, SITE)["node0.sh"]
    script.write_text(text.replace("sleep 10", "sleep 0.05"))
    programs = {
        "vllm": 'echo "vllm $2" >> log; echo $$ > vllm.pid; exec sleep 300',
        "curl": 'echo curl >> log; [ "$(grep -c curl log)" -ge 3 ]',  # the third try is answered
        "baltoro": 'echo "baltoro $2" >> log; echo $$ > baltoro.pid; echo up > up; exec sleep 300',
    }
    (tmp_path / "bin").mkdir()
    for program, body in programs.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    os.mkfifo(tmp_path / "up")
    process = subprocess.Popen(["sh", script], cwd=tmp_path, env=environment)
    try:
        assert (tmp_path / "up").read_text() == "up\n"  # waits for the writer
        log = (tmp_path / "log").read_text().splitlines()
        assert log == ["vllm /models/kimi k2", "curl", "curl", "curl", "baltoro /models/kimi k2"]
        running = [os.pidfd_open(int((tmp_path / f"{name}.pid").read_text())) for name in ("vllm", "baltoro")]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        for ended in running:
            assert select.select([ended], [], [], 60)[0], "a process was left behind"
            os.close(ended)
    finally:
        process.kill()


# ---------------------------------------------------------------------------------------------------- the YAML

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**31), 2**31),
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="\x85") | st.just(" ")),
    st.sampled_from(["yes", "No", "1e3", "0x1f", "~", "a: b", "- x", "$(A)", "#", "null", "2024-01-01", "1:30"]),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab-/.1", min_size=1), inner, max_size=3),
)


@given(st.dictionaries(st.text("abc", min_size=1), TREES, min_size=1, max_size=4))
def test_what_is_written_as_yaml_reads_back(document: dict[str, Any]) -> None:
    assert pyyaml.safe_load(yaml.dump(document)) == document


def test_lines_stay_lines() -> None:
    document = {"command": ["/bin/sh", "-c", "exec a \\\n  --b 'c'"], "text": "one\ntwo"}
    assert pyyaml.safe_load(yaml.dump(document)) == document
    assert "|-" in yaml.dump(document)
