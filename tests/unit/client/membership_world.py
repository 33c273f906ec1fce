"""Members' machines, a real coordinator and a bad network between them, in virtual time.

Owns: the queue of what will happen, users who read and commit as `rebalancing` does, and what may
never be: two consumers that read one partition, or a record that nobody reads. One seed, one run.
"""

import heapq
import random
from collections.abc import Callable
from typing import Any

from ray_stream.client.membership import NOTHING_TOLD, Told
from ray_stream.client.membership_core import MembershipCore
from ray_stream.client.membership_events import (
    Answered,
    Applied,
    CommitAsked,
    Effect,
    Event,
    Finished,
    Identity,
    Leave,
    Publish,
    Send,
    Subscribe,
    Tick,
)
from ray_stream.client.topics import TopicDirectory
from ray_stream.config import (
    CONSUMER_OFFSETS_TOPIC,
    COORDINATOR_PARTITIONS,
    ConsumerConfig,
    TopicConfig,
)
from ray_stream.errors import NotCoordinatorError, OutcomeUnknownError, RayStreamError
from ray_stream.groups.commands import PartitionKey, Subscription
from ray_stream.groups.records import MemberRemoved
from ray_stream.groups.routing import partition_of
from ray_stream.metadata.commands import (
    CreateTopic,
    PartitionMetadata,
    TopicCreated,
    TopicMetadata,
)
from ray_stream.rpc.messages import (
    EARLIEST,
    ListOffsetsRequest,
    ListOffsetsResponse,
    ListOffsetsResult,
    MetadataRequest,
    MetadataResponse,
)
from tests.unit.groups.harness import Coordinator

GROUP = "g"
NUMBER = partition_of(GROUP, COORDINATOR_PARTITIONS)
INTERVAL_MS = 300
SESSION_MS = 6_000


class User:
    """One consumer: its member's machine, and what it reads."""

    def __init__(self, world: "World", name: str, instance_id: str, config: ConsumerConfig) -> None:
        self.world = world
        self.name = name
        self.core = MembershipCore(
            Identity(GROUP, name, instance_id), config, TopicDirectory(), f"id-{name}"
        )
        self.told: Told = NOTHING_TOLD
        self.applied: Told = NOTHING_TOLD
        self.reads: dict[PartitionKey, int] = {}
        """Partitions and positions."""
        self.tenures: dict[PartitionKey, int] = {}
        """How often this member had been put out when it was given each; -1: it was out already."""
        self.idle_since_ms: int | None = None
        self.sent: list[Send] = []
        self.results: dict[int, Any] = {}
        self.failures: list[Any] = []
        self.number = 0
        self.alarm_ms: int | None = None
        self.is_dead = False
        self.steps = 0

    def step(self, event: Event) -> list[Effect]:
        if self.is_dead:
            return []
        self.steps += 1
        effects = self.core.step(event, self.world.time_ms)
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append(effect)
                self.world.carry(self, effect)
            elif isinstance(effect, Publish):
                assert effect.told.version == self.told.version + 1
                self.told = effect.told
            elif effect.number is None:
                self.failures.append(effect.result)
            else:
                assert isinstance(effect, Finished)
                assert effect.number not in self.results
                self.results[effect.number] = effect.result
        self.world.set_alarm(self)
        return effects

    def subscribe(self, *topics: str, regex: str = "") -> int:
        self.number += 1
        wanted = Subscription(list(topics), regex, session_timeout_ms=SESSION_MS)
        self.step(Subscribe(self.number, wanted, self.world.time_ms + 60_000))
        return self.number

    def poll(self, records: int = 0, *, commits: bool = True) -> None:
        """As a consumer does that reads: what it was told first, then some records."""
        told = self.told
        if told is not self.applied:
            if told.incarnation != self.applied.incarnation:
                self.reads = {}
            given = {(begin.topic_id, name.partition) for name, begin in told.partitions.items()}
            gone = {key: at for key, at in self.reads.items() if key not in given}
            if gone and commits:
                self.commit(gone)
            for key in gone:
                del self.reads[key]
            for name, begin in told.partitions.items():
                key = (begin.topic_id, name.partition)
                if key not in self.reads:
                    start = 0 if begin.start == EARLIEST else begin.start
                    self.world.begins(self, key, start)
                    self.reads[key] = start
            self.applied = told
            self.step(Applied(told.version, tuple(self.reads)))
        for key in self.reads:
            self.reads[key] += records
            self.world.handled(key, self.reads[key])

    def commit(self, offsets: dict[PartitionKey, int] | None = None) -> None:
        """In the background, as auto-commit does."""
        self.step(CommitAsked(None, offsets or dict(self.reads), self.world.time_ms + 30_000))

    def commit_now(self, patience_ms: int = 30_000) -> int:
        self.number += 1
        give_up_ms = self.world.time_ms + patience_ms
        self.step(CommitAsked(self.number, dict(self.reads), give_up_ms))
        return self.number

    def leave(self) -> int:
        self.reads = {}
        self.number += 1
        self.step(Leave(self.number, self.world.time_ms + 5_000))
        return self.number

    def requests(self, kind: type[Any]) -> list[Any]:
        return [one.request for one in self.sent if isinstance(one.request, kind)]


class World:
    """Everybody, and the time."""

    def __init__(
        self, seed: int = 0, topics: dict[str, int] | None = None, *, made: bool = True
    ) -> None:
        self.rng = random.Random(seed)
        self.time_ms = 1_000
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.numbered = 0
        self.topics = {"t": 4} if topics is None else topics
        self.coordinator = Coordinator(self.topics, heartbeat_interval_ms=INTERVAL_MS)
        self.life = 1
        self.is_up = True
        self.is_led = True
        """Whether the controller shows where the coordinator is."""
        self.version = 1
        self.made = made
        """Whether the internal topic exists."""
        self.users: dict[str, User] = {}
        self.covered: dict[PartitionKey, int] = {}
        """Up to where somebody has handled all records."""
        self.ends: dict[PartitionKey, int] = {}
        self.loss = 0.0
        self.repeat = 0.0
        self.delay_max_ms = 2
        self.silent = False
        """Whether lost messages are not told."""
        self.created = 0
        self.skew_ms = self.coordinator.clock_ms - self.time_ms

    def user(self, name: str, instance_id: str = "", **options: Any) -> User:  # noqa: ANN401
        options.setdefault("auto_offset_reset", "earliest")
        config = ConsumerConfig(group=GROUP, session_timeout_ms=SESSION_MS, **options)
        one = self.users[name] = User(self, name, instance_id, config)
        return one

    # --- time ------------------------------------------------------------------------------------

    def after(self, delay_ms: int, call: Callable[[], None]) -> None:
        self.numbered += 1
        heapq.heappush(self.queue, (self.time_ms + delay_ms, self.numbered, call))

    def run(self, duration_ms: int = 1_000, until: Callable[[], object] | None = None) -> bool:
        end_ms = self.time_ms + duration_ms
        while self.queue and self.queue[0][0] <= end_ms:
            if until is not None and until():
                return True
            at_ms, _, call = heapq.heappop(self.queue)
            self.time_ms = at_ms
            call()
        self.time_ms = end_ms
        return until is None or bool(until())

    def set_alarm(self, user: User) -> None:
        due_ms = user.core.next_deadline_ms(self.time_ms, user.idle_since_ms)
        if due_ms is None:
            return
        due_ms = max(due_ms, self.time_ms + 1)
        if user.alarm_ms is None or not self.time_ms < user.alarm_ms <= due_ms:
            user.alarm_ms = due_ms
            self.after(due_ms - self.time_ms, lambda: self._ring(user, due_ms))

    def _ring(self, user: User, due_ms: int) -> None:
        if user.alarm_ms == due_ms:
            user.alarm_ms = None
            user.step(Tick(user.idle_since_ms))

    # --- network ---------------------------------------------------------------------------------

    def carry(self, user: User, effect: Send) -> None:
        self._deliver(user, effect.request_id, lambda: self._arrive(user, effect))

    def _deliver(self, user: User, request_id: int, deliver: Callable[[], None]) -> None:
        if self.rng.random() < self.loss:
            if not self.silent and self.rng.random() < 0.7:
                unknown = OutcomeUnknownError("lost")
                self.after(self._delay(), lambda: self._answer(user, request_id, unknown))
            return
        for _ in range(1 + (self.rng.random() < self.repeat)):
            self.after(self._delay(), deliver)

    def _delay(self) -> int:
        return self.rng.randint(0, self.delay_max_ms)

    def _answer(self, user: User, request_id: int, answer: object) -> None:
        user.step(Answered(request_id, answer))

    def _arrive(self, user: User, effect: Send) -> None:
        answer: object
        try:
            answer = self._serve(effect)
        except RayStreamError as error:
            answer = error
        request_id = effect.request_id
        self._deliver(user, request_id, lambda: self._answer(user, request_id, answer))

    def _serve(self, effect: Send) -> object:
        match effect.request:
            case MetadataRequest(topics):
                return self._metadata(topics or [])
            case CreateTopic():
                self.made = True
                self.created += 1
                self.version += 1
                return TopicCreated(effect.request.topic_id, existed=False)
            case ListOffsetsRequest(partitions):
                return ListOffsetsResponse(
                    [
                        ListOffsetsResult(
                            one.topic_id,
                            one.partition,
                            offset=self.ends.get((one.topic_id, one.partition), 0),
                        )
                        for one in partitions
                    ]
                )
            case request:
                if not self.is_up or effect.host != self.host:
                    raise OutcomeUnknownError(f"{effect.host} is dead")
                if not self.is_led:
                    raise NotCoordinatorError("not here")
                self._tell_time()
                return self.coordinator.do(request)

    @property
    def host(self) -> str:
        return f"coordinator-{self.life}"

    def _metadata(self, topics: list[str]) -> MetadataResponse:
        found = []
        if self.made and CONSUMER_OFFSETS_TOPIC in topics:
            host = self.host if self.is_up and self.is_led else ""
            partitions = [
                PartitionMetadata(n, 1, self.life, host if n == NUMBER else "other", [1], [1], "")
                for n in range(COORDINATOR_PARTITIONS)
            ]
            found.append(
                TopicMetadata(
                    CONSUMER_OFFSETS_TOPIC, "internal", 1, True, TopicConfig(), 0, partitions
                )
            )
        for name, count in self.topics.items():
            if name in topics:
                partitions = [
                    PartitionMetadata(n, 1, 1, "leader", [1], [1], "") for n in range(count)
                ]
                found.append(
                    TopicMetadata(name, f"t-{name}", 1, False, TopicConfig(), 0, partitions)
                )
        return MetadataResponse("cluster", 1, self.version, found, [])

    # --- the coordinator -------------------------------------------------------------------------

    def _tell_time(self) -> None:
        self.coordinator.clock_ms = self.time_ms + self.skew_ms

    def tick(self) -> None:
        if self.is_up:
            self._tell_time()
            self.coordinator.wait(0)

    def kill(self) -> None:
        self.is_up = False
        self.version += 1

    def restart(self) -> None:
        """The next life, by replay."""
        self._tell_time()
        before = self.coordinator.clock_ms
        self.coordinator.restart()
        self.skew_ms += self.coordinator.clock_ms - before
        self.life += 1
        self.version += 1
        self.is_up = True

    def members(self) -> dict[str, Any]:
        group = self.coordinator.image().groups.get(GROUP)
        return {} if group is None else dict(group.members)

    # --- what may never be -----------------------------------------------------------------------

    def begins(self, user: User, key: PartitionKey, start: int) -> None:
        """A consumer begins to read a partition."""
        group = self.coordinator.image().groups[GROUP]
        is_owner = group.owners.get(key) == user.name
        user.tenures[key] = self.removals(user.name) if is_owner else -1
        for other in self.users.values():
            if is_owner and other is not user and key in other.reads and not other.is_dead:
                assert other.tenures[key] != self.removals(other.name), (
                    f"{user.name} begins {key}, and {other.name} reads it and was not put out"
                )
        assert start <= self.covered.get(key, 0), f"{key}: records below {start} are left out"

    def removals(self, member_id: str) -> int:
        """How often somebody was taken out of the group."""
        return sum(
            isinstance(one, MemberRemoved) and one.member_id == member_id
            for one in self.coordinator.records
        )

    def handled(self, key: PartitionKey, position: int) -> None:
        self.covered[key] = max(self.covered.get(key, 0), position)
