"""What the metadata machine's `decide` gives back: facts, signs, and the answer.

Owns: one struct. Refuses: everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ray_stream.machine import Decision
from ray_stream.metadata.commands import Response
from ray_stream.metadata.liveness import Sign
from ray_stream.metadata.records import Record


@dataclass(slots=True)
class Resolution(Decision[Record, Response]):
    """A decision, with what changes for this life of the controller only."""

    signs: Sequence[Sign] = ()
    """Noticed after the facts were applied; never written."""
