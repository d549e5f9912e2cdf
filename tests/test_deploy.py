"""What deploy/ says of this program holds: options, ports, paths, names of metrics, times.

Tools that know more are asked where they are installed: `pip install 'baltoro[deploy]'` brings hadolint and Helm
(test_helm.py), systemd-analyze and promtool are packages of the system.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from baltoro.cli import app
from baltoro.engine.remote import RemoteStatistics
from baltoro.errors import ContextError, QueueFull
from baltoro.server import metrics
from baltoro.server.app import Served, create_app
from tests.server.conftest import serving
from tests.server.script import Script
from tests.server.test_metrics import statistics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "systemd" / "baltoro.service").read_text()
PORT = "8000"


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What `baltoro` would understand, without running it; a wrong option raises."""
    name, *rest = arguments
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    return command.make_context(name, rest).params


def setting(name: str) -> str:
    """The last value of a line of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT, flags=re.MULTILINE)[-1]


# ── the image ────────────────────────────────────────────────────────────────────────────────────


def test_the_image_is_built_from_files_that_its_context_has() -> None:
    wanted = [path for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()]
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert set(wanted) == let_in
    for path in wanted:
        assert (ROOT / path).exists(), path
    kept_out = [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]
    assert any(fnmatch("_native.cpython-312-x86_64-linux-gnu.so", each) for each in kept_out), "this machine's build"


def test_whatever_the_build_reads_is_in_the_image_s_context() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    read = {project["readme"], *project["license-files"], "CMakeLists.txt", "pyproject.toml"}
    read |= {each.split("/")[0] for each in re.findall(r"include\((\S+/\S+)\)", (ROOT / "CMakeLists.txt").read_text())}
    assert read <= set(re.findall(r"[\w./]+", " ".join(re.findall(r"^COPY (?!--).*$", DOCKERFILE, re.MULTILINE))))


def test_the_image_takes_the_project_s_torch_and_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [each for each in project["dependencies"] if each.startswith("torch")]
    assert f"'{torch}'" in DOCKERFILE
    extras = re.findall(r"'\.\[(.*)\]'", DOCKERFILE)[0].split(",")
    assert set(extras) <= set(project["optional-dependencies"])


def test_the_image_serves_on_the_port_that_it_exposes_and_asks_itself_there() -> None:
    arguments = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    options = parsed(arguments)
    assert (options["host"], str(options["port"])) == ("0.0.0.0", PORT)
    assert f"EXPOSE {PORT}" in DOCKERFILE
    assert f"HEALTH_URL=http://127.0.0.1:{PORT}/health" in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)


def test_the_image_s_health_check_says_what_the_server_says(tmp_path: Path) -> None:
    """It runs as it stands there."""
    _, code = json.loads(re.findall(r"HEALTHCHECK .*\\\n\s+CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])[1:]
    script = Script()
    with serving(create_app(Served(llm=script, names=("tiny",)))) as address:  # type: ignore[arg-type]
        environment = os.environ | {"HEALTH_URL": f"{address.url}/health"}

        def check() -> int:
            return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode

        assert check() == 0
        script.fault = "dead"
        assert check() != 0


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="pip install 'baltoro[deploy]'")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ── compose ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("service", ["cpu", "gateway"])
def test_compose_starts_what_the_command_line_understands(service: str) -> None:
    found = COMPOSE["services"][service]
    command = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", each) for each in found["command"]]
    options = parsed(command)
    assert (options["host"], str(options["port"])) == ("0.0.0.0", PORT)
    assert found["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert int(found["stop_grace_period"].rstrip("s")) > options["grace"] + options["drain"]
    assert found["profiles"] == [service]


def test_compose_s_gateway_asks_where_vllm_listens_for_the_same_model() -> None:
    gateway, vllm = COMPOSE["services"]["gateway"], COMPOSE["services"]["vllm"]
    port = vllm["command"][vllm["command"].index("--port") + 1]
    assert parsed(gateway["command"])["upstream"] == [f"http://vllm:{port}"]
    assert f":{port}/health" in vllm["healthcheck"]["test"][-1]
    assert parsed(gateway["command"])["model"] == vllm["command"][vllm["command"].index("--model") + 1]
    (model,) = [each for each in vllm["volumes"] if ":/model" in each]
    assert model in gateway["volumes"]


def test_compose_s_volumes_networks_and_secrets_are_declared_and_its_files_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        for needed in service.get("depends_on", []):
            assert needed in COMPOSE["services"]
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).exists()


# ── Prometheus and Grafana ───────────────────────────────────────────────────────────────────────


def known_metrics() -> dict[str, set[str]]:
    """Every name that GET /metrics may have, with its labels."""
    http = metrics.HttpCounts()
    http.answers["POST", "/v1/chat/completions", "200"] += 1
    http.note(QueueFull("full", retry_after_s=1))
    remote = RemoteStatistics(running=1, generated_tokens=2, corrections=3, retries=4, upstreams=())
    pages = [
        metrics.text(each, http, model="tiny", healthy=True)
        for each in (statistics(), {"engine": {**vars_of(remote)}, "store": None})
    ]
    found: dict[str, set[str]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    return found


def vars_of(remote: RemoteStatistics) -> dict[str, Any]:
    return {name: getattr(remote, name) for name in remote.__slots__}


def test_alerts_ask_for_metrics_labels_and_reasons_that_there_are() -> None:
    known = known_metrics() | {"up": {"instance", "job"}}
    rules = [
        r for g in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"] for r in g["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        named = re.findall(r"\b(up|baltoro:\w+)(?:\{(.*?)\})?", rule["expr"])
        assert named, rule
        for name, selector in named:
            assert name in known, name
            assert set(re.findall(r"(\w+)[!=~]+", selector)) <= known[name]
        for reason in re.findall(r'reason="(\w+)"', rule["expr"]):
            http = metrics.HttpCounts()
            http.note(QueueFull("full", retry_after_s=1))
            assert reason in http.refused
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_a_refusal_that_is_a_client_s_own_fault_is_no_alert() -> None:
    http = metrics.HttpCounts()
    http.note(ContextError("too long", param="messages", code="context_length_exceeded"))
    assert "queue" not in http.refused


def test_prometheus_asks_the_gateway_by_the_name_and_with_the_key_that_compose_gives() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert port == PORT
    for service in ("cpu", "gateway"):
        assert host in COMPOSE["services"][service]["networks"]["default"]["aliases"]
    name = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert name in COMPOSE["services"]["prometheus"]["secrets"]
    assert COMPOSE["secrets"][name] == {"environment": "BALTORO_API_KEY"}
    assert job["job_name"] in (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    assert all((DEPLOY / "prometheus" / each).exists() for each in config["rule_files"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (Debian: the package prometheus)")
def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    file = tmp_path / "prometheus" / "prometheus.yaml"
    (tmp_path / "key").write_text("x")
    file.write_text(file.read_text().replace("/run/secrets/baltoro_api_key", str(tmp_path / "key")))
    done = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboard_where_compose_puts_them() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in COMPOSE["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "baltoro.yaml").read_text())["providers"]
    mounts = dict(each.split(":")[:2] for each in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert Path(mounts["./grafana.json"]).parent == Path(provider["options"]["path"])


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────


def test_the_unit_starts_what_the_command_line_understands_and_waits_long_enough() -> None:
    program, *arguments = shlex.split(setting("ExecStart"))
    assert program == "/opt/baltoro/bin/baltoro"
    options = parsed([each for each in arguments if each != "$BALTORO_OPTIONS"])
    assert options["keys"] and options["exit_on_fault"]
    assert int(setting("TimeoutStopSec")) > options["drain"] + options["grace"] + 10  # the last spans
    assert setting("Restart") == "on-failure"
    for name in set(re.findall(r"BALTORO_\w+", UNIT)) - {"BALTORO_MODEL", "BALTORO_OPTIONS"}:
        assert name in (ROOT / "baltoro" / "cli" / "options.py").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    file = tmp_path / "baltoro.service"
    file.write_text(UNIT.replace("/opt/baltoro/bin/baltoro", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    secure = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(file)]  # 2.0 of 10
    done = subprocess.run(secure, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
