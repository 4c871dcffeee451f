"""A tiny Llama with random weights, whose next token depends on every token before it.

Weights drawn at 0.1 rather than the usual 0.02 make attention matter: with smaller ones a server that
loads zeros for keys and values still answers with the same tokens, and a comparison of tokens proves
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SEED = 20_11
VOCABULARY = 2_000
CONTEXT_TOKENS = 4_096
LAYERS = 4
KV_HEADS = 4
HEAD_SIZE = 64

KV_BYTES_PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_SIZE * 4  # keys and values in float32

_COMPLETE = "kvtier-model.json"  # written last: a directory without it is an interrupted attempt
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": KV_HEADS * HEAD_SIZE,
    "intermediate_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": KV_HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
_RECIPE = {"seed": SEED, **_SHAPE}


def make_llama(directory: Path) -> Path:
    """Write the model, unless it is there and whole; the same weights every time. Returns the directory."""
    return write_once(directory, _RECIPE, _write)


def write_once(directory: Path, recipe: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Have `write` fill the directory, unless it holds what this recipe gives. Returns the directory."""
    if _recipe_of(directory) == recipe:
        return directory
    attempt = directory.with_name(f"{directory.name}.{os.getpid()}")
    shutil.rmtree(attempt, ignore_errors=True)
    write(attempt)
    (attempt / _COMPLETE).write_text(json.dumps(recipe))
    shutil.rmtree(directory, ignore_errors=True)
    attempt.rename(directory)
    return directory


def _recipe_of(directory: Path) -> object:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((directory / _COMPLETE).read_text())
    return None


def _write(directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(LlamaConfig(**_SHAPE, dtype="float32"))
    model.save_pretrained(directory)
