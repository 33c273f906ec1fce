"""Partitions over members: even, sticky, and near their leaders where that is free.

Owns: the algorithm of `uniform`. Refuses: everything about groups.

Three steps. Every member keeps what it had and may have. What nobody has goes, one by one, to the
member with the fewest among those that may have it. Then, while a member has at least two more
than another one, and a chain of members leads from the one to the other in which each can hand a
partition to the next, one partition moves along the shortest such chain. When no chain is left,
the loads are as even as the subscriptions allow: a chain that lowers the imbalance exists exactly
as long as the assignment is not optimal (semi-matchings, Harvey et al. 2006). With one
subscription for all, chains are single moves from a fullest to an emptiest member, and their
number is the least possible.

A node decides between members that are equal otherwise, so it costs neither balance nor moves.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

from ray_stream.groups.commands import PartitionKey

Readers = tuple[str, ...]
"""The members that may have a topic; topics with the same are one class."""


class Balance:
    """One computation."""

    def __init__(
        self,
        subscriptions: Mapping[str, Sequence[str]],
        partitions: Mapping[str, int],
        current: Mapping[str, Iterable[PartitionKey]],
        nodes: Mapping[str, str],
        leaders: Mapping[str, Sequence[str]],
    ) -> None:
        """See `assignors.Spec`."""
        self._subscriptions = subscriptions
        self._partitions = partitions
        self._nodes = nodes
        self._leaders = leaders
        self._row = {member_id: i for i, member_id in enumerate(subscriptions)}
        self._readers = self._classes()
        self._held: dict[str, dict[Readers, dict[PartitionKey, None]]] = {
            member_id: {} for member_id in subscriptions
        }
        self._load = dict.fromkeys(subscriptions, 0)
        self._holders: dict[Readers, dict[str, None]] = {}
        self._may_take: dict[str, list[Readers]] = {member_id: [] for member_id in subscriptions}
        for readers in dict.fromkeys(self._readers.values()):
            self._holders[readers] = {}
            for member_id in readers:
                self._may_take[member_id].append(readers)
        self._free = self._keep(current)

    def targets(self) -> dict[str, list[PartitionKey]]:
        """Every member, and what it shall own."""
        self._give_free()
        self._even_out()
        return {
            member_id: [key for keys in held.values() for key in keys]
            for member_id, held in self._held.items()
        }

    def _classes(self) -> dict[str, Readers]:
        readers: dict[str, list[str]] = {}
        for member_id, topics in self._subscriptions.items():
            for topic_id in topics:
                readers.setdefault(topic_id, []).append(member_id)
        shared: dict[Readers, Readers] = {}
        classes: dict[str, Readers] = {}
        for topic_id, members in readers.items():
            key = tuple(members)
            classes[topic_id] = shared.setdefault(key, key)
        return classes

    def _keep(self, current: Mapping[str, Iterable[PartitionKey]]) -> list[PartitionKey]:
        """Step one; returns what nobody has."""
        taken: dict[PartitionKey, None] = {}
        for member_id, keys in current.items():
            topics = dict.fromkeys(self._subscriptions.get(member_id, ()))
            for key in keys:
                if key[0] in topics and key[1] < self._partitions[key[0]] and key not in taken:
                    taken[key] = None
                    self._give(key, member_id)
        return [
            (topic_id, number)
            for topic_id in self._readers
            for number in range(self._partitions[topic_id])
            if (topic_id, number) not in taken
        ]

    def _give(self, key: PartitionKey, member_id: str) -> None:
        readers = self._readers[key[0]]
        held = self._held[member_id]
        if readers not in held:
            held[readers] = {}
        held[readers][key] = None
        self._load[member_id] += 1
        self._holders[readers][member_id] = None

    def _take(self, key: PartitionKey, member_id: str) -> None:
        readers = self._readers[key[0]]
        held = self._held[member_id]
        del held[readers][key]
        self._load[member_id] -= 1
        if not held[readers]:
            del held[readers], self._holders[readers][member_id]

    def _leader(self, key: PartitionKey) -> str:
        nodes = self._leaders.get(key[0], ())
        return nodes[key[1]] if key[1] < len(nodes) else ""

    # --- step two --------------------------------------------------------------------------------

    def _give_free(self) -> None:
        by_class: dict[Readers, list[PartitionKey]] = {}
        for key in self._free:
            by_class.setdefault(self._readers[key[0]], []).append(key)
        # Those that few may have first: the others can still make up for it.
        for readers in sorted(by_class, key=len):
            self._give_class(readers, by_class[readers])

    def _give_class(self, readers: Readers, keys: list[PartitionKey]) -> None:
        """Level after level: all members of the lowest load get one, near ones first."""
        load, row = self._load, self._row
        heap = [(load[member_id], row[member_id], member_id) for member_id in readers]
        heapq.heapify(heap)
        begin = 0
        while begin < len(keys):
            level = heap[0][0]
            lowest: dict[str, None] = {}
            while heap and heap[0][0] == level:
                lowest[heapq.heappop(heap)[2]] = None
            takers = list(lowest)
            count = min(len(lowest), len(keys) - begin)
            left = self._give_near(keys, begin, count, lowest)
            for key, member_id in zip(left, list(lowest), strict=False):
                self._give(key, member_id)
            begin += count
            for member_id in takers:
                heapq.heappush(heap, (load[member_id], row[member_id], member_id))

    def _give_near(
        self, keys: list[PartitionKey], begin: int, count: int, lowest: dict[str, None]
    ) -> list[PartitionKey]:
        """Give partitions to members on their leaders' nodes, one each; returns the others.

        Searches all keys that are left for near ones, and swaps those to the front.
        """
        waiting: dict[str, list[str]] = {}
        for member_id in reversed(lowest):
            if node := self._nodes.get(member_id, ""):
                waiting.setdefault(node, []).append(member_id)
        if not waiting or not self._leaders:
            return keys[begin : begin + count]
        given = begin
        for i in range(begin, len(keys)):
            if given == begin + count or not waiting:
                break
            node = self._leader(keys[i])
            near = waiting.get(node)
            if not near:
                continue
            member_id = near.pop()
            if not near:
                del waiting[node]
            del lowest[member_id]
            self._give(keys[i], member_id)
            keys[given], keys[i] = keys[i], keys[given]
            given += 1
        return keys[given : begin + count]

    # --- step three ------------------------------------------------------------------------------

    def _even_out(self) -> None:
        heap = [(load, self._row[member_id], member_id) for member_id, load in self._load.items()]
        heapq.heapify(heap)
        done: dict[str, None] = {}
        while heap:
            load, row, member_id = heapq.heappop(heap)
            if member_id in done or load != self._load[member_id]:
                continue
            chain = self._chain_to(member_id, done)
            for giver, readers, taker in chain:
                self._hand_over(giver, readers, taker)
            if chain:
                giver = chain[0][0]
                heapq.heappush(heap, (self._load[member_id], row, member_id))
                heapq.heappush(heap, (self._load[giver], self._row[giver], giver))

    def _chain_to(self, member_id: str, done: dict[str, None]) -> list[tuple[str, Readers, str]]:
        """The shortest chain of hand-overs that ends here and begins with two more at least.

        Whoever is reached in vain has no more than one more than this member, and so has whoever
        can hand anything on to them: they are done with for good.
        """
        least = self._load[member_id] + 2
        reached: dict[str, tuple[Readers, str]] = {}
        level = [member_id]
        seen: dict[Readers, None] = {}
        while level:
            found: list[str] = []
            for taker in level:
                for readers in self._may_take[taker]:
                    if readers in seen:
                        continue
                    seen[readers] = None
                    for giver in self._holders[readers]:
                        if giver != member_id and giver not in reached and giver not in done:
                            reached[giver] = (readers, taker)
                            found.append(giver)
            fullest = max(found, key=self._load.__getitem__, default=None)
            if fullest is not None and self._load[fullest] >= least:
                return _walk(fullest, member_id, reached)
            level = found
        done[member_id] = None
        done.update(dict.fromkeys(reached))
        return []

    def _hand_over(self, giver: str, readers: Readers, taker: str) -> None:
        """The partition that gains most: away from the leader's node it may go, to it it should."""
        here, there = self._nodes.get(giver, ""), self._nodes.get(taker, "")
        keys = self._held[giver][readers]
        best = next(reversed(keys))
        if self._leaders and here != there:
            best = max(reversed(keys), key=lambda key: _gain(self._leader(key), here, there))
        self._take(best, giver)
        self._give(best, taker)


def _gain(leader: str, here: str, there: str) -> int:
    return (leader == there) - (leader == here) if leader else 0


def _walk(
    giver: str, end: str, reached: Mapping[str, tuple[Readers, str]]
) -> list[tuple[str, Readers, str]]:
    chain = []
    while giver != end:
        readers, taker = reached[giver]
        chain.append((giver, readers, taker))
        giver = taker
    return chain
