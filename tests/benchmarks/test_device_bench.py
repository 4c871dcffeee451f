"""The check of a device, on the device that every machine has: plain memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from kvtier.tiers.device.copies import Lane
from kvtier.tiers.device.copyplan import CopyPlan
from kvtier.tiers.device.cuda import BatchedMemcpy
from kvtier.tiers.device.gpu import CpuCopies

round_trips = pytest.importorskip("round_trips", reason="the benchmark is not part of the package")

device_rates = pytest.importorskip("device_rates")

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


@pytest.mark.slow
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


def test_a_device_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    device = pytest.importorskip("device")
    monkeypatch.setattr(sys, "argv", ["device.py", "--device", "cuda"])
    assert device.main() == 2
    assert "no GPU was found" in capsys.readouterr().err


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


class StandInEvent:
    """An event that has happened when it is asked for the third time."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._asked = 0

    def record(self, stream: object = None) -> None:
        self._asked = 0

    def query(self) -> bool:
        self._asked += 1
        return self._asked > 2

    def synchronize(self) -> None:
        """It will have happened."""

    def elapsed_time(self, end: StandInEvent) -> float:
        return 1.0


class StandInStream:
    def __init__(self, device: object) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Nothing is under way."""


@pytest.fixture
def cuda_of_plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just enough of torch.cuda to go through the GPU's part with copies that are made at once."""

    def in_plain_memory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *size, device=None, pin_memory=False, **rest: make(*size, **rest)

    for name in ("zeros", "randn"):
        monkeypatch.setattr(torch, name, in_plain_memory(getattr(torch, name)))
    for name, stand_in in {
        "is_available": lambda: True,
        "get_device_name": lambda device: "a stand-in",
        "synchronize": lambda: None,
        "stream": contextlib.nullcontext,
        "Stream": StandInStream,
        "Event": StandInEvent,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A vLLM that has `swap_blocks_batch`; how many blocks each call of it took."""
    counts = []

    def swap(sources: torch.Tensor, targets: torch.Tensor, sizes: torch.Tensor) -> None:
        counts.append(len(sizes))
        for source, target, size in zip(sources.tolist(), targets.tolist(), sizes.tolist(), strict=True):
            ctypes.memmove(target, source, size)

    vllm = ModuleType("vllm")
    monkeypatch.setattr(vllm, "_custom_ops", SimpleNamespace(swap_blocks_batch=swap), raising=False)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(device_rates, "find_spec", lambda name: name)
    return counts


@pytest.mark.usefixtures("cuda_of_plain_memory", "swapped")
@pytest.mark.parametrize("way", [device_rates.STORE, device_rates.LOAD])
def test_everybody_moves_the_same_pages(way: str) -> None:
    work = device_rates.Work.of_pages(4096, torch.device("cpu"))
    on_device, on_host = work.device_pages[way], work.host_pages[way]
    for make in device_rates.movers()[3:]:
        mover = make(work)
        work.tensor[:] = torch.arange(len(work.tensor))[:, None]
        mover._host[:] = 7 * torch.arange(len(work.tensor))[:, None]
        before = [work.tensor.clone(), mover._host.clone()]
        ended = mover.start(way)
        while not ended():
            pass
        if way == device_rates.STORE:
            before[1][on_host] = before[0][on_device]
        else:
            before[0][on_device] = before[1][on_host]
        assert torch.equal(work.tensor, before[0])
        assert torch.equal(mover._host, before[1])
        mover.close()


@pytest.mark.usefixtures("cuda_of_plain_memory")
def test_on_a_gpu_everything_is_measured_for_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: list[int]
) -> None:
    device = pytest.importorskip("device")
    monkeypatch.setattr(round_trips, "LAYOUTS", round_trips.LAYOUTS[:1])
    monkeypatch.setattr(round_trips, "MATRIX", 16)
    for name, value in {
        "TRANSFER_BYTES_MAX": 64 * 1024,
        "QUICK_PAGE_SIZES": (4096, 16384),
        "MATRIX": 16,
        "MATMULS": 2,
        "SUBMITS": 3,
    }.items():
        monkeypatch.setattr(device_rates, name, value)
    file = tmp_path / "device.json"
    monkeypatch.setattr(BatchedMemcpy, "find", BatchedMemcpy.find)  # which the last argument replaces
    arguments = ["--device", "cuda", "--quick", "--json", str(file), "--run-by-run"]
    monkeypatch.setattr(sys, "argv", ["device.py", *arguments])
    assert device.main() == 0
    result = json.loads(file.read_text())
    names, ways = (
        {"kvtier", "kvtier, unpinned", "memcpy", "torch", "gather", "vllm"},
        {"store", "load", "store+load"},
    )
    measured = {(rate["mover"], rate["page_bytes"], rate["ways"]) for rate in result["bandwidth"]}
    assert measured == set(product(names, (4096, 16384), ways))
    assert all(rate["of_memcpy"] == 1 for rate in result["bandwidth"] if rate["mover"] == "memcpy")
    assert {(each["mover"], each["ways"]) for each in result["slowdown"]} == set(product(names, ways))
    assert [cost["what"] for cost in result["submit"]] == ["planning", "submit"]
    assert result["round_trips"]["submits_onto_a_busy_stream"] == 2 * result["round_trips"]["trips"]
    assert set(swapped) == {4, 16, 1}
