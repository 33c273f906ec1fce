"""The group coordinators of one actor: a machine on its journal for each internal partition.

Owns: the answers that wait: for a sync, for news of a rebalance, for the controller's metadata.
Refuses: deciding (`GroupCoordinator`), the logs' syncs (its `PartitionHost`), threads, Ray.

Apply at append, answer when synced; what shows unsynced facts waits as well. A journal that broke
is raised through to the loop: the process ends and its successor replays.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_stream.actors.hosted import Hosted
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.clock import Clock
from ray_stream.config import COORDINATOR_PARTITIONS
from ray_stream.errors import (
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    RayStreamError,
)
from ray_stream.groups import records as codec
from ray_stream.groups.commands import (
    JOIN_EPOCH,
    Command,
    ConsumerGroupHeartbeat,
    GroupListing,
    GroupsListed,
    HeartbeatAnswer,
    ListGroups,
    MemberSuspected,
    MetadataSeen,
    Response,
    SeenTopic,
    Tick,
)
from ray_stream.groups.coordinator import GroupCoordinator
from ray_stream.groups.records import Record
from ray_stream.groups.routing import partition_of
from ray_stream.journal.journal import SNAPSHOT_RECORDS, Journal
from ray_stream.journal.snapshots import Snapshots
from ray_stream.log.storage import Storage
from ray_stream.metadata.commands import PartitionKey
from ray_stream.rpc.services import Reply

METADATA_WAIT_MS = 5_000
"""How long a heartbeat about topics that nobody showed yet waits for the controller."""

MemberKey = tuple[str, str]


@dataclass(slots=True)
class _Unsynced:
    """Something to do once the log is durable up to an offset."""

    end_offset: int
    then: Callable[[], None]
    reply: Reply[Any]
    """Who hears of it when it does not come to that."""


@dataclass(slots=True)
class _Held:
    """A heartbeat with nothing to tell: answered when there is news, or when its time is up."""

    request: ConsumerGroupHeartbeat
    reply: Reply[HeartbeatAnswer]
    answer: HeartbeatAnswer
    deadline_ms: int


@dataclass(slots=True)
class _Coordinator:
    """One internal partition that is led here."""

    hosted: Hosted
    machine: GroupCoordinator
    journal: Journal[Command, Record, Response]
    unsynced: list[_Unsynced] = field(default_factory=list)
    held: dict[str, dict[str, _Held]] = field(default_factory=dict)
    """By group, by member."""


@dataclass(slots=True)
class _Ignorant:
    """A heartbeat about topics that were not shown yet."""

    request: ConsumerGroupHeartbeat
    reply: Reply[HeartbeatAnswer]
    deadline_ms: int


class GroupHost:
    """`GroupService` over the internal partitions of one actor, on its owner's thread."""

    def __init__(
        self,
        host: PartitionHost,
        storage: Storage,
        clock: Clock,
        *,
        want_metadata: Callable[[], None],
        joined: Callable[[str, str, str], None],
        snapshot_records: int = SNAPSHOT_RECORDS,
    ) -> None:
        """Make one that coordinates nothing yet.

        Args:
            host: has the logs open, and syncs them.
            storage: where they are, for snapshots.
            clock: both clocks.
            want_metadata: asks for `show` to be called soon.
            joined: gets group, member and client id of each member that comes or is found.
            snapshot_records: a snapshot of a partition's groups is due after so many facts.
        """
        self._host = host
        self._storage = storage
        self._clock = clock
        self._want_metadata = want_metadata
        self._joined = joined
        self._snapshot_records = snapshot_records
        self._coordinators: dict[int, _Coordinator] = {}
        self._ignorant: list[_Ignorant] = []
        self._topics: Sequence[SeenTopic] | None = None
        self._version = -1

    # --- which partitions --------------------------------------------------------------------

    def begin(self, key: PartitionKey) -> str:
        """Replay a partition whose leader epoch has begun; returns why it cannot, or nothing."""
        hosted = self._host.partitions[key]
        self.end([key])
        machine = GroupCoordinator()
        journal: Journal[Command, Record, Response] = Journal(
            hosted.log,
            machine,
            codec,
            Snapshots(self._storage, hosted.directory),
            name=f"log of {hosted.name}",
            snapshot_records=self._snapshot_records,
        )
        try:
            journal.replay()
        except RayStreamError as error:
            return f"{type(error).__name__}: {error}"
        machine.begin(self._clock.monotonic_ms())
        one = self._coordinators[key[1]] = _Coordinator(hosted, machine, journal)
        if self._topics is not None:
            self._submit(one, MetadataSeen(self._version, list(self._topics)), _ignore)
        self._want_metadata()
        for group in machine.image.groups.values():
            for member in group.members.values():
                self._joined(group.group_id, member.member_id, member.subscription.client_id)
        return ""

    def end(self, keys: Iterable[PartitionKey]) -> None:
        """Coordinate these no more; everybody who waits is told to look for another one."""
        for _, number in keys:
            one = self._coordinators.pop(number, None)
            if one is not None:
                self._dismiss(one)

    def _dismiss(self, one: _Coordinator) -> None:
        error = NotCoordinatorError(f"{one.hosted.name} is not led here any more: ask again")
        for waiting in one.unsynced:
            waiting.reply(error)
        one.unsynced.clear()
        for members in one.held.values():
            for held in members.values():
                held.reply(error)
        one.held.clear()

    def journals(self) -> dict[int, Journal[Any, Any, Any]]:
        """The logs of what is coordinated here, by partition of the internal topic."""
        return {number: one.journal for number, one in self._coordinators.items()}

    def machines(self) -> dict[int, GroupCoordinator]:
        """Their minds; for looking only."""
        return {number: one.machine for number, one in self._coordinators.items()}

    # --- GroupService ------------------------------------------------------------------------

    def ask(self, request: Any, reply: Reply[Any]) -> None:
        """Take a command about one group."""
        one = self._coordinator_of(request.group_id)
        if one is None:
            reply(_not_here(request.group_id))
        else:
            self._submit(one, request, reply)

    def heartbeat(self, request: ConsumerGroupHeartbeat, reply: Reply[HeartbeatAnswer]) -> None:
        """A member joins, lives on, confirms, or leaves."""
        one = self._coordinator_of(request.group_id)
        if one is None:
            reply(_not_here(request.group_id))
        elif one.machine.needs_metadata(request):
            deadline_ms = self._clock.monotonic_ms() + METADATA_WAIT_MS
            self._ignorant.append(_Ignorant(request, reply, deadline_ms))
            self._want_metadata()
        else:
            self._heartbeat(one, request, reply)

    def list_groups(self, request: ListGroups, reply: Reply[GroupsListed]) -> None:
        """The groups of every partition that is led here."""
        missing = len(self._coordinators)
        found: list[GroupListing] = []

        def listed(answer: GroupsListed | RayStreamError) -> None:
            nonlocal missing
            missing -= 1
            if isinstance(answer, GroupsListed):
                found.extend(answer.groups)
            if missing == 0:
                reply(GroupsListed(sorted(found, key=lambda group: group.group_id)))

        if not missing:
            reply(GroupsListed([]))
        for one in list(self._coordinators.values()):
            self._submit(one, request, listed)

    # --- what the shell learns -----------------------------------------------------------------

    def show(self, version: int, topics: Sequence[SeenTopic]) -> None:
        """All topics as the controller shows them; heartbeats that waited for it go on."""
        if topics != self._topics:
            self._version = max(version, self._version + 1)
            self._topics = topics
            for one in self._coordinators.values():
                self._submit(one, MetadataSeen(self._version, list(topics)), _ignore)
        ignorant, self._ignorant = self._ignorant, []
        for waiting in ignorant:
            coordinator = self._coordinator_of(waiting.request.group_id)
            if coordinator is None:
                waiting.reply(_not_here(waiting.request.group_id))
            else:
                self._heartbeat(coordinator, waiting.request, waiting.reply)

    def suspect(self, group_id: str, member_id: str, grace_ms: int) -> None:
        """Nobody could reach the member: wait less for it."""
        one = self._coordinator_of(group_id)
        if one is not None:
            self._submit(one, MemberSuspected(group_id, member_id, grace_ms), _ignore)

    def is_member(self, group_id: str, member_id: str) -> bool:
        """Whether the member is still one."""
        one = self._coordinator_of(group_id)
        group = None if one is None else one.machine.image.groups.get(group_id)
        return group is not None and member_id in group.members

    # --- turns -----------------------------------------------------------------------------------

    def end_turn(self) -> None:
        """Answer what became durable; give up what went offline."""
        for number, one in list(self._coordinators.items()):
            if one.hosted.log.offline:
                del self._coordinators[number]
                self._dismiss(one)
                self._host.went_offline(one.hosted)
                continue
            one.journal.keep_snapshot_if_durable()
            synced_end = one.journal.synced_end
            due = [waiting for waiting in one.unsynced if waiting.end_offset <= synced_end]
            if due:
                one.unsynced = [each for each in one.unsynced if each.end_offset > synced_end]
                for waiting in due:
                    waiting.then()

    def on_time(self) -> None:
        """Time-outs of members, and of everybody who waits."""
        now_ms = self._clock.monotonic_ms()
        for one in list(self._coordinators.values()):
            if one.machine.next_due_ms <= now_ms:
                self._submit(one, Tick(), _ignore)
            for members in one.held.values():
                for member_id in [m for m, held in members.items() if held.deadline_ms <= now_ms]:
                    held = members.pop(member_id)
                    held.reply(held.answer)
        overdue = [one for one in self._ignorant if one.deadline_ms <= now_ms]
        self._ignorant = [one for one in self._ignorant if one.deadline_ms > now_ms]
        for waiting in overdue:
            waiting.reply(
                CoordinatorNotAvailableError("the controller does not say which topics there are")
            )

    def next_deadline_ms(self) -> int | None:
        """When `on_time` has something to do."""
        deadlines = [one.deadline_ms for one in self._ignorant]
        for one in self._coordinators.values():
            if one.machine.image.groups:
                deadlines.append(one.machine.next_due_ms)
            for members in one.held.values():
                deadlines += [held.deadline_ms for held in members.values()]
        return min(deadlines, default=None)

    # --- within ----------------------------------------------------------------------------------

    def _coordinator_of(self, group_id: str) -> _Coordinator | None:
        return self._coordinators.get(partition_of(group_id, COORDINATOR_PARTITIONS))

    def _heartbeat(
        self, one: _Coordinator, request: ConsumerGroupHeartbeat, reply: Reply[HeartbeatAnswer]
    ) -> None:
        earlier = one.held.get(request.group_id, {}).pop(request.member_id, None)
        if earlier is not None:
            earlier.reply(earlier.answer)

        def answered(answer: HeartbeatAnswer | RayStreamError) -> None:
            if isinstance(answer, RayStreamError):
                reply(answer)
                return
            if request.subscription is not None and answer.member_epoch >= 0:
                client_id = request.subscription.client_id
                self._joined(request.group_id, request.member_id, client_id)
            if _tells_something(answer, request):
                reply(answer)
            elif one.machine.has_news(request):
                # It came while this answer waited for its sync. Who is told nothing would ask
                # again only an interval later.
                self._submit(one, request, reply)
            else:
                deadline_ms = self._clock.monotonic_ms() + answer.heartbeat_interval_ms
                members = one.held.setdefault(request.group_id, {})
                members[request.member_id] = _Held(request, reply, answer, deadline_ms)

        self._submit(one, request, answered)

    def _submit(self, one: _Coordinator, command: Any, reply: Reply[Any]) -> None:
        before = one.journal.written_end
        one.machine.tell_time(self._clock.monotonic_ms())
        try:
            pending = one.journal.submit(command, self._clock.now_ms())
        except RayStreamError as error:
            if one.journal.is_broken:
                raise
            refused = error
            self._when_synced(one, lambda: reply(refused), reply)
            return
        response = pending.response
        if one.journal.written_end != before:
            self._host.changed(one.hosted)
            self._tell_news(one)
        self._when_synced(one, lambda: reply(response), reply)

    def _when_synced(self, one: _Coordinator, then: Callable[[], None], reply: Reply[Any]) -> None:
        one.unsynced.append(_Unsynced(one.journal.written_end, then, reply))

    def _tell_news(self, one: _Coordinator) -> None:
        """Ask again for those who wait, where a decision has changed what they would hear."""
        for members in one.held.values():
            for member_id, held in list(members.items()):
                if held.request.member_id in members and one.machine.has_news(held.request):
                    del members[member_id]
                    self._submit(one, held.request, held.reply)


def _tells_something(answer: HeartbeatAnswer, request: ConsumerGroupHeartbeat) -> bool:
    """Whether the member asks again at once when it hears this (`client.membership_core`)."""
    if request.member_epoch <= JOIN_EPOCH or request.subscription is not None:
        return True  # it came, comes back, leaves, or wants to know that this was taken
    known = (request.member_epoch, request.revision)
    return answer.assignment is not None or (answer.member_epoch, answer.revision) != known


def _not_here(group_id: str) -> NotCoordinatorError:
    return NotCoordinatorError(
        f"group {group_id!r} is not coordinated here: refresh the metadata and ask again"
    )


def _ignore(answer: object) -> None:
    """The answer to what nobody asked."""
