"""Other revisions of kvtier, checked out for a while."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .systems import CHECKOUT

PACKAGES = ("tiers", "engine", "factory")


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The packages of a revision of this repository, in a directory that is gone afterwards."""
    command = ["git", "-C", str(CHECKOUT), "archive", revision, *PACKAGES]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tempfile.TemporaryDirectory(prefix="kvtier-revision-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)
