"""A cluster in one object, for tests of the client: topics whose batches are lists of bytes.

Owns: what a controller and partition actors would answer, gaps, empty and control batches included.
Refuses: time of its own and transport: tests bring virtual time and bad networks (`world`), or
threads (`threads`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ray_stream.clock import Clock
from ray_stream.config import TopicConfig, topic_config
from ray_stream.errors import (
    FencedLeaderEpochError,
    NotLeaderOrFollowerError,
    OffsetOutOfRangeError,
    RayStreamError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from ray_stream.log.segment import time_of
from ray_stream.metadata.commands import (
    AlterTopic,
    CreateTopic,
    DeleteTopic,
    PartitionMetadata,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    TopicMetadata,
)
from ray_stream.records.batch import split_batches
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.records.header import (
    FLAG_CONTROL,
    HEADER_BYTES,
    BatchHeader,
    decode_header,
    encode_header,
    stamp_header,
)
from ray_stream.records.reader import to_user_batch
from ray_stream.rpc.messages import (
    EARLIEST,
    LATEST,
    ErrorInfo,
    Extent,
    FetchRequest,
    FetchResponse,
    FetchResult,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsResult,
    MetadataRequest,
    MetadataResponse,
)
from ray_stream.types import TopicPartition

Reply = Callable[[Any], None]


@lru_cache(maxsize=10_000)
def _header(raw: bytes) -> BatchHeader:
    return decode_header(raw)


def stored(
    values: Sequence[bytes | None],
    base_offset: int,
    *,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[list[tuple[str, bytes | None]]] | None = None,
    timestamps: Sequence[int] | None = None,
    deltas: Sequence[int] | None = None,
    last_offset_delta: int | None = None,
    timestamp: int = 1_000,
    leader_epoch: int = 1,
    **options: Any,  # noqa: ANN401 - passed on to build_batch
) -> bytes:
    """One batch as a log holds it."""
    columns = RecordColumns(
        value=pa.array(values, pa.binary()),
        key=None if keys is None else pa.array(keys, pa.binary()),
        headers=None if headers is None else pa.array(headers, pa.map_(pa.string(), pa.binary())),
        timestamp=None if timestamps is None else pa.array(timestamps, pa.int64()),
        offset_delta=None if deltas is None else pa.array(deltas, pa.int32()),
        base_timestamp=timestamp,
    )
    raw = b"".join(build_batch(columns, last_offset_delta=last_offset_delta, **options))
    return restamped(raw, base_offset=base_offset, leader_epoch=leader_epoch)


def restamped(raw: bytes, *, base_offset: int, leader_epoch: int = 1, **changes: int) -> bytes:
    """The batch with a leader's stamps, and other fields changed."""
    header = stamp_header(
        decode_header(raw),
        base_offset=base_offset,
        leader_epoch=leader_epoch,
        append_timestamp=1_000,
        durable_offset=base_offset,
        log_append_time=False,
    )
    return encode_header(header._replace(**changes)) + raw[HEADER_BYTES:]


def empty(base_offset: int, offsets: int, *, control: bool = False) -> bytes:
    """A batch without records over some offsets; a control batch is one that users never see."""
    if control:
        raw = stored([b"marker"], base_offset)
        flags = decode_header(raw).flags | FLAG_CONTROL
        return restamped(raw, base_offset=base_offset, flags=flags)
    header = BatchHeader(
        payload_crc=0, last_offset_delta=offsets - 1, base_offset=base_offset, leader_epoch=1
    )
    return encode_header(header)


@dataclass
class Partition:
    """One partition's log and leader."""

    name: TopicPartition
    topic_id: str
    host: str
    leader_epoch: int = 1
    batches: list[bytes] = field(default_factory=list)
    log_start: int = 0
    offline_reason: str = ""
    damage: RayStreamError | None = None
    """What a read gets that reaches `damage_offset`."""
    damage_offset: int = -1
    sent_instead: dict[bytes, bytes] = field(default_factory=dict)
    """Bytes that are damaged on their way."""
    _visible: list[tuple[int, bytes | None]] = field(default_factory=list)
    _decoded: int = 0

    @property
    def end(self) -> int:
        return _header(self.batches[-1]).next_offset if self.batches else self.log_start

    def append(self, values: Sequence[bytes | None], **options: Any) -> int:  # noqa: ANN401
        """Append one batch of these values; returns its base offset."""
        base_offset = self.end
        options.setdefault("leader_epoch", self.leader_epoch)
        self.batches.append(stored(values, base_offset, **options))
        return base_offset

    def visible(self) -> list[tuple[int, bytes | None]]:
        """(offset, value) of every record that a user may see."""
        for raw in self.batches[self._decoded :]:
            for header, payload in split_batches(raw):
                rows = to_user_batch(header, payload, *self.name, 0)
                offsets, values = rows["offset"].to_pylist(), rows["value"].to_pylist()
                self._visible += zip(offsets, values, strict=True)
        self._decoded = len(self.batches)
        return self._visible

    def find(self, timestamp: int) -> int:
        """The first batch that holds such a record or a later one, by its header; -1: none."""
        for header in map(_header, self.batches):
            if time_of(header) >= timestamp and header.next_offset > self.log_start:
                return max(header.base_offset, self.log_start)
        return -1

    @property
    def file(self) -> bytes:
        """All batches, as a log has them in a file."""
        return b"".join(self.batches)

    def extent(self, offset: int, bytes_max: int) -> Extent | None:
        """What `read` gives, by its place in the file; the last batch may be cut off."""
        taken = self.read(offset, bytes_max)
        if not taken:
            return None
        file = self.file
        position = file.index(taken[0][:HEADER_BYTES])
        length = min(max(bytes_max, len(taken[0])), len(file) - position)
        path = f"{self.topic_id}-{self.name.partition}"
        return Extent(path, position, length, taken[0][:HEADER_BYTES], self.end)

    def read(self, offset: int, bytes_max: int) -> list[bytes]:
        if not self.log_start <= offset <= self.end:
            raise OffsetOutOfRangeError(*self.name, offset, self.log_start, self.end)
        taken: list[bytes] = []
        for raw in self.batches:
            header = _header(raw)
            if header.next_offset <= offset:
                continue
            if self.damage is not None and header.next_offset > self.damage_offset:
                if not taken:
                    raise self.damage
                break
            if taken and sum(map(len, taken)) + len(raw) > bytes_max:
                break
            taken.append(self.sent_instead.get(raw, raw))
        return [b"".join(taken)] if taken else []


@dataclass
class Topic:
    metadata: CreateTopic
    config: TopicConfig
    partitions: list[Partition]
    version: int = 0


@dataclass
class Parked:
    host: str
    request: FetchRequest
    reply: Reply
    deadline_ms: int


class FakeCluster:
    """Everything that clients talk to; one thread at a time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.topics: dict[str, Topic] = {}
        self.version = 1
        self.drawn = 0
        self.parked: list[Parked] = []
        self.fetches: list[tuple[str, FetchRequest]] = []
        """Every fetch that arrived."""
        self.metadata_requests: list[MetadataRequest] = []
        self.extent_bytes_max = 0
        """Readers who ask for extents get some that are no longer; 0: they get bytes."""

    # --- what tests do to it ---------------------------------------------------------------------

    def make(self, name: str, partitions: int = 1, *, hosts: Sequence[str] = ("host-a",)) -> Topic:
        self.drawn += 1
        self.version += 1
        topic_id = f"{self.drawn:032x}"
        command = CreateTopic(name, topic_id, partitions, 1, False, False, {})
        self.topics[name] = Topic(command, TopicConfig(), [])
        for _ in range(partitions):
            self.add_partition(name, hosts)
        return self.topics[name]

    def add_partition(self, name: str, hosts: Sequence[str] = ("host-a",)) -> None:
        self.version += 1
        topic = self.topics[name]
        number = len(topic.partitions)
        host = hosts[number % len(hosts)]
        place = TopicPartition(name, number)
        topic.partitions.append(Partition(place, topic.metadata.topic_id, host))

    def partition(self, name: str, number: int = 0) -> Partition:
        return self.topics[name].partitions[number]

    def append(self, name: str, number: int, values: Sequence[bytes | None], **options: Any) -> int:  # noqa: ANN401
        base_offset = self.partition(name, number).append(values, **options)
        self.wake()
        return base_offset

    def move(self, name: str, number: int, host: str) -> None:
        """Another actor leads the partition now; an empty name: nobody does."""
        partition = self.partition(name, number)
        partition.host = host
        partition.leader_epoch += 1
        self.version += 1
        self.wake()

    def delete(self, name: str) -> None:
        del self.topics[name]
        self.version += 1
        self.wake()

    # --- the controller --------------------------------------------------------------------------

    def metadata(self, request: MetadataRequest, reply: Reply) -> None:
        self.metadata_requests.append(request)
        names = list(self.topics) if request.topics is None else request.topics
        found = [self._describe(self.topics[name]) for name in names if name in self.topics]
        reply(MetadataResponse("cluster", 1, self.version, found, []))

    def _describe(self, topic: Topic) -> TopicMetadata:
        partitions = [
            PartitionMetadata(
                one.name.partition,
                1 if one.host else -1,
                one.leader_epoch,
                one.host,
                [1],
                [1],
                one.offline_reason,
            )
            for one in topic.partitions
        ]
        asked = topic.metadata
        return TopicMetadata(
            asked.name, asked.topic_id, 1, asked.dedicated, topic.config, topic.version, partitions
        )

    def create_topic(self, request: CreateTopic, reply: Reply) -> None:
        known = self.topics.get(request.name)
        if known is not None:
            if known.metadata.topic_id == request.topic_id or request.exist_ok:
                reply(TopicCreated(known.metadata.topic_id, True))
            else:
                reply(TopicAlreadyExistsError(request.name))
            return
        self.version += 1
        config = topic_config(request.options, request.name)
        topic = self.topics[request.name] = Topic(request, config, [])
        for number in range(request.partitions):
            place = TopicPartition(request.name, number)
            topic.partitions.append(Partition(place, request.topic_id, "host-a"))
        reply(TopicCreated(request.topic_id, False))

    def alter_topic(self, request: AlterTopic, reply: Reply) -> None:
        topic = self.topics.get(request.name)
        if topic is None:
            reply(UnknownTopicOrPartitionError(request.name))
            return
        topic.config = topic_config(request.options, request.name, topic.config)
        topic.version += 1
        for _ in range(len(topic.partitions), request.partitions or 0):
            self.add_partition(request.name)
        reply(TopicAltered(topic.metadata.topic_id, topic.version))

    def delete_topic(self, request: DeleteTopic, reply: Reply) -> None:
        topic = self.topics.get(request.name)
        if topic is None:
            reply(UnknownTopicOrPartitionError(request.name))
            return
        self.delete(request.name)
        reply(TopicDeleted(topic.metadata.topic_id))

    # --- partition actors ------------------------------------------------------------------------

    def fetch(self, host: str, request: FetchRequest, reply: Reply) -> None:
        self.fetches.append((host, request))
        deadline_ms = self.clock.monotonic_ms() + request.max_wait_ms
        self.parked.append(Parked(host, request, reply, deadline_ms))
        self.wake()

    def wake(self) -> None:
        """Answer the fetches that have something, or no time left."""
        waiting, self.parked = self.parked, []
        for one in waiting:
            answer = self._read(one)
            if answer is None:
                self.parked.append(one)
            else:
                one.reply(answer)

    def next_deadline_ms(self) -> int | None:
        return min((one.deadline_ms for one in self.parked), default=None)

    def _read(self, parked: Parked) -> FetchResponse | None:
        results: list[FetchResult] = []
        batches: list[bytes] = []
        granted = 0
        failed = False
        for asked in parked.request.partitions:
            space = parked.request.max_bytes - sum(map(len, batches))
            found = self._led(parked.host, asked.topic_id, asked.partition, asked.leader_epoch)
            taken: list[bytes] = []
            error = extent = None
            extent_bytes = min(parked.request.extent_bytes, self.extent_bytes_max)
            if isinstance(found, Partition):
                try:
                    if extent_bytes:
                        extent = found.extent(asked.fetch_offset, extent_bytes)
                    elif space > 0:
                        taken = found.read(asked.fetch_offset, min(asked.max_bytes, space))
                except RayStreamError as refused:
                    error = ErrorInfo.of(refused)
            else:
                error = ErrorInfo.of(found)
            failed = failed or error is not None
            end = found.end if isinstance(found, Partition) else -1
            results.append(
                FetchResult(
                    asked.topic_id,
                    asked.partition,
                    error=error,
                    buffers=len(taken),
                    high_watermark=end,
                    last_stable_offset=end,
                    extent=extent,
                )
            )
            batches += taken
            granted += extent.length if extent is not None else 0
        enough = granted + sum(map(len, batches)) >= parked.request.min_bytes
        if failed or enough or self.clock.monotonic_ms() >= parked.deadline_ms:
            return FetchResponse(results, batches)
        return None

    def file(self, path: str) -> bytes | None:
        """What stands there; None: the topic is gone."""
        for topic in self.topics.values():
            for one in topic.partitions:
                if path == f"{one.topic_id}-{one.name.partition}":
                    return one.file
        return None

    def _led(
        self, host: str, topic_id: str, number: int, leader_epoch: int
    ) -> Partition | RayStreamError:
        for topic in self.topics.values():
            if topic.metadata.topic_id == topic_id and number < len(topic.partitions):
                found = topic.partitions[number]
                if found.host != host:
                    break
                if leader_epoch != found.leader_epoch:
                    return FencedLeaderEpochError(str(leader_epoch))
                return found
        return NotLeaderOrFollowerError(f"{topic_id}-{number} on {host}")

    def list_offsets(self, host: str, request: ListOffsetsRequest, reply: Reply) -> None:
        results = []
        for asked in request.partitions:
            found = self._led(host, asked.topic_id, asked.partition, asked.leader_epoch)
            if not isinstance(found, Partition):
                error = ErrorInfo.of(found)
                results.append(ListOffsetsResult(asked.topic_id, asked.partition, error=error))
                continue
            offset = {EARLIEST: found.log_start, LATEST: found.end}.get(asked.timestamp)
            if offset is None:
                offset = found.find(asked.timestamp)
            results.append(ListOffsetsResult(asked.topic_id, asked.partition, offset=offset))
        reply(ListOffsetsResponse(results))
