from __future__ import annotations

import pytest
from host_tree import HostTree

from kvtier.factory.machine.findings import Finding, State
from kvtier.factory.machine.processes import look_at_processes, look_at_users
from kvtier.tiers.nvme.store.mark import Mark

MARK = Mark(boot="b", processes=7, lock_device=1, lock_inode=2, home="h", made=3)


def judged(
    tree: HostTree, drives: int = 1, environment: dict[str, str] | None = None, vllm: str | None = None
) -> dict[str, Finding]:
    found = look_at_processes(
        tree.host, drives_count=drives, environment=environment or {}, vllm_version=vllm
    )
    return {one.check: one for one in found}


def test_descriptors_are_enough_or_not_for_so_many_drives(tree: HostTree) -> None:
    assert judged(tree)["descriptors"].state is State.OK
    tree.limits(**{"Max open files": "1024"})
    assert judged(tree)["descriptors"].state is State.OK
    assert judged(tree, drives=8)["descriptors"].state is State.WARNING
    tree.limits(**{"Max open files": "unlimited"})
    assert judged(tree, drives=8)["descriptors"].text == "unlimited"


@pytest.mark.parametrize(
    ("vllm", "environment", "state"),
    [
        (None, {}, State.UNKNOWN),
        ("0.28.1", {}, State.WARNING),
        ("0.9.2", {}, State.WARNING),
        ("0.29.0", {}, State.OK),
        ("1.0.0rc1", {}, State.OK),
        ("dev", {}, State.UNKNOWN),
        ("0.28.1", {"PYTHONHASHSEED": "0"}, State.OK),
    ],
)
def test_releases_that_draw_their_hashes_need_a_seed(
    tree: HostTree, vllm: str | None, environment: dict[str, str], state: State
) -> None:
    assert judged(tree, environment=environment, vllm=vllm)["hash-seed"].state is state


@pytest.mark.parametrize(
    ("mark", "state"),
    [
        (None, State.OK),
        (MARK, State.OK),
        (Mark("b", 8, 1, 2, "h", 3), State.WARNING),
        (Mark("b", 8, 1, 2, "h", 3, closed=True), State.OK),
        (Mark("earlier", 8, 1, 2, "h", 3), State.OK),
    ],
)
def test_a_store_that_another_container_has_open_is_told(mark: Mark | None, state: State) -> None:
    assert look_at_users(mark, boot="b", pid_namespace=7).state is state
