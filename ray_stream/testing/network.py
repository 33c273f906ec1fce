"""A network that delays, loses, repeats and reorders, between processes of a simulated cluster.

Owns: requests and replies under way, links that are cut, what a caller is told of a lost peer.
Refuses: what requests mean. It carries the callback convention of `rpc.services` for any method of
any service, as the bytes that `rpc.wire` makes of it, so that nothing is shared by two processes
and every message is encoded and decoded on its way.

A caller may be answered late, once, or never; a request may be carried out twice. Callers hold
their own deadlines.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ray_stream.errors import LeaderNotAvailableError, OutcomeUnknownError, RayStreamError
from ray_stream.records.gathered import Part
from ray_stream.rpc import wire
from ray_stream.rpc.messages import Failed
from ray_stream.rpc.services import Reply
from ray_stream.testing.scheduler import Process, Scheduler
from ray_stream.testing.trace import Trace

Handler = Callable[[Any, Reply[Any]], None]


@dataclass(slots=True)
class Weather:
    """How the network is at the moment. Chances are from 0 to 1, for each message."""

    delay_ms_max: int = 3
    loss: float = 0.0
    repeat: float = 0.0
    slow: float = 0.0
    """Chance of a delay of up to `slow_ms_max`: overtaken by many others."""
    slow_ms_max: int = 2_000


@dataclass(slots=True)
class _Server:
    process: Process
    handlers: Mapping[str, Handler]


class Network:
    """All links of a cluster."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, trace: Trace) -> None:
        """Args: rng: draws every fate; trace: takes a line for every request and reply."""
        self._scheduler = scheduler
        self._rng = rng
        self._trace = trace
        self._servers: dict[str, _Server] = {}
        self._cut: dict[tuple[str, str], None] = {}
        self._open: dict[Process, dict[_Call, None]] = {}
        self.weather = Weather()

    def serve(self, name: str, process: Process, handlers: Mapping[str, Handler]) -> None:
        """Have a process answer under a name; a name that is taken changes hands.

        Args:
            name: what callers ask for.
            process: whose death ends it.
            handlers: method names to methods of the callback convention.
        """
        self._servers[name] = _Server(process, handlers)

    def cut(self, one: str, other: str, *, both_ways: bool = True) -> None:
        """Nothing gets from node `one` to node `other` any more."""
        self._cut[one, other] = None
        if both_ways:
            self._cut[other, one] = None

    def died(self, process: Process) -> None:
        """Break what was under way with a process that is dead now: its callers may be told."""
        assert not process.alive, "kill it first"
        for call in self._open.pop(process, {}):
            call.broken(process)

    def heal(self) -> None:
        """Every link works, and fine weather."""
        self._cut.clear()
        self.weather = Weather()

    def call(
        self, source: Process, target: str, method: str, request: msgspec.Struct, reply: Reply[Any]
    ) -> None:
        """Send a request; `reply` is called at most once, as an event of `source`."""
        _Call(self, source, target, method, reply).send(wire.encode(request))

    def handler(self, target: str, method: str) -> tuple[Process, Handler] | None:
        """Who answers under that name now; None: nobody alive."""
        server = self._servers.get(target)
        if server is None or not server.process.alive:
            return None
        return server.process, server.handlers[method]

    def node_of(self, target: str) -> str | None:
        """Where that name lives, or lived last; None: it was never heard of."""
        server = self._servers.get(target)
        return server.process.node if server is not None else None

    def carry(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Bring one message from node to node: not at all, once, or twice."""
        weather = self.weather
        copies = 1
        if source != target:
            if (source, target) in self._cut or self._rng.random() < weather.loss:
                return
            copies += self._rng.random() < weather.repeat
        for _ in range(copies):
            most = weather.delay_ms_max
            if self._rng.random() < weather.slow:
                most = weather.slow_ms_max
            self._scheduler.after(self._rng.randint(0, most), deliver)

    def later(self, delay_ms: int, call: Callable[[], None], owner: Process) -> None:
        """An event of a process, for the calls under way."""
        self._scheduler.after(delay_ms, call, owner)

    def opened(self, process: Process, call: "_Call") -> None:
        """A process works on a request."""
        self._open.setdefault(process, {})[call] = None

    def closed(self, process: Process, call: "_Call") -> None:
        """It answered."""
        self._open.get(process, {}).pop(call, None)

    def note(self, who: str, what: str) -> None:
        """A line in the trace."""
        self._trace.add(self._scheduler.now_ms, who, what)


class _Call:
    """One request, its copies, and the first reply that gets through."""

    def __init__(
        self, network: Network, source: Process, target: str, method: str, reply: Reply[Any]
    ) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._method = method
        self._reply: Reply[Any] | None = reply

    def send(self, frames: list[Part]) -> None:
        sent = [bytes(frame) for frame in frames]
        node = self._network.node_of(self._target)
        if node is None:
            self._refuse()
            return
        self._network.carry(self._source.node, node, lambda: self._arrive(sent))

    def _refuse(self) -> None:
        error = LeaderNotAvailableError(f"{self._target} is not known: refresh the metadata")
        self._network.later(0, lambda: self._answer(error), self._source)

    def _arrive(self, frames: list[bytes]) -> None:
        found = self._network.handler(self._target, self._method)
        if found is None:
            node = self._network.node_of(self._target)
            assert node is not None, "checked when it was sent"
            self._tell_of_death(node)
            return
        process, handler = found
        self._network.opened(process, self)
        self._network.later(0, lambda: self._handle(process, handler, frames), process)

    def broken(self, process: Process) -> None:
        """Who worked on it is dead."""
        self._tell_of_death(process.node)

    def _tell_of_death(self, node: str) -> None:
        """The dead process' machine says so, if the answer gets through."""
        error = OutcomeUnknownError(f"{self._target} is dead: whether it did it is unknown")
        self._network.carry(node, self._source.node, lambda: self._bring(error))

    def _handle(self, process: Process, handler: Handler, frames: list[bytes]) -> None:
        request = wire.decode([memoryview(frame) for frame in frames])
        self._network.note(process.name, f"{self._method} from {self._source.name}")
        replied = False

        def reply(answer: Any) -> None:
            nonlocal replied
            assert not replied, f"{process.name} answered one {self._method} twice"
            replied = True
            self._network.closed(process, self)
            encoded = _encoded(answer)
            self._network.carry(
                process.node, self._source.node, lambda: self._bring(_decoded(encoded))
            )

        handler(request, reply)

    def _bring(self, answer: Any) -> None:
        self._network.later(0, lambda: self._answer(answer), self._source)

    def _answer(self, answer: Any) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            said = type(answer).__name__
            self._network.note(self._source.name, f"{self._method} of {self._target}: {said}")
            reply(answer)


def _encoded(answer: Any) -> list[bytes]:
    if isinstance(answer, RayStreamError):
        frames = wire.encode_error(answer)
    else:
        frames = wire.encode(answer)
    return [bytes(frame) for frame in frames]


def _decoded(frames: list[bytes]) -> Any:
    answer = wire.decode([memoryview(frame) for frame in frames])
    return answer.error.to_error() if isinstance(answer, Failed) else answer
