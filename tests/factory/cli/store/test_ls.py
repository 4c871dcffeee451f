from __future__ import annotations

from pathlib import Path

from nvme_rig import keys_of, stored
from store_cli import CHUNKS, run, run_json, with_tier

from kvtier.tiers.nvme.store.namespaces import Identity


def test_ls_shows_each_namespace_and_its_fields(path: Path) -> None:
    other = Identity({"model": "other", "dtype": "float16"})
    with_tier(path, lambda tier: stored(tier, keys_of(0, 3)), identity=other)
    found = {one["label"]: one for one in run_json("ls", str(path))["namespaces"]}
    assert {label: one["chunks"] for label, one in found.items()} == {"m": CHUNKS, "other": 3}
    assert found["m"]["never_read_chunks"] == CHUNKS - 10
    assert found["m"]["hits"] == 10
    assert found["other"]["fields"] == {"model": "other", "dtype": "float16"}
    code, text = run("ls", str(path))
    assert code == 0
    assert "float16" not in text
    assert found["m"]["digest"][:12] in text, "as much as rm needs, on a narrow terminal too"
    code, text = run("ls", str(path), "--fields")
    assert code == 0
    assert "float16" in text


def test_ls_says_in_which_fields_two_namespaces_of_one_model_differ(path: Path) -> None:
    other = Identity({"model": "m", "dtype": "float16", "tp": "2"})
    with_tier(path, lambda tier: stored(tier, keys_of(0, 3)), identity=other)
    code, text = run("ls", str(path))
    assert code == 0
    after = text[text.index("differs from namespaces of the same label") :]
    assert "bfloat16" in after
    assert "float16" in after
    assert "model" not in after
