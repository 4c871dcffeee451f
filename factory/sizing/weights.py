"""How large a model's weights are: the bytes of its files, which are not read."""

from __future__ import annotations

import json
from pathlib import Path

INDEX = "model.safetensors.index.json"  # names the shards, and says how many bytes all of them have


def weights_bytes(folder: Path) -> int | None:
    """The bytes of all weights in the folder of a model, None where there are none to be seen."""
    try:
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
        total = json.loads((folder / INDEX).read_text())["metadata"]["total_size"] if not sizes else 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        return None
    return sum(sizes) or total or None
