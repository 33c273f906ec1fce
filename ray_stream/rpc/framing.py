"""Frames: how requests and answers are told apart in a stream of bytes.

Owns: the layout, reading it from whatever pieces arrive, and what is still to be written. Refuses:
sockets, time, and what frames mean (`rpc.wire`, `rpc.handshake`).

A frame is a header of 24 bytes, a table with the length of each part, and the parts. The first part
of a message is its envelope, each further one a batch as it is. Everything that a header claims is
checked before room is made for it; a part is never joined with another.
"""

import struct
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

from ray_stream.errors import ProtocolError
from ray_stream.log.buffers import new_frame
from ray_stream.log.storage import Buffer
from ray_stream.records.gathered import Gathered, Part

MAGIC = b"RStr"
VERSION = 1
FRAME_BYTES_MAX = 1 << 30
"""A longer request goes by a Ray call; a longer answer is refused by name."""
GREETING_BYTES_MAX = 1024
"""What a peer may claim before it has proved that it belongs here."""
PARTS_MAX = 1 << 16
SCRATCH_BYTES = 64 * 1024
GATHER_MAX = 512
"""Buffers in one write; the kernel takes at most 1,024."""

_HEADER = struct.Struct("<4sBBHQII")
"""Magic, version, kind, zero, correlation id, number of parts, bytes behind the header."""
HEADER_BYTES = _HEADER.size


class FrameKind(IntEnum):
    """What a frame is."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    WELCOME = 4
    REQUEST = 5
    ANSWER = 6


class Frame(NamedTuple):
    """One frame as it arrived; the parts are its receiver's own."""

    kind: FrameKind
    correlation_id: int
    parts: list[memoryview]


def frame_bytes(parts: Sequence[Part]) -> int:
    """How many bytes stand behind the header of a frame of these parts."""
    return 4 * len(parts) + sum(map(len, parts))


def encode_frame(kind: FrameKind, correlation_id: int, parts: Sequence[Part]) -> list[Buffer]:
    """Header and table in one buffer, and behind it the parts as they are, piece by piece.

    Raises:
        ProtocolError: more than a frame may hold.
    """
    lengths = list(map(len, parts))
    length = 4 * len(parts) + sum(lengths)
    if length > FRAME_BYTES_MAX or len(parts) > PARTS_MAX:
        raise ProtocolError(
            f"{length} bytes in {len(parts)} parts do not fit in a frame: at most "
            f"{FRAME_BYTES_MAX} bytes in {PARTS_MAX} parts do"
        )
    header = _HEADER.pack(MAGIC, VERSION, kind, 0, correlation_id, len(parts), length)
    table = struct.pack(f"<{len(parts)}I", *lengths)
    buffers: list[Buffer] = [header + table]
    for part in parts:
        if isinstance(part, Gathered):
            buffers += part.pieces
        else:
            buffers.append(part)
    return buffers


class FrameParser:
    """Frames out of pieces of a stream; bounded by what one frame may claim.

    Where bytes are received is the caller's scratch buffer, shared by as many parsers as one thread
    serves. A frame that does not fit in there gets a buffer of its own, and the rest of it is
    received right into that.
    """

    def __init__(self, scratch: memoryview, bytes_max: int = FRAME_BYTES_MAX) -> None:
        """Args: scratch: nobody else's between `room` and `received`."""
        self._scratch = scratch
        self._bytes_max = bytes_max
        self._head = bytearray()
        self._body: memoryview | None = None
        self._filled = 0
        self._kind = FrameKind.HELLO
        self._correlation_id = 0
        self._parts = 0

    def allow(self, bytes_max: int) -> None:
        """Accept longer frames from now on."""
        self._bytes_max = bytes_max

    @property
    def is_within(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._body is not None or bool(self._head)

    def room(self) -> list[memoryview]:
        """Where the next bytes belong: one buffer behind the other."""
        if self._body is None:
            return [self._scratch]
        return [self._body[self._filled :], self._scratch]

    def received(self, count: int) -> list[Frame]:
        """Take in what was received into `room`.

        Returns:
            The frames that are complete now.

        Raises:
            ProtocolError: this is no stream of frames; nothing behind it can be read.
        """
        frames: list[Frame] = []
        if self._body is not None:
            taken = min(count, len(self._body) - self._filled)
            self._filled += taken
            count -= taken
            if self._filled < len(self._body):
                return frames
            body, self._body = self._body, None
            frames.append(self._frame(body))
        position = 0
        while position < count:
            position = self._take(position, count, frames)
        return frames

    def _take(self, position: int, end: int, frames: list[Frame]) -> int:
        """One frame, or the beginning of one, from the scratch buffer."""
        piece = self._scratch[position : min(end, position + HEADER_BYTES - len(self._head))]
        self._head += piece
        position += len(piece)
        if len(self._head) < HEADER_BYTES:
            return position
        length = self._claimed()
        self._head.clear()
        if position + length <= end:
            frames.append(
                self._frame(memoryview(bytes(self._scratch[position : position + length])))
            )
            return position + length
        self._body = _room_for(length)
        self._filled = end - position
        self._body[: self._filled] = self._scratch[position:end]
        return end

    def _claimed(self) -> int:
        """How long the frame behind this header is, when it may be."""
        magic, version, kind, zero, self._correlation_id, self._parts, length = _HEADER.unpack(
            self._head
        )
        if magic != MAGIC:
            raise ProtocolError(f"a frame begins with {MAGIC!r}, not with {bytes(magic)!r}")
        if version != VERSION:
            raise ProtocolError(f"frames of version {version} are not known here: {VERSION} is")
        if zero or not FrameKind.HELLO <= kind <= FrameKind.ANSWER:
            raise ProtocolError(f"a frame of kind {kind}, flags {zero} is not known here")
        if length > self._bytes_max:
            raise ProtocolError(
                f"a frame of {length} bytes: at most {self._bytes_max} are taken at this point"
            )
        if self._parts > PARTS_MAX or 4 * self._parts > length:
            raise ProtocolError(f"a frame of {length} bytes cannot have {self._parts} parts")
        self._kind = FrameKind(kind)
        return int(length)

    def _frame(self, body: memoryview) -> Frame:
        parts: list[memoryview] = []
        position = 4 * self._parts
        for length in struct.unpack_from(f"<{self._parts}I", body):
            parts.append(body[position : position + length])
            position += length
        if position != len(body):
            raise ProtocolError(
                f"the parts of a frame end at byte {position} and the frame at {len(body)}"
            )
        return Frame(self._kind, self._correlation_id, parts)


def new_scratch() -> memoryview:
    """A buffer to receive into."""
    return memoryview(bytearray(SCRATCH_BYTES))


def _room_for(length: int) -> memoryview:
    """Room that is not written to before it is received into: what only is claimed costs nothing.

    Raises:
        ProtocolError: there is not that much memory.
    """
    try:
        return new_frame(length) if length else memoryview(b"")
    except MemoryError as error:
        raise ProtocolError(f"no memory for a frame of {length} bytes") from error


class Outbox:
    """What is still to be written to one peer, in order."""

    def __init__(self) -> None:
        self._buffers: deque[memoryview] = deque()
        self.bytes_left = 0
        self.bytes_sent = 0
        """Handed to the kernel since the connection began."""

    @property
    def end(self) -> int:
        """Where in the stream the next buffer will begin."""
        return self.bytes_sent + self.bytes_left

    def add(self, buffers: Sequence[Buffer]) -> None:
        """Put these behind what is there; they are not copied."""
        for buffer in buffers:
            if length := len(buffer):
                self._buffers.append(memoryview(buffer))
                self.bytes_left += length

    def gathered(self) -> list[memoryview]:
        """What one write may take."""
        return list(islice(self._buffers, GATHER_MAX))

    def sent(self, count: int) -> None:
        """The kernel took so many bytes."""
        self.bytes_left -= count
        self.bytes_sent += count
        while count:
            first = self._buffers[0]
            if len(first) > count:
                self._buffers[0] = first[count:]
                return
            count -= len(first)
            self._buffers.popleft()

    def clear(self) -> None:
        """The peer is gone."""
        self._buffers.clear()
        self.bytes_left = 0
