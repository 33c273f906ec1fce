"""Members join, are given partitions, release them, leave, are fenced."""

from collections.abc import Mapping

import msgspec
import pytest

from ray_stream.errors import (
    FencedInstanceIdError,
    FencedMemberEpochError,
    GroupMaxSizeReachedError,
    InvalidArgumentError,
    InvalidGroupIdError,
    InvalidRegularExpressionError,
    InvalidSessionTimeoutError,
    InvalidTopicError,
    RayStreamError,
    UnknownMemberIdError,
    UnsupportedAssignorError,
)
from ray_stream.groups import membership
from ray_stream.groups.commands import (
    LEAVE_FOR_A_WHILE_EPOCH,
    ConsumerGroupHeartbeat,
    MemberSuspected,
    MetadataSeen,
    PartitionKey,
    Subscription,
)
from ray_stream.groups.image import Member
from tests.unit.groups.harness import (
    REBALANCE_MS,
    SESSION_MS,
    Consumer,
    Coordinator,
    refused,
    settle,
)


def test_a_lone_member_gets_everything_with_its_first_heartbeat() -> None:
    coordinator = Coordinator({"flights": 6})
    one = Consumer(coordinator, "m1")
    answer = one.beat()
    assert one.partitions() == [0, 1, 2, 3, 4, 5]
    assert answer.member_epoch == 1
    assert answer.assignment is not None
    assert answer.assignment[0].topic == "flights"
    assert one.beat().assignment is None, "it is not told what it knows"


def test_a_partition_is_given_away_only_after_its_owner_said_that_it_released_it() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    one.beat()
    two.beat()
    assert two.partitions() == []
    one.beat(release=False)  # learns what to release
    assert len(one.to_release) == 2
    one.beat(release=False)  # still owns it, and says so
    two.beat()
    assert two.partitions() == []
    one.release()
    two.beat()
    assert two.partitions() == [], "it was not said"
    one.beat()
    two.beat()
    assert sorted(one.partitions() + two.partitions()) == [0, 1, 2, 3]
    assert coordinator.describe().state == "stable"


def owners_after_a_late_list() -> list[list[int]]:
    """A list that was true when it was sent arrives when its sender has got and must give back."""
    coordinator = Coordinator({"flights": 2})
    one, two, three = (Consumer(coordinator, f"m{number}") for number in (1, 2, 3))
    one.beat()
    two.beat()
    late = two.heartbeat()
    assert late.owned == []
    settle([one, two])
    had = two.partitions()
    one.names = two.names = ("planes",)
    two.beat(release=False)
    three.beat()
    coordinator.do(late)
    three.beat()
    assert len(had) == 1
    return [two.partitions(), three.partitions()]


def test_a_list_from_before_the_revocation_was_known_releases_nothing() -> None:
    twos, threes = owners_after_a_late_list()
    assert not [number for number in threes if number in twos]


def test_that_would_fail_if_the_revision_were_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def careless(member: Member, revision: int, owned: Mapping[PartitionKey, None] | None) -> bool:
        del revision
        return owned is not None and owned.keys().isdisjoint(member.revoking)

    monkeypatch.setattr(membership, "has_released", careless)
    twos, threes = owners_after_a_late_list()
    assert [number for number in threes if number in twos]


def test_what_stays_is_never_taken_away_meanwhile() -> None:
    coordinator = Coordinator({"flights": 6})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    one.beat()
    two.beat()
    one.beat(release=False)
    assert one.answer is not None
    assert one.answer.assignment is not None
    keeps = one.answer.assignment[0].partitions
    settle([one, two])
    assert one.partitions() == sorted(keeps)


def test_members_beyond_the_partitions_are_idle() -> None:
    coordinator = Coordinator({"flights": 6})
    consumers = [Consumer(coordinator, f"m{i}") for i in range(8)]
    settle(consumers)
    assert sorted(len(one.owns) for one in consumers) == [0, 0, 1, 1, 1, 1, 1, 1]


def test_a_member_that_leaves_frees_its_partitions_at_once() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    settle([one, two])
    one.leave()
    two.beat()
    assert two.partitions() == [0, 1, 2, 3]


def test_a_leave_that_comes_late_or_twice_does_no_harm() -> None:
    coordinator = Coordinator({"flights": 4})
    one = Consumer(coordinator, "m1")
    one.beat()
    one.leave()
    leave = ConsumerGroupHeartbeat("g", "m1", -1, one.sequence)
    one.beat()
    coordinator.do(leave)
    assert refused(one) is None


def test_a_silent_member_is_fenced_when_its_session_is_over_and_not_before() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    settle([one, two])
    coordinator.wait(SESSION_MS - 1)
    two.beat()
    assert refused(one) is None
    coordinator.wait(SESSION_MS - 1)
    two.beat()
    coordinator.wait(1)
    assert refused(one) is UnknownMemberIdError
    two.beat()
    assert two.partitions() == [0, 1, 2, 3]


def test_a_suspected_member_has_only_its_grace_unless_it_is_heard() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    settle([one, two])
    coordinator.do(MemberSuspected("g", "m1", 500))
    one.beat()
    coordinator.wait(600)
    assert refused(one) is None
    coordinator.do(MemberSuspected("g", "m1", 500))
    coordinator.wait(499)
    assert len(coordinator.describe().members) == 2
    coordinator.wait(1)
    assert refused(one) is UnknownMemberIdError
    with pytest.raises(UnknownMemberIdError):
        coordinator.do(MemberSuspected("g", "m1", 500))


def test_suspicion_does_not_give_a_member_longer() -> None:
    coordinator = Coordinator({"flights": 4})
    one = Consumer(coordinator, "m1")
    one.beat()
    coordinator.do(MemberSuspected("g", "m1", 10 * SESSION_MS))
    coordinator.wait(SESSION_MS)
    assert refused(one) is UnknownMemberIdError


def test_a_member_that_does_not_release_in_time_is_fenced_though_it_beats() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    one.beat()
    two.beat()
    one.beat(release=False)
    for _ in range(REBALANCE_MS // 5_000 - 1):
        coordinator.wait(5_000)
        one.beat(release=False)
        two.beat()
    assert len(coordinator.describe().members) == 2
    coordinator.wait(5_000)
    assert refused(one) is UnknownMemberIdError
    two.beat()
    assert two.partitions() == [0, 1, 2, 3]


def test_lost_answers_do_not_fence() -> None:
    coordinator = Coordinator({"flights": 4})
    one = Consumer(coordinator, "m1")
    for _ in range(3):
        coordinator.do(one.heartbeat())
    one.beat()
    others = [Consumer(coordinator, f"other{number}") for number in range(3)]
    for other in others:
        other.beat()
        for _ in range(3):
            coordinator.do(one.heartbeat())
    assert refused(one) is None
    settle([one, *others])
    assert [len(each.owns) for each in [one, *others]] == [1, 1, 1, 1]


@pytest.mark.parametrize("epoch", [7, 1])
def test_an_epoch_that_the_member_is_not_in_is_fenced(epoch: int) -> None:
    coordinator = Coordinator({"flights": 4})
    one = Consumer(coordinator, "m1")
    one.beat()
    for number in range(2):
        other = Consumer(coordinator, f"other{number}")
        settle([one, other])
    assert one.epoch == 3
    one.epoch = epoch
    assert refused(one) is FencedMemberEpochError
    one.drop()
    assert refused(one) is None, "it comes back with epoch 0"


def test_an_earlier_epoch_with_partitions_that_it_never_had_is_fenced() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    settle([one, two])
    coordinator.see({"flights": 6})
    coordinator.do(one.heartbeat())  # is taken on, and never hears of it
    lost = one.heartbeat()
    coordinator.do(lost)
    everything = [("t-flights", [0, 1, 2, 3])]
    with pytest.raises(FencedMemberEpochError, match="before: 2"):
        coordinator.do(msgspec.structs.replace(lost, owned=everything))


def test_epochs_of_a_group_that_is_gone_are_never_used_again() -> None:
    coordinator = Coordinator({"flights": 4}, retention_check_ms=1_000)
    one = Consumer(coordinator, "m1")
    one.beat()
    one.leave()
    coordinator.wait(1_000)
    coordinator.wait(1_000)
    assert coordinator.image().groups == {}
    coordinator.restart(snapshot=True)
    assert one.beat().member_epoch > 2


# --- subscriptions -------------------------------------------------------------------------------


def test_new_partitions_reach_members_and_start_at_earliest() -> None:
    coordinator = Coordinator({"flights": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    coordinator.see({"flights": 4})
    one.beat()
    assert one.earliest == {
        ("t-flights", 0): False,
        ("t-flights", 1): False,
        ("t-flights", 2): True,
        ("t-flights", 3): True,
    }
    coordinator.restart(snapshot=True)
    one.drop()
    one.beat()
    assert one.earliest["t-flights", 3], "also after a restart of both"


def test_partitions_that_came_while_nobody_was_there_start_at_earliest() -> None:
    coordinator = Coordinator({"flights": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    one.leave()
    coordinator.see({"flights": 3})
    two = Consumer(coordinator, "m2")
    two.beat()
    assert [key[1] for key, new in two.earliest.items() if new] == [2]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_topic_that_is_made_after_the_subscription_starts_at_earliest(restarts: bool) -> None:
    coordinator = Coordinator({"planes": 1})
    one = Consumer(coordinator, "m1", ("planes", "flights"))
    two = Consumer(coordinator, "m2", (), regex="f.*")
    settle([one, two])
    if restarts:
        coordinator.restart(show=False)
    coordinator.see({"planes": 1, "flights": 4, "other": 1})
    settle([one, two])
    new = one.earliest | two.earliest
    assert new == {("t-planes", 0): False} | {("t-flights", n): True for n in range(4)}


def test_a_topic_that_was_there_starts_where_the_user_says() -> None:
    coordinator = Coordinator()
    one = Consumer(coordinator, "m1")
    one.beat()
    assert one.owns == {}
    coordinator.see({"flights": 2})  # the first view of this life: older than the subscription
    one.beat()
    assert one.earliest == {("t-flights", 0): False, ("t-flights", 1): False}


def test_a_shell_is_told_when_to_look_at_the_topics_first() -> None:
    coordinator = Coordinator({"flights": 2})
    needs = coordinator.machine.needs_metadata
    assert not needs(Consumer(coordinator, "m1").heartbeat())
    assert needs(Consumer(coordinator, "m1", ("new",)).heartbeat())
    pattern = Consumer(coordinator, "m1", (), regex="f.*")
    assert needs(pattern.heartbeat())
    pattern.beat()
    assert not needs(Consumer(coordinator, "m2", (), regex="f.*").heartbeat())
    coordinator.restart(show=False)
    assert coordinator.machine.needs_metadata(Consumer(coordinator, "m1").heartbeat())


def test_a_deleted_topic_leaves_its_readers() -> None:
    coordinator = Coordinator({"flights": 2, "planes": 2})
    one = Consumer(coordinator, "m1", ("flights", "planes"))
    one.beat()
    one.commit({("t-flights", 0): 5, ("t-planes", 0): 6})
    coordinator.see({"planes": 2})
    settle([one])
    assert list(one.owns) == [("t-planes", 0), ("t-planes", 1)]
    assert coordinator.committed() == {("t-planes", 0): 6}
    coordinator.see({"planes": 2, "flights": 2}, prefix="u-")
    settle([one])
    assert one.earliest["u-flights", 0], "made anew under the same name it is another topic"


def test_an_older_view_of_the_cluster_changes_nothing() -> None:
    coordinator = Coordinator({"flights": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    machine = coordinator.machine
    assert machine.decide(MetadataSeen(1, []), 0).records == []
    assert machine.decide(MetadataSeen(0, []), 0).signs == ()


def test_a_subscription_that_changes_moves_the_member() -> None:
    coordinator = Coordinator({"flights": 2, "planes": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    one.names = ("planes",)
    one.beat(full=True)
    settle([one])
    assert list(one.owns) == [("t-planes", 0), ("t-planes", 1)]


def test_a_late_copy_does_not_bring_an_earlier_subscription_back() -> None:
    coordinator = Coordinator({"flights": 2, "planes": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    late = one.heartbeat(full=True)
    one.names = ("planes",)
    one.beat(full=True)
    coordinator.restart()
    coordinator.do(late)
    assert coordinator.describe().members[0].names == ["planes"]


# --- static members ------------------------------------------------------------------------------


def test_a_newer_process_takes_over_an_instance_and_the_older_is_told() -> None:
    coordinator = Coordinator({"flights": 4})
    old, other = Consumer(coordinator, "old", instance_id="i1"), Consumer(coordinator, "m2")
    settle([old, other])
    had, epoch = old.partitions(), coordinator.describe().epoch
    new = Consumer(coordinator, "new", instance_id="i1")
    new.beat()
    assert new.partitions() == had
    assert coordinator.describe().epoch == epoch, "nobody else notices"
    assert refused(old) is FencedInstanceIdError
    with pytest.raises(FencedInstanceIdError, match="newer member, 'new'"):
        old.commit({("t-flights", had[0]): 1})
    assert new.commit({("t-flights", had[0]): 1}).refused == []


def test_a_static_member_that_left_for_a_while_finds_its_partitions() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "a", instance_id="i1"), Consumer(coordinator, "b")
    settle([one, two])
    had = one.partitions()
    one.leave(LEAVE_FOR_A_WHILE_EPOCH)
    coordinator.wait(SESSION_MS - 1)
    two.beat()
    assert two.partitions() == [n for n in range(4) if n not in had]
    coordinator.restart(snapshot=True)
    again = Consumer(coordinator, "c", instance_id="i1")
    again.beat()
    assert again.partitions() == had


def test_a_static_member_that_stays_away_loses_its_partitions() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "a", instance_id="i1"), Consumer(coordinator, "b")
    settle([one, two])
    one.leave(LEAVE_FOR_A_WHILE_EPOCH)
    coordinator.wait(SESSION_MS - 1)
    two.beat()
    coordinator.wait(1)
    two.beat()
    assert two.partitions() == [0, 1, 2, 3]


def test_a_process_that_takes_over_while_partitions_were_to_be_released_gets_the_rest() -> None:
    coordinator = Coordinator({"flights": 4, "planes": 2})
    one, two = Consumer(coordinator, "a", instance_id="i1"), Consumer(coordinator, "b")
    one.beat()
    two.beat()
    one.beat(release=False)
    assert len(one.to_release) == 2
    new = Consumer(coordinator, "c", ("flights", "planes"), instance_id="i1")
    new.beat()
    settle([new, two])
    assert len(new.owns) + len(two.owns) == 6


def test_only_a_static_member_leaves_for_a_while() -> None:
    coordinator = Coordinator({"flights": 4})
    one = Consumer(coordinator, "a")
    one.beat()
    with pytest.raises(InvalidArgumentError, match="group_instance_id"):
        one.leave(LEAVE_FOR_A_WHILE_EPOCH)


# --- restarts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_restart_of_the_coordinator_moves_nothing(snapshot: bool) -> None:
    coordinator = Coordinator({"flights": 6})
    consumers = [Consumer(coordinator, f"m{i}") for i in range(3)]
    settle(consumers)
    had = [(one.epoch, one.revision, one.partitions()) for one in consumers]
    coordinator.restart(snapshot=snapshot)
    for one in consumers:
        one.beat()
    assert [(one.epoch, one.revision, one.partitions()) for one in consumers] == had


def test_sessions_start_in_full_after_a_restart() -> None:
    coordinator = Coordinator({"flights": 6})
    one = Consumer(coordinator, "m1")
    one.beat()
    coordinator.wait(SESSION_MS - 1)
    coordinator.restart()
    coordinator.wait(SESSION_MS - 1)
    assert refused(one) is None


# --- bad requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subscription", "error", "words"),
    [
        (None, InvalidArgumentError, "sends its subscription"),
        (Subscription(), InvalidArgumentError, "subscribes to nothing"),
        (Subscription(["a/b"]), InvalidTopicError, "a/b"),
        (Subscription(regex="(a"), InvalidRegularExpressionError, "not closed"),
        (Subscription(["a"], assignor="best"), UnsupportedAssignorError, "range, uniform"),
        (Subscription(["a"], session_timeout_ms=1), InvalidSessionTimeoutError, "100, 1800000"),
        (Subscription(["a"], rebalance_timeout_ms=0), InvalidSessionTimeoutError, "max_poll"),
    ],
)
def test_a_bad_subscription_is_refused_and_makes_no_group(
    subscription: Subscription | None, error: type[RayStreamError], words: str
) -> None:
    coordinator = Coordinator({"flights": 2})
    with pytest.raises(error, match=words):
        coordinator.do(ConsumerGroupHeartbeat("g", "m", 0, 1, subscription=subscription))
    assert coordinator.image().groups == {}


@pytest.mark.parametrize("name", ["", "x" * 250, "a\nb"])
def test_a_group_id_that_cannot_be_printed_is_refused(name: str) -> None:
    coordinator = Coordinator({"flights": 2})
    with pytest.raises(InvalidGroupIdError):
        Consumer(coordinator, "m1", group_id=name).beat()


def test_a_group_has_an_end() -> None:
    coordinator = Coordinator({"flights": 2}, group_size_max=2)
    settle([Consumer(coordinator, "m1"), Consumer(coordinator, "m2")])
    with pytest.raises(GroupMaxSizeReachedError, match="2 members"):
        Consumer(coordinator, "m3").beat()


def test_a_member_keeps_its_instance_id() -> None:
    coordinator = Coordinator({"flights": 2})
    one = Consumer(coordinator, "m1", instance_id="i1")
    one.beat()
    one.instance_id = "i2"
    with pytest.raises(InvalidGroupIdError, match="keeps the one"):
        one.beat()


def test_news_are_there_exactly_when_a_heartbeat_would_bring_some() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    one.beat()
    news = coordinator.machine.has_news
    assert not news(one.heartbeat())
    two.beat()
    assert news(one.heartbeat())
    one.beat(release=False)
    assert not news(one.heartbeat()), "it has to release first"
    assert not news(two.heartbeat()), "it has to wait"
    one.release()
    one.beat()
    assert news(two.heartbeat())
    two.beat()
    assert not news(two.heartbeat())
    assert not news(one.heartbeat())
