"""Who reads the answers of a process: a thread that waits for one of them, or else the I/O thread.

Owns: the reading role, and that it comes back from whoever has left. Refuses: connections, frames,
and what an answer means (`rpc.links`).

A thread that waits for its answer and reads it itself saves a change of threads, and a wait for the
interpreter's lock with it. All open connections are in one epoll of their own; the I/O thread
watches that epoll among other things, and is deaf to it while another thread waits there. This only
decides who wakes up: whoever reads holds `lock`, so that two who wake do no harm. So a thread that
was interrupted while it left the role harms nobody for longer than `LOOK_MS` twice.
"""

import threading
from collections.abc import Callable

from ray_stream.clock import Clock
from ray_stream.rpc.reactor import READABLE, Reactor
from ray_stream.rpc.services import Box

LOOK_MS = 500
"""The I/O thread looks so often whether who had the role is still there; a wait is shorter."""
WAIT_MAX_MS = 200

Look = Callable[[], None]


class Answers:
    """The open connections of a process, as those that read answers see them."""

    def __init__(self, clock: Clock, io: Reactor, call_at: Callable[[int, Look], None]) -> None:
        """Args: io: the I/O thread's; call_at: has a call made later on that thread."""
        self.lock = threading.Lock()
        """Held while answers are read and handed over; taken before a link's own."""
        self.connections = Reactor()
        """Watched here when they are open; changed under `lock`."""
        self.on_look: Look = _nothing
        """Called on the I/O thread now and then, while others read."""
        self._clock = clock
        self._io = io
        self._call_at = call_at
        self._role = threading.Lock()
        self._attendant: Box | None = None
        self._waits = 0
        self._waits_seen = 0
        self._is_looked_after = False
        io.watch(self.connections, READABLE, self._read_here)

    def _read_here(self, ready: int) -> None:
        """On the I/O thread, when nobody else reads."""
        del ready
        self.connections.wait(0)

    def attend(self, box: Box, wait_ms: int) -> bool:
        """Read what arrives, for whomever it is, until something is in `box`.

        Safe from any thread, and Ctrl-C ends it.

        Args:
            box: of the thread that calls.
            wait_ms: how long at most; the wait may end earlier with nothing in the box.

        Returns:
            False: another thread does it already; nothing was waited for.
        """
        with self._role:
            is_mine = self._attendant is None or self._attendant is box
            if is_mine:
                self._attendant = box
        if not is_mine:
            self._have_looked()
            return False
        try:
            self._waits += 1
            self._have_looked()
            self._io.mute(self.connections, muted=True)
            self._read_until(box, min(wait_ms, WAIT_MAX_MS))
        finally:
            box.alarm = None
            self._leave(box)
        return True

    def _have_looked(self) -> None:
        if not self._is_looked_after:
            self._is_looked_after = True
            self._io.post(self._look)

    def _read_until(self, box: Box, wait_ms: int) -> None:
        connections, clock = self.connections, self._clock
        end_ms = clock.monotonic_ms() + wait_ms
        while True:
            box.alarm = connections.ring
            if not box.is_empty():
                return
            found = connections.ready_ones(wait_ms / 1000)
            box.alarm = None  # what this thread itself puts in, it finds
            connections.serve(found)
            if not found or not box.is_empty():
                return
            wait_ms = end_ms - clock.monotonic_ms()
            if wait_ms <= 0:
                return

    def _leave(self, box: Box) -> None:
        with self._role:
            if self._attendant is box:
                self._io.mute(self.connections, muted=False)
                self._attendant = None

    def _look(self) -> None:
        """On the I/O thread: take the role back from one who was interrupted in leaving it."""
        self.on_look()
        is_idle = self._waits == self._waits_seen
        if is_idle and self._attendant is not None:
            self._leave(self._attendant)
        if is_idle:
            self._is_looked_after = False
            if self._waits == self._waits_seen:  # nobody came just before that was said
                return
            self._is_looked_after = True
        self._waits_seen = self._waits
        self._call_at(self._clock.monotonic_ms() + LOOK_MS, self._look)


def _nothing() -> None:
    """Nothing to look at."""
