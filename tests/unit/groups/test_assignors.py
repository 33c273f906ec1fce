"""Targets: complete, even, sticky, and no more moves than balance demands."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import UnsupportedAssignorError
from ray_stream.groups.assignors import RANGE, UNIFORM, Spec, Targets, assign
from ray_stream.groups.commands import PartitionKey


def given_to(
    subscriptions: Mapping[str, Sequence[str]],
    partitions: Mapping[str, int],
    current: Mapping[str, Sequence[PartitionKey]] | None = None,
    nodes: Mapping[str, str] | None = None,
    leaders: Mapping[str, Sequence[str]] | None = None,
    assignor: str = UNIFORM,
) -> Targets:
    spec = Spec(
        subscriptions,
        partitions,
        {m: dict.fromkeys(keys) for m, keys in (current or {}).items()},
        nodes or {},
        leaders or {},
        {member_id: member_id for member_id in subscriptions},
    )
    return assign(assignor, spec)


def check_complete(
    targets: Targets, subscriptions: Mapping[str, Sequence[str]], partitions: Mapping[str, int]
) -> None:
    """Each partition of each topic that somebody reads has one owner, and one that reads it."""
    for member_id, keys in targets.items():
        assert all(key[0] in subscriptions[member_id] for key in keys)
    given_out = sorted(key for keys in targets.values() for key in keys)
    read = {topic for topics in subscriptions.values() for topic in topics}
    assert given_out == sorted((t, n) for t in read for n in range(partitions[t]))


def moves(before: Mapping[str, Sequence[PartitionKey]], after: Targets) -> int:
    """Partitions that a member had and another one has now."""
    owners = {key: member_id for member_id, keys in after.items() for key in keys}
    return sum(owners[key] != m for m, keys in before.items() for key in keys if key in owners)


# --- one subscription for all --------------------------------------------------------------------


@st.composite
def changes(
    draw: st.DrawFn,
) -> tuple[list[str], dict[str, int], dict[str, list[PartitionKey]]]:
    """Members and topics, and any earlier target, of members that are gone too."""
    members = [f"m{i}" for i in range(draw(st.integers(1, 6)))]
    topics = {f"t{i}": draw(st.integers(0, 9)) for i in range(draw(st.integers(1, 3)))}
    former = [*members, "gone1", "gone2"]
    current: dict[str, list[PartitionKey]] = {}
    for topic, count in topics.items():
        for number in range(count + 2):  # more than there are: a topic made anew, smaller
            owner = draw(st.sampled_from([*former, ""]))
            if owner:
                current.setdefault(owner, []).append((topic, number))
    return members, topics, current


@given(changes())
def test_uniform_is_even_and_moves_the_least_that_evenness_allows(
    change: tuple[list[str], dict[str, int], dict[str, list[PartitionKey]]],
) -> None:
    members, topics, current = change
    subscriptions = {member_id: list(topics) for member_id in members}
    targets = given_to(subscriptions, topics, current)
    check_complete(targets, subscriptions, topics)
    low, more = divmod(sum(topics.values()), len(members))
    loads = sorted((len(keys) for keys in targets.values()), reverse=True)
    assert loads == [low + 1] * more + [low] * (len(members) - more)
    kept = {m: [key for key in current.get(m, []) if key[1] < topics[key[0]]] for m in members}
    # What anybody has above its share has to go; the larger shares go to those who have most.
    fullest = sorted((len(keys) for keys in kept.values()), reverse=True)
    shares = [low + 1] * more + [low] * (len(members) - more)
    least = sum(max(0, has - share) for has, share in zip(fullest, shares, strict=True))
    assert moves(kept, targets) == least


def test_a_join_of_a_big_group_moves_only_what_the_new_member_gets() -> None:
    members = [f"m{i:03}" for i in range(99)]
    topics = {"t": 1_000}
    before = given_to({m: ["t"] for m in members}, topics)
    after = given_to({m: ["t"] for m in [*members, "new"]}, topics, before)
    assert len(after["new"]) == 10
    assert moves(before, after) == 10


def test_members_on_the_leaders_nodes_are_preferred_when_it_costs_nothing() -> None:
    nodes = {"m0": "n0", "m1": "n1", "m2": "n2"}
    leaders = {"t": ["n2", "n1", "n0", "n2", "n1", "n0"]}
    targets = given_to({key: ["t"] for key in nodes}, {"t": 6}, None, nodes, leaders)
    for member_id, keys in targets.items():
        assert [leaders["t"][number] for _, number in keys] == [nodes[member_id]] * 2


def test_nearness_moves_nothing_by_itself_and_unbalances_nothing() -> None:
    current = {"m0": [("t", 0), ("t", 1)], "m1": [("t", 2), ("t", 3)]}
    subscriptions = {key: ["t"] for key in current}
    nodes = {"m0": "n0", "m1": "n1"}
    leaders = {"t": ["n1", "n1", "n0", "n0"]}
    assert given_to(subscriptions, {"t": 4}, current, nodes, leaders) == current
    everywhere = {"t": ["n0"] * 4}
    targets = given_to(subscriptions, {"t": 4}, None, nodes, everywhere)
    assert [len(keys) for keys in targets.values()] == [2, 2]


def test_the_partition_that_moves_is_one_that_is_led_at_its_new_owner() -> None:
    current = {"m0": [("t", 0), ("t", 1), ("t", 2), ("t", 3)], "m1": []}
    nodes = {"m0": "n0", "m1": "n1"}
    leaders = {"t": ["n0", "n1", "n0", "n1"]}
    targets = given_to({key: ["t"] for key in current}, {"t": 4}, current, nodes, leaders)
    assert sorted(targets["m1"]) == [("t", 1), ("t", 3)]


# --- different subscriptions ---------------------------------------------------------------------


@st.composite
def mixtures(
    draw: st.DrawFn,
) -> tuple[dict[str, list[str]], dict[str, int], dict[str, list[PartitionKey]]]:
    topics = {f"t{i}": draw(st.integers(0, 5)) for i in range(draw(st.integers(1, 4)))}
    subscriptions = {
        f"m{i}": draw(st.lists(st.sampled_from(sorted(topics)), unique=True))
        for i in range(draw(st.integers(1, 5)))
    }
    current: dict[str, list[PartitionKey]] = {}
    for topic, count in topics.items():
        for number in range(count):
            owner = draw(st.sampled_from([*subscriptions, "gone", ""]))
            if owner:
                current.setdefault(owner, []).append((topic, number))
    return subscriptions, topics, current


@given(mixtures())
def test_no_chain_of_hand_overs_could_make_it_more_even(
    mixture: tuple[dict[str, list[str]], dict[str, int], dict[str, list[PartitionKey]]],
) -> None:
    subscriptions, topics, current = mixture
    targets = given_to(subscriptions, topics, current)
    check_complete(targets, subscriptions, topics)
    for end in targets:
        reached = [end]
        for taker in reached:
            for giver, keys in targets.items():
                if giver not in reached and any(k[0] in subscriptions[taker] for k in keys):
                    assert len(keys) <= len(targets[end]) + 1
                    reached.append(giver)


@given(mixtures())
def test_what_is_even_stays_as_it_is(
    mixture: tuple[dict[str, list[str]], dict[str, int], dict[str, list[PartitionKey]]],
) -> None:
    subscriptions, topics, current = mixture
    once = given_to(subscriptions, topics, current)
    assert moves(once, given_to(subscriptions, topics, once)) == 0


# --- range ---------------------------------------------------------------------------------------


@given(mixtures())
def test_range_gives_out_everything_in_runs(
    mixture: tuple[dict[str, list[str]], dict[str, int], dict[str, list[PartitionKey]]],
) -> None:
    subscriptions, topics, current = mixture
    targets = given_to(subscriptions, topics, current, assignor=RANGE)
    check_complete(targets, subscriptions, topics)
    for keys in targets.values():
        for topic in topics:
            numbers = [number for name, number in keys if name == topic]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else True


def test_range_brings_equal_numbers_of_topics_together() -> None:
    members = {f"m{i}": ["a", "b"] for i in range(3)}
    targets = given_to(members, {"a": 7, "b": 7}, assignor=RANGE)
    for keys in targets.values():
        numbers = {t: [n for name, n in keys if name == t] for t in ("a", "b")}
        assert numbers["a"] == numbers["b"]
    assert [len(keys) for keys in targets.values()] == [6, 4, 4]


def test_range_keeps_members_in_their_row_when_one_goes() -> None:
    members = {f"m{i}": ["a"] for i in (2, 0, 1)}
    before = given_to(members, {"a": 6}, assignor=RANGE)
    del members["m1"]
    after = given_to(members, {"a": 6}, before, assignor=RANGE)
    assert after["m0"][0] == ("a", 0)
    assert after["m2"][-1] == ("a", 5)


def test_an_unknown_assignor_is_refused() -> None:
    with pytest.raises(UnsupportedAssignorError, match="valid: range, uniform"):
        given_to({"m": []}, {}, assignor="best")
