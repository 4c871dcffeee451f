"""Bytes a token by `config.json` alone.

The figures were worked out by hand from what papers and model cards say: layers, times KV heads, times head
size, times 2, times bytes of an element. Each configuration lacks the fields that the published file lacks.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from kvtier.factory.sizing.defaults import DEFAULTS
from kvtier.factory.sizing.layout import Parallel, layout_of
from kvtier.factory.sizing.model import Layers, Unknown, model_of
from kvtier.tiers import ConfigError

KIB = 1024

LLAMA_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = {**LLAMA_8B, "num_hidden_layers": 80, "num_attention_heads": 64, "hidden_size": 8192}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_nextn_predict_layers": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_size": 2880,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}
GEMMA3_4B = {  # the file leaves heads and their size to the class
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 27, "hidden_size": 1152},
}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "Llama 3.1 8B": (LLAMA_8B, 128 * KIB),
    "Llama 3.1 70B": (LLAMA_70B, 320 * KIB),
    "Llama 2 7B": (  # before grouped heads
        {k: v for k, v in LLAMA_8B.items() if k != "num_key_value_heads"},
        512 * KIB,
    ),
    "SmolLM2 135M": (
        {
            "model_type": "llama",
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_size": 576,
            "dtype": "bfloat16",
        },
        23_040,
    ),
    "Qwen3 8B": (
        {
            "model_type": "qwen3",
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_size": 4096,
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": 36,
            "torch_dtype": "bfloat16",
        },
        144 * KIB,
    ),
    "Qwen2.5 7B": (  # a window that is not used
        {
            "model_type": "qwen2",
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "hidden_size": 3584,
            "sliding_window": 131072,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
        },
        56 * KIB,
    ),
    "DeepSeek V3": (DEEPSEEK_V3, 70_272),
    "gpt-oss 20B": (GPT_OSS, 48 * KIB),
    "Gemma 3 4B": (GEMMA3_4B, 2 * 34 * 4 * 256 * 2),
    "Gemma 3n E4B": (  # its last 15 layers use the cache of others
        {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}, "torch_dtype": "bfloat16"},
        2 * 20 * 2 * 256 * 2,
    ),
    "Mistral 7B v0.1": (
        {**LLAMA_8B, "model_type": "mistral", "sliding_window": 4096},
        128 * KIB,
    ),
    "Falcon 7B": (
        {
            "model_type": "falcon",
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "hidden_size": 4544,
            "multi_query": True,
            "torch_dtype": "bfloat16",
        },
        8 * KIB,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_bytes_of_a_token_are_those_of_the_papers(name: str) -> None:
    document, token_bytes = MODELS[name]
    assert model_of(document, kv_dtype="auto").token_bytes == token_bytes


def test_the_type_of_the_cache_counts_and_not_that_of_the_weights() -> None:
    assert model_of(LLAMA_8B, kv_dtype="fp8").token_bytes == 64 * KIB
    assert model_of(DEEPSEEK_V3, kv_dtype="auto").kv_dtype == "bfloat16"
    quantized = {**LLAMA_8B, "quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}
    with pytest.raises(Unknown, match="kv-cache-dtype"):
        model_of(quantized, kv_dtype="auto")
    assert model_of(quantized, kv_dtype="fp8_e4m3").token_bytes == 64 * KIB
    with pytest.raises(ConfigError, match="is not one of auto, bfloat16"):
        model_of(LLAMA_8B, kv_dtype="nvfp4")


@pytest.mark.parametrize("dtype", [{}, {"torch_dtype": "float32"}])
def test_a_type_that_is_taken_for_granted_is_said(dtype: dict[str, str]) -> None:
    model = model_of({**{k: v for k, v in LLAMA_8B.items() if k != "torch_dtype"}, **dtype}, kv_dtype="auto")
    assert model.kv_dtype == "bfloat16"
    assert len(model.assumed) == 1


def test_layers_are_told_apart_by_how_far_they_look() -> None:
    assert model_of(GPT_OSS, kv_dtype="auto").layers == (
        Layers("full", 12, 8, 128),
        Layers("sliding", 12, 8, 128, 128),
    )
    full, sliding = model_of(GEMMA3_4B, kv_dtype="auto").layers
    assert (full.count, sliding.count, sliding.window_tokens) == (5, 29, 1024)
    (all_sliding,) = model_of(MODELS["Mistral 7B v0.1"][0], kv_dtype="auto").layers
    assert (all_sliding.kind, all_sliding.count) == ("sliding", 32)
    upper = {**MODELS["Qwen2.5 7B"][0], "use_sliding_window": True, "max_window_layers": 20}
    assert [one.count for one in model_of(upper, kv_dtype="auto").layers] == [20, 8]
    pattern = {**LLAMA_8B, "model_type": "exaone4", "sliding_window": 4096, "sliding_window_pattern": "LLLG"}
    assert [one.count for one in model_of(pattern, kv_dtype="auto").layers] == [8, 24]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "jamba", "attn_layer_period": 8, "mamba_d_state": 16}, "recurrent layers"),
        ({"layer_types": ["linear_attention", "full_attention"] * 16}, "recurrent layers"),
        ({"model_type": "qwen3_next", "full_attention_interval": 4}, "recurrent layers"),
        ({"model_type": "nemotron-nas", "block_configs": [{}]}, "its layers differ"),
        ({"num_key_value_heads": [8, 4, 8]}, "its layers differ"),
        ({"model_type": "gemma4_text", "global_head_dim": 512}, "heads of different sizes"),
        ({"model_type": "mimo", "head_dim": 192, "v_head_dim": 128}, "different sizes"),
        ({"model_type": "hunyuan", "use_cla": True}, "share their cache"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder with a decoder"),
        ({"model_type": "minicpm3", "kv_lora_rank": 256}, "may keep its latent"),
        ({**DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128}, "an index for sparse"),
    ],
)
def test_what_the_file_alone_does_not_tell_is_refused_and_never_guessed(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(Unknown, match=why) as caught:
        model_of({**LLAMA_8B, **changes}, kv_dtype="auto")
    assert "kvtier's first line" in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Unknown, match='unheard: "num_hidden_layers" is missing'):
        model_of({"model_type": "unheard", "num_attention_heads": 8, "hidden_size": 64}, kv_dtype="fp8")
    with pytest.raises(ConfigError, match='"num_hidden_layers" should be a number, not "32"'):
        model_of({**LLAMA_8B, "num_hidden_layers": "32"}, kv_dtype="auto")
    with pytest.raises(ConfigError, match='no "model_type"'):
        model_of({"tiers": []}, kv_dtype="auto")


ODD = [0, -1, 1.5, "x", "", [], [1], ["x"], [None], {}, {"a": 1}, True, 10**30]
READ = {
    *(
        "model_type",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "head_dim",
    ),
    *("layer_types", "sliding_window", "sliding_window_pattern", "num_kv_shared_layers", "max_window_layers"),
    *("use_sliding_window", "attention_chunk_size", "v_head_dim", "kv_lora_rank", "quantization_config"),
    *("text_config", "multi_query", "use_cla", "num_nextn_predict_layers", "dtype", "torch_dtype"),
}


@pytest.mark.parametrize("field", sorted(READ))
@pytest.mark.parametrize(
    "document", [LLAMA_8B, GEMMA3_4B, GPT_OSS, DEEPSEEK_V3], ids=lambda one: one["model_type"]
)
def test_an_odd_value_is_refused_in_words_or_of_no_matter(document: dict[str, Any], field: str) -> None:
    for value in ODD:
        with suppress(ConfigError):
            model = model_of({**document, field: value}, kv_dtype="auto")
            assert model.token_bytes > 0
            assert model.summary()
            assert layout_of(model, Parallel()).blocks_per_chunk > 0


def test_more_heads_than_numbers_for_them_are_refused() -> None:
    with pytest.raises(ConfigError, match='"hidden_size" is 8, too few for 32 heads'):
        model_of({**LLAMA_8B, "hidden_size": 8}, kv_dtype="auto")


def test_an_unknown_type_with_the_usual_fields_is_computed_and_marked() -> None:
    model = model_of({**LLAMA_8B, "model_type": "unheard"}, kv_dtype="auto")
    assert (model.token_bytes, model.is_known) == (128 * KIB, False)
    assert model_of(LLAMA_8B, kv_dtype="auto").is_known


@pytest.mark.parametrize(
    ("document", "parallel", "rank_block_bytes", "parts", "groups"),
    [
        (LLAMA_8B, Parallel(), 2 << 20, 1, 1),
        (LLAMA_70B, Parallel(tensor=4), 5 * 16 * 16 * KIB, 4, 1),
        (LLAMA_70B, Parallel(tensor=16), 2 * 80 * 128 * 2 * 16, 16, 1),  # each head twice
        (LLAMA_70B, Parallel(tensor=2, pipeline=4), 2 * 20 * 4 * 128 * 2 * 16, 8, 1),
        (DEEPSEEK_V3, Parallel(tensor=8), 70_272 * 64, 1, 1),  # the same on all ranks
        (GPT_OSS, Parallel(), 24 * KIB * 16, 1, 2),
        (GPT_OSS, Parallel(one_group=True), 48 * KIB * 16, 1, 1),
        (GEMMA3_4B, Parallel(), 5 * 4 * KIB * 16, 1, 7),  # 5 full, and 29 sliding in six groups of 5
        ({**LLAMA_8B, "attention_chunk_size": 8192}, Parallel(), 2 << 20, 1, 1),
    ],
)
def test_blocks_are_laid_out_as_vllm_does(
    document: dict[str, Any], parallel: Parallel, rank_block_bytes: int, parts: int, groups: int
) -> None:
    layout = layout_of(model_of(document, kv_dtype="auto"), parallel)
    assert (layout.rank_block_bytes, layout.parts, layout.groups_count) == (rank_block_bytes, parts, groups)


def test_a_chunk_has_as_few_blocks_as_a_drive_likes() -> None:
    layout = layout_of(model_of(LLAMA_8B, kv_dtype="auto"), Parallel())
    assert (layout.blocks_per_chunk, layout.chunk_bytes(1), layout.chunk_tokens(1)) == (1, 2 << 20, 16)
    small = layout_of(model_of(MODELS["SmolLM2 135M"][0], kv_dtype="auto"), Parallel())
    assert (small.block_bytes, small.blocks_per_chunk) == (360 * KIB, 1)
    falcon = layout_of(model_of(MODELS["Falcon 7B"][0], kv_dtype="auto"), Parallel())
    assert (falcon.blocks_per_chunk, falcon.chunk_bytes(2)) == (2, 256 * KIB)
    gpt_oss = layout_of(model_of(GPT_OSS, kv_dtype="auto"), Parallel())
    assert (gpt_oss.chunk_tokens(1), gpt_oss.token_bytes) == (8, 48 * KIB)


def test_parts_are_whole_pages() -> None:
    odd = {**LLAMA_8B, "num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 72}
    layout = layout_of(model_of(odd, kv_dtype="auto"), Parallel(tensor=2))
    assert layout.rank_block_bytes == 2 * 72 * 2 * 16
    assert layout.chunk_bytes(1) == 2 * 2 * 4096


def test_what_cannot_be_divided_is_refused() -> None:
    model = model_of(LLAMA_8B, kv_dtype="auto")
    with pytest.raises(ConfigError, match="8 KV heads, which cannot be divided among 3"):
        layout_of(model, Parallel(tensor=3))
    with pytest.raises(ConfigError, match="equally many"):
        layout_of(model, Parallel(pipeline=3))
    with pytest.raises(ConfigError, match="groups of 12 layers"):
        layout_of(model_of(GPT_OSS, kv_dtype="auto"), Parallel(pipeline=8))


@pytest.mark.vllm
@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_file_leaves_out_is_what_transformers_fills_in(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[name]()
    ours = model_of({"model_type": name}, kv_dtype="bfloat16")
    for field, value in DEFAULTS[name].items():
        if not field.endswith("_pattern"):
            assert getattr(config, field) == value, field
    types = getattr(config, "layer_types", None)
    if types is None:
        assert len(ours.layers) == 1
        return
    own = types[: len(types) - getattr(config, "num_kv_shared_layers", 0)]
    for one in ours.layers:
        assert own.count(f"{one.kind}_attention") == one.count
