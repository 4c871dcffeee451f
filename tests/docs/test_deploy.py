"""The files in deploy/ give kvtier what it needs. They are read and compared, and never run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from markdown_files import ROOT

from kvtier.factory.config import load_config
from kvtier.factory.entries import NvmeConfig, PinnedConfig
from kvtier.factory.text.units import parse_size
from kvtier.factory.vllm import options

yaml = pytest.importorskip("yaml")

DEPLOY = ROOT / "deploy"
SHUTDOWN_S = 40  # what vLLM's engine gets to write waiting chunks
VLLM_SHARED_BYTES = 4 << 30  # what vLLM may want of shared memory beside the pinned tier


def composed() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["vllm"]
    return service


def objects() -> dict[str, Any]:
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = objects()["StatefulSet"]["spec"]["template"]["spec"]
    return spec


def unit() -> dict[str, str]:
    """The settings of the service; of one that is there twice, the last."""
    lines = (DEPLOY / "kvtier.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def commands() -> dict[str, list[str]]:
    return {
        "compose.yaml": composed()["command"],
        "kubernetes.yaml": pod()["containers"][0]["args"],
        "kvtier.service": shlex.split(unit()["ExecStart"]),
    }


def option(words: list[str], name: str) -> str:
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return after
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    raise AssertionError(f"{name} is missing")


def kubernetes_document() -> Any:
    return json.loads(objects()["ConfigMap"]["data"]["tiers.json"])


def pinned_bytes() -> int:
    tiers = load_config(kubernetes_document()).tiers
    (pinned,) = (tier for tier in tiers if isinstance(tier, PinnedConfig))
    size = pinned.capacity
    assert isinstance(size, int)
    return size


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml", "kvtier.service"])
def test_the_server_is_given_kvtier_and_time_to_stop(name: str, tmp_path: Path) -> None:
    words = commands()[name]
    assert int(option(words, "--shutdown-timeout")) == SHUTDOWN_S
    config = json.loads(option(words, "--kv-transfer-config"))
    assert config["kv_connector"] == "OffloadingConnector"
    assert config["kv_role"] == "kv_both"
    extra = config["kv_connector_extra_config"]
    assert extra["kvtier"] == "/etc/kvtier/tiers.json"
    (tmp_path / "tiers.json").write_text(json.dumps(kubernetes_document()))
    options.composite_spec({**extra, "kvtier": str(tmp_path / "tiers.json")})


def test_whoever_stops_the_server_waits_longer_than_it_may_take() -> None:
    assert pod()["terminationGracePeriodSeconds"] > SHUTDOWN_S
    assert int(composed()["stop_grace_period"].removesuffix("s")) > SHUTDOWN_S
    assert int(unit()["TimeoutStopSec"]) > SHUTDOWN_S
    assert unit()["KillMode"] == "mixed", "the engine is stopped by its server, not by systemd"


def test_shared_memory_holds_the_pinned_tier_and_what_vllm_takes() -> None:
    needed = pinned_bytes() + VLLM_SHARED_BYTES
    (shm,) = (volume for volume in pod()["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"
    shm_bytes = parse_size(f"{shm['emptyDir']['sizeLimit']}B")
    memory_bytes = parse_size(f"{pod()['containers'][0]['resources']['limits']['memory']}B")
    assert isinstance(shm_bytes, int)
    assert isinstance(memory_bytes, int)
    assert shm_bytes > needed
    assert memory_bytes > shm_bytes, "what lies in an emptyDir of memory counts as the pod's"
    composed_bytes = parse_size(composed()["shm_size"].upper())
    assert isinstance(composed_bytes, int)
    assert composed_bytes > needed
    (mount,) = (m for m in pod()["containers"][0]["volumeMounts"] if m["name"] == "shm")
    assert mount["mountPath"] == "/dev/shm"


def test_page_locking_is_not_limited() -> None:
    assert composed()["ulimits"]["memlock"] == -1
    assert unit()["LimitMEMLOCK"] == "infinity"


def test_the_store_lies_inside_a_local_drive_that_has_to_be_mounted() -> None:
    (nvme,) = (tier for tier in load_config(kubernetes_document()).tiers if isinstance(tier, NvmeConfig))
    (mount,) = (m for m in pod()["containers"][0]["volumeMounts"] if m["name"] == "drive")
    assert str(nvme.mount) == mount["mountPath"]
    assert str(nvme.path).startswith(f"{mount['mountPath']}/")
    volume = objects()["PersistentVolume"]["spec"]
    assert "local" in volume
    assert "nodeAffinity" in volume
    assert unit()["RequiresMountsFor"] == str(nvme.mount)
    assert f"{nvme.mount}:{nvme.mount}" in composed()["volumes"]


def test_a_pods_files_are_not_opened_to_its_group() -> None:
    assert pod()["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert "shareProcessNamespace" not in pod()


def test_probes_wait_for_the_model_and_ask_the_server() -> None:
    container = pod()["containers"][0]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    probes = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert probes == ["/health"] * 3
    assert composed()["healthcheck"]["test"][-1].endswith("/health")


def test_the_image_keeps_vllms_torch() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert {step for step, _ in steps} <= {"ARG", "FROM", "COPY", "RUN"}
    (run,) = (text for step, text in steps if step == "RUN")
    assert "PIP_CONSTRAINT=/tmp/pins" in run
    for name in ("torch", "numpy"):
        assert f'"{name}==" + m.version("{name}")' in run


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = re.sub(r"=/opt/vllm/bin/\w+", "=/bin/true", (DEPLOY / "kvtier.service").read_text())
    (tmp_path / "kvtier.service").write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / "kvtier.service")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr.strip(), ended.stderr
