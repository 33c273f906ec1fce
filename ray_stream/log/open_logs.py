"""Which logs have files open, so that descriptors stay few however many partitions there are.

Owns: the order in which logs were written to, and which of them close their files. Refuses:
syncing, locks (they have a descriptor of their own), reading (it opens files for each use).

A log is asked to rest once there are more than a limit in front of it. One with something unsynced
declines: its owner syncs it, in the background as long as there are fewer than twice the limit, and
at once when there are more.
"""

from itertools import islice
from typing import Generic, Protocol, TypeVar

KeyT = TypeVar("KeyT")
LOOKS_MAX = 64
"""Logs that are asked in one round: of many that decline, not all again each time."""


class Resting(Protocol):
    """What can close its files: `PartitionLog`."""

    def rest(self) -> bool:
        """Close them until the next write; False: something unsynced is in the way."""
        ...


class OpenLogs(Generic[KeyT]):
    """The logs of one owner that may have files open."""

    def __init__(self, limit: int) -> None:
        """Args: limit: so many may, if all can rest; at least 1."""
        assert limit > 0, "the log that is written to is open"
        self._limit = limit
        self._logs: dict[KeyT, Resting] = {}

    def __len__(self) -> int:
        return len(self._logs)

    def used(self, key: KeyT, log: Resting) -> KeyT | None:
        """This one was written to just now.

        Returns:
            The one that must rest at once, whatever it takes; None: there is room.
        """
        logs = self._logs
        logs.pop(key, None)
        logs[key] = log
        return next(iter(logs)) if len(logs) > 2 * self._limit else None

    def forget(self, key: KeyT) -> None:
        """This one is closed, or was made to rest."""
        self._logs.pop(key, None)

    def rest(self) -> list[KeyT]:
        """Have those rest that were not used for longest, down to the limit.

        Returns:
            Those that declined: they want a sync.
        """
        declined = []
        over = min(LOOKS_MAX, len(self._logs) - self._limit)
        for key in list(islice(self._logs, max(0, over))):
            if self._logs[key].rest():
                del self._logs[key]
            else:
                declined.append(key)
        return declined
