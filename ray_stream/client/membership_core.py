"""A member's mind: its side of KIP-848.

Owns: joining, heartbeats, what is held and what is released, being lost and coming back, leaving.
Refuses: clocks, threads, transport, callbacks and positions of the consumer (`rebalancing`).

`step(event, now_ms)` takes whatever happened and returns what to do; equal events give equal
effects. What the group gives and takes is published whole (`Told`). The consumer applies it when it
reads next, and says so (`Applied`); only then is a partition released. So between the two a
partition counts as held if it was published at all: a heartbeat never says less than what the
consumer may be reading or has to commit.
"""

from collections.abc import Iterable
from enum import StrEnum

from ray_stream.client.beginnings_core import Beginnings
from ray_stream.client.commits_core import Commit, Commits
from ray_stream.client.coordinator_core import CoordinatorLink, Errand
from ray_stream.client.holdings_core import Holdings
from ray_stream.client.membership_events import (
    Answered,
    Applied,
    CommitAsked,
    Effect,
    Event,
    Expired,
    FetchAsked,
    Finished,
    Identity,
    Leave,
    Publish,
    Subscribe,
    Tick,
)
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import ConsumerConfig
from ray_stream.errors import (
    FencedInstanceIdError,
    FencedMemberEpochError,
    RayStreamError,
    StaleMemberEpochError,
    UnknownMemberIdError,
)
from ray_stream.groups.commands import (
    JOIN_EPOCH,
    LEAVE_EPOCH,
    LEAVE_FOR_A_WHILE_EPOCH,
    STANDALONE_EPOCH,
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    OffsetFetch,
    OffsetsFetched,
    PartitionKey,
    Subscription,
)
from ray_stream.groups.image import grouped

JOIN_WAIT_MS = 10_000
"""A coordinator that never heard of a topic asks the controller before it answers."""
BEAT_WAIT_MS = 6_000
"""Beyond the interval, for which a coordinator may hold an answer that tells nothing."""
INTERVAL_MS = 3_000
"""Until the coordinator says another one."""


class Phase(StrEnum):
    """Where a client stands with its group."""

    OUT = "out"
    JOINING = "joining"
    IN = "in"
    LOST = "lost"
    """It was put out, and joins again when it reads next."""
    FAILED = "failed"
    """It cannot be a member, and somebody has to do something about it."""
    LEAVING = "leaving"


class _Beat:
    """The purpose of a heartbeat."""

    __slots__ = ("subscription",)

    def __init__(self, subscription: Subscription | None) -> None:
        self.subscription = subscription


class _Fetch:
    """The purpose of a question for stored offsets."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class _Farewell:
    """The purpose of a heartbeat that leaves."""


_FAREWELL = _Farewell()


class MembershipCore:
    """The machine behind a consumer with a group, be it a member or not."""

    def __init__(
        self, identity: Identity, config: ConsumerConfig, directory: TopicDirectory, topic_id: str
    ) -> None:
        """Be no member yet.

        Args:
            identity: who this is.
            config: validated options.
            directory: what is known of topics; kept up to date here.
            topic_id: a new one, for the internal topic if this client is the one that makes it.
        """
        self._identity = identity
        self._config = config
        self._link = CoordinatorLink(
            identity.group, topic_id, config.retry_backoff_ms, directory, self._topics
        )
        self._beginnings = Beginnings(identity, config, directory, self._link)
        self._commits = Commits(identity, self._link)
        self._holdings = Holdings(self._beginnings, self._commits)
        self._phase = Phase.OUT
        self._epoch = JOIN_EPOCH
        self._revision = 0
        self._sequence = 0
        self._subscription = Subscription()
        self._confirmed: Subscription | None = None
        """The subscription that the coordinator has answered."""
        self._subscribing: Subscribe | None = None
        self._leaving: Leave | None = None
        self._incarnation = 0
        self._lost: RayStreamError | None = None
        self._failed: RayStreamError | None = None
        self._beat: Errand | None = None
        self._farewell: Errand | None = None
        self._beat_at_ms = 0
        self._interval_ms = INTERVAL_MS
        self._urgent = False
        self._now_ms = 0
        self._effects: list[Effect] = []

    @property
    def phase(self) -> Phase:
        """Where it stands."""
        return self._phase

    @property
    def is_out(self) -> bool:
        """Whether nobody needs to hear anything more of it."""
        return self._leaving is None and self._phase not in (Phase.JOINING, Phase.IN, Phase.LEAVING)

    @property
    def held(self) -> list[PartitionKey]:
        """All that the next heartbeat will say is owned."""
        return list(self._holdings.held)

    # --- steps -----------------------------------------------------------------------------------

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take what happened.

        Args:
            event: see `membership_events`.
            now_ms: monotonic.

        Returns:
            What to send, what to publish, and results of calls.
        """
        self._effects = []
        self._now_ms = now_ms
        self._take(event, now_ms)
        for errand in self._link.expired(now_ms):
            self._finish(errand, Expired(errand.last_error), now_ms)
        self._settle(now_ms)
        self._effects += self._commits.plan(now_ms)
        if self._phase in (Phase.JOINING, Phase.IN):
            self._effects += self._beginnings.plan(self._epoch, now_ms)
            self._plan_beat(now_ms)
        self._plan_leaving(now_ms)
        self._effects += self._link.plan(now_ms)
        return self._effects

    def next_deadline_ms(self, now_ms: int, idle_since_ms: int | None) -> int | None:
        """When `step` has something to do though nothing arrives."""
        due = [self._link.next_deadline_ms(now_ms), self._beginnings.next_deadline_ms(now_ms)]
        if self._phase in (Phase.JOINING, Phase.IN):
            if self._beat is None:
                due.append(self._beat_at_ms)
            if idle_since_ms is not None:
                due.append(idle_since_ms + self._config.max_poll_interval_ms)
        if self._subscribing is not None:
            due.append(self._subscribing.give_up_ms)
        if self._leaving is not None:
            due.append(self._leaving.give_up_ms)
        return min((one for one in due if one is not None), default=None)

    def _take(self, event: Event, now_ms: int) -> None:
        match event:
            case Subscribe():
                self._subscribe(event)
            case Applied(version, owned):
                self._applied(version, owned)
            case CommitAsked():
                self._commit(event)
            case FetchAsked(number, partitions, give_up_ms):
                request = OffsetFetch(self._identity.group, grouped(partitions))
                self._link.ask(request, _Fetch(number), give_up_ms=give_up_ms)
            case Leave():
                self._leave(event)
            case Answered(request_id, answer):
                self._beginnings.looked_up(request_id, answer, now_ms)
                ended = self._link.answered(request_id, answer, now_ms)
                if ended is not None:
                    self._finish(*ended, now_ms)
            case Tick(idle_since_ms):
                self._look_at_reader(idle_since_ms, now_ms)

    def _finish(self, errand: Errand, result: object, now_ms: int) -> None:
        """An errand came to its end: an answer, a refusal, or `Expired`."""
        purpose = errand.purpose
        if errand is self._beat:
            self._beat = None
        if errand is self._farewell:
            self._farewell = None
        if isinstance(result, RayStreamError) and self._ends_membership(errand, result):
            self._end_by(result)
        if isinstance(purpose, Commit):
            self._effects += self._commits.answered(purpose, result)
        elif isinstance(purpose, _Fetch):
            self._effects.append(Finished(purpose.number, _fetched(result)))
        elif purpose is self._beginnings:
            if isinstance(result, OffsetsFetched | StaleMemberEpochError):
                self._beginnings.fetched(result, now_ms)
        elif isinstance(purpose, _Beat) and isinstance(result, HeartbeatAnswer):
            self._beaten(errand, purpose, result, now_ms)

    # --- the consumer's side ---------------------------------------------------------------------

    def _subscribe(self, event: Subscribe) -> None:
        self._subscribing = event
        if event.subscription != self._subscription:
            self._subscription = event.subscription
            self._urgent = True
        if self._phase != Phase.IN:
            self._join()

    def _join(self) -> None:
        self._phase = Phase.JOINING
        self._failed = None
        self._epoch, self._revision = JOIN_EPOCH, 0
        self._confirmed = None
        self._urgent = True

    def _applied(self, version: int, owned: Iterable[PartitionKey]) -> None:
        self._holdings.applied(version, owned)
        if self._phase == Phase.LOST and version == self._holdings.told.version:
            self._join()

    def _commit(self, event: CommitAsked) -> None:
        refused = self._lost if self._phase == Phase.LOST else self._failed
        if refused is not None:
            self._effects.append(Finished(event.number, refused))
            return
        epoch = STANDALONE_EPOCH if self._epoch == JOIN_EPOCH else self._epoch
        self._commits.add(Commit(event.number, event.offsets, epoch, event.give_up_ms))

    def _look_at_reader(self, idle_since_ms: int | None, now_ms: int) -> None:
        """A consumer that does not read leaves, so that others may."""
        limit_ms = self._config.max_poll_interval_ms
        if self._phase not in (Phase.JOINING, Phase.IN) or self._subscribing is not None:
            return
        if idle_since_ms is None or now_ms - idle_since_ms < limit_ms:
            return
        self._say_farewell(self._config.session_timeout_ms)
        self._lose(
            f"it did not read for max_poll_interval_ms={limit_ms}: handle fewer records at a time "
            "(max_poll_records), or allow more time"
        )

    # --- being put out ---------------------------------------------------------------------------

    def _ends_membership(self, errand: Errand, error: RayStreamError) -> bool:
        if self._phase not in (Phase.JOINING, Phase.IN, Phase.LEAVING):
            return False
        purpose = errand.purpose
        if isinstance(purpose, Commit):
            ends = (FencedMemberEpochError, UnknownMemberIdError, FencedInstanceIdError)
            return purpose.epoch != STANDALONE_EPOCH and isinstance(error, ends)
        if purpose is self._beginnings:
            return not isinstance(error, StaleMemberEpochError)
        return isinstance(purpose, _Beat)

    def _end_by(self, error: RayStreamError) -> None:
        if isinstance(error, FencedMemberEpochError | UnknownMemberIdError | StaleMemberEpochError):
            self._lose(str(error))
        else:
            if self._epoch != JOIN_EPOCH and not isinstance(error, FencedInstanceIdError):
                self._say_farewell(self._config.session_timeout_ms)
            self._drop_all()
            self._phase = Phase.FAILED
            self._failed = error
            self._effects += self._commits.fail(error)

    def _lose(self, reason: str) -> None:
        """Everything is others' now; the consumer hears of it when it reads next."""
        group = self._identity.group
        self._lost = FencedMemberEpochError(
            f"this consumer was put out of group {group!r}: {reason}. Its partitions are others' "
            "now, and what it handled since its last commit is delivered again. Nothing of it can "
            "be committed; poll() joins the group again"
        )
        self._drop_all()
        self._phase = Phase.LOST
        self._effects += self._commits.fail(self._lost)

    def _drop_all(self) -> None:
        if self._holdings.held or self._epoch != JOIN_EPOCH:
            self._incarnation += 1
        self._epoch, self._revision = JOIN_EPOCH, 0
        self._holdings.drop_all()
        if self._beat is not None:
            self._link.drop(self._beat)
            self._beat = None

    # --- what the group says ---------------------------------------------------------------------

    def _beaten(self, errand: Errand, beat: _Beat, answer: HeartbeatAnswer, now_ms: int) -> None:
        if self._phase not in (Phase.JOINING, Phase.IN):
            return
        self._phase = Phase.IN
        if beat.subscription is not None:
            self._confirmed = beat.subscription
        self._interval_ms = max(1, answer.heartbeat_interval_ms)
        is_old = answer.member_epoch < self._epoch or answer.revision < self._revision
        is_same = (answer.member_epoch, answer.revision) == (self._epoch, self._revision)
        # The coordinator holds what it has nothing to say to: after news it is asked at once.
        self._beat_at_ms = errand.sent_ms + self._interval_ms if is_old or is_same else now_ms
        if is_old:
            return
        self._epoch, self._revision = answer.member_epoch, answer.revision
        if answer.assignment is not None:
            self._holdings.give(answer.assignment)

    def _topics(self) -> list[str]:
        return self._beginnings.topics()

    def _settle(self, now_ms: int) -> None:
        """Publish what changed; release what is done with; tell who waits."""
        self._holdings.begin()
        self._publish()
        if self._holdings.release():
            self._urgent = True
        waiting = self._subscribing
        if waiting is None:
            return
        if self._failed is not None:
            self._subscribed(waiting, self._failed)
        elif self._holdings.told.complete and self._confirmed == waiting.subscription:
            self._subscribed(waiting, None)
        elif now_ms >= waiting.give_up_ms:
            is_in = self._confirmed == waiting.subscription
            self._subscribed(waiting, None if is_in else Expired(self._link.last_error))

    def _subscribed(self, waiting: Subscribe, result: object) -> None:
        self._subscribing = None
        self._effects.append(Finished(waiting.number, result))

    def _publish(self) -> None:
        is_member = self._phase == Phase.IN
        changed = self._holdings.tell(
            self._incarnation, self._lost, self._failed, is_member=is_member
        )
        if changed:
            self._effects.append(Publish(self._holdings.told))

    # --- heartbeats ------------------------------------------------------------------------------

    def _plan_beat(self, now_ms: int) -> None:
        if self._beat is not None and self._urgent:
            self._link.drop(self._beat)  # its answer would tell less than the next one's
            self._beat = None
        if self._beat is None and (self._urgent or now_ms >= self._beat_at_ms):
            self._urgent = False
            said = self._subscription if self._subscription != self._confirmed else None
            wait_ms = JOIN_WAIT_MS
            if said is None:
                patience_ms = min(BEAT_WAIT_MS, self._config.session_timeout_ms // 2)
                wait_ms = self._interval_ms + patience_ms
            heartbeat = self._heartbeat(self._epoch, said)
            self._beat = self._link.ask(heartbeat, _Beat(said), wait_ms=wait_ms)

    def _heartbeat(
        self, epoch: int, subscription: Subscription | None = None
    ) -> ConsumerGroupHeartbeat:
        self._sequence += 1
        me = self._identity
        is_beat = epoch >= JOIN_EPOCH
        return ConsumerGroupHeartbeat(
            me.group,
            me.member_id,
            epoch,
            self._sequence,
            self._revision,
            me.instance_id,
            subscription,
            grouped(self._holdings.held) if is_beat else None,
        )

    # --- leaving ---------------------------------------------------------------------------------

    def _leave(self, event: Leave) -> None:
        self._leaving = event
        if self._subscribing is not None:
            self._subscribed(self._subscribing, Expired(self._link.last_error))
        if self._phase in (Phase.JOINING, Phase.IN):
            self._phase = Phase.LEAVING

    def _plan_leaving(self, now_ms: int) -> None:
        leaving = self._leaving
        if leaving is None:
            return
        is_late = now_ms >= leaving.give_up_ms
        if self._phase == Phase.LEAVING and self._commits.is_empty:
            was_sent = self._beat is not None and self._beat.was_sent
            is_known = self._epoch != JOIN_EPOCH or was_sent
            self._drop_all()
            self._phase = Phase.OUT
            if is_known:
                self._say_farewell(max(0, leaving.give_up_ms - now_ms))
        if is_late or (self._commits.is_empty and self._farewell is None):
            self._drop_all()
            self._phase = Phase.OUT
            self._lost = self._failed = None
            self._leaving = None
            self._effects.append(Finished(leaving.number, None))
            self._publish()

    def _say_farewell(self, patience_ms: int) -> None:
        if self._farewell is None:
            epoch = LEAVE_FOR_A_WHILE_EPOCH if self._identity.instance_id else LEAVE_EPOCH
            give_up_ms = self._now_ms + patience_ms
            request = self._heartbeat(epoch)
            self._farewell = self._link.ask(request, _FAREWELL, give_up_ms=give_up_ms)


def _fetched(result: object) -> object:
    if isinstance(result, OffsetsFetched):
        return {
            (one.topic_id, one.partition): one.offset for one in result.offsets if one.offset >= 0
        }
    return result
