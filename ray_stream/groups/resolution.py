"""What the group machine's `decide` gives back: facts, signs, and the answer.

Owns: one struct. Refuses: everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_stream.groups.commands import Response
from ray_stream.groups.records import Record
from ray_stream.groups.signs import Sign
from ray_stream.machine import Decision


@dataclass(slots=True)
class Resolution(Decision[Record, Response]):
    """A decision, with what changes for this life of the coordinator only."""

    signs: Sequence[Sign] = ()
    """Noticed after the facts were applied; never written."""
