"""fio: one way to use the drive fully."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .memory import MIB

RUNTIME_MAX_S = 60
IN_FLIGHT = 16  # more gained nothing here: docs/performance.md


def installed() -> bool:
    return shutil.which("fio") is not None


def fio_bytes_per_second(path: Path, kind: str, *, chunk_bytes: int, total_bytes: int) -> float:
    """What fio reaches for the same bytes with O_DIRECT.

    It writes new, preallocated files: the state that everybody's files are in here. The better of two
    set-ups: one thread with io_uring and 16 calls in flight, or four threads with one each.
    """
    size = max(chunk_bytes, MIB)  # neighbours go together, in ours too
    queue = ["--ioengine=io_uring", f"--iodepth={IN_FLIGHT}", "--numjobs=1", *_registered(size)]
    setups = (queue, ["--ioengine=psync", "--numjobs=4"])
    return max(_fio(path, kind, size, total_bytes, setup) for setup in setups)


def _registered(call_bytes: int) -> list[str]:
    """Have io_uring's buffers registered once, where that much memory may be locked."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    may = (
        os.geteuid() == 0 or limit_bytes == resource.RLIM_INFINITY or limit_bytes > 2 * IN_FLIGHT * call_bytes
    )
    return ["--fixedbufs=1"] if may else []


def _fio(path: Path, kind: str, call_bytes: int, total_bytes: int, setup: Sequence[str]) -> float:
    jobs = 4 if "--numjobs=4" in setup else 1
    path.mkdir(exist_ok=True)
    command = [
        "fio",
        "--name=limit",
        f"--directory={path}",
        f"--rw={kind}",
        f"--bs={call_bytes}",
        f"--size={total_bytes // jobs // call_bytes * call_bytes}",
        "--direct=1",
        "--fallocate=posix",
        "--group_reporting",
        f"--runtime={RUNTIME_MAX_S}",
        "--output-format=json",
        *setup,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    side = json.loads(output[output.index("{") :])["jobs"][0]["read" if kind == "read" else "write"]
    return float(side["bw_bytes"])
