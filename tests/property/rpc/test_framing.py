"""Streams of frames: what was put in comes out, however it is cut; what is none is refused."""

import os
import random
import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream.errors import AuthenticationError, ProtocolError, RayStreamError
from ray_stream.rpc import wire
from ray_stream.rpc.framing import (
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    MAGIC,
    PARTS_MAX,
    Frame,
    FrameKind,
    FrameParser,
    Outbox,
    encode_frame,
)
from ray_stream.rpc.handshake import NONCE_BYTES, ClientHandshake, ServerHandshake
from ray_stream.rpc.messages import FetchResponse, FetchResult

SCRATCH = 512
frames = st.tuples(
    st.sampled_from(FrameKind),
    st.integers(0, 2**64 - 1),
    st.lists(
        st.binary(max_size=200) | st.binary(min_size=SCRATCH, max_size=3 * SCRATCH), max_size=5
    ),
)


def feed(parser: FrameParser, data: bytes) -> list[Frame]:
    """As a socket would: into the room that there is, until nothing is left."""
    found = []
    while data:
        taken = 0
        for room in parser.room():
            piece = data[taken : taken + len(room)]
            room[: len(piece)] = piece
            taken += len(piece)
        data = data[taken:]
        found += parser.received(taken)
    return found


def parser(bytes_max: int = FRAME_BYTES_MAX) -> FrameParser:
    return FrameParser(memoryview(bytearray(SCRATCH)), bytes_max)


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[FrameKind, int, list[bytes]]], cuts: list[int]
) -> None:
    stream = b"".join(b"".join(encode_frame(*one)) for one in sent)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reading = parser()
    found = [frame for a, b in pairwise(places) for frame in feed(reading, stream[a:b])]
    assert [
        (kind, number, [bytes(part) for part in parts]) for kind, number, parts in found
    ] == sent


@given(st.binary(max_size=2_000))
def test_any_bytes_are_frames_or_an_error_of_ours(data: bytes) -> None:
    try:
        feed(parser(), data)
    except ProtocolError:
        return


@given(frames, st.integers(0, HEADER_BYTES + 20), st.integers(1, 255))
def test_a_changed_byte_of_header_or_table_breaks_nothing_but_the_stream(
    sent: tuple[FrameKind, int, list[bytes]], place: int, change: int
) -> None:
    stream = bytearray(b"".join(encode_frame(*sent)))
    if place < len(stream):
        stream[place] ^= change
    try:
        feed(parser(1 << 20), bytes(stream))
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((b"HTTP", 1, 5, 0, 1, 0, 0), "begins with"),
        ((MAGIC, 2, 5, 0, 1, 0, 0), "version 2"),
        ((MAGIC, 1, 0, 0, 1, 0, 0), "kind 0"),
        ((MAGIC, 1, 7, 0, 1, 0, 0), "kind 7"),
        ((MAGIC, 1, 5, 1, 1, 0, 0), "flags 1"),
        ((MAGIC, 1, 5, 0, 1, 1, FRAME_BYTES_MAX + 1), "at most"),
        ((MAGIC, 1, 5, 0, 1, PARTS_MAX + 1, 1 << 29), "cannot have"),
        ((MAGIC, 1, 5, 0, 1, 3, 8), "cannot have"),
    ],
)
def test_what_a_header_claims_is_checked_before_room_is_made(
    header: tuple[object, ...], reason: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=reason):
            feed(parser(), struct.pack("<4sBBHQII", *header))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("told", [(3, 4), (5, 5), (0, 0)])
def test_parts_that_do_not_fill_their_frame_are_refused(told: tuple[int, int]) -> None:
    body = struct.pack("<2I", *told) + b"12345678"
    stream = struct.pack("<4sBBHQII", MAGIC, 1, 5, 0, 1, 2, len(body)) + body
    with pytest.raises(ProtocolError, match="parts of a frame"):
        feed(parser(), stream)


def test_more_than_a_frame_holds_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_stream.rpc.framing.FRAME_BYTES_MAX", 10)
    with pytest.raises(ProtocolError):
        encode_frame(FrameKind.REQUEST, 1, [bytes(7)])
    assert encode_frame(FrameKind.REQUEST, 1, [bytes(6)])


@given(st.lists(st.binary(max_size=50), max_size=30), st.randoms(use_true_random=False))
def test_an_outbox_gives_every_byte_once_and_in_order(
    buffers: list[bytes], rng: random.Random
) -> None:
    outbox, written = Outbox(), b""
    outbox.add(buffers)
    while outbox.bytes_left:
        gathered = b"".join(outbox.gathered())
        count = rng.randint(0, len(gathered))
        written += gathered[:count]
        outbox.sent(count)
    assert written == b"".join(buffers)
    assert outbox.bytes_sent == outbox.end == len(written)


@given(st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES), st.binary(max_size=64), st.booleans())
def test_only_the_same_secret_and_name_open_a_connection(
    nonce: bytes, secret: bytes, is_named: bool
) -> None:
    right = secret == b"right"
    server = ServerHandshake(b"right", "name", b"s" * NONCE_BYTES)
    client = ClientHandshake(secret, "name" if is_named else "other", nonce)
    if not right or not is_named:
        with pytest.raises(AuthenticationError):
            greet(client, server)
        assert not server.is_done
        assert not client.is_done


def test_both_ends_prove_the_secret() -> None:
    server = ServerHandshake(b"right", "name", b"s" * NONCE_BYTES)
    client = ClientHandshake(b"right", "name", b"c" * NONCE_BYTES)
    greet(client, server)
    assert server.is_done
    assert client.is_done


def test_an_echo_of_the_clients_own_proof_is_not_the_servers() -> None:
    client = ClientHandshake(b"right", "name", b"c" * NONCE_BYTES)
    client.hello()
    (proof,) = feed(
        parser(),
        b"".join(client.received(Frame(FrameKind.CHALLENGE, 0, [memoryview(b"c" * NONCE_BYTES)]))),
    )
    with pytest.raises(AuthenticationError):
        client.received(Frame(FrameKind.WELCOME, 0, proof.parts))


@given(st.sampled_from(FrameKind), st.lists(st.binary(max_size=40), max_size=3))
def test_any_greeting_is_taken_or_refused_by_name(kind: FrameKind, parts: list[bytes]) -> None:
    frame = Frame(kind, 0, [memoryview(part) for part in parts])
    for hands in (ServerHandshake(b"", "n", b"s" * 32), ClientHandshake(b"", "n", b"c" * 32)):
        try:
            hands.received(frame)
            hands.received(frame)
        except AuthenticationError:
            continue


def greet(client: ClientHandshake, server: ServerHandshake) -> None:
    answer = client.hello()
    for end in (server, client, server, client):
        (frame,) = feed(parser(), b"".join(answer))
        answer = end.received(frame)


@given(st.binary(max_size=300))
def test_any_envelope_is_a_message_or_an_error_of_ours(data: bytes) -> None:
    refused(data)


def refused(data: bytes) -> bool:
    try:
        wire.decode([memoryview(data)])
    except RayStreamError:
        return True
    return False


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
def test_an_envelope_as_deep_as_a_well_is_refused(depth: int) -> None:
    (begin,) = wire.encode(FetchResponse([FetchResult("t", 0)], []))
    assert bytes(begin).endswith(b"\x90")
    assert depth == 100 or refused(bytes(begin)[:-1] + b"\x91" * depth)


def mutated(stream: bytes, rng: random.Random) -> bytes:
    """A stream with some of its bytes changed, cut, or put in anew."""
    data = bytearray(stream)
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[place : place + 1] = rng.randbytes(1)
            case 1:
                del data[place : place + rng.randint(1, 40)]
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 40))
            case _:
                del data[place:]
    return bytes(data)


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """So many frames of a mutated stream; returns how many were taken, and streams refused."""
    rng = random.Random(seed)
    taken = refusals = done = 0
    answer = [bytes(one) for one in wire.encode(FetchResponse([FetchResult("t", 0)], [b"b" * 700]))]
    while done < count:
        sent = [(rng.choice([*FrameKind]), rng.getrandbits(64), answer) for _ in range(20)]
        stream = mutated(b"".join(b"".join(encode_frame(*one)) for one in sent), rng)
        done += len(sent)
        reading = parser(1 << 16)
        try:
            for frame in feed(reading, stream):
                taken += 1
                refused(bytes(frame.parts[0]) if frame.parts else b"")
        except ProtocolError:
            refusals += 1
    return taken, refusals


def test_ten_thousand_frames_of_damaged_streams_are_taken_or_refused() -> None:
    taken, refusals = fuzz(10_000, 1)
    assert taken
    assert refusals


@pytest.mark.chaos
def test_a_million_frames_of_damaged_streams_are_taken_or_refused() -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    taken, refusals = fuzz(1_000_000, seed)
    assert taken
    assert refusals
