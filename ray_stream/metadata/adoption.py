"""Which broker of a host is to serve which directory of it.

Owns: the rule below. Refuses: locks, epochs, what is in a directory.

Every directory has a *home*: the broker id for which it was made. Whoever starts on the host
takes over an id whose home directory it sees, so the ids that are alive and the homes fit
together in whatever order brokers return. Then:

1. A directory whose home lives and sees it is that broker's.
2. Any other is adopted: by the broker that has it now, as long as that one has not more than its
   even share, and otherwise by the broker that has the fewest and sees it.

So of three brokers with three directories, restarting seconds apart in any order, the first
adopts all three (nothing waits for brokers that may never come), and hands one over to each of
the others when it comes; when only two return, one of them keeps two. The outcome depends on who
lives, not on who was first, and once reached it moves nothing more.

A directory never has two owners, because an owner is entered in one place, and only for a broker
that reported its lock. Handing over is: the old owner is struck out at once (its assignment
shrinks, it closes the logs and releases the lock), the new one is told to acquire the lock, and
owns the directory from the moment that it reports the lock. Between the two nobody leads these
partitions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Candidate:
    """A living broker of the host."""

    broker_id: int
    visible: Sequence[str]
    """Directories that it sees."""


def adopt(
    brokers: Sequence[Candidate], homes: Mapping[str, int], owners: Mapping[str, int]
) -> dict[str, int]:
    """Who is to serve each directory that any of these brokers sees.

    Args:
        brokers: the living brokers of one host.
        homes: directory id to the broker id for which it was made.
        owners: directory id to the broker that serves it now.
    """
    seers: dict[str, list[int]] = {}
    for broker in sorted(brokers, key=lambda one: one.broker_id):
        for directory_id in broker.visible:
            seers.setdefault(directory_id, []).append(broker.broker_id)
    load = {broker.broker_id: 0 for broker in brokers}
    targets: dict[str, int] = {}

    def give(directory_id: str, broker_id: int) -> None:
        targets[directory_id] = broker_id
        load[broker_id] += 1

    adopted = []
    for directory_id in sorted(seers, key=lambda one: (homes[one], one)):
        if homes[directory_id] in seers[directory_id]:
            give(directory_id, homes[directory_id])
        else:
            adopted.append(directory_id)
    share = -(-len(seers) // len(brokers)) if brokers else 0
    left = []
    for directory_id in adopted:
        owner = owners.get(directory_id)
        if owner in seers[directory_id] and load[owner] < share:
            give(directory_id, owner)
        else:
            left.append(directory_id)
    for directory_id in left:
        give(directory_id, min(seers[directory_id], key=lambda one: (load[one], one)))
    return targets
