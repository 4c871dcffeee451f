"""Importing this makes the checkout around it importable as `kvtier`, where nothing is installed.

Like pyproject.toml's package-dir: `kvtier` is a namespace over the repository's top folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def namespace(root: Path) -> ModuleType:
    """What `import kvtier` gives for the checkout at `root`."""
    module = ModuleType("kvtier")
    module.__path__ = [str(root)]
    return module


sys.modules.setdefault("kvtier", namespace(ROOT))
