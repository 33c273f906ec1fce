"""The thread behind a consumer with a group: it alone runs the member's machine.

Owns: the thread, requests to services, calls that wait for the group, what happens to open members
when the process ends. Refuses: deciding (`membership_core`), callbacks and positions: those belong
to the consumer's thread (`rebalancing`).

Heartbeats depend on nothing that users do. The thread does one small thing an interval and is woken
by answers; the consumer's thread never wakes it to say that it reads, it leaves a note.

The thread is a daemon, as the producer's is: Python joins other threads before exit hooks run, and
in those no thread can be started any more.
"""

import atexit
import itertools
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any

from ray_stream.client.calls import Deadline, timed_out
from ray_stream.client.membership import NOTHING_TOLD, Told, anew
from ray_stream.client.membership_core import MembershipCore
from ray_stream.client.membership_events import (
    Answered,
    Applied,
    CommitAsked,
    Event,
    Expired,
    FetchAsked,
    Finished,
    Identity,
    Leave,
    Publish,
    Send,
    Subscribe,
    Tick,
)
from ray_stream.client.topics import TopicDirectory
from ray_stream.clock import Clock
from ray_stream.config import ConsumerConfig
from ray_stream.errors import (
    ClosedError,
    InvariantViolationError,
    OutcomeUnknownError,
    RayStreamError,
)
from ray_stream.groups.commands import (
    ConsumerGroupHeartbeat,
    OffsetCommit,
    OffsetFetch,
    PartitionKey,
    RefusedPartition,
    Subscription,
)
from ray_stream.groups.limits import check_name
from ray_stream.metadata.commands import CreateTopic
from ray_stream.rpc.messages import ListOffsetsRequest
from ray_stream.rpc.services import GroupServices

_LOG = logging.getLogger("ray_stream.consumer")
_IDLE_S = 3600.0
_SLICE_S = 0.2
_GRACE_MS = 1_000
"""The machine's own time-out of a call comes first; this is for when its thread hangs."""
LEAVE_MS = 5_000
"""How long anything waits for a goodbye to be heard."""
EXIT_MS = 2_000


class _Stop:
    """End the thread."""


class Member:
    """`Membership` over a coordinator.

    Args:
        services: how to reach controller, coordinators and leaders.
        config: validated options, with a group.
        clock: for timeouts.
        node_id: the Ray node that this process is on, when it is known.
        client_id: shown in the group's description.

    Raises:
        InvalidGroupIdError: the group or the instance id cannot be one.
    """

    in_group = True

    def __init__(
        self,
        services: GroupServices,
        config: ConsumerConfig,
        clock: Clock,
        *,
        node_id: str = "",
        client_id: str = "",
    ) -> None:
        group, instance_id = config.group, config.group_instance_id
        check_name(group or "", "group")
        if instance_id is not None:
            check_name(instance_id, "instance")
        self._services = services
        self._config = config
        self.clock = clock
        self._node_id = node_id
        self._client_id = client_id
        self._identity = Identity(group or "", uuid.uuid4().hex, instance_id or "")
        self._core = MembershipCore(self._identity, config, TopicDirectory(), uuid.uuid4().hex)
        self._inbox: SimpleQueue[Event | _Stop] = SimpleQueue()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, SimpleQueue[Any]] = {}
        self._told: Told = NOTHING_TOLD
        self._wake: Callable[[], None] = _nobody
        self._progress: Callable[[], object] = _nobody
        self._seen_progress: object = None
        self._idle_since_ms: int | None = None
        self._active_ms = 0
        self.pid = os.getpid()
        """The process whose member this is; a fork has none."""
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._broken: BaseException | None = None
        self.ended = threading.Event()
        """There is no thread any more."""

    @property
    def member_id(self) -> str:
        """By which the group knows it."""
        return self._identity.member_id

    @property
    def told(self) -> Told:
        """The newest word of the group."""
        return self._told

    def watch(self, wake: Callable[[], None], progress: Callable[[], object]) -> None:
        """See `Membership`."""
        self._wake = wake
        self._progress = progress

    def polls(self, idle_since_ms: int | None) -> None:
        """See `Membership`."""
        self._idle_since_ms = idle_since_ms

    # --- calls -------------------------------------------------------------------------------

    def subscribe(self, names: Sequence[str], regex: str, deadline: Deadline) -> None:
        """See `Membership`."""
        subscription = Subscription(
            names=list(names),
            regex=regex,
            session_timeout_ms=self._config.session_timeout_ms,
            rebalance_timeout_ms=self._config.max_poll_interval_ms,
            node_id=self._node_id,
            rack=self._config.client_rack or "",
            client_id=self._client_id,
        )
        number = next(self._numbers)
        give_up_ms = self._give_up_ms(deadline)
        self._idle_since_ms = self.clock.monotonic_ms()
        event = Subscribe(number, subscription, give_up_ms)
        self._call(number, event, deadline, f"joining group {self._identity.group!r}")

    def unsubscribe(self, deadline: Deadline) -> None:
        """See `Membership`."""
        if self._thread is not None:
            self._leave(deadline)

    def applied(self, told: Told, owned: Sequence[PartitionKey]) -> None:
        """See `Membership`."""
        self._post(Applied(told.version, tuple(owned)))

    def commit(
        self, offsets: Mapping[PartitionKey, int], deadline: Deadline
    ) -> list[RefusedPartition]:
        """See `Membership`."""
        number = next(self._numbers)
        event = CommitAsked(number, dict(offsets), self._give_up_ms(deadline))
        what = f"committing offsets of group {self._identity.group!r}"
        refused: list[RefusedPartition] = self._call(number, event, deadline, what)
        return refused

    def commit_soon(self, offsets: Mapping[PartitionKey, int]) -> None:
        """See `Membership`."""
        give_up_ms = self.clock.monotonic_ms() + self._config.request_timeout_ms
        self._post(CommitAsked(None, dict(offsets), give_up_ms))

    def committed(
        self, partitions: Sequence[PartitionKey], deadline: Deadline
    ) -> dict[PartitionKey, int]:
        """See `Membership`."""
        number = next(self._numbers)
        event = FetchAsked(number, tuple(partitions), self._give_up_ms(deadline))
        what = f"reading committed offsets of group {self._identity.group!r}"
        found: dict[PartitionKey, int] = self._call(number, event, deadline, what)
        return found

    def close(self, deadline: Deadline) -> None:
        """See `Membership`."""
        if self._thread is None or self.ended.is_set():
            return
        try:
            self._leave(deadline)
        finally:
            self._inbox.put(_Stop())

    def abandon(self) -> None:
        """See `Membership`."""
        if self._thread is not None and os.getpid() == self.pid:
            self._inbox.put(Leave(next(self._numbers), self.clock.monotonic_ms() + LEAVE_MS))
            self._inbox.put(_Stop())

    def _leave(self, deadline: Deadline) -> None:
        number = next(self._numbers)
        patience_ms = min(LEAVE_MS, deadline.left_ms())
        answers = self._expect(number)
        self._post(Leave(number, self.clock.monotonic_ms() + patience_ms))
        self._wait(number, answers, patience_ms + _GRACE_MS)

    def _give_up_ms(self, deadline: Deadline) -> int:
        return self.clock.monotonic_ms() + deadline.left_ms()

    def _call(self, number: int, event: Event, deadline: Deadline, what: str) -> Any:  # noqa: ANN401 - of any call
        answers = self._expect(number)
        self._post(event)
        result = self._wait(number, answers, deadline.left_ms() + _GRACE_MS)
        if isinstance(result, RayStreamError):
            raise anew(result)
        if isinstance(result, Expired):
            raise timed_out(what, deadline, result.last_error)
        return result

    def _expect(self, number: int) -> "SimpleQueue[Any]":
        answers: SimpleQueue[Any] = SimpleQueue()
        self._waiting[number] = answers
        return answers

    def _wait(self, number: int, answers: "SimpleQueue[Any]", patience_ms: int) -> Any:  # noqa: ANN401 - of any call
        """In slices, so that Ctrl-C and the thread's end are noticed."""
        until_ms = self.clock.monotonic_ms() + patience_ms
        try:
            while True:
                left_s = (until_ms - self.clock.monotonic_ms()) / 1000
                try:
                    return answers.get(timeout=max(0.0, min(_SLICE_S, left_s)))
                except Empty:
                    self._check()
                    if left_s <= 0:
                        return Expired(None)
        finally:
            self._waiting.pop(number, None)

    def _check(self) -> None:
        if self._broken is not None:
            raise InvariantViolationError(
                f"this consumer's place in its group ended by an error of its own: "
                f"{self._broken!r}; make another consumer"
            ) from self._broken

    def _post(self, event: Event) -> None:
        self._check()
        self._inbox.put(event)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        name = f"ray_stream-group-{self._identity.group}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise ClosedError("Python is ending: no group can be joined any more") from error
        self._thread = thread
        _watch(self)

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                for item in self._arrived():
                    if isinstance(item, _Stop):
                        self._stopping = True
                    else:
                        self._step(item)
                self._step(Tick(self._idle_since()))
                if self._stopping and self._core.is_out:
                    return
        except BaseException as error:  # noqa: BLE001 - callers must not wait for a dead thread
            self._broken = error
            _LOG.critical("a group member stopped by an error of its own", exc_info=True)
        finally:
            self.ended.set()

    def _arrived(self) -> "list[Event | _Stop]":
        """What arrived, after waiting for it until something is due."""
        now_ms = self.clock.monotonic_ms()
        due_ms = self._core.next_deadline_ms(now_ms, self._idle_since())
        wait_s = _IDLE_S if due_ms is None else max(0, due_ms - now_ms) / 1000
        items: list[Event | _Stop] = []
        try:
            items.append(self._inbox.get(timeout=wait_s))
            while True:
                items.append(self._inbox.get_nowait())
        except Empty:
            return items

    def _idle_since(self) -> int | None:
        """When the consumer was last seen reading; a loop that goes on reads."""
        progress = self._progress()
        if progress != self._seen_progress:
            self._seen_progress = progress
            self._active_ms = self.clock.monotonic_ms()
        since_ms = self._idle_since_ms
        return None if since_ms is None else max(since_ms, self._active_ms)

    def _step(self, event: Event) -> None:
        for effect in self._core.step(event, self.clock.monotonic_ms()):
            match effect:
                case Send():
                    self._send(effect)
                case Publish(told):
                    self._publish(told)
                case Finished():
                    self._finished(effect)

    def _publish(self, told: Told) -> None:
        if told.lost is not None and told.lost is not self._told.lost:
            _LOG.warning("%s", told.lost)
        self._told = told
        self._wake()

    def _finished(self, effect: Finished) -> None:
        if effect.number is not None:
            waiting = self._waiting.get(effect.number)
            if waiting is not None:
                waiting.put(effect.result)
            return
        result = effect.result
        if isinstance(result, Expired):
            result = f"the coordinator is away ({result.last_error})"
        elif isinstance(result, list):
            result = "; ".join(f"partition {one.partition}: {one.message}" for one in result)
        _LOG.warning(
            "group %r: an automatic commit was not stored, so that records may be delivered "
            "again: %s",
            self._identity.group,
            result,
        )

    def _send(self, effect: Send) -> None:
        put = self._inbox.put
        request_id = effect.request_id

        def reply(answer: Any) -> None:  # noqa: ANN401 - the answer of any request
            put(Answered(request_id, answer))

        try:
            self._method(effect)(effect.request, reply)
        except RayStreamError as error:
            reply(error)
        except Exception as error:  # noqa: BLE001 - a transport failed in its own way: who knows
            _LOG.warning("a group member could not send a request", exc_info=True)
            reply(OutcomeUnknownError(f"the transport failed: {error!r}"))

    def _method(self, effect: Send) -> Callable[[Any, Callable[[Any], None]], None]:
        services, host = self._services, effect.host
        match effect.request:
            case ConsumerGroupHeartbeat():
                return services.coordinator(host).heartbeat
            case OffsetCommit():
                return services.coordinator(host).commit_offsets
            case OffsetFetch():
                return services.coordinator(host).fetch_offsets
            case ListOffsetsRequest():
                return services.partitions(host).list_offsets
            case CreateTopic():
                return services.controller.create_topic
            case _:
                return services.controller.metadata


def _nobody() -> None:
    """Nobody watches."""


# --- the end of the process ----------------------------------------------------------------------

_members: "weakref.WeakSet[Member]" = weakref.WeakSet()


def _watch(member: Member) -> None:
    _members.add(member)
    _register()


@lru_cache(maxsize=1)
def _register() -> None:
    atexit.register(_leave_all)


def _leave_all() -> None:
    """Open members leave, so that others need not wait for the end of their sessions."""
    pid = os.getpid()
    members = [one for one in list(_members) if one.pid == pid and not one.ended.is_set()]
    if not members:
        return
    for one in members:
        one.abandon()
    until_ms = members[0].clock.monotonic_ms() + EXIT_MS
    for one in members:
        one.ended.wait(max(0, until_ms - one.clock.monotonic_ms()) / 1000)
