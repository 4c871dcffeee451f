"""Writes docs/faults.md: every fault that is tried, what the caller sees, what is lost, how it heals.

    python tools/fault_matrix.py           # runs tests/faults and writes the table
    python tools/fault_matrix.py -k full   # tries some, and writes nothing

The rows stand beside the tests, as `@fault(...)`; what a run adds is whether they hold on this machine.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "faults"
TABLE = ROOT / "docs" / "faults.md"
HEAD = """\
# Faults

What goes wrong around a store, and what kvtier makes of it. Every row is a test in `tests/faults/`, on real
file systems, with real kills and real second processes. `make fault-matrix` tries them all and writes this
file; a test compares its rows with the tests.

*holds*: tried, and so. *open*: does not hold yet, for the reason that the test names. *not tried*: the
machine of the last run could not. Every load is compared byte by byte: what fails its checksum is a miss.

Two longer runs (`make crash`, 2026-11-26, ext4, two busy cores): 2,000 kills of one process at random
moments, and three processes on one directory for ten minutes, killed 3,096 times in all and started again
at once. No chunk that was flushed was lost, no byte was wrong, the cap held, `fsck --deep` found nothing.

A soak (`make soak`, 2026-11-26, ext4, two cores with a load of 10 to 17): engines of four processes in 30
directories one after the other, small and roomy, for ten minutes; 158 kills, 50 pauses, 183 starts, 24,060
chunks stored, 8,418 loaded, 2,212 calls hit by a fault, 733 flushes that returned. Of 2,015 chunks that
these were for none was missing after a restart, of 299 removed ones none was back, no byte was wrong, at
most 94% of a cap was taken, nothing was left pinned, open or running. The two processes that lived all the
time grew by 0.9 and 0.6 MB a minute over the last half, -0.4 and 0.9 in a run before: no trend that ten
minutes can tell. That run had found segments whose trailers did not list all of their chunks, after reads
that were refused at a takeover; they get no trailer since. One directory of 64 MiB ended without a
checkpoint, for which its index had grown too large; the index then stays in shared memory.

The same on an idle machine (`python tools/soak.py --seconds 600`, seed 4078180739) did ten times the work:
233 kills, 449 starts, 199,111 chunks stored, 104,915 loaded, 5,301 flushes that returned. No byte was
wrong, nothing flushed was missing, at most 94% of a cap was taken. The two processes that lived all the
time grew by 2.5 and 3.3 MiB a minute, above the 2 MiB that the soak allows. That was memory which glibc
keeps for threads to come; it stops growing after some 250 engines
([decisions.md](decisions.md#memory-of-a-process-that-opens-many-engines)). With one arena for all threads,
under a load of 10 to 19 (251 starts, 191 kills, 59,968 chunks stored, 24,376 loaded), they grew by 0.2 and
0.0 MB a minute.
"""
COLUMNS = ("fault", "the caller sees", "what is lost", "how it heals", "")


class Row(NamedTuple):
    """One fault, and the test that shows it."""

    file: str
    test: str
    what: str
    sees: str
    loses: str
    heals: str

    @property
    def cells(self) -> tuple[str, ...]:
        return self[2:]


def rows() -> list[Row]:
    """All rows, as they stand beside the tests, in the order of files and lines."""
    return [row for path in sorted(TESTS.glob("test_*.py")) for row in _rows_of(path)]


def title(file: str) -> str:
    """What the tests of one file are about: its docstring."""
    return ast.get_docstring(ast.parse((TESTS / file).read_text())) or file


def _rows_of(path: Path) -> Iterator[Row]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "fault":
                    texts = {str(one.arg): ast.literal_eval(one.value) for one in decorator.keywords}
                    yield Row(path.name, node.name, ast.literal_eval(decorator.args[0]), **texts)


def outcomes(arguments: list[str]) -> dict[tuple[str, str], str]:
    """Run the tests; what came of each, by file and test."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [sys.executable, "-m", "pytest", str(TESTS), f"--junit-xml={report}", *arguments]
        subprocess.run(command, cwd=ROOT, check=False)
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for case in ElementTree.parse(report).iter("testcase"):
            file = f"{case.attrib['classname'].rpartition('.')[2]}.py"
            found[file, case.attrib["name"].partition("[")[0]].add(_outcome(case))
    return {test: _worst(all_of_it) for test, all_of_it in found.items()}


def _outcome(case: ElementTree.Element) -> str:
    skipped = case.find("skipped")
    if case.find("failure") is not None or case.find("error") is not None:
        return "**fails**"
    if skipped is None:
        return "holds"
    return "open" if skipped.attrib.get("type") == "pytest.xfail" else "not tried"


def _worst(found: set[str]) -> str:
    return next(one for one in ("**fails**", "open", "not tried", "holds") if one in found)


def table(found: dict[tuple[str, str], str]) -> str:
    """The whole document."""
    lines, file = [HEAD], ""
    for row in rows():
        if row.file != file:
            file = row.file
            lines += [f"## {title(file)}\n" if len(lines) == 1 else f"\n## {title(file)}\n"]
            lines += [f"| {' | '.join(COLUMNS)} |".replace("|  |", "| |"), f"|{' --- |' * len(COLUMNS)}"]
        lines.append(f"| {' | '.join(row.cells)} | {found.get((row.file, row.test), 'not tried')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _, arguments = parser.parse_known_args()
    found = outcomes(arguments)
    if not arguments:
        TABLE.write_text(table(found))
    return int("**fails**" in found.values())


if __name__ == "__main__":
    sys.exit(main())
