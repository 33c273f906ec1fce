"""One coordinator host's promises: it answers what is durable, tells news at once, comes back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_stream import errors
from ray_stream.actors.group_control import GroupShell
from ray_stream.actors.group_host import METADATA_WAIT_MS, GroupHost
from ray_stream.actors.partition import PartitionShell
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.config import CONSUMER_OFFSETS_TOPIC, COORDINATOR_PARTITIONS, TopicConfig
from ray_stream.groups.commands import (
    JOIN_EPOCH,
    LEAVE_EPOCH,
    CommittedOffset,
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    OffsetsFetched,
    SeenTopic,
    Subscription,
)
from ray_stream.groups.routing import partition_of
from ray_stream.log import locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions

TOPIC = "c" * 32
FLIGHTS = "f" * 32
GROUP = "planners"
NUMBER = partition_of(GROUP, COORDINATOR_PARTITIONS)


class ManualClock:
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


def lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    taken = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if taken is None:
        raise errors.DataDirInUseError("held")
    return taken


def one_by_one(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


class Process:
    """One life of a coordinator actor, with syncs that end when the test says so."""

    def __init__(self, root: Path, epoch: int) -> None:
        self.clock = ManualClock()
        self.syncs: list[tuple[SyncJob, Callable[[errors.StorageError | None], None]]] = []
        self.asked_for_metadata = 0
        storage = DiskStorage()
        self.host = PartitionHost(self.clock, lambda job, done: self.syncs.append((job, done)))
        self.control = PartitionControl(
            self.host,
            storage,
            self.clock,
            boot_id="boot",
            interval_ms=1_000,
            locking=lock,
            spread=one_by_one,
        )
        self.groups = GroupHost(
            self.host, storage, self.clock, want_metadata=self._wanted, joined=lambda *_: None
        )
        spec = AssignedPartition(
            TOPIC, CONSUMER_OFFSETS_TOPIC, NUMBER, "dir", "groups", epoch == 0, TopicConfig(), 0, 16
        )
        self.control.prepare(PreparePartitions({"dir": str(root)}, [spec]), lambda _: None)
        self.control.lead(LeadPartitions([(TOPIC, NUMBER, epoch)]), lambda _: None)
        assert self.groups.begin((TOPIC, NUMBER)) == ""

    def _wanted(self) -> None:
        self.asked_for_metadata += 1

    def turn(self, *, sync: bool = True) -> None:
        shell = GroupShell(PartitionShell(self.host, self.control), self.groups)
        shell.end_turn()
        while sync and self.syncs:
            job, done = self.syncs.pop(0)
            job.run()
            done(None)
            shell.end_turn()

    def show(self, partitions: int) -> None:
        self.groups.show(1, [SeenTopic(FLIGHTS, "flights", [""] * partitions)])

    def heartbeat(self, member: str, sequence: int, **fields: Any) -> list[Any]:  # noqa: ANN401 - a request's
        answers: list[Any] = []
        fields = {"member_epoch": JOIN_EPOCH, **fields}
        if fields["member_epoch"] == JOIN_EPOCH:
            fields["subscription"] = Subscription(names=["flights"])
        request = ConsumerGroupHeartbeat(GROUP, member, sequence=sequence, **fields)
        self.groups.heartbeat(request, answers.append)
        return answers

    def joined(self, member: str) -> HeartbeatAnswer:
        answers = self.heartbeat(member, 1)
        self.turn()
        (answer,) = answers
        assert isinstance(answer, HeartbeatAnswer)
        return answer

    def ask(self, request: Any) -> list[Any]:  # noqa: ANN401 - any group command
        answers: list[Any] = []
        self.groups.ask(request, answers.append)
        return answers


@pytest.fixture
def process(tmp_path: Path) -> Process:
    life = Process(tmp_path, 0)
    life.show(2)
    life.turn()
    return life


def commit(epoch: int, offset: int) -> OffsetCommit:
    return OffsetCommit(GROUP, "a", epoch, [CommittedOffset(FLIGHTS, 0, offset)])


def test_nothing_is_answered_before_it_is_durable(process: Process) -> None:
    joining = process.heartbeat("a", 1)
    process.turn(sync=False)
    listing: list[Any] = []
    process.groups.list_groups(ListGroups(), listing.append)
    process.turn(sync=False)
    assert (joining, listing) == ([], [])
    process.turn()
    assert joining[0].assignment[0].partitions == [0, 1]
    assert [one.group_id for one in listing[0].groups] == [GROUP]


def test_a_successor_knows_members_epochs_and_offsets(process: Process, tmp_path: Path) -> None:
    epoch = process.joined("a").member_epoch
    committed = process.ask(commit(epoch, 7))
    process.turn()
    assert committed[0].refused == []
    process.control.close()

    later = Process(tmp_path, 1)
    later.show(2)
    fetched = later.ask(OffsetFetch(GROUP, [(FLIGHTS, [0])], "a", epoch))
    again = later.ask(commit(epoch, 8))
    later.turn()
    assert isinstance(fetched[0], OffsetsFetched)
    assert fetched[0].offsets[0].offset == 7
    assert again[0].refused == [], "the same epoch goes on: no rebalance"


def test_who_waits_hears_of_a_rebalance_at_once(process: Process) -> None:
    told = process.joined("a")
    waiting = process.heartbeat(
        "a", 2, member_epoch=told.member_epoch, revision=told.revision, owned=[(FLIGHTS, [0, 1])]
    )
    process.turn()
    assert waiting == []
    process.joined("b")
    process.turn()
    assert len(waiting[0].assignment[0].partitions) == 1, "one of both has to be released"


def test_who_says_nothing_new_waits_although_others_said_something_meanwhile(
    process: Process,
) -> None:
    first = process.joined("a")
    one = process.heartbeat(
        "a",
        2,
        member_epoch=first.member_epoch,
        revision=first.revision,
        owned=[(FLIGHTS, [0, 1])],
    )
    process.ask(commit(first.member_epoch, 7))
    process.turn()
    assert one == [], "answered now, it would not hear of the next rebalance for an interval"
    process.heartbeat("b", 1)
    process.turn()
    assert len(one) == 1


def test_news_that_came_while_an_answer_waited_for_its_sync_is_in_that_answer(
    process: Process,
) -> None:
    """Told that nothing is new, a member asks again an interval later: 3 s without a partition."""
    first = process.joined("a")
    process.heartbeat("c", 1)
    process.turn()
    told = process.heartbeat(
        "a", 2, member_epoch=first.member_epoch, revision=first.revision, owned=[(FLIGHTS, [0, 1])]
    )
    process.turn()
    (step,) = told
    assert step.assignment is not None, "one of both has to be released"
    kept = step.assignment[0].partitions
    epochs = {"member_epoch": step.member_epoch, "revision": step.revision}
    released = process.heartbeat("a", 3, **epochs, owned=[(FLIGHTS, kept)])
    process.turn()
    epochs = {"member_epoch": released[0].member_epoch, "revision": released[0].revision}

    process.ask(commit(released[0].member_epoch, 7))
    waiting = process.heartbeat("a", 4, **epochs, owned=[(FLIGHTS, kept)])
    process.turn(sync=False)
    process.heartbeat("c", 5, member_epoch=LEAVE_EPOCH)
    process.turn()
    assert [sorted(one.assignment[0].partitions) for one in waiting] == [[0, 1]]


def test_who_waits_is_answered_after_the_interval(process: Process) -> None:
    told = process.joined("a")
    waiting = process.heartbeat("a", 2, member_epoch=told.member_epoch, revision=told.revision)
    process.turn()
    assert waiting == []
    process.clock.ms += told.heartbeat_interval_ms
    process.groups.on_time()
    assert waiting[0].assignment is None


def test_a_second_heartbeat_of_a_member_ends_the_wait_of_the_first(process: Process) -> None:
    told = process.joined("a")
    epochs = {"member_epoch": told.member_epoch, "revision": told.revision}
    first = process.heartbeat("a", 2, **epochs)
    process.turn()
    second = process.heartbeat("a", 3, **epochs)
    process.turn()
    assert (len(first), len(second)) == (1, 0)


def test_a_failed_sync_is_told_to_everybody_who_waits_for_it(process: Process) -> None:
    epoch = process.joined("a").member_epoch
    committed = process.ask(commit(epoch, 7))
    process.turn(sync=False)
    _, done = process.syncs.pop()
    done(errors.StorageError("Input/output error"))
    process.groups.end_turn()
    assert isinstance(committed[0], errors.NotCoordinatorError)
    assert isinstance(process.ask(commit(epoch, 8))[0], errors.NotCoordinatorError)


def test_a_group_of_another_coordinator_is_sent_there(process: Process) -> None:
    other = next(
        name
        for name in map(str, range(100))
        if partition_of(name, COORDINATOR_PARTITIONS) != NUMBER
    )
    (answer,) = process.ask(OffsetFetch(other))
    assert isinstance(answer, errors.NotCoordinatorError)
    assert answer.retriable


def test_topics_that_nobody_showed_yet_are_asked_about_first(tmp_path: Path) -> None:
    process = Process(tmp_path, 0)
    asked = process.asked_for_metadata
    joining = process.heartbeat("a", 1)
    process.turn()
    assert process.asked_for_metadata == asked + 1
    assert joining == []
    process.show(2)
    process.turn()
    assert joining[0].assignment[0].initial_partitions == 2


def test_a_controller_that_says_nothing_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    process = Process(tmp_path, 0)
    joining = process.heartbeat("a", 1)
    process.clock.ms += METADATA_WAIT_MS
    process.groups.on_time()
    assert isinstance(joining[0], errors.CoordinatorNotAvailableError)
