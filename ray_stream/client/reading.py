"""A bounded read of one topic: no group, no handle to close, the notebook's one-liner.

Owns: what lies between two places of a topic, fixed when the call begins. Refuses: following a
topic as it grows (`consumer`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ray_stream.client.arguments import count_of
from ray_stream.client.calls import Deadline, timed_out
from ray_stream.client.consumer_core import ConsumerCore
from ray_stream.client.consumer_events import Assign
from ray_stream.client.decoding import Decoder
from ray_stream.client.driving import Driver
from ray_stream.client.handout import HandOut, TakenBatch
from ray_stream.client.lookups import Lookups, check_partition
from ray_stream.client.starts import places, resolved
from ray_stream.clock import Clock
from ray_stream.config import ConsumerConfig, check_topic_name
from ray_stream.errors import InvalidArgumentError, OffsetOutOfRangeError
from ray_stream.records.schema import RECORD_SCHEMA
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.rpc.services import Services
from ray_stream.types import StartPosition, TopicPartition

DEFAULT_TIMEOUT_S = 30.0


def read(
    services: Services,
    clock: Clock,
    topic: str,
    start: StartPosition = "earliest",
    end: StartPosition = "latest",
    partitions: Sequence[int] | None = None,
    max_bytes: int | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
) -> pa.Table:
    """What a topic holds between two places, as one table: by partition, and there by offset.

    Arguments and errors are those of `read_batches`.
    """
    reading = _Reading(services, clock, topic, start, end, partitions, max_bytes, timeout)
    by_partition: dict[int, list[pa.RecordBatch]] = {}
    for taken in reading:
        by_partition.setdefault(taken.name.partition, []).append(taken.rows)
    ordered = [batch for number in sorted(by_partition) for batch in by_partition[number]]
    return pa.Table.from_batches(ordered, RECORD_SCHEMA)


def read_batches(
    services: Services,
    clock: Clock,
    topic: str,
    start: StartPosition = "earliest",
    end: StartPosition = "latest",
    partitions: Sequence[int] | None = None,
    max_bytes: int | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
) -> Iterator[pa.RecordBatch]:
    """What a topic holds between two places, batch by batch; each partition in order.

    Args:
        services: how to reach the cluster.
        clock: for timeouts.
        topic: its name.
        start: the first offset that is wanted; a dict names the partitions to read.
        end: the first that is not; fixed now, so what is written meanwhile is left out.
        partitions: which; None: all.
        max_bytes: stop when that many stored bytes were read; what is left is left out.
        timeout: seconds to wait at most for the next batch.

    Raises:
        UnknownTopicOrPartitionError: no such topic or partition.
        OffsetOutOfRangeError: a start or end that the partition does not hold.
        InvalidArgumentError: an argument that cannot be used.
        TimeoutExpiredError: nothing came for `timeout`.
        CorruptRecordError: damage; a `start` of `error.next_offset` goes on behind it.
    """
    reading = _Reading(services, clock, topic, start, end, partitions, max_bytes, timeout)
    return (taken.rows for taken in reading)


class _Reading:
    """One bounded read: places are fixed when it is made, records come as it is iterated."""

    def __init__(
        self,
        services: Services,
        clock: Clock,
        topic: str,
        start: StartPosition,
        end: StartPosition,
        partitions: Sequence[int] | None,
        max_bytes: int | None,
        timeout: float | None,
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self._topic = check_topic_name(topic)
        self._max_bytes = 2**62 if max_bytes is None else count_of("max_bytes", max_bytes)
        config = ConsumerConfig(auto_offset_reset="error")
        lookups = Lookups(services, clock)
        deadline = Deadline(clock, timeout)
        names = self._names(lookups, partitions, start, deadline)
        starts, ends = self._range(lookups, names, start, end, deadline)
        self._core = ConsumerCore(config, lookups.directory)
        driver = Driver(services, clock, self._core)
        self._hand_out = HandOut(self._core, driver, Decoder(config))
        driver.step(Assign(starts, ends))

    def _names(
        self,
        lookups: Lookups,
        partitions: object,
        start: StartPosition,
        deadline: Deadline,
    ) -> list[TopicPartition]:
        known = lookups.topic(self._topic, deadline)
        if partitions is None:
            numbers: list[Any] = [one.partition for one in known.partitions]
            if isinstance(start, Mapping):
                numbers = list(start)
        elif isinstance(partitions, str) or not isinstance(partitions, Sequence):
            raise InvalidArgumentError(f"partitions={partitions!r}: a list of numbers is needed")
        else:
            numbers = list(dict.fromkeys(partitions))
        names = [TopicPartition(self._topic, number) for number in numbers]
        for name in names:
            check_partition(lookups.directory, name)
        return names

    def _range(
        self,
        lookups: Lookups,
        names: list[TopicPartition],
        start: StartPosition,
        end: StartPosition,
        deadline: Deadline,
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        last = dict.fromkeys(names, LATEST) | places(end, names, "end")
        first = dict.fromkeys(names, EARLIEST) | places(start, names, "start")
        level = "read_committed"
        beginnings = lookups.offsets(dict.fromkeys(names, EARLIEST), deadline, level)
        present = lookups.offsets(dict.fromkeys(names, LATEST), deadline, level)
        ends = resolved(last, lookups, deadline, isolation_level=level, as_ends=True)
        starts = resolved(first, lookups, deadline, isolation_level=level)
        for name in names:
            for place, typed in ((starts[name], first[name]), (ends[name], last[name])):
                if typed == place and not beginnings[name] <= place <= present[name]:
                    raise OffsetOutOfRangeError(*name, place, beginnings[name], present[name])
        return starts, ends

    def __iter__(self) -> Iterator[TakenBatch]:
        left = self._max_bytes
        while left > 0:
            deadline = Deadline(self._clock, self._timeout)
            taken = self._hand_out.next_batch(deadline)
            if taken is None:
                if self._core.is_done:
                    return
                raise timed_out(f"reading topic {self._topic!r}", deadline, None)
            yield taken
            left -= taken.stored_bytes
