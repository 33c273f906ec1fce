"""Consumer groups, as users look at them and put them right.

Owns: finding coordinators, names in the place of topic ids, lag, where a reset leads to. Refuses:
being a member (`membership`), and every decision of the coordinator.

Groups live in the internal topic `CONSUMER_OFFSETS_TOPIC`, which the first member makes: while it
is not there, no group is.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from ray_stream.client.calls import Deadline, call, call_once, pause
from ray_stream.client.lookups import Lookups
from ray_stream.client.starts import places, resolved
from ray_stream.clock import Clock
from ray_stream.config import (
    CONSUMER_OFFSETS_TOPIC,
    COORDINATOR_PARTITIONS,
    check_topic_name,
)
from ray_stream.errors import (
    CoordinatorNotAvailableError,
    GroupIdNotFoundError,
    OffsetOutOfRangeError,
    OutcomeUnknownError,
)
from ray_stream.groups import commands
from ray_stream.groups.commands import (
    CommittedOffset,
    DeleteGroup,
    DescribeGroup,
    GroupListing,
    GroupsListed,
    ListGroups,
    PartitionsOfTopic,
    ResetOffsets,
)
from ray_stream.groups.limits import check_name
from ray_stream.groups.routing import partition_of
from ray_stream.metadata.commands import PartitionMetadata
from ray_stream.rpc.messages import EARLIEST, LATEST
from ray_stream.rpc.services import GroupService, GroupServices, Reply
from ray_stream.types import (
    GroupDescription,
    GroupMember,
    GroupPartition,
    StartPosition,
    TopicPartition,
)

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

DEFAULT_TIMEOUT_S = 30.0
_ATTEMPT_MS = 3_000
_OFFSETS_TIMEOUT_S = 3.0
"""How long a description waits for the ends of partitions whose leaders may be away."""
_RECHECK_MS = 100

Ask = Callable[[RequestT, Reply[AnswerT]], None]
"""A method of a service."""


class _Coordinator(NamedTuple):
    """One actor, and which partitions it leads in which epochs."""

    host: str
    leads: tuple[tuple[int, int], ...]


class GroupAdmin:
    """Group operations of one client. Thread-safe: each call stands alone."""

    def __init__(self, services: GroupServices, clock: Clock) -> None:
        """Args: services: how to reach the cluster; clock: for timeouts."""
        self._services = services
        self._clock = clock

    def groups(self, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> list[str]:
        """The names of all groups, sorted.

        Raises:
            TimeoutExpiredError: a coordinator did not answer; a part of the list is none.
        """
        deadline = Deadline(self._clock, timeout)
        return [one.group_id for one in self._listed(self._lookups(), deadline)]

    def describe_group(
        self, name: str, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> GroupDescription:
        """One group: who reads what, what is committed, how far behind it is.

        Args:
            name: of the group.
            timeout: seconds for the coordinator's answer.

        Raises:
            GroupIdNotFoundError: nobody joined it, or committed to it, or it expired.
            TimeoutExpiredError: its coordinator did not answer.
        """
        _check_group(name)
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        told = self._tell(lookups, name, deadline)
        return self._described(lookups, [told], deadline)[0]

    def describe_groups(
        self, *, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> list[GroupDescription]:
        """All groups, by name; one that vanishes meanwhile is left out."""
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        told = []
        for one in self._listed(lookups, deadline):
            try:
                told.append(self._tell(lookups, one.group_id, deadline))
            except GroupIdNotFoundError:
                continue
        return self._described(lookups, told, deadline)

    def delete_group(self, name: str, *, timeout: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Forget a group and its committed offsets.

        Raises:
            GroupIdNotFoundError: there is none of that name.
            NonEmptyGroupError: it has members.
            TimeoutExpiredError: it may or may not be there.
        """
        _check_group(name)
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        ask = self._asking(lookups, name, deadline, lambda service: service.delete_group)
        unknown = False
        while True:
            what = f"deleting group {name!r}"
            try:
                call_once(ask, DeleteGroup(name), deadline=deadline, what=what)
            except OutcomeUnknownError:
                unknown = True
                pause(min(_RECHECK_MS, deadline.left_ms()))
            except GroupIdNotFoundError:
                if not unknown:
                    raise
                return
            else:
                return

    def reset_offsets(
        self,
        group: str,
        topic: str,
        to: StartPosition,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> dict[TopicPartition, int]:
        """Let a group without members go on from somewhere else.

        Args:
            group: its name.
            topic: whose offsets; those of other topics stay.
            to: `"earliest"`, `"latest"`, an offset, a datetime, or a dict of these by partition;
                partitions that it leaves out stay where they are.
            timeout: seconds.

        Returns:
            Where each partition that was reset stands now.

        Raises:
            GroupIdNotFoundError: there is no such group.
            NonEmptyGroupError: it has members; nothing was reset.
            UnknownTopicOrPartitionError: there is no such topic.
            OffsetOutOfRangeError: an offset that the partition does not hold; nothing was reset.
            TimeoutExpiredError: it may or may not be reset.
        """
        _check_group(group)
        check_topic_name(topic)
        deadline = Deadline(self._clock, timeout)
        lookups = self._lookups()
        self._tell(lookups, group, deadline)
        offsets = self._places(lookups, topic, to, deadline)
        self.store_offsets(lookups, group, offsets, deadline)
        return offsets

    def store_offsets(
        self,
        lookups: Lookups,
        group: str,
        offsets: dict[TopicPartition, int],
        deadline: Deadline,
    ) -> None:
        """Store positions for a group without members, which need not exist."""
        stored = [
            CommittedOffset(topic.topic_id, partition, offset)
            for (name, partition), offset in offsets.items()
            if (topic := lookups.directory.topic(name)) is not None
        ]
        call(
            self._asking(lookups, group, deadline, lambda service: service.reset_offsets),
            ResetOffsets(group, stored),
            deadline=deadline,
            what=f"resetting offsets of group {group!r}",
            attempt_ms=_ATTEMPT_MS,
        )

    # --- within ----------------------------------------------------------------------------------

    def _lookups(self) -> Lookups:
        return Lookups(self._services, self._clock)

    def _places(
        self, lookups: Lookups, topic: str, to: StartPosition, deadline: Deadline
    ) -> dict[TopicPartition, int]:
        known = lookups.topic(topic, deadline)
        partitions = [TopicPartition(topic, one.partition) for one in known.partitions]
        chosen = places(to, partitions, "to")
        offsets = resolved(chosen, lookups, deadline, isolation_level="read_committed")
        typed = [name for name, place in chosen.items() if isinstance(place, int) and place >= 0]
        if typed:
            first = lookups.offsets(dict.fromkeys(typed, EARLIEST), deadline)
            last = lookups.offsets(dict.fromkeys(typed, LATEST), deadline)
            for name in typed:
                if not first[name] <= offsets[name] <= last[name]:
                    raise OffsetOutOfRangeError(*name, offsets[name], first[name], last[name])
        return offsets

    def _listed(self, lookups: Lookups, deadline: Deadline) -> list[GroupListing]:
        """The groups of every coordinator; one that got more partitions is asked again."""
        asked: dict[_Coordinator, None] = {}
        found: dict[str, GroupListing] = {}
        while True:
            left = [one for one in self._coordinators(lookups, deadline) if one not in asked]
            if not left:
                return sorted(found.values(), key=lambda one: one.group_id)
            answer: GroupsListed = call(
                self._on(left[0], lookups, deadline),
                ListGroups(),
                deadline=deadline,
                what="listing groups",
                attempt_ms=_ATTEMPT_MS,
            )
            asked[left[0]] = None
            found |= {one.group_id: one for one in answer.groups}

    def _coordinators(self, lookups: Lookups, deadline: Deadline) -> list[_Coordinator]:
        """All of them, once every partition is led; none while there are no groups."""

        def served(_: None, reply: Reply[list[_Coordinator]]) -> None:
            leads: dict[str, list[tuple[int, int]]] = {}
            for one in self._partitions(lookups, deadline):
                if not one.host:
                    reply(_away(one.partition))
                    return
                leads.setdefault(one.host, []).append((one.partition, one.leader_epoch))
            reply([_Coordinator(host, tuple(led)) for host, led in leads.items()])

        return call(served, None, deadline=deadline, what="looking for the groups' coordinators")

    def _partitions(self, lookups: Lookups, deadline: Deadline) -> list[PartitionMetadata]:
        # A moment more than there is: the last look tells who is away, not that time is up.
        patience = Deadline(self._clock, max(_RECHECK_MS, deadline.left_ms()) / 1000)
        lookups.refresh([CONSUMER_OFFSETS_TOPIC], patience)
        topic = lookups.directory.topic(CONSUMER_OFFSETS_TOPIC)
        return [] if topic is None else topic.partitions

    def _on(
        self, one: _Coordinator, lookups: Lookups, deadline: Deadline
    ) -> Ask[ListGroups, GroupsListed]:
        """Ask one actor; what has moved away from it since is found at its new place."""

        def ask(request: ListGroups, reply: Reply[GroupsListed]) -> None:
            if one in self._coordinators(lookups, deadline):
                self._services.coordinator(one.host).list_groups(request, reply)
            else:
                reply(GroupsListed([]))

        return ask

    def _asking(
        self,
        lookups: Lookups,
        group: str,
        deadline: Deadline,
        method: Callable[[GroupService], Ask[RequestT, AnswerT]],
    ) -> Ask[RequestT, AnswerT]:
        """Ask the group's coordinator, whoever it is at each attempt."""
        number = partition_of(group, COORDINATOR_PARTITIONS)

        def ask(request: RequestT, reply: Reply[Any]) -> None:
            partitions = self._partitions(lookups, deadline)
            if not partitions:
                reply(_no_group(group))
            elif not partitions[number].host:
                reply(_away(number))
            else:
                method(self._services.coordinator(partitions[number].host))(request, reply)

        return ask

    def _tell(self, lookups: Lookups, group: str, deadline: Deadline) -> commands.GroupDescription:
        return call(
            self._asking(lookups, group, deadline, lambda service: service.describe_group),
            DescribeGroup(group),
            deadline=deadline,
            what=f"describing group {group!r}",
            attempt_ms=_ATTEMPT_MS,
        )

    def _described(
        self, lookups: Lookups, told: Sequence[commands.GroupDescription], deadline: Deadline
    ) -> list[GroupDescription]:
        if not told:
            return []
        lookups.refresh(None, deadline)
        wanted: dict[TopicPartition, None] = {}
        for group in told:
            wanted |= dict.fromkeys(_partitions_of(lookups, group))
        patience = Deadline(self._clock, min(_OFFSETS_TIMEOUT_S, deadline.left_ms() / 1000))
        ends = lookups.reachable_offsets(dict.fromkeys(wanted, LATEST), patience)
        return [_description(lookups, group, ends) for group in told]


def _partitions_of(lookups: Lookups, group: commands.GroupDescription) -> list[TopicPartition]:
    """What its members subscribe to, and what it has committed, without topics that are gone."""
    subscribed = _named(lookups, [(one.topic_id, one.partitions) for one in group.topics])
    committed = _named(lookups, [(one.topic_id, [one.partition]) for one in group.offsets])
    return sorted(dict.fromkeys([*subscribed, *committed]))


def _named(lookups: Lookups, keys: Iterable[PartitionsOfTopic]) -> list[TopicPartition]:
    return [
        TopicPartition(name, number)
        for topic_id, numbers in keys
        if (name := lookups.directory.name_of(topic_id)) is not None
        for number in numbers
    ]


def _description(
    lookups: Lookups, told: commands.GroupDescription, ends: dict[TopicPartition, int]
) -> GroupDescription:
    members = tuple(_member(lookups, one) for one in told.members)
    owners = {place: one.member_id for one in members for place in (*one.revoking, *one.assignment)}
    offsets = {
        TopicPartition(topic, one.partition): one
        for one in told.offsets
        if (topic := lookups.directory.name_of(one.topic_id)) is not None
    }
    partitions = []
    for name in _partitions_of(lookups, told):
        stored = offsets.get(name)
        committed, end = None if stored is None else stored.offset, ends.get(name, -1)
        partitions.append(
            GroupPartition(
                topic=name.topic,
                partition=name.partition,
                committed=committed,
                end_offset=end,
                lag=None if committed is None or end < 0 else max(0, end - committed),
                member_id=owners.get(name, ""),
                metadata="" if stored is None else stored.metadata,
            )
        )
    return GroupDescription(
        name=told.group_id,
        state=told.state,
        epoch=told.epoch,
        assignor=told.assignor,
        members=members,
        partitions=tuple(partitions),
        notes=tuple(told.notes),
    )


def _member(lookups: Lookups, one: commands.MemberDescription) -> GroupMember:
    return GroupMember(
        member_id=one.member_id,
        client_id=one.client_id,
        instance_id=one.instance_id,
        node_id=one.node_id,
        rack=one.rack,
        state=one.state,
        epoch=one.epoch,
        assignment=tuple(sorted(_named(lookups, one.assignment))),
        revoking=tuple(sorted(_named(lookups, one.revoking))),
    )


def _check_group(name: object) -> None:
    check_name(name if isinstance(name, str) else "", "group")


def _no_group(group: str) -> GroupIdNotFoundError:
    return GroupIdNotFoundError(
        f"there is no group {group!r}: nobody joined it or committed to it, or it expired; "
        "groups() lists those that there are"
    )


def _away(partition: int) -> CoordinatorNotAvailableError:
    return CoordinatorNotAvailableError(
        f"nothing coordinates the groups of {CONSUMER_OFFSETS_TOPIC}-{partition} now: its actor "
        "or node is down, and is being replaced"
    )
