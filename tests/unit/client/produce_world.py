"""Virtual time, leaders with the real rules of the log, and a bad network around a producer's core.

Owns: the queue of what will happen, partitions whose batches pass `log.append.stage`, and the fates
of messages. One seed gives one run. Refuses: judging; tests compare `sent`, `log` and `outcomes`.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from ray_stream.client.batch import Batch
from ray_stream.client.batching_core import Batcher
from ray_stream.client.columns import Columns, Single
from ray_stream.client.express import Express
from ray_stream.client.producer_core import ProducerCore
from ray_stream.client.producer_events import (
    Abandoned,
    Alone,
    BatchesBuilt,
    Delivered,
    Effect,
    Event,
    Failed,
    MetadataAnswered,
    ProduceAnswered,
    ProducerIdAnswered,
    RequestMetadata,
    RequestProducerId,
    SendProduce,
    Tick,
    TopicsDescribed,
    TopicWanted,
    WentAlone,
    is_acknowledgement,
)
from ray_stream.config import ProducerConfig, TopicConfig
from ray_stream.errors import (
    ClosedError,
    FencedLeaderEpochError,
    LeaderNotAvailableError,
    NotLeaderOrFollowerError,
    OutcomeUnknownError,
    RayStreamError,
    UnknownTopicIdError,
)
from ray_stream.log.append import Stamps, stage
from ray_stream.log.options import LogOptions
from ray_stream.log.producers import Producers
from ray_stream.metadata.commands import PartitionMetadata, ProducerIdGiven, TopicMetadata
from ray_stream.records.header import (
    HEADER_BYTES,
    BatchHeader,
    Compression,
    decode_header,
    encode_header,
)
from ray_stream.records.reader import decode_columns
from ray_stream.rpc.messages import (
    ErrorInfo,
    MetadataResponse,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from ray_stream.types import Durability

EXPIRY_MS = 86_400_000


@dataclass
class Leader:
    """One partition: where it is served, and its log."""

    topic_id: str
    partition: int
    host: str = "host-a"
    epoch: int = 1
    producers: Producers = field(default_factory=Producers)
    headers: list[BatchHeader] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    copied: list[bool] = field(default_factory=list)
    """Whether a repeated request brought the record, which its sender does not know of."""
    refusals: list[RayStreamError] = field(default_factory=list)
    """What the next batches are refused with."""

    def append(self, raw: bytes, now_ms: int, *, copied: bool) -> ProduceResult:
        if self.refusals:
            return self._refused(self.refusals.pop(0))
        options = LogOptions(
            "t", self.topic_id, self.partition, Durability.FSYNC, 1 << 30, 1 << 30, 1 << 16,
            64 << 20, log_append_time=False,
        )  # fmt: skip
        stamps = Stamps(len(self.values), self.epoch, now_ms, len(self.values))
        draft = self.producers.draft(now_ms=now_ms, expiry_ms=EXPIRY_MS)
        (result,), staged = stage([raw], options, draft, stamps)
        if isinstance(result, RayStreamError):
            return self._refused(result)
        for one in staged:
            self.headers.append(one.header)
            self.producers.replay(one.header, expiry_ms=EXPIRY_MS)
            columns = decode_columns(one.header, one.payload)
            if "value" in columns.schema.names:
                self.values += columns.column("value").to_pylist()
            else:
                self.values += [b""] * columns.num_rows
            self.copied += [copied] * columns.num_rows
        return ProduceResult(
            self.topic_id,
            self.partition,
            base_offset=result.base_offset,
            append_timestamp=result.append_timestamp,
            durability="fsync",
            duplicate=result.duplicate,
        )

    def forget(self) -> None:
        """Lose all records and all memory of producers, as unsynced data after a power loss."""
        self.producers = Producers()
        self.values.clear()
        self.headers.clear()

    def _refused(self, error: RayStreamError) -> ProduceResult:
        return ProduceResult(self.topic_id, self.partition, error=ErrorInfo.of(error))


class ProduceWorld:
    """A producer's core, partitions, a controller, and the network between them."""

    def __init__(
        self, seed: int = 0, *, partitions: int = 1, config: ProducerConfig | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.time_ms = 1_000
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.numbered = 0
        self.config = config or ProducerConfig()
        self.core = ProducerCore(self.config, random.Random(seed + 1))
        self.batcher = Batcher(self.config.batch_size, Compression.NONE, random.Random(seed + 2))
        self.express = Express(self, self.config, self, self.batcher, self._hear)  # type: ignore[arg-type]
        self.interrupted = 0.0
        self.asked_host = ""
        self.went_alone = 0
        """Records that went past the core."""
        self.topic_id = "id-1"
        self.leaders = [Leader("id-1", number) for number in range(partitions)]
        self.exists = True
        self.version = 1
        self.producer_ids = 0
        self.loss = 0.0
        self.repeat = 0.0
        self.told = 0.5
        """Chance that a lost message is told as an unknown outcome."""
        self.delay_max_ms = 2
        self.silent: set[str] = set()
        """Hosts that answer nothing."""
        self.ready = True
        self.sends: list[SendProduce] = []
        self.inquiries: list[RequestMetadata | RequestProducerId] = []
        self.described: list[TopicsDescribed] = []
        self.sent: dict[int, list[Batch]] = {number: [] for number in range(partitions)}
        self.outcomes: dict[int, Delivered | Failed] = {}
        """By `id` of the batch; each batch is kept in `sent`."""

    # --- the user ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Find out about the topic."""
        self.step(TopicWanted("t"))
        self.run(until=lambda: self.core.directory.topic("t") is not None)

    def send(self, partition: int, *values: bytes) -> Batch:
        """Hand one batch to the core."""
        return self.send_all([(partition, values)])[0]

    def send_all(self, groups: Sequence[tuple[int, Sequence[bytes]]]) -> list[Batch]:
        """Hand several batches to the core at once."""
        topic = self.core.directory.topic("t")
        assert topic is not None
        batches: list[Batch] = []
        for partition, values in groups:
            columns = Columns(
                None, pa.array(values, pa.binary()), None, None, partition, 7, self.time_ms
            )
            batches += self.batcher.build(topic, columns)
            self.sent[partition].append(batches[-1])
        self.step(BatchesBuilt(batches))
        return batches

    def send_alone(self, partition: int, value: bytes, *, interrupted: float = 0.0) -> Batch:
        """Send one record past the core if there is a pass, else hand it to the core.

        Args:
            partition: where it goes.
            value: the record.
            interrupted: chance that its caller is interrupted while it writes the request.
        """
        topic = self.core.directory.topic("t")
        assert topic is not None
        record = Single(None, value, partition, 7, self.time_ms, 0, [])
        self.interrupted = interrupted
        try:
            went = self.express.send(topic, record, lambda: True)
        except KeyboardInterrupt:
            went = True
        self.interrupted = 0.0
        if went:
            batch = self.express._lanes[topic.topic_id, partition].sent[-1].batch
            self.went_alone += 1
        else:
            batch = self.batcher.build_single(topic, record, partition)
            self.express.noted(batch)
            self.step(BatchesBuilt([batch]))
        self.sent[partition].append(batch)
        return batch

    def outcome(self, batch: Batch) -> Delivered | Failed | None:
        return self.outcomes.get(id(batch))

    def error(self, batch: Batch) -> RayStreamError | None:
        outcome = self.outcome(batch)
        return outcome.error if isinstance(outcome, Failed) else None

    def offset(self, batch: Batch) -> int | None:
        outcome = self.outcome(batch)
        return outcome.base_offset if isinstance(outcome, Delivered) else None

    def log(self, partition: int = 0) -> list[bytes]:
        return self.leaders[partition].values

    def numbers(self, partition: int = 0) -> list[tuple[int, int, int]]:
        """(producer id, epoch, first sequence) of each batch in a log."""
        return [
            (header.producer_id, header.producer_epoch, header.base_sequence)
            for header in self.leaders[partition].headers
        ]

    # --- what happens to the cluster -----------------------------------------------------------

    def move(self, partition: int, host: str) -> None:
        """Another actor leads; an empty name: nobody does."""
        self.leaders[partition].host = host
        self.leaders[partition].epoch += 1
        self.version += 1

    def delete(self) -> None:
        self.exists = False
        self.version += 1

    def make_anew(self) -> None:
        self.topic_id += "-again"
        self.exists = True
        self.version += 1
        self.leaders = [Leader(self.topic_id, one.partition) for one in self.leaders]

    # --- time ----------------------------------------------------------------------------------

    def at(self, delay_ms: int, action: Callable[[], None]) -> None:
        self.numbered += 1
        heapq.heappush(self.queue, (self.time_ms + delay_ms, self.numbered, action))

    def run(self, ms: int = 600_000, *, until: Callable[[], bool] | None = None) -> None:
        """Let time pass: until something is so, or nothing is left to happen, or for `ms`."""
        end_ms = self.time_ms + ms
        while until is None or not until():
            due = [at_ms for at_ms in (self.core.next_deadline_ms,) if at_ms is not None]
            if self.queue:
                due.append(self.queue[0][0])
            if not due or min(due) > end_ms:
                self.time_ms = end_ms
                return
            self.time_ms = max(self.time_ms, min(due))
            if self.queue and self.queue[0][0] <= self.time_ms:
                heapq.heappop(self.queue)[2]()
            else:
                self.step(Tick())

    def settle(self) -> None:
        """Until every batch has its outcome."""
        count = sum(map(len, self.sent.values()))
        self.run(until=lambda: len(self.outcomes) == count)

    # --- the network ---------------------------------------------------------------------------

    def step(self, event: Event) -> None:
        """As the sender does: passes are taken back before anything but acknowledgements."""
        due_ms = self.core.next_deadline_ms
        is_due = due_ms is not None and due_ms <= self.time_ms
        close = is_due or not is_acknowledgement(event)
        self.express.take(self._adopt, self.time_ms, close=close)
        self._step(event)
        if self.rng.random() < 0.8:
            self.express.give(lambda key: self.core.pass_for(*key, self.time_ms))

    def _adopt(self, sent: list[Alone]) -> None:
        self._step(WentAlone(sent))

    def _step(self, event: Event) -> None:
        for effect in self.core.step(event, self.time_ms):
            self._perform(effect)

    # As `Services`, `PartitionService` and `Clock`, for passes.

    def partitions(self, host: str) -> "ProduceWorld":
        self.asked_host = host
        return self

    def produce(self, request: ProduceRequest, reply: Callable[[object], None]) -> None:
        if self.rng.random() < self.interrupted / 2:
            raise KeyboardInterrupt
        answered = partial(self._answer_to, reply)
        self._travel(partial(self._produce, self.asked_host, request, answered), answered)
        if self.rng.random() < self.interrupted:
            raise KeyboardInterrupt

    def monotonic_ms(self) -> int:
        return self.time_ms

    def _hear(self, event: ProduceAnswered | None) -> None:
        if event is not None:
            self.step(event)

    def _answer_to(self, reply: Callable[[object], None], answer: object) -> None:
        if self.rng.random() >= self.loss:
            self.at(self._delay(), partial(reply, answer))
        elif self.rng.random() < self.told:
            self.at(self._delay(), partial(reply, OutcomeUnknownError("the answer was lost")))

    def abandon(self) -> None:
        self.step(Abandoned(ClosedError("abandoned")))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendProduce(request_id, host, request):
                self.sends.append(effect)
                answered = partial(self._answer, partial(ProduceAnswered, request_id))
                self._travel(partial(self._produce, host, request, answered), answered)
                if self.rng.random() < self.repeat:
                    copy = partial(self._produce, host, request, lambda _: None, copied=True)
                    self.at(self._delay() * 10, copy)
            case RequestMetadata(request_id):
                self.inquiries.append(effect)
                answered = partial(self._answer, partial(MetadataAnswered, request_id))
                self._travel(partial(self._metadata, answered), answered)
            case RequestProducerId(request_id):
                self.inquiries.append(effect)
                answered = partial(self._answer, partial(ProducerIdAnswered, request_id))
                self._travel(partial(self._producer_id, answered), answered)
            case TopicsDescribed():
                self.described.append(effect)
            case Delivered(batch) | Failed(batch):
                assert id(batch) not in self.outcomes, "an outcome is final"
                self.outcomes[id(batch)] = effect

    def _delay(self) -> int:
        return self.rng.randint(0, self.delay_max_ms)

    def _travel(
        self, arrive: Callable[[], None], answered: Callable[[RayStreamError], None]
    ) -> None:
        if self.rng.random() >= self.loss:
            self.at(self._delay(), arrive)
        elif self.rng.random() < self.told:
            self.at(self._delay(), partial(answered, OutcomeUnknownError("lost")))

    def _answer(self, event_of: Callable[[object], Event], answer: object) -> None:
        if self.rng.random() >= self.loss:
            self.at(self._delay(), lambda: self.step(event_of(answer)))
        elif self.rng.random() < self.told:
            lost = OutcomeUnknownError("the answer was lost")
            self.at(self._delay(), lambda: self.step(event_of(lost)))

    def _produce(
        self,
        host: str,
        request: ProduceRequest,
        answered: Callable[[ProduceResponse], None],
        *,
        copied: bool = False,
    ) -> None:
        if host in self.silent:
            return
        results = []
        for address, raw in zip(request.partitions, request.batches, strict=True):
            leader = self.leaders[address.partition]
            error: RayStreamError | None = None
            if not self.exists or leader.topic_id != address.topic_id:
                error = UnknownTopicIdError(address.topic_id)
            elif not self.ready:
                error = LeaderNotAvailableError("not ready")
            elif leader.host != host:
                error = NotLeaderOrFollowerError(f"{host} does not lead")
            elif leader.epoch != address.leader_epoch:
                error = FencedLeaderEpochError("an old epoch")
            if error is None:
                results.append(leader.append(raw, self.time_ms, copied=copied))
            else:
                info = ErrorInfo.of(error)
                results.append(ProduceResult(address.topic_id, address.partition, error=info))
        answered(ProduceResponse(results))

    def _metadata(self, answered: Callable[[MetadataResponse], None]) -> None:
        if "controller" in self.silent:
            return
        partitions = [
            PartitionMetadata(
                one.partition, 1 if one.host else -1, one.epoch, one.host, [1], [1], ""
            )
            for one in self.leaders
        ]
        topic = TopicMetadata("t", self.topic_id, 1, False, TopicConfig(), 0, partitions)
        answered(MetadataResponse("cluster", 1, self.version, [topic] if self.exists else [], []))

    def _producer_id(self, answered: Callable[[ProducerIdGiven], None]) -> None:
        if "controller" in self.silent:
            return
        self.producer_ids += 1
        answered(ProducerIdGiven(self.producer_ids, 0))


def resequenced(raw: bytes, **changes: int) -> bytes:
    """A batch with other header fields."""
    return encode_header(decode_header(raw)._replace(**changes)) + raw[HEADER_BYTES:]


def values_of(batch: Batch) -> list[bytes]:
    """The values in a batch."""
    raw = batch.bytes()
    columns = decode_columns(decode_header(raw), memoryview(raw)[HEADER_BYTES:])
    values: list[bytes] = columns.column("value").to_pylist()
    return values
