"""The groups of one simulated run: who joins, what happens to them, and what they come to.

Owns: drawing members and their fates from the seed, and the judgement of all groups at the end.
Refuses: what a member does (`testing.simulated_member`), what facts may say
(`testing.group_story`).
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from ray_stream.config import COORDINATOR_PARTITIONS
from ray_stream.groups.commands import PartitionKey
from ray_stream.groups.reconciliation import MemberState, state_of
from ray_stream.groups.routing import partition_of
from ray_stream.testing.group_judge import GroupJudge
from ray_stream.testing.group_story import Story
from ray_stream.testing.handled import Handled, judge_handled
from ray_stream.testing.network import Network
from ray_stream.testing.scheduler import Event, Scheduler
from ray_stream.testing.simulated_clients import Write
from ray_stream.testing.simulated_cluster import SimulatedCluster
from ray_stream.testing.simulated_member import Role, SimulatedMember
from ray_stream.types import TopicPartition

MEMBERS_MAX = 4
PAUSE_MS_MIN, PAUSE_MS_MAX = 100, 900
STOPPED_MS_MAX = 4_000
SESSION_MS = (800, 2_000, 3_000)
STATIC_CHANCE = 0.3
ECHO_MS_MAX = 1_000


@dataclass(slots=True)
class _Group:
    name: str
    members: list[SimulatedMember] = field(default_factory=list)
    """Those that live."""
    runs: list[Handled] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    """Instance ids of static members that are gone, and may come back."""


class SimulatedGroups:
    """All groups over one topic."""

    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        cluster: SimulatedCluster,
        rng: random.Random,
        topic: str,
        write: Write,
    ) -> None:
        """Args: rng: draws everything; write: takes each line of the history."""
        self._scheduler = scheduler
        self._network = network
        self._cluster = cluster
        self._rng = rng
        self._topic = topic
        self._write = write
        self._started = 0
        self._next: Event | None = None
        self._stopped: dict[SimulatedMember, None] = {}
        self._members: dict[str, SimulatedMember] = {}
        self._groups = [_Group(f"group{number}") for number in range(rng.choice([1, 1, 2]))]
        self.story = Story(self._reads)
        self.judge = GroupJudge(self.story)
        self.faults = 0
        self.problems: list[str] = []
        """What members were told that nobody should be."""
        cluster.judged = self.judge.judged

    # --- storm and calm --------------------------------------------------------------------------

    def start(self) -> None:
        """The first members join, and fates are drawn until `stop`."""
        for group in self._groups:
            for _ in range(self._rng.randint(1, 3)):
                self._join(group)
        self._go_on()

    def stop(self) -> None:
        """No more fates: who was stopped goes on, and each group gets one more member."""
        if self._next is not None:
            self._next.cancel()
        for member in list(self._stopped):
            self._resume(member)
        for group in self._groups:
            self._join(group)
            for member in group.members:
                member.hangs = False

    def _go_on(self) -> None:
        wait_ms = self._rng.randint(PAUSE_MS_MIN, PAUSE_MS_MAX)
        self._next = self._scheduler.after(wait_ms, self._strike)

    def _strike(self) -> None:
        group = self._rng.choice(self._groups)
        living = self._living(group)
        fate = self._rng.choice(
            [
                self._kill,
                self._kill,
                self._leave,
                self._stop_one,
                self._believe_dead,
                self._intrude,
                self._echo,
                None,
            ]
        )
        if fate is not None and living and self._rng.random() < 0.6:
            self.faults += 1
            fate(group, self._rng.choice(living))
        elif len(living) < MEMBERS_MAX:
            self._join(group)
        self._go_on()

    # --- fates -----------------------------------------------------------------------------------

    def _join(self, group: _Group) -> None:
        self._started += 1
        name = f"m{self._started}"
        rng = random.Random(self._rng.getrandbits(64))  # noqa: S311 - a seed, not a secret
        instance_id = ""
        if self._rng.random() < STATIC_CHANCE:
            instance_id = group.away.pop() if group.away else f"i{self._started}"
        is_actor = self._rng.random() < 0.5
        role = Role(
            group.name,
            (self._topic,),
            instance_id,
            f"actor-{name}" if is_actor else name,
            self._rng.choice(["clients", *(node.name for node in self._cluster.nodes)]),
            self._rng.random() < 0.5,
            self._rng.choice(SESSION_MS),
            self._rng.choice(SESSION_MS),
        )
        member = SimulatedMember(
            name,
            role,
            self._scheduler,
            self._network,
            rng,
            self._write,
            self._owns,
            group.runs.append,
        )
        if is_actor:
            self._cluster.member_deaths.born(role.client_id, member.process)
        self._members[name] = member
        group.members.append(member)
        member.begin()

    def _living(self, group: _Group) -> list[SimulatedMember]:
        for member in [one for one in group.members if not one.process.alive]:
            self._bury(group, member)
        return group.members

    def _bury(self, group: _Group, member: SimulatedMember) -> None:
        group.members.remove(member)
        self.problems += [f"{member.name} was told {error!r}" for error in member.errors]
        if member.role.instance_id:
            group.away.append(member.role.instance_id)

    def _kill(self, group: _Group, member: SimulatedMember) -> None:
        del group
        self._stopped.pop(member, None)
        member.process.alive = False
        self._network.died(member.process)
        self._cluster.member_deaths.died(member.role.client_id)

    def _leave(self, group: _Group, member: SimulatedMember) -> None:
        del group
        if member not in self._stopped:
            member.leave()

    def _stop_one(self, group: _Group, member: SimulatedMember) -> None:
        if member in self._stopped:
            return
        member.process.paused = True
        self._stopped[member] = None
        wait_ms = self._rng.randint(PAUSE_MS_MIN, STOPPED_MS_MAX)
        dies = self._rng.random() < 0.5

        def end() -> None:
            if member in self._stopped and dies:
                self._kill(group, member)
            else:
                self._resume(member)

        self._scheduler.after(wait_ms, end)

    def _resume(self, member: SimulatedMember) -> None:
        if self._stopped.pop(member, member) is None:
            self._scheduler.resume(member.process)

    def _believe_dead(self, group: _Group, member: SimulatedMember) -> None:
        """Ray says so, the member cannot be reached, and it lives."""
        number = partition_of(group.name, COORDINATOR_PARTITIONS)
        for one in self._cluster.hosts.values():
            if one.groups is not None and number in one.groups.machines():
                suspect = partial(one.groups.suspect, group.name, member.name, 0)
                one.turner.guarded(suspect)
                one.turner.touch()

    def _intrude(self, group: _Group, member: SimulatedMember) -> None:
        owners = self.story.group(group.name).owners
        member.intrude([key for key, owner in owners.items() if owner != member.name])

    def _echo(self, group: _Group, member: SimulatedMember) -> None:
        del group
        member.echo(self._rng.randint(1, ECHO_MS_MAX))

    # --- what is so ------------------------------------------------------------------------------

    def _owns(self, group: str, member: str, key: PartitionKey) -> bool:
        return self.story.group(group).owners.get(key) == member

    def _reads(self, member_id: str, key: PartitionKey) -> bool:
        member = self._members.get(member_id)
        return member is not None and member.process.alive and member.reads(key)

    def unsettled(self, ends: Mapping[TopicPartition, int]) -> str:
        """Why some group has not come to rest yet; empty when all have.

        Args:
            ends: where each partition ends.
        """
        return next(
            (found for group in self._groups if (found := self._unsettled(group, ends))), ""
        )

    def _unsettled(self, group: _Group, ends: Mapping[TopicPartition, int]) -> str:
        number = partition_of(group.name, COORDINATOR_PARTITIONS)
        machines = [
            one.groups.machines().get(number)
            for one in self._cluster.hosts.values()
            if one.groups is not None
        ]
        machine = next((one for one in machines if one is not None), None)
        image = None if machine is None else machine.image.groups.get(group.name)
        if image is None:
            return f"nobody coordinates {group.name}"
        living = {one.name: one for one in self._living(group)}
        if set(image.members) != set(living):
            return f"members of {group.name} are {sorted(image.members)}, not {sorted(living)}"
        restless = [m for m in image.members.values() if state_of(image, m) != MemberState.STABLE]
        if restless:
            return f"{restless[0].member_id} of {group.name} is {state_of(image, restless[0])}"
        read = sorted(name for member in living.values() for name in member.owned())
        if read != sorted(ends):
            return f"{group.name} reads {read}"
        lag = {
            name: end - stored.offset
            for name, end in ends.items()
            for key, stored in image.offsets.items()
            if key[1] == name.partition and stored.offset != end
        }
        committed = {key[1] for key in image.offsets}
        missing = [name for name, end in ends.items() if end and name.partition not in committed]
        return f"{group.name} lags {lag}, {missing}" if lag or missing else ""

    def verdict(self, ends: Mapping[TopicPartition, int]) -> list[str]:
        """What was wrong with what members did, when all is over.

        Args:
            ends: where each partition ends.
        """
        found = list(self.problems)
        for group in self._groups:
            for member in group.members:
                found += [f"{member.name} was told {error!r}" for error in member.errors]
            runs = sorted(group.runs, key=lambda run: run.at_s)
            judged = judge_handled(runs, {name.partition: end for name, end in ends.items()})
            found += [f"I20: {group.name}: {problem}" for problem in judged.problems]
        return found
