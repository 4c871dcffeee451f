"""The systems that are compared: kvtier as it is, without syncs, of another revision, and its peers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PEERS = {"vllm_fs": "vllm", "lmcache": "lmcache"}  # and the package that each is of


@dataclass(frozen=True, slots=True)
class System:
    """What its process needs to know.

    Attributes:
        kind: which store: "kvtier", "vllm_fs" or "lmcache".
        checkout: where kvtier is imported from.
        sync_delay_s: how much longer each sync takes.
        skips_syncs: whether kvtier leaves its syncs out.
        segment_bytes: of kvtier's segments; None for what the cap gives.
    """

    name: str
    kind: str
    checkout: Path
    sync_delay_s: float
    skips_syncs: bool
    segment_bytes: int | None

    @property
    def syncs_itself(self) -> bool:
        return self.kind == "kvtier" and not self.skips_syncs


def systems(
    *, sync_delay_s: float, segment_bytes: int | None, revision: tuple[str, Path] | None
) -> list[System]:
    """Everybody who takes part; `revision` is another one's name and checkout."""

    def system(name: str, kind: str, checkout: Path, *, skips_syncs: bool) -> System:
        return System(name, kind, checkout, sync_delay_s, skips_syncs, segment_bytes)

    found = [system("kvtier", "kvtier", CHECKOUT, skips_syncs=False)]
    if sync_delay_s:
        found.append(system("kvtier_no_sync", "kvtier", CHECKOUT, skips_syncs=True))
    if revision is not None:
        name, checkout = revision
        found.append(system(f"kvtier@{name}", "kvtier", checkout, skips_syncs=False))
    return found + [system(name, name, CHECKOUT, skips_syncs=False) for name in peers()]


def peers() -> list[str]:
    """Those that are installed here."""
    return [name for name, package in PEERS.items() if find_spec(package) is not None]
