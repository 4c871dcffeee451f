"""What `du`, `ls`, `rm` and `fsck` have in common: a store, which a server may have open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nvme_rig import keys_of, right
from store_cli import CHUNKS, run, with_tier

from kvtier.factory.cli.app import main
from kvtier.tiers.nvme.tier import NvmeTier


@pytest.mark.parametrize("command", [["du"], ["ls"], ["rm", "--all", "--yes"], ["fsck"]])
def test_a_path_without_a_store_is_one_message_and_wrong_input(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kvtier", *command, str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path} is not a kvtier store: it has no kvtier.json\n"
    assert list(tmp_path.iterdir()) == []


def test_all_four_work_while_a_server_has_the_directory_open(path: Path) -> None:
    async def work(tier: NvmeTier) -> None:
        for command in (["du"], ["ls"], ["fsck", "--deep", "--repair"], ["rm", "--never-read"]):
            code, output = await asyncio.to_thread(run, command[0], str(path), *command[1:])
            assert code == 0, output
        assert await right(tier, keys_of(0, CHUNKS)) == keys_of(0, 10)

    with_tier(path, work)
