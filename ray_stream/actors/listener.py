"""The way into an actor over sockets: connections, on the loop's own thread.

Owns: who is let in (`rpc.handshake`), what each connection may cost, and the order of its bytes.
Refuses: what requests mean: they go to the handlers that Ray calls go to (`actors.door`), and the
broker's orders do not come this way.

No peer can stall the actor: nothing here waits. One that proves nothing in time, sends what is no
frame, does not read its answers, or is one too many, is cut off, and the log says why.
"""

import logging
import os
import resource
import socket
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from ray_stream.actors.door import Handler
from ray_stream.clock import Clock
from ray_stream.errors import InvalidArgumentError, ProtocolError, RayStreamError
from ray_stream.log.storage import Buffer
from ray_stream.rpc import endpoints, wire
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
from ray_stream.rpc.handshake import NONCE_BYTES, ServerHandshake
from ray_stream.rpc.reactor import READABLE, WRITABLE, Reactor

LOG = logging.getLogger(__name__)
GREETING_MS = 5_000
STALL_MS = 30_000
"""Whoever reads nothing for so long, with answers waiting, is cut off."""
PEERS_MAX = 4_096
STRANGERS_MAX = 256
"""Connections that have proved nothing yet; one more costs the oldest its place."""
UNANSWERED_MAX = 1_000
OUTBOX_PAUSE_BYTES = 8 << 20
"""Answers that wait for a slow reader: with more than this, its next requests wait."""
OUTBOX_BYTES_MAX = 128 << 20
"""With more than this it is cut off."""
READ_BYTES_MAX = 4 << 20
"""What one connection may bring into one turn, so that others have theirs."""
ACCEPTS_MAX = 64
ACCEPT_PAUSE_MS = 500
LINES_MAX = 20
"""Reasons that are logged each second."""


class _Peer:
    """One connection."""

    __slots__ = (
        "events",
        "handshake",
        "is_closed",
        "name",
        "outbox",
        "parser",
        "since_ms",
        "sock",
        "unanswered",
    )

    def __init__(
        self, sock: socket.socket, name: str, scratch: memoryview, handshake: ServerHandshake
    ) -> None:
        self.sock = sock
        self.name = name
        self.parser = FrameParser(scratch, GREETING_BYTES_MAX)
        self.handshake: ServerHandshake | None = handshake
        self.outbox = Outbox()
        self.unanswered = 0
        self.events = READABLE
        self.since_ms = 0
        """When it came; once it is let in, since when it reads nothing of what waits for it."""
        self.is_closed = False


class Listener:
    """Everything but the constructor runs on the loop's thread."""

    def __init__(
        self,
        name: str,
        secret: bytes,
        sockets: Sequence[socket.socket],
        handlers: Mapping[type[msgspec.Struct], Handler],
        clock: Clock,
    ) -> None:
        """Make one that does not accept yet.

        Args:
            name: of this actor; clients prove that they mean it.
            secret: the cluster's.
            sockets: that listen; they are closed in the end.
            handlers: for each request type what takes it.
            clock: for time-outs.
        """
        self._name = name
        self._secret = secret
        self._sockets = list(sockets)
        self._handlers = handlers
        self._clock = clock
        self._scratch = new_scratch()
        self._strangers: dict[_Peer, None] = {}
        self._peers: dict[_Peer, None] = {}
        self._to_write: dict[_Peer, None] = {}
        self._stalled: dict[_Peer, None] = {}
        self._accept_at_ms: int | None = None
        self._lines = 0
        self._lines_since_ms = 0
        self._reactor: Reactor | None = None
        self._thread = 0
        self._peers_max = min(PEERS_MAX, _descriptors() // 2)

    # --- the loop ------------------------------------------------------------------------------

    def begin(self, reactor: Reactor) -> None:
        """Accept from now on."""
        self._reactor = reactor
        self._thread = threading.get_ident()
        self._accept()

    def end_turn(self) -> None:
        """Write what was answered."""
        while self._to_write:
            peers, self._to_write = self._to_write, {}
            for peer in peers:
                self._write(peer)

    def next_deadline_ms(self) -> int | None:
        """When `on_time` has something to do."""
        if not self._strangers and not self._stalled:
            return self._accept_at_ms
        due = [self._accept_at_ms]
        if self._strangers:
            due.append(next(iter(self._strangers)).since_ms + GREETING_MS)
        if self._stalled:
            due.append(min(peer.since_ms for peer in self._stalled) + STALL_MS)
        return min((at_ms for at_ms in due if at_ms is not None), default=None)

    def on_time(self) -> None:
        """Cut off who is silent, or deaf; accept again."""
        now_ms = self._clock.monotonic_ms()
        for peer in [one for one in self._strangers if one.since_ms + GREETING_MS <= now_ms]:
            self._cut(peer, f"proved nothing within {GREETING_MS} ms")
        for peer in [one for one in self._stalled if one.since_ms + STALL_MS <= now_ms]:
            self._cut(peer, f"read nothing for {STALL_MS} ms with {peer.outbox.bytes_left} waiting")
        if self._accept_at_ms is not None and self._accept_at_ms <= now_ms:
            self._accept()

    def close(self) -> None:
        """Write what can be written, and end every connection."""
        self.end_turn()
        for peer in [*self._peers, *self._strangers]:
            self._close(peer)
        for sock in self._sockets:
            if self._reactor is not None and self._accept_at_ms is None:
                self._reactor.forget(sock)
            endpoints.stop_listening(sock)
        self._sockets.clear()

    # --- coming and going ----------------------------------------------------------------------

    def _accept(self) -> None:
        self._accept_at_ms = None
        for sock in self._sockets:
            self._running.watch(sock, READABLE, partial(self._accept_from, sock))

    @property
    def _running(self) -> Reactor:
        assert self._reactor is not None
        return self._reactor

    def _accept_from(self, listening: socket.socket, ready: int) -> None:
        del ready
        for _ in range(ACCEPTS_MAX):
            try:
                sock, address = listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no descriptors are left: those that are here go on
                self._say("accepts nothing for %d ms: %s", ACCEPT_PAUSE_MS, error)
                self._accept_at_ms = self._clock.monotonic_ms() + ACCEPT_PAUSE_MS
                for one in self._sockets:
                    self._running.forget(one)
                return
            self._welcome(sock, _name_of(address))

    def _welcome(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        try:
            endpoints.tune(sock)
        except OSError as error:  # gone already
            sock.close()
            LOG.debug("%s: %s: %s", self._name, name, error)
            return
        if len(self._peers) >= self._peers_max:
            self._say("refuses %s: %d connections are the limit", name, self._peers_max)
            sock.close()
            return
        if len(self._strangers) >= STRANGERS_MAX:
            oldest = next(iter(self._strangers))
            self._cut(oldest, f"one of {STRANGERS_MAX} that proved nothing, and the oldest")
        handshake = ServerHandshake(self._secret, self._name, os.urandom(NONCE_BYTES))
        peer = _Peer(sock, name, self._scratch, handshake)
        peer.since_ms = self._clock.monotonic_ms()
        self._strangers[peer] = None
        self._running.watch(sock, READABLE, partial(self._ready, peer))

    def _cut(self, peer: _Peer, reason: str) -> None:
        self._say("cuts off %s: %s", peer.name, reason)
        self._close(peer)

    def _close(self, peer: _Peer) -> None:
        if peer.is_closed:
            return
        peer.is_closed = True
        for group in (self._strangers, self._peers, self._to_write, self._stalled):
            group.pop(peer, None)
        if peer.events:
            self._running.forget(peer.sock)
        peer.sock.close()
        peer.outbox.clear()

    def _say(self, text: str, *arguments: object) -> None:
        """Log a reason, unless so many were logged this second that nobody would read it."""
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._lines_since_ms >= 1_000:
            if self._lines > LINES_MAX:
                LOG.warning("%s: %d more lines like these", self._name, self._lines - LINES_MAX)
            self._lines, self._lines_since_ms = 0, now_ms
        self._lines += 1
        if self._lines <= LINES_MAX:
            LOG.warning("%s " + text, self._name, *arguments)  # noqa: G003 - texts of this module

    # --- reading -------------------------------------------------------------------------------

    def _ready(self, peer: _Peer, ready: int) -> None:
        if ready & WRITABLE:
            self._write(peer)
        if ready & READABLE and not peer.is_closed:
            self._read(peer)

    def _read(self, peer: _Peer) -> None:
        got = 0
        while got < READ_BYTES_MAX and peer.events & READABLE and not peer.is_closed:
            room = peer.parser.room()
            try:
                count = _receive(peer.sock, room)
            except BlockingIOError:
                return
            except OSError as error:
                self._gone(peer, error)
                return
            if not count:
                self._ended(peer)
                return
            got += count
            try:
                for frame in peer.parser.received(count):
                    self._take(peer, frame)
            except RayStreamError as error:
                self._cut(peer, str(error))
                return
            if count < sum(map(len, room)):
                return  # that was all

    def _take(self, peer: _Peer, frame: Frame) -> None:
        """One frame.

        Raises:
            RayStreamError: it costs the peer its connection.
        """
        if peer.is_closed:
            return
        if peer.handshake is not None:
            self._send(peer, peer.handshake.received(frame))
            if peer.handshake.is_done:
                peer.handshake = None
                peer.parser.allow(FRAME_BYTES_MAX)
                del self._strangers[peer]
                self._peers[peer] = None
            return
        if frame.kind is not FrameKind.REQUEST:
            raise ProtocolError(f"a {frame.kind.name} where only requests are due")
        peer.unanswered += 1
        answered = partial(self._answer, peer, frame.correlation_id)
        try:
            request = wire.decode(frame.parts)
            handler = self._handlers.get(type(request))
            if handler is None:
                raise InvalidArgumentError(f"{type(request).__name__} is not served on this socket")
        except RayStreamError as error:
            answered(error)
            return
        handler(request, answered)
        if self._events_of(peer) != peer.events:
            self._watch(peer)

    def _ended(self, peer: _Peer) -> None:
        if peer.parser.is_within:
            self._cut(peer, "it ended in the middle of a frame")
        self._close(peer)

    def _gone(self, peer: _Peer, error: OSError) -> None:
        LOG.debug("%s: %s is gone: %s", self._name, peer.name, error)
        self._close(peer)

    # --- writing -------------------------------------------------------------------------------

    def _answer(self, peer: _Peer, correlation_id: int, answer: Any) -> None:
        if threading.get_ident() != self._thread:
            self._running.post(lambda: self._answer(peer, correlation_id, answer))
            return
        if peer.is_closed:
            return
        peer.unanswered -= 1
        is_error = isinstance(answer, RayStreamError)
        parts = wire.encode_error(answer) if is_error else wire.encode(answer)
        try:
            frame = encode_frame(FrameKind.ANSWER, correlation_id, parts)
        except ProtocolError as error:
            frame = encode_frame(FrameKind.ANSWER, correlation_id, wire.encode_error(error))
        self._send(peer, frame)

    def _send(self, peer: _Peer, buffers: Sequence[Buffer]) -> None:
        if peer.outbox.bytes_left > OUTBOX_BYTES_MAX:
            self._cut(peer, f"does not read: {peer.outbox.bytes_left} bytes of answers wait")
            return
        peer.outbox.add(buffers)
        self._to_write[peer] = None

    def _write(self, peer: _Peer) -> None:
        """As much as the kernel takes; the rest when it takes more."""
        outbox = peer.outbox
        if peer.is_closed:
            return
        try:
            while outbox.bytes_left:
                outbox.sent(peer.sock.sendmsg(outbox.gathered()))
                if peer in self._stalled:
                    peer.since_ms = self._clock.monotonic_ms()
        except BlockingIOError:
            if peer not in self._stalled and peer.handshake is None:
                peer.since_ms = self._clock.monotonic_ms()
                self._stalled[peer] = None
        except OSError as error:
            self._gone(peer, error)
            return
        if not outbox.bytes_left:
            self._stalled.pop(peer, None)
        if self._events_of(peer) != peer.events:
            self._watch(peer)

    def _events_of(self, peer: _Peer) -> int:
        """What it is to be watched for: who has too much under way is not read from."""
        writable = WRITABLE if peer.outbox.bytes_left and peer not in self._to_write else 0
        is_full = peer.outbox.bytes_left > OUTBOX_PAUSE_BYTES or peer.unanswered >= UNANSWERED_MAX
        return writable if is_full else writable | READABLE

    def _watch(self, peer: _Peer) -> None:
        if peer.is_closed:
            return
        events, before = self._events_of(peer), peer.events
        peer.events = events
        ready = partial(self._ready, peer)
        if not events:
            self._running.forget(peer.sock)
        elif not before:
            self._running.watch(peer.sock, events, ready)
        else:
            self._running.change(peer.sock, events, ready)


def _receive(sock: socket.socket, room: list[memoryview]) -> int:
    if len(room) == 1:
        return sock.recv_into(room[0])
    return sock.recvmsg_into(room)[0]


def _name_of(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a process of this node"


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2 * PEERS_MAX
