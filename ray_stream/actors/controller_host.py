"""The controller's machine on its journal: commands in, answers out once they are durable.

Owns: the answers that wait: for a sync, for partitions to be served, for an assignment to change.
Refuses: deciding (`MetadataMachine`), threads, Ray.

Apply at append, answer when synced; a query waits for the sync of what it saw. Whatever goes wrong
with the journal is raised through to the loop: the process ends and its successor replays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_stream.actors.partition_host import Syncer
from ray_stream.clock import Clock
from ray_stream.errors import RayStreamError, StorageError, VersionMismatchError
from ray_stream.log.sync import SyncJob
from ray_stream.metadata.commands import (
    AlterTopic,
    BrokerAssignment,
    BrokerLost,
    BrokerRegistered,
    ClaimLeadership,
    Command,
    ConfirmDeleted,
    CreateTopic,
    DeleteTopic,
    Done,
    InitProducerId,
    LeadershipGiven,
    PartitionRepaired,
    ProducerIdGiven,
    RegisterBroker,
    ReportServed,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from ray_stream.metadata.controller import MetadataMachine
from ray_stream.metadata.journal import MetadataJournal
from ray_stream.rpc.messages import (
    API_VERSION,
    MetadataRequest,
    MetadataResponse,
    WatchAssignment,
)
from ray_stream.rpc.services import Reply


@dataclass(slots=True)
class _Unsynced:
    """Something to do once the journal is durable up to an offset."""

    end_offset: int
    then: Callable[[], None]


@dataclass(slots=True)
class _Unready:
    """An answer that waits until a topic is served (or gone) as it says."""

    is_ready: Callable[[], bool]
    deadline_ms: int
    answer: Callable[[], None]


@dataclass(slots=True)
class _Watcher:
    request: WatchAssignment
    reply: Reply[BrokerAssignment | Done]
    deadline_ms: int


class ControllerHost:
    """`ControllerService`, and what brokers ask. Everything runs on its owner's thread."""

    def __init__(self, journal: MetadataJournal, clock: Clock, syncer: Syncer) -> None:
        """Args: journal: replayed, and claimed for this controller's epoch."""
        self._journal = journal
        self._clock = clock
        self._syncer = syncer
        self._unsynced: list[_Unsynced] = []
        self._unready: list[_Unready] = []
        self._watchers: list[_Watcher] = []
        self._seen_version = -1
        self._expected: dict[int, tuple[int, int]] = {}
        """Brokers whose process died: the epoch that is to be fenced, and until when."""
        self.last_sign_ms: dict[int, int] = {}
        """When each registered broker was last heard of, on the monotonic clock."""

    @property
    def machine(self) -> MetadataMachine:
        """The mind; only its queries are for others."""
        machine: MetadataMachine = self._journal.machine
        return machine

    # --- clients ----------------------------------------------------------------------------------

    def metadata(self, request: MetadataRequest, reply: Reply[MetadataResponse]) -> None:
        """Describe topics and where their partitions are served."""
        if request.api_version != API_VERSION:
            reply(
                VersionMismatchError(
                    f"client version {request.api_version} and cluster version {API_VERSION} "
                    "differ: install the same ray_stream on both sides"
                )
            )
            return
        topics, brokers = self.machine.metadata(request.topics)
        image = self.machine.image
        response = MetadataResponse(
            image.cluster_id,
            image.controller_epoch,
            self.machine.version,
            topics,
            brokers,
            self.machine.opening(),
        )
        self._when_synced(lambda: reply(response))

    def create_topic(self, request: CreateTopic, reply: Reply[TopicCreated]) -> None:
        """Create a topic; replies when every partition is served, or after its timeout."""

        def created(response: TopicCreated) -> None:
            self._when_ready(
                lambda: self.machine.unserved(response.topic_id) == 0,
                request.timeout_ms,
                lambda: reply(response),
            )

        self._submit(request, created, reply)

    def alter_topic(self, request: AlterTopic, reply: Reply[TopicAltered]) -> None:
        """Change a topic; replies when every partition serves with the new settings."""

        def altered(response: TopicAltered) -> None:
            self._when_ready(
                lambda: self.machine.unserved(response.topic_id, response.config_version) == 0,
                request.timeout_ms,
                lambda: reply(response),
            )

        self._submit(request, altered, reply)

    def delete_topic(self, request: DeleteTopic, reply: Reply[TopicDeleted]) -> None:
        """Delete a topic; replies when no living broker serves it any more."""

        def deleted(response: TopicDeleted) -> None:
            self._when_ready(
                lambda: self.machine.undeleted(response.topic_id) == 0,
                request.timeout_ms,
                lambda: reply(response),
            )

        self._submit(request, deleted, reply)

    def init_producer_id(self, request: InitProducerId, reply: Reply[ProducerIdGiven]) -> None:
        """Give out a producer id."""
        self._submit(request, reply, reply)

    # --- brokers ----------------------------------------------------------------------------------

    def register_broker(self, request: RegisterBroker, reply: Reply[BrokerRegistered]) -> None:
        """A broker presents itself."""

        def registered(response: BrokerRegistered) -> None:
            self.last_sign_ms[response.broker_id] = self._clock.monotonic_ms()
            reply(response)

        self._submit(request, registered, reply)

    def broker_lost(self, request: BrokerLost, reply: Reply[Done]) -> None:
        """A broker is dead or was ended for its silence."""
        self.last_sign_ms.pop(request.broker_id, None)
        self._submit(request, reply, reply)

    def expect_sign(self, broker_id: int, within_ms: int) -> None:
        """A broker's process died: unless it, or its successor, is heard of in time, it is lost."""
        heard_ms = self._clock.monotonic_ms()
        living = self.machine.liveness.brokers.get(broker_id)
        if living is not None:
            self._expected[broker_id] = (living.broker_epoch, heard_ms + within_ms)

    def lose_silent(self, silent_ms: int) -> None:
        """Give up the brokers that were not heard of for so long, or not when they had to be."""
        now_ms = self._clock.monotonic_ms()
        for broker in list(self.machine.liveness.brokers.values()):
            epoch, deadline_ms = self._expected.get(broker.broker_id, (-1, 0))
            heard_ms = self.last_sign_ms.setdefault(broker.broker_id, now_ms)
            overdue = epoch == broker.broker_epoch and now_ms >= deadline_ms
            if overdue or now_ms - heard_ms > silent_ms:
                self._expected.pop(broker.broker_id, None)
                self.broker_lost(BrokerLost(broker.broker_id, broker.broker_epoch), lambda _: None)

    def claim_leadership(self, request: ClaimLeadership, reply: Reply[LeadershipGiven]) -> None:
        """New leader epochs."""
        self._submit(request, reply, reply)

    def report_served(self, request: ReportServed, reply: Reply[Done]) -> None:
        """What a partition actor serves now."""
        self._submit(request, reply, reply)

    def confirm_deleted(self, request: ConfirmDeleted, reply: Reply[Done]) -> None:
        """Files of deleted partitions are gone."""
        self._submit(request, reply, reply)

    def partition_repaired(self, request: PartitionRepaired, reply: Reply[Done]) -> None:
        """A partition that was offline is sound again."""
        self._submit(request, reply, reply)

    def watch_assignment(
        self, request: WatchAssignment, reply: Reply[BrokerAssignment | Done]
    ) -> None:
        """Answer when the assignment differs from what is known; `Done` when time is up."""
        self.last_sign_ms[request.broker_id] = self._clock.monotonic_ms()
        watcher = _Watcher(request, reply, self._clock.monotonic_ms() + request.max_wait_ms)
        if not self._try_watch(watcher):
            self._watchers.append(watcher)

    # --- turns ------------------------------------------------------------------------------------

    def end_turn(self) -> None:
        """Start a sync where one is due; answer what may be answered."""
        changed = self.machine.version != self._seen_version
        self._seen_version = self.machine.version
        if changed:
            self._watchers = [one for one in self._watchers if not self._try_watch(one)]
        self._start_sync()
        # Last, for it may be long until the next turn.
        self._answer_synced()
        if changed:
            self._answer_ready()

    def on_time(self) -> None:
        """Answer what waited for its whole time."""
        now_ms = self._clock.monotonic_ms()
        due = [watcher for watcher in self._watchers if watcher.deadline_ms <= now_ms]
        self._watchers = [watcher for watcher in self._watchers if watcher.deadline_ms > now_ms]
        for watcher in due:
            watcher.reply(Done())
        self._answer_ready()

    def next_deadline_ms(self) -> int | None:
        """When `on_time` has something to do."""
        deadlines = [one.deadline_ms for one in self._watchers]
        deadlines += [one.deadline_ms for one in self._unready]
        return min(deadlines, default=None)

    # --- waiting ----------------------------------------------------------------------------------

    def _submit(self, command: Command, then: Callable[[Any], None], reply: Reply[Any]) -> None:
        try:
            pending = self._journal.submit(command, self._clock.now_ms())
        except RayStreamError as error:
            if self._journal.is_broken:
                raise
            refused = error
            self._when_synced(lambda: reply(refused))
            return
        response = pending.response
        self._unsynced.append(_Unsynced(pending.end_offset, lambda: then(response)))

    def _when_synced(self, then: Callable[[], None]) -> None:
        self._unsynced.append(_Unsynced(self._journal.written_end, then))

    def _when_ready(
        self, is_ready: Callable[[], bool], timeout_ms: int, answer: Callable[[], None]
    ) -> None:
        if is_ready():
            answer()
            return
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        self._unready.append(_Unready(is_ready, deadline_ms, answer))

    def _start_sync(self) -> None:
        job = self._journal.sync_job()
        if job is not None:
            self._syncer(job, lambda error: self._sync_ended(job, error))

    def _sync_ended(self, job: SyncJob, error: StorageError | None) -> None:
        if error is not None:
            # Recorded beside the log, so that a successor does not believe the page cache.
            raise self._journal.sync_failed(job, error) from error
        self._journal.synced(job)
        self._start_sync()
        self._answer_synced()

    def _answer_synced(self) -> None:
        synced_end = self._journal.synced_end
        due = [one for one in self._unsynced if one.end_offset <= synced_end]
        if due:
            self._unsynced = [one for one in self._unsynced if one.end_offset > synced_end]
            for one in due:
                one.then()

    def _answer_ready(self) -> None:
        now_ms = self._clock.monotonic_ms()
        due = [one for one in self._unready if one.deadline_ms <= now_ms or one.is_ready()]
        self._unready = [one for one in self._unready if one not in due]
        for one in due:
            one.answer()

    def _try_watch(self, watcher: _Watcher) -> bool:
        request = watcher.request
        try:
            version = self.machine.assignment_version(request.broker_id, request.broker_epoch)
            if version == request.known_version:
                return False
            assignment = self.machine.assignment(request.broker_id, request.broker_epoch)
        except RayStreamError as error:
            watcher.reply(error)
            return True
        self._when_synced(lambda: watcher.reply(assignment))
        return True
