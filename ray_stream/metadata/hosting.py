"""Which partition actor of a node serves what: the broker's mind, `step(event, now_ms) -> effects`.

Owns: the difference between what the controller assigned and what the node's hosts serve, and the
next thing to do about it. Refuses: spawning, calling, locking; its shell performs the effects and
feeds the results back as events.

A slot is a place for one partition actor ("host"); every start of one has a new name. A partition
comes up in three steps, each confirmed before the next: prepared by its host (lock, recovery),
claimed from the controller (a new leader epoch, durable there), led by its host. A host has at most
one operation under way, so its answers come in order; an answer of an earlier host of the slot
names that host and is dropped.

The shared slots of a node, which placement numbers from 0, are kept warm: each gets a host before
anything is placed on it, and keeps it when nothing is left. So a first topic waits for no process.
Warm hosts are started one at a time, while nothing else is going on, and one that dies idle again
and again is waited for longer each time.
"""

import sys
from dataclasses import dataclass, field
from enum import Enum

from ray_stream.metadata.commands import (
    AssignedPartition,
    PartitionKey,
    PartitionServed,
)
from ray_stream.metadata.hosting_events import (
    Alter,
    Assigned,
    Claim,
    Claimed,
    Described,
    Effect,
    Event,
    Failed,
    HostDown,
    HostUp,
    Lead,
    Led,
    Prepare,
    Prepared,
    Release,
    Released,
    Report,
    ReportDeleted,
    Stale,
    StartHost,
    StopHost,
    Tick,
    Unreported,
)

__all__ = [
    "PREPARE_MAX",
    "RETRY_MS",
    "RETRY_OFFLINE_MS",
    "WARM_PAUSE_MS_MAX",
    "Alter",
    "Assigned",
    "BrokerMachine",
    "Claim",
    "Claimed",
    "Described",
    "Effect",
    "Event",
    "Failed",
    "HostDown",
    "HostUp",
    "Lead",
    "Led",
    "Prepare",
    "Prepared",
    "Release",
    "Released",
    "Report",
    "ReportDeleted",
    "Stage",
    "Stale",
    "StartHost",
    "StopHost",
    "Tick",
    "Unreported",
]

RETRY_MS = 200
RETRY_OFFLINE_MS = 1_000
DELETING_SLOT = "0"
"""Removes files where no partition is left that would need a host."""
WARM_PAUSE_MS_MAX = 60_000
"""Between two starts of an idle host that dies again and again, and how old one gets that counts
as sound."""
PREPARE_MAX = 256
"""Partitions opened in one go: the first of thousands are served while the last are opened."""


class Stage(Enum):
    """How far a partition has come on its host."""

    ABSENT = 0
    PREPARED = 1
    CLAIMED = 2
    SERVED = 3
    OFFLINE = 4


@dataclass(slots=True)
class _Partition:
    stage: Stage = Stage.ABSENT
    leader_epoch: int = -1
    config_version: int = -1
    retry_at_ms: int = 0


@dataclass(slots=True)
class _Slot:
    """One place for a partition actor. `host` is empty while none was asked for."""

    name: str
    host: str = ""
    up: bool = False
    busy: bool = False
    retry_at_ms: int = 0
    delete_at_ms: int = 0
    """When to ask again for the removal of what could not be removed."""
    deletes: int = 0
    """How many partitions it was asked to remove last."""
    report_at_ms: int | None = None
    """When to report again what is served; None: the last report was heard."""
    up_at_ms: int = 0
    warm_at_ms: int = 0
    """When it may get a host that nothing is placed on."""
    warm_pause_ms: int = 0
    """What was waited for such a host last."""
    partitions: dict[PartitionKey, _Partition] = field(default_factory=dict)


class BrokerMachine:
    """One broker's plan for its partition actors."""

    def __init__(self, prefix: str, incarnation: str, *, warm_slots: int) -> None:
        """Make the plan of a broker that has no host yet.

        Args:
            prefix: of every host's name.
            incarnation: unique for this start of the broker.
            warm_slots: the node's `partition_actors_max`: so many slots always have a host.
        """
        self._warm = [str(number) for number in range(warm_slots)]
        self._prefix = prefix
        self._incarnation = incarnation
        self._hosts_started = 0
        self._claims = 0
        self._slots: dict[str, _Slot] = {}
        self._wanted: dict[str, dict[PartitionKey, AssignedPartition]] = {}
        self._delete: dict[PartitionKey, str] = {}
        self._directories: dict[PartitionKey, str] = {}
        self.version = -1

    def step(self, event: Event, now_ms: int) -> list[Effect]:
        """Take in what happened; return what to do. Effects may be performed concurrently."""
        effects: list[Effect] = []
        match event:
            case Assigned():
                self._take_assignment(event)
            case HostUp():
                effects += self._host_up(event, now_ms)
            case HostDown():
                self._host_down(event.host, now_ms)
            case Described():
                effects += self._described(event, now_ms)
            case Stale():
                self._drop_stale(event)
            case Unreported():
                slot = self._slot_of(event.host)
                if slot is not None:
                    slot.report_at_ms = now_ms + RETRY_MS
            case Tick():
                pass
            case _:
                effects += self._answered(event, now_ms)
        return effects + self._plan(now_ms)

    def slot_in(self, host: str) -> str:
        """The slot for which a host of that name was started, by any incarnation."""
        return host.removeprefix(self._prefix).rsplit(".", maxsplit=2)[0]

    def serves(self, directory_id: str) -> bool:
        """Whether a host may still have a partition of that directory open."""
        return any(self._directories.get(key) == directory_id for key in self._open_partitions())

    def hosts(self) -> list[str]:
        """Names of the hosts that were asked for and not seen dead."""
        return [slot.host for slot in self._slots.values() if slot.host]

    def reports(self) -> list[Effect]:
        """Everything served, again: a controller that was replaced has forgotten it."""
        return [
            Report(slot.host, served)
            for slot in self._slots.values()
            if slot.up and (served := self._served(slot))
        ]

    # --- events ------------------------------------------------------------------------------

    def _take_assignment(self, event: Assigned) -> None:
        ready = frozenset(event.ready)
        self.version = event.assignment.version
        self._wanted = {}
        open_partitions = self._open_partitions()
        self._directories = {
            key: place for key, place in self._directories.items() if key in open_partitions
        }
        for wanted in event.assignment.partitions:
            if wanted.directory_id in ready and not wanted.offline_reason:
                key = (wanted.topic_id, wanted.partition)
                self._wanted.setdefault(wanted.slot, {})[key] = wanted
                self._directories[key] = wanted.directory_id
        self._delete = {
            (topic_id, partition): directory
            for topic_id, partition, directory in event.assignment.delete
            if directory in ready
        }
        names = [*self._wanted]
        if self._delete and not names:
            names = [DELETING_SLOT]
        for name in names + self._warm:
            self._slots.setdefault(name, _Slot(name))

    def _host_up(self, event: HostUp, now_ms: int) -> list[Effect]:
        slot = self._slots.setdefault(event.slot, _Slot(event.slot))
        if slot.host and slot.host != event.host:
            return [StopHost(event.host)]
        slot.host, slot.up, slot.busy, slot.up_at_ms = event.host, True, False, now_ms
        slot.partitions = {
            (served.topic_id, served.partition): _Partition(
                Stage.OFFLINE if served.offline_reason else Stage.SERVED,
                served.leader_epoch,
                served.config_version,
            )
            for served in event.served
        }
        return [Report(slot.host, list(event.served))] if event.served else []

    def _host_down(self, host: str, now_ms: int) -> None:
        slot = self._slot_of(host)
        if slot is None:
            return
        quickly_again = slot.up
        is_sound = slot.up and now_ms - slot.up_at_ms >= WARM_PAUSE_MS_MAX
        pause_ms = RETRY_MS if is_sound else max(RETRY_MS, 2 * slot.warm_pause_ms)
        slot.warm_pause_ms = min(pause_ms, WARM_PAUSE_MS_MAX)
        slot.warm_at_ms = now_ms + slot.warm_pause_ms
        slot.host, slot.up, slot.busy, slot.partitions = "", False, False, {}
        slot.report_at_ms = None
        slot.retry_at_ms = now_ms if quickly_again else now_ms + RETRY_MS

    def _answered(
        self, event: Prepared | Claimed | Led | Released | Failed, now_ms: int
    ) -> list[Effect]:
        slot = self._slot_of(event.host)
        if slot is None:
            return []
        slot.busy = False
        match event:
            case Prepared():
                return self._prepared(slot, event, now_ms)
            case Claimed():
                for key, leader_epoch in zip(event.keys, event.leader_epochs, strict=True):
                    slot.partitions[key] = _Partition(Stage.CLAIMED, leader_epoch)
            case Led():
                return self._led(slot, event, now_ms)
            case Released():
                return self._released(slot, event, now_ms)
            case Failed():
                slot.retry_at_ms = now_ms + RETRY_MS
                slot.delete_at_ms = now_ms + RETRY_OFFLINE_MS  # the rest may go on before
        return []

    def _released(self, slot: _Slot, event: Released, now_ms: int) -> list[Effect]:
        for key in event.keys:
            slot.partitions.pop(key, None)
        if not event.deleted:
            return []
        for key in event.keys:
            self._delete.pop(key, None)
        if len(event.keys) < slot.deletes:
            slot.delete_at_ms = now_ms + RETRY_OFFLINE_MS
        return [ReportDeleted(list(event.keys))] if event.keys else []

    def _prepared(self, slot: _Slot, event: Prepared, now_ms: int) -> list[Effect]:
        offline = []
        for topic_id, number, reason in event.results:
            key = (sys.intern(topic_id), number)
            state = slot.partitions.setdefault(key, _Partition())
            state.stage = Stage.OFFLINE if reason else Stage.PREPARED
            if reason:
                state.retry_at_ms = now_ms + RETRY_OFFLINE_MS
                offline.append(PartitionServed(topic_id, number, -1, -1, reason))
        return [Report(slot.host, offline)] if offline else []

    def _led(self, slot: _Slot, event: Led, now_ms: int) -> list[Effect]:
        for served in event.served:
            stage = Stage.OFFLINE if served.offline_reason else Stage.SERVED
            slot.partitions[served.topic_id, served.partition] = _Partition(
                stage, served.leader_epoch, served.config_version, now_ms + RETRY_OFFLINE_MS
            )
        return [Report(slot.host, list(event.served))] if event.served else []

    def _described(self, event: Described, now_ms: int) -> list[Effect]:
        """Should the report be lost, the next one must not call served what is offline."""
        slot = self._slot_of(event.host)
        if slot is None:
            return []
        for served in event.served:
            state = slot.partitions.get((served.topic_id, served.partition))
            if served.offline_reason and state is not None and state.stage is Stage.SERVED:
                state.stage, state.retry_at_ms = Stage.OFFLINE, now_ms + RETRY_OFFLINE_MS
        return [Report(slot.host, list(event.served))]

    def _drop_stale(self, event: Stale) -> None:
        slot = self._slot_of(event.host)
        if slot is None:
            return
        for key in event.keys:
            if (state := slot.partitions.get(key)) is not None:
                state.stage = Stage.PREPARED

    # --- the plan --------------------------------------------------------------------------------

    def _plan(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if self.version < 0:
            # Hosts that an earlier broker left are adopted before it is known what they are for.
            return effects
        for slot in self._slots.values():
            if slot.report_at_ms is not None and now_ms >= slot.report_at_ms:
                slot.report_at_ms = None
                effects.append(Report(slot.host, self._served(slot)))
            effect = self._next_for(slot, now_ms)
            if effect is not None:
                effects.append(effect)
        effects += self._start_warm(now_ms)
        self._drop_empty_slots()
        return effects

    def _start_warm(self, now_ms: int) -> list[Effect]:
        """The next host that nothing is placed on yet: one at a time, behind all other work."""
        shared = [slot for slot in self._slots.values() if slot.host and slot.name.isdecimal()]
        if len(shared) >= len(self._warm) or any(slot.busy for slot in self._slots.values()):
            return []
        for name in self._warm:
            slot = self._slots[name]
            if not slot.host and now_ms >= slot.warm_at_ms:
                return [self._start_host(slot)]
        return []

    def _start_host(self, slot: _Slot) -> Effect:
        self._hosts_started += 1
        count = self._hosts_started
        slot.host = f"{self._prefix}{slot.name}.{self._incarnation}.{count}"
        slot.busy = True
        return StartHost(slot.name, slot.host)

    def _next_for(self, slot: _Slot, now_ms: int) -> Effect | None:
        if slot.busy or now_ms < slot.retry_at_ms:
            return None
        wanted = self._wanted.get(slot.name, {})
        if not slot.host:
            if not wanted and not self._must_delete_for(slot):
                return None
            return self._start_host(slot)
        effect = self._operation(slot, wanted, now_ms)
        slot.busy = effect is not None
        idle = not (wanted or slot.partitions or self._must_delete_for(slot))
        if effect is None and idle and slot.name not in self._warm:
            effect = StopHost(slot.host)
            slot.host, slot.up = "", False
        return effect

    def _operation(
        self, slot: _Slot, wanted: dict[PartitionKey, AssignedPartition], now_ms: int
    ) -> Effect | None:
        gone = [key for key in slot.partitions if key not in wanted]
        delete = [(key[0], key[1], self._delete[key]) for key in gone if key in self._delete]
        delete += self._must_delete_for(slot)
        if delete and now_ms < slot.delete_at_ms:
            delete, gone = [], [key for key in gone if key not in self._delete]
        if delete:
            slot.deletes = len(delete)
            return Release(
                slot.host, [(topic_id, number) for topic_id, number, _ in delete], delete
            )
        if gone:
            return Release(slot.host, gone, [])
        claimed = [key for key in wanted if self._stage(slot, key) is Stage.CLAIMED]
        if claimed:
            epochs = [(*key, slot.partitions[key].leader_epoch) for key in claimed]
            return Lead(slot.host, epochs)
        prepared = [key for key in wanted if self._stage(slot, key) is Stage.PREPARED]
        if prepared:
            self._claims += 1
            return Claim(slot.host, prepared, self._claims)
        absent = [one for key, one in wanted.items() if self._is_due(slot, key, now_ms)]
        if absent:
            return Prepare(slot.host, absent[:PREPARE_MAX])
        stale = [one for key, one in wanted.items() if self._is_stale(slot, key, one)]
        return Alter(slot.host, stale) if stale else None

    def _stage(self, slot: _Slot, key: PartitionKey) -> Stage:
        state = slot.partitions.get(key)
        return state.stage if state else Stage.ABSENT

    def _is_due(self, slot: _Slot, key: PartitionKey, now_ms: int) -> bool:
        state = slot.partitions.get(key)
        if state is None or state.stage is Stage.ABSENT:
            return True
        return state.stage is Stage.OFFLINE and now_ms >= state.retry_at_ms

    def _is_stale(self, slot: _Slot, key: PartitionKey, wanted: AssignedPartition) -> bool:
        state = slot.partitions[key]
        return state.stage is Stage.SERVED and state.config_version != wanted.config_version

    def _must_delete_for(self, slot: _Slot) -> list[tuple[str, int, str]]:
        """Files of deleted partitions that no host has open: the first slot removes them."""
        if not self._delete or slot is not next(iter(self._slots.values())):
            return []
        open_somewhere = {
            key for other in self._slots.values() for key in other.partitions if key in self._delete
        }
        return [
            (key[0], key[1], directory)
            for key, directory in self._delete.items()
            if key not in open_somewhere
        ]

    def _drop_empty_slots(self) -> None:
        if not self._delete:
            needed = {*self._wanted, *self._warm}
            for name in [n for n, s in self._slots.items() if not s.host and n not in needed]:
                del self._slots[name]

    def _served(self, slot: _Slot) -> list[PartitionServed]:
        return [
            PartitionServed(key[0], key[1], state.leader_epoch, state.config_version)
            for key, state in slot.partitions.items()
            if state.stage is Stage.SERVED
        ]

    def _open_partitions(self) -> dict[PartitionKey, None]:
        return {key: None for slot in self._slots.values() for key in slot.partitions}

    def _slot_of(self, host: str) -> _Slot | None:
        return next((slot for slot in self._slots.values() if slot.host == host), None)
