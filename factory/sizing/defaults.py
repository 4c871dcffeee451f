"""Fields that a model's `config.json` may leave out, as transformers then fills them in, by type of model."""

from __future__ import annotations

from collections.abc import Mapping

Fields = Mapping[str, int]

_LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
_GEMMA2 = {
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 2304,
    "head_dim": 256,
    "sliding_window": 4096,
}

DEFAULTS: Mapping[str, Fields] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {**_LLAMA, "num_key_value_heads": 8},
    "qwen2": {**_LLAMA, "num_key_value_heads": 32},
    "qwen2_moe": {
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_size": 2048,
    },
    "qwen3": {**_LLAMA, "num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "hidden_size": 2048,
    },
    "phi3": {**_LLAMA, "hidden_size": 3072},
    "gemma": {
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_size": 3072,
        "head_dim": 256,
    },
    "gemma2": {**_GEMMA2, "sliding_window_pattern": 2},
    "gemma3_text": {**_GEMMA2, "sliding_window_pattern": 6},
    "gemma3n_text": {
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_size": 2048,
        "head_dim": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 5,
        "num_kv_shared_layers": 15,
    },
    "cohere": {"num_hidden_layers": 40, "num_attention_heads": 64, "hidden_size": 8192},
    "cohere2": {
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "hidden_size": 8192,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    "gpt_oss": {
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "hidden_size": 2880,
        "head_dim": 64,
        "sliding_window": 128,
        "sliding_window_pattern": 2,
    },
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": {**_LLAMA, "sliding_window": 4096, "sliding_window_pattern": 4},
    "glm4": {
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "hidden_size": 4096,
        "head_dim": 128,
    },
    "glm4_moe": {
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
    },
    "smollm3": {
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "hidden_size": 2048,
    },
    "deepseek_v2": {"num_hidden_layers": 32, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    "deepseek_v3": {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
}
