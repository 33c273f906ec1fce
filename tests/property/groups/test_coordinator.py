"""Heartbeats and commits that are lost, repeated, reordered and delayed; members and coordinators
that die: no partition ever has two owners, and everything settles once the faults stop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ray_stream.errors import (
    FencedInstanceIdError,
    FencedMemberEpochError,
    InvariantViolationError,
    RayStreamError,
    UnknownMemberIdError,
)
from ray_stream.groups import membership, offsets
from ray_stream.groups.commands import (
    LEAVE_EPOCH,
    CommittedOffset,
    ConsumerGroupHeartbeat,
    HeartbeatAnswer,
    MemberSuspected,
    OffsetCommit,
    PartitionKey,
)
from ray_stream.groups.image import Group, Member
from ray_stream.groups.reconciliation import next_step
from ray_stream.groups.records import MemberAdvanced, MemberAssigned, MemberRemoved
from tests.unit.groups.harness import REBALANCE_MS, SESSION_MS, Consumer, Coordinator

NUMBERS = st.integers(0, 7)
SUBSCRIPTIONS = st.sampled_from([("a", "b"), ("a",), ("b", "c")])
CONSUMERS_MAX = 4
TROUBLES = ["subscription", "leave", "death", "suspicion", "silence", "restart", "topics"]


@dataclass
class Request:
    """Something on its way to the coordinator."""

    consumer: Consumer
    command: ConsumerGroupHeartbeat | OffsetCommit


@dataclass
class Answer:
    """Something on its way back."""

    consumer: Consumer
    sequence: int
    life: int
    outcome: HeartbeatAnswer | RayStreamError


class Groups(RuleBasedStateMachine):
    """One group, up to four consumers, a network that does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.coordinator = Coordinator()
        self.topics = {"a": 3, "b": 2}
        self.consumers: list[Consumer] = []
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.started = 0
        self.seen = 0
        """Records that were looked at."""
        self.lives: dict[str, int] = {}
        """How often a member id was removed."""
        self.rightful: dict[str, dict[PartitionKey, None]] = {}
        """What each consumer owns and was not fenced out of."""
        self.owners: dict[PartitionKey, str] = {}
        self.held: dict[str, dict[PartitionKey, int]] = {}

    @initialize()
    def topics_are_there(self) -> None:
        self.coordinator.see(self.topics)

    # --- what the records say, told apart from what the image says -----------------------------

    def read_records(self) -> None:
        for record in self.coordinator.records[self.seen :]:
            match record:
                case MemberRemoved():
                    self.lives[record.member_id] = self.lives.get(record.member_id, 0) + 1
                    self.rightful[record.member_id] = {}
                    self.hold(record.member_id, {})
                case MemberAssigned():
                    held = {
                        (topic_id, number): epoch
                        for topic_id, numbers, epochs in (*record.assigned, *record.revoking)
                        for number, epoch in zip(numbers, epochs, strict=True)
                    }
                    self.hold(record.member_id, held)
                case _:
                    pass
        self.seen = len(self.coordinator.records)

    def hold(self, member_id: str, held: dict[PartitionKey, int]) -> None:
        for key in self.held.pop(member_id, {}):
            del self.owners[key]
        for key in held:
            assert key not in self.owners, f"{key} is given away before it was released"
            self.owners[key] = member_id
        self.held[member_id] = held

    # --- consumers -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.consumers) < CONSUMERS_MAX)
    @rule(names=SUBSCRIPTIONS, static=st.booleans(), number=st.integers(0, 1))
    def a_consumer_starts(self, names: tuple[str, ...], static: bool, number: int) -> None:
        self.started += 1
        instance = f"i{number}" if static else ""
        self.consumers.append(
            Consumer(self.coordinator, f"m{self.started}", names, instance_id=instance)
        )

    @rule(number=NUMBERS, full=st.booleans())
    def a_consumer_beats(self, number: int, full: bool) -> None:
        for consumer in self.pick(self.consumers, number):
            self.requests.append(Request(consumer, consumer.heartbeat(full=full)))

    @rule(number=NUMBERS, copied=st.booleans())
    def a_consumer_beats_and_hears(self, number: int, copied: bool = False) -> None:
        """The usual case, so that states of some depth are reached."""
        for consumer in self.pick(self.consumers, number):
            request = Request(consumer, consumer.heartbeat())
            self.deliver(request)
            self.hear(self.answers.pop())
            if copied:
                self.requests.append(request)

    @rule(releases=st.integers(0, 15), copied=st.booleans())
    def all_beat(self, releases: int, copied: bool) -> None:
        """Some of them release what they have to."""
        for number in range(len(self.consumers)):
            self.a_consumer_beats_and_hears(number, copied)
            if releases >> number & 1:
                self.a_consumer_releases(number)

    @rule(number=NUMBERS)
    def a_consumer_releases(self, number: int) -> None:
        for consumer in self.pick(self.consumers, number):
            for key in consumer.to_release:
                self.rightful.get(consumer.member_id, {}).pop(key, None)
            consumer.release()

    @rule(number=NUMBERS, offset=st.integers(0, 99), wrong=st.booleans(), late=st.booleans())
    def a_consumer_commits(self, number: int, offset: int, wrong: bool, late: bool) -> None:
        """What it owns; or, being wrong, what it does not."""
        for consumer in self.pick(self.consumers, number):
            keys = [("t-a", n) for n in range(3)] if wrong else list(consumer.owns)
            owned = [CommittedOffset(t, n, offset) for t, n in keys]
            commit = OffsetCommit(
                "g", consumer.member_id, consumer.epoch, owned, consumer.instance_id
            )
            if late:
                self.requests.append(Request(consumer, commit))
            else:
                self.deliver(Request(consumer, commit))

    def a_consumer_wants_something_else(self, number: int, names: tuple[str, ...]) -> None:
        for consumer in self.pick(self.consumers, number):
            consumer.names = names
            self.requests.append(Request(consumer, consumer.heartbeat(full=True)))

    def a_consumer_leaves(self, number: int) -> None:
        for consumer in self.pick(self.consumers, number):
            consumer.drop()
            self.rightful.pop(consumer.member_id, None)
            consumer.sequence += 1
            leave = ConsumerGroupHeartbeat(
                "g", consumer.member_id, LEAVE_EPOCH, consumer.sequence, 0, consumer.instance_id
            )
            self.requests.append(Request(consumer, leave))
            self.consumers.remove(consumer)

    def a_consumer_dies(self, number: int, suspected: bool) -> None:
        for consumer in self.pick(self.consumers, number):
            self.consumers.remove(consumer)
            if suspected:
                self.suspect(consumer)

    def a_living_consumer_is_believed_dead(self, number: int) -> None:
        for consumer in self.pick(self.consumers, number):
            self.suspect(consumer)

    def suspect(self, consumer: Consumer) -> None:
        try:
            self.coordinator.do(MemberSuspected("g", consumer.member_id, 500))
        except UnknownMemberIdError:
            return

    # --- the network ---------------------------------------------------------------------------

    @rule(number=NUMBERS, again=st.booleans(), answered=st.booleans())
    def a_request_arrives(self, number: int, again: bool, answered: bool) -> None:
        for request in self.pick(self.requests, number):
            if not again:
                self.requests.remove(request)
            self.deliver(request)
            if not answered and isinstance(request.command, ConsumerGroupHeartbeat):
                self.answers.pop()

    def deliver(self, request: Request) -> None:
        command = request.command
        outcome: Any
        try:
            outcome = self.coordinator.do(command)
        except InvariantViolationError:
            raise
        except RayStreamError as error:
            outcome = error
        self.read_records()
        if isinstance(command, ConsumerGroupHeartbeat):
            life = self.lives.get(command.member_id, 0)
            self.answers.append(Answer(request.consumer, command.sequence, life, outcome))
        elif not isinstance(outcome, RayStreamError):
            refused = {(one.topic_id, one.partition) for one in outcome.refused}
            for one in command.offsets:
                key = (one.topic_id, one.partition)
                if key not in refused:
                    assert self.owners.get(key) == command.member_id, "a commit of no owner"
                    since = self.held[command.member_id][key]
                    assert since <= command.member_epoch, "a commit from an earlier ownership"

    @rule(number=NUMBERS)
    def a_request_is_lost(self, number: int) -> None:
        for request in self.pick(self.requests, number):
            self.requests.remove(request)

    @rule(number=NUMBERS)
    def an_answer_arrives(self, number: int) -> None:
        for answer in self.pick(self.answers, number):
            self.answers.remove(answer)
            self.hear(answer)

    def hear(self, answer: Answer) -> None:
        consumer = answer.consumer
        if answer.sequence != consumer.sequence or consumer not in self.consumers:
            return  # not of its last heartbeat, or nobody is there
        match answer.outcome:
            case FencedInstanceIdError():
                self.rightful.pop(consumer.member_id, None)
                self.consumers.remove(consumer)
            case FencedMemberEpochError() | UnknownMemberIdError():
                self.rightful.pop(consumer.member_id, None)
                consumer.drop()
            case RayStreamError():
                raise AssertionError(answer.outcome)
            case _:
                self.take(consumer, answer, answer.outcome)

    def take(self, consumer: Consumer, answer: Answer, told: HeartbeatAnswer) -> None:
        before = dict(consumer.owns)
        consumer.receive(told)
        if answer.life == self.lives.get(consumer.member_id, 0):
            fresh = (key for key in consumer.owns if key not in before)
            self.rightful.setdefault(consumer.member_id, {}).update(dict.fromkeys(fresh))

    # --- the coordinator -----------------------------------------------------------------------

    @rule(milliseconds=st.sampled_from([100, 3_000]))
    def time_goes_on(self, milliseconds: int) -> None:
        self.coordinator.wait(milliseconds)
        self.read_records()

    @rule(
        kind=st.sampled_from(TROUBLES),
        number=NUMBERS,
        yes=st.booleans(),
        names=SUBSCRIPTIONS,
        name=st.sampled_from(["a", "b", "c"]),
    )
    def something_rarer_happens(
        self, kind: str, number: int, yes: bool, names: tuple[str, ...], name: str
    ) -> None:
        match kind:
            case "subscription":
                self.a_consumer_wants_something_else(number, names)
            case "leave":
                self.a_consumer_leaves(number)
            case "death":
                self.a_consumer_dies(number, yes)
            case "suspicion":
                self.a_living_consumer_is_believed_dead(number)
            case "silence":
                self.time_goes_on(SESSION_MS if yes else REBALANCE_MS)
            case "restart":
                self.coordinator.restart(snapshot=yes, show=bool(number % 4))
                self.read_records()
            case "topics":
                self.a_topic_comes_grows_or_goes(name, yes and number > 3)
            case _:
                raise AssertionError(kind)

    def a_topic_comes_grows_or_goes(self, name: str, gone: bool) -> None:
        if gone:
            self.topics.pop(name, None)
        else:
            self.topics[name] = min(6, self.topics.get(name, 0) + 1)
        self.coordinator.see(self.topics)
        self.read_records()

    # --- what must hold ------------------------------------------------------------------------

    @invariant()
    def no_partition_has_two_consumers_that_were_not_fenced(self) -> None:
        owners: dict[PartitionKey, str] = {}
        for member_id, owned in self.rightful.items():
            for key in owned:
                assert key not in owners, f"{member_id} and {owners[key]} own {key}"
                owners[key] = member_id

    def teardown(self) -> None:
        """The faults stop. What was under way is lost; the dead are waited for."""
        self.requests, self.answers = [], []
        self.coordinator.show()
        for _ in range(int(REBALANCE_MS / SESSION_MS) + 3):
            self.coordinator.wait(SESSION_MS - 1)
            self.read_records()
            for _ in range(8):
                for number in range(len(self.consumers)):
                    self.a_consumer_beats_and_hears(number)
                    self.a_consumer_releases(number)
        members = [c for c in self.consumers if c.epoch > 0]
        assert members == self.consumers
        if not members:
            return
        assert self.coordinator.describe().state == "stable"
        owned = sorted(key for consumer in members for key in consumer.owns)
        read = [name for name in self.topics if any(name in c.names for c in members)]
        assert owned == sorted((f"t-{name}", n) for name in read for n in range(self.topics[name]))
        for one in members:
            for other in members:
                if one.names == other.names:
                    assert abs(len(one.owns) - len(other.owns)) <= 1

    @staticmethod
    def pick(among: list[Any], number: int) -> list[Any]:
        return [among[number % len(among)]] if among else []


TestGroups = Groups.TestCase
TestGroups.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# --- the checks above find what they are there for -----------------------------------------------


def must_fail() -> None:
    hunt = settings(
        max_examples=400,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises((AssertionError, InvariantViolationError)):
        run_state_machine_as_test(Groups, settings=hunt)


def released_at_once(
    group: Group,
    member: Member,
    target: Mapping[PartitionKey, None],
    epoch: int,
    *,
    released: bool,
) -> MemberAssigned | MemberAdvanced | None:
    del released
    return next_step(group, member, target, epoch, released=True)


def nobody_asks(member: Member, command: OffsetCommit, key: PartitionKey) -> None:
    del member, command, key


@pytest.mark.parametrize(
    ("module", "name", "bug"),
    [
        (membership, "next_step", released_at_once),
        (offsets, "_check_owner", nobody_asks),
    ],
    ids=["a partition is given away before it is released", "commits are not fenced"],
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, bug: Callable[..., Any]
) -> None:
    monkeypatch.setattr(module, name, bug)
    must_fail()
