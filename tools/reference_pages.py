"""Writes the pages of the reference that follow from the code: `make reference`.

    .venv/bin/python tools/reference_pages.py [--check]

The tier document's fields come from its JSON Schema, commands from the command line itself, their JSON from
the classes of their output, metrics from their table. The pages are in the repository, so that they can be
read without building the site. With `--check` nothing is written, and the exit status is 1 if a page is not
what the code gives.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reference import cli, config, metrics, shapes

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES = {"config.md": config.page, "cli.md": cli.page, "metrics.md": metrics.page, "json.md": shapes.page}


def main() -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
    what = "is not what the code gives: make reference" if "--check" in sys.argv[1:] else "written"
    for name in stale:
        print(f"docs/reference/{name}: {what}")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
