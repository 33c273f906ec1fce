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
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat

from ray_stream.groups.commands import PartitionKey

Class = int
"""Topics that the same members may have, as one number."""


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
        self._members: list[list[str]] = []
        """Of each class, those that may have its topics."""
        self._class: dict[str, Class] = self._classes()
        self._held: dict[str, dict[Class, dict[PartitionKey, None]]] = {
            member_id: {} for member_id in subscriptions
        }
        self._load = dict.fromkeys(subscriptions, 0)
        self._holders: list[dict[str, None]] = [{} for _ in self._members]
        self._may_take: dict[str, list[Class]] = {member_id: [] for member_id in subscriptions}
        for number, members in enumerate(self._members):
            for member_id in members:
                self._may_take[member_id].append(number)
        self._led: dict[tuple[str, Class], dict[str, list[PartitionKey]]] = {}
        """What givers have of a class, by where it is led; made when they give."""
        self._free = self._keep(current)

    def targets(self) -> dict[str, list[PartitionKey]]:
        """Every member, and what it shall own."""
        self._give_free()
        self._even_out()
        return {
            member_id: [key for keys in held.values() for key in keys]
            for member_id, held in self._held.items()
        }

    def _classes(self) -> dict[str, Class]:
        readers: dict[str, list[str]] = {}
        for member_id, topics in self._subscriptions.items():
            for topic_id in topics:
                readers.setdefault(topic_id, []).append(member_id)
        numbers: dict[tuple[str, ...], Class] = {}
        classes: dict[str, Class] = {}
        for topic_id, members in readers.items():
            key = tuple(members)
            if key not in numbers:
                numbers[key] = len(numbers)
                self._members.append(members)
            classes[topic_id] = numbers[key]
        return classes

    def _keep(self, current: Mapping[str, Iterable[PartitionKey]]) -> list[PartitionKey]:
        """Step one; returns what nobody has."""
        taken: dict[PartitionKey, None] = {}
        for member_id, keys in current.items():
            counts = {t: self._partitions[t] for t in self._subscriptions.get(member_id, ())}
            kept = dict.fromkeys(
                key for key in keys if key[1] < counts.get(key[0], 0) and key not in taken
            )
            taken.update(kept)
            self._let_keep(member_id, kept)
        return [
            key
            for topic_id in self._class
            for key in zip(repeat(topic_id), range(self._partitions[topic_id]), strict=False)
            if key not in taken
        ]

    def _let_keep(self, member_id: str, kept: dict[PartitionKey, None]) -> None:
        """Nearly everything is kept, nearly always: with one class, all at once."""
        classes = self._may_take.get(member_id, [])
        if len(classes) != 1:
            for key in kept:
                self._give(key, member_id)
        elif kept:
            self._held[member_id] = {classes[0]: kept}
            self._holders[classes[0]][member_id] = None
            self._load[member_id] = len(kept)

    def _give(self, key: PartitionKey, member_id: str) -> None:
        number = self._class[key[0]]
        held = self._held[member_id]
        if number not in held:
            held[number] = {}
            self._holders[number][member_id] = None
        held[number][key] = None
        self._load[member_id] += 1
        led = self._led.get((member_id, number))
        if led is not None:
            led.setdefault(self._leader(key), []).append(key)

    def _take(self, key: PartitionKey, member_id: str) -> None:
        number = self._class[key[0]]
        held = self._held[member_id]
        del held[number][key]
        self._load[member_id] -= 1
        if not held[number]:
            del held[number], self._holders[number][member_id]

    def _leader(self, key: PartitionKey) -> str:
        nodes = self._leaders.get(key[0], ())
        return nodes[key[1]] if key[1] < len(nodes) else ""

    # --- step two --------------------------------------------------------------------------------

    def _give_free(self) -> None:
        by_class: dict[Class, list[PartitionKey]] = {}
        for key in self._free:
            by_class.setdefault(self._class[key[0]], []).append(key)
        # Those that few may have first: the others can still make up for it.
        for number in sorted(by_class, key=lambda number: len(self._members[number])):
            self._give_class(self._members[number], by_class[number])

    def _give_class(self, readers: Sequence[str], keys: list[PartitionKey]) -> None:
        """Level after level: all members of the lowest load get one, near ones first."""
        load, row, nodes = self._load, self._row, self._nodes
        pool = _Pool(keys, self._leader, (nodes.get(member_id, "") for member_id in readers))
        heap = [(load[member_id], row[member_id], member_id) for member_id in readers]
        heapq.heapify(heap)
        left = len(keys)
        while left:
            level = heap[0][0]
            lowest: list[str] = []
            while heap and heap[0][0] == level:
                lowest.append(heapq.heappop(heap)[2])
            far: list[str] = []
            for member_id in lowest:
                key = pool.near(nodes.get(member_id, "")) if left else None
                if key is None:
                    far.append(member_id)
                else:
                    self._give(key, member_id)
                    left -= 1
            for member_id in far[:left]:
                self._give(pool.any(), member_id)
            left -= min(left, len(far))
            for member_id in lowest:
                heapq.heappush(heap, (load[member_id], row[member_id], member_id))

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
            for giver, number, taker in chain:
                self._hand_over(giver, number, taker)
            if chain:
                giver = chain[0][0]
                heapq.heappush(heap, (self._load[member_id], row, member_id))
                heapq.heappush(heap, (self._load[giver], self._row[giver], giver))

    def _chain_to(self, member_id: str, done: dict[str, None]) -> list[tuple[str, Class, str]]:
        """The shortest chain of hand-overs that ends here and begins with two more at least.

        Whoever is reached in vain has no more than one more than this member, and so has whoever
        can hand anything on to them: they are done with for good.
        """
        least = self._load[member_id] + 2
        reached: dict[str, tuple[Class, str]] = {}
        level = [member_id]
        seen: dict[Class, None] = {}
        while level:
            found: list[str] = []
            for taker in level:
                for number in self._may_take[taker]:
                    if number in seen:
                        continue
                    seen[number] = None
                    for giver in self._holders[number]:
                        if giver != member_id and giver not in reached and giver not in done:
                            reached[giver] = (number, taker)
                            found.append(giver)
            fullest = max(found, key=self._load.__getitem__, default=None)
            if fullest is not None and self._load[fullest] >= least:
                return _walk(fullest, member_id, reached)
            level = found
        done[member_id] = None
        done.update(dict.fromkeys(reached))
        return []

    def _hand_over(self, giver: str, number: Class, taker: str) -> None:
        """Of what is led at the taker, if anything is; else what is not led at the giver."""
        here, there = self._nodes.get(giver, ""), self._nodes.get(taker, "")
        led = self._led.get((giver, number))
        if led is None:
            led = {}
            for key in self._held[giver][number]:
                led.setdefault(self._leader(key), []).append(key)
            self._led[giver, number] = led
        node = there if there in led else next((node for node in led if node != here), here)
        best = led[node].pop()
        if not led[node]:
            del led[node]
        self._take(best, giver)
        self._give(best, taker)


class _Pool:
    """Partitions that nobody has, by where they are led."""

    def __init__(
        self,
        keys: Sequence[PartitionKey],
        leader: Callable[[PartitionKey], str],
        nodes: Iterable[str],
    ) -> None:
        self._near: dict[str, list[PartitionKey]] = {node: [] for node in nodes if node}
        self._far: list[PartitionKey] = []
        for key in reversed(keys):
            self._near.get(leader(key), self._far).append(key)

    def near(self, node: str) -> PartitionKey | None:
        """One that is led on this node."""
        keys = self._near.get(node)
        return keys.pop() if keys else None

    def any(self) -> PartitionKey:
        """One that is near to nobody; else one of those that the most are led beside."""
        if self._far:
            return self._far.pop()
        return max(self._near.values(), key=len).pop()


def _walk(
    giver: str, end: str, reached: Mapping[str, tuple[Class, str]]
) -> list[tuple[str, Class, str]]:
    chain = []
    while giver != end:
        number, taker = reached[giver]
        chain.append((giver, number, taker))
        giver = taker
    return chain
