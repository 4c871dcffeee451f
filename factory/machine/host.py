"""What the kernel tells of a machine under /proc and /sys. Another root stands for another machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True)
class Host:
    """One machine, as this process sees it."""

    root: Path = Path("/")

    def text(self, path: str | Path) -> str | None:
        """The text of a file, None where there is none for us."""
        try:
            return (self.root / str(path).lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str | Path) -> int | None:
        """The whole number in a file, None where there is none."""
        try:
            return int(self.text(path) or "")
        except ValueError:
            return None

    def real(self, path: str) -> Path | None:
        """Where a path leads, None where it leads nowhere."""
        place = self.root / path.lstrip("/")
        try:
            return place.resolve() if place.exists() else None
        except OSError:
            return None

    def names(self, path: str | Path) -> list[str]:
        """The names in a folder, sorted; none where there is no folder."""
        try:
            return sorted(file.name for file in (self.root / str(path).lstrip("/")).iterdir())
        except OSError:
            return []

    def limit(self, name: str) -> int | None:
        """A limit of this process, such as "Max open files"; None where there is no limit, or nobody says.

        The smaller one counts: a process may raise itself to the other, and few do.
        """
        for line in (self.text("/proc/self/limits") or "").splitlines():
            if line.startswith(name):
                soft = line[len(name) :].split()[0]
                return None if soft == UNLIMITED else int(soft)
        return None

    def groups(self, controller: str) -> Iterator[tuple[Path, bool]]:
        """The control groups of this process, its own first, each with whether it is of version 2."""
        top = self.root / "sys/fs/cgroup"
        second = top / "unified" if (top / "unified").is_dir() else top
        for line in (self.text("/proc/self/cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = top / controller if controllers else second
            folder = base / path.lstrip("/")
            while folder.is_relative_to(base):
                yield folder, not controllers
                folder = folder.parent
