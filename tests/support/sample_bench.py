"""Runs the samples of one document, in order, in a directory of the test's own.

The documentation names places that a test may not touch. `PLACES` is the whole table of what stands in for
them. Python samples open tiers, so their tier documents are made smaller, too: `SIZES`.

What a language and a marker mean:

    python                      executed
    python, goes on             executed with the names that the Python sample above has left
    python, prints A, then B    executed as often as outputs are named, and prints them
    python, over stand-ins of F executed in a process whose vLLM is the stand-in F of `vllm_standins`
    json, tier-document [PATH]  a tier document that parses; it is then the one at PATH
    json, model PATH            the config.json of a model, which is then at PATH
    json, secondary-tier        an extra config of vLLM with kvtier's NVMe tier below vLLM's own
    console                     each `$ kvtier ...` exits with 0; lines below a command are its output
    console, run                the same, said aloud
    console, figures differ     of the output, the first column is compared
    console, first lines        of the output, only as many lines are compared as are shown
    console, exit N             the commands exit with N
    console, after s/OLD/NEW/   the tier documents are changed like that first
    any, slow                   tested with the slow tests
    any, file NAME              written to a package's directory, and then, if the marker says so:
        then pytest FILE            the tests in FILE pass there
        policy CLASS                the class is an eviction policy: a tier evicts by it
        command NAME                `kvtier NAME` is a command from here on
    any, not run: REASON        not run; the JSON of its --kv-transfer-config is checked all the same

A block with another language or marker fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import store_cli
from markdown_files import ROOT, Sample

from kvtier.factory import registry, room
from kvtier.factory.cli import app as cli
from kvtier.factory.config import load_config
from kvtier.factory.entries import NvmeConfig
from kvtier.factory.validation import validated
from kvtier.factory.vllm import options
from kvtier.tiers.pinned.arena import Arena
from kvtier.tiers.pinned.tier import PinnedTier
from kvtier.tiers.testing import aligned_buffers, pattern

PLACES = {
    "/etc/kvtier": "etc",
    "/mnt/nvme0": "nvme0",
    "/mnt/nvme1": "nvme1",
    "/models": "models",
    "/var/tmp/kvtier-library": "library",
    "/tmp/kvtier-report.html": "report.html",
    ".cache/kvtier-demo/nvme": "nvme0/kvtier",
}
SIZES = {"64GiB": "16MiB", "2TiB": "64MiB", "10%": "1MiB", "256MiB": "16MiB", "1GiB": "64MiB"}

DOCUMENT = "/etc/kvtier/tiers.json"  # there from the start; the one that README.md writes
STORE = "/mnt/nvme0/kvtier"  # with some chunks in it

TRANSFER_CONFIG = re.compile(r"--kv-transfer-config '(\{.*?\})'", re.DOTALL)
OWN_KEYS = {
    "spec_module_path",
    "spec_name",
    "kvtier",
    "block_size",
    "blocks_per_chunk",
    "offload_prompt_only",
}

RUN_WAIT_S = 120.0  # a few seconds on a free core


class SampleBench:
    """Where the samples of one document run. Each `run` fails the test if the sample does not work."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen = directory / "seen"  # places as commands see them
        self._opened = directory / "opened"  # the same for samples that open tiers
        self._package = directory / "package"
        self._monkeypatch = monkeypatch
        self._names: dict[str, Any] = {}  # of the last Python sample
        self._package.mkdir()
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(self._package)
        monkeypatch.setattr(registry.TIERS, "places", dict(registry.TIERS.places))
        monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))
        # How full this machine's drive is must not decide whether a sample works.
        roomy = partial(_with_everything_free, room.look)
        monkeypatch.setattr(room, "look", roomy)
        self._write_document(DOCUMENT, (ROOT / "examples" / "replay.json").read_text())
        store_cli.fill(self._place(STORE))

    def close(self) -> None:
        """Forget the modules that samples have made."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self._package)):
                del sys.modules[name]

    def run(self, sample: Sample) -> None:
        if sample.marker.startswith("not run: "):
            self._check_transfer_configs(sample)
            return
        options = [option for option in sample.marker.split(", ") if option not in ("", "slow")]
        if options and options[0].startswith("file "):
            self._write_file(options[0].removeprefix("file "), options[1:], sample)
        elif sample.language == "python":
            self._run_python(sample, options)
        elif sample.language == "json" and options:
            self._check_json(sample, *options)
        elif sample.language == "console":
            self._run_console(sample, options)
        else:
            raise AssertionError(f"no rule covers this block: {sample.language or 'no language'}")

    # Python.

    def _run_python(self, sample: Sample, options: list[str]) -> None:
        text = self._translated(sample.text, self._opened)
        if options and options[0].startswith("prints "):
            for option in options:
                self._names, output = {"__name__": "sample"}, io.StringIO()
                with contextlib.redirect_stdout(output):
                    exec(compile(text, sample.where, "exec"), self._names)
                _, _, said = option.partition(" ")
                assert output.getvalue() == f"{said}\n", f"it prints {output.getvalue()} and not {said}"
            return
        if not options or options == ["goes on"]:
            if not options:
                self._names = {"__name__": "sample"}
            exec(compile(text, sample.where, "exec"), self._names)
            return
        (option,) = options
        stand_in = option.removeprefix("over stand-ins of ")
        assert stand_in != option, f"no such rule: {option}"
        begin = f"import sys, vllm_standins\nsys.modules.update(vllm_standins.{stand_in}())\n"
        _succeed([sys.executable, "-c", begin + text], PYTHONPATH=str(ROOT / "tests" / "support"))

    def _write_file(self, name: str, options: list[str], sample: Sample) -> None:
        path = self._package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sample.text)
        importlib.invalidate_caches()
        if path.suffix == ".py":
            compile(sample.text, sample.where, "exec")
        for option in options:
            if option.startswith("then pytest "):
                self._run_pytest(option.removeprefix("then pytest "))
            elif option.startswith("policy "):
                self._use_policy(path, option.removeprefix("policy "))
            elif option.startswith("command "):
                cli.app.command()(getattr(_imported(path, self._package), option.removeprefix("command ")))
            else:
                raise AssertionError(f"no such rule: {option}")

    def _run_pytest(self, name: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        output = _succeed(command, cwd=self._package, PYTHONPATH=str(self._package), PYTEST_ADDOPTS="")
        assert re.search(r"\d+ passed", output), output
        assert "skipped" not in output, output

    def _use_policy(self, path: Path, class_name: str) -> None:
        policy = getattr(_imported(path, self._package), class_name)
        asyncio.run(_overfilled(PinnedTier(Arena.private(4, 4096, 1), policy)))

    # JSON.

    def _check_json(self, sample: Sample, kind: str) -> None:
        word, _, path = kind.partition(" ")
        if word == "tier-document":
            load_config(json.loads(self._translated(sample.text, self._seen)))
            if path:
                self._write_document(path, sample.text)
        elif word == "model":
            target = self._place(path)
            target.parent.mkdir(parents=True)
            target.write_text(sample.text)
        elif kind == "secondary-tier":
            _check_secondary_tiers(json.loads(sample.text))
        else:
            raise AssertionError(f"no such rule: {kind}")

    def _check_transfer_configs(self, sample: Sample) -> None:
        for text in transfer_configs(sample):
            config = json.loads(self._translated(text, self._seen))
            assert config["kv_connector"] == "OffloadingConnector", "kv_connector is vLLM's own"
            extra = config["kv_connector_extra_config"]
            assert set(extra) <= OWN_KEYS, f"neither vLLM nor kvtier reads {set(extra) - OWN_KEYS}"
            place = registry.SPECS.places[extra["spec_name"]]
            assert place.module_path == extra["spec_module_path"], f"the spec is in {place.module_path}"
            options.composite_spec(extra)

    def _write_document(self, path: str, text: str) -> None:
        for root in (self._seen, self._opened):
            target = self._place(path, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._translated(text, root))

    # Commands.

    def _run_console(self, sample: Sample, options: list[str]) -> None:
        status, loosely, in_part, document = 0, False, False, self._place(DOCUMENT)
        before = document.read_text()
        for option in options:
            change = re.fullmatch(r"after s/(.+)/(.+)/", option)
            if change is not None:
                assert change[1] in before, f"the document has no {change[1]}"
                document.write_text(before.replace(change[1], change[2]))
            elif option.startswith("exit "):
                status = int(option.removeprefix("exit "))
            else:
                assert option in ("run", "figures differ", "first lines"), f"no such rule: {option}"
                loosely = loosely or option == "figures differ"
                in_part = in_part or option == "first lines"
        for command, expected in _commands(sample.text):
            found_status, output = self._run_command(command)
            assert found_status == status, f"{command} exits with {found_status}, not {status}: {output}"
            if expected:
                found, said = self._written(output), "\n".join(expected)
                if in_part:
                    found = "\n".join(found.splitlines()[: len(expected)])
                same = _shown(found, loosely) == _shown(said, loosely)
                assert same, f"{command} prints\n{found}\nand not\n{said}"
        document.write_text(before)

    def _run_command(self, command: str) -> tuple[int, str]:
        words = shlex.split(self._translated(command, self._seen), comments=True)
        output_file = None
        if ">" in words:
            words, output_file = words[: words.index(">")], words[-1]
        assert words[0] == "kvtier", f"no rule covers this command: {words[0]}"
        self._monkeypatch.setattr(sys, "argv", words)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            with pytest.raises(SystemExit) as caught:
                cli.main()
        if output_file is not None:
            (self._package / output_file).write_text(output.getvalue())
        return int(caught.value.code or 0), output.getvalue()

    # Places.

    def _place(self, path: str, root: Path | None = None) -> Path:
        return Path(self._translated(path, root or self._seen))

    def _translated(self, text: str, root: Path) -> str:
        for written, here in PLACES.items():
            text = text.replace(written, str(root / here))
        if root == self._opened:
            for written, here in SIZES.items():
                text = text.replace(f'"{written}"', f'"{here}"')
        return text

    def _written(self, text: str) -> str:
        for written, here in PLACES.items():
            text = text.replace(str(self._seen / here), written)
        return text


def _with_everything_free(look: Callable[[Path], room.Found], path: Path) -> room.Found:
    found = look(path)
    return found._replace(free_bytes=found.whole_bytes)


def transfer_configs(sample: Sample) -> list[str]:
    """The JSON of each --kv-transfer-config in a sample."""
    return TRANSFER_CONFIG.findall(sample.text)


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command with the lines of output that are shown below it."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block begins with a command: $ ..."
    for part in parts[1:]:
        command, *output = part.rstrip("\n").split("\n")
        yield command, output


def _shown(output: str, loosely: bool) -> list[str]:
    """Output as it is compared: without the widths of columns, which depend on what is in them."""
    lines = output.splitlines()
    if loosely:
        return [re.split(r"\s{2,}", line.strip())[0] for line in lines]
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip()]


def _check_secondary_tiers(extra: dict[str, Any]) -> None:
    assert extra["spec_name"] == "TieringOffloadingSpec", "secondary tiers are read by TieringOffloadingSpec"
    for tier in extra["secondary_tiers"]:
        entry = dict(tier)
        module = importlib.import_module(entry.pop("module_path"))
        assert entry.pop("type") in module.__all__, f"no such tier in {module.__name__}"
        entry.pop("weights_epoch", None)
        validated(NvmeConfig, {"type": "nvme", **entry}, "secondary_tiers")


async def _overfilled(tier: PinnedTier) -> None:
    """Store more than fits, with loads between: what is there reads back, and the policy agrees."""
    keys = [b"chunk-%d" % number for number in range(10)]
    try:
        for first in range(0, 10, 2):
            batch = keys[first : first + 2]
            buffers = aligned_buffers(2, 4096)
            for key, buffer in zip(batch, buffers, strict=True):
                buffer[:] = pattern(key, 4096)
            assert (await tier.store(batch, buffers)).succeeded == tuple(batch)
            await tier.load(batch[:1], aligned_buffers(1, 4096))
            tier.table.check()
        held = [key for key, found in zip(keys, tier.lookup(keys), strict=True) if found]
        assert len(held) == 4
        buffers = aligned_buffers(4, 4096)
        assert (await tier.load(held, buffers)).succeeded == tuple(held)
        assert [bytes(buffer) for buffer in buffers] == [pattern(key, 4096) for key in held]
    finally:
        await tier.close()


def _imported(path: Path, package: Path) -> Any:
    return importlib.import_module(".".join(path.relative_to(package).with_suffix("").parts))


def _succeed(command: list[str], cwd: Path = ROOT, **environment: str) -> str:
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=RUN_WAIT_S,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    return output
