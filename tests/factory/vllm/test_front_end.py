"""A mistake in kvtier's options, in the process that the operator starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tiny_llama import make_llama

from kvtier.factory.vllm.options import MODULE, OWN_CONNECTOR, SPEC
from kvtier.tiers.errors import ConfigError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # whatever vLLM warns of
]

GOOD = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capacity": "64MiB"}]}
BAD = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capcity": "64MiB"}]}
MESSAGE = r'tiers\[1\].capcity: unknown key; did you mean "capacity"'


def extra(document: dict[str, Any]) -> dict[str, Any]:
    return {"spec_module_path": MODULE, "spec_name": SPEC, "kvtier": document}


@pytest.mark.slow
def test_kvtiers_connector_has_the_front_end_refuse_where_graphs_are_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqdm import tqdm  # type: ignore[import-untyped]
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # it starts a thread
    # As on every GPU. The rest of the platform stays the CPU's: no engine is started.
    monkeypatch.setattr(type(current_platform), "support_static_graph_mode", classmethod(lambda _: True))
    make_llama(tmp_path / "model")

    def configured(document: dict[str, Any]) -> Any:
        transfer = KVTransferConfig(
            kv_connector=OWN_CONNECTOR,
            kv_connector_module_path=MODULE,
            kv_role="kv_both",
            kv_connector_extra_config=extra(document),
        )
        engine = EngineArgs(model=str(tmp_path / "model"), dtype="float32", kv_transfer_config=transfer)
        return engine.create_engine_config()

    assert configured(GOOD).kv_transfer_config.kv_connector == OWN_CONNECTOR
    with pytest.raises(ValueError, match=MESSAGE):
        configured(BAD)


def test_who_shows_the_metrics_refuses_what_the_scheduler_refuses() -> None:
    from kvtier.factory.vllm import CompositeOffloadingSpec

    assert CompositeOffloadingSpec.build_metric_definitions(extra(GOOD))
    with pytest.raises(ConfigError, match=MESSAGE):
        CompositeOffloadingSpec.build_metric_definitions(extra(BAD))
