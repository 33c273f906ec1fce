"""A coordinator with its log in a list, and consumers that do what members have to.

The consumers here keep what KIP-848 and `groups.commands` ask of a client: they read what they are
told, release the rest before they say so, send back the revision that they have applied, and drop
everything when they are fenced. Owning is what they do, whatever the coordinator believes.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_stream.errors import (
    FencedInstanceIdError,
    FencedMemberEpochError,
    RayStreamError,
    UnknownMemberIdError,
)
from ray_stream.groups.commands import (
    JOIN_EPOCH,
    LEAVE_EPOCH,
    Command,
    CommittedOffset,
    ConsumerGroupHeartbeat,
    DescribeGroup,
    GroupDescription,
    HeartbeatAnswer,
    MetadataSeen,
    OffsetCommit,
    OffsetFetch,
    OffsetsCommittedAnswer,
    PartitionKey,
    SeenTopic,
    Subscription,
    Tick,
)
from ray_stream.groups.coordinator import GroupCoordinator
from ray_stream.groups.image import Image, grouped
from ray_stream.groups.limits import Limits
from ray_stream.groups.records import Record, decode_record, encode_record

NOW_MS = 1_700_000_000_000
SESSION_MS = 10_000
REBALANCE_MS = 30_000
ROUNDS_MAX = 50


class Coordinator:
    """A machine, its clock and its log. Every decision's facts are durable at once."""

    def __init__(self, topics: Mapping[str, int] | None = None, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.log: list[bytes] = []
        self.records: list[Record] = []
        self.clock_ms = 5_000
        self.now_ms = NOW_MS
        self.machine = GroupCoordinator(self.limits)
        self.machine.begin(self.clock_ms)
        self.topics: dict[str, SeenTopic] = {}
        self._version = itertools.count(1)
        if topics is not None:
            self.see(topics)

    def see(self, topics: Mapping[str, int | Sequence[str]], prefix: str = "t-") -> None:
        """The cluster has exactly these topics: partition counts, or leaders' nodes."""
        self.topics = {}
        for name, leaders in topics.items():
            nodes = [""] * leaders if isinstance(leaders, int) else list(leaders)
            self.topics[name] = SeenTopic(f"{prefix}{name}", name, nodes)
        self.show()

    def show(self) -> None:
        self.do(MetadataSeen(next(self._version), list(self.topics.values())))

    def do(self, command: Command) -> Any:  # noqa: ANN401 - each command has its own answer
        self.machine.tell_time(self.clock_ms)
        decision = self.machine.decide(command, self.now_ms)
        self.log += [encode_record(record) for record in decision.records]
        self.records += decision.records
        self.machine.accept(decision)
        self.machine.check()
        return decision.response

    def restart(self, *, snapshot: bool = False, show: bool = True) -> None:
        """The process dies; the next one replays, or loads a snapshot and has no log before it."""
        if snapshot:
            self.log = [encode_record(record) for record in self.machine.snapshot()]
        before = self.machine.image
        self.machine = GroupCoordinator(self.limits)
        for data in self.log:
            self.machine.apply(decode_record(data))
        assert self.machine.image == before
        self.clock_ms += 100_000
        self.machine.begin(self.clock_ms)
        self.machine.check()
        if show and self.topics:
            self.show()

    def wait(self, milliseconds: int) -> None:
        self.clock_ms += milliseconds
        self.do(Tick())

    def describe(self, group_id: str = "g") -> GroupDescription:
        found: GroupDescription = self.do(DescribeGroup(group_id))
        return found

    def committed(self, group_id: str = "g") -> dict[PartitionKey, int]:
        found = self.do(OffsetFetch(group_id)).offsets
        return {(one.topic_id, one.partition): one.offset for one in found}

    def image(self) -> Image:
        return self.machine.image


@dataclass
class Consumer:
    """One start of a consumer process."""

    coordinator: Coordinator
    member_id: str
    names: Sequence[str] = ("flights",)
    group_id: str = "g"
    instance_id: str = ""
    regex: str = ""
    assignor: str = ""
    node_id: str = ""
    epoch: int = JOIN_EPOCH
    revision: int = 0
    sequence: int = 0
    commits: int = 0
    owns: dict[PartitionKey, None] = field(default_factory=dict)
    to_release: dict[PartitionKey, None] = field(default_factory=dict)
    earliest: dict[PartitionKey, bool] = field(default_factory=dict)
    answer: HeartbeatAnswer | None = None
    sent: Subscription | None = None
    heard: Subscription | None = None
    """The subscription that the coordinator answered; until then it is said again."""

    @property
    def subscription(self) -> Subscription:
        return Subscription(
            list(self.names),
            self.regex,
            self.assignor,
            SESSION_MS,
            REBALANCE_MS,
            self.node_id,
        )

    def heartbeat(self, *, full: bool = False) -> ConsumerGroupHeartbeat:
        """What it would send now."""
        self.sequence += 1
        says = full or self.epoch == JOIN_EPOCH or self.heard != self.subscription
        if says:
            self.sent = self.subscription
        return ConsumerGroupHeartbeat(
            self.group_id,
            self.member_id,
            self.epoch,
            self.sequence,
            self.revision,
            self.instance_id,
            self.subscription if says else None,
            grouped(self.owns),
        )

    def receive(self, answer: HeartbeatAnswer) -> None:
        self.answer, self.heard = answer, self.sent
        self.epoch = answer.member_epoch
        if answer.assignment is None:
            return
        told: dict[PartitionKey, bool] = {
            (topic.topic_id, number): number >= topic.initial_partitions
            for topic in answer.assignment
            for number in topic.partitions
        }
        self.revision = answer.revision
        self.to_release = dict.fromkeys(key for key in self.owns if key not in told)
        self.owns.update(dict.fromkeys(told))
        self.earliest = told

    def release(self) -> None:
        """The user's `on_revoked` has returned."""
        for key in self.to_release:
            del self.owns[key]
        self.to_release = {}

    def drop(self) -> None:
        """It was fenced."""
        self.owns, self.to_release, self.epoch, self.revision = {}, {}, JOIN_EPOCH, 0

    def beat(self, *, full: bool = False, release: bool = True) -> HeartbeatAnswer:
        """One heartbeat that arrives, and its answer too; what is revoked is released then."""
        answer: HeartbeatAnswer = self.coordinator.do(self.heartbeat(full=full))
        self.receive(answer)
        if release:
            self.release()
        return answer

    def leave(self, epoch: int = LEAVE_EPOCH) -> None:
        self.sequence += 1
        self.coordinator.do(
            ConsumerGroupHeartbeat(
                self.group_id,
                self.member_id,
                epoch,
                self.sequence,
                self.revision,
                self.instance_id,
            )
        )
        self.drop()

    def commit(
        self, offsets: Mapping[PartitionKey, int], epoch: int | None = None
    ) -> OffsetsCommittedAnswer:
        answer: OffsetsCommittedAnswer = self.coordinator.do(self.commit_of(offsets, epoch))
        return answer

    def commit_of(
        self, offsets: Mapping[PartitionKey, int], epoch: int | None = None
    ) -> OffsetCommit:
        """The request, to be sent when and as often as the network likes."""
        self.commits += 1
        return OffsetCommit(
            self.group_id,
            self.member_id,
            self.epoch if epoch is None else epoch,
            [CommittedOffset(*key, offset) for key, offset in offsets.items()],
            self.instance_id,
            self.commits,
        )

    def partitions(self) -> list[int]:
        """Of any topic, sorted."""
        return sorted(number for _, number in self.owns)


def settle(consumers: Sequence[Consumer]) -> int:
    """Heartbeats until nobody learns anything; returns how many rounds that took."""
    for rounds in range(1, ROUNDS_MAX):
        news = False
        for consumer in consumers:
            before = (consumer.epoch, consumer.revision)
            try:
                consumer.beat()
            except (FencedMemberEpochError, UnknownMemberIdError):
                consumer.drop()
            news |= before != (consumer.epoch, consumer.revision)
        if not news:
            return rounds
    raise AssertionError("it does not settle")


def refused(consumer: Consumer) -> type[RayStreamError] | None:
    """Beats; returns what it was refused with."""
    try:
        consumer.beat()
    except (FencedInstanceIdError, FencedMemberEpochError, UnknownMemberIdError) as error:
        return type(error)
    return None
