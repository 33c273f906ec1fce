"""The consumer's mind: what to fetch next, what an answer means, what may be handed out.

Owns: requests, retries, resets, and when to ask the controller. Refuses: threads, transport,
clocks, decoding records; what users type is checked before it comes here.

`step(event, now_ms)` takes whatever happened and returns what to send. Between steps the owner
takes records: `ready`, then `advance`. Equal events give equal effects.
"""

from collections.abc import Mapping

from ray_stream.client.assignment import Assignment
from ray_stream.client.consumer_events import (
    Answered,
    Assign,
    Brought,
    Effect,
    Event,
    Pause,
    Resume,
    Seek,
    Tick,
)
from ray_stream.client.fetch_sessions import Asked, FetchSessions, Outstanding
from ray_stream.client.grants import Grant
from ray_stream.client.positions import PartitionState
from ray_stream.client.topics import PartitionAddress, TopicDirectory
from ray_stream.config import ConsumerConfig
from ray_stream.errors import (
    CorruptRecordError,
    OffsetOutOfRangeError,
    OutcomeUnknownError,
    RayStreamError,
    UnknownTopicIdError,
    UnknownTopicOrPartitionError,
)
from ray_stream.rpc.messages import (
    EARLIEST,
    LATEST,
    FetchResponse,
    FetchResult,
    ListOffsetsResponse,
    MetadataResponse,
)
from ray_stream.types import TopicPartition

BACKOFF_MAX_MS = 1_000
METADATA_MAX_AGE_MS = 30_000
"""A subscription learns of new topics and partitions within this time."""

_Wanting = dict[str, list[tuple[PartitionState, PartitionAddress]]]
_GIVEN_UP = OutcomeUnknownError("no answer came in time")


class ConsumerCore:
    """The machine behind every way to read."""

    def __init__(self, config: ConsumerConfig, directory: TopicDirectory) -> None:
        """Args: config: validated options; directory: what is known of topics, maybe shared."""
        self._config = config
        self._directory = directory
        self._assignment = Assignment(directory, config.fetch_max_bytes)
        self._sessions = FetchSessions(config, self._assignment.budget)
        self._metadata_wanted = False
        self._metadata_under_way = False
        self._metadata_not_before_ms = 0
        self._metadata_attempts = 0
        self._metadata_ms: int | None = None

    # --- what the owner looks at and takes -------------------------------------------------------

    @property
    def states(self) -> Mapping[TopicPartition, PartitionState]:
        """The assigned partitions; for looking only."""
        return self._assignment.states

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left before the ends, paused partitions aside."""
        return self._assignment.is_done

    def ready(self) -> PartitionState | None:
        """The partition whose turn it is: it has a buffered batch, or else an error to raise.

        Or, if it has neither, a grant: then the owner reads what is `wanted`, steps with `Brought`,
        and looks again.
        """
        return next(iter(self._assignment.deliverable.values()), None)

    def wanted(self, grant: Grant) -> int:
        """How many bytes to read at the grant's position."""
        return grant.next_length(self._assignment.piece_bytes)

    def advance(self, state: PartitionState, position: int) -> None:
        """Everything below `position` was handed out; the next partition has its turn.

        Args:
            state: as `ready` gave it.
            position: inside the first buffered batch or at its end.
        """
        self._assignment.advance(state, position)

    def pass_turn(self, state: PartitionState) -> None:
        """Nothing could be handed out of this one: the next partition has its turn."""
        self._assignment.pass_turn(state)

    def take_error(self, state: PartitionState) -> RayStreamError:
        """The error to raise now. What caused it is tried again, so it comes again or is gone."""
        return self._assignment.take_error(state)

    def wake_ms(self, now_ms: int) -> int | None:
        """When `step` has something to do though nothing arrives; None: never."""
        first = self._next_timer_ms()
        for one in self._assignment.idle.values():
            at_ms = one.retry_at_ms
            if at_ms > now_ms and (first is None or at_ms < first):
                first = at_ms
        return first

    def has_work(self, now_ms: int) -> bool:
        """Whether a `Tick` may do anything now."""
        if self._assignment.idle:
            return True
        first = self._next_timer_ms()
        return first is not None and first <= now_ms

    def _next_timer_ms(self) -> int | None:
        """Of requests, and of what the controller is asked."""
        first = self._sessions.next_timer_ms()
        at_ms: int | None = None
        if not self._metadata_under_way:
            if self._metadata_wanted:
                at_ms = self._metadata_not_before_ms
            elif self._assignment.subscription is not None and self._metadata_ms is not None:
                at_ms = self._metadata_ms + METADATA_MAX_AGE_MS
        return at_ms if first is None or (at_ms is not None and at_ms < first) else first

    def restart(self) -> None:
        """Drop everything but assignment and positions: an event was left half done."""
        self._sessions.clear()
        self._metadata_under_way = False
        self._assignment.restart()

    # --- events ----------------------------------------------------------------------------------

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take what happened.

        Args:
            event: see `consumer_events`.
            now_ms: monotonic.

        Returns:
            What to send, and changes of a subscription's partitions.
        """
        effects: list[Effect] = []
        self._take(event, now_ms, effects)
        timer_ms = self._sessions.next_timer_ms()
        if timer_ms is not None and timer_ms <= now_ms:
            for request in self._sessions.expired(now_ms):
                self._take_answer(request, _GIVEN_UP, now_ms, effects)
            if self._sessions.any_overdue(now_ms):
                self._metadata_wanted = True
        self._plan(now_ms, effects)
        return effects

    def _take(self, event: Event, now_ms: int, effects: list[Effect]) -> None:
        assignment = self._assignment
        match event:
            case Answered(request_id, answer):
                request = self._sessions.answered(request_id)
                if request is not None:
                    self._take_answer(request, answer, now_ms, effects)
            case Brought(name, wanted, view):
                self._take_brought(assignment.states[name], wanted, view)
            case Assign():
                assignment.replace(event)
                self._metadata_ms = None
                self._sessions.expect_hosts(assignment.hosts())
            case Seek(starts):
                for name, start in starts.items():
                    assignment.start(assignment.states[name], start)
                    assignment.states[name].moved = True
            case Pause(partitions):
                assignment.pause(partitions, paused=True)
            case Resume(partitions):
                assignment.pause(partitions, paused=False)
            case Tick():
                pass

    # --- planning --------------------------------------------------------------------------------

    def _plan(self, now_ms: int, effects: list[Effect]) -> None:
        assignment, sessions = self._assignment, self._sessions
        if not assignment.deliverable and not sessions.has_room:
            assignment.drop_paused()  # they hold it all, and nothing else could move
        fetch: _Wanting = {}
        look_up: _Wanting = {}
        for state in list(assignment.idle.values()):
            address = self._address(state, now_ms) if state.retry_at_ms <= now_ms else None
            if address is not None:
                requests = fetch if state.reset is None else look_up
                requests.setdefault(address.host, []).append((state, address))
        for host, wanting in look_up.items():
            effects.append(sessions.look_up(host, wanting, now_ms))
        for host, wanting in fetch.items():
            send = sessions.fetch(host, wanting, now_ms, busy=bool(assignment.deliverable))
            if send is not None:
                effects.append(send)
        for wanting in (*look_up.values(), *fetch.values()):
            for state, _ in wanting:
                assignment.settle(state)
        self._plan_metadata(now_ms, effects)

    def _address(self, state: PartitionState, now_ms: int) -> PartitionAddress | None:
        """Where to ask; None: the topic is gone (an error now), or the controller comes first."""
        topic = self._directory.topic(state.name.topic)
        if topic is None and not self._directory.is_missing(state.name.topic):
            self._metadata_wanted = True
            return None
        if topic is not None and not state.topic_id:
            state.topic_id = topic.topic_id
        if topic is None or topic.topic_id != state.topic_id:
            if self._assignment.is_given:
                self._metadata_wanted = True
                self._back_off(state, now_ms)
                return None
            self._assignment.fail(state, _topic_gone(state.name, again=topic is not None))
            return None
        address = self._directory.address(*state.name)
        if address is None:
            self._metadata_wanted = True
        return address

    def _plan_metadata(self, now_ms: int, effects: list[Effect]) -> None:
        if self._metadata_under_way:
            return
        subscription = self._assignment.subscription
        if subscription is not None:
            if self._metadata_ms is None:
                self._metadata_ms = now_ms
                unknown = any(self._directory.topic(name) is None for name in subscription.names)
                self._metadata_wanted |= unknown or bool(subscription.patterns)
            elif now_ms - self._metadata_ms >= METADATA_MAX_AGE_MS:
                self._metadata_wanted = True
        if self._metadata_wanted and now_ms >= self._metadata_not_before_ms:
            self._metadata_wanted = False
            self._metadata_under_way = True
            effects.append(self._sessions.ask_metadata(self._topics_of_interest(), now_ms))

    def _topics_of_interest(self) -> list[str] | None:
        subscription = self._assignment.subscription
        if subscription is not None and subscription.patterns:
            return None
        names = {name.topic for name in self.states}
        return sorted(names | set(subscription.names if subscription is not None else ()))

    # --- answers ---------------------------------------------------------------------------------

    def _take_answer(
        self, request: Outstanding, answer: object, now_ms: int, effects: list[Effect]
    ) -> None:
        if request.is_metadata:
            self._take_metadata(request, answer, now_ms, effects)
            return
        if isinstance(answer, FetchResponse):
            self._take_fetched(request, answer, now_ms)
        elif isinstance(answer, ListOffsetsResponse):
            self._take_offsets(request, answer, now_ms)
        else:
            error = answer if isinstance(answer, RayStreamError) else _GIVEN_UP
            for asked in request.asked.values():
                if _is_current(request, asked):
                    self._failed(asked.state, error, now_ms)
        self._release(request)

    def _release(self, request: Outstanding) -> None:
        """Its partitions may be asked for again; those that brought records come last."""
        states = [one.state for one in request.asked.values() if _is_current(request, one)]
        for state in states:
            state.request_id = None
        for state in sorted(states, key=lambda one: one.has_something):
            self._assignment.settle(state)

    def _take_offsets(self, request: Outstanding, answer: ListOffsetsResponse, now_ms: int) -> None:
        for found in answer.results:
            asked = request.asked.get((found.topic_id, found.partition))
            if asked is None or not _is_current(request, asked):
                continue
            if found.error is not None:
                self._failed(asked.state, found.error.to_error(), now_ms)
            elif found.offset < 0:
                self._failed(asked.state, _GIVEN_UP, now_ms)
            else:
                self._assignment.start(asked.state, found.offset)

    def _take_fetched(self, request: Outstanding, answer: FetchResponse, now_ms: int) -> None:
        place = 0
        for result in answer.results:
            buffers = answer.batches[place : place + result.buffers]
            place += result.buffers
            asked = request.asked.get((result.topic_id, result.partition))
            if asked is None or not _fits(asked):
                continue
            state = asked.state
            if result.error is not None:
                if _is_current(request, asked):
                    self._failed(state, result.error.to_error(), now_ms)
                continue
            state.attempts = 0
            state.readable_end = self._readable_end(result)
            if result.extent is not None:
                state.grant = Grant(result.extent)
            else:
                state.receive(buffers)
            self._assignment.settle(state)

    def _take_brought(self, state: PartitionState, wanted: int, view: memoryview | None) -> None:
        """What surprises is asked of the leader again, which sends bytes then."""
        if not state.take_granted(view, wanted):
            self._sessions.read_no_files_of(state.host)
        self._assignment.settle(state)

    def _readable_end(self, result: FetchResult) -> int:
        if self._config.isolation_level == "read_committed" and result.last_stable_offset >= 0:
            return result.last_stable_offset
        return result.high_watermark

    def _failed(self, state: PartitionState, error: RayStreamError, now_ms: int) -> None:
        """Decide what one partition's error means: wait and ask again, start over, or tell."""
        if isinstance(error, OffsetOutOfRangeError):
            self._out_of_range(state, error, now_ms)
        elif isinstance(error, CorruptRecordError):
            damage = state.corrupt(error.first_offset, error.next_offset, error.reason)
            self._assignment.fail(state, damage)
        elif error.retriable or isinstance(
            error, UnknownTopicIdError | UnknownTopicOrPartitionError
        ):
            # Only the controller knows whether a topic is gone or has moved.
            self._metadata_wanted = True
            self._back_off(state, now_ms)
        else:
            self._assignment.fail(state, error)

    def _out_of_range(
        self, state: PartitionState, error: OffsetOutOfRangeError, now_ms: int
    ) -> None:
        policy = self._config.auto_offset_reset
        if state.buffer:
            self._back_off(state, now_ms)  # what is buffered is handed out first
        elif policy == "error":
            place = (*state.name, state.position, error.log_start, error.log_end)
            self._assignment.fail(state, OffsetOutOfRangeError(*place))
        else:
            self._assignment.start(state, EARLIEST if policy == "earliest" else LATEST)

    def _back_off(self, state: PartitionState, now_ms: int) -> None:
        state.retry_at_ms = now_ms + self._backoff_ms(state.attempts)
        state.attempts += 1

    def _backoff_ms(self, attempts: int) -> int:
        return min(self._config.retry_backoff_ms << min(attempts, 10), BACKOFF_MAX_MS)

    # --- metadata --------------------------------------------------------------------------------

    def _take_metadata(
        self, request: Outstanding, answer: object, now_ms: int, effects: list[Effect]
    ) -> None:
        self._metadata_under_way = False
        if not isinstance(answer, MetadataResponse):
            self._metadata_failed(answer, now_ms)
            return
        self._directory.update(answer, request.topics)
        self._metadata_ms = now_ms
        changed = self._assignment.follow()
        if changed is not None:
            effects.append(changed)
        unserved = [one for one in self.states.values() if not self._look_at_leader(one)]
        # Partitions that nothing serves are asked about again, but not at once.
        self._metadata_attempts = self._metadata_attempts + 1 if unserved else 0
        self._metadata_not_before_ms = now_ms + self._backoff_ms(self._metadata_attempts)
        self._sessions.expect_hosts(self._assignment.hosts())

    def _metadata_failed(self, answer: object, now_ms: int) -> None:
        if isinstance(answer, RayStreamError) and not answer.retriable:
            for state in list(self._assignment.idle.values()):
                if self._directory.address(*state.name) is None:
                    self._assignment.fail(state, answer)
        self._metadata_wanted = True
        self._metadata_attempts += 1
        self._metadata_not_before_ms = now_ms + self._backoff_ms(self._metadata_attempts)

    def _look_at_leader(self, state: PartitionState) -> bool:
        """Give up on a request to a leader of the past; say whether there is one to wait for."""
        address = self._directory.address(*state.name)
        if address is None or address.topic_id != state.topic_id:
            state.request_id = None
            self._assignment.settle(state)
            return self._directory.is_missing(state.name.topic)
        if (address.host, address.leader_epoch) != (state.host, state.leader_epoch):
            state.host, state.leader_epoch = address.host, address.leader_epoch
            state.request_id = None
            state.grant = None
            state.retry_at_ms = 0
            self._assignment.settle(state)
        return True


def _is_current(request: Outstanding, asked: Asked) -> bool:
    """Whether the partition still waits for this very request."""
    return asked.state.request_id == request.request_id


def _fits(asked: Asked) -> bool:
    """Whether fetched bytes still go where the partition stands, whoever brings them."""
    state = asked.state
    return state.generation == asked.generation and state.fetch_position == asked.offset


def _topic_gone(name: TopicPartition, *, again: bool) -> UnknownTopicOrPartitionError:
    what = "was deleted and made anew" if again else "was deleted"
    return UnknownTopicOrPartitionError(
        f"topic {name.topic!r} {what} while it was read: subscribe or assign again"
    )
