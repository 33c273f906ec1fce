"""The client processes of `bench`: what each of them does, and letting them begin at once.

Owns: the processes and their end. Refuses: which cases there are, topics, rates (`benchmark`).

Times are of the machine's monotonic clock, which all its processes share.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

import ray_stream
from ray_stream.cluster.handle import Cluster
from ray_stream.errors import RayStreamError
from ray_stream.types import Record, StartPosition, TopicPartition

END_S = 5.0
"""How long a client may take to end by itself."""
CALL_BYTES = 5_000_000
"""What one call of `send_batch` is given."""
WAIT_S = 10.0

Ready = Callable[[], None]
"""Called when everything is prepared; returns when all begin."""
Work = Callable[[Cluster, ExitStack, "Job", Ready], int]
"""Does a job and says how many records that were; what it opens is closed when time has stopped."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one client does."""

    kind: str
    topic: str
    records: int
    record_bytes: int
    partitions: tuple[int, ...]

    @property
    def names(self) -> list[TopicPartition]:
        """The partitions by their names."""
        return [TopicPartition(self.topic, one) for one in self.partitions]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a job."""

    kind: str
    begun: float
    ended: float
    records: int
    times: tuple[float, ...] = ()
    """Of round trips: seconds each."""


def send(cluster: Cluster, opened: ExitStack, job: Job, ready: Ready) -> int:
    """A record at a time, until all are acknowledged."""
    value = b"x" * job.record_bytes
    producer = opened.enter_context(cluster.producer())
    producer.partitions_for(job.topic)
    ready()
    for _ in range(job.records):
        producer.send(job.topic, value)
    producer.flush()
    return job.records


def send_batches(cluster: Cluster, opened: ExitStack, job: Job, ready: Ready) -> int:
    """Arrow data, 5 MB a call, until all is acknowledged."""
    rows = min(job.records, max(1, CALL_BYTES // job.record_bytes))
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * job.record_bytes)
    content = pa.py_buffer(b"x" * (job.record_bytes * rows))
    values = pa.Array.from_buffers(pa.binary(), rows, [None, ends, content])
    producer = opened.enter_context(cluster.producer())
    producer.partitions_for(job.topic)
    ready()
    for start in range(0, job.records, rows):
        producer.send_batch(job.topic, values[: job.records - start])
    producer.flush()
    return job.records


def read(cluster: Cluster, opened: ExitStack, job: Job, ready: Ready) -> int:
    """So many records from the beginning on, one by one."""
    return _one_by_one(cluster, opened, job, ready, "earliest")


def follow(cluster: Cluster, opened: ExitStack, job: Job, ready: Ready) -> int:
    """So many records from the present end on, one by one."""
    return _one_by_one(cluster, opened, job, ready, "latest")


def _one_by_one(
    cluster: Cluster, opened: ExitStack, job: Job, ready: Ready, start: StartPosition
) -> int:
    consumer = opened.enter_context(cluster.consumer())
    consumer.assign(job.names, start)
    ready()
    for seen, record in enumerate(consumer, 1):
        _touch(record)
        if seen == job.records:
            break
    return job.records


def read_share(cluster: Cluster, opened: ExitStack, job: Job, ready: Ready) -> int:
    """Everything that some partitions hold, one by one."""
    consumer = opened.enter_context(cluster.consumer(until="end"))
    consumer.assign(job.names, "earliest")
    ready()
    seen = 0
    for record in consumer:
        _touch(record)
        seen += 1
    return seen


def fetch(cluster: Cluster, opened: ExitStack, job: Job, ready: Ready) -> int:
    """So many records from the beginning on, as Arrow tables."""
    consumer = opened.enter_context(cluster.consumer())
    consumer.assign(job.names, "earliest")
    ready()
    seen = 0
    while seen < job.records:
        seen += consumer.fetch(timeout=WAIT_S).num_rows
    return seen


def _touch(record: Record) -> tuple[int, bytes | None]:
    """What every user of a record takes."""
    return record.offset, record.value


def round_trips(cluster: Cluster, job: Job, ready: Ready) -> tuple[float, ...]:
    """One record in flight: seconds from `send` until `poll` has it."""
    value = b"x" * job.record_bytes
    times = []
    with cluster.producer(linger_ms=0) as producer, cluster.consumer() as consumer:
        consumer.assign(job.names, "latest")
        consumer.poll(timeout=0)
        ready()
        for _ in range(job.records):
            begun = time.monotonic()
            producer.send(job.topic, value, partition=job.partitions[0])
            while not consumer.poll(timeout=WAIT_S):
                pass
            times.append(time.monotonic() - begun)
    return tuple(times)


COUNTED: dict[str, Work] = {
    "send": send,
    "send batches": send_batches,
    "read": read,
    "read share": read_share,
    "follow": follow,
    "fetch": fetch,
}


def serve(pipe: Connection, name: str, address: str) -> None:
    """The life of a client process: jobs as they come, until nobody is there any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts all; the parent ends this
    try:
        with ray_stream.connect(name=name, address=address) as cluster:
            pipe.send("up")
            while True:
                pipe.send(_done(cluster, pipe, pipe.recv()))
    except RayStreamError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        pass  # nobody wants more


def _done(cluster: Cluster, pipe: Connection, job: Job) -> Done:
    begun = 0.0

    def ready() -> None:
        nonlocal begun
        pipe.send("ready")
        pipe.recv()
        begun = time.monotonic()

    if job.kind in COUNTED:
        with ExitStack() as opened:
            records = COUNTED[job.kind](cluster, opened, job, ready)
            ended = time.monotonic()
        return Done(job.kind, begun, ended, records)
    times = round_trips(cluster, job, ready)
    return Done(job.kind, begun, time.monotonic(), len(times), times)


class Clients:
    """So many processes, each connected to the cluster, until the block is left."""

    def __init__(self, name: str, address: str, count: int) -> None:
        """Args: name: of the cluster; address: of its Ray; count: of processes."""
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            pipe, theirs = spawn.Pipe()
            arguments = (theirs, name, address)
            process = spawn.Process(target=serve, args=arguments, daemon=True)
            self._pipes.append(pipe)
            self._processes.append((process, theirs))

    def __enter__(self) -> Self:
        try:
            for process, theirs in self._processes:
                process.start()
                theirs.close()  # so that it notices when this process is gone, and this when it is
            for pipe in self._pipes:
                _heard(pipe)
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(at_once=error is not None)

    def at_once(self, jobs: list[Job]) -> list[Done]:
        """Jobs of as many clients, begun together when all are prepared.

        Raises:
            RayStreamError: one of them failed.
        """
        pipes = self._pipes[: len(jobs)]
        for pipe, job in zip(pipes, jobs, strict=True):
            _say(pipe, job)
        for pipe in pipes:
            _heard(pipe)
        for pipe in pipes:
            _say(pipe, "go")
        answers = [_heard(pipe) for pipe in pipes]
        return [one for one in answers if isinstance(one, Done)]

    def _end(self, *, at_once: bool) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process, _ in self._processes:
            if process.pid is None:
                continue
            if not at_once:
                process.join(END_S)
            process.terminate()
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()


def _say(pipe: Connection, value: object) -> None:
    try:
        pipe.send(value)
    except BrokenPipeError:
        raise _gone() from None


def _heard(pipe: Connection) -> object:
    """What a client says; an error that it met is raised here."""
    try:
        said = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise _gone() from None
    if isinstance(said, RayStreamError):
        raise said
    return said


def _gone() -> RayStreamError:
    return RayStreamError(
        "a client process of the benchmark ended before its work was done; what it printed on "
        "standard error says why"
    )
