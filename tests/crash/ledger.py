"""What a log promised, and by which operation of its disk it had promised it.

Every entry carries numbers of disk operations: a promise made when `at` operations were done binds
every crash at `at` operations or later; something begun at `at` may show in any crash behind it.
"""

from dataclasses import dataclass, field, replace

from ray_stream.records.header import HEADER_BYTES, BatchHeader

NEVER = 2**63


@dataclass(slots=True)
class Entry:
    """One batch that was written."""

    written_at: int
    """The operation before this one wrote it."""
    header: BatchHeader
    sent: bytes
    """As it was sent: header and payload."""
    producer: tuple[int, int, int]
    """Id, epoch, first sequence."""
    refused: bool = False
    """A full disk took it and gave it back: nobody was shown it, unless it is found again."""
    synced_at: int = NEVER
    """The log said that it is durable."""
    cutting_at: int = NEVER
    """A truncation began to remove it."""
    cut_at: int = NEVER
    """That truncation is durable."""

    @property
    def key(self) -> tuple[int, int]:
        """Base offset and leader epoch."""
        return self.header.base_offset, self.header.leader_epoch

    @property
    def base_offset(self) -> int:
        return self.header.base_offset

    @property
    def next_offset(self) -> int:
        return self.header.next_offset

    @property
    def payload(self) -> bytes:
        return self.sent[HEADER_BYTES:]

    @property
    def next_sequence(self) -> int:
        return self.producer[2] + self.next_offset - self.base_offset


@dataclass(slots=True)
class Ledger:
    """All promises of one run."""

    entries: list[Entry] = field(default_factory=list)
    starts: list[tuple[int, int, int]] = field(default_factory=list)
    """(begun at, durable at, log start)."""
    epochs: list[tuple[int, int]] = field(default_factory=list)
    """(durable at, leader epoch)."""

    def synced(self, at: int, end_offset: int) -> None:
        """The log said that everything below `end_offset` is durable."""
        for entry in self.entries:
            if entry.next_offset <= end_offset and entry.cut_at == NEVER:
                entry.synced_at = min(entry.synced_at, at)

    def truncated(self, begun_at: int, done_at: int, offset: int) -> None:
        """Batches at or behind `offset` were cut off."""
        for entry in self.entries:
            if entry.next_offset > offset and entry.cut_at == NEVER:
                entry.cutting_at, entry.cut_at = begun_at, done_at

    def required(self, crash_at: int, *, killed: bool) -> list[Entry]:
        """What must be there after a crash: of a power loss what was synced, else what was written.

        Batches in front of the log start are among them: who checks knows where it stands.
        """
        return [
            entry
            for entry in self.entries
            if (entry.written_at if killed else entry.synced_at) <= crash_at <= entry.cutting_at
        ]

    def allowed(self, crash_at: int) -> dict[tuple[int, int], Entry]:
        """What may be there, by (base offset, leader epoch)."""
        return {
            entry.key: entry
            for entry in self.entries
            if entry.written_at <= crash_at < entry.cut_at
        }

    def written(self, crash_at: int) -> list[Entry]:
        """What was ever written and not refused; someone may have seen it."""
        return [e for e in self.entries if e.written_at <= crash_at and not e.refused]

    def log_starts(self, crash_at: int) -> tuple[int, int]:
        """The least and the greatest log start that a crash may leave."""
        least = max((start for _, done, start in self.starts if done <= crash_at), default=0)
        most = max((start for begun, _, start in self.starts if begun < crash_at), default=0)
        return least, max(least, most)

    def leader_epoch(self, crash_at: int) -> int:
        """The epoch that must not be forgotten."""
        return max((epoch for at, epoch in self.epochs if at <= crash_at), default=-1)

    def after_crash(
        self,
        crash_at: int,
        begun_at: int,
        recovered_at: int,
        there: set[tuple[int, int]],
        log_start: int,
    ) -> "Ledger":
        """What binds the life after a crash; it counts its own operations.

        Whatever the recovered log showed was readable, so it must stay from `recovered_at` on; what
        it did not show must not come back.
        """
        next_life = Ledger(epochs=[(begun_at, self.leader_epoch(crash_at))])
        least, _ = self.log_starts(crash_at)
        next_life.starts = [
            (begun_at - 1, begun_at, least),
            (begun_at - 1, recovered_at, log_start),
        ]
        for entry in self.entries:
            if entry.written_at > crash_at:
                continue
            promised = entry.synced_at <= crash_at <= entry.cutting_at
            gone = entry.cut_at <= crash_at
            is_there = entry.key in there
            # Retention takes the records, not what is remembered of their producers.
            is_there |= entry.next_offset <= log_start and not gone
            next_life.entries.append(
                replace(
                    entry,
                    written_at=begun_at,
                    refused=entry.refused and not is_there,
                    synced_at=begun_at if promised else recovered_at if is_there else NEVER,
                    cutting_at=NEVER if is_there else begun_at - 1,
                    cut_at=NEVER if is_there else begun_at - 1 if gone else recovered_at,
                )
            )
        return next_life
