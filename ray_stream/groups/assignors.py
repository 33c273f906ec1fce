"""Who shall own what: `uniform` and `range`.

Owns: targets from subscriptions, earlier targets and places. Refuses: who owns what now, and when
a target is due (`planning`, `reconciliation`).

`uniform` gives every member the same number of partitions, within one among members that could
take each other's, and moves no more than that needs (`balancing`). `range` gives each topic's
partitions out in runs, so that equal numbers of topics with equally many partitions and equal
readers meet in one member; it moves what that needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray_stream.errors import UnsupportedAssignorError
from ray_stream.groups.balancing import Balance
from ray_stream.groups.commands import PartitionKey

UNIFORM = "uniform"
RANGE = "range"

Targets = dict[str, list[PartitionKey]]
"""Every member, and what it shall own."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What an assignor has to go by."""

    subscriptions: Mapping[str, Sequence[str]]
    """Every member's topics, by id."""
    partitions: Mapping[str, int]
    """How many each topic has."""
    current: Mapping[str, Mapping[PartitionKey, None]]
    """The target so far; partitions and members that are gone may still be in it."""
    nodes: Mapping[str, str]
    """Where each member runs; empty if it does not say."""
    leaders: Mapping[str, Sequence[str]]
    """Where each partition of a topic is led; empty strings and missing topics are unknown."""
    order: Mapping[str, str]
    """By what members are told apart where it has to be something: instance ids, member ids."""


def assign(assignor: str, spec: Spec) -> Targets:
    """The new target.

    Raises:
        UnsupportedAssignorError: there is no such assignor.
    """
    check_assignor(assignor)
    return _ASSIGNORS[assignor](spec)


def check_assignor(assignor: str) -> str:
    """The name as given, if there is such an assignor.

    Raises:
        UnsupportedAssignorError: there is not.
    """
    if assignor not in _ASSIGNORS:
        raise UnsupportedAssignorError(
            f"there is no assignor {assignor!r}; valid: {', '.join(sorted(_ASSIGNORS))}"
        )
    return assignor


def _uniform(spec: Spec) -> Targets:
    balance = Balance(spec.subscriptions, spec.partitions, spec.current, spec.nodes, spec.leaders)
    return balance.targets()


def _range(spec: Spec) -> Targets:
    first = {m: min((n for _, n in held), default=-1) for m, held in spec.current.items()}
    targets: Targets = {member_id: [] for member_id in spec.subscriptions}
    readers: dict[str, list[str]] = {}
    # Members keep their place in the row, new ones queue up: so less moves than by name alone.
    for member_id in sorted(
        spec.subscriptions,
        key=lambda m: (first.get(m, -1) < 0, first.get(m, -1), spec.order[m], m),
    ):
        for topic_id in spec.subscriptions[member_id]:
            readers.setdefault(topic_id, []).append(member_id)
    for topic_id, row in readers.items():
        each, more = divmod(spec.partitions[topic_id], len(row))
        begin = 0
        for place, member_id in enumerate(row):
            end = begin + each + (place < more)
            targets[member_id] += [(topic_id, number) for number in range(begin, end)]
            begin = end
    return targets


_ASSIGNORS: Mapping[str, Callable[[Spec], Targets]] = {UNIFORM: _uniform, RANGE: _range}
