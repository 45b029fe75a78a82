"""The files of deploy/: valid, with settings that exist, and with a stop that is given the time it takes."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from app.version import VERSION
from config import CHECKOUT, Settings

DEPLOY = CHECKOUT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE = DEPLOY / "compose.yaml"
CELERY = DEPLOY / "compose.celery.yaml"
SECRETS = {"DATABASE_URL": "postgresql+psycopg://user@host/name", "API_TOKEN": "t", "CONSOLE_PASSWORD": "p"}
"""What the manifests leave to a Secret."""
MOST_EXPOSED = "20"
"""Of systemd's own score from 0 to 100, where less is better."""
SPARE_SECONDS = 5
DISPATCHER, WORKER = "orders-dispatcher", "orders-worker"


class Unit(configparser.RawConfigParser):
    """A unit whose sections name no option twice but Environment, of which there is one."""

    def optionxform(self, name: str) -> str:
        return name


def unit(file: Path) -> Unit:
    read = Unit(interpolation=None)
    read.read_string(file.read_text())
    return read


def resources(manifest: Path, kind: str) -> list[Any]:
    return [each for each in yaml.safe_load_all(manifest.read_text()) if each["kind"] == kind]


def deployment(manifest: Path) -> Any:
    (found,) = resources(manifest, "Deployment")
    return found["spec"]


def pod(manifest: Path) -> Any:
    return deployment(manifest)["template"]["spec"]


def settings_in(file: Path) -> dict[str, str]:
    """The environment that the file gives the service."""
    if file in UNITS:
        return dict([unit(file)["Service"]["Environment"].split("=", 1)])
    if file in MANIFESTS:
        (config,) = resources(file, "ConfigMap")
        return dict(config["data"])
    return composed(file, "web")


def services(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return found


def composed(file: Path, service: str) -> dict[str, str]:
    """The environment of a service, where this shell has none of the variables."""
    given = services(file)[service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in given.items()}


OURS = [(file, name) for file in (COMPOSE, CELERY) for name, each in services(file).items() if "build" in each]
"""The services that run this code."""


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.fixture(scope="module")
def stop_seconds() -> int:
    """How long gunicorn takes to stop at most, with the default SHUTDOWN_SECONDS."""
    words = [sys.executable, "-m", "gunicorn", "--print-config", "wsgi:app"]
    shown = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^graceful_timeout += (\d+)$", shown, re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("file", [*UNITS, *MANIFESTS, COMPOSE], ids=lambda file: file.name)
def test_every_variable_is_a_setting_with_a_value_that_is_taken(file: Path) -> None:
    given = settings_in(file)
    assert given
    assert [name for name in given if name.lower() not in Settings.model_fields] == []
    assert "shutdown_seconds" not in map(str.lower, given), "or else the times to stop below need it"
    Settings.load(given)


def test_secrets_are_no_part_of_a_manifest() -> None:
    for file in MANIFESTS:
        assert set(SECRETS).isdisjoint(settings_in(file))
        (container,) = pod(file)["containers"]
        assert {"secretRef": {"name": "orders"}} in container["envFrom"]
        Settings.load(settings_in(file) | SECRETS)


# systemd


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_systemd_finds_nothing_wrong_with_a_unit(file: Path, tmp_path: Path) -> None:
    """With what is installed here in the place of /srv/orders/.venv."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    here = file.read_text().replace("/srv/orders/.venv", sys.prefix)
    assert here != file.read_text()
    for each in UNITS:
        (tmp_path / each.name).write_text(here if each == file else "[Service]\nExecStart=/bin/true\n")
    for words in (["verify"], ["security", "--offline=true", f"--threshold={MOST_EXPOSED}"]):
        done = subprocess.run(
            ["systemd-analyze", *words, tmp_path / file.name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert file.name not in done.stderr


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_a_unit_runs_a_program_of_ours_as_a_user_without_rights(file: Path) -> None:
    service = unit(file)["Service"]
    program, *words = service["ExecStart"].split()
    assert shutil.which(Path(program).name, path=str(Path(sys.prefix) / "bin"))
    assert words in (["wsgi:app"], ["bus", "run"], ["-A", "celery_app", "worker"])
    assert service["User"] == "orders"
    assert service["Environment"] == f"INSTANCE_PATH=/var/lib/{service['StateDirectory']}"
    assert (service["NoNewPrivileges"], service["CapabilityBoundingSet"], service["ProtectSystem"]) == (
        "yes",
        "",
        "strict",
    )


def test_the_units_differ_in_what_they_run_and_how_it_stops_only() -> None:
    web, *others = (unit(DEPLOY / "systemd" / f"{name}.service")["Service"] for name in ("orders", DISPATCHER, WORKER))
    for each in others:
        own = {name for name in {*web, *each} if web.get(name) != each.get(name)}
        assert own == {"ExecStart", "NotifyAccess", "TimeoutStopSec", "Type"}


def test_systemd_gives_a_stop_the_time_it_takes(stop_seconds: int) -> None:
    names = ("orders", DISPATCHER, WORKER)
    web, dispatcher, worker = (unit(DEPLOY / "systemd" / f"{name}.service")["Service"] for name in names)
    assert seconds(web["TimeoutStopSec"]) >= stop_seconds + SPARE_SECONDS
    assert seconds(dispatcher["TimeoutStopSec"]) >= Settings.load({}).shutdown_seconds + SPARE_SECONDS
    assert seconds(worker["TimeoutStopSec"]) >= Settings.load({}).receiver_timeout + SPARE_SECONDS


# Kubernetes


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda file: file.name)
def test_a_pod_is_asked_whether_it_lives_and_whether_it_is_ready(manifest: Path) -> None:
    (container,) = pod(manifest)["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness", "startup")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "liveness": "/healthz",
        "readiness": "/readyz",
        "startup": "/healthz",
    }
    assert {probe["port"] for probe in probes.values()} == {"http"} == {port["name"] for port in container["ports"]}
    (service,) = resources(manifest, "Service")
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert service["spec"]["selector"] == deployment(manifest)["selector"]["matchLabels"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda file: file.name)
def test_late_mails_take_no_pod_out_of_the_service(manifest: Path) -> None:
    """Orders are taken in an outage of the mail server too."""
    assert int(settings_in(manifest)["READY_LAG_SECONDS"]) >= 7 * 86400


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda file: file.name)
def test_a_pod_is_given_the_time_that_its_stop_takes(manifest: Path, stop_seconds: int) -> None:
    (container,) = pod(manifest)["containers"]
    _, before = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod(manifest)["terminationGracePeriodSeconds"] >= int(before) + stop_seconds + SPARE_SECONDS


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda file: file.name)
def test_a_pod_runs_as_the_images_user_and_writes_to_its_volumes_only(manifest: Path) -> None:
    user = re.search(r"^USER (\d+)$", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    rights = pod(manifest)["securityContext"]
    assert (rights["runAsNonRoot"], rights["runAsUser"], rights["fsGroup"]) == (True, int(user[1]), int(user[1]))
    volumes = {volume["name"] for volume in pod(manifest)["volumes"]}
    for container in [*pod(manifest)["containers"], *pod(manifest).get("initContainers", [])]:
        assert container["image"] == f"registry.example/orders:{VERSION}"
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_sqlite_has_one_pod_that_ends_before_the_next_begins() -> None:
    spec = deployment(DEPLOY / "kubernetes" / "sqlite.yaml")
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (claim,) = resources(DEPLOY / "kubernetes" / "sqlite.yaml", "PersistentVolumeClaim")
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert volumes["instance"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_postgresql_has_several_pods_whose_schema_is_brought_up_to_date_first() -> None:
    spec = deployment(DEPLOY / "kubernetes" / "postgresql.yaml")
    assert spec["replicas"] > 1
    (first,) = spec["template"]["spec"]["initContainers"]
    assert first["command"] == ["flask", "db", "upgrade"]


# Compose


@pytest.mark.parametrize("file", [COMPOSE, CELERY], ids=lambda file: file.name)
def test_a_compose_file_is_valid_by_the_compose_specification(file: Path) -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "service"), OURS, ids=lambda part: getattr(part, "name", part))
def test_every_variable_of_our_services_is_a_setting(file: Path, service: str) -> None:
    given = composed(file, service)
    assert [name for name in given if name.lower() not in Settings.model_fields] == []
    if file == COMPOSE:
        Settings.load(given)


def test_compose_runs_programs_of_ours_and_waits_for_what_is_there() -> None:
    commands = {name: services(file)[name].get("command") for file, name in OURS if "command" in services(file)[name]}
    assert commands == {
        "dispatcher": "flask bus run",
        "upgrade": "flask db upgrade",
        "worker": "celery -A celery_app worker",
        "flower": "celery -A celery_app flower",
    }
    assert services(COMPOSE)["web"]["deploy"]["replicas"] == 2
    everything = {**services(CELERY), **services(COMPOSE)}
    for each in [*services(COMPOSE).values(), *services(CELERY).values()]:
        for name, wanted in each.get("depends_on", {}).items():
            assert wanted["condition"] != "service_healthy" or "healthcheck" in everything[name]


def test_compose_gives_a_stop_the_time_it_takes(stop_seconds: int) -> None:
    found = services(COMPOSE)
    assert seconds(found["web"]["stop_grace_period"]) >= stop_seconds + SPARE_SECONDS
    assert seconds(found["dispatcher"]["stop_grace_period"]) >= Settings.load({}).shutdown_seconds + SPARE_SECONDS


def test_compose_upgrades_the_schema_before_anything_serves_or_dispatches() -> None:
    found = services(COMPOSE)
    assert found["upgrade"]["command"] == "flask db upgrade"
    for name in ("web", "dispatcher"):
        assert found[name]["depends_on"]["upgrade"] == {"condition": "service_completed_successfully"}
    assert found["upgrade"]["depends_on"]["database"] == {"condition": "service_healthy"}


def test_what_listens_or_changes_the_schema_goes_past_the_pooler() -> None:
    hosts = {
        name: urlsplit(composed(COMPOSE, name)["DATABASE_URL"]).hostname
        for name in services(COMPOSE)
        if "build" in services(COMPOSE)[name]
    }
    assert hosts == {"web": "pooler", "dispatcher": "database", "upgrade": "database"}


def test_prometheus_finds_what_serves_and_may_ask_it() -> None:
    configured = yaml.safe_load(yaml.safe_load(COMPOSE.read_text())["configs"]["prometheus"]["content"])
    (job,) = configured["scrape_configs"]
    (where,) = job["dns_sd_configs"]
    assert (where["names"], where["port"]) == (["web"], 8000)
    assert job["authorization"]["credentials"] == services(COMPOSE)["web"]["environment"]["METRICS_TOKEN"]
    mounted = dict(each.split(":")[1::-1] for each in services(COMPOSE)["prometheus"]["volumes"] if each[0] == ".")
    assert configured["rule_files"] == list(mounted)
    assert all((DEPLOY / file).is_file() for file in mounted.values())
