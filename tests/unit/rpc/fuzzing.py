"""Peers that say what they should not, to the real listener in front of a real partition host.

One attacker after the other, each with a connection of its own; between them a client that behaves,
whose answers are checked. Nothing here is timed.
"""

import logging
import os
import random
import struct
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from ray_stream.actors.door import Handler
from ray_stream.actors.partition_control import PartitionControl
from ray_stream.actors.partition_host import PartitionHost
from ray_stream.clock import SystemClock
from ray_stream.config import TopicConfig
from ray_stream.errors import DataDirInUseError, StorageError
from ray_stream.log import locks
from ray_stream.log.partition_log import SyncJob
from ray_stream.log.storage import DiskStorage, Lock, Storage
from ray_stream.metadata.commands import AssignedPartition
from ray_stream.records.builder import RecordColumns, build_batch
from ray_stream.rpc import wire
from ray_stream.rpc.framing import FRAME_BYTES_MAX, MAGIC, FrameKind, encode_frame
from ray_stream.rpc.handshake import NONCE_BYTES, prove
from ray_stream.rpc.hosting import LeadPartitions, PreparePartitions
from ray_stream.rpc.messages import (
    EARLIEST,
    LATEST,
    FetchPartition,
    FetchRequest,
    ListOffsetsPartition,
    ListOffsetsRequest,
    MetadataRequest,
    ProducePartition,
    ProduceRequest,
)
from tests.unit.rpc.world import NAME, Client, Echo, RawPeer, Server

ATTACKED, QUIET = "a" * 32, "b" * 32
"""The topic that attackers know of, and the one of who behaves."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
HELD_MAX = 32
"""Connections that stand there with half a frame."""
FRAMES_MAX = 300
"""In one connection."""
HEADER = struct.Struct("<4sBBHQII")


def batch_of(value: bytes) -> bytes:
    columns = RecordColumns(value=pa.array([value], pa.binary()), base_timestamp=5)
    return b"".join(build_batch(columns))


def message(request: msgspec.Struct) -> list[bytes]:
    return [bytes(part) for part in wire.encode(request)]


def requests(topic: str) -> list[list[bytes]]:
    """What a client may ask, and what is not served here."""
    batch = batch_of(b"some value of some length")
    fetch = [FetchPartition(topic, 0, 0, 0, 1)]
    return [
        message(ListOffsetsRequest([ListOffsetsPartition(topic, 0, 0, LATEST)])),
        message(ListOffsetsRequest([ListOffsetsPartition(topic, 0, -1, 5)])),
        message(FetchRequest(0, 0, 1, fetch)),
        message(FetchRequest(0, 1, 1, fetch, boot_id="boot")),
        message(ProduceRequest(-1, 1_000, [ProducePartition(topic, 0, 0)], [batch])),
        message(MetadataRequest(None)),
    ]


def take_lock(storage: Storage, root: str, topic_id: str, partition: int) -> Lock:
    lock = locks.try_lock(storage, root, locks.partition_position(topic_id, partition))
    if lock is None:
        raise DataDirInUseError(root)
    return lock


def sync_here(job: SyncJob, done: Callable[[StorageError | None], None]) -> None:
    job.run()
    done(None)


class RealHost(Echo):
    """Two partitions on a disk, as a partition actor has them; driven by the same loop."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        clock = SystemClock()
        self._host = PartitionHost(clock, sync_here, "boot")
        control = PartitionControl(
            self._host,
            DiskStorage(),
            clock,
            boot_id="boot",
            interval_ms=1_000,
            locking=take_lock,
            spread=lambda work, items: [work(item) for item in items],
        )
        config = TopicConfig(durability="replicated")
        specs = [
            AssignedPartition(topic, topic[:5], 0, "dir", "0", True, config, 0, 1)
            for topic in (ATTACKED, QUIET)
        ]
        answers: list[Any] = []
        control.prepare(PreparePartitions({"dir": str(root)}, specs), answers.append)
        control.lead(LeadPartitions([(ATTACKED, 0, 0), (QUIET, 0, 0)]), answers.append)
        assert [one.offline_reason for one in answers[1].served] == ["", ""]
        self._control = control

    def handlers(self) -> Mapping[type[msgspec.Struct], Handler]:
        return {
            ProduceRequest: self._host.produce,
            FetchRequest: self._host.fetch,
            ListOffsetsRequest: self._host.list_offsets,
        }

    def end_turn(self) -> None:
        self._host.end_turn()

    def on_time(self) -> None:
        self._host.expire()

    def next_deadline_ms(self) -> int | None:
        return self._host.next_deadline_ms()

    def close(self) -> None:
        self._control.close()


class Reasons(logging.Handler):
    """What the listener said about connections that it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()
        self.count += "cuts off" in self.last


class Behaving:
    """A client of the same listener that gets what is right, all the time."""

    def __init__(self, server: Server) -> None:
        self._client = Client(server.endpoint.ways("boot"))
        assert self._client.event()[0] == "opened"
        self._sent = 0

    def check(self) -> None:
        """Append a record, read it back, ask for both ends."""
        batch = batch_of(b"record %d" % self._sent)
        address = ProducePartition(QUIET, 0, 0)
        (produced,) = self._client.ask(ProduceRequest(-1, 1_000, [address], [batch])).results
        assert (produced.error, produced.base_offset) == (None, self._sent)
        fetch = FetchRequest(0, 1, 1, [FetchPartition(QUIET, 0, 0, self._sent, 1)])
        (read,) = self._client.ask(fetch).batches
        assert bytes(read[128:]) == batch[128:]
        self._sent += 1
        for timestamp, offset in ((EARLIEST, 0), (LATEST, self._sent)):
            question = ListOffsetsRequest([ListOffsetsPartition(QUIET, 0, 0, timestamp)])
            (found,) = self._client.ask(question).results
            assert (found.error, found.offset) == (None, offset)

    def close(self) -> None:
        self._client.link.close()


def memory_bytes() -> int:
    """What this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


class Attack:
    """Frames of every bad kind, until there were enough."""

    def __init__(self, server: Server, reasons: Reasons, seed: int) -> None:
        self._server = server
        self._reasons = reasons
        self._rng = random.Random(seed)
        self._known = requests(ATTACKED)
        self._held: deque[RawPeer] = deque()
        self._behaving = Behaving(server)
        self.frames = 0
        self.kinds: Counter[str] = Counter()
        self.growth_bytes = 0
        """Memory at the end beside memory after a tenth."""

    def run(self, frames: int) -> None:
        """Send so many."""
        before = 0
        while self.frames < frames:
            if self._rng.random() < 0.3:
                self._stranger()
            else:
                self._member()
            if self._rng.random() < 0.1:
                self._behaving.check()
            if not before and self.frames >= frames / 10:
                before = memory_bytes()
        while self._held:
            self._let_go()
        self._behaving.check()
        assert self._server.peers() == 1
        self._behaving.close()
        self.growth_bytes = memory_bytes() - before

    # --- who proves nothing ----------------------------------------------------------------------

    def _stranger(self) -> None:
        rng = self._rng
        hello = joined(FrameKind.HELLO, 0, [rng.randbytes(NONCE_BYTES)])
        known = [joined(FrameKind.REQUEST, 1, rng.choice(self._known))]
        lies = {
            "a wrong secret": [hello, joined(FrameKind.PROOF, 0, [self._lie()])],
            "a random proof": [hello, joined(FrameKind.PROOF, 0, [rng.randbytes(NONCE_BYTES)])],
            "two hellos": [hello, hello],
            "a request before the proof": known,
            "a request in place of the proof": [hello, *known],
            "a greeting cut short": [hello[: rng.randrange(1, len(hello))]],
            "a greeting out of order": [
                joined(FrameKind(rng.choice([2, 3, 4, 6])), 0, [b"x" * 32])
            ],
            "a nonce of another length": [joined(FrameKind.HELLO, 0, [rng.randbytes(31)])],
            "a long greeting": [HEADER.pack(MAGIC, 1, 1, 0, 0, 1, rng.randint(1_025, 1 << 30))],
            **{name: [hello, data] for name, data in self._no_frames().items()},
        }
        kind = rng.choice(sorted(lies))
        with RawPeer(self._server) as peer:
            self._refused(peer, kind, lies[kind])

    def _lie(self) -> bytes:
        """A proof by a secret of one's own, with a nonce that fits as little."""
        nonces = (self._rng.randbytes(NONCE_BYTES), self._rng.randbytes(NONCE_BYTES))
        return prove(b"w" * 32, b"client", NAME, *nonces)

    def _no_frames(self) -> dict[str, bytes]:
        """What cannot be the beginning of a frame, or not be all of one."""
        rng = self._rng
        number = rng.getrandbits(64)
        whole = joined(FrameKind.REQUEST, number, rng.choice(self._known))
        length = rng.randrange(8, 200)
        table = struct.pack("<2I", *rng.choice([(length, length), (0, 0), (length - 1, 0)]))
        return {
            "random bytes": b"\0" + rng.randbytes(rng.randint(1, 3_000)),
            "an unknown version": HEADER.pack(MAGIC, rng.choice([0, 2, 255]), 5, 0, number, 0, 0),
            "an unknown kind": HEADER.pack(MAGIC, 1, rng.choice([0, 7, 99]), 0, number, 0, 0),
            "flags": HEADER.pack(MAGIC, 1, 5, rng.randint(1, 65_535), number, 0, 0),
            "more than a frame": HEADER.pack(
                MAGIC, 1, 5, 0, number, 1, rng.randint(FRAME_BYTES_MAX + 1, 2**32 - 1)
            ),
            "more parts than bytes": HEADER.pack(MAGIC, 1, 5, 0, number, 9, 35),
            "parts that do not fill it": HEADER.pack(MAGIC, 1, 5, 0, number, 2, 8 + length)
            + table
            + rng.randbytes(length),
            "a frame cut short": whole[: rng.randrange(1, len(whole))],
        }

    # --- who was let in --------------------------------------------------------------------------

    def _member(self) -> None:
        rng = self._rng
        peer = RawPeer(self._server)
        peer.prove()
        sent = [self._request(number) for number in range(rng.randrange(FRAMES_MAX))]
        endings = ["orderly", "changed bytes", "held", "an answer", *self._no_frames()]
        kind = rng.choice(endings)
        if kind == "held":
            claimed = rng.choice([1 << 20, 64 << 20, FRAME_BYTES_MAX])
            peer.say(b"".join(sent) + HEADER.pack(MAGIC, 1, 5, 0, 1, 1, claimed) + b"begun")
            self._counted(kind, len(sent) + 1)
            self._held.append(peer)
            if len(self._held) > HELD_MAX:
                self._let_go()
            return
        with peer:
            if kind == "orderly":
                peer.say(b"".join(sent))
                self._counted(kind, len(sent))
                answered = [peer.frame() for _ in sent]
                assert sorted(one.correlation_id for one in answered) == list(range(len(sent)))
                for one in answered:
                    wire.decode(one.parts)
            elif kind == "changed bytes":
                self._say_and_end(peer, [self._changed(b"".join(sent))])
                self._counted(kind, len(sent))
            else:
                last = self._no_frames().get(kind) or joined(FrameKind.ANSWER, 1, self._known[0])
                self._refused(peer, kind, [*sent, last])

    def _request(self, number: int) -> bytes:
        """A frame as it should be; of its envelope or batch some bytes may be others."""
        parts = self._rng.choice(self._known)
        if self._rng.random() < 0.7:
            place = self._rng.randrange(len(parts))
            parts = [*parts[:place], self._changed(parts[place]), *parts[place + 1 :]]
        return joined(FrameKind.REQUEST, number, parts)

    def _changed(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._rng.randint(1, 3)):
            place = self._rng.randrange(len(changed) + 1)
            match self._rng.randrange(4):
                case 0 | 1:
                    changed[place : place + 1] = self._rng.randbytes(1)
                case 2:
                    del changed[place : place + self._rng.randint(1, 20)]
                case _:
                    changed[place:place] = self._rng.randbytes(self._rng.randint(1, 20))
        return bytes(changed)

    def _let_go(self) -> None:
        with self._held.popleft() as peer:
            self._refused(peer, "let go", [])

    # --- what becomes of it ----------------------------------------------------------------------

    def _refused(self, peer: RawPeer, kind: str, frames: list[bytes]) -> None:
        """Say it; the connection is closed, and there is a reason."""
        before = self._reasons.count
        self._say_and_end(peer, frames)
        self._counted(kind, len(frames))
        assert self._reasons.count == before + 1, (kind, frames[-1:], self._reasons.last)

    def _say_and_end(self, peer: RawPeer, frames: list[bytes]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            peer.say(b"".join(frames))
            peer.end()
        assert peer.is_cut_off()

    def _counted(self, kind: str, frames: int) -> None:
        self.kinds[kind] += 1
        self.frames += frames


def joined(kind: FrameKind, number: int, parts: list[bytes]) -> bytes:
    return b"".join(encode_frame(kind, number, parts))
