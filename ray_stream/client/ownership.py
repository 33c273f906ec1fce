"""Who may use a consumer now: one thread at a time, in the process that made it.

Owns: the check at every public call, until it is closed. Refuses: waiting for another thread.
"""

import os
import threading
from collections.abc import Callable
from types import TracebackType

from ray_stream.errors import (
    ClosedError,
    ConcurrentAccessError,
    ForkedProcessError,
    RayStreamError,
)


class Ownership:
    """A context around every public call; calls may nest in one thread."""

    def __init__(self, what: str, on_interrupt: Callable[[], None]) -> None:
        """Watch over one object.

        Args:
            what: the object, for messages: "this consumer".
            on_interrupt: called when a call ends by anything but our own errors, Ctrl-C for
                instance: it may have been left half done.
        """
        self._what = what
        self._on_interrupt = on_interrupt
        # Of this kind because it nests, and because Ctrl-C between taking it and noting that can
        # only leave it with the thread that has it.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self.is_closed = False

    @property
    def is_forked(self) -> bool:
        """Whether this is the copy in a forked child."""
        return os.getpid() != self._pid

    def __enter__(self) -> None:
        if self.is_forked:
            raise ForkedProcessError(
                f"{self._what} was made in process {self._pid} and used in its fork "
                f"{os.getpid()}: make another one there"
            )
        if not self._lock.acquire(blocking=False):
            raise ConcurrentAccessError(
                f"{self._what} is in use by another thread: give each thread one of its own"
            )
        if self.is_closed:
            self._lock.release()
            raise ClosedError(f"{self._what} was closed: make another one")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None and not issubclass(kind, RayStreamError):
                self._on_interrupt()
        finally:
            self._lock.release()
