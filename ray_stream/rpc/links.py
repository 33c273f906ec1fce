"""A client process's connections: opened, proved, written to by whoever asks.

Owns: the sockets, the thread that serves them, and which requests are without an answer. Refuses:
deciding where to connect, deadlines of requests, and repeating any: callers do.

Who asks writes, if nobody's bytes wait before its own, and who waits reads (`rpc.attending`): a
change of threads costs more than either. The one thread (`IoThread`) opens and closes, writes what
the kernel did not take at once, and reads when nobody else does. It is a daemon and starts with the
first handle, so it still runs in exit hooks, where no thread starts. A forked child has neither: it
closes its copies of the sockets and says so.

Ctrl-C may come between any two steps of a thread that writes or reads. Nobody knows where the
stream is then: such a connection ends, and who asked hears that the outcome is open.
"""

import atexit
import heapq
import itertools
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from ray_stream.clock import Clock, SystemClock
from ray_stream.errors import (
    LeaderNotAvailableError,
    OutcomeUnknownError,
    RayStreamError,
)
from ray_stream.rpc import endpoints, wire
from ray_stream.rpc.attending import Answers
from ray_stream.rpc.endpoints import Way
from ray_stream.rpc.framing import (
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    Frame,
    FrameKind,
    FrameParser,
    Outbox,
    encode_frame,
    new_scratch,
)
from ray_stream.rpc.handshake import NONCE_BYTES, ClientHandshake
from ray_stream.rpc.messages import Failed
from ray_stream.rpc.reactor import READABLE, WRITABLE, Reactor
from ray_stream.rpc.services import Reply

LOG = logging.getLogger(__name__)
CONNECT_MS = 3_000
"""One way is given up when it is not connected and proved after so long."""
IDLE_S = 3600.0
READ_BYTES_MAX = 1 << 20
"""Read of one connection before the others have their turn."""


class IoThread:
    """The thread that serves every connection of this process."""

    def __init__(self, clock: Clock) -> None:
        """Start it."""
        self.clock = clock
        self.reactor = Reactor()
        self.scratch = new_scratch()
        self.answers = Answers(clock, self.reactor, self.call_at)
        self.answers.on_look = self._look
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._is_ending = False
        self.is_forked = False
        """This is the copy in a child, where nothing of it works."""
        self._thread = threading.Thread(target=self._run, name="ray_stream-io", daemon=True)
        self._thread.start()

    def call_at(self, at_ms: int, call: Callable[[], None]) -> None:
        """Have `call` run then; on this thread only."""
        heapq.heappush(self._due, (at_ms, next(self._numbers), call))

    def add(self, link: "Link") -> None:
        """Remember a link, to close it with the thread."""
        self._links.add(link)

    def end(self) -> None:
        """Close every link and end the thread: the process ends."""

        def last() -> None:
            for link in list(self._links):
                link.close_here("the process ends")
            self._is_ending = True

        self.reactor.post(last)
        self._thread.join(1.0)

    def after_fork(self) -> None:
        """This is the copy in a child: no thread reads here, and the parent's sockets are its."""
        self.is_forked = True
        for link in list(self._links):
            link.after_fork()
        self.answers.connections.close()
        self.reactor.close()

    def _look(self) -> None:
        for link in list(self._links):
            link.look()

    def _run(self) -> None:
        while not self._is_ending:
            self.reactor.wait(self._left_s())
            while (call := self.reactor.next_posted()) is not None:
                _guarded(call)
            now_ms = self.clock.monotonic_ms()
            while self._due and self._due[0][0] <= now_ms:
                _guarded(heapq.heappop(self._due)[2])

    def _left_s(self) -> float:
        if not self._due:
            return IDLE_S
        return max(0.0, (self._due[0][0] - self.clock.monotonic_ms()) / 1000)


def _guarded(call: Callable[[], None]) -> None:
    """Run what belongs to one link: its failure must not end the thread of all."""
    try:
        call()
    except Exception:
        LOG.exception("a call of the I/O thread failed")


class Link:
    """One connection to one actor.

    `ask` is safe from any thread; reading is that of the one who has the role; the rest is the I/O
    thread's.
    """

    def __init__(
        self,
        io: IoThread,
        name: str,
        secret: bytes,
        ways: Sequence[Way],
        *,
        opened: "Callable[[Link], None]",
        failed: Callable[[str], None],
        lost: "Callable[[Link], None]",
    ) -> None:
        """Begin to connect.

        Args:
            io: reads for it.
            name: of the actor; it must prove to be this one.
            secret: the cluster's.
            ways: to get there; the first that works is taken.
            opened: is called when it may be asked; on the I/O thread, as the others.
            failed: no way works, for this reason.
            lost: it was open, and is no more.
        """
        self._io = io
        self._name = name
        self._secret = secret
        self._ways = list(ways)
        self._opened = opened
        self._failed = failed
        self._lost = lost
        self._lock = threading.Lock()
        self._outbox = Outbox()
        self._pending: dict[int, tuple[str, int, Reply[Any]]] = {}
        """By correlation id: what was asked, where in the stream, who wants to know."""
        self._correlation_id = 0
        self._sock: socket.socket | None = None
        self._parser = FrameParser(io.scratch, GREETING_BYTES_MAX)
        self._handshake: ClientHandshake | None = None
        self._is_open = False
        self._is_changing = False
        self._is_reading = False
        self._is_blocked = False
        self._reasons: list[str] = []
        self.answers = 0
        """Answers that came over it."""
        self.way: Way = ""
        io.add(self)
        io.reactor.post(self._try_next)

    # --- asking --------------------------------------------------------------------------------

    def ask(self, request: msgspec.Struct, reply: Reply[Any]) -> bool:
        """Send a request, and have it answered; False: it is not open, and nothing was sent.

        Raises:
            ProtocolError: the request is too long for a frame; nothing was sent.
        """
        parts = wire.encode(request)
        with self._lock:
            if not self._is_open or self._is_changing:
                self._check_change()
                return False
            self._correlation_id += 1
            frame = encode_frame(FrameKind.REQUEST, self._correlation_id, parts)
            self._is_changing = True
            what = type(request).__name__
            self._pending[self._correlation_id] = (what, self._outbox.end, reply)
            self._outbox.add(frame)
            if not self._is_blocked:
                self._write()
            self._is_changing = False
        return True

    def _check_change(self) -> None:
        """Under the lock: end a link in whose change somebody was interrupted.

        Ctrl-C may come when the kernel has taken bytes and before that was noted. Then nobody
        knows where the stream is.
        """
        if self._is_changing:
            self._break("a write was interrupted")

    def _break(self, reason: str) -> None:
        sock = self._sock
        self._io.reactor.post(lambda: self._broken(sock, reason))

    def _write(self) -> None:
        """Under the lock: hand the kernel what it takes; the I/O thread does the rest."""
        assert self._sock is not None
        try:
            while self._outbox.bytes_left:
                self._outbox.sent(self._sock.sendmsg(self._outbox.gathered()))
        except BlockingIOError:
            if not self._is_blocked:
                self._is_blocked = True
                self._io.reactor.post(self._watch)
        except OSError as error:
            self._break(str(error))

    # --- the I/O thread: opening ---------------------------------------------------------------

    def _try_next(self) -> None:
        if not self._ways:
            self._failed("; ".join(self._reasons) or "it does not listen")
            return
        way = self.way = self._ways.pop(0)
        self._parser = FrameParser(self._io.scratch, GREETING_BYTES_MAX)
        self._handshake = ClientHandshake(self._secret, self._name, os.urandom(NONCE_BYTES))
        try:
            sock = self._sock = endpoints.new_socket(way)
        except OSError as error:
            self._give_up_way(str(error))
            return
        self._outbox.add(self._handshake.hello())
        try:
            sock.connect(way)
        except BlockingIOError:
            if isinstance(way, str):  # a Unix socket whose queue is full
                self._give_up_way("too many connect there at once")
                return
        except OSError as error:
            self._give_up_way(str(error))
            return
        self._io.reactor.watch(sock, READABLE | WRITABLE, self._ready)
        due_ms = self._io.clock.monotonic_ms() + CONNECT_MS
        self._io.call_at(due_ms, lambda: self._too_slow(sock))

    def _too_slow(self, sock: socket.socket) -> None:
        if self._sock is sock and not self._is_open:
            self._give_up_way(f"nobody answered within {CONNECT_MS} ms")

    def _broken(self, sock: socket.socket | None, reason: str) -> None:
        if sock is None or self._sock is not sock:
            return
        if self._is_open:
            self.close_here(reason)
        else:
            self._give_up_way(reason)

    def _give_up_way(self, reason: str) -> None:
        self._reasons.append(f"{_shown(self.way)}: {reason}")
        self._close_socket()
        self._try_next()

    def _greet(self, frame: Frame) -> None:
        assert self._handshake is not None
        assert self._sock is not None
        answer = self._handshake.received(frame)
        if not self._handshake.is_done:
            self._outbox.add(answer)
            self._flush()
            return
        self._handshake = None
        self._parser.allow(FRAME_BYTES_MAX)
        endpoints.tune(self._sock)
        self._is_open = True
        self._watch()
        self._io.answers.connections.watch(self._sock, READABLE, self._read_open)
        self._opened(self)

    # --- the I/O thread: open ------------------------------------------------------------------

    def _ready(self, ready: int) -> None:
        if ready & WRITABLE:
            _guarded(self._flush)
        if ready & READABLE:
            self._read_open(ready)

    def _flush(self) -> None:
        with self._lock:
            self._check_change()
            self._is_blocked = False
            if self._sock is not None and not self._is_changing:
                self._write()
        self._watch()

    def _watch(self) -> None:
        """What the I/O thread waits for; answers are waited for where all can read them."""
        if self._sock is not None:
            events = 0 if self._is_open else READABLE
            if self._outbox.bytes_left:
                events |= WRITABLE
            self._io.reactor.change(self._sock, events, self._ready)

    # --- reading, in whichever thread ------------------------------------------------------------

    def _read_open(self, ready: int) -> None:
        """Read what is there; what fails in it ends this link, and nothing else."""
        del ready
        answers = self._io.answers
        with answers.lock:
            sock = self._sock
            if sock is None:
                return
            reason = self._read_guarded(sock)
            if reason is not None:
                answers.connections.forget(sock)  # nobody shall wake for it again
        if reason is not None:
            self._break(reason)

    def _read_guarded(self, sock: socket.socket) -> str | None:
        """Why the link has to end, if it has to."""
        if self._is_reading:
            return "a read was interrupted"
        self._is_reading = True
        try:
            self._read(sock)
        except (OSError, RayStreamError) as error:
            return str(error)
        except Exception as error:  # it must not end the thread that reads
            LOG.exception("the connection to %s fails by an error of ours", self._name)
            return repr(error)
        except BaseException:
            self._break("a read was interrupted")
            raise
        self._is_reading = False
        return None

    def look(self) -> None:
        """End a link in whose reading somebody was interrupted, if that was not told."""
        with self._io.answers.lock:
            if self._is_reading:
                self._break("a read was interrupted")

    def _read(self, sock: socket.socket) -> None:
        got = 0
        while got < READ_BYTES_MAX and self._sock is sock:
            room = self._parser.room()
            try:
                count = sock.recv_into(room[0]) if len(room) == 1 else sock.recvmsg_into(room)[0]
            except BlockingIOError:
                return
            got += count
            if not count:
                raise ConnectionResetError("the actor closed the connection")
            for frame in self._parser.received(count):
                if self._handshake is not None:
                    self._greet(frame)
                else:
                    self._take(frame)
            if count < sum(map(len, room)):
                return

    def _take(self, frame: Frame) -> None:
        pending = self._pending.get(frame.correlation_id)
        if frame.kind is not FrameKind.ANSWER or pending is None:
            raise ConnectionResetError(f"{frame.kind.name} {frame.correlation_id} answers nothing")
        answer = wire.decode(frame.parts)
        if isinstance(answer, Failed):
            answer = answer.error.to_error()
        _reply(pending[2], answer)
        # Not earlier: one who is interrupted here leaves a repeated answer, which is harmless, and
        # not one that never comes.
        del self._pending[frame.correlation_id]
        self.answers += 1

    # --- the I/O thread: the end ---------------------------------------------------------------

    def close(self) -> None:
        """Nobody needs it any more. Safe from any thread."""
        self._io.reactor.post(lambda: self.close_here("it was closed"))

    def close_here(self, reason: str) -> None:
        """End it; who waits hears what may have become of the request."""
        with self._io.answers.lock, self._lock:
            was_open, self._is_open = self._is_open, False
            pending, self._pending = self._pending, {}
            sent = self._outbox.bytes_sent
            self._close_socket()
        self._ways.clear()
        if not was_open:
            return
        LOG.info("the connection to %s at %s ended: %s", self._name, _shown(self.way), reason)
        self._lost(self)
        for what, begin, reply in pending.values():
            if begin < sent:
                error: RayStreamError = OutcomeUnknownError(
                    f"{what} got no answer ({reason}): it may have been applied"
                )
            else:
                error = LeaderNotAvailableError(f"{what} was not sent ({reason}): ask again")
            _reply(reply, error)

    def _close_socket(self) -> None:
        sock, self._sock = self._sock, None
        self._outbox = Outbox()
        self._is_reading = False
        if sock is not None:
            self._io.answers.connections.forget(sock)
            self._io.reactor.forget(sock)
            sock.close()

    def after_fork(self) -> None:
        """In a child: the parent goes on with the connection, this is only a copy of it."""
        self._is_open = False
        if self._sock is not None:
            self._sock.close()


def _reply(reply: Reply[Any], answer: Any) -> None:  # noqa: ANN401 - of any request
    """One who cannot take an answer must not keep the others from theirs."""
    try:
        reply(answer)
    except Exception:
        LOG.exception("an answer could not be handed over")


def _shown(way: Way) -> str:
    return way if isinstance(way, str) else f"{way[0]}:{way[1]}"


def io_thread() -> IoThread:
    """The one of this process; its first use starts it, and a fork has one of its own."""
    return _io_thread_of(os.getpid())


@lru_cache(maxsize=1)
def _io_thread_of(pid: int) -> IoThread:
    io = IoThread(SystemClock())

    def forked() -> None:
        if os.getpid() != pid:
            io.after_fork()

    def ended() -> None:
        if os.getpid() == pid:
            io.end()

    os.register_at_fork(after_in_child=forked)
    atexit.register(ended)
    return io
