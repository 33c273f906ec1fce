"""Bytes that lie in several places and travel as one.

Owns: keeping them together. Refuses: joining them where a gathering write does without.
"""

from collections.abc import Sequence

from ray_stream.records.header import Buffer


class Gathered:
    """Some buffers, one behind the other; `bytes` joins them."""

    __slots__ = ("_length", "pieces")

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        """Args: pieces: each measured in bytes; they must not change from now on."""
        self.pieces = pieces
        self._length = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


Part = Buffer | Gathered
"""What is sent as one, wherever its bytes lie."""


def joined(part: Part) -> Buffer:
    """In one place, for those who need it there."""
    return bytes(part) if isinstance(part, Gathered) else part
