"""A fake cluster whose groups are real: the coordinator's machine on its journal, on disk.

Owns: one coordinator process at a time, its deaths and successors, and what members did to it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.clock import SystemClock
from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS, TopicConfig
from ray_stream.errors import DataDirInUseError, OutcomeUnknownError, StorageError
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    OffsetCommit,
    OffsetFetch,
    SeenTopic,
)
from ray_stream.groups.image import Member
from ray_stream.groups.routing import partition_of
from ray_stream.log import locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition, CreateTopic
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions
from tests.unit.client.fake_cluster import FakeCluster, Reply
from tests.unit.client.threads import ThreadedServices, _Service

GROUP = "planners"
NUMBER = partition_of(GROUP, COORDINATOR_PARTITIONS)
TOPIC_ID = "c" * 32
CLOCK = SystemClock()


def _lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    taken = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if taken is None:
        raise DataDirInUseError("held")
    return taken


def _one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


class Process:
    """One life of a coordinator."""

    def __init__(self, root: Path, epoch: int, want_metadata: Callable[[], None]) -> None:
        self.syncs: list[tuple[SyncJob, Callable[[StorageError | None], None]]] = []
        self.replies: list[Reply] = []
        """Of those whose answers wait: they hear when the process dies."""
        storage = DiskStorage()
        self.host = PartitionHost(CLOCK, lambda job, done: self.syncs.append((job, done)))
        self.control = PartitionControl(
            self.host,
            storage,
            CLOCK,
            boot_id="boot",
            interval_ms=1_000,
            locking=_lock,
            spread=_one_by_one,
        )
        self.groups = GroupHost(
            self.host, storage, CLOCK, want_metadata=want_metadata, joined=lambda *_: None
        )
        spec = AssignedPartition(
            TOPIC_ID, CONSUMER_OFFSETS_TOPIC, NUMBER, "d", "g", epoch == 0, TopicConfig(), 0, 16
        )
        self.control.prepare(PreparePartitions({"d": str(root)}, [spec]), lambda _: None)
        self.control.lead(LeadPartitions([(TOPIC_ID, NUMBER, epoch)]), lambda _: None)
        assert self.groups.begin((TOPIC_ID, NUMBER)) == ""

    def turn(self) -> None:
        while True:
            self.host.end_turn()
            self.groups.end_turn()
            if not self.syncs:
                return
            job, done = self.syncs.pop(0)
            job.run()
            done(None)


class GroupCluster(FakeCluster):
    """Topics that are fake, and one group that is real."""

    def __init__(self, root: Path) -> None:
        super().__init__(CLOCK)
        self.root = root
        self.lives = 0
        self.process: Process | None = None
        self.metadata_wanted = False

    @property
    def coordinator_name(self) -> str:
        return f"groups-{self.lives}"

    def start_coordinator(self) -> None:
        """The next life; the topic is made with the first one."""
        if CONSUMER_OFFSETS_TOPIC not in self.topics:
            super().create_topic(
                CreateTopic(CONSUMER_OFFSETS_TOPIC, TOPIC_ID, 16, 1, True, True, {}), lambda _: None
            )
        self.lives += 1
        self.process = Process(self.root, self.lives - 1, self._want_metadata)
        self.move(CONSUMER_OFFSETS_TOPIC, NUMBER, self.coordinator_name)
        self.show()

    def kill_coordinator(self) -> None:
        """As `kill -9`: whoever waits hears that nobody knows."""
        assert self.process is not None
        process, self.process = self.process, None
        self.move(CONSUMER_OFFSETS_TOPIC, NUMBER, "")
        process.control.close()
        for reply in process.replies:
            reply(OutcomeUnknownError("the actor died"))

    def show(self) -> None:
        """The coordinator sees the topics."""
        topics = [
            SeenTopic(one.metadata.topic_id, name, [""] * len(one.partitions))
            for name, one in self.topics.items()
            if not name.startswith("__")
        ]
        if self.process is not None:
            self.process.groups.show(self.version, topics)
            self.process.turn()

    def _want_metadata(self) -> None:
        self.metadata_wanted = True

    def create_topic(self, request: CreateTopic, reply: Reply) -> None:
        if request.name == CONSUMER_OFFSETS_TOPIC and self.process is None:
            self.start_coordinator()
        super().create_topic(request, reply)

    # --- the coordinator's service ---------------------------------------------------------------

    def _ask(self, host: str, reply: Reply, serve: Callable[[Process, Reply], None]) -> None:
        process = self.process
        if process is None or host != self.coordinator_name:
            reply(OutcomeUnknownError(f"{host} is dead"))
            return

        def answered(answer: Any) -> None:  # noqa: ANN401
            if answered in process.replies:
                process.replies.remove(answered)
                reply(answer)

        process.replies.append(answered)
        serve(process, answered)
        self._turn()

    def _turn(self) -> None:
        if self.process is not None:
            self.process.turn()
            if self.metadata_wanted:
                self.metadata_wanted = False
                self.show()

    def heartbeat(self, host: str, request: ConsumerGroupHeartbeat, reply: Reply) -> None:
        self._ask(host, reply, lambda life, answer: life.groups.heartbeat(request, answer))

    def commit_offsets(self, host: str, request: OffsetCommit, reply: Reply) -> None:
        self._ask(host, reply, lambda life, answer: life.groups.ask(request, answer))

    def fetch_offsets(self, host: str, request: OffsetFetch, reply: Reply) -> None:
        self._ask(host, reply, lambda life, answer: life.groups.ask(request, answer))

    def next_deadline_ms(self) -> int | None:
        due = [super().next_deadline_ms()]
        if self.process is not None:
            due.append(self.process.groups.next_deadline_ms())
        return min((one for one in due if one is not None), default=None)

    def wake(self) -> None:
        super().wake()
        if self.process is not None:
            self.process.groups.on_time()
            self._turn()

    # --- looking at it ---------------------------------------------------------------------------

    def members(self) -> dict[str, Member]:
        assert self.process is not None
        groups = self.process.groups._coordinators[NUMBER].machine.image.groups
        return dict(groups[GROUP].members) if GROUP in groups else {}

    def committed(self) -> dict[int, int]:
        """By partition, of whatever topic."""
        assert self.process is not None
        groups = self.process.groups._coordinators[NUMBER].machine.image.groups
        if GROUP not in groups:
            return {}
        return {key[1]: stored.offset for key, stored in groups[GROUP].offsets.items()}

    def expel(self, member_id: str) -> None:
        """Fence a member, as if its session were over."""
        assert self.process is not None
        self.process.groups.suspect(GROUP, member_id, 0)
        self.process.groups.on_time()
        self._turn()


class GroupThreads(ThreadedServices):
    """`GroupServices` for consumers in the test's threads."""

    cluster: GroupCluster

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.cluster = GroupCluster(root)

    def coordinator(self, host: str) -> Any:  # noqa: ANN401 - a GroupService
        return _Service(self, host)
