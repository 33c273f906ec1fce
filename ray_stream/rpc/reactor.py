"""Waiting for sockets and for calls from other threads at once.

Owns: one selector, the calls that other threads have posted, and waking up for them. Refuses:
threads of its own: one thread waits, whoever has made it (`actors.loop`, `rpc.links`).
"""

import selectors
import socket
from collections import deque
from collections.abc import Callable

READABLE = selectors.EVENT_READ
WRITABLE = selectors.EVENT_WRITE

Ready = Callable[[int], None]


class Reactor:
    """Everything but `post` is its one thread's."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._posted: deque[Callable[[], None]] = deque()
        self._sleeping = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._woken, READABLE, self._take_wakes)

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run by the thread that waits. Safe from any thread.

        Only a thread that sleeps is woken: it says so before it looks a last time.
        """
        self._posted.append(call)
        if self._sleeping:
            try:
                self._wake.send(b"\0")
            except BlockingIOError:
                return  # so many wakes wait there already
            except OSError:
                return  # closed: nobody waits any more

    @property
    def has_posted(self) -> bool:
        """Whether a call waits."""
        return bool(self._posted)

    def next_posted(self) -> Callable[[], None] | None:
        """The next call, or None."""
        return self._posted.popleft() if self._posted else None

    def watch(self, sock: socket.socket, events: int, ready: Ready) -> None:
        """Call `ready` with what a socket is ready for, whenever it is."""
        self._selector.register(sock, events, ready)

    def change(self, sock: socket.socket, events: int, ready: Ready) -> None:
        """Watch for something else."""
        self._selector.modify(sock, events, ready)

    def forget(self, sock: socket.socket) -> None:
        """Watch it no more, if it was; before it is closed."""
        if sock in self._selector.get_map():
            self._selector.unregister(sock)

    def has_ready(self) -> bool:
        """Whether a socket is ready now."""
        return len(self._selector.get_map()) > 1 and bool(self._selector.select(0))

    def wait(self, wait_s: float) -> None:
        """Sleep until a socket is ready, a call is posted or the time is over; serve the sockets.

        Args:
            wait_s: seconds at most; 0 only looks.
        """
        self._sleeping = True
        if self._posted:
            wait_s = 0.0
        events = self._selector.select(wait_s)
        self._sleeping = False
        for key, ready in events:
            if self._selector.get_map().get(key.fd) is key:  # one of these may have ended another
                key.data(ready)

    def close(self) -> None:
        """Watch nothing more; sockets stay open. In a forked child, the parent goes on watching."""
        self._selector.close()
        self._woken.close()
        self._wake.close()

    def _take_wakes(self, ready: int) -> None:
        del ready
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            return
