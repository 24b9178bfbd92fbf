"""The compose file and what it mounts: valid, complete, without secrets, and of one mind about names and ports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from deploy_support.boards import boards
from deploy_support.paths import DEPLOY, ROOT
from ruamel.yaml import YAML

COMPOSE = DEPLOY / "docker-compose.yml"


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(path)
    return loaded


FILE = load(COMPOSE)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
SERVERS = ["server-cpu", "server-gpu"]


def mounts() -> list[tuple[str, str]]:
    """Source and target of every volume."""
    return [tuple(volume.split(":")[:2]) for service in SERVICES.values() for volume in service["volumes"]]


def test_it_is_a_compose_file() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_are_pinned() -> None:
    images = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert len(images) == 3
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image) for image in images)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_says_when_it_is_well_and_answers_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_is_mounted_exists() -> None:
    for source, _ in mounts():
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
        else:
            assert source in FILE["volumes"]
    assert {source for source, _ in mounts() if not source.startswith(".")} == set(FILE["volumes"])


def test_one_of_two_servers_runs_and_others_find_it_by_one_name() -> None:
    assert {name: SERVICES[name]["profiles"] for name in SERVERS} == {"server-cpu": ["cpu"], "server-gpu": ["gpu"]}
    assert not [name for name, service in SERVICES.items() if name not in SERVERS and "profiles" in service]
    assert "COMPOSE_PROFILES=cpu" in (DEPLOY / ".env").read_text(encoding="utf-8").splitlines()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in SERVERS:
        assert SERVICES[name]["build"]["target"] in stages
        assert SERVICES[name]["networks"]["default"]["aliases"] == ["server"]
    assert SERVICES["server-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_no_key_has_a_value_of_its_own() -> None:
    for name in SERVERS:
        environment = SERVICES[name]["environment"]
        assert environment["PILOTHOUSE_ADMIN_KEY"] == "${PILOTHOUSE_ADMIN_KEY:-}"
        assert environment["PILOTHOUSE_READER_KEY"] == "${PILOTHOUSE_READER_KEY:-}"
    assert not re.search(
        r"(?i)password|secret", COMPOSE.read_text(encoding="utf-8").replace("there is no password", "")
    )


def test_the_server_knows_the_options_and_variables_that_it_is_given() -> None:
    source = (ROOT / "server" / "pilothouse" / "cli" / "serve.py").read_text(encoding="utf-8")
    known = set(re.findall(r'envvar="(\w+)"', source))
    service = SERVICES["server-cpu"]
    assert set(service["environment"]) <= known
    for option in re.findall(r"--[\w-]+", service["command"].replace(":-", " ")):
        if option not in ("--host", "--port"):
            assert re.search(rf"^    {option[2:].replace('-', '_')}: ", source, re.MULTILINE), option


def test_the_records_outlive_the_container_and_may_be_written() -> None:
    url = SERVICES["server-cpu"]["environment"]["PILOTHOUSE_RECORDS"]
    file = Path("/" + url.removesuffix("}").split("sqlite:////")[1])
    assert ("records", str(file.parent)) in mounts()
    owned = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in owned.splitlines() if "install -d -o 10001" in line)
    assert str(file.parent) in line.split()


def test_prometheus_takes_its_configuration(programs: Path) -> None:
    done = subprocess.run(
        [programs / "promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 2 rule files found" in done.stdout


def test_prometheus_finds_the_server_and_keeps_exemplars() -> None:
    configuration = load(DEPLOY / "prometheus" / "prometheus.yml")
    job = configuration["scrape_configs"][0]
    assert (job["job_name"], job["static_configs"][0]["targets"]) == ("pilothouse", ["server:8000"])
    assert configuration["storage"]["exemplars"]["max_exemplars"] > 0
    assert "--enable-feature=exemplar-storage" in SERVICES["prometheus"]["command"]


def test_grafana_finds_prometheus_the_traces_and_the_dashboards() -> None:
    sources = load(DEPLOY / "grafana" / "provisioning" / "datasources" / "pilothouse.yml")["datasources"]
    for source in sources:
        host = urlsplit(source["url"]).hostname
        assert host in SERVICES
    prometheus, traces = sources
    destinations = {found["name"]: found for found in prometheus["jsonData"]["exemplarTraceIdDestinations"]}
    assert destinations["trace_id"]["datasourceUid"] == traces["uid"]
    assert destinations["request_id"]["url"] == "${PILOTHOUSE_PUBLIC_URL}/console/results/$${__value.raw}"
    assert "PILOTHOUSE_PUBLIC_URL" in SERVICES["grafana"]["environment"]
    provider = load(DEPLOY / "grafana" / "provisioning" / "dashboards" / "pilothouse.yml")["providers"][0]
    assert ("./grafana/dashboards", provider["options"]["path"]) in mounts()
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert home.stem in boards()


def test_the_trace_store_listens_where_the_server_sends_and_grafana_asks() -> None:
    configuration = load(DEPLOY / "jaeger" / "jaeger.yml")
    assert ("./jaeger/jaeger.yml", SERVICES["traces"]["command"][0].removeprefix("--config=")) in mounts()
    http = configuration["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    sent = urlsplit(SERVICES["server-cpu"]["environment"]["PILOTHOUSE_OTLP_ENDPOINT"])
    assert (sent.hostname, str(sent.port)) == ("traces", http.split(":")[1])
    health = configuration["extensions"]["healthcheckv2"]["http"]["endpoint"]
    assert health in SERVICES["traces"]["healthcheck"]["test"][-1]
    pipeline = configuration["service"]["pipelines"]["traces"]
    for part, key in (("receivers", "receivers"), ("processors", "processors"), ("exporters", "exporters")):
        assert set(pipeline[part]) == set(configuration[key])
    assert set(configuration["service"]["extensions"]) == set(configuration["extensions"])


def test_every_configuration_is_yaml() -> None:
    files = [path for path in DEPLOY.rglob("*.yml") if path != COMPOSE]
    assert len(files) >= 9
    assert all(load(path) for path in files)
