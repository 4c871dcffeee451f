"""The documentation site builds without a warning, has every page, and loads nothing from elsewhere."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_files import ROOT

ENVIRONMENT = ROOT / ".venv-docs" / ".ready"
LOADED = re.compile(
    r"<(?:script|img|iframe|source|embed)\b[^>]*\b(?:src|srcset)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|icon|preconnect))[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)"
)
ASKS_GITHUB = 'data-md-component="source"'  # what has the theme's script ask for stars

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="needs .venv-docs; `make docs` makes it"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        ["make", "docs", f"ARGS=--site-dir {folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout
    return folder


def pages(site: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path, path.read_text()


def test_every_page_of_the_documentation_is_in_the_site(site: Path) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert (site / folder / "index.html").is_file(), f"{source} has no page"


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    found = [(path.name, *match) for path, text in pages(site) for match in LOADED.findall(text)]
    found += [(path.name, ASKS_GITHUB) for path, text in pages(site) if ASKS_GITHUB in text]
    for sheet in site.rglob("*.css"):
        found += [(sheet.name, *match) for match in LOADED.findall(sheet.read_text())]
    assert not found


def test_what_loads_from_elsewhere_would_be_seen() -> None:
    for text in (
        '<script src="https://x.org/a.js">',
        "<img alt='' src=//x.org/a.png>",
        '<link href="https://x.org/a.css" rel="stylesheet">',
        "@import 'https://x.org/a.css'",
        "src: url(https://x.org/a.woff)",
    ):
        assert LOADED.search(text), text
    assert not LOADED.search('<a href="https://x.org">')


def test_a_list_is_a_list_and_a_table_a_table(site: Path) -> None:
    """The site's Markdown wants an empty line before them, where others do without."""
    for path, text in pages(site):
        for paragraph in re.findall(r"<p>(.*?)</p>", text, re.DOTALL):
            flat = re.search(r"^(?:- |\d+\. |\|)", html.unescape(paragraph), re.MULTILINE)
            assert flat is None, f"{path}: {paragraph[:200]}"


def test_the_api_page_has_the_calls_with_their_texts(site: Path) -> None:
    text = (site / "reference" / "api" / "index.html").read_text()
    for name in (
        "OffloadEngine.register_kv_caches",
        "Job.wait",
        "NotDurable",
        "register_tier",
        "Tier.lookup",
    ):
        assert re.search(rf'id="[\w.]*{re.escape(name)}"', text), f"{name} is not on the page"
