"""Which leader epoch wrote which offsets.

Owns: the list epoch → first offset, and the highest epoch ever claimed. Refuses: files (the list
lives in the checkpoint) and deciding who leads.

An epoch that wrote nothing leaves no entry: the next one begins at the same offset and replaces it.
The highest claimed epoch never goes back, whatever is cut off the log.
"""

from bisect import bisect_right
from collections.abc import Iterable

from ray_stream.errors import FencedLeaderEpochError
from ray_stream.types import NO_EPOCH, NO_OFFSET


class LeaderEpochs:
    """The epochs of one log, oldest first."""

    __slots__ = ("_entries", "claimed")

    def __init__(self, claimed: int = NO_EPOCH, entries: Iterable[tuple[int, int]] = ()) -> None:
        self.claimed = claimed
        """The highest epoch that ever began here."""
        self._entries: list[tuple[int, int]] = list(entries)

    @property
    def entries(self) -> tuple[tuple[int, int], ...]:
        """(epoch, first offset), both ascending."""
        return tuple(self._entries)

    def copy(self) -> "LeaderEpochs":
        """An independent copy."""
        return LeaderEpochs(self.claimed, self._entries)

    def begin(self, epoch: int, offset: int) -> None:
        """A leader of `epoch` begins to write at `offset`.

        Raises:
            FencedLeaderEpochError: the epoch is not above the highest claimed.
        """
        if epoch <= self.claimed:
            raise FencedLeaderEpochError(
                f"leader epoch {epoch} was claimed, and {self.claimed} is the highest here: "
                "claim one above it"
            )
        self.claimed = epoch
        self.observe(epoch, offset)

    def observe(self, epoch: int, offset: int) -> None:
        """A batch of `epoch` stands at `offset`; known epochs change nothing."""
        if self._entries and self._entries[-1][0] >= epoch:
            return
        while self._entries and self._entries[-1][1] >= offset:
            self._entries.pop()
        self._entries.append((epoch, offset))
        self.claimed = max(self.claimed, epoch)

    def truncate(self, end_offset: int) -> None:
        """Everything from `end_offset` on was cut off."""
        while self._entries and self._entries[-1][1] >= end_offset:
            self._entries.pop()

    def advance(self, start_offset: int) -> None:
        """Everything below `start_offset` left the log."""
        keep = bisect_right([offset for _, offset in self._entries], start_offset) - 1
        if keep >= 0:
            epoch, offset = self._entries[keep]
            self._entries[: keep + 1] = [(epoch, max(offset, start_offset))]

    def end_of(self, epoch: int, end_offset: int) -> tuple[int, int]:
        """Where the greatest epoch at or below `epoch` ends: (that epoch, end offset).

        (-1, -1): no such epoch is known, or `epoch` is above everything claimed here.
        """
        if epoch > self.claimed:
            return NO_EPOCH, NO_OFFSET
        found = NO_EPOCH
        for known, offset in self._entries:
            if known > epoch:
                return (found, offset) if found != NO_EPOCH else (NO_EPOCH, NO_OFFSET)
            found = known
        return (found, end_offset) if found != NO_EPOCH else (NO_EPOCH, NO_OFFSET)
