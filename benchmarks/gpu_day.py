"""What a day with a GPU tries beside `device.py`: copies that fail, page-locking, and the way from a drive.

    python3 benchmarks/gpu_day.py failing|registration|drive [--device cuda|cpu] [--mib N] --json FILE

- failing: a copy that the driver refuses half way fails its chunks and no others, and the engine goes on;
- registration: how long page-locking of an arena takes, and how long a kernel waits meanwhile;
- drive: chunks from a drive into the device, beside the drive alone and the copies alone.

`tools/gpu_day.sh` runs it. It needs torch and numpy; `drive` also lmdb and crc32c. Exit status: 0, or 1 if
something is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import checkout  # noqa: F401  kvtier is importable from here
import torch
from engine_trips import MemorySpec

from kvtier.engine import OffloadEngine
from kvtier.tiers.device import cuda
from kvtier.tiers.device.gpu import CpuCopies, GpuTier
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.tier import PinnedTier

MIB = 1 << 20
BLOCK_BYTES = 2 * MIB  # of the drive's chunks
REGISTERED_MIB = (1024, 8192, 32768)
MATRIX = 512  # elements a side of the kernel that is timed: a fraction of a millisecond
QUIET_S = 1.0
SLOTS_SHARE = 8  # of what lies on the drive, so many times fewer slots
READERS = 8
READ_BYTES = 8 * MIB
WAIT_S = 120.0


def failing(device: torch.device, mib: int) -> dict[str, Any]:
    """Store and load while the driver refuses, and after."""
    tensors = [torch.zeros(16, 4096, dtype=torch.uint8, device=device) for _ in range(4)]
    for number, tensor in enumerate(tensors):
        tensor.copy_(torch.arange(16, device=device)[:, None] + 16 * number)
    before = [tensor.clone() for tensor in tensors]
    good, bad = [b"good-%d" % i for i in range(4)], [b"bad-%d" % i for i in range(4)]
    with OffloadEngine(MemorySpec()) as engine:
        engine.register_kv_caches(tensors)
        engine.store(good, range(4)).wait(WAIT_S)
        with refused(device):
            stored = engine.store(bad, range(4, 8)).wait(WAIT_S)
            loaded = engine.load(good, range(8, 12)).wait(WAIT_S)
        again = engine.load(good, range(12, 16)).wait(WAIT_S)
        result = {
            "refused_all": not stored.succeeded and not loaded.succeeded,
            "nothing_kept_of_it": engine.lookup(bad) == 0,
            "right_afterwards": len(again.succeeded) == 4
            and all(torch.equal(now[12:], was[:4]) for now, was in zip(tensors, before, strict=True)),
            "pinned_slots": engine.stats().pinned_slots,
        }
    wrong = result["pinned_slots"] or not all(value for name, value in result.items() if "slots" not in name)
    return {**result, "good": not wrong}


@contextmanager
def refused(device: torch.device) -> Iterator[None]:
    """While this lasts the driver takes half of the runs of each copy, and then fails."""

    def half(copies: Any, targets: Any, sources: Any, sizes: Any, stream: int) -> None:
        count = len(sizes) // 2
        if count:
            cuda.MemcpyPerRun.find()(targets[:count], sources[:count], sizes[:count], stream)
        raise RuntimeError("refused")

    def none(*_: Any) -> float:
        raise RuntimeError("refused")

    if device.type == "cpu":
        with patch.object(CpuCopies, "copy", none):
            yield
        return
    with patch.object(cuda.BatchedMemcpy, "__call__", half):
        yield


def registration(device: torch.device, mib: int) -> dict[str, Any]:
    """Page-lock arenas of each size up to `mib`; kernels run all the time."""
    sizes = [size for size in REGISTERED_MIB if size <= mib] or [mib]
    return {"good": True, "sizes": [_registered(device, size) for size in sizes]}


def _registered(device: torch.device, mib: int) -> dict[str, Any]:
    gpu = GpuTier.of_tensors([torch.zeros(4, BLOCK_BYTES, dtype=torch.uint8, device=device)])
    arena = Arena.private(mib * MIB // BLOCK_BYTES, BLOCK_BYTES)
    kernel = _kernel(device)
    quiet_end_s = time.perf_counter() + QUIET_S
    quiet = _kernel_times(kernel, lambda: time.perf_counter() < quiet_end_s)
    began_s = time.perf_counter()
    gpu.prepare(arena)
    pinning = arena.pinning
    meanwhile = _kernel_times(kernel, lambda: pinning.is_working)
    took_s = time.perf_counter() - began_s
    result = {
        "mib": mib,
        "seconds": took_s,
        "pinned_mib": pinning.pinned_bytes // MIB,
        "touched_mib": pinning.touched_bytes // MIB,
        "kernel_quiet": _spread(quiet),
        "kernel_meanwhile": _spread(meanwhile),
    }
    gpu.close_now()
    began_s = time.perf_counter()
    arena.close()
    return {**result, "close_s": time.perf_counter() - began_s}


def _kernel(device: torch.device) -> Callable[[], None]:
    matrix = torch.zeros(MATRIX, MATRIX, device=device)

    def run() -> None:
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()  # the first one loads it
    return run


def _kernel_times(kernel: Callable[[], None], goes_on: Callable[[], bool]) -> list[float]:
    took_s = []
    while True:
        began_s = time.perf_counter()
        kernel()
        took_s.append(time.perf_counter() - began_s)
        if not goes_on():
            return took_s


def _spread(seconds: list[float]) -> dict[str, float]:
    seconds.sort()
    return {
        "median_us": 1e6 * statistics.median(seconds),
        "p99_us": 1e6 * seconds[int(0.99 * len(seconds))],
        "max_us": 1e6 * seconds[-1],
    }


class DriveSpec(MemorySpec):
    """An arena over an NVMe tier."""

    load_deadlines_s: Mapping[str, float] = {"nvme": WAIT_S}

    def __init__(self, path: Path, mib: int) -> None:
        super().__init__()
        self._path, self._mib = path, mib

    async def start(self, *, part_bytes: int, parts: int, identity: Mapping[str, str]) -> None:
        from kvtier.tiers.nvme.store.namespaces import Identity
        from kvtier.tiers.nvme.tier import NvmeTier

        slots = max(16, self._mib * MIB // part_bytes // SLOTS_SHARE)
        pinned = PinnedTier(Arena.private(slots, part_bytes))
        nvme = await NvmeTier.open(
            self._path,
            capacity_bytes=2 * self._mib * MIB + 256 * MIB,
            reserve_bytes=0,
            identity=Identity(identity),
            chunk_bytes=part_bytes,
        )
        self._tiers = [pinned, nvme]


def drive(device: torch.device, mib: int) -> dict[str, Any]:
    """Bring `mib` MiB from a drive into the device, and compare them."""
    count = mib * MIB // BLOCK_BYTES
    keys = [b"chunk-%06d" % number for number in range(count)]
    tensor = torch.randint(0, 256, (count, BLOCK_BYTES), dtype=torch.uint8, device=device)
    expected = tensor.cpu()
    with tempfile.TemporaryDirectory(prefix="kvtier-gpu-day-") as folder:
        path = Path(folder, "store")
        with OffloadEngine(DriveSpec(path, mib)) as engine:
            engine.register_kv_caches([tensor])
            store_s = _seconds(lambda: engine.store(keys, range(count)).wait(WAIT_S))
            engine.flush(WAIT_S)
            tensor.zero_()
            load_s = _seconds(lambda: engine.load(keys, range(count)).wait(WAIT_S))
            is_equal = bool(torch.equal(tensor.cpu(), expected))
            slots = engine.stats().tiers["pinned"].chunks
            last = keys[-slots // 2 :]
            engine.prefetch(last).wait(WAIT_S)
            copy_s = _seconds(lambda: engine.load(last, range(len(last))).wait(WAIT_S)) * count / len(last)
        drive_s = _seconds(lambda: _read_all(sorted(path.glob("segments/*.seg")), count))
    return {
        "good": is_equal,
        "mib": mib,
        "is_equal": is_equal,
        "store_s": store_s,
        "load_s": load_s,
        "drive_alone_s": drive_s,
        "copies_alone_s": copy_s,
        "of_drive": drive_s / load_s,
        "of_both_one_after_the_other": load_s / (drive_s + copy_s),
    }


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _read_all(files: Sequence[Path], count: int) -> None:
    """Read as many bytes as the chunks have, past the page cache, with as many threads as the tier."""
    from kvtier.tiers.nvme.io.blocks import scratch
    from kvtier.tiers.nvme.io.files import Files

    def read(job: tuple[Path, int]) -> None:
        fd = Files().open_data(job[0])
        try:
            Files().preadv(fd, [scratch(READ_BYTES)], job[1])
        finally:
            Files().close(fd)

    jobs = [(file, start) for file in files for start in range(0, file.stat().st_size, READ_BYTES)]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, jobs[: max(1, count * BLOCK_BYTES // READ_BYTES)]))


PARTS = {"failing": (failing, 0), "registration": (registration, REGISTERED_MIB[-1]), "drive": (drive, 4096)}


def main() -> int:
    options = arguments()
    part, mib = PARTS[options.part]
    result = part(torch.device(options.device), options.mib or mib)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["good"] else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--mib", type=int, help="the size, where the part has one")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
