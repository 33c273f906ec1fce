"""Offsets are stored for who owns the partition, and for nobody else; and grow old."""

import pytest

from ray_stream.errors import (
    GroupIdNotFoundError,
    InvalidArgumentError,
    NonEmptyGroupError,
    StaleMemberEpochError,
    UnknownMemberIdError,
)
from ray_stream.groups.commands import (
    CommittedOffset,
    DeleteGroup,
    DeleteOffsets,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    ResetOffsets,
)
from ray_stream.groups.limits import DAY_MS
from tests.unit.groups.harness import NOW_MS, SESSION_MS, Consumer, Coordinator, settle

ZERO = ("t-flights", 0)


def standalone(coordinator: Coordinator, offset: int = 7, group_id: str = "g") -> None:
    coordinator.do(OffsetCommit(group_id, "", -1, [CommittedOffset(*ZERO, offset)]))


def test_what_a_member_commits_is_there_for_whoever_comes_next() -> None:
    coordinator = Coordinator({"flights": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    offset = CommittedOffset(*ZERO, 42, 3, "note")
    coordinator.do(OffsetCommit("g", "m1", one.epoch, [offset]))
    coordinator.restart(snapshot=True)
    fetched = coordinator.do(OffsetFetch("g", [("t-flights", [0, 1])])).offsets
    assert fetched[0] == CommittedOffset(*ZERO, 42, 3, "note", NOW_MS)
    assert fetched[1] == CommittedOffset("t-flights", 1, -1)
    assert coordinator.do(OffsetFetch("nobody", [("t-flights", [0])])).offsets[0].offset == -1


def test_a_commit_does_not_fail_because_a_rebalance_began() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    one.beat()
    before = one.epoch
    two.beat()
    one.beat(release=False)
    assert one.commit(dict.fromkeys(one.owns, 5)).refused == [], "the last chance before it leaves"
    one.release()
    one.beat()
    assert one.epoch > before
    assert one.commit(dict.fromkeys(one.owns, 6), before).refused == [], "an epoch late"


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_late_copy_of_a_commit_does_not_undo_a_later_one(snapshot: bool) -> None:
    coordinator = Coordinator({"flights": 2})
    one = Consumer(coordinator, "m1")
    one.beat()
    early = one.commit_of({ZERO: 5, ("t-flights", 1): 5})
    coordinator.do(early)
    one.commit({ZERO: 9})
    assert coordinator.do(early).refused == [], "nobody waits for a copy, or it was answered"
    assert coordinator.committed() == {ZERO: 9, ("t-flights", 1): 5}
    coordinator.restart(snapshot=snapshot)
    coordinator.do(early)
    assert coordinator.committed() == {ZERO: 9, ("t-flights", 1): 5}, "nor in a later life"
    one.commit({ZERO: 2})
    assert coordinator.committed()[ZERO] == 2, "a member may go back if it means to"


def test_a_commit_is_not_measured_by_what_another_member_sent() -> None:
    coordinator = Coordinator({"flights": 1})
    one, two = Consumer(coordinator, "a"), Consumer(coordinator, "b")
    one.beat()
    for offset in range(10):
        one.commit({ZERO: offset})
    one.leave()
    two.beat()
    two.commit({ZERO: 3})
    assert coordinator.committed() == {ZERO: 3}


def test_a_commit_of_a_partition_that_was_released_is_refused_and_the_others_are_stored() -> None:
    coordinator = Coordinator({"flights": 4})
    one, two = Consumer(coordinator, "m1"), Consumer(coordinator, "m2")
    one.beat()
    settle([one, two])
    gone, kept = next(iter(two.owns)), next(iter(one.owns))
    (refused,) = one.commit({gone: 5, kept: 6}).refused
    assert (refused.topic_id, refused.partition) == gone
    assert refused.error == "StaleMemberEpochError"
    assert "does not own" in refused.message
    assert coordinator.committed() == {kept: 6}


def test_a_commit_from_before_the_partition_was_elsewhere_is_refused() -> None:
    coordinator = Coordinator({"flights": 1})
    one, two = Consumer(coordinator, "a"), Consumer(coordinator, "b")
    one.beat()
    early = one.epoch
    one.leave()
    two.beat()
    two.commit({ZERO: 50})
    two.leave()
    one.beat()
    (refused,) = one.commit({ZERO: 10}, early).refused
    assert "came late" in refused.message
    assert coordinator.committed() == {ZERO: 50}


def test_nobody_commits_in_an_epoch_that_he_has_not_reached_or_for_a_group_that_has_members() -> (
    None
):
    coordinator = Coordinator({"flights": 1})
    one = Consumer(coordinator, "a")
    one.beat()
    with pytest.raises(StaleMemberEpochError, match="epoch 9"):
        one.commit({ZERO: 10}, 9)
    with pytest.raises(UnknownMemberIdError, match="join again"):
        Consumer(coordinator, "stranger").commit({ZERO: 10}, 1)
    with pytest.raises(UnknownMemberIdError, match="only they commit"):
        standalone(coordinator)
    with pytest.raises(InvalidArgumentError, match="epoch -1"):
        coordinator.do(OffsetCommit("h", "", 3, []))


@pytest.mark.parametrize(
    ("offset", "error"),
    [
        (CommittedOffset("t-flights", 0, -1), "InvalidArgumentError"),
        (CommittedOffset("t-flights", -1, 1), "InvalidArgumentError"),
        (CommittedOffset("t-flights", 0, 1, metadata="x" * 4097), "OffsetMetadataTooLargeError"),
    ],
)
def test_an_impossible_offset_is_refused_by_name(offset: CommittedOffset, error: str) -> None:
    coordinator = Coordinator({"flights": 1})
    (refused,) = coordinator.do(OffsetCommit("g", "", -1, [offset])).refused
    assert refused.error == error
    assert coordinator.image().groups == {}


def test_a_member_that_was_fenced_reads_no_offsets_as_one() -> None:
    coordinator = Coordinator({"flights": 1})
    one = Consumer(coordinator, "a")
    one.beat()
    assert coordinator.do(OffsetFetch("g", None, "a", one.epoch)).offsets == []
    with pytest.raises(StaleMemberEpochError):
        coordinator.do(OffsetFetch("g", None, "a", 9))
    coordinator.wait(SESSION_MS)
    with pytest.raises(UnknownMemberIdError):
        coordinator.do(OffsetFetch("g", None, "a", one.epoch))


def test_offsets_and_groups_are_changed_by_hand_only_without_members() -> None:
    coordinator = Coordinator({"flights": 1})
    one = Consumer(coordinator, "a")
    one.beat()
    one.commit({ZERO: 10})
    by_hand = (
        ResetOffsets("g", [CommittedOffset(*ZERO, 3)]),
        DeleteOffsets("g", [("t-flights", [0, 1])]),
        DeleteGroup("g"),
    )
    for command in by_hand:
        with pytest.raises(NonEmptyGroupError, match="1 members \\(a\\): stop them"):
            coordinator.do(command)
    assert coordinator.committed() == {ZERO: 10}
    one.leave()
    coordinator.do(by_hand[0])
    assert coordinator.committed() == {ZERO: 3}
    coordinator.do(by_hand[1])
    assert coordinator.committed() == {}
    coordinator.do(by_hand[2])
    assert coordinator.do(ListGroups()).groups == []
    for command in by_hand[1:]:
        with pytest.raises(GroupIdNotFoundError, match="no group 'g'"):
            coordinator.do(command)


def test_a_reset_with_one_impossible_offset_changes_none() -> None:
    coordinator = Coordinator({"flights": 1})
    standalone(coordinator, 7)
    with pytest.raises(InvalidArgumentError):
        coordinator.do(ResetOffsets("g", [CommittedOffset(*ZERO, 1), CommittedOffset(*ZERO, -5)]))
    assert coordinator.committed() == {ZERO: 7}


# --- age -----------------------------------------------------------------------------------------


def test_offsets_of_a_group_without_members_expire_and_then_the_group() -> None:
    coordinator = Coordinator({"flights": 1})
    one = Consumer(coordinator, "a")
    one.beat()
    one.commit({ZERO: 10})
    coordinator.wait(5_000)
    one.leave()
    coordinator.wait(7 * DAY_MS - 1)
    assert coordinator.committed() == {ZERO: 10}
    coordinator.wait(600_000)
    assert coordinator.committed() == {}
    coordinator.wait(600_000)
    assert coordinator.image().groups == {}


def test_offsets_of_a_living_subscription_never_expire_others_do() -> None:
    coordinator = Coordinator({"flights": 1, "planes": 1})
    one = Consumer(coordinator, "a", ("flights", "planes"))
    one.beat()
    one.commit({ZERO: 10, ("t-planes", 0): 5})
    one.names = ("flights",)
    one.beat(full=True)
    for _ in range(2):
        coordinator.clock_ms += 7 * DAY_MS
        one.beat()
        coordinator.wait(0)
    assert coordinator.committed() == {ZERO: 10}


def test_standalone_offsets_expire_by_their_last_commit() -> None:
    coordinator = Coordinator({"flights": 1})
    standalone(coordinator)
    coordinator.wait(6 * DAY_MS)
    standalone(coordinator, 8)
    coordinator.wait(6 * DAY_MS)
    assert coordinator.committed() == {ZERO: 8}
    coordinator.wait(1 * DAY_MS)
    assert coordinator.committed() == {}


@pytest.mark.parametrize("jump_ms", [-400 * DAY_MS, 400 * DAY_MS])
def test_a_jump_of_the_wall_clock_ends_no_session_and_no_offset(jump_ms: int) -> None:
    coordinator = Coordinator({"flights": 1})
    standalone(coordinator, group_id="h")
    one = Consumer(coordinator, "a")
    one.beat()
    one.commit({ZERO: 10})
    for restarts in (False, True):
        coordinator.now_ms += jump_ms
        if restarts:
            coordinator.restart()
        coordinator.wait(SESSION_MS - 1)
        one.beat()
        coordinator.wait(SESSION_MS - 1)
        one.beat()
    assert coordinator.committed() == {ZERO: 10}
    assert coordinator.committed("h") == {ZERO: 7}


def test_a_monotonic_clock_that_is_told_late_does_not_go_back() -> None:
    coordinator = Coordinator({"flights": 1})
    coordinator.machine.tell_time(9_000)
    coordinator.machine.tell_time(8_000)
    assert coordinator.machine.signs.clock_ms == 9_000


def test_age_is_counted_over_restarts_and_not_while_nothing_ran() -> None:
    coordinator = Coordinator({"flights": 1})
    standalone(coordinator)
    for _ in range(6):
        coordinator.wait(1 * DAY_MS)
        coordinator.restart()  # the clock of the next life is far ahead
        assert coordinator.committed() == {ZERO: 7}
    coordinator.wait(1 * DAY_MS)
    coordinator.wait(600_000)
    assert coordinator.committed() == {}


def test_an_empty_group_without_offsets_vanishes() -> None:
    coordinator = Coordinator({"flights": 1})
    one = Consumer(coordinator, "a")
    one.beat()
    one.leave()
    coordinator.wait(599_999)
    assert list(coordinator.image().groups) == ["g"]
    coordinator.wait(600_001)
    assert coordinator.image().groups == {}


def test_offsets_of_a_topic_that_this_life_has_not_seen_are_kept() -> None:
    coordinator = Coordinator({"planes": 1})
    standalone(coordinator)
    coordinator.see({"planes": 1, "more": 1})
    assert coordinator.committed() == {ZERO: 7}, "the view may be older than the topic"
