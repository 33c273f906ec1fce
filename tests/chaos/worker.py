"""A process that uses a cluster while things are killed, and writes down what it was told.

`python -m tests.chaos.worker produce|consume NAME CLUSTER ADDRESS TOPIC DIRECTORY`: writes the
history `DIRECTORY/NAME.history` (`ray_stream.testing.history`) and, for a producer,
`DIRECTORY/NAME.times`: a line `partition sent acknowledged` (seconds of the machine's monotonic
clock) for the first record of each burst. It ends in order when its standard input is closed.
"""

import os
import random
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray_stream
from ray_stream import Cluster, errors
from ray_stream.testing.history import Event, Fail, Invoke, Ok, Position, Read, Unknown, encode
from ray_stream.types import RecordMetadata, TopicPartition

BURST = 10
PAUSE_S = 0.02
OPEN_MAX = 400
KEYS = 64
DELIVERY_TIMEOUT_MS = 30_000


class Lines:
    """A file to which whole lines are appended, by any thread."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, line: bytes) -> None:
        os.write(self._file, line)

    def event(self, event: Event) -> None:
        self.write(encode(event))  # type: ignore[arg-type]  # any of the union's members


def is_wanted() -> bool:
    """Whether the one who started this process has not closed its standard input."""
    return not select.select([0], [], [], 0)[0]


def place(topic: str, partition: int) -> str:
    return f"{topic}-{partition}"


class Sending:
    """One producer's bursts and what becomes of them."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.open = 0
        self.refused = 0
        self._history = Lines(directory / f"{name}.history")
        self._times = Lines(directory / f"{name}.times")

    def invoke(self, values: list[str]) -> None:
        self._history.event(Invoke(self.name, values))

    def accepted(self, value: str, timed_s: float | None) -> Callable[..., None]:
        """The callback of one record that `send` is about to take."""
        self.open += 1

        def told(metadata: RecordMetadata | None, error: errors.RayStreamError | None) -> None:
            self.open -= 1
            if metadata is None:
                self.given_up(value, error)
                return
            partition = place(metadata.topic, metadata.partition)
            self._history.event(Ok(self.name, partition, [(value, metadata.offset)]))
            if timed_s is not None:
                now_s = time.monotonic()
                self._times.write(f"{metadata.partition} {timed_s:.6f} {now_s:.6f}\n".encode())

        return told

    def given_up(self, value: str, error: BaseException | None) -> None:
        kind = Unknown if isinstance(error, errors.OutcomeUnknownError) else Fail
        self._history.event(kind(self.name, [value]))
        sys.stderr.write(f"{value}: {type(error).__name__}: {error}\n")

    def refuse(self, value: str, error: errors.RayStreamError) -> None:
        """`send` raised: the record was never taken."""
        self.open -= 1
        self.given_up(value, error)


def produce(name: str, cluster: Cluster, topic: str, directory: Path) -> None:
    """Bursts of records with random keys, at most `OPEN_MAX` of them unacknowledged."""
    sending = Sending(name, directory)
    rng = random.Random(name)
    count = 0
    producer = cluster.producer(linger_ms=2, delivery_timeout_ms=DELIVERY_TIMEOUT_MS)
    try:
        with producer:
            while is_wanted():
                values = [f"{name}:{number}" for number in range(count, count + BURST)]
                count += BURST
                sending.invoke(values)
                for number, value in enumerate(values):
                    told = sending.accepted(value, None if number else time.monotonic())
                    key = f"{rng.randrange(KEYS)}".encode()
                    try:
                        producer.send(topic, value.encode(), key, on_delivery=told)
                    except errors.RayStreamError as error:
                        sending.refuse(value, error)
                time.sleep(PAUSE_S)
                while sending.open >= OPEN_MAX and is_wanted():
                    time.sleep(PAUSE_S)
    except errors.DeliveryError as error:
        # Each record's callback told it already.
        sys.stderr.write(f"{error}\n")


def consume(name: str, cluster: Cluster, topic: str, directory: Path) -> None:
    """Read all partitions from their beginnings."""
    history = Lines(directory / f"{name}.history")
    partitions = [one.partition for one in cluster.describe_topic(topic).partitions]
    with cluster.consumer() as consumer:
        consumer.assign([TopicPartition(topic, one) for one in partitions], "earliest")
        for one in partitions:
            history.event(Position(name, place(topic, one), 0))
        while is_wanted():
            taken: dict[int, list[tuple[int, str]]] = {}
            for record in consumer.poll(max_records=2_000, timeout=0.2):
                assert record.value is not None
                taken.setdefault(record.partition, []).append(
                    (record.offset, record.value.decode())
                )
            for one, records in taken.items():
                history.event(Read(name, place(topic, one), records))


def main(arguments: list[str]) -> None:
    job, name, cluster_name, address, topic, directory = arguments
    work = {"produce": produce, "consume": consume}[job]
    with ray_stream.connect(name=cluster_name, address=address) as cluster:
        work(name, cluster, topic, Path(directory))


if __name__ == "__main__":
    main(sys.argv[1:])
