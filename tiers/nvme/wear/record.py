"""What was written to the drive, and how fast, as the index notes it; no clock can spoil it.

    written     raised with each commit; since the store was made. After a power loss it goes on from the last
                checkpoint, by the segments that were opened since (`store/frame.py`)
    recent      bytes, and the time in which they were written, both fading alike: their quotient is the rate
    debt        what a write budget has spent beyond its income, at the last note

Only the machine's monotonic clock is asked. It is the same for all processes, it starts at zero with the
machine, and nobody sets it. So what has passed since the last note is known exactly, or where the machine was
started again, at least in part. Time in which nobody has the store open is none in which it is used up.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..index.transaction import Transaction

WRITTEN, ENDURANCE = "written_bytes", "endurance_bytes"
_NOTED, _NOTED_AT, _DEBT = "noted_bytes", "noted_at_ms", "debt_bytes"
_RECENT_BYTES, _RECENT_TIME = "recent_bytes", "recent_ms"

DAY_MS = 86_400_000
FADES_MS = 7 * DAY_MS  # to a third: a rate over about a week, with its weekend
YEAR_DAYS = 365.25
NOTE_PERIOD_MS = 60_000  # an idle store changes its index no more often


class Wear(NamedTuple):
    """The numbers of one moment.

    Attributes:
        written_bytes: written since the store was made.
        noted_bytes: how many of them were noted as `recent`.
        endurance_bytes: what the drive is rated for, 0 where nobody said.
        capacity_bytes: the cap, which is what one drive write writes.
    """

    written_bytes: int = 0
    noted_bytes: int = 0
    noted_at_ms: int = 0
    recent_bytes: int = 0
    recent_ms: int = 0
    debt_bytes: int = 0
    endurance_bytes: int = 0
    capacity_bytes: int = 0

    @staticmethod
    def of(txn: Transaction) -> Wear:
        names = (WRITTEN, _NOTED, _NOTED_AT, _RECENT_BYTES, _RECENT_TIME, _DEBT, ENDURANCE, "capacity_bytes")
        return Wear(*map(txn.number, names))

    @property
    def fresh_bytes(self) -> int:
        """Written since the last note."""
        return self.written_bytes - self.noted_bytes

    @property
    def bytes_a_day(self) -> float:
        """How much is written a day in use, over about the last week; on the first day, what was written."""
        return (self.recent_bytes + self.fresh_bytes) * DAY_MS / max(self.recent_ms, DAY_MS)

    @property
    def drive_writes_a_day(self) -> float:
        return self.bytes_a_day / self.capacity_bytes if self.capacity_bytes else 0.0

    @property
    def years_left(self) -> float | None:
        """Years in use until the drive's endurance is written; None where that cannot be said."""
        if not self.endurance_bytes or not self.bytes_a_day:
            return None
        return max(0, self.endurance_bytes - self.written_bytes) / self.bytes_a_day / YEAR_DAYS

    def gauges(self) -> dict[str, float]:
        """The same for statistics, by name."""
        gauges = {
            "written_bytes": float(self.written_bytes),
            "written_bytes_a_day": float(round(self.bytes_a_day)),
            "drive_writes_a_day": round(self.drive_writes_a_day, 6),
        }
        return gauges if self.years_left is None else gauges | {"years_left": round(self.years_left, 3)}

    def noted(self, now_ms: int, opened_ms: int, debt_bytes: int) -> Wear:
        """What to note now, by who has had the store open since `opened_ms`."""
        passed_ms = self.unnoted_ms(now_ms, opened_ms)
        fades = math.exp(-passed_ms / FADES_MS)
        return self._replace(
            noted_bytes=self.written_bytes,
            noted_at_ms=now_ms,
            recent_bytes=round(self.recent_bytes * fades) + self.fresh_bytes,
            recent_ms=round(self.recent_ms * fades) + passed_ms,
            debt_bytes=debt_bytes,
        )

    def unnoted_ms(self, now_ms: int, opened_ms: int) -> int:
        """For how long nobody has noted anything, as far as the store was open."""
        others_ms = (
            self.noted_at_ms if self.noted_at_ms <= now_ms else 0
        )  # else the machine was started since
        return max(0, now_ms - max(opened_ms, others_ms))

    def passed_ms(self, now_ms: int) -> int:
        """What has passed at least since the last note, whoever had the store open."""
        return now_ms - self.noted_at_ms if self.noted_at_ms <= now_ms else now_ms

    def put(self, txn: Transaction) -> None:
        txn.set_number(_NOTED, self.noted_bytes)
        txn.set_number(_NOTED_AT, self.noted_at_ms)
        txn.set_number(_RECENT_BYTES, self.recent_bytes)
        txn.set_number(_RECENT_TIME, self.recent_ms)
        txn.set_number(_DEBT, self.debt_bytes)


def add_written(txn: Transaction, size_bytes: int) -> None:
    """Count what was written to the drive."""
    txn.set_number(WRITTEN, txn.number(WRITTEN) + size_bytes)


def note_unknown(txn: Transaction) -> None:
    """Nobody knows when what was written so far was: it is of no rate, and of no budget."""
    txn.set_number(_NOTED, txn.number(WRITTEN))
