"""What a journal does without, said in its process's log.

Owns: saying each thing once. Refuses: judging it: a journal that cannot do without raises.

A journal has no logging: what goes wrong with its snapshots costs nothing now, is kept in its
attributes, and would be news when the log itself is damaged as well.
"""

import logging
from typing import Any

from ray_stream.journal.journal import Journal

LOG = logging.getLogger(__name__)


class JournalWatch:
    """Looks at one journal, now and then."""

    def __init__(self, journal: Journal[Any, Any, Any], name: str) -> None:
        """Args: journal: replayed; name: what it is, for the log."""
        self._journal = journal
        self._name = name
        self._damaged = 0
        self._failure = ""

    def look(self) -> None:
        """Log what is new since the last look; any thread may call it, one at a time."""
        for damage in self._journal.damaged_snapshots[self._damaged :]:
            LOG.warning("the %s was opened without a snapshot: %s", self._name, damage)
            self._damaged += 1
        error = self._journal.snapshot_error
        failure = "" if error is None else f"{type(error).__name__}: {error}"
        if failure and failure != self._failure:
            LOG.warning(
                "no snapshot of the %s could be kept; nothing is lost, and its log grows until one "
                "can: %s",
                self._name,
                failure,
            )
        elif self._failure and not failure:
            LOG.warning("a snapshot of the %s was kept again", self._name)
        self._failure = failure
