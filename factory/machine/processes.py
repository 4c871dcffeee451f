"""Limits and surroundings of a server's processes: descriptors, PID namespace, hash seed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...tiers.nvme.log.readers import FILES_OPEN_MAX
from ...tiers.nvme.store.mark import Mark
from .findings import Finding, ok, unknown, warning
from .host import Host

SERVER_DESCRIPTORS = 256  # of a server's own: sockets, libraries, devices
TIER_DESCRIPTORS = 64  # of a drive beside segments that are read: open ones, the index, its threads

SEEDED_SINCE = (0, 29)  # vLLM's hashes have a fixed seed from here on


def look_at_processes(
    host: Host, *, drives_count: int, environment: Mapping[str, str], vllm_version: str | None
) -> list[Finding]:
    """Judge what every process of a server meets."""
    return [_descriptors(host, drives_count), _hash_seed(environment, vllm_version)]


def _descriptors(host: Host, drives_count: int) -> Finding:
    limit = host.limit("Max open files")
    wanted = SERVER_DESCRIPTORS + drives_count * (FILES_OPEN_MAX + TIER_DESCRIPTORS)
    if limit is None or limit >= wanted:
        return ok(
            "descriptors", "unlimited" if limit is None else f"{limit} may be open, {wanted} are enough"
        )
    return warning(
        "descriptors",
        f"{limit} files may be open; a server with {drives_count} drives may want {wanted}",
        "ulimit -n 65536, systemd: LimitNOFILE=65536",
    )


def _hash_seed(environment: Mapping[str, str], vllm_version: str | None) -> Finding:
    if "PYTHONHASHSEED" in environment:
        return ok("hash-seed", f"PYTHONHASHSEED is {environment['PYTHONHASHSEED']}, here")
    if vllm_version is None:
        return unknown("hash-seed", "no vLLM here that would need one")
    found = re.match(r"(\d+)\.(\d+)", vllm_version)
    if found is None:
        return unknown("hash-seed", f"vLLM {vllm_version}: an unknown version")
    if (int(found[1]), int(found[2])) >= SEEDED_SINCE:
        return ok("hash-seed", f"vLLM {vllm_version} needs none, but for --prefix-caching-hash-algo xxhash")
    return warning(
        "hash-seed",
        f"vLLM {vllm_version} draws block hashes at random: nothing on the drive hits after a restart",
        "set PYTHONHASHSEED to the same value for every server, at every start",
    )


def look_at_users(mark: Mark | None, *, boot: str, pid_namespace: int) -> Finding:
    """Judge who has a store open, by its mark: servers in other containers cannot share it with this one."""
    check = "pid-namespace"
    if mark is None or mark.closed or mark.boot != boot:
        return ok(check, "nobody has the store open from elsewhere")
    if mark.processes == pid_namespace:
        return ok(check, "whoever has used it last did so from here")
    return warning(
        check,
        "the store was last opened in another PID namespace: if that server runs, no other one can use it",
        "run all servers of a store in one PID namespace (docker --pid, Kubernetes: shareProcessNamespace)",
    )
