"""What happened in a simulated run: one line for each event, one hash for all of them.

Owns: the lines and the hash. Refuses: meaning. Two runs with the same hash were the same run, so a
seed that gives another hash in another process has found nondeterminism.
"""

import hashlib
from collections import deque
from collections.abc import Callable

LINES_KEPT = 400


class Trace:
    """Takes lines; keeps the last ones and the hash of all."""

    def __init__(self, sink: Callable[[str], None] | None = None) -> None:
        """Args: sink: is given every line as it comes; None: nobody reads along."""
        self._hash = hashlib.blake2b(digest_size=16)
        self._sink = sink
        self.last: deque[str] = deque(maxlen=LINES_KEPT)
        self.events = 0

    def add(self, at_ms: int, who: str, what: str) -> None:
        """Note one event.

        Args:
            at_ms: virtual time.
            who: the process or part that it happened to.
            what: on one line, the same in every process: no `id`, no `hash`, no iterated set.
        """
        line = f"{at_ms:>9} {who}: {what}"
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        self.events += 1
        self.last.append(line)
        if self._sink is not None:
            self._sink(line)

    @property
    def digest(self) -> str:
        """The hash so far, in hexadecimal."""
        return self._hash.hexdigest()
