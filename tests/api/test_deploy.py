"""The Dockerfile and the files that deploy it agree with each other, with the settings and with the routes."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import kubernetes_validate
import pytest
import typer.main
import yaml
from image import DEPLOY, ROOT, stages
from starlette.testclient import TestClient

from service import __version__
from service.cli import app as commands
from service.score_command import LEFT_OUT
from service.scoring.table import POLICIES
from service.settings import Settings

STAGES = stages((ROOT / "Dockerfile").read_text())
FINAL = STAGES[-1]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["thinnet"]
MANIFESTS = {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
POD = MANIFESTS["Deployment"]["spec"]["template"]
(IN_POD,) = POD["spec"]["containers"]
(SCORE,) = yaml.safe_load_all((DEPLOY / "score.yaml").read_text())
NIGHTLY = SCORE["spec"]["jobTemplate"]["spec"]
SCORING_POD = NIGHTLY["template"]["spec"]
(SCORER,) = SCORING_POD["containers"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
POD_ENVIRONMENT = {each["name"]: each["value"] for each in IN_POD["env"]}
BYTES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
LIBRARIES_AND_MODELS_BYTES = 1 << 30


def amount_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr] # or the test fails
    return int(number) * BYTES[unit]


def probed(command: list[str]) -> str:
    return re.search(r"'GET', '([^']+)'", command[-1])[1]  # type: ignore[index] # or the test fails


class Answer(BaseHTTPRequestHandler):
    """Answers every request with one status."""

    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Answer requests to a port of the loopback with a status, and give the port."""
    with HTTPServer(("127.0.0.1", 0), type("Fixed", (Answer,), {"status": status})) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_the_last_stage_installs_nothing_and_takes_only_what_was_built() -> None:
    assert all("--from=" in each for each in FINAL.all("COPY"))
    for command in FINAL.all("RUN"):
        assert not re.search(r"\b(apt|apt-get|install|curl|wget|git)\b", command), command


def test_the_stages_start_from_one_base() -> None:
    names = {stage.name for stage in STAGES}
    assert {stage.base for stage in STAGES} - names == {FINAL.base}


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    first, *rules = (ROOT / ".dockerignore").read_text().split()
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source
        for stage in STAGES
        for each in stage.all("COPY")
        if "--from=" not in each
        for source in each.split()[:-1]
    }
    assert first == "*"
    assert copied == allowed
    assert all((ROOT / each).exists() for each in allowed)


def test_torch_comes_from_an_index_of_its_own_which_may_be_empty() -> None:
    (index,) = [each for stage in STAGES for each in stage.all("ARG")]
    assert index == "TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu"
    (install,) = [each for each in STAGES[0].all("RUN") if "TORCH_INDEX_URL" in each]
    command = re.search(r"\$\{TORCH_INDEX_URL.*?\"\}", install)[0]  # type: ignore[index] # or the test fails
    for url, expected in (("", ""), ("https://example.org/cpu", "--index-url https://example.org/cpu")):
        told = subprocess.run(
            ["sh", "-c", f"echo {command}"], env={"TORCH_INDEX_URL": url}, capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == expected


def test_the_image_says_the_version_that_it_holds() -> None:
    labels = dict(pair.split("=", 1) for pair in shlex.split(FINAL.all("LABEL")[0]))
    assert labels["org.opencontainers.image.version"] == __version__
    assert IN_POD["image"] == f"thinnet:{__version__}"


def test_the_image_runs_as_a_number_that_is_not_root_and_gets_signals_itself() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", FINAL.all("USER")[0])
    assert FINAL.all("CMD") == ['["thinnet", "serve"]']
    assert FINAL.all("STOPSIGNAL") == ["SIGTERM"]
    assert COMPOSE["user"] == FINAL.all("USER")[0]
    secured = POD["spec"]["securityContext"]
    assert f"{secured['runAsUser']}:{secured['runAsGroup']}" == FINAL.all("USER")[0]


def test_the_health_check_passes_only_when_the_server_says_that_it_is_ready() -> None:
    assert FINAL.healthcheck[0] == "python3"
    python = [sys.executable, *FINAL.healthcheck[1:]]

    def exit_code(port: int) -> int:
        environment = {"THINNET_HOST": "0.0.0.0", "THINNET_PORT": str(port)}
        return subprocess.run(python, env=environment, capture_output=True).returncode

    with answering(200) as port:
        assert exit_code(port) == 0
    assert exit_code(port) != 0  # nothing listens there any more
    with answering(503) as port:
        assert exit_code(port) != 0


def test_the_health_check_imports_nothing_heavy() -> None:
    body = FINAL.healthcheck[-1].split(";")[0]
    loaded = subprocess.run(
        [sys.executable, "-c", f"{body}, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "pydantic", "service"} & set(loaded.stdout.split())


def test_everything_that_probes_asks_a_route_that_is_there(client: TestClient) -> None:
    assert "test" not in COMPOSE["healthcheck"], "compose asks what the image asks"
    for path in (probed(FINAL.healthcheck), *(IN_POD[probe]["httpGet"]["path"] for probe in PROBES)):
        assert client.get(path).status_code in (200, 503), path


@pytest.mark.parametrize(
    "environment", [FINAL.environment, COMPOSE["environment"], POD_ENVIRONMENT], ids=["image", "compose", "kubernetes"]
)
def test_every_variable_is_a_setting(environment: dict[str, str]) -> None:
    names = {name for name in environment if name.startswith("THINNET_")}
    assert names
    unknown = names - {f"THINNET_{name.upper()}" for name in Settings.model_fields}
    assert not unknown


@pytest.mark.parametrize("environment", [COMPOSE["environment"], POD_ENVIRONMENT], ids=["compose", "kubernetes"])
def test_a_deployment_asks_for_keys(environment: dict[str, str]) -> None:
    assert environment["THINNET_ALLOW_ANONYMOUS"] == "false"
    (secret,) = [each for each in IN_POD["volumeMounts"] if each["name"] == "keys"]
    mounted = {f"{secret['mountPath']}/keys", *(f"/run/secrets/{name}" for name in COMPOSE["secrets"])}
    assert environment["THINNET_KEYS_FILE"] in mounted


def test_every_port_is_the_images() -> None:
    port = FINAL.environment["THINNET_PORT"]
    assert FINAL.all("EXPOSE") == [port]
    assert [each.rsplit(":", 1)[1] for each in COMPOSE["ports"]] == [port]
    (http,) = IN_POD["ports"]
    assert str(http["containerPort"]) == POD_ENVIRONMENT["THINNET_PORT"] == port
    names = {IN_POD[probe]["httpGet"]["port"] for probe in PROBES}
    names |= {each["targetPort"] for each in MANIFESTS["Service"]["spec"]["ports"]}
    assert names == {http["name"]}


def test_a_service_of_the_same_name_sets_none_of_the_settings() -> None:
    assert POD["spec"]["enableServiceLinks"] is False


def test_nobody_is_killed_before_what_was_accepted_is_answered() -> None:
    assert int(COMPOSE["stop_grace_period"].removesuffix("s")) > float(COMPOSE["environment"]["THINNET_DRAIN_S"])
    pause_s = IN_POD["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(POD_ENVIRONMENT["THINNET_DRAIN_S"])
    assert POD["spec"]["terminationGracePeriodSeconds"] > pause_s + drain_s


def test_the_memory_limits_hold_what_requests_may_hold() -> None:
    for limit in (COMPOSE["mem_limit"], IN_POD["resources"]["limits"]["memory"]):
        assert amount_bytes(limit) >= LIBRARIES_AND_MODELS_BYTES + Settings.model_fields["memory_bytes"].default


def test_only_tmp_can_be_written_and_no_right_is_left() -> None:
    assert COMPOSE["read_only"]
    assert [each.split(":")[0] for each in COMPOSE["tmpfs"]] == ["/tmp"]
    assert COMPOSE["cap_drop"] == ["ALL"]
    assert COMPOSE["security_opt"] == ["no-new-privileges:true"]
    secured = IN_POD["securityContext"]
    assert secured["readOnlyRootFilesystem"]
    assert secured["capabilities"] == {"drop": ["ALL"]}
    assert secured["allowPrivilegeEscalation"] is False
    assert POD["spec"]["securityContext"]["runAsNonRoot"]
    writable = {each["mountPath"] for each in IN_POD["volumeMounts"] if not each.get("readOnly")}
    assert writable == {"/tmp"}


def test_the_cluster_always_keeps_one() -> None:
    scaler, budget = MANIFESTS["HorizontalPodAutoscaler"]["spec"], MANIFESTS["PodDisruptionBudget"]["spec"]
    assert scaler["minReplicas"] > budget["maxUnavailable"]
    assert "replicas" not in MANIFESTS["Deployment"]["spec"], "the autoscaler's number would be overwritten"
    target = {key: scaler["scaleTargetRef"][key] for key in ("kind", "name")}
    assert target == {"kind": "Deployment", "name": MANIFESTS["Deployment"]["metadata"]["name"]}


def test_every_selector_finds_the_pods() -> None:
    labels: dict[str, Any] = POD["metadata"]["labels"]
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert MANIFESTS[kind]["spec"]["selector"]["matchLabels"] == labels


def test_the_compose_file_is_one() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("kind", [*MANIFESTS, "CronJob"])
def test_every_manifest_is_one(kind: str) -> None:
    manifest = {**MANIFESTS, SCORE["kind"]: SCORE}[kind]
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_nightly_command_is_one_that_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "thinnet").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "thinnet").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = [*SCORER["command"], *SCORER["args"]]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    name, *arguments = told
    scoring = typer.main.get_command(commands).commands[name]  # type: ignore[attr-defined] # a group
    given = scoring.make_context(name, arguments).params
    assert re.fullmatch(r"/data/answers-\d{4}-\d\d-\d\d\.parquet", str(given["output"]))
    assert given["on_error"] in POLICIES
    assert given["source"].parent == given["output"].parent == Path("/data")
    assert (ROOT / str(given["model"])[1:]).is_dir(), "the image has the folder's models"


def test_the_next_pod_finds_what_the_last_one_did_and_one_runs_at_a_time() -> None:
    mounts = {each["mountPath"]: each["name"] for each in SCORER["volumeMounts"]}
    volumes = {each["name"]: each for each in SCORING_POD["volumes"]}
    assert "persistentVolumeClaim" in volumes[mounts["/data"]]
    assert SCORE["spec"]["concurrencyPolicy"] == "Forbid"
    assert NIGHTLY["backoffLimit"] > 0
    assert NIGHTLY["activeDeadlineSeconds"] < 24 * 3600


def test_what_trying_again_does_not_change_is_not_tried_again() -> None:
    (fails,) = [each["onExitCodes"] for each in NIGHTLY["podFailurePolicy"]["rules"] if each["action"] == "FailJob"]
    assert fails["containerName"] == SCORER["name"]
    assert set(fails["values"]) == {2, LEFT_OUT}
    assert SCORING_POD["restartPolicy"] == "Never", "the policy needs it"


def test_the_nightly_pod_is_confined_as_the_server_is() -> None:
    assert SCORER["image"] == IN_POD["image"]
    assert SCORER["securityContext"] == IN_POD["securityContext"]
    served, scored = POD["spec"]["securityContext"], dict(SCORING_POD["securityContext"])
    assert scored.pop("fsGroup") == scored["runAsGroup"], "else it cannot write to its volume"
    assert scored == served
