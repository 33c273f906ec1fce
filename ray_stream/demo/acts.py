"""The two acts: write with a kill half-way; start again from disk, read, consume and judge.

Owns: the story, through the public API alone. Refuses: showing it, and the processes' pipes.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import ray_stream
from ray_stream import serializers
from ray_stream.cluster.handle import Cluster
from ray_stream.cluster.inspection import partition_actors
from ray_stream.demo import delays, flights, verdict
from ray_stream.demo.child import Speaker
from ray_stream.demo.events import Began, Event, Failed, Killed, Progressed, Verified, Written
from ray_stream.errors import RayStreamError
from ray_stream.types import RecordMetadata

if TYPE_CHECKING:
    import pandas as pd

TOPIC = "flights"
PARTITIONS = 6
PROGRESS_S = 0.1
AHEAD = 1_000
"""Records between looking for the process to kill and killing it: batches are in flight."""
POLL_S = 0.5
PATIENCE_S = 60.0
"""For the reader to come after the writer."""

Say = Callable[[Event], None]


class NotHeldError(Exception):
    """Something that the demo is to show did not hold."""


class Ledger:
    """What was acknowledged, and when each partition acknowledged a record sent after the kill."""

    def __init__(self) -> None:
        self.count = 0
        self.error: RayStreamError | None = None
        self.again: dict[int, float] = {}

    def delivered(self, metadata: RecordMetadata | None, error: RayStreamError | None) -> None:
        """`on_delivery` of a record that was sent before the kill."""
        if metadata is None:
            self.error = self.error or error
        else:
            self.count += 1

    def delivered_after_kill(
        self, metadata: RecordMetadata | None, error: RayStreamError | None
    ) -> None:
        """`on_delivery` of a record that was sent after it."""
        self.delivered(metadata, error)
        if metadata is not None:
            self.again.setdefault(metadata.partition, time.monotonic())


class ReaderAlong(threading.Thread):
    """A consumer that reads the topic while it is written; it accepts no gap and no repetition."""

    def __init__(self, cluster: Cluster, total: int) -> None:
        super().__init__(name="reader", daemon=True)
        self._cluster = cluster
        self._total = total
        self.stopping = threading.Event()
        self.count = 0
        self.error: Exception | None = None
        self.seconds = 0.0

    def run(self) -> None:
        """Read until everything was seen."""
        begun = time.monotonic()
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - raised again by `finish`, on the act's thread
            self.error = error
        self.seconds = time.monotonic() - begun

    def _read(self) -> None:
        expected = dict.fromkeys(range(PARTITIONS), 0)
        with self._cluster.consumer(TOPIC, auto_offset_reset="earliest") as consumer:
            while self.count < self._total and not self.stopping.is_set():
                table = consumer.fetch(timeout=POLL_S)
                partitions, offsets = table["partition"].to_numpy(), table["offset"].to_numpy()
                for number, offset in expected.items():
                    here = offsets[partitions == number]
                    if (here != np.arange(offset, offset + len(here))).any():
                        raise NotHeldError(
                            f"partition {number} went on at offset {here[0]}, not at {offset}"
                        )
                    expected[number] += len(here)
                self.count += table.num_rows

    def finish(self) -> None:
        """Wait for it; raises what went wrong."""
        self.join(PATIENCE_S)
        self.stopping.set()
        if self.error is not None:
            raise self.error
        if self.count != self._total:
            raise NotHeldError(f"the reader saw {self.count:,} of {self._total:,} records")


class Writer:
    """Sends every flight, and kills a process half-way."""

    def __init__(self, cluster: Cluster, total: int) -> None:
        self._cluster = cluster
        self._half = total // 2
        self.ledger = Ledger()
        self.killed = Killed("", 0, [], 0)
        self.killed_at = 0.0
        self.value_bytes = 0

    def run(self, rows: Iterable[dict[str, Any]]) -> None:
        """Send all; returns when all are acknowledged."""
        on_delivery = self.ledger.delivered
        with self._cluster.producer(key_serializer=serializers.string) as producer:
            for sent, flight in enumerate(rows):
                if sent == self._half:
                    self.killed = self._victim()
                elif sent == self._half + AHEAD:
                    self._kill()
                    on_delivery = self.ledger.delivered_after_kill
                value = serializers.json.serialize(flight)
                self.value_bytes += len(value)
                producer.send(TOPIC, value, flight[flights.KEY], on_delivery=on_delivery)

    def _victim(self) -> Killed:
        """The process that serves partition 0."""
        for actor in partition_actors(self._cluster):
            partitions = sorted(one.partition for one in actor.served)
            if 0 in partitions:
                return Killed(actor.host, actor.pid, partitions, self._half + AHEAD)
        raise NotHeldError("no partition actor says that it serves partition 0")

    def _kill(self) -> None:
        os.kill(self.killed.pid, signal.SIGKILL)
        self.killed_at = time.monotonic()

    def recovered_s(self) -> float:
        """Seconds from the kill until all killed partitions had acknowledged something new."""
        if self.ledger.error is not None:
            raise self.ledger.error
        silent = [one for one in self.killed.partitions if one not in self.ledger.again]
        if silent:
            raise NotHeldError(f"partitions {silent} acknowledged nothing after the kill")
        return max(self.ledger.again[one] for one in self.killed.partitions) - self.killed_at


def write(data_dir: str, count: int, say: Say) -> None:
    """The first act: every flight is sent while a consumer reads; half-way a process is killed."""
    say(Began("reading the flights"))
    frame = _flights(count)
    say(Began("starting a cluster on a local Ray"))
    begun = time.monotonic()
    with ray_stream.start(data_dir=data_dir) as cluster:
        cluster.create_topic(TOPIC, partitions=PARTITIONS)
        start_s = time.monotonic() - begun
        reader = ReaderAlong(cluster, len(frame))
        writer = Writer(cluster, len(frame))
        say(Began("writing", total=len(frame), along="reading along"))
        reader.start()
        with _telling(lambda: say(Progressed(writer.ledger.count, reader.count))):
            begun = time.monotonic()
            writer.run(flights.rows(frame))
            write_s = time.monotonic() - begun
            reader.finish()
        say(Began("stopping everything"))
    if writer.ledger.count != len(frame):
        raise NotHeldError(f"{writer.ledger.count:,} of {len(frame):,} were acknowledged")
    say(
        Written(
            killed=writer.killed,
            start_s=start_s,
            write_s=write_s,
            records=len(frame),
            value_bytes=writer.value_bytes,
            recovered_s=writer.recovered_s(),
            live_records=reader.count,
            live_s=reader.seconds,
        )
    )


def verify(data_dir: str, count: int, say: Say) -> None:
    """The second act: start again from disk, read everything in two ways, judge both."""
    say(Began("starting again from disk"))
    begun = time.monotonic()
    with ray_stream.start(data_dir=data_dir) as cluster:
        start_s = time.monotonic() - begun
        say(Began("reading everything through Arrow"))
        begun = time.monotonic()
        table = cluster.read(TOPIC)
        read_s = time.monotonic() - begun
        say(Began("starting a group of consumer actors"))
        source = _flights(count)
        consumed = delays.consume(cluster, TOPIC, source, say)
        say(Began("stopping everything"))
    say(Began("verifying"))
    found = verdict.judge(table, source)
    if found.problems:
        raise NotHeldError("; ".join(found.problems))
    carriers = source[flights.CARRIER].nunique()
    found.verified.append(f"delays of each of the {carriers} carriers, added up by the group, too")
    say(Verified(start_s, read_s, table.num_rows, consumed, found.verified))


ACTS = {"write": write, "verify": verify}


def _flights(count: int) -> "pd.DataFrame":
    """The first so many; 0: all."""
    path = flights.find()
    assert path is not None, "the parent checked that the data is there"
    frame = flights.load(path)
    return frame.head(count) if count else frame


@contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[None]:
    """Tell of progress, from a thread, until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(PROGRESS_S):
            tell()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    tell()


def main(act: str, data_dir: str, count: str, descriptor: str) -> int:
    """Play one act; what goes wrong is told in one line, and its traceback goes to the log."""
    say = Speaker(int(descriptor))
    try:
        ACTS[act](data_dir, int(count), say)
    except (NotHeldError, delays.NotConsumedError, RayStreamError) as error:
        traceback.print_exc()
        say(Failed(" ".join(str(error).split())))
    except Exception as error:  # noqa: BLE001 - told to the parent, whatever it is
        traceback.print_exc()
        say(Failed(f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
