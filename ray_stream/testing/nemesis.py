"""What goes wrong in a simulated run, and when.

Owns: drawing faults from the seed. Refuses: judging: `testing.simulation` heals before it does.

Every few hundred milliseconds one fault, or none; each is one that the promises must survive: a
killed process, a new leader epoch on a living host, a power loss of a machine, bad weather in the
network, a cut link, a full disk.
"""

import random

from ray_stream.testing.network import Network, Weather
from ray_stream.testing.scheduler import Event, Scheduler
from ray_stream.testing.simulated_cluster import SimulatedCluster

PAUSE_MS_MIN, PAUSE_MS_MAX = 80, 700
FULL_MS_MAX = 600
CUT_MS_MAX = 1_500


class Nemesis:
    """Draws faults until it is stopped."""

    def __init__(
        self, scheduler: Scheduler, network: Network, cluster: SimulatedCluster, rng: random.Random
    ) -> None:
        """Args: rng: draws what and when."""
        self._scheduler = scheduler
        self._network = network
        self._cluster = cluster
        self._rng = rng
        self._next: Event | None = None
        self.faults = 0

    def start(self) -> None:
        """Go on until `stop`."""
        wait_ms = self._rng.randint(PAUSE_MS_MIN, PAUSE_MS_MAX)
        self._next = self._scheduler.after(wait_ms, self._strike)

    def stop(self) -> None:
        """No more faults; the network and the disks are whole again."""
        if self._next is not None:
            self._next.cancel()
        self._network.heal()
        for node in self._cluster.nodes:
            node.storage.faults.heal()

    def _strike(self) -> None:
        chosen = self._rng.choice(
            [
                self._kill,
                self._kill,
                self._lead_anew,
                self._power,
                self._weather,
                self._cut,
                self._fill,
                None,
            ]
        )
        if chosen is not None:
            self.faults += 1
            chosen()
        self.start()

    def _kill(self) -> None:
        node = self._rng.choice(self._cluster.nodes)
        processes = self._cluster.processes_on(node)
        if processes:
            self._cluster.kill(self._rng.choice(processes))

    def _lead_anew(self) -> None:
        hosts = sorted(self._cluster.hosts)
        if not hosts:
            return
        one = self._cluster.hosts[self._rng.choice(hosts)]
        found = self._cluster.brokers.get(one.node.name)
        if found is not None:
            found[1].lead_anew(one.process.name, list(one.host.partitions))

    def _power(self) -> None:
        self._cluster.lose_power(self._rng.choice(self._cluster.nodes))

    def _weather(self) -> None:
        self._network.weather = Weather(
            delay_ms_max=self._rng.choice([1, 3, 20]),
            loss=self._rng.choice([0.0, 0.02, 0.2]),
            repeat=self._rng.choice([0.0, 0.02, 0.2]),
            slow=self._rng.choice([0.0, 0.02]),
        )

    def _cut(self) -> None:
        places = ["clients", *(node.name for node in self._cluster.nodes)]
        one, other = self._rng.sample(places, 2)
        self._network.cut(one, other, both_ways=self._rng.random() < 0.5)
        self._scheduler.after(self._rng.randint(50, CUT_MS_MAX), self._network.heal)

    def _fill(self) -> None:
        storage = self._rng.choice(self._cluster.nodes).storage
        storage.faults.capacity_bytes = storage.disk.used_bytes() + self._rng.randint(0, 2_000)
        self._scheduler.after(self._rng.randint(50, FULL_MS_MAX), storage.faults.heal)
