"""What is measured, behind one face: the same work, as fast as each side's own API allows.

Owns: the `Peer` protocol, and ray_stream as one. Refuses: timing, statistics (`compare`).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

import ray_stream
from ray_stream import Cluster, TopicPartition

PARTITIONS = 6
LINGER_MS = 5
BATCH_BYTES = 1024 * 1024


class Peer(Protocol):
    """One system under measurement. Every method returns seconds for the work, no set-up in it."""

    name: str

    def start(self, data_dir: Path) -> float:
        """Bring it up; seconds until it answered first."""

    def stop(self) -> None:
        """End it."""

    def make_topic(self, topic: str, *, partitions: int, fsync: bool) -> None:
        """A topic that keeps the promise that is compared."""

    def send_each(
        self, topic: str, value: bytes, count: int, keys: Sequence[bytes] | None
    ) -> float:
        """One call a record, until all are acknowledged by `acks=all`, idempotently."""

    def send_all(self, topic: str, value: bytes, count: int) -> float:
        """The fastest way to hand over many."""

    def read_each(self, topic: str, count: int) -> float:
        """One object a record, touching offset, key and value."""

    def read_all(self, topic: str, count: int) -> float:
        """The fastest way to take in many."""

    def round_trips(self, topic: str, count: int) -> list[float]:
        """Produce one, consume it, one in flight: seconds each."""


class RayStream:
    """Ours, on an embedded Ray."""

    name = "ray_stream"

    def __init__(self) -> None:
        self._cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        """The one that runs."""
        assert self._cluster is not None
        return self._cluster

    def start(self, data_dir: Path) -> float:
        """Start an embedded Ray and a cluster; until the first record is acknowledged."""
        begun = time.perf_counter()
        self._cluster = ray_stream.start(data_dir=data_dir)
        self.make_topic("warm", partitions=1, fsync=True)
        with self.cluster.producer() as producer:
            producer.send_and_wait("warm", b"first")
        return time.perf_counter() - begun

    def stop(self) -> None:
        """Stop everything."""
        self.cluster.close()

    def make_topic(self, topic: str, *, partitions: int, fsync: bool) -> None:
        """With the durability that is compared."""
        durability = "fsync" if fsync else "replicated"
        self.cluster.create_topic(topic, partitions=partitions, durability=durability)

    def send_each(
        self, topic: str, value: bytes, count: int, keys: Sequence[bytes] | None
    ) -> float:
        """`send` in a loop, then `flush`."""
        with self._producer() as producer:
            producer.partitions_for(topic)
            send = producer.send
            begun = time.perf_counter()
            if keys is None:
                for _ in range(count):
                    send(topic, value)
            else:
                for key in keys:
                    send(topic, value, key)
            producer.flush()
            return time.perf_counter() - begun

    def send_all(self, topic: str, value: bytes, count: int) -> float:
        """`send_batch` of Arrow data, 50,000 records a call."""
        rows = 50_000
        offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * len(value))
        values = pa.Array.from_buffers(
            pa.binary(), rows, [None, offsets, pa.py_buffer(value * rows)]
        )
        batch = pa.record_batch({"value": values})
        with self._producer() as producer:
            producer.partitions_for(topic)
            begun = time.perf_counter()
            for _ in range(count // rows):
                producer.send_batch(topic, batch)
            producer.flush()
            return time.perf_counter() - begun

    def read_each(self, topic: str, count: int) -> float:
        """`for record in consumer`."""
        with self._consumer(topic) as consumer:
            begun = time.perf_counter()
            for seen, record in enumerate(consumer, 1):
                record.offset, record.key, record.value  # noqa: B018 - touching them is the point
                if seen == count:
                    break
            return time.perf_counter() - begun

    def read_all(self, topic: str, count: int) -> float:
        """`fetch` to Arrow."""
        with self._consumer(topic) as consumer:
            begun = time.perf_counter()
            seen = 0
            while seen < count:
                seen += consumer.fetch(timeout=10).num_rows
            return time.perf_counter() - begun

    def round_trips(self, topic: str, count: int) -> list[float]:
        """A producer and a consumer in this process."""
        times = []
        with (
            self.cluster.producer(linger_ms=0) as producer,
            self.cluster.consumer(auto_offset_reset="latest") as consumer,
        ):
            consumer.assign([TopicPartition(topic, 0)])
            consumer.poll(timeout=0.1)
            for _ in range(count):
                begun = time.perf_counter()
                producer.send(topic, b"x" * 100, partition=0)
                while not consumer.poll(timeout=10):
                    pass
                times.append(time.perf_counter() - begun)
        return times

    def _producer(self) -> Any:  # noqa: ANN401 - ours
        return self.cluster.producer(linger_ms=LINGER_MS, batch_size=BATCH_BYTES)

    def _consumer(self, topic: str) -> Any:  # noqa: ANN401 - ours
        return self.cluster.consumer(topic, auto_offset_reset="earliest")
