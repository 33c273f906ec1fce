"""What a leader lets a reader on its own machine read: stored batches in a file, piece by piece.

Owns: how far the reading has come, how much to read next, and the checks of what was read. Refuses:
files (`local_reads`), and judging damage: whatever surprises ends the grant, and the leader is
asked again (STORAGE section 6).

A grant costs no memory until it is read, so it may be long: one question to the leader serves for
many pieces. And a piece is read when its records are about to be handed out: its bytes are still in
the processor's cache when they are checked, and its memory is what the last ones left warm.
"""

from ray_stream.errors import CorruptBatchError
from ray_stream.records.batch import check_header, check_payload_checksum
from ray_stream.records.header import HEADER_BYTES, BatchHeader, decode_header
from ray_stream.rpc.messages import Extent

CheckedBatch = tuple[BatchHeader, memoryview]
"""Header and payload, both checksums checked."""


class Grant:
    """The rest of one extent."""

    __slots__ = ("_batch_bytes", "_end", "_end_offset", "_first", "is_over", "path", "position")

    def __init__(self, extent: Extent) -> None:
        self.path = extent.path
        self.position = extent.position
        """Where the next batch begins in the file."""
        self.is_over = False
        """Nothing more can be read by it."""
        self._first = extent.header
        """What has to stand at the position; empty behind the first batch."""
        self._end = extent.position + extent.length
        self._end_offset = extent.end_offset
        self._batch_bytes = max(HEADER_BYTES, _batch_bytes(extent.header))
        """Of the next batch, as far as is known."""

    @property
    def is_untouched(self) -> bool:
        """Whether no batch of it was read."""
        return bool(self._first)

    def next_length(self, bytes_max: int) -> int:
        """How many bytes to read from the position on: whole batches, if they are alike.

        And the next header, so that the read that follows is as long as its batches.

        Args:
            bytes_max: about so many; at least one batch.
        """
        batches = max(1, bytes_max // self._batch_bytes)
        return min(batches * self._batch_bytes + HEADER_BYTES, self._end - self.position)

    def take(self, view: memoryview, wanted: int) -> list[CheckedBatch]:
        """The whole batches at the beginning of what was read; the position moves behind them.

        None, and the grant is not over: the next read has to be longer.

        Args:
            view: what stands at the position.
            wanted: bytes that were to be read.
        """
        batches: list[CheckedBatch] = []
        if len(view) < wanted or (self._first and view[:HEADER_BYTES] != self._first):
            self.is_over = True
            return batches
        place = 0
        try:
            while place + HEADER_BYTES <= len(view):
                header = decode_header(view, place)
                self._batch_bytes = header.batch_bytes
                behind = place + header.batch_bytes
                is_last = self.position + behind > self._end
                if is_last or header.next_offset > self._end_offset:
                    self.is_over = True
                    break
                if behind > len(view):
                    break
                payload = view[place + HEADER_BYTES : behind]
                check_header(header)
                check_payload_checksum(header, payload)
                batches.append((header, payload))
                place = behind
        except CorruptBatchError:
            self.is_over = True
        self.position += place
        if batches:
            self._first = b""
        self.is_over = self.is_over or self._end - self.position < HEADER_BYTES
        return batches


def _batch_bytes(header: bytes) -> int:
    try:
        return decode_header(header).batch_bytes
    except CorruptBatchError:  # which the file will not have there
        return 0
