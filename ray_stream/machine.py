"""The contract of a machine whose state is a fold over its own log: decide, then apply.

Owns: the two methods and what they may do. `decide` looks and answers; `apply` is the only
mutation. The same `apply` runs when a record is first written and when a restarted machine replays
its log, so recovery is not a second code path. Answers leave once their records are committed; a
failed append has no way back: the machine is dropped and replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

RecordT = TypeVar("RecordT")
ResponseT = TypeVar("ResponseT")
CommandT_contra = TypeVar("CommandT_contra", contravariant=True)


@dataclass(slots=True)
class Decision(Generic[RecordT, ResponseT]):
    """Facts to make durable, and the answer to give once they are."""

    records: Sequence[RecordT]
    response: ResponseT


class Machine(Protocol[CommandT_contra, RecordT, ResponseT]):
    """State rebuilt by replaying a log."""

    def decide(self, command: CommandT_contra, now_ms: int) -> Decision[RecordT, ResponseT]:
        """Answer a command without changing anything; raise to refuse it."""
        ...

    def apply(self, record: RecordT) -> None:
        """Fold one durable record into the state."""
        ...
