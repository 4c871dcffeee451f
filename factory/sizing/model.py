"""What a model keeps of each token, worked out from its `config.json` as vLLM does.

Only what vLLM is known to lay out evenly is computed. Where it depends on more than the file says (recurrent
layers, layers of several shapes), the model is refused: a figure that is wrong costs more than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from ...tiers import ConfigError
from ..text.wording import shown
from .defaults import DEFAULTS

Kind = Literal["full", "sliding", "latent"]

ELEMENT_BYTES: Mapping[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}

START_LINE = "start a server once: kvtier's first line in its log says bytes a token and a chunk"

NUMBER_MAX = 1 << 24  # of layers, heads, sizes: a larger one is no model's

_HALF = "bfloat16"
_INNER = ("text_config", "llm_config", "language_config")  # the model of text in one of text and pictures
_NAMES = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_key_value_heads": ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels", "hidden_size_per_head"),
}
# Types whose latent vLLM keeps as it is; for others it may keep keys and values in full.
_LATENT = frozenset(("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "pangu_ultra_moe", "axk1"))
_LAYER_KINDS: Mapping[str, Kind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
}
_RECURRENT_PREFIXES = (
    "mamba",
    "ssm_",
    "rwkv",
    "lru_",
    "linear_attn",
    "linear_num",
    "linear_conv",
    "linear_key",
)
_RECURRENT = frozenset(
    (
        "hybrid_override_pattern",
        "layers_block_type",
        "block_types",
        "attn_layer_period",
        "attn_layer_indices",
        "attn_type_list",
        "full_attention_interval",
    )
)
_UNEVEN = {
    "block_configs": "its layers differ",
    "per_layer_config": "its layers differ",
    "global_head_dim": "its full and its sliding layers have heads of different sizes",
    "swa_head_dim": "its full and its sliding layers have heads of different sizes",
    "swa_num_key_value_heads": "its full and its sliding layers have different numbers of heads",
    "attention_other_setting": "its layers differ",
    "compress_ratios": "it compresses its cache",
    "index_head_dim": "beside the latent it keeps an index for sparse attention",
    "attn_config": "its heads are described in a way that kvtier does not read",
    "transf_decoder": "it is an encoder with a decoder",
}


class Unknown(ConfigError):
    """The file does not say enough; a running server does."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one kind, which keep the same of a token.

    Attributes:
        heads: of keys and values; one of a latent, which every rank keeps whole.
        head_elements: numbers of one head and token in one layer: key and value, or the latent.
        window_tokens: how many tokens back such a layer looks; None for all.
    """

    kind: Kind
    count: int
    heads: int
    head_elements: int
    window_tokens: int | None = None

    def rank_elements(self, tensor: int) -> int:
        """Numbers of one token in one layer on one of so many ranks; too few heads are repeated."""
        return max(1, self.heads // tensor) * self.head_elements


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its cache sees it.

    Attributes:
        name: its type.
        kv_dtype: of keys and values.
        is_known: kvtier knows how such models keep their cache; else it was taken from their usual fields.
        assumed: what was taken for granted, as sentences.
        is_chunked: its sliding layers attend within chunks, for which vLLM makes no groups of their own.
    """

    name: str
    kv_dtype: str
    layers: tuple[Layers, ...]
    is_known: bool
    assumed: tuple[str, ...] = ()
    is_chunked: bool = False

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.kv_dtype]

    @property
    def layers_count(self) -> int:
        return sum(layers.count for layers in self.layers)

    @property
    def is_latent(self) -> bool:
        return self.layers[0].kind == "latent"

    @property
    def token_bytes(self) -> int:
        """Of one token in all layers, on one device that has the whole model."""
        return sum(one.count * one.heads * one.head_elements for one in self.layers) * self.element_bytes

    def summary(self) -> str:
        """Layers and heads, in one line for people."""
        first = self.layers[0]
        if self.is_latent:
            heads = f"latent of {first.head_elements}"
        else:
            heads = f"{first.heads} KV heads of {first.head_elements // 2}"
        kinds = [
            f"{one.count} sliding over {one.window_tokens:,}" for one in self.layers if one.window_tokens
        ]
        mixed = f", {', '.join(kinds)}" if kinds and len(self.layers) > 1 else ""
        return f"{self.name} ({self.layers_count} layers{mixed}, {heads}, {self.kv_dtype})"


def model_of(document: Mapping[str, Any], *, kv_dtype: str) -> Model:
    """Work out what a model keeps.

    Args:
        document: its `config.json`.
        kv_dtype: what vLLM gets as `--kv-cache-dtype`; "auto" for the model's own.

    Raises:
        ConfigError: the file lacks something; or it is a model whose cache the file alone does not describe.
    """
    fields = _Fields(document)
    fields.refuse_unknown_shapes()
    dtype, assumed = _dtype(fields, kv_dtype)
    if fields.get("num_nextn_predict_layers"):
        assumed = (*assumed, "the layers for speculative decoding are not counted")
    return Model(
        name=fields.type,
        kv_dtype=dtype,
        layers=_latent(fields) if fields.get("kv_lora_rank") else _headed(fields),
        is_known=fields.type in DEFAULTS or fields.type in _LATENT,
        assumed=assumed,
        is_chunked="chunked_attention" in fields.layer_types or bool(fields.number("attention_chunk_size")),
    )


class _Fields:
    """The fields of the model of text, by whatever name, with transformers' own where one is left out."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        inner = next((document[name] for name in _INNER if isinstance(document.get(name), Mapping)), document)
        self.type = str(inner.get("model_type") or document.get("model_type") or "")
        if not self.type:
            raise ConfigError("--model", 'there is no "model_type" in it; name the config.json of a model')
        self.outer, self._written = document, inner
        self._fields = {**DEFAULTS.get(self.type, {}), **inner}

    def get(self, name: str) -> Any:
        """The value of a field, None where there is none."""
        known = (self._fields.get(alias) for alias in _NAMES.get(name, (name,)))
        return next((value for value in known if value is not None), None)

    def count(self, name: str) -> int:
        """The value of a field that has to be there, and a whole number.

        Raises:
            ConfigError: it is not.
        """
        value = self.number(name)
        if value is None:
            raise Unknown("--model", f'{self.type}: "{name}" is missing in it, so its KV cannot be computed')
        if value < 1:
            raise ConfigError("--model", f'{self.type}: "{name}" should be a number above 0, not {value}')
        return value

    def number(self, name: str) -> int | None:
        """The value of a field that may be left out, and else is a whole number.

        Raises:
            ConfigError: it is something else.
        """
        value = self.get(name)
        if isinstance(value, list | Mapping):
            self.refuse("its layers differ")
        if value is None or (
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value < NUMBER_MAX
        ):
            return value
        raise ConfigError("--model", f'{self.type}: "{name}" should be a number, not {shown(value)}')

    @property
    def layer_types(self) -> Sequence[str]:
        """The kind of each layer as the file lists them; none where it does not.

        Raises:
            ConfigError: it is no list of kinds, or not of as many layers as there are.
        """
        types = self.get("layer_types")
        if not types:
            return ()
        if not isinstance(types, list) or not all(isinstance(one, str) for one in types):
            raise ConfigError("--model", f'{self.type}: "layer_types" should be a list of names')
        if len(types) != self.count("num_hidden_layers"):
            raise ConfigError(
                "--model", f'{self.type}: "layer_types" has {len(types)} layers, not as many as there are'
            )
        return types

    def refuse(self, why: str) -> NoReturn:
        raise Unknown(
            "--model", f"{self.type}: {why}, so the file alone does not say how large its KV is; {START_LINE}"
        )

    def refuse_unknown_shapes(self) -> None:
        """Refuse a model whose cache the file alone does not describe.

        Raises:
            Unknown: says why, and what to do.
        """
        there = {name for name, value in self._fields.items() if value not in (None, False, [], {})}
        if "is_encoder_decoder" in there or self.outer.get("is_encoder_decoder"):
            self.refuse("it is an encoder with a decoder")
        kinds = set(self.layer_types)
        if (
            kinds - _LAYER_KINDS.keys()
            or there & _RECURRENT
            or any(name.startswith(_RECURRENT_PREFIXES) for name in there)
        ):
            self.refuse("it has recurrent layers, whose blocks vLLM sizes as it starts")
        for name, why in _UNEVEN.items():
            if name in there:
                self.refuse(why)
        if "use_cla" in there:
            self.refuse("its layers share their cache")
        if "kv_lora_rank" in there and self.type not in _LATENT:
            self.refuse("vLLM may keep its latent, or keys and values in full")


def _dtype(fields: _Fields, kv_dtype: str) -> tuple[str, tuple[str, ...]]:
    """The type of keys and values, and what was assumed for it."""
    if kv_dtype != "auto":
        if kv_dtype not in ELEMENT_BYTES:
            known = ", ".join(sorted(ELEMENT_BYTES))
            raise ConfigError("--kv-cache-dtype", f'"{kv_dtype}" is not one of auto, {known}')
        return kv_dtype, ()
    if _has_quantized_cache(fields.get("quantization_config") or fields.outer.get("quantization_config")):
        raise Unknown(
            "--kv-cache-dtype",
            "the model's quantization_config speaks of its cache; name the type that the server uses, "
            "such as fp8 or bfloat16",
        )
    written = next(
        (
            where[name]
            for where in (fields.outer, fields._written)
            for name in ("dtype", "torch_dtype")
            if where.get(name)
        ),
        None,
    )
    if written is None:
        return _HALF, (f"{_HALF}, as the file names no type",)
    if written == "float32":
        return _HALF, (f"{_HALF}, as vLLM serves models of float32 by default",)
    if not isinstance(written, str) or written not in ELEMENT_BYTES:
        raise ConfigError(
            "--model", f"{fields.type}: {shown(written)} is an unknown type; pass --kv-cache-dtype"
        )
    return written, ()


def _has_quantized_cache(found: object) -> bool:
    if not isinstance(found, Mapping):
        return False
    inner = found.get("quantization")
    nested = inner if isinstance(inner, Mapping) else {}
    names = ("kv_cache_scheme", "kv_cache_quant_algo")
    return any(where.get(name) for where in (found, nested) for name in names)


def _latent(fields: _Fields) -> tuple[Layers, ...]:
    elements = fields.count("kv_lora_rank") + fields.count("qk_rope_head_dim")
    return (Layers("latent", fields.count("num_hidden_layers"), 1, elements),)


def _headed(fields: _Fields) -> tuple[Layers, ...]:
    elements, heads = 2 * _head_size(fields), _kv_heads(fields)
    kinds = _kinds(fields)
    window = fields.number("sliding_window") or fields.number("attention_chunk_size")
    found = [
        Layers(kind, kinds.count(kind), heads, elements, window if kind == "sliding" else None)
        for kind in ("full", "sliding")
        if kind in kinds
    ]
    return tuple(found)


def _head_size(fields: _Fields) -> int:
    if fields.number("head_dim"):
        size = fields.count("head_dim")
    else:
        hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
        size = hidden // heads
        if not size:
            raise ConfigError(
                "--model", f'{fields.type}: "hidden_size" is {hidden}, too few for {heads} heads'
            )
    if (fields.number("v_head_dim") or size) != size:
        fields.refuse("its keys and its values have different sizes")
    return size


def _kv_heads(fields: _Fields) -> int:
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return 1
    if fields.number("num_key_value_heads"):
        return fields.count("num_key_value_heads")
    return fields.count("num_attention_heads")


def _kinds(fields: _Fields) -> Sequence[Kind]:
    """The kind of each layer that has a cache of its own."""
    own_count = fields.count("num_hidden_layers") - (fields.number("num_kv_shared_layers") or 0)
    if own_count < 1:
        raise ConfigError("--model", f"{fields.type}: no layer has a cache of its own")
    if fields.layer_types:
        return [_LAYER_KINDS[name] for name in fields.layer_types[:own_count]]
    if not fields.number("sliding_window") or fields.get("use_sliding_window") is False:
        return ["full"] * own_count
    pattern = fields.get("sliding_window_pattern") or fields.get("_sliding_window_pattern")
    if isinstance(pattern, str):  # such as LLLG: local layers, and a global one
        return ["full" if pattern[i % len(pattern)] == "G" else "sliding" for i in range(own_count)]
    step = fields.number("sliding_window_pattern") or fields.number("_sliding_window_pattern")
    if step:
        return ["sliding" if (i + 1) % step else "full" for i in range(own_count)]
    first = fields.number("max_window_layers") if fields.get("use_sliding_window") else None
    return ["sliding" if first is None or i >= first else "full" for i in range(own_count)]
