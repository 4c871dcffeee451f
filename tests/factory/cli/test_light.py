"""The commands of kvtier-core: none needs torch or numpy, which only kvtier brings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MODEL = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 256,
    "dtype": "bfloat16",
}

# Each command in turn, in one interpreter that has neither.
RUN = """
import json, sys
sys.modules["torch"] = sys.modules["numpy"] = None
from kvtier.factory.cli import app
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        app.main()
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""


def test_every_command_runs_without_torch_and_numpy(path: Path, file: Path, tmp_path: Path) -> None:
    trace, replayed = tmp_path / "trace.jsonl", tmp_path / "replayed.json"
    trace.write_text('{"hash_ids": [1, 2]}\n')
    model = tmp_path / "config.json"
    model.write_text(json.dumps(MODEL))
    tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": "1GiB"}]
    nvme = {"type": "nvme", "path": "/nowhere/kvtier", "capacity": "1TiB"}
    replayed.write_text(json.dumps({"version": 1, "tiers": [*tiers, nvme]}))
    store = str(path)
    commands = [
        ["schema"],
        ["completion", "bash"],
        ["init", str(tmp_path / "made.json"), "--pinned", "32MiB", "--nvme", "none"],
        ["check", str(file)],
        ["explain", str(replayed), "--model", str(model)],
        ["doctor", store],
        ["replay", str(trace), "--config", str(replayed)],
        *([command, store, "--json"] for command in ("du", "ls")),
        ["rm", store, "--never-read"],
        ["fsck", store, "--deep", "--repair"],
    ]
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
