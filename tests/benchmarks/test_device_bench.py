"""The check of a device, on the device that every machine has: plain memory."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvtier.tiers.copies import Lane
from kvtier.tiers.copyplan import CopyPlan
from kvtier.tiers.gpu import CpuCopies

round_trips = pytest.importorskip("round_trips", reason="the benchmark is not part of the package")

SCRIPT = Path(round_trips.__file__).with_name("device.py")

# As on a machine where only torch and numpy are there: nothing else can be imported, and kvtier is not
# installed (an editable install is a finder).
BARE = """
import runpy, sys
for name in ("aiofiles", "crc32c", "lmdb", "psutil", "pydantic", "rich", "typer", "vllm"):
    sys.modules[name] = None
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_runs_from_the_checkout_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    arguments = [str(SCRIPT), "--device", "cpu", "--quick", "--json", str(file)]
    subprocess.run([sys.executable, "-c", BARE, *arguments], check=True, cwd=tmp_path)
    result = json.loads(file.read_text())
    assert result["about"]["device"] == "plain memory"
    assert result["round_trips"]["cases"] == len(list(round_trips.cases()))
    assert result["round_trips"]["wrong"] == []
    (planning,) = result["submit"]
    assert planning["runs_count"] == 64 * 32


def test_a_device_that_is_not_there_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    ended = subprocess.run([sys.executable, SCRIPT, "--device", "cuda"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "no GPU was found" in ended.stderr


def test_it_fails_where_a_round_trip_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pytest.importorskip("device")
    monkeypatch.setattr(round_trips, "LAYOUTS", round_trips.LAYOUTS[:1])
    monkeypatch.setattr(sys, "argv", ["device.py", "--device", "cpu", "--quick", "--round-trips-only"])
    assert device.main() == 0
    monkeypatch.setattr(CpuCopies, "copy", without_the_last_byte)
    assert device.main() == 1


def without_the_last_byte(self: CpuCopies, plan: CopyPlan, lane: Lane) -> float:
    return copied(plan, lane, lambda size: size - 1)


def stores_of_one_byte_too_much(self: CpuCopies, plan: CopyPlan, lane: Lane) -> float:
    return copied(plan, lane, lambda size: size + (lane is Lane.STORE))


def the_first_run_only(self: CpuCopies, plan: CopyPlan, lane: Lane) -> float:
    first = CopyPlan(plan.device[:1], plan.host[:1], plan.sizes[:1], plan.size_bytes)
    return copied(first, lane, lambda size: size)


def loads_that_never_come(self: CpuCopies, plan: CopyPlan, lane: Lane) -> float:
    return copied(plan, lane, lambda size: size) if lane is Lane.STORE else 0.0


def a_fault(self: CpuCopies, plan: CopyPlan, lane: Lane) -> float:
    raise RuntimeError("device lost")


def copied(plan: CopyPlan, lane: Lane, size_of: Callable[[int], int]) -> float:
    source, target = (plan.device, plan.host) if lane is Lane.STORE else (plan.host, plan.device)
    for to, origin, size in zip(target.tolist(), source.tolist(), plan.sizes.tolist(), strict=True):
        ctypes.memmove(to, origin, size_of(size))
    return 0.0


@pytest.mark.parametrize(
    "broken",
    [without_the_last_byte, stores_of_one_byte_too_much, the_first_run_only, loads_that_never_come, a_fault],
)
@pytest.mark.parametrize("layout", round_trips.LAYOUTS, ids=lambda layout: layout.name)
def test_no_broken_copy_passes_for_a_good_one(
    layout: object, broken: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuCopies, "copy", broken)
    case = round_trips.Case(layout, torch.uint8, round_trips.COVERS[3])
    plain = torch.device("cpu")
    verdict = round_trips.judge(case, plain, round_trips.ComputeStream(plain), 2, 0)
    assert not verdict.good
    assert (verdict.error is None) == (broken is not a_fault)
