"""A real vLLM while the file system below it is frozen, as by a snapshot of a backup."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from loop_rig import drive, needs
from mounts import run
from prompts import Prompt
from vllm_phases import MakeServer

pytestmark = [pytest.mark.vllm, pytest.mark.root, pytest.mark.timeout(600)]

FREEZE_S = 12.0


def test_fresh_prompts_are_answered_while_the_file_system_is_frozen(
    make_server: MakeServer, tmp_path: Path, prompts: list[Prompt]
) -> None:
    needs("fsfreeze")
    with drive("ext4", tmp_path) as made:
        nvme = {"type": "nvme", "path": str(made.point / "store"), "capacity": "128MiB", "reserve": "0GiB"}
        tiers = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capacity": "64MiB"}, nvme]}
        with make_server(tiers=tiers) as server:
            (cold,) = server.generate([prompts[0]])
            server.drain()
            run("fsfreeze", "-f", made.point)
            thawed_s = time.monotonic() + FREEZE_S
            try:
                answered = 0
                while time.monotonic() < thawed_s:  # fresh ones, which are stored, and known ones in turn
                    (answer,) = server.generate([[*prompts[1], answered]], forget=False)
                    answered += 1
                    (again,) = server.generate([prompts[0]])
                    assert again.tokens == cold.tokens
                    assert answer.tokens
            finally:
                # It fails where the file system was not frozen any more: then nothing was shown.
                thawed = subprocess.run(["fsfreeze", "-u", str(made.point)], check=False, capture_output=True)
            assert thawed.returncode == 0, thawed.stderr
            assert answered > 1
            server.drain()
            (warm,) = server.generate([prompts[0]], forget=True)
            assert warm.tokens == cold.tokens
