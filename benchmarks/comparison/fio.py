"""fio: one way to use the drive fully."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .memory import MIB

RUNTIME_MAX_S = 60


def installed() -> bool:
    return shutil.which("fio") is not None


def fio_bytes_per_second(path: Path, kind: str, *, chunk_bytes: int, total_bytes: int) -> float:
    """What fio reaches for the same bytes with O_DIRECT.

    It writes new, preallocated files: the state that everybody's files are in here. The better of two
    set-ups: one thread with io_uring and 16 calls in flight, or four threads with one each.
    """
    size = max(chunk_bytes, MIB)  # neighbours go together, in ours too
    setups = (["--ioengine=io_uring", "--iodepth=16", "--numjobs=1"], ["--ioengine=psync", "--numjobs=4"])
    return max(_fio(path, kind, size, total_bytes, setup) for setup in setups)


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
