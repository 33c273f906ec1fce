"""What can happen to a broker's plan for its partition actors, and what it can ask for.

Owns: the shapes. Refuses: deciding (`metadata.hosting`), performing (`actors.broker`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_stream.metadata.commands import (
    AssignedPartition,
    BrokerAssignment,
    PartitionKey,
    PartitionServed,
)

# --- events --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Assigned:
    """The controller's word, whole."""

    assignment: BrokerAssignment
    ready: Sequence[str]
    """Directory ids that this broker has the lock of."""


@dataclass(slots=True)
class HostUp:
    """A host answers: a new one, or a living one that a restarted broker found."""

    slot: str
    host: str
    served: Sequence[PartitionServed] = ()


@dataclass(slots=True)
class HostDown:
    """A host is dead, or could not be started."""

    host: str


@dataclass(slots=True)
class Prepared:
    """Answer to `Prepare`."""

    host: str
    results: Sequence[tuple[str, int, str]]


@dataclass(slots=True)
class Claimed:
    """Answer to `Claim`."""

    host: str
    keys: Sequence[PartitionKey]
    leader_epochs: Sequence[int]


@dataclass(slots=True)
class Led:
    """Answer to `Lead` and `Alter`."""

    host: str
    served: Sequence[PartitionServed]


@dataclass(slots=True)
class Released:
    """Answer to `Release`."""

    host: str
    keys: Sequence[PartitionKey]
    deleted: bool


@dataclass(slots=True)
class Described:
    """A living host says what it serves, because some of it is offline now."""

    host: str
    served: Sequence[PartitionServed]


@dataclass(slots=True)
class Stale:
    """The controller says that a host does not lead these any more: they come up anew."""

    host: str
    keys: Sequence[PartitionKey]


@dataclass(slots=True)
class Unreported:
    """A `Report` about a host got no answer: the controller may not know what is served."""

    host: str


@dataclass(slots=True)
class Failed:
    """An operation of a living host failed or was refused; it is tried again a little later."""

    host: str


@dataclass(slots=True)
class Tick:
    """Time went by."""


Event = (
    Assigned
    | HostUp
    | HostDown
    | Prepared
    | Claimed
    | Led
    | Released
    | Described
    | Stale
    | Unreported
    | Failed
    | Tick
)

# --- effects -------------------------------------------------------------------------------------


@dataclass(slots=True)
class StartHost:
    """Start a partition actor for the slot; answer `HostUp` or `HostDown`."""

    slot: str
    host: str


@dataclass(slots=True)
class StopHost:
    """End a host that has nothing to serve any more."""

    host: str


@dataclass(slots=True)
class Prepare:
    """Ask a host to lock and recover logs."""

    host: str
    partitions: list[AssignedPartition]


@dataclass(slots=True)
class Claim:
    """Ask the controller for leader epochs."""

    host: str
    keys: list[PartitionKey]
    sequence: int
    """Counts the claims of this machine, so that one that comes late is known for it."""


@dataclass(slots=True)
class Lead:
    """Ask a host to begin leader epochs."""

    host: str
    partitions: list[tuple[str, int, int]]


@dataclass(slots=True)
class Alter:
    """Tell a host new settings."""

    host: str
    partitions: list[AssignedPartition]


@dataclass(slots=True)
class Release:
    """Ask a host to close logs, and with `delete` to remove their files."""

    host: str
    keys: list[PartitionKey]
    delete: list[tuple[str, int, str]]


@dataclass(slots=True)
class Report:
    """Tell the controller what a host serves."""

    host: str
    served: list[PartitionServed]


@dataclass(slots=True)
class ReportDeleted:
    """Tell the controller that the files of deleted partitions are gone."""

    keys: list[PartitionKey]


Effect = StartHost | StopHost | Prepare | Claim | Lead | Alter | Release | Report | ReportDeleted
