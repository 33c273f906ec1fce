"""Waiting for sockets and for calls from other threads at once.

Owns: one `epoll`, the calls that other threads have posted, and waking up for them. Refuses:
threads of its own: one thread waits, whoever has made it (`actors.loop`, `rpc.links`).
"""

import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
_READY_MAX = 1024
"""Sockets that are served in one turn; others that are ready come with the next."""

Ready = Callable[[int], None]
ReadyOnes = list[tuple[int, int, Ready | None]]


class Watchable(Protocol):
    """A socket, or another reactor."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class Reactor:
    """Everything but `post` is its one thread's."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Ready] = {}
        """By descriptor."""
        self._posted: deque[Callable[[], None]] = deque()
        self._sleeping = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self.watch(self._woken, READABLE, self._take_wakes)

    def fileno(self) -> int:
        """Readable when something is ready here: one reactor may watch another."""
        return self._epoll.fileno()

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run by the thread that waits. Safe from any thread.

        Only a thread that sleeps is woken: it says so before it looks a last time.
        """
        self._posted.append(call)
        if self._sleeping:
            self.ring()

    def ring(self) -> None:
        """End a wait: the one that is, or the next. Safe from any thread."""
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

    def watch(self, sock: Watchable, events: int, ready: Ready) -> None:
        """Call `ready` with what a socket is ready for, whenever it is; an error is both."""
        self._epoll.register(sock, events)
        self._watched[sock.fileno()] = ready

    def change(self, sock: Watchable, events: int, ready: Ready) -> None:
        """Watch for something else, or for the first time; for nothing: as `forget`."""
        if not events:
            self.forget(sock)
        elif sock.fileno() in self._watched:
            self._epoll.modify(sock, events)
            self._watched[sock.fileno()] = ready
        else:
            self.watch(sock, events, ready)

    def mute(self, sock: Watchable, *, muted: bool) -> None:
        """Have what is watched not end a wait for now, or again. Safe from any thread."""
        self._epoll.modify(sock, 0 if muted else READABLE)

    def forget(self, sock: Watchable) -> None:
        """Watch it no more, if it was; before it is closed."""
        if self._watched.pop(sock.fileno(), None) is not None:
            with contextlib.suppress(OSError):  # closed all the same: the kernel forgot it then
                self._epoll.unregister(sock)

    def has_ready(self) -> bool:
        """Whether a socket is ready now."""
        return len(self._watched) > 1 and bool(self._epoll.poll(0, 1))

    def wait(self, wait_s: float) -> None:
        """Sleep until a socket is ready, a call is posted or the time is over; serve the sockets.

        Args:
            wait_s: seconds at most; 0 only looks.
        """
        self._sleeping = True
        if self._posted:
            wait_s = 0.0
        found = self.ready_ones(wait_s)
        self._sleeping = False
        self.serve(found)

    def ready_ones(self, wait_s: float) -> ReadyOnes:
        """Sleep as `wait`, and say what is ready. Calls that are posted do not end this."""
        watched = self._watched
        # Looked up before any of them is served: one may end another, whose descriptor is reused.
        return [(fd, event, watched.get(fd)) for fd, event in self._epoll.poll(wait_s, _READY_MAX)]

    def serve(self, found: ReadyOnes) -> None:
        """Call those who watch these."""
        watched = self._watched
        for descriptor, event, ready in found:
            if ready is not None and watched.get(descriptor) is ready:
                is_readable = READABLE if event & ~WRITABLE else 0
                ready(is_readable | (WRITABLE if event & ~READABLE else 0))

    def close(self) -> None:
        """Watch nothing more; sockets stay open. In a forked child, the parent goes on watching."""
        self._epoll.close()
        self._watched.clear()
        self._woken.close()
        self._wake.close()

    def _take_wakes(self, ready: int) -> None:
        del ready
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            return
