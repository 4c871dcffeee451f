"""kvtier's options in vLLM's `--kv-transfer-config`, most of them in its `kv_connector_extra_config`.

vLLM takes any key there, and says nothing about one that nobody reads. So a key that is surely meant for
kvtier, or that asks for what kvtier does otherwise, is refused with what to write instead. Any other is only
warned of: a later vLLM, or a class derived from kvtier's, may read it.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...tiers.errors import ConfigError
from ..config import KvtierConfig
from ..entries import NvmeConfig, PinnedConfig
from ..text.wording import listed, quoted, shown
from ..validation import validated

if TYPE_CHECKING:
    from ..composite import CompositeSpec

logger = logging.getLogger(__name__)

EXTRA = "kv_connector_extra_config"
KEY = "kvtier"
MODULE = "kvtier.factory.vllm"
SPEC = "CompositeOffloadingSpec"
TIERING_SPEC = "TieringOffloadingSpec"  # vLLM's own, below whose CPU tier kvtier's may stand
NATIVE_TIER = "KvtierNvmeTier"
SECONDARY = "secondary_tiers"
CPU_BYTES = "cpu_bytes_to_use"
CONNECTOR = "OffloadingConnector"
CONNECTOR_MODULE = "kv_connector_module_path"
OWN_CONNECTOR = "KvtierConnector"
MULTI = "MultiConnector"
ROLES = ("kv_both", "kv_producer", "kv_consumer")
CHUNK_SIZES = ("block_size", "blocks_per_chunk")  # in tokens, in the server's blocks
CHUNK_KEYS = frozenset({*CHUNK_SIZES, "offload_prompt_only"})
CANONICAL = "canonical_layout"
IN_OWN_LAYOUT = "kvtier stores blocks in the server's own layout; remove this key"
VLLM_KEYS = frozenset(
    {
        *CHUNK_KEYS,
        "spec_name",
        "spec_module_path",
        "self_describing_kv_events",
        CANONICAL,
        "sync_load_budget_bytes",
    }
)
"""What vLLM's connector and its base class of specs read, in whatever release."""

_MEMORY = (
    'set "capacity" of the pinned tier instead, and leave out --kv-offloading-size, which may have set it'
)
_THRESHOLD = "kvtier stores every chunk that vLLM offers; remove it"
REPLACED: Mapping[str, str] = {
    "num_cpu_blocks": _MEMORY,
    "kv_bytes_per_rank": _MEMORY,
    CPU_BYTES: _MEMORY,
    "eviction_policy": 'set "policy" of the pinned tier instead',
    "cache_policy_module_path": 'set "policy" and "policy_module_path" of the pinned tier instead',
    "store_threshold": _THRESHOLD,
    "max_tracker_size": _THRESHOLD,
    SECONDARY: 'add each as an entry of "tiers" in the document instead',
    "backpressure": "kvtier bounds its own queues; remove it",
}
"""What vLLM's own specs read, and where kvtier has it."""

NOT_THE_TIERS = frozenset({"module_path", "weights_epoch", "backpressure"})
"""What an entry of `KvtierNvmeTier` has beside the keys of an `nvme` tier."""

_EXAMPLE = (
    f'write {{"kv_connector": "{CONNECTOR}", "kv_role": "kv_both", "{EXTRA}": {{"spec_module_path": '
    f'"{MODULE}", "spec_name": "{SPEC}", "{KEY}": "/path/of/tiers.json"}}}}'
)

NEAR_RATIO_MIN = 0.85  # one or two slips in a word; other keys of vLLM's have half of their letters in common


def extra_of_transfer(config: Any) -> Mapping[str, Any]:
    """kvtier's options in a whole `--kv-transfer-config`; what they are in is checked.

    Raises:
        ConfigError: vLLM would refuse it later, or not use kvtier.
    """
    if not isinstance(config, Mapping):
        raise ConfigError("", f"{shown(config)} is not an object; {_EXAMPLE}")
    for key in config:
        if key in (KEY, *VLLM_KEYS):
            raise ConfigError(key, f"belongs inside; move it into the object under {quoted(EXTRA)}")
    if config.get("kv_connector") == MULTI:
        _expect_role(config)
        return extra_of_transfer(_one_of_several(config.get(EXTRA)))
    if config.get("kv_connector") == OWN_CONNECTOR:
        _expect(config, CONNECTOR_MODULE, MODULE)
    else:
        _expect(config, "kv_connector", CONNECTOR)
        if config.get(CONNECTOR_MODULE) is not None:
            raise ConfigError(CONNECTOR_MODULE, f"belongs to {quoted(OWN_CONNECTOR)}; remove it")
    _expect_role(config)
    extra = config.get(EXTRA)
    if not isinstance(extra, Mapping):
        raise ConfigError(EXTRA, f"is missing or not an object; {_EXAMPLE}")
    if config.get("kv_connector") == CONNECTOR and native_entries(extra):
        return extra
    _expect(extra, "spec_name", SPEC, f"{EXTRA}.")
    _expect(extra, "spec_module_path", MODULE, f"{EXTRA}.")
    return extra


def native_entries(extra: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries of kvtier's NVMe tier below vLLM's own CPU tier, by their place; none for a chain."""
    entries = extra.get(SECONDARY) if extra.get("spec_name") == TIERING_SPEC else None
    return {
        f"{EXTRA}.{SECONDARY}[{index}]": entry
        for index, entry in enumerate(entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping) and entry.get("type") == NATIVE_TIER
    }


def document_of_native(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a chain's document would say of vLLM's CPU tier and of kvtier's tiers below it.

    Raises:
        ConfigError: the size of vLLM's tier is missing, or one of kvtier's entries is wrong.
    """
    if extra.get(CPU_BYTES) is None:
        raise ConfigError(f"{EXTRA}.{CPU_BYTES}", "is missing; set it to the size of vLLM's CPU tier")
    tiers: list[Mapping[str, Any]] = [{"type": "gpu"}, {"type": "pinned", "capacity": extra[CPU_BYTES]}]
    for place, entry in native_entries(extra).items():
        _expect(entry, "module_path", MODULE, f"{place}.")
        own = {key: value for key, value in entry.items() if key not in NOT_THE_TIERS} | {"type": "nvme"}
        validated(NvmeConfig, own, place)
        tiers.append(own)
    return {"version": 1, "tiers": tiers}


def _one_of_several(extra: Any) -> Any:
    """The part of a connector of several that is kvtier's."""
    parts = extra.get("connectors") if isinstance(extra, Mapping) else None
    listed_parts = parts if isinstance(parts, list) else []
    own = [
        part for part in listed_parts if isinstance(part, Mapping) and part.get("kv_connector") == CONNECTOR
    ]
    if len(own) != 1:
        where = f"{EXTRA}.connectors"
        raise ConfigError(where, f"{len(own)} entries with {quoted(CONNECTOR)}; kvtier needs one")
    return own[0]


def _expect_role(config: Mapping[str, Any]) -> None:
    role = config.get("kv_role")
    if role is None:
        raise ConfigError("kv_role", 'is missing; add "kv_role": "kv_both"')
    if role not in ROLES:
        raise ConfigError("kv_role", f'{shown(role)} is none of vLLM\'s roles; set it to "kv_both"')


def _expect(config: Mapping[str, Any], key: str, value: str, place: str = "") -> None:
    found = config.get(key)
    if found is None:
        raise ConfigError(f"{place}{key}", f'is missing; add "{key}": "{value}"')
    if found != value:
        raise ConfigError(f"{place}{key}", f"{shown(found)} is not kvtier's; set it to {quoted(value)}")


def composite_spec(extra_config: Mapping[str, Any]) -> CompositeSpec:
    """Build the chain's spec from the document under `kvtier`, given inline or by path.

    Raises:
        ConfigError: it is missing or wrong, or beside it stands what it contradicts or should have inside.
    """
    from ..composite import CompositeSpec  # the command line has no use for what it imports

    return CompositeSpec.from_config(checked_document(extra_config))


def checked_document(extra_config: Mapping[str, Any]) -> str | Mapping[str, Any]:
    """The document under `kvtier`, or its path, not looked into; what stands beside it is checked.

    Raises:
        ConfigError: it is missing, or beside it stands what it contradicts or should have inside.
    """
    for key in extra_config:
        message = _refusal(key, extra_config)
        if message is not None:
            raise ConfigError(f"{EXTRA}.{key}", message)
    document = extra_config.get(KEY)
    if document in (None, ""):
        raise ConfigError(
            f"{EXTRA}.{KEY}",
            "is missing; set it to the tier-config document, or to the path of a JSON file with it",
        )
    checked: str | Mapping[str, Any] = document
    return checked


def warn_of_unread(extra_config: Mapping[str, Any]) -> None:
    """Name the keys that neither kvtier nor any vLLM it knows reads."""
    for warning in unread(extra_config):
        logger.warning("kvtier: %s", warning)


def unread(extra_config: Mapping[str, Any]) -> list[str]:
    """What is to be said of the keys that neither kvtier nor any vLLM it knows reads."""
    keys = extra_config.keys() - VLLM_KEYS - {KEY}
    return [f"nothing in kvtier reads {listed(keys)} in {EXTRA}"] if keys else []


def _refusal(key: str, extra_config: Mapping[str, Any]) -> str | None:
    """Why the key may not stand there, and what to write instead."""
    if key in CHUNK_SIZES:
        return _refused_size(key, {name: extra_config.get(name) for name in CHUNK_SIZES})
    if key == CANONICAL and extra_config[key]:
        return IN_OWN_LAYOUT
    if key == KEY or key in VLLM_KEYS:
        return None
    if key in REPLACED:
        return f"is an option of vLLM's own specs, which kvtier replaces; {REPLACED[key]}"
    if key in KvtierConfig.model_fields:
        return f"belongs inside the document; move it into the object under {quoted(KEY)}"
    if key in PinnedConfig.model_fields or key in NvmeConfig.model_fields:
        return f"belongs to a tier; move it into the tier's entry in the document under {quoted(KEY)}"
    meant = _meant(key, (KEY, *CHUNK_KEYS, *KvtierConfig.model_fields))
    if meant is None:
        return None
    place = f" of the document under {quoted(KEY)}" if meant in KvtierConfig.model_fields else ""
    too = "; it is there, too" if meant in extra_config else ""
    return f"unknown key; did you mean {quoted(meant)}{place}?{too}"


def _refused_size(key: str, sizes: Mapping[str, Any]) -> str | None:
    if None not in sizes.values():
        return f"{listed(sizes)} say the same; keep one of them"
    value = sizes[key]
    try:
        is_size = value is None or int(value) > 0  # as vLLM reads it
    except (TypeError, ValueError, OverflowError):
        is_size = False
    return None if is_size else f"should be a whole number above zero, not {shown(value)}"


def _meant(key: str, names: Iterable[str]) -> str | None:
    """The name that this is surely a slip of."""
    word = key.lower().replace("-", "_")
    if KEY in word.replace("_", ""):
        return KEY
    near = difflib.get_close_matches(word, names, n=1, cutoff=NEAR_RATIO_MIN)
    return near[0] if near else None
