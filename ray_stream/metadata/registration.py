"""Brokers come and go: ids, fencing, directories that are served, made, refused or missing.

Owns: the decisions on `RegisterBroker` and `BrokerLost`. Refuses: who of a host's brokers serves
which directory (`adoption`), topics.

*Fencing.* Every registration gets a new broker epoch. It ends the earlier broker of the same
node; one that a newer process replaced is refused for good. It also ends every broker that is
entered as the owner of a directory which the newcomer reports as locked: a lock has one holder,
so that broker is gone and only nobody has said so yet. (Should the report be an old copy, the
living broker finds its epoch stale, registers again, and its own locks end the ghost.)

*Ids.* A process that registers again keeps its id. Otherwise it takes the lowest id for which a
directory was made that it has locked and that no living broker has; or has and serves nothing: it
took the id on sight, yields it, and registers again. Otherwise the lowest free id of a directory
that it sees; otherwise a new one.

*Fresh directories.* A broker that gets none to serve or acquire is told to make one, under an id
that is durable before it is said. Not while the host misses a directory that holds partitions: an
empty place where data was is most likely a disk that is not mounted. Missing is not empty; its
partitions have no leader until it is back, and the broker waits. Nothing is ever made *in place
of* a directory: a fresh one has a new id and takes only new partitions. An order that was never
seen made is not repeated to another process: it holds nothing, so it is forgotten.

*Strays.* A directory of this cluster that the log does not know is named in `refused` and not
served. One seen from two hosts at once is `DataDirSharedError`: two machines would write one log.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from ray_stream.errors import DataDirSharedError, InvalidArgumentError, StaleBrokerEpochError
from ray_stream.metadata.adoption import Candidate, adopt
from ray_stream.metadata.commands import (
    BrokerLost,
    BrokerRegistered,
    DirectoryReport,
    Done,
    NewDirectory,
    RegisterBroker,
)
from ray_stream.metadata.image import Image
from ray_stream.metadata.liveness import BrokersChanged, Liveness, Living
from ray_stream.metadata.records import BrokerNamed, DirectoryFound, DirectoryOrdered, Record
from ray_stream.metadata.resolution import Resolution


@dataclass(slots=True)
class _Seen:
    """What a registration reports, sorted out."""

    known: list[DirectoryReport] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def visible(self) -> list[str]:
        return [report.directory_id for report in self.known]

    @property
    def locked(self) -> list[str]:
        return [report.directory_id for report in self.known if report.locked]


def living(liveness: Liveness, broker_id: int, broker_epoch: int) -> Living:
    """The broker that says this is it; else `StaleBrokerEpochError`."""
    broker = liveness.brokers.get(broker_id)
    if broker is None or broker.broker_epoch != broker_epoch:
        now = "none" if broker is None else str(broker.broker_epoch)
        raise StaleBrokerEpochError(
            f"broker {broker_id} with epoch {broker_epoch} is not registered (epoch now: {now}): "
            "another process or controller took over; register again"
        )
    return broker


def register_broker(image: Image, liveness: Liveness, command: RegisterBroker) -> Resolution:
    """Take a broker in.

    Raises:
        StaleBrokerEpochError: a newer process took over the node.
        DataDirSharedError: a directory is seen from two hosts.
        InvalidArgumentError: no place for a partition actor.
    """
    _refuse_outright(liveness, command)
    seen = _sort_out(image, command)
    gone, replaced = _fenced(liveness, command, seen)
    others = {id_: broker for id_, broker in liveness.brokers.items() if id_ not in gone}
    _refuse_shared(others, command, seen)
    earlier = liveness.on_node(command.node_id)
    same = earlier if earlier and earlier.incarnation == command.incarnation else None
    broker_id = same.broker_id if same else _choose_id(image, liveness, others, seen)
    if others.pop(broker_id, None) is not None:
        gone.append(broker_id)
    broker = Living(
        broker_id,
        liveness.next_number,
        command.node_id,
        command.host_id,
        command.incarnation,
        command.actor_name,
        command.partition_actors_max,
        seen.visible,
        make=[new for new in same.make if new.directory_id not in seen.visible] if same else (),
        served=same.served if same else {},
    )
    plan = _Plan(image, liveness, {**others, broker_id: broker})
    plan.settle(command.host_id, newcomer=broker, locked=seen.locked)
    for host_id in _hosts_of(liveness, gone, but=command.host_id):
        plan.settle(host_id)
    return Resolution(
        [*_news(image, broker), *plan.records],
        plan.answer(broker, seen.refused),
        [plan.sign(broker, gone, replaced)],
    )


def _refuse_outright(liveness: Liveness, command: RegisterBroker) -> None:
    if command.partition_actors_max < 1:
        raise InvalidArgumentError(
            f"partition_actors_max={command.partition_actors_max}: 1 or more is valid"
        )
    if command.incarnation in liveness.replaced:
        raise StaleBrokerEpochError(
            f"the broker process {command.incarnation} of node {command.node_id} was replaced by a "
            "newer one; end this process"
        )


def _news(image: Image, broker: Living) -> list[Record]:
    """What the log does not know yet: the broker's id, and where directories are."""
    records: list[Record] = []
    if broker.broker_id >= image.next_broker_id:
        records.append(BrokerNamed(broker.broker_id))
    for directory_id in broker.visible:
        directory = image.directories[directory_id]
        if not directory.found or directory.host_id != broker.host_id:
            records.append(DirectoryFound(directory_id, broker.host_id))
    return records


def lose_broker(image: Image, liveness: Liveness, command: BrokerLost) -> Resolution:
    """A broker is dead: others of its host adopt what it served."""
    broker = living(liveness, command.broker_id, command.broker_epoch)
    others = {id_: one for id_, one in liveness.brokers.items() if one is not broker}
    plan = _Plan(image, liveness, others)
    plan.settle(broker.host_id)
    return Resolution(plan.records, Done(), [plan.sign(None, [broker.broker_id], [])])


def _sort_out(image: Image, command: RegisterBroker) -> _Seen:
    seen = _Seen()
    times: dict[str, int] = {}
    for report in command.directories:
        times[report.directory_id] = times.get(report.directory_id, 0) + 1
    for report in sorted(command.directories, key=lambda one: one.directory_id):
        directory = image.directories.get(report.directory_id)
        if times[report.directory_id] > 1:
            reason = "it is there more than once, and a copy cannot be told from the original"
        elif directory is None:
            reason = (
                "a stray: it says that it is this cluster's, and the metadata log has no word of it"
            )
        elif directory.broker_id != report.broker_id:
            reason = (
                f"its identity names broker {report.broker_id}, the metadata log says "
                f"{directory.broker_id}"
            )
        elif report.has_metadata and report.directory_id != image.metadata_directory_id:
            reason = f"it holds a second metadata log beside that of {image.metadata_directory_id}"
        else:
            seen.known.append(report)
            continue
        seen.refused.append((report.directory_id, reason))
    return seen


def _fenced(
    liveness: Liveness, command: RegisterBroker, seen: _Seen
) -> tuple[list[int], list[str]]:
    """Broker ids that this registration ends, and incarnations that may never come back."""
    gone: dict[int, None] = {}
    replaced = []
    earlier = liveness.on_node(command.node_id)
    if earlier is not None:
        gone[earlier.broker_id] = None
        if earlier.incarnation != command.incarnation:
            replaced.append(earlier.incarnation)
    for directory_id in seen.locked:
        owner = liveness.owner(directory_id)
        if owner is not None and owner.host_id == command.host_id:
            gone[owner.broker_id] = None
    return sorted(gone), replaced


def _refuse_shared(others: dict[int, Living], command: RegisterBroker, seen: _Seen) -> None:
    for other in others.values():
        if other.host_id == command.host_id:
            continue
        shared = [d for d in seen.visible if d in other.visible]
        if shared:
            raise DataDirSharedError(
                f"directory {shared[0]} is seen from two hosts: {other.host_id} (node "
                f"{other.node_id}) and {command.host_id} (node {command.node_id}). It lies on a "
                "shared file system; give each host a data_dir of its own disk"
            )


def _choose_id(image: Image, liveness: Liveness, others: dict[int, Living], seen: _Seen) -> int:
    """An id that is free, or that its present holder has to yield."""
    locked = {image.directories[directory_id].broker_id for directory_id in seen.locked}
    visible = {image.directories[directory_id].broker_id for directory_id in seen.visible}
    idle = others.keys() - frozenset(liveness.owners.values())
    for choice in (locked - others.keys(), locked & idle, visible - others.keys()):
        if choice:
            return min(choice)
    return image.next_broker_id


def _hosts_of(liveness: Liveness, gone: Sequence[int], but: str) -> list[str]:
    hosts = dict.fromkeys(liveness.brokers[broker_id].host_id for broker_id in gone)
    return [host_id for host_id in hosts if host_id != but]


class _Plan:
    """Who serves what on some hosts, once a broker has come or gone."""

    def __init__(self, image: Image, liveness: Liveness, brokers: dict[int, Living]) -> None:
        """Args: brokers: those that live then."""
        self._image = image
        self._liveness = liveness
        self._brokers = brokers
        self._hosts: list[str] = []
        self.owners: dict[str, int] = {}
        self.targets: dict[str, int] = {}
        self.make: dict[int, list[NewDirectory]] = {}
        self.records: list[Record] = []

    def settle(
        self, host_id: str, newcomer: Living | None = None, locked: Sequence[str] = ()
    ) -> None:
        """Plan one host; `locked` are the locks that the newcomer reports."""
        self._hosts.append(host_id)
        here = sorted(
            (broker for broker in self._brokers.values() if broker.host_id == host_id),
            key=lambda broker: broker.broker_id,
        )
        holders = {}
        for directory_id, owner in self._liveness.owners.items():
            known = self._brokers.get(owner)
            if known is not None and known is not newcomer and known.host_id == host_id:
                holders[directory_id] = owner
        if newcomer is not None:
            holders.update(dict.fromkeys(locked, newcomer.broker_id))
        homes = {id_: directory.broker_id for id_, directory in self._image.directories.items()}
        targets = adopt([Candidate(one.broker_id, one.visible) for one in here], homes, holders)
        self.targets.update(targets)
        self.owners.update({d: to for d, to in targets.items() if holders.get(d) == to})
        if not self._misses_data(host_id, targets):
            served = frozenset(targets.values())
            for broker in here:
                if broker.broker_id not in served and not broker.make:
                    self._order_directory(broker)

    def _misses_data(self, host_id: str, targets: dict[str, int]) -> bool:
        return any(
            directory.host_id == host_id and directory.slots and directory_id not in targets
            for directory_id, directory in self._image.directories.items()
        )

    def _order_directory(self, broker: Living) -> None:
        # Not random, so that a replayed run is the same run; unique, because the log never forgets
        # a directory and no process has another's incarnation.
        known = len(self._image.directories)
        name = f"{self._image.cluster_id}/{known}/{broker.broker_id}/{broker.incarnation}"
        directory_id = uuid.uuid5(uuid.NAMESPACE_OID, name).hex
        self.records.append(DirectoryOrdered(directory_id, broker.broker_id, broker.host_id))
        self.make[broker.broker_id] = [NewDirectory(directory_id, broker.broker_id)]

    def answer(self, broker: Living, refused: list[tuple[str, str]]) -> BrokerRegistered:
        """What the newcomer is told."""
        mine = sorted(d for d, target in self.targets.items() if target == broker.broker_id)
        return BrokerRegistered(
            self._image.cluster_id,
            self._liveness.controller_epoch,
            broker.broker_id,
            broker.broker_epoch,
            owned=[directory_id for directory_id in mine if directory_id in self.owners],
            make=list(self.make.get(broker.broker_id, broker.make)),
            acquire=[directory_id for directory_id in mine if directory_id not in self.owners],
            refused=refused,
        )

    def sign(
        self, joined: Living | None, gone: Sequence[int], replaced: Sequence[str]
    ) -> BrokersChanged:
        """All of it, to be noticed."""
        unseen = dict.fromkeys(
            directory_id
            for broker_id in gone
            for directory_id in self._liveness.brokers[broker_id].visible
            if directory_id not in self.targets
        )
        return BrokersChanged(
            self._hosts, joined, gone, replaced, self.owners, self.targets, list(unseen), self.make
        )
