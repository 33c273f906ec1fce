"""Virtual time and a bad network between one consumer's machine and a fake cluster.

Owns: the queue of what will happen, and a user who takes what the machine hands out. One seed gives
one run.
"""

import heapq
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import Answered, Brought, Event, Reassigned, Send, Tick
from ray_stream.client.decoding import take_rows
from ray_stream.client.positions import PartitionState
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import ConsumerConfig
from ray_stream.errors import OutcomeUnknownError
from ray_stream.rpc.messages import FetchRequest, ListOffsetsRequest
from ray_stream.types import TopicPartition
from tests.unit.client.fake_cluster import FakeCluster


class World:
    """A consumer's machine, a cluster, and the network between them. Also the clock of both."""

    def __init__(self, seed: int = 0, *, config: ConsumerConfig | None = None) -> None:
        self.rng = random.Random(seed)
        self.time_ms = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.numbered = 0
        self.cluster = FakeCluster(self)
        self.config = config or ConsumerConfig(auto_offset_reset="earliest")
        self.core = ConsumerCore(self.config, TopicDirectory())
        self.loss = 0.0
        self.repeat = 0.0
        self.told = 0.0
        """Chance that a lost message is told as an unknown outcome."""
        self.delay_max_ms = 2
        self.sent: list[Send] = []
        self.reassigned: list[Reassigned] = []
        self.wake_at_ms: int | None = None
        self.dead_hosts: list[str] = []
        self.reads: list[int] = []
        """Bytes of every read of a file."""
        self.spoil: Callable[[bytes], bytes | None] = lambda raw: raw
        """What becomes of what is read of a file; None: it cannot be read."""

    # --- clock -----------------------------------------------------------------------------------

    def now_ms(self) -> int:
        return self.time_ms

    def monotonic_ms(self) -> int:
        return self.time_ms

    def after(self, delay_ms: int, call: Callable[[], None]) -> None:
        self.numbered += 1
        heapq.heappush(self.queue, (self.time_ms + delay_ms, self.numbered, call))

    def run(self, duration_ms: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; stop early, and say so, once `until` holds."""
        end_ms = self.time_ms + duration_ms
        while self.queue and self.queue[0][0] <= end_ms:
            if until is not None and until():
                return True
            at_ms, _, call = heapq.heappop(self.queue)
            self.time_ms = at_ms
            call()
        self.time_ms = end_ms
        return until is not None and until()

    # --- network ---------------------------------------------------------------------------------

    def step(self, event: Event) -> None:
        for effect in self.core.step(event, self.time_ms):
            if isinstance(effect, Send):
                self.sent.append(effect)
                self._carry(partial(self._arrive, effect), effect.request_id)
            else:
                self.reassigned.append(effect)
        self._set_alarm()

    def _set_alarm(self) -> None:
        wake_ms = self.core.wake_ms(self.time_ms)
        if wake_ms is None:
            return
        wake_ms = max(wake_ms, self.time_ms + 1)
        if self.wake_at_ms is None or not self.time_ms < self.wake_at_ms <= wake_ms:
            self.wake_at_ms = wake_ms
            self.after(wake_ms - self.time_ms, lambda: self._ring(wake_ms))

    def _ring(self, wake_ms: int) -> None:
        if self.wake_at_ms == wake_ms:
            self.wake_at_ms = None
            self.step(Tick())

    def _carry(self, deliver: Callable[[], None], request_id: int) -> None:
        if self.rng.random() < self.loss:
            if self.rng.random() < self.told:
                unknown = OutcomeUnknownError("the peer is gone")
                self.after(
                    self.rng.randint(0, self.delay_max_ms),
                    lambda: self.step(Answered(request_id, unknown)),
                )
            return
        for _ in range(1 + (self.rng.random() < self.repeat)):
            self.after(self.rng.randint(0, self.delay_max_ms), deliver)

    def _arrive(self, effect: Send) -> None:
        if effect.host in self.dead_hosts:
            return

        def reply(answer: Any) -> None:  # noqa: ANN401
            answered = Answered(effect.request_id, answer)
            self._carry(lambda: self.step(answered), effect.request_id)

        request = effect.request
        if isinstance(request, FetchRequest):
            self.cluster.fetch(effect.host, request, reply)
            self.after(request.max_wait_ms + 1, self.cluster.wake)
        elif isinstance(request, ListOffsetsRequest):
            self.cluster.list_offsets(effect.host, request, reply)
        else:
            self.cluster.metadata(request, reply)

    # --- the user --------------------------------------------------------------------------------

    def ready(self) -> PartitionState | None:
        """As `Driver.ready`."""
        while (state := self.core.ready()) is not None and not state.buffer:
            grant = state.grant
            if grant is None:
                break
            wanted = self.core.wanted(grant)
            raw = self.cluster.file(grant.path)
            if raw is not None:
                raw = self.spoil(raw[grant.position : grant.position + wanted])
            self.reads.append(0 if raw is None else len(raw))
            view = None if raw is None else memoryview(raw)
            self.step(Brought(state.name, wanted, view))
        return state

    def take(
        self, limit: int | None = None
    ) -> tuple[TopicPartition, list[tuple[int, bytes]]] | None:
        """Take rows of the partition whose turn it is; raises its error instead."""
        state = self.ready()
        if state is None:
            return None
        if not state.buffer:
            raise self.core.take_error(state)
        rows, position = take_rows(state, limit)
        offsets, values = rows["offset"].to_pylist(), rows["value"].to_pylist()
        self.core.advance(state, position)
        self.step(Tick())
        return state.name, list(zip(offsets, values, strict=True))

    def take_all(self, duration_ms: int = 5_000) -> dict[TopicPartition, list[tuple[int, bytes]]]:
        """Take whatever comes for a while."""
        taken: dict[TopicPartition, list[tuple[int, bytes]]] = {}
        end_ms = self.time_ms + duration_ms
        while self.run(end_ms - self.time_ms, lambda: self.core.ready() is not None):
            got = self.take()
            if got is None:
                continue  # nothing but markers was granted
            taken.setdefault(got[0], []).extend(got[1])
        return taken
