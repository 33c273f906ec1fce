"""A cluster behind a thread for producers: leaders with the real rules, a gate in front of them.

Owns: topics, what is refused, lost or held back, and reading back what was written. Refuses: reads
by clients, and virtual time (`produce_world`).
"""

import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from ray_stream.client.producer import Producer
from ray_stream.clock import SystemClock
from ray_stream.config import TopicConfig
from ray_stream.errors import RayStreamError, UnknownTopicIdError
from ray_stream.metadata.commands import (
    InitProducerId,
    PartitionMetadata,
    ProducerIdGiven,
    TopicMetadata,
)
from ray_stream.records.batch import check_batch
from ray_stream.records.header import HEADER_BYTES
from ray_stream.records.reader import to_user_batch
from ray_stream.rpc.messages import (
    ErrorInfo,
    MetadataRequest,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from ray_stream.rpc.services import Box
from tests.unit.client.produce_world import Leader

CLOCK = SystemClock()
Make = Callable[..., Producer]


class Written(NamedTuple):
    """One record as it stands in a log."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes | None]]


class Topic:
    """One topic incarnation."""

    def __init__(self, name: str, topic_id: str, partitions: int, config: TopicConfig) -> None:
        self.name = name
        self.topic_id = topic_id
        self.config = config
        self.leaders = [Leader(topic_id, number) for number in range(partitions)]
        self.batches: list[tuple[int, int, bytes]] = []
        """(partition, base offset, bytes) of every batch in the order of arrival."""


class ProduceServices:
    """`Services` for a producer."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.version = 1
        self.producer_ids = 0
        self.silent: set[str] = set()
        """Methods whose requests are lost."""
        self.instead: dict[str, list[RayStreamError]] = {}
        """Errors that the next calls of a method get instead of being carried out."""
        self.requests: list[tuple[str, Any]] = []
        self.arrived = threading.Semaphore(0)
        """Counts produce requests."""
        self.gate = threading.Event()
        """While it is not set, produce requests are held back."""
        self.gate.set()
        self._held: list[Callable[[], None]] = []
        self._posted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    # --- what tests do to it -------------------------------------------------------------------

    def make(self, name: str = "t", partitions: int = 1, **config: Any) -> Topic:  # noqa: ANN401
        self.version += 1
        topic_id = f"{self.version:032x}"
        self.topics[name] = Topic(name, topic_id, partitions, TopicConfig(**config))
        return self.topics[name]

    def add_partition(self, name: str) -> None:
        self.version += 1
        topic = self.topics[name]
        topic.leaders.append(Leader(topic.topic_id, len(topic.leaders)))

    def configure(self, name: str, **config: Any) -> None:  # noqa: ANN401
        self.version += 1
        self.topics[name].config = TopicConfig(**config)

    def delete(self, name: str) -> None:
        self.version += 1
        del self.topics[name]

    def open_gate(self) -> None:
        """Let everything through that was held back, and what comes."""
        self.gate.set()
        self._posted.put(self._release)

    def written(self, name: str = "t") -> list[Written]:
        """Every record, by partition and offset."""
        records: list[Written] = []
        for partition, base_offset, raw in self.topics[name].batches:
            header = check_batch(raw)._replace(base_offset=base_offset)
            payload = memoryview(raw)[HEADER_BYTES:]
            rows = to_user_batch(header, payload, name, partition, 0)
            records += [
                Written(*(row[field] for field in Written._fields)) for row in rows.to_pylist()
            ]
        return sorted(records)

    def values(self, name: str = "t") -> list[bytes | None]:
        return [record.value for record in self.written(name)]

    def counted(self, method: str) -> int:
        return sum(one == method for one, _ in self.requests)

    # --- services --------------------------------------------------------------------------------

    @property
    def controller(self) -> Any:  # noqa: ANN401 - a ControllerService
        return self

    def attend(self, box: Box, wait_ms: int) -> bool:
        """There are no sockets here."""
        del box, wait_ms
        return False

    def partitions(self, host: str) -> Any:  # noqa: ANN401 - a PartitionService
        assert host == "host-a"
        return self

    def metadata(self, request: MetadataRequest, reply: Callable[[Any], None]) -> None:
        self._posted.put(partial(self._serve, "metadata", self._describe, request, reply))

    def init_producer_id(self, request: InitProducerId, reply: Callable[[Any], None]) -> None:
        self._posted.put(partial(self._serve, "init_producer_id", self._identify, request, reply))

    def produce(self, request: ProduceRequest, reply: Callable[[Any], None]) -> None:
        self.arrived.release()
        self._posted.put(partial(self._serve, "produce", self._append, request, reply))

    def _serve(
        self,
        method: str,
        carry_out: Callable[[Any], object],
        request: object,
        reply: Callable[[Any], None],
    ) -> None:
        if method == "produce" and not self.gate.is_set():
            self._held.append(partial(self._serve, method, carry_out, request, reply))
            return
        self.requests.append((method, request))
        if method in self.silent:
            return
        errors = self.instead.get(method)
        reply(errors.pop(0) if errors else carry_out(request))

    def _release(self) -> None:
        held, self._held = self._held, []
        for one in held:
            one()

    def _describe(self, request: MetadataRequest) -> MetadataResponse:
        found = [
            self._described(self.topics[name])
            for name in request.topics or ()
            if name in self.topics
        ]
        return MetadataResponse("cluster", 1, self.version, found, [])

    def _described(self, topic: Topic) -> TopicMetadata:
        partitions = [
            PartitionMetadata(one.partition, 1, one.epoch, one.host, [1], [1], "")
            for one in topic.leaders
        ]
        return TopicMetadata(topic.name, topic.topic_id, 1, False, topic.config, 0, partitions)

    def _identify(self, _: InitProducerId) -> ProducerIdGiven:
        self.producer_ids += 1
        return ProducerIdGiven(self.producer_ids, 0)

    def _append(self, request: ProduceRequest) -> ProduceResponse:
        results = []
        known = {topic.topic_id: topic for topic in self.topics.values()}
        for address, raw in zip(request.partitions, request.batches, strict=True):
            topic = known.get(address.topic_id)
            if topic is None:
                info = ErrorInfo.of(UnknownTopicIdError(address.topic_id))
                results.append(ProduceResult(address.topic_id, address.partition, error=info))
                continue
            leader = topic.leaders[address.partition]
            result = leader.append(bytes(raw), CLOCK.now_ms(), copied=False)
            if result.error is None and not result.duplicate:
                topic.batches.append((address.partition, result.base_offset, bytes(raw)))
            results.append(result)
        return ProduceResponse(results)

    def _loop(self) -> None:
        while (posted := self._posted.get()) is not None:
            posted()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._posted.put(None)
        self._thread.join(timeout=10)
