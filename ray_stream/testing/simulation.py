"""One seed, one run: a cluster, its clients, everything that may go wrong, and the verdict.

Owns: the workload, the invariants that hold after every event, and the judgement at the end.
Refuses: Ray, threads, real time. The same seed gives the same run, event by event, in any process
(`Report.digest`).

Invariants (numbers as in `docs/testing.md`):

* I1 what was acknowledged is read at its offset in the end; I2 one offset, one record, for all
  readers; I4 order; I5 no duplicates: the history checker, over all clients and a final read.
* I8 a partition's readable end never goes back, whoever serves it and whatever lost power.
* I9 one (offset, leader epoch) has one content; a request is applied only in its own leader epoch.
* I13 once a log is offline, nothing more of it is acknowledged or shown.
* I14 once the faults stop, everything is served and acknowledged again within `CALM_MS`.
* I15 to I19, of consumer groups: `testing.group_story` and `testing.group_judge`.
* I20 once the faults stop, each partition has one owner in each group, nothing is left unread, and
  every record was handled.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.errors import CorruptRecordError, InvariantViolationError, RayStreamError
from ray_stream.log.partition_log import PartitionLog
from ray_stream.metadata.commands import CreateTopic, PartitionKey, TopicCreated
from ray_stream.records.header import decode_header
from ray_stream.rpc.messages import ProduceRequest, ProduceResponse
from ray_stream.testing import checker, history
from ray_stream.testing.group_judge import GroupJudge
from ray_stream.testing.nemesis import Nemesis
from ray_stream.testing.network import Network
from ray_stream.testing.sabotage import Saboteur
from ray_stream.testing.scheduler import Process, Scheduler
from ray_stream.testing.simulated_clients import SimulatedConsumer, SimulatedProducer
from ray_stream.testing.simulated_cluster import HostProcess, SimulatedCluster
from ray_stream.testing.simulated_groups import SimulatedGroups
from ray_stream.testing.trace import Trace
from ray_stream.types import TopicPartition

TOPIC = "flights"
STORM_MS = 5_000
SABOTAGE_EVERY = 3
"""Of so many seeds one has failed syncs and stopped processes as well."""
ROLLING_EVERY = 5
"""Of so many seeds two roll their segments and write index entries all the time."""
ROLLING = {"segment_ms": 300, "index_interval_bytes": 512}
CALM_MS = 60_000
STEP_MS = 500
BATCH_MAX = 3
SEND_PAUSE_MS_MAX = 90


@dataclass(slots=True)
class Report:
    """What became of one seed."""

    seed: int
    digest: str
    events: int
    faults: int
    acknowledged: int
    unknown: int
    violations: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return not self.violations

    def __str__(self) -> str:
        verdict = "ok" if self.passed else f"FAILED: {self.violations[0]}"
        return (
            f"seed {self.seed}: {verdict} ({self.events} events, {self.faults} faults, "
            f"{self.acknowledged} acknowledged, {self.unknown} unknown; {self.digest})"
        )


class Watcher:
    """The invariants that hold after every event."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self._seen: dict[tuple[str, PartitionKey], int] = {}
        self._contents: dict[tuple[PartitionKey, int, int], tuple[int, int]] = {}
        self._readable: dict[PartitionKey, int] = {}
        self._glimpse: dict[tuple[str, PartitionKey], tuple[int, int]] = {}
        """What a partition showed when it was looked at last: readable, written."""
        self._offline: dict[PartitionKey, tuple[PartitionLog, int]] = {}
        self._metadata_version = -1
        self.group_judge: GroupJudge | None = None

    def look(self) -> None:
        """Check what the process shows that has just acted: a log changes in no other's event.

        Raises:
            InvariantViolationError: an invariant is broken.
        """
        acted = self._cluster.scheduler.acted
        if acted is not None and acted.name in self._cluster.hosts:
            self._look_into(acted.name)
        if self._cluster.controller is not None:
            machine = self._cluster.controller[1].machine
            if machine.version != self._metadata_version:
                self._metadata_version = machine.version
                machine.check()

    def look_everywhere(self) -> None:
        """Check what every living host shows.

        Raises:
            InvariantViolationError: an invariant is broken.
        """
        for name in self._cluster.hosts:
            self._look_into(name)

    def _look_into(self, name: str) -> None:
        one = self._cluster.hosts[name]
        if self.group_judge is not None:
            self.group_judge.look(one)
        for key, hosted in one.host.partitions.items():
            if hosted.leading:
                self._look_at(name, key, one)

    def _look_at(self, name: str, key: PartitionKey, one: HostProcess) -> None:
        log = one.host.partitions[key].log
        readable, written = log.readable_end, log.written_end
        if self._glimpse.get((name, key)) == (readable, written):
            return
        self._glimpse[name, key] = (readable, written)
        before = self._readable.get(key, 0)
        if readable < before:
            raise InvariantViolationError(
                f"I8: the readable end of partition {key[1]} went back from {before} to {readable}"
            )
        self._readable[key] = readable
        if log.offline and readable > self._offline_at(key, log):
            raise InvariantViolationError(
                f"I13: partition {key[1]} promised more after it went offline: {log.offline}"
            )
        seen = self._seen.get((name, key), log.start_offset)
        while seen < written:
            try:
                read = log.read(seen, bytes_max=1 << 20, end_offset=written)
            except CorruptRecordError as error:
                # No bit is flipped in a simulation, so what cannot be read was lost.
                raise InvariantViolationError(f"I1: {error}") from error
            for batch in read.batches:
                self._remember(key, batch)
            seen = read.next_offset
        self._seen[name, key] = seen

    def _offline_at(self, key: PartitionKey, log: PartitionLog) -> int:
        """What was readable when this very log went offline; one that is repaired is another."""
        found, readable = self._offline.get(key, (None, 0))
        if found is not log:
            readable = log.readable_end
            self._offline[key] = (log, readable)
        return readable

    def _remember(self, key: PartitionKey, batch: Any) -> None:
        header = decode_header(batch)
        content = (header.payload_crc, header.last_offset_delta)
        place = (key, header.base_offset, header.leader_epoch)
        if self._contents.setdefault(place, content) != content:
            raise InvariantViolationError(
                f"I9: offset {header.base_offset} of partition {key[1]} has two contents in leader "
                f"epoch {header.leader_epoch}"
            )


class Trouble(Protocol):
    """Something that goes wrong until it is stopped."""

    faults: int

    def start(self) -> None:
        """Go on until `stop`."""
        ...

    def stop(self) -> None:
        """No more of it."""
        ...


class Simulation:
    """One run."""

    def __init__(
        self,
        seed: int,
        *,
        make_host: Callable[..., PartitionHost] = PartitionHost,
        make_groups: Callable[..., GroupHost] = GroupHost,
        groups: bool = True,
        sink: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare one run.

        Args:
            seed: any int.
            make_host: for tests that plant a bug,
            make_groups: and so is this.
            groups: without them there are twice as many records.
            sink: is given every line of the trace.
        """
        self.seed = seed
        self.trace = Trace(sink)
        self._rng = random.Random(seed)  # noqa: S311 - a seed, not a secret
        self.scheduler = Scheduler(self._draw())
        self.network = Network(self.scheduler, self._draw(), self.trace)
        self.cluster = SimulatedCluster(
            self.scheduler,
            self.network,
            self.trace,
            self._draw(),
            nodes=self._rng.choice([1, 1, 2, 3]),
            make_host=_fencing(make_host),
            make_groups=make_groups,
        )
        self.nemesis = Nemesis(self.scheduler, self.network, self.cluster, self._draw())
        self._saboteur: Saboteur | None = None
        if seed % SABOTAGE_EVERY == 1:
            rng = random.Random(f"sabotage {seed}")  # noqa: S311 - a seed, not a secret
            self._saboteur = Saboteur(self.scheduler, self.cluster, rng)
        self._history: list[history.AnyEvent] = []
        self._unkept: list[str] = []
        self._partitions = self._rng.choice([1, 2, 4])
        self._admin = Process("admin", "clients")
        self._created = False
        self._watcher = Watcher(self.cluster)
        self._producers = [
            SimulatedProducer(
                f"p{number}",
                self.scheduler,
                self.network,
                self._draw(),
                self._history.append,
            )
            for number in range(3)
        ]
        self._consumers: list[SimulatedConsumer] = []
        self._send_pause_ms_max = SEND_PAUSE_MS_MAX
        self.groups: SimulatedGroups | None = None
        if groups:
            rng = random.Random(f"groups {seed}")  # noqa: S311 - a seed, not a secret
            self.groups = SimulatedGroups(
                self.scheduler, self.network, self.cluster, rng, TOPIC, self._history.append
            )
            self._watcher.group_judge = self.groups.judge
            self._send_pause_ms_max = 2 * SEND_PAUSE_MS_MAX

    def _draw(self) -> random.Random:
        return random.Random(self._rng.getrandbits(64))  # noqa: S311 - a seed, not a secret

    def run(self) -> Report:
        """Storm, calm, verdict."""
        violations = []
        try:
            self._storm()
            self._calm()
        except InvariantViolationError as error:
            violations.append(str(error))
        except AssertionError as error:
            violations.append(f"an assertion of ours failed: {error!r}")
        report = checker.check(self._history)
        if not violations:
            violations = self._verdict(report)
        return Report(
            self.seed,
            self.trace.digest,
            self.trace.events,
            sum(one.faults for one in self._troubles),
            report.acknowledged,
            report.unknown,
            violations,
            list(self.trace.last) if violations else [],
        )

    @property
    def _troubles(self) -> list[Trouble]:
        found: list[Trouble | None] = [self.nemesis, self._saboteur, self.groups]
        return [one for one in found if one is not None]

    # --- phases ----------------------------------------------------------------------------------

    def _storm(self) -> None:
        self.cluster.start()
        self._create_topic()
        self._until(lambda: self._created, "the topic was never created")
        for producer in self._producers:
            self._keep_sending(producer, self.scheduler.now_ms + STORM_MS)
        self._consume("c0")
        for trouble in self._troubles:
            trouble.start()
        self._pass(STORM_MS)

    def _calm(self) -> None:
        for trouble in self._troubles:
            trouble.stop()
        if self._saboteur is not None:
            self._saboteur.keep_repairing(STEP_MS)
        self._until(
            lambda: all(producer.unresolved == 0 for producer in self._producers),
            "I14: batches were still unresolved long after the last fault",
        )
        ends = self._ends
        self._until(lambda: ends() is not None, "I14: partitions were never served again")
        final = self._consume("final")
        wanted = ends() or {}

        def all_read() -> bool:
            return all(final.positions().get(name, -1) >= end for name, end in wanted.items())

        self._until(all_read, f"I14: the final read stopped short of {wanted}")
        for name, end in wanted.items():
            place = f"{name.topic}-{name.partition}"
            self._history.append(history.Final("final", place, end))
        if self.groups is not None:
            self._settle(self.groups, wanted)

    def _settle(self, groups: SimulatedGroups, ends: dict[TopicPartition, int]) -> None:
        try:
            self._until(lambda: not groups.unsettled(ends), "")
        except InvariantViolationError as error:
            why = str(error) or f"I20: no rest long after the last fault: {groups.unsettled(ends)}"
            raise InvariantViolationError(why) from error
        self._unkept += groups.verdict(ends)

    def _verdict(self, report: checker.Report) -> list[str]:
        found = [*self._unkept, *(str(anomaly) for anomaly in report.anomalies)]
        errors = [error for consumer in self._consumers for error in consumer.errors]
        return found + [f"a consumer was told {error!r}" for error in errors]

    # --- parts -----------------------------------------------------------------------------------

    def _create_topic(self) -> None:
        request = CreateTopic(
            TOPIC,
            f"{self._rng.getrandbits(128):032x}",
            self._partitions,
            replication_factor=1,
            exist_ok=True,
            dedicated=False,
            options=ROLLING if self.seed % ROLLING_EVERY in (2, 3) else {},
            timeout_ms=5_000,
        )

        def created(answer: TopicCreated | RayStreamError) -> None:
            self._created = self._created or isinstance(answer, TopicCreated)

        def ask() -> None:
            if not self._created:
                self.network.call(self._admin, "controller", "create_topic", request, created)
                self.scheduler.after(STEP_MS, ask)

        ask()

    def _keep_sending(self, producer: SimulatedProducer, end_ms: int) -> None:
        if self.scheduler.now_ms >= end_ms:
            return
        partition = self._rng.randrange(self._partitions)
        producer.send(TOPIC, partition, self._rng.randint(1, BATCH_MAX))
        self.scheduler.after(
            self._rng.randint(1, self._send_pause_ms_max),
            lambda: self._keep_sending(producer, end_ms),
        )

    def _consume(self, name: str) -> SimulatedConsumer:
        consumer = SimulatedConsumer(name, self.scheduler, self.network, self._history.append)
        self._consumers.append(consumer)
        consumer.begin({TopicPartition(TOPIC, number): 0 for number in range(self._partitions)})
        return consumer

    def _ends(self) -> dict[TopicPartition, int] | None:
        """Readable ends of all partitions; None while one is not served."""
        ends = {
            TopicPartition(TOPIC, key[1]): hosted.log.readable_end
            for one in self.cluster.hosts.values()
            for key, hosted in one.host.partitions.items()
            if hosted.leading
            and hosted.spec.topic == TOPIC
            and not hosted.waiting
            and not hosted.staged
        }
        return ends if len(ends) == self._partitions else None

    def _pass(self, duration_ms: int) -> None:
        self.scheduler.run_until(self.scheduler.now_ms + duration_ms, self._watcher.look)
        self._watcher.look_everywhere()

    def _until(self, is_true: Callable[[], bool], otherwise: str) -> None:
        deadline_ms = self.scheduler.now_ms + CALM_MS
        while not is_true():
            if self.scheduler.now_ms >= deadline_ms:
                raise InvariantViolationError(otherwise)
            self._pass(STEP_MS)


def _fencing(make_host: Callable[..., PartitionHost]) -> Callable[..., PartitionHost]:
    """Hosts whose produce answers are checked: a request is applied only in its own epoch."""

    def made(*args: Any) -> PartitionHost:
        host = make_host(*args)
        produce = host.produce

        def watched(request: ProduceRequest, reply: Callable[[Any], None]) -> None:
            def checked(answer: ProduceResponse | RayStreamError) -> None:
                if isinstance(answer, ProduceResponse):
                    for asked, result in zip(request.partitions, answer.results, strict=True):
                        if result.error is None and result.leader_epoch != asked.leader_epoch:
                            raise InvariantViolationError(
                                f"I9: a request of leader epoch {asked.leader_epoch} was applied "
                                f"in leader epoch {result.leader_epoch}"
                            )
                reply(answer)

            produce(request, checked)

        host.produce = watched  # type: ignore[method-assign]  # the one place that sees both
        return host

    return made


def run(seed: int, *, sink: Callable[[str], None] | None = None) -> Report:
    """Run one seed, with consumer groups.

    Args:
        seed: any int; the same one gives the same run.
        sink: is given every line of the trace, to read along.
    """
    return Simulation(seed, sink=sink).run()
