"""Peers that take part in a few rows only: Kafka's own Java tools, and Ray's queue.

Owns: running them. Refuses: rows with a target; that is between ray_stream and Kafka.
"""

import contextlib
import subprocess
import time
from collections.abc import Iterator

from kafka_peer import JARS, Kafka
from peers import BATCH_BYTES, LINGER_MS, PARTITIONS
from ray.util.queue import Queue

CALL = 1_000


class JavaTools:
    """`ProducerPerformance` and `ConsumerPerformance`, on the node of `Kafka`."""

    name = "kafka's java tools"

    def __init__(self, kafka: Kafka) -> None:
        self._address = kafka.where()["address"]

    def send_each(self, topic: str, size: int, count: int) -> float:
        """Records a second, by its own clock."""
        properties = [
            f"bootstrap.servers={self._address}",
            "acks=all",
            f"linger.ms={LINGER_MS}",
            f"batch.size={BATCH_BYTES}",
            f"buffer.memory={PARTITIONS * 64 * 1024 * 1024}",
        ]
        told = self._run(
            "ProducerPerformance",
            *("--topic", topic, "--num-records", str(count), "--record-size", str(size)),
            *("--throughput", "-1", "--producer-props", *properties),
        )
        return float(told.splitlines()[-1].split(" records/sec")[0].split()[-1])

    def read_each(self, topic: str, count: int) -> float:
        """Records a second, of fetching alone."""
        told = self._run(
            "ConsumerPerformance",
            *("--bootstrap-server", self._address, "--topic", topic, "--messages", str(count)),
        )
        head, *lines = [line for line in told.splitlines() if "," in line]
        column = [name.strip() for name in head.split(",")].index("fetch.nMsg.sec")
        return float(lines[-1].split(",")[column])

    def _run(self, tool: str, *arguments: str) -> str:
        command = ["java", "-Xmx512M", "-cp", f"{JARS}/*", f"org.apache.kafka.tools.{tool}"]
        return subprocess.run(
            [*command, *arguments],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ).stdout


class RayQueue:
    """`ray.util.queue.Queue`: an actor that holds what is put, in memory alone."""

    name = "ray.util.queue"

    @contextlib.contextmanager
    def queue(self) -> Iterator[Queue]:
        """One that is up."""
        queue = Queue()
        queue.put(b"first")
        queue.get()
        try:
            yield queue
        finally:
            queue.shutdown(force=True)

    def send_each(self, value: bytes, count: int) -> float:
        """Records a second, `put` one after the other."""
        with self.queue() as queue:
            begun = time.perf_counter()
            for _ in range(count):
                queue.put(value)
            return count / (time.perf_counter() - begun)

    def send_all(self, value: bytes, count: int) -> float:
        """Records a second, `put_nowait_batch`."""
        many = [value] * CALL
        with self.queue() as queue:
            begun = time.perf_counter()
            for _ in range(count // CALL):
                queue.put_nowait_batch(many)
            return count // CALL * CALL / (time.perf_counter() - begun)

    def read_each(self, value: bytes, count: int) -> float:
        """Records a second, `get_nowait_batch`."""
        with self.queue() as queue:
            for _ in range(count // CALL):
                queue.put_nowait_batch([value] * CALL)
            begun = time.perf_counter()
            for _ in range(count // CALL):
                queue.get_nowait_batch(CALL)
            return count // CALL * CALL / (time.perf_counter() - begun)

    def round_trips(self, count: int) -> list[float]:
        """Seconds from `put` to `get`."""
        times = []
        with self.queue() as queue:
            for _ in range(count):
                begun = time.perf_counter()
                queue.put(b"x" * 100)
                queue.get()
                times.append(time.perf_counter() - begun)
        return times
