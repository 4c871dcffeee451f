"""Tiny models with random weights, one for each way in which servers keep a KV cache.

What `tiny_llama` says about its weights holds for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_llama import CONTEXT_TOKENS, SEED, VOCABULARY, make_llama, write_once

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}

WINDOW_TOKENS = 256  # two blocks; prompts are several times as long

_GEMMA = {
    **_COMMON,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "sliding_window": WINDOW_TOKENS,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}

_DEEPSEEK = {
    **_COMMON,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 4,  # no experts: they have nothing to do with the cache
    "q_lora_rank": None,
    "kv_lora_rank": 512,  # with 64 the one size of a latent that vLLM's CPU kernel has
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}

# Computes 21 kFLOP for each byte of its keys and values. A large model computes more (8B in bf16: 125), and
# the tiny Llama 0.6.
_DENSE = {
    **_COMMON,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "initializer_range": 0.02,
}

_GRANITE = {
    **_COMMON,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "layer_types": ["mamba", "attention"] * 2,
    "num_local_experts": 0,
    "shared_intermediate_size": 512,
    "mamba_n_heads": 8,
    "mamba_d_head": 64,
    "mamba_d_state": 32,
    "mamba_chunk_size": 64,
}


def make_model(directory: Path, shape: str) -> Path:
    """Write the model of this shape, unless it is there and whole. Returns the directory."""
    return _SHAPES[shape](directory)


def _maker(config: str, model: str, shape: Mapping[str, Any]) -> Callable[[Path], Path]:
    """A function that writes a model of these classes of transformers."""

    def write(directory: Path) -> None:
        import torch
        import transformers

        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            made = getattr(transformers, model)(getattr(transformers, config)(**shape, dtype="float32"))
        made.save_pretrained(directory)

    recipe = {"seed": SEED, "model": model, **shape}
    return lambda directory: write_once(directory, recipe, write)


_SHAPES = {
    "llama": make_llama,
    "gemma": _maker("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA),
    "deepseek": _maker("DeepseekV2Config", "DeepseekV2ForCausalLM", _DEEPSEEK),
    "dense": _maker("LlamaConfig", "LlamaForCausalLM", _DENSE),
    "granite": _maker("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM", _GRANITE),
}
