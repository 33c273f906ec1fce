"""What is measured, behind one face: the same work, as fast as each side's own API allows.

Owns: the `Peer` protocol, and ray_stream as one. Refuses: timing more than one call, statistics.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray

import ray_stream
from ray_stream import Cluster, TopicPartition
from ray_stream.actors import spawning
from ray_stream.cluster import inspection

PARTITIONS = 6
LINGER_MS = 5
BATCH_BYTES = 1024 * 1024
CALL_BYTES = 5_000_000
"""What one call of `send_batch` is given."""
END = b"end"
"""A value that tells a consumer that one producer has written everything."""
TIMEOUT_S = 300.0

Go = Callable[[], None]
"""Called when everything is ready; returns when all take part."""


class Peer(Protocol):
    """One system under measurement. Methods return seconds for the work, with no set-up in it."""

    name: str

    def prepare(self, data_dir: Path) -> None:
        """What comes before the first start, and is not timed."""

    def boot(self) -> None:
        """Bring it up until it answers."""

    def first_record(self) -> None:
        """Make a topic, and have its first record acknowledged."""

    def stop(self) -> None:
        """End it."""

    def where(self) -> dict[str, str]:
        """How another process reaches it."""

    def make_topic(self, topic: str, *, partitions: int, fsync: bool) -> None:
        """A topic that keeps the promise that is compared; returns when it can be written."""

    def drop_topic(self, topic: str) -> None:
        """Delete it."""

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

    def send_until_end(self, topic: str, value: bytes, count: int, go: Go) -> None:
        """As `send_each`; then `END` to every partition."""

    def read_until_end(self, topic: str, partitions: list[int], ends: int, go: Go) -> int:
        """Read partitions until each has so many `END`s; returns how many other records."""

    def opened(self, topic: str) -> tuple[Callable[[bytes], None], Callable[[], None]]:
        """`linger_ms=0`: send to partition 0 without waiting, and close."""

    def values(self, topic: str) -> tuple[Callable[[], list[bytes]], Callable[[], None]]:
        """The next values of partition 0, waiting up to a second for some; and close."""

    def memory(self) -> dict[str, float]:
        """Mebibytes of the processes that serve."""

    def first_to_each(self, topic: str, count: int) -> float:
        """One record to each of so many partitions, from a new producer."""

    def again_after_kill(self, topic: str, count: int) -> float:
        """Kill what serves, and how long until as many partitions have acknowledged again."""


class RayStream:
    """Ours, on a Ray that runs."""

    name = "ray_stream"

    def __init__(self, cluster_name: str = "bench") -> None:
        self._cluster_name = cluster_name
        self._cluster: Cluster | None = None
        self._data_dir = Path()

    @property
    def cluster(self) -> Cluster:
        """The one that runs."""
        assert self._cluster is not None
        return self._cluster

    @classmethod
    def at(cls, where: dict[str, str]) -> "RayStream":
        """In another process, what `where` told."""
        peer = cls(where["name"])
        peer._cluster = ray_stream.connect(name=where["name"], address=where["address"])
        return peer

    def where(self) -> dict[str, str]:
        """Name and Ray."""
        return {"name": self.cluster.name, "address": self.cluster.address}

    def prepare(self, data_dir: Path) -> None:
        """Nothing but where."""
        self._data_dir = data_dir

    def boot(self) -> None:
        """`start` on the Ray that runs."""
        self._cluster = ray_stream.start(name=self._cluster_name, data_dir=self._data_dir)

    def first_record(self) -> None:
        """To a topic of one partition."""
        self.make_topic("warm", partitions=1, fsync=True)
        with self.cluster.producer() as producer:
            producer.send_and_wait("warm", b"first")

    def stop(self) -> None:
        """End its actors; the Ray stays."""
        if self._cluster is not None:
            self._cluster.shutdown()

    def close(self) -> None:
        """End this handle."""
        self.cluster.close()

    def make_topic(self, topic: str, *, partitions: int, fsync: bool) -> None:
        """With the durability that is compared."""
        self.cluster.create_topic(
            topic,
            partitions=partitions,
            durability="fsync" if fsync else "replicated",
            timeout=TIMEOUT_S,
        )

    def drop_topic(self, topic: str) -> None:
        """Delete it."""
        self.cluster.delete_topic(topic, timeout=TIMEOUT_S)

    def send_each(
        self, topic: str, value: bytes, count: int, keys: Sequence[bytes] | None
    ) -> float:
        """`send` in a loop, then `flush`."""
        with self.producer() as producer:
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
        """`send_batch` of Arrow data, 5 MB a call."""
        rows = min(count, max(1, CALL_BYTES // len(value)))
        offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * len(value))
        values = pa.Array.from_buffers(
            pa.binary(), rows, [None, offsets, pa.py_buffer(value * rows)]
        )
        batch = pa.record_batch({"value": values})
        with self.producer() as producer:
            producer.partitions_for(topic)
            begun = time.perf_counter()
            for start in range(0, count, rows):
                left = count - start
                producer.send_batch(topic, batch if left >= rows else batch.slice(0, left))
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

    def send_until_end(self, topic: str, value: bytes, count: int, go: Go) -> None:
        """`send` in a loop."""
        with self.producer() as producer:
            partitions = producer.partitions_for(topic)
            send = producer.send
            go()
            for _ in range(count):
                send(topic, value)
            producer.flush()
            for partition in partitions:
                send(topic, END, partition=partition)

    def read_until_end(self, topic: str, partitions: list[int], ends: int, go: Go) -> int:
        """`for record in consumer`."""
        wanted, seen = ends * len(partitions), 0
        with self.cluster.consumer() as consumer:
            consumer.assign([TopicPartition(topic, one) for one in partitions], "earliest")
            go()
            for record in consumer:
                if record.value == END:
                    wanted -= 1
                    if not wanted:
                        break
                else:
                    seen += 1
        return seen

    def opened(self, topic: str) -> tuple[Callable[[bytes], None], Callable[[], None]]:
        """A producer without lingering."""
        producer = self.cluster.producer(linger_ms=0)
        producer.partitions_for(topic)
        return lambda value: producer.send(topic, value, partition=0), producer.close

    def values(self, topic: str) -> tuple[Callable[[], list[bytes]], Callable[[], None]]:
        """A consumer of one partition."""
        consumer = self.cluster.consumer()
        consumer.assign([TopicPartition(topic, 0)], "earliest")
        consumer.poll(timeout=0.1)
        return lambda: [one.value or b"" for one in consumer.poll(timeout=1.0)], consumer.close

    def memory(self) -> dict[str, float]:
        """Controller, broker, partition actors."""
        from machine import memory_of

        return memory_of(self.pids().values())

    def pids(self) -> dict[str, int]:
        """Every process that serves, by its actor's name."""
        name = spawning.controller_name(self.cluster.name)
        controller: Any = spawning.find(name)
        return {name: ray.get(controller.ping.remote()), **inspection.process_ids(self.cluster)}

    def first_to_each(self, topic: str, count: int) -> float:
        """From a new producer."""
        begun = time.perf_counter()
        with self.producer() as producer:
            for number in range(count):
                producer.send(topic, b"first", partition=number)
        return time.perf_counter() - begun

    def again_after_kill(self, topic: str, count: int) -> float:
        """`kill -9` of controller, broker and partition actors; the producer lives."""
        with self.cluster.producer(delivery_timeout_ms=int(TIMEOUT_S * 1000)) as producer:
            producer.partitions_for(topic)
            pids = self.pids().values()
            begun = time.perf_counter()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for number in range(count):
                producer.send(topic, b"again", partition=number)
            producer.flush()
            return time.perf_counter() - begun

    def producer(self) -> Any:  # noqa: ANN401 - ours
        """As throughput is measured with."""
        return self.cluster.producer(linger_ms=LINGER_MS, batch_size=BATCH_BYTES)

    def _consumer(self, topic: str) -> Any:  # noqa: ANN401 - ours
        return self.cluster.consumer(topic, auto_offset_reset="earliest")
