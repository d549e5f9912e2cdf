"""The Helm chart: its schema against its values, and what Helm's own engine makes of both, where that is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from baltoro.server import prices
from tests.test_deploy import DEPLOY, DOCKERFILE, PORT, parsed

CHART = DEPLOY / "helm" / "baltoro"

FULL = {
    "replicas": 3,
    "upstreams": ["http://a:8000", "https://b"],
    "upstreamKeySecret": "upstream",
    "model": {"servedNames": ["kimi-k2", "k2"], "maxContext": 131072},
    "auth": {"databaseSecret": "database", "prices": {"kimi-k2": {"input": 0.6, "cached_input": 0.15, "output": 2.5}}},
    "log": {"access": False},
    "otlp": "http://collector:4318",
    "tlsSecret": "inside",
    "ingress": {"enabled": True, "host": "k2.example", "className": "nginx", "tlsSecret": "outside"},
    "serviceMonitor": {"enabled": True, "keySecret": "metrics", "labels": {"release": "prometheus"}},
    "extraArgs": ["--loose-schemas"],
    "extraEnv": [{"name": "FORWARDED_ALLOW_IPS", "value": "10.0.0.0/8"}],
}
ONE_KEY = {"auth": {"mode": "secret", "secret": "key"}, "model": {"existingClaim": "k2"}, "replicas": 2}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm lays values over a chart's own."""
    return base | {
        name: merged(base[name], value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
        for name, value in over.items()
    }


def check_values(over: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = merged(yaml.safe_load((CHART / "values.yaml").read_text()), over)
    jsonschema.Draft7Validator(schema).validate(values)


@pytest.mark.parametrize("values", [{}, FULL, ONE_KEY], ids=["default", "full", "one key"])
def test_the_schema_takes_what_the_chart_is_meant_for(values: dict[str, Any]) -> None:
    check_values(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"upstreams": []},
        {"upstreams": ["vllm:8000"]},
        {"auth": {"mode": "none"}},
        {"auth": {"mode": "secret"}},
        {"auth": {"mode": "secret", "secret": "key", "databaseSecret": "database"}},
        {"auth": {"secret": "key"}},
        {"auth": {"prices": {"k2": {"input": 1}}}},
        {"ingress": {"enabled": True}},
        {"serviceMonitor": {"enabled": True}},
        {"log": {"level": "loud"}},
        {"model": {"servedNames": []}},
        {"drain": 1.5},
    ],
    ids=str,
)
def test_the_schema_refuses_what_would_not_run(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_values(values)


def test_every_value_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(schema) - {"global"}
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in schema[name]:
            assert set(value) == set(schema[name]["properties"]), name


def test_every_value_is_used_and_every_value_that_is_used_exists() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))
    paths = {f"{name}.{key}" if key else name for name, value in values.items() for key in ("", *_keys(value))}
    assert used <= paths
    assert {name for name in values if name != "prices"} == {each.split(".")[0] for each in used}


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By Helm's own engine: what it would send to a cluster, by kind."""
    helm = pytest.importorskip("helm_python", reason="pip install 'baltoro[deploy]'")
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values=values, name="k2", namespace="models")
    documents = [each for name, text in files.items() if not name.endswith(".txt") for each in yaml.safe_load_all(text)]
    return {each["kind"]: each for each in documents if each}


def pod(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return documents["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({}, {"Deployment", "Service", "PersistentVolumeClaim"}),
        (FULL, {"Deployment", "Service", "ConfigMap", "Ingress", "ServiceMonitor", "PodDisruptionBudget"}),
        (ONE_KEY, {"Deployment", "Service", "PodDisruptionBudget"}),
    ],
    ids=["default", "full", "one key"],
)
def test_the_chart_s_pod_runs_what_the_command_line_understands(values: dict[str, Any], kinds: set[str]) -> None:
    documents = render(values)
    assert set(documents) == kinds
    spec = pod(documents)
    (container,) = spec["containers"]
    options = parsed([str(each) for each in container["args"]])
    assert str(options["port"]) == str(container["ports"][0]["containerPort"]) == PORT
    assert options["upstream"] == values.get("upstreams", ["http://vllm:8000"])
    assert spec["terminationGracePeriodSeconds"] > options["drain"] + options["grace"] + 10
    for each in spec.get("initContainers", []):
        assert parsed([str(argument) for argument in each["args"]])["include"] == ["config.json", "tiktoken.model"]
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    for option in ("model", "tls_cert", "tls_key", "prices"):
        if (path := options[option]) is not None:
            assert any(Path(path).is_relative_to(mount) for mount in mounts), path
    volumes = {each["name"] for each in spec["volumes"]}
    for each in [container, *spec.get("initContainers", [])]:
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in DOCKERFILE
    assert container["startupProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    scheme = "HTTPS" if options["tls_cert"] else "HTTP"
    assert container["readinessProbe"]["httpGet"]["scheme"] == container["startupProbe"]["httpGet"]["scheme"] == scheme


def test_the_chart_s_parts_find_each_other() -> None:
    documents = render(FULL)
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        documents["Service"]["spec"]["selector"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        documents["ServiceMonitor"]["spec"]["selector"]["matchLabels"],
    ]
    assert all(each.items() <= labels.items() for each in selectors)
    assert selectors[3].items() <= documents["Service"]["metadata"]["labels"].items()
    (rule,) = documents["Ingress"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend["name"] == documents["Service"]["metadata"]["name"]
    (port,) = documents["Service"]["spec"]["ports"]
    assert backend["port"]["name"] == port["name"] == documents["ServiceMonitor"]["spec"]["endpoints"][0]["port"]
    assert port["targetPort"] == pod(documents)["containers"][0]["ports"][0]["name"]
    environment = {each["name"] for each in pod(documents)["containers"][0]["env"]}
    assert environment == {"BALTORO_DATABASE", "BALTORO_UPSTREAM_KEY", "FORWARDED_ALLOW_IPS"}


def test_the_chart_s_prices_are_read_by_the_server(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(render(FULL)["ConfigMap"]["data"]["prices.toml"])
    assert prices.find(prices.read(file), ("kimi-k2",)) is not None


def test_keys_outlive_the_release() -> None:
    claim = render({})["PersistentVolumeClaim"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (volume,) = [each for each in pod(render({}))["volumes"] if each["name"] == "data"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize(
    ("values", "told"),
    [({"replicas": 2}, "SQLite is for one"), ({"model": {"repository": ""}}, "name one"), ({"replica": 2}, "replica")],
)
def test_the_chart_refuses_what_would_not_run(values: dict[str, Any], told: str) -> None:
    helm = pytest.importorskip("helm_python", reason="pip install 'baltoro[deploy]'")
    with pytest.raises(helm.HelmError, match=told), helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        chart.render(values=values, name="k2", namespace="models")
