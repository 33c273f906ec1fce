"""A simulated group coordinator: the real `GroupHost` on real logs, in a partition actor's process.

Owns: what `actors.coordinator` does with Ray, done with events: looks at the controller's metadata,
and members whose death is known. Refuses: deciding.
"""

import random
from collections.abc import Callable
from typing import Any

from ray_stream.actors.group_control import GroupControl, seen_topics
from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.rpc.messages import MetadataRequest, MetadataResponse
from ray_stream.testing.network import Handler, Network
from ray_stream.testing.nodes import Turner
from ray_stream.testing.scheduler import Event, Process, Scheduler

LOOK_MS = 1_000
ANSWER_MS = 3_000
GRACE_MS = 0
NOTICED_MS_MAX = 60
SNAPSHOT_RECORDS = 25
"""Few, so that logs are cut and successors begin at snapshots in every run."""


class Deaths:
    """Who hears of the death of a member that is an actor."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        """Args: rng: draws how long it takes."""
        self._scheduler = scheduler
        self._rng = rng
        self._processes: dict[str, Process] = {}
        self._waiting: dict[str, list[tuple[Process, Callable[[], None]]]] = {}

    def born(self, client_id: str, process: Process) -> None:
        """There is such an actor; members that are none are never told of."""
        self._processes[client_id] = process

    def died(self, client_id: str) -> None:
        """It is dead: tell who waits for that, if they live."""
        for waiting in self._waiting.pop(client_id, []):
            self._tell(*waiting)

    def tell(self, client_id: str, who: Process, call: Callable[[], None]) -> None:
        """Have `call` made as an event of `who` when the actor is dead."""
        process = self._processes.get(client_id)
        if process is None:
            return
        if process.alive:
            self._waiting.setdefault(client_id, []).append((who, call))
        else:
            self._tell(who, call)

    def _tell(self, who: Process, call: Callable[[], None]) -> None:
        self._scheduler.after(self._rng.randint(1, NOTICED_MS_MAX), call, who)


class SimulatedCoordinator:
    """One coordinator actor."""

    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        turner: Turner,
        host: PartitionHost,
        control: PartitionControl,
        deaths: Deaths,
        make_groups: Callable[..., GroupHost] = GroupHost,
    ) -> None:
        """Args: make_groups: the class of group hosts, for tests that plant a bug."""
        self._scheduler = scheduler
        self._network = network
        self._turner = turner
        self._deaths = deaths
        self.groups = make_groups(
            host,
            turner.storage,
            turner.clock,
            want_metadata=self._want,
            joined=self._joined,
            snapshot_records=SNAPSHOT_RECORDS,
        )
        self.control = GroupControl(control, self.groups)
        self._seen = -1
        self._wanted = False
        self._looking = False
        self._looks = 0
        self._next: Event | None = None
        self._looked_after: dict[tuple[str, str], None] = {}

    def handlers(self) -> dict[str, Handler]:
        """What it answers, beyond what any partition actor does."""
        ask = self.groups.ask
        return {
            "lead": self.control.lead,
            "release": self.control.release,
            "heartbeat": self.groups.heartbeat,
            "commit_offsets": ask,
            "fetch_offsets": ask,
            "describe_group": ask,
            "list_groups": self.groups.list_groups,
        }

    # --- the controller --------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the controller's metadata, again and again from now on."""
        self._looking = True
        wanted, self._wanted = self._wanted, False
        self._looks += 1
        number = self._looks
        process = self._turner.process

        def answered(answer: Any) -> None:
            if number == self._looks and self._looking:
                self._take(answer, wanted=wanted)

        def give_up() -> None:
            if number == self._looks and self._looking:
                self._rest()

        request = MetadataRequest(None if wanted else [])
        self._network.call(process, "controller", "metadata", request, answered)
        self._scheduler.after(ANSWER_MS, give_up, process)

    def _take(self, answer: Any, *, wanted: bool) -> None:
        if isinstance(answer, MetadataResponse):
            if wanted:
                self._seen = answer.version
                topics = seen_topics(answer)
                self._turner.guarded(lambda: self.groups.show(answer.version, topics))
                self._turner.touch()
            elif answer.version != self._seen:
                self._wanted = True
        self._rest()

    def _rest(self) -> None:
        self._looking = False
        self._look_in(0 if self._wanted else LOOK_MS)

    def _want(self) -> None:
        self._wanted = True
        if not self._looking:
            self._look_in(0)

    def _look_in(self, wait_ms: int) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self._scheduler.after(wait_ms, self.look, self._turner.process)

    # --- members that are actors -----------------------------------------------------------------

    def _joined(self, group_id: str, member_id: str, client_id: str) -> None:
        def suspect() -> None:
            self._turner.guarded(lambda: self.groups.suspect(group_id, member_id, GRACE_MS))
            self._turner.touch()

        if (group_id, member_id) not in self._looked_after:
            self._looked_after[group_id, member_id] = None
            self._deaths.tell(client_id, self._turner.process, suspect)
