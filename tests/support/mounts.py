"""File systems of their own for a test: on a loop device, or in memory. They need root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def on_loop(folder: Path, kind: str, size_bytes: int) -> Iterator[tuple[Path, Path]]:
    """A file system in an image file; yields where it is mounted, and the image."""
    image, point = folder / f"{kind}.img", folder / kind
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    run(*MKFS[kind], image)
    run("mount", "-o", "loop", image, point)
    try:
        yield point, image
    finally:
        subprocess.run(["umount", "-l", point], check=True, capture_output=True)


@contextmanager
def in_memory(point: Path, size_bytes: int) -> Iterator[Path]:
    """A tmpfs of that size."""
    point.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", point)
    try:
        yield point
    finally:
        run("umount", "-l", point)
