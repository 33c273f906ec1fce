"""A whole cluster in one thread: machines, a controller, brokers, partition hosts.

Owns: starting and killing processes, and who notices a death. Refuses: choosing what goes wrong
(`testing.nemesis`), clients (`testing.simulated_clients`), judging (`testing.simulation`).

The classes are the real ones: `ControllerHost` on a real `Journal`, `PartitionHost` on real logs,
`BrokerMachine`. Only threads, disks, clocks and the network are simulated.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ray_stream.actors.controller_host import ControllerHost
from ray_stream.actors.group_control import GroupShell
from ray_stream.actors.group_host import GroupHost
from ray_stream.actors.metadata_log import open_metadata
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.errors import DataDirInUseError, RayStreamError
from ray_stream.log import directory, locks
from ray_stream.log.directory import Identity
from ray_stream.log.offline import read_marker
from ray_stream.log.repair import repair_partition
from ray_stream.log.storage import Lock
from ray_stream.metadata.commands import BrokerLost, PartitionServed
from ray_stream.metadata.journal import OPTIONS
from ray_stream.testing.network import Handler, Network
from ray_stream.testing.nodes import Node, Turner, Turning, one_by_one, take_partition_lock
from ray_stream.testing.scheduler import Process, Scheduler, VirtualClock
from ray_stream.testing.simulated_broker import ROOT, SimulatedBroker
from ray_stream.testing.simulated_coordinator import Deaths, SimulatedCoordinator
from ray_stream.testing.trace import Trace

DEATH_NOTICED_MS_MAX = 40
START_MS_MAX = 60
RETRY_MS = 200
CHECKPOINT_MS = 700
CONTROLLER_METHODS = (
    "metadata",
    "create_topic",
    "alter_topic",
    "delete_topic",
    "init_producer_id",
    "register_broker",
    "claim_leadership",
    "report_served",
    "confirm_deleted",
    "partition_repaired",
    "watch_assignment",
)


@dataclass(slots=True)
class HostProcess:
    """One partition actor."""

    node: Node
    process: Process
    turner: Turner
    host: PartitionHost
    control: PartitionControl
    groups: GroupHost | None = None
    """Of a coordinator."""


class SimulatedCluster:
    """Machines and processes by name."""

    def __init__(
        self,
        scheduler: Scheduler,
        network: Network,
        trace: Trace,
        rng: random.Random,
        nodes: int,
        make_host: Callable[..., PartitionHost] = PartitionHost,
        make_groups: Callable[..., GroupHost] = GroupHost,
    ) -> None:
        """Args: make_host, make_groups: the classes of hosts, for tests that plant a bug."""
        self.scheduler = scheduler
        self.network = network
        self.nodes = [Node(f"node{number}") for number in range(nodes)]
        self.hosts: dict[str, HostProcess] = {}
        self.brokers: dict[str, tuple[Process, SimulatedBroker]] = {}
        self.controller: tuple[Process, ControllerHost] | None = None
        self.deaths: list[str] = []
        """Why processes ended by an error of ours."""
        self._trace = trace
        self._rng = rng
        self.member_deaths = Deaths(scheduler, rng)
        self.judged: Callable[[HostProcess, dict[str, Handler]], dict[str, Handler]] | None = None
        """Puts a judge before the handlers of each coordinator."""
        self._make_host = make_host
        self._make_groups = make_groups
        self._metadata_root = ""
        self._controller_storage = self.nodes[0].storage
        self._controller_starts = 0

    def start(self) -> None:
        """Format the first machine's disk and bring everything up."""
        first = self.nodes[0]
        directory_id = f"{self._rng.getrandbits(128):032x}"
        identity = Identity(
            cluster_id=f"{self._rng.getrandbits(128):032x}",
            broker_id=0,
            directory_id=directory_id,
            host_id=first.name,
            metadata_directory_id=directory_id,
        )
        self._metadata_root = directory.make_directory(first.storage, ROOT, identity)
        self._start_controller(fresh=True)
        for node in self.nodes:
            self._start_broker(node)

    # --- deaths ----------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """`kill -9`: its events, locks and answers are gone; those who watch it are told later."""
        if not process.alive:
            return
        self._trace.add(self.scheduler.now_ms, process.name, "killed")
        process.alive = False
        self.network.died(process)
        self._forget(process)

    def lose_power(self, node: Node) -> None:
        """Every process of a machine dies, and its disk forgets; it boots again at once."""
        self._trace.add(self.scheduler.now_ms, node.name, "lost power")
        for process in self.processes_on(node):
            self.kill(process)
        node.lose_power(self._rng)

    def processes_on(self, node: Node) -> list[Process]:
        """The living processes of a machine."""
        found = [one.process for one in self.hosts.values() if one.node is node]
        if node.name in self.brokers:
            found.append(self.brokers[node.name][0])
        if self.controller is not None and node is self.nodes[0]:
            found.append(self.controller[0])
        return found

    def _die(self, process: Process, error: BaseException) -> None:
        self.deaths.append(f"{process.name}: {type(error).__name__}: {error}")
        self.kill(process)

    def _forget(self, process: Process) -> None:
        if process.name in self.hosts:
            self._forget_host(process.name)
        elif self.controller is not None and process is self.controller[0]:
            self._controller_storage.kill()
            self.controller = None
            self._later(lambda: self._start_controller(fresh=False))
        else:
            self._forget_broker(process)

    def _forget_host(self, name: str) -> None:
        dead = self.hosts.pop(name)
        dead.turner.storage.kill()

        def noticed() -> None:
            found = self.brokers.get(dead.node.name)
            if found is not None and found[0].paused:
                self._later(noticed)
            elif found is not None and found[0].alive:
                found[1].host_is_down(name)

        self._later(noticed)

    def _forget_broker(self, process: Process) -> None:
        node = next(node for node in self.nodes if node.name == process.node)
        _, broker = self.brokers.pop(node.name)
        broker.end()

        def noticed() -> None:
            if self.controller is not None and self.controller[0].paused:
                self._later(noticed)
                return
            self._report_lost(node)
            self._start_broker(node)

        self._later(noticed)

    def _report_lost(self, node: Node) -> None:
        if self.controller is None:
            return
        _, host = self.controller
        living = host.machine.liveness.on_node(node.name)
        if living is not None:
            host.broker_lost(BrokerLost(living.broker_id, living.broker_epoch), lambda _: None)

    # --- repairs ---------------------------------------------------------------------------------

    def repair(self) -> None:
        """`ray-stream repair` of every log that is marked as offline and not locked."""
        for node in self.nodes:
            for found in directory.scan(node.storage, ROOT):
                names = directory.list_partitions(node.storage, found.path)
                places = {
                    locks.partition_position(*one): directory.partition_name(*one) for one in names
                }
                places[locks.METADATA_POSITION] = directory.METADATA_NAME
                for position, name in places.items():
                    self._repair(node, found.path, position, name)

    def _repair(self, node: Node, root: str, position: int, name: str) -> None:
        storage, path = node.storage.another_process(), f"{root}/{name}"
        lock = None
        if read_marker(storage, path) is not None:
            lock = locks.try_lock(storage, root, position)
        if lock is None:
            return
        options = OPTIONS if name == directory.METADATA_NAME else replace(OPTIONS, topic=name)
        now_ms = VirtualClock(self.scheduler).now_ms()
        try:
            report = repair_partition(storage, path, options, boot_id=node.boot_id, now_ms=now_ms)
        except RayStreamError as error:
            self._trace.add(self.scheduler.now_ms, node.name, f"not repaired: {name}: {error}")
            return
        finally:
            lock.release()
        self._trace.add(self.scheduler.now_ms, node.name, f"repaired {name}: {report}")

    def failures(self, node: Node) -> dict[str, int]:
        """How many logs went offline in each living host of a machine."""
        return {name: one.host.failures for name, one in self.hosts.items() if one.node is node}

    def _later(self, call: Callable[[], None]) -> None:
        self.scheduler.after(self._rng.randint(1, DEATH_NOTICED_MS_MAX), call)

    # --- starts ----------------------------------------------------------------------------------

    def _turner(self, process: Process, node: Node) -> Turner:
        return Turner(self.scheduler, self._rng, process, node.storage.another_process(), self._die)

    def _start_controller(self, *, fresh: bool) -> None:
        node = self.nodes[0]
        if self.controller is not None:
            return
        self._controller_starts += 1
        process = Process(f"controller{self._controller_starts}", node.name)
        turner = self._turner(process, node)

        def take_lock() -> Lock:
            lock = locks.try_lock(turner.storage, self._metadata_root, locks.METADATA_POSITION)
            if lock is None:
                raise DataDirInUseError("the metadata log is locked")
            return lock

        try:
            opened = open_metadata(
                turner.storage,
                turner.clock,
                self._metadata_root,
                take_lock,
                boot_id=node.boot_id,
                fresh=fresh,
                directory_epochs=[],
            )
        except RayStreamError as error:
            self.deaths.append(f"{process.name}: {type(error).__name__}: {error}")
            turner.storage.kill()
            self.scheduler.after(RETRY_MS, lambda: self._start_controller(fresh=fresh))
            return
        host = ControllerHost(opened.journal, turner.clock, turner.sync)
        turner.drive(host)
        handlers: dict[str, Handler] = {name: getattr(host, name) for name in CONTROLLER_METHODS}
        self.controller = (process, host)
        self._controller_storage = turner.storage
        self.network.serve("controller", process, turner.entered(handlers))

    def _start_broker(self, node: Node) -> None:
        if node.name in self.brokers:
            return
        process = Process(f"broker-{node.name}", node.name)
        broker = SimulatedBroker(self.scheduler, self.network, node, process, self, self._rng)
        self.brokers[node.name] = (process, broker)
        self.scheduler.after(self._rng.randint(1, START_MS_MAX), broker.begin, process)

    def start_host(
        self, node: Node, host: str, ready: Callable[[], None], *, coordinates: bool
    ) -> None:
        """Start a partition actor, of groups or of records; `ready` when it answers."""
        process = Process(host, node.name)
        turner = self._turner(process, node)
        made = self._make_host(turner.clock, turner.sync)
        control = PartitionControl(
            made,
            turner.storage,
            turner.clock,
            boot_id=node.boot_id,
            interval_ms=CHECKPOINT_MS,
            locking=take_partition_lock,
            spread=one_by_one,
            recovery_bytes=0,
        )
        one = self.hosts[host] = HostProcess(node, process, turner, made, control)
        handlers: dict[str, Handler] = {
            "produce": made.produce,
            "fetch": made.fetch,
            "list_offsets": made.list_offsets,
            "prepare": control.prepare,
            "lead": control.lead,
            "alter": control.alter,
            "release": control.release,
        }
        shell: Turning = _Both(made, control)
        if coordinates:
            shell = self._coordinate(one, shell, handlers)
        turner.drive(shell)

        def up() -> None:
            self.network.serve(host, process, turner.entered(handlers))
            ready()

        self.scheduler.after(self._rng.randint(1, START_MS_MAX), up, process)

    def _coordinate(
        self, one: HostProcess, shell: Turning, handlers: dict[str, Handler]
    ) -> Turning:
        coordinator = SimulatedCoordinator(
            self.scheduler,
            self.network,
            one.turner,
            one.host,
            one.control,
            self.member_deaths,
            self._make_groups,
        )
        one.groups = coordinator.groups
        added = coordinator.handlers()
        handlers |= added if self.judged is None else self.judged(one, added)
        coordinator.look()
        return GroupShell(shell, coordinator.groups)

    def stop_host(self, host: str) -> None:
        """End a partition actor that has nothing to serve."""
        if host in self.hosts:
            self.kill(self.hosts[host].process)

    def end_broker(self, process: Process) -> None:
        """A broker process that was replaced for good ends itself."""
        self.kill(process)

    def living_hosts(self, node: Node) -> dict[str, list[PartitionServed]]:
        """Hosts that an earlier broker of the node left."""
        return {name: one.control.served() for name, one in self.hosts.items() if one.node is node}


class _Both:
    """A partition host and its control, driven as `actors.partition` does."""

    def __init__(self, host: PartitionHost, control: PartitionControl) -> None:
        self._host = host
        self._control = control

    def end_turn(self) -> None:
        self._host.end_turn()

    def on_time(self) -> None:
        self._host.expire()
        self._control.tick()

    def next_deadline_ms(self) -> int | None:
        due = self._control.next_deadline_ms()
        fetch = self._host.next_deadline_ms()
        return due if fetch is None else min(due, fetch)
