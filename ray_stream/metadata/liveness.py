"""Who lives, who holds which directory, who serves what: true now, and not durable.

Owns: the state that a controller forgets with its process; brokers register and report again with
the next one. Refuses: facts (`image`), decisions.

It changes only by signs, which `decide` returns beside its facts and `MetadataMachine.notice`
applies. No epoch here repeats: broker epochs and producer ids are controller epoch << 32 |
counter, and a controller epoch is durable and claimed once, so a counter that starts at 0 again
under the next controller cannot meet an earlier value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_stream.errors import InvariantViolationError
from ray_stream.metadata.commands import NewDirectory, PartitionKey

COUNTER_BITS = 32


@dataclass(slots=True)
class Served:
    """What a host said last about one partition."""

    host: str
    leader_epoch: int
    config_version: int
    offline_reason: str


@dataclass(slots=True)
class Living:
    """One broker process that registered and was not lost or replaced since."""

    broker_id: int
    broker_epoch: int
    node_id: str
    host_id: str
    incarnation: str
    actor_name: str
    partition_actors_max: int
    visible: Sequence[str]
    """Directories of the log that it sees, sorted."""
    make: Sequence[NewDirectory] = ()
    """Directories that it was told to make and has not reported."""
    served: dict[PartitionKey, Served] = field(default_factory=dict)
    claims: dict[PartitionKey, int] = field(default_factory=dict)
    """Of each partition the last claim, by this process's own count."""
    version: int = 0
    """The machine's version when this broker's assignment changed last."""


# --- signs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokersChanged:
    """Brokers came or went, and who has which of their hosts' directories now."""

    hosts: Sequence[str]
    """The hosts of all of them; nothing changes elsewhere."""
    joined: Living | None
    gone: Sequence[int]
    """Broker ids whose processes are lost or replaced."""
    refused: Sequence[str]
    """Incarnations that a newer one on the same node replaced for good."""
    owners: Mapping[str, int]
    """Every directory seen on these hosts and served: by whom."""
    targets: Mapping[str, int]
    """Every directory seen on these hosts: who is to serve it."""
    unseen: Sequence[str]
    """Directories that only those gone had seen."""
    make: Mapping[int, Sequence[NewDirectory]]
    """Broker ids, and all that they have to make."""


@dataclass(frozen=True, slots=True)
class ServedReported:
    """A host of a broker serves these, or says why it cannot."""

    broker_id: int
    partitions: Mapping[PartitionKey, Served]


@dataclass(frozen=True, slots=True)
class LeadershipAsked:
    """A broker claims these for one of its hosts."""

    broker_id: int
    partitions: Sequence[PartitionKey]
    sequence: int


@dataclass(frozen=True, slots=True)
class NumberTaken:
    """A producer id was given out."""


Sign = BrokersChanged | ServedReported | LeadershipAsked | NumberTaken


@dataclass(slots=True)
class Liveness:
    """Everything that one life of a controller learnt and will forget."""

    controller_epoch: int
    counter: int = 0
    """Numbers given out in this epoch, to brokers and producers alike."""
    brokers: dict[int, Living] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    """Directory to the one broker that serves it."""
    targets: dict[str, int] = field(default_factory=dict)
    """Directory to the broker that serves it or shall take it."""
    replaced: dict[str, None] = field(default_factory=dict)
    """Incarnations that never come back."""

    @property
    def next_number(self) -> int:
        """A number that no controller has given before, nor ever will again."""
        if self.counter >> COUNTER_BITS:
            raise InvariantViolationError(
                f"controller epoch {self.controller_epoch} has given out 2**{COUNTER_BITS} "
                "numbers; restart the controller, a new epoch has as many again"
            )
        return self.controller_epoch << COUNTER_BITS | self.counter

    def on_node(self, node_id: str) -> Living | None:
        """The living broker of a node."""
        return next((b for b in self.brokers.values() if b.node_id == node_id), None)

    def owner(self, directory_id: str) -> Living | None:
        """The broker that serves a directory."""
        broker_id = self.owners.get(directory_id)
        return None if broker_id is None else self.brokers[broker_id]

    def owned(self, broker_id: int) -> list[str]:
        """Directories that a broker serves, sorted."""
        return sorted(d for d, owner in self.owners.items() if owner == broker_id)

    def to_acquire(self, broker_id: int) -> list[str]:
        """Directories that a broker shall lock, nobody serving them now; sorted."""
        return sorted(
            directory_id
            for directory_id, target in self.targets.items()
            if target == broker_id and directory_id not in self.owners
        )

    def notice(self, sign: Sign, version: int) -> None:
        """Take one sign in; `version` is stamped on the brokers whose assignment changes by it."""
        match sign:
            case BrokersChanged():
                self._change_brokers(sign, version)
            case ServedReported():
                self.brokers[sign.broker_id].served.update(sign.partitions)
            case LeadershipAsked():
                asked = dict.fromkeys(sign.partitions, sign.sequence)
                self.brokers[sign.broker_id].claims.update(asked)
            case NumberTaken():
                self.counter += 1

    def _change_brokers(self, sign: BrokersChanged, version: int) -> None:
        for broker_id in sign.gone:
            del self.brokers[broker_id]
        self.replaced.update(dict.fromkeys(sign.refused))
        if sign.joined is not None:
            self.brokers[sign.joined.broker_id] = sign.joined
            self.counter += 1
        for directory_id in (*sign.unseen, *sign.targets):
            self.owners.pop(directory_id, None)
            self.targets.pop(directory_id, None)
        self.owners.update(sign.owners)
        self.targets.update(sign.targets)
        for broker_id, directories in sign.make.items():
            self.brokers[broker_id].make = directories
        for broker in self.brokers.values():
            if broker.host_id in sign.hosts:
                broker.version = version
