"""An actor's loop with a listener, and clients of it, in one process and without Ray."""

import queue
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from ray_stream.actors.door import Handler
from ray_stream.actors.listener import Listener
from ray_stream.actors.loop import HostLoop
from ray_stream.clock import SystemClock
from ray_stream.rpc.endpoints import Endpoint, Way, endpoint_of, listen_far, listen_near
from ray_stream.rpc.framing import Frame, FrameKind, FrameParser, encode_frame, new_scratch
from ray_stream.rpc.handshake import NONCE_BYTES, ClientHandshake
from ray_stream.rpc.links import Link, io_thread
from ray_stream.rpc.messages import (
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsResult,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from ray_stream.rpc.services import Reply

NAME = "c/host/node/0-1"
SECRET = b"s" * 32
BOOT = "boot"
WAIT_S = 20.0


class Echo:
    """Answers a fetch with what was produced, when it is told to; keeps what it saw."""

    def __init__(self) -> None:
        self.produced: list[bytes] = []
        self.parked: list[tuple[FetchRequest, Reply[FetchResponse]]] = []
        self.seen: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.answer_bytes = 0

    def handlers(self) -> Mapping[type[msgspec.Struct], Handler]:
        return {
            ProduceRequest: self.produce,
            FetchRequest: self.fetch,
            ListOffsetsRequest: self.list_offsets,
        }

    def produce(self, request: ProduceRequest, reply: Reply[ProduceResponse]) -> None:
        self.seen.put("produce")
        self.produced += [bytes(batch) for batch in request.batches]
        reply(ProduceResponse([ProduceResult(one.topic_id, 0) for one in request.partitions]))

    def fetch(self, request: FetchRequest, reply: Reply[FetchResponse]) -> None:
        self.seen.put("fetch")
        if self.answer_bytes:
            reply(FetchResponse([], [bytes(self.answer_bytes)]))
        elif request.max_wait_ms:
            self.parked.append((request, reply))
        else:
            reply(FetchResponse([], list(self.produced)))

    def list_offsets(self, request: ListOffsetsRequest, reply: Reply[ListOffsetsResponse]) -> None:
        self.seen.put("list_offsets")
        reply(
            ListOffsetsResponse([ListOffsetsResult(one.topic_id, 7) for one in request.partitions])
        )

    # --- Turning

    def end_turn(self) -> None:
        """Nothing is staged."""

    def on_time(self) -> None:
        """Nothing is due."""

    def next_deadline_ms(self) -> int | None:
        return None


class Server:
    def __init__(self, echo: Echo, sockets: list[socket.socket], secret: bytes = SECRET) -> None:
        self.echo = echo
        self.endpoint: Endpoint = endpoint_of(BOOT, sockets)
        clock = SystemClock()
        self.listener = Listener(NAME, secret, sockets, echo.handlers(), clock)
        self.loop = HostLoop("test", clock)
        self.loop.start(echo, self.listener)

    def on_loop(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        """What `call` returns on the loop's thread."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.loop.post(lambda: answers.put(call()))
        return answers.get(timeout=WAIT_S)

    def peers(self) -> int:
        """Connections, proved or not."""
        count: int = self.on_loop(lambda: len(self.listener._peers) + len(self.listener._strangers))
        return count


@contextmanager
def serving(
    *, far: bool = False, secret: bytes = SECRET, echo: Echo | None = None
) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="rs-u-", dir="/tmp"))
    sock = listen_far("127.0.0.1", NAME) if far else listen_near(directory, NAME)
    assert sock is not None
    server = Server(echo or Echo(), [sock], secret)
    try:
        yield server
    finally:
        server.loop.stop(lambda: None)
        directory.rmdir()


class Client:
    """A link, and what became of it."""

    def __init__(self, ways: list[Way], *, secret: bytes = SECRET, name: str = NAME) -> None:
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.link = Link(
            io_thread(),
            name,
            secret,
            ways,
            opened=lambda link: self.events.put(("opened", link)),
            failed=lambda reason: self.events.put(("failed", reason)),
            lost=lambda link: self.events.put(("lost", link)),
        )

    def event(self) -> tuple[str, Any]:
        return self.events.get(timeout=WAIT_S)

    def ask(self, request: msgspec.Struct) -> Any:  # noqa: ANN401 - any answer
        assert self.link.ask(request, self.answers.put)
        return self.answers.get(timeout=WAIT_S)


@contextmanager
def connected(server: Server) -> Iterator[Client]:
    client = Client(server.endpoint.ways(BOOT))
    assert client.event()[0] == "opened"
    try:
        yield client
    finally:
        client.link.close()


class RawPeer:
    """A peer that says what it likes, over a blocking socket."""

    def __init__(self, server: Server) -> None:
        way = server.endpoint.ways(BOOT)[0]
        family = socket.AF_UNIX if isinstance(way, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self.sock.connect(way)
            except BlockingIOError:  # so many wait to be let in that the kernel takes no more
                assert time.monotonic() < deadline, "nobody is let in"
                time.sleep(0.001)
            else:
                break
        self._parser = FrameParser(new_scratch())
        self._frames: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def end(self) -> None:
        """Say nothing more; what comes back may still be read."""
        self.sock.shutdown(socket.SHUT_WR)

    def frame(self) -> Frame:
        while not self._frames:
            count = self.sock.recvmsg_into(self._parser.room())[0]
            if not count:
                raise ConnectionResetError
            self._frames += self._parser.received(count)
        return self._frames.pop(0)

    def prove(self, secret: bytes = SECRET) -> None:
        hands = ClientHandshake(secret, NAME, b"n" * NONCE_BYTES)
        self.say(b"".join(hands.hello()))
        while not hands.is_done:
            self.say(b"".join(hands.received(self.frame())))

    def request(self, parts: list[bytes]) -> None:
        self.say(b"".join(encode_frame(FrameKind.REQUEST, 1, parts)))

    def is_cut_off(self) -> bool:
        """Wait for the other end to close."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            return True
        return True
