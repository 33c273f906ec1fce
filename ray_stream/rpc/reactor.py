"""Waiting for sockets and for calls from other threads at once.

Owns: one epoll, the calls that other threads have posted, and waking up for them. Refuses: threads
of its own: one thread waits, whoever has made it (`actors.loop`, `rpc.links`).

The epoll is used as it is: what `selectors` puts around it costs each wait of a busy loop some
microseconds.
"""

import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
_READY_MAX = 256
"""Told of at once; those behind come with the next wait."""

Ready = Callable[[int], None]
ReadyOnes = list[tuple[int, int, tuple[int, Ready] | None]]


class _Descriptor(Protocol):
    def fileno(self) -> int:
        """Its number."""
        ...


class Reactor:
    """Everything but `post` and what says so is its one thread's."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Ready]] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._sleeping = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self.watch(self._woken, READABLE, self._take_wakes)

    def fileno(self) -> int:
        """Readable when something here is ready: one reactor may watch another."""
        return self._epoll.fileno()

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run by the thread that waits. Safe from any thread.

        Only a thread that sleeps is woken: it says so before it looks a last time.
        """
        self._posted.append(call)
        if self._sleeping:
            self.ring()

    def ring(self) -> None:
        """End a wait, or the next one. Safe from any thread."""
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

    def watch(self, sock: _Descriptor, events: int, ready: Ready) -> None:
        """Call `ready` with what a socket is ready for, whenever it is."""
        number = sock.fileno()
        self._epoll.register(number, events)
        self._watched[number] = (events, ready)

    def change(self, sock: _Descriptor, events: int, ready: Ready) -> None:
        """Watch for something else; for nothing at all: as `forget`."""
        number = sock.fileno()
        if not events:
            self.forget(sock)
        elif number not in self._watched:
            self.watch(sock, events, ready)
        else:
            self._epoll.modify(number, events)
            self._watched[number] = (events, ready)

    def mute(self, sock: _Descriptor, *, muted: bool) -> None:
        """Have a watched one not end a wait for now, or again. Safe from any thread."""
        self._epoll.modify(sock.fileno(), 0 if muted else READABLE)

    def forget(self, sock: _Descriptor) -> None:
        """Watch it no more, if it was; before it is closed."""
        number = sock.fileno()
        if self._watched.pop(number, None) is not None:
            self._epoll.unregister(number)

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
        if found:
            self.serve(found)

    def ready_ones(self, wait_s: float) -> ReadyOnes:
        """What is ready, for `serve`; a call that is posted does not end this wait, `ring` does.

        Args:
            wait_s: seconds at most; 0 only looks.
        """
        watched = self._watched
        return [
            (number, ready, watched.get(number))
            for number, ready in self._epoll.poll(wait_s, _READY_MAX)
        ]

    def serve(self, found: ReadyOnes) -> None:
        """Call what watches these."""
        for number, ready, entry in found:
            # One of these may have ended another, or watches for something else now.
            if entry is not None and self._watched.get(number) is entry:
                events, call = entry
                call(ready & events or events)  # an error or an end: whatever is tried tells

    def close(self) -> None:
        """Watch nothing more; sockets stay open. In a forked child, the parent goes on watching."""
        self._epoll.close()
        self._woken.close()
        self._wake.close()

    def _take_wakes(self, ready: int) -> None:
        del ready
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            return
