"""Simulated clients: the real producer and consumer cores, and what they write down.

Owns: doing for the cores what their threads do, and the history of each client. Refuses: judging it
(`testing.checker`).
"""

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ray_stream.client.batch import Batch
from ray_stream.client.batching_core import Batcher
from ray_stream.client.columns import Columns
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import Answered, Assign, Send, Tick
from ray_stream.client.producer_core import ProducerCore
from ray_stream.client.producer_events import (
    BatchesBuilt,
    Delivered,
    Failed,
    MetadataAnswered,
    ProduceAnswered,
    ProducerIdAnswered,
    RequestMetadata,
    RequestProducerId,
    SendProduce,
    TopicWanted,
)
from ray_stream.client.producer_events import Effect as ProducerEffect
from ray_stream.client.producer_events import Event as ProducerEvent
from ray_stream.client.producer_events import Tick as ProducerTick
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import ConsumerConfig, ProducerConfig
from ray_stream.errors import OutcomeUnknownError, RayStreamError
from ray_stream.records.header import Compression
from ray_stream.records.reader import decode_columns, offsets
from ray_stream.rpc.messages import FetchRequest, ListOffsetsRequest
from ray_stream.testing import history
from ray_stream.testing.network import Network
from ray_stream.testing.scheduler import Event, Process, Scheduler
from ray_stream.types import TopicPartition

Write = Callable[[history.AnyEvent], None]


class SimulatedProducer:
    """One producer, sending unique values."""

    def __init__(
        self,
        name: str,
        scheduler: Scheduler,
        network: Network,
        rng: random.Random,
        write: Write,
    ) -> None:
        """Args: write: takes each line of the history."""
        self.name = name
        self.process = Process(name, "clients")
        self.unresolved = 0
        self.last_acknowledged_ms = 0
        self._scheduler = scheduler
        self._network = network
        self._rng = rng
        self._write = write
        self._core = ProducerCore(
            ProducerConfig(request_timeout_ms=1_500, delivery_timeout_ms=20_000), rng
        )
        self._batcher = Batcher(1 << 20, Compression.NONE, rng)
        self._values: dict[int, list[str]] = {}
        self._sent = 0
        self._timer: Event | None = None

    def send(self, topic: str, partition: int, count: int) -> None:
        """Send some new values to one partition, in one batch."""
        known = self._core.directory.topic(topic)
        if known is None:
            self._step(TopicWanted(topic))
            return
        values = [f"{self.name}-{self._sent + number}" for number in range(count)]
        self._sent += count
        columns = Columns(
            None,
            pa.array([value.encode() for value in values], pa.binary()),
            None,
            None,
            partition,
            base_timestamp=self._scheduler.now_ms,
            created_ms=self._scheduler.now_ms,
        )
        (batch,) = self._batcher.build(known, columns)
        self._values[id(batch)] = values
        self.unresolved += 1
        self._write(history.Invoke(self.name, values))
        self._step(BatchesBuilt([batch]))

    def _step(self, event: ProducerEvent) -> None:
        for effect in self._core.step(event, self._scheduler.now_ms):
            self._perform(effect)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_ms = self._core.next_deadline_ms
        if deadline_ms is not None:
            wait_ms = max(1, deadline_ms - self._scheduler.now_ms)
            self._timer = self._scheduler.after(
                wait_ms, lambda: self._step(ProducerTick()), self.process
            )

    def _perform(self, effect: ProducerEffect) -> None:
        match effect:
            case SendProduce(request_id, host, request):
                self._call(host, "produce", request, ProduceAnswered, request_id)
            case RequestMetadata(request_id, request):
                self._call("controller", "metadata", request, MetadataAnswered, request_id)
            case RequestProducerId(request_id, request):
                self._call(
                    "controller", "init_producer_id", request, ProducerIdAnswered, request_id
                )
            case Delivered():
                self._delivered(effect)
            case Failed():
                self._failed(effect)
            case _:
                pass

    def _call(
        self, target: str, method: str, request: Any, event: Callable[..., Any], request_id: int
    ) -> None:
        self._network.call(
            self.process,
            target,
            method,
            request,
            lambda answer: self._step(event(request_id, answer)),
        )

    def _delivered(self, effect: Delivered) -> None:
        batch = effect.batch
        values = self._resolved(batch)
        self.last_acknowledged_ms = self._scheduler.now_ms
        records = [(value, effect.base_offset + row) for row, value in enumerate(values)]
        self._write(history.Ok(self.name, f"{batch.topic}-{batch.partition}", records))

    def _failed(self, effect: Failed) -> None:
        values = self._resolved(effect.batch)
        unknown = isinstance(effect.error, OutcomeUnknownError)
        kind = history.Unknown if unknown else history.Fail
        self._write(kind(self.name, values))

    def _resolved(self, batch: Batch) -> list[str]:
        self.unresolved -= 1
        return self._values.pop(id(batch))


class SimulatedConsumer:
    """One consumer of all partitions, from the beginning."""

    def __init__(self, name: str, scheduler: Scheduler, network: Network, write: Write) -> None:
        """Args: write: takes each line of the history."""
        self.name = name
        self.process = Process(name, "clients")
        self.errors: list[RayStreamError] = []
        """What was raised to the user."""
        self._scheduler = scheduler
        self._network = network
        self._write = write
        config = ConsumerConfig(
            auto_offset_reset="earliest", request_timeout_ms=2_000, fetch_max_bytes=4_096
        )
        self._core = ConsumerCore(config, TopicDirectory())
        self._timer: Event | None = None

    def begin(self, starts: dict[TopicPartition, int]) -> None:
        """Read these from there on."""
        for name, offset in starts.items():
            self._write(history.Position(self.name, place_of(name), offset))
        self._step(Assign(starts))

    def positions(self) -> dict[TopicPartition, int]:
        """The next offset of each partition; -1 while it is not known."""
        return {name: state.position for name, state in self._core.states.items()}

    def _step(self, event: Any) -> None:
        for effect in self._core.step(event, self._scheduler.now_ms):
            if isinstance(effect, Send):
                self._send(effect)
        if self._take():
            self._scheduler.after(0, lambda: self._step(Tick()), self.process)
        if self._timer is not None:
            self._timer.cancel()
        wake_ms = self._core.wake_ms(self._scheduler.now_ms)
        if wake_ms is not None:
            wait_ms = max(1, wake_ms - self._scheduler.now_ms)
            self._timer = self._scheduler.after(wait_ms, lambda: self._step(Tick()), self.process)

    def _send(self, effect: Send) -> None:
        target, method = effect.host or "controller", "metadata"
        if isinstance(effect.request, FetchRequest):
            method = "fetch"
        elif isinstance(effect.request, ListOffsetsRequest):
            method = "list_offsets"
        self._network.call(
            self.process,
            target,
            method,
            effect.request,
            lambda answer: self._step(Answered(effect.request_id, answer)),
        )

    def _take(self) -> bool:
        """Take everything that is ready; say whether there was something."""
        taken = False
        while (state := self._core.ready()) is not None:
            taken = True
            if not state.buffer:
                self.errors.append(self._core.take_error(state))
                continue
            stored = state.buffer[0]
            columns = decode_columns(stored.header, stored.payload)
            numbers = offsets(stored.header, columns).to_pylist()
            values = columns.column("value").to_pylist()
            records = [
                (offset, value.decode())
                for offset, value in zip(numbers, values, strict=True)
                if offset >= state.position
            ]
            if records:
                self._write(history.Read(self.name, place_of(state.name), records))
            self._core.advance(state, stored.end)
        return taken


def place_of(name: TopicPartition) -> str:
    """A partition's name in the history."""
    return f"{name.topic}-{name.partition}"
