"""Real file systems on loop devices, made and taken down by a test; only root can, with the tools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

MIB = 1024 * 1024
UNMOUNT_ATTEMPTS = 100  # a killed child lets go of its files a little after it was waited for
UNMOUNT_WAIT_S = 0.05
MEDIUM_WAIT_S = 30.0  # for a FUSE file system to come, or to go with its process; it takes milliseconds

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "ext3": ["mkfs.ext3", "-q", "-F", "-m", "0"],
    "ext2": ["mkfs.ext2", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
LEAST_BYTES = {"xfs": 300 * MIB, "btrfs": 256 * MIB}  # mkfs refuses less
KINDS = (*MAKE, "tmpfs", "overlay", "bindfs")


def needs(*tools: str) -> None:
    """Skip the test where one of the tools is not installed."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")


def run(*command: str | Path) -> str:
    """Run a command that must succeed; returns its output."""
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
    return ended.stdout


class Drive:
    """A mounted file system.

    Attributes:
        point: where it is mounted.
        device: its loop device; None where it has none.
    """

    def __init__(self, kind: str, point: Path, device: str | None = None) -> None:
        self.kind, self.point, self.device = kind, point, device

    def drop_caches(self) -> None:
        """Have the next reads come from the device."""
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def remount(self, options: str) -> None:
        run("mount", "-o", f"remount,{options}", self.point)

    def free_bytes(self) -> int:
        state = os.statvfs(self.point)
        return state.f_bavail * state.f_frsize

    def fill(self, leave_bytes: int = 0) -> Path:
        """Fill the file system with another program's file, but for some bytes."""
        path = self.point / f"filler-{time.monotonic_ns()}"
        block = b"x" * MIB
        with path.open("wb", buffering=0) as file, suppress(OSError):
            while (room_bytes := self.free_bytes() - leave_bytes) > 0:
                if not file.write(block[: min(len(block), room_bytes)]):
                    break
            os.fsync(file.fileno())
        return path


class MortalDrive(Drive):
    """One whose medium can be taken away, or stopped, from any process: a process serves it.

    Attributes:
        medium: the FUSE file system on which the image behind the loop device lies.
        pid: the process that serves it.
    """

    def __init__(self, kind: str, point: Path, device: str, medium: Path, pid: int) -> None:
        super().__init__(kind, point, device)
        self.medium, self.pid = medium, pid

    def cut(self) -> None:
        """Take the medium away: from now on the device fails every read and every write with EIO."""
        os.kill(self.pid, signal.SIGKILL)
        _wait_until(lambda: not _answers(self.medium))
        self.drop_caches()  # of the image too, which would answer reads of the device

    def hang(self) -> None:
        """Have the device answer nothing, until `go_on`."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def drive(kind: str, place: Path, size_bytes: int = 400 * MIB, *, sector_bytes: int = 512) -> Iterator[Drive]:
    """Make and mount a file system below `place`; skips the test where its tools are not installed."""
    with ExitStack() as undo:
        point = place / f"mount-{kind}-{time.monotonic_ns()}"
        point.mkdir()
        yield _MOUNT.get(kind, _on_loop)(kind, point, size_bytes, sector_bytes, undo)


@contextmanager
def mortal_drive(kind: str, place: Path, size_bytes: int = 400 * MIB) -> Iterator[MortalDrive]:
    """The same, on a loop device whose medium can be taken away or stopped.

    A file that is truncated under a loop device does not do: the device makes it longer again, and goes on.
    So the file lies on a FUSE file system, whose end is an I/O error to whatever is above it.
    """
    needs("bindfs")
    if not Path("/dev/fuse").exists():
        pytest.skip("needs FUSE")
    with ExitStack() as undo:
        point = place / f"mount-{kind}-{time.monotonic_ns()}"
        point.mkdir()
        source, medium = (point.with_name(f"{point.name}-{name}") for name in ("source", "medium"))
        pid = _serve(source, medium, undo)
        device = _mount_image(kind, medium / "image", point, size_bytes, 512, undo)
        yield MortalDrive(kind, point, device, medium, pid)


def _serve(source: Path, medium: Path, undo: ExitStack) -> int:
    """Serve a directory at another path, without a cache between; returns the pid of who does."""
    for path in (source, medium):
        path.mkdir()
    server = subprocess.Popen(["bindfs", "-f", "-o", "direct_io", source, medium])
    undo.callback(server.wait)
    undo.callback(_unmount, medium)
    undo.callback(server.kill)  # also one that was stopped
    _wait_until(lambda: medium.is_mount() or server.poll() is not None)
    if server.poll() is not None:
        pytest.skip("FUSE file systems cannot be mounted here")
    return server.pid


def _on_loop(kind: str, point: Path, size_bytes: int, sector_bytes: int, undo: ExitStack) -> Drive:
    image = point.with_name(f"{point.name}.img")
    return Drive(kind, point, _mount_image(kind, image, point, size_bytes, sector_bytes, undo))


def _mount_image(
    kind: str, image: Path, point: Path, size_bytes: int, sector_bytes: int, undo: ExitStack
) -> str:
    needs(MAKE[kind][0], "losetup")
    with image.open("wb") as file:
        file.truncate(max(size_bytes, LEAST_BYTES.get(kind, 0)))
    undo.callback(_discard, image)
    device = run("losetup", "--find", "--show", "--sector-size", str(sector_bytes), image).strip()
    undo.callback(_detach, device)
    run(*MAKE[kind], device)
    _mount(kind, device, point)
    undo.callback(_unmount, point)
    return device


def _mount(kind: str, device: str, point: Path) -> None:
    command = ["mount", "-t", kind, device, str(point)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unknown filesystem type" in ended.stderr:
        pytest.skip(f"this kernel has no {kind}")
    assert ended.returncode == 0, ended.stderr


def _tmpfs(kind: str, point: Path, size_bytes: int, sector_bytes: int, undo: ExitStack) -> Drive:
    run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "tmpfs", point)
    undo.callback(_unmount, point)
    return Drive(kind, point)


def _overlay(kind: str, point: Path, size_bytes: int, sector_bytes: int, undo: ExitStack) -> Drive:
    layers = [point.with_name(f"{point.name}-{name}") for name in ("lower", "upper", "work")]
    for layer in layers:
        layer.mkdir()
    lower, upper, work = layers
    run("mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", point)
    undo.callback(_unmount, point)
    return Drive(kind, point)


def _bindfs(kind: str, point: Path, size_bytes: int, sector_bytes: int, undo: ExitStack) -> Drive:
    needs("bindfs")
    source = point.with_name(f"{point.name}-source")
    source.mkdir()
    run("bindfs", source, point)
    undo.callback(_unmount, point)
    return Drive(kind, point)


_MOUNT: dict[str, Callable[[str, Path, int, int, ExitStack], Drive]] = {
    "tmpfs": _tmpfs,
    "overlay": _overlay,
    "bindfs": _bindfs,
}


def _unmount(point: Path) -> None:
    for _ in range(UNMOUNT_ATTEMPTS):
        if subprocess.run(["umount", str(point)], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(UNMOUNT_WAIT_S)
    run("umount", "--lazy", point)


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + MEDIUM_WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, "the FUSE file system neither comes nor goes"
        time.sleep(UNMOUNT_WAIT_S)


def _answers(medium: Path) -> bool:
    try:
        os.statvfs(medium)  # which nothing caches
    except OSError:
        return False
    return True


def _discard(image: Path) -> None:
    with suppress(OSError):  # its medium may be gone
        image.unlink()


def _detach(device: str) -> None:
    subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
