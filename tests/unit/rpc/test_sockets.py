"""Requests over sockets: the same answers as by call, and peers that cannot hurt the others."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ray_stream import errors
from ray_stream.actors import listener as listening
from ray_stream.rpc import links, wire
from ray_stream.rpc.endpoints import Endpoint, listen_near, stop_listening
from ray_stream.rpc.framing import FRAME_BYTES_MAX, MAGIC, FrameKind, encode_frame
from ray_stream.rpc.messages import (
    ErrorInfo,
    Failed,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    ListOffsetsPartition,
    ListOffsetsRequest,
    ListOffsetsResponse,
    MetadataRequest,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
)
from tests.unit.rpc.world import SECRET, Client, RawPeer, Server, connected, serving

BIG = 3_000_001
QUESTION = ListOffsetsRequest([ListOffsetsPartition("t", 0, 0, -1)])


def produce(*batches: bytes) -> ProduceRequest:
    return ProduceRequest(-1, 1_000, [ProducePartition("t", 0, 0) for _ in batches], list(batches))


def fetch(max_wait_ms: int = 0) -> FetchRequest:
    return FetchRequest(max_wait_ms, 1, 1 << 20, [FetchPartition("t", 0, 0, 0, 1 << 20)])


@pytest.fixture(params=["near", "far"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(far=request.param == "far") as one:
        yield one


@pytest.fixture
def near() -> Iterator[Server]:
    with serving() as one:
        yield one


def stand_still(until: threading.Event) -> None:
    until.wait(20)


def assert_serves(server: Server) -> None:
    """Other clients are unharmed."""
    with connected(server) as client:
        assert isinstance(client.ask(QUESTION), ListOffsetsResponse)


def test_batches_of_any_size_arrive_and_come_back_as_they_were(server: Server) -> None:
    batches = [b"", b"x", os.urandom(70_000), os.urandom(BIG)]
    with connected(server) as client:
        answer = client.ask(produce(*batches))
        assert isinstance(answer, ProduceResponse)
        assert len(answer.results) == len(batches)
        fetched = client.ask(fetch())
        assert isinstance(fetched, FetchResponse)
        assert [bytes(batch) for batch in fetched.batches] == batches


def test_an_answer_to_a_later_request_does_not_wait_for_a_parked_one(server: Server) -> None:
    with connected(server) as client:
        assert client.link.ask(fetch(60_000), client.answers.put)
        assert isinstance(client.ask(QUESTION), ListOffsetsResponse)
        (_, reply) = server.echo.parked[0]
        server.loop.post(lambda: reply(FetchResponse([], [b"woken"])))
        answer = client.answers.get(timeout=20)
        assert [bytes(batch) for batch in answer.batches] == [b"woken"]


def test_requests_of_many_threads_are_answered_each_with_its_own(server: Server) -> None:
    wrong: list[object] = []

    def ask(client: Client, number: int) -> None:
        for count in range(50):
            name = f"{number}-{count}"
            done = threading.Event()

            def take(answer: object, name: str = name, done: threading.Event = done) -> None:
                if (
                    not isinstance(answer, ListOffsetsResponse)
                    or answer.results[0].topic_id != name
                ):
                    wrong.append(answer)
                done.set()

            request = ListOffsetsRequest([ListOffsetsPartition(name, 0, 0, -1)])
            assert client.link.ask(request, take)
            assert done.wait(20)

    with connected(server) as client:
        threads = [threading.Thread(target=ask, args=(client, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_an_error_comes_back_as_the_error_it_is(near: Server) -> None:
    with connected(near) as client:
        answer = client.ask(MetadataRequest(None))
    assert isinstance(answer, errors.InvalidArgumentError)
    assert "MetadataRequest is not served on this socket" in str(answer)


def test_a_lost_connection_leaves_the_outcome_of_what_was_sent_open(near: Server) -> None:
    with connected(near) as client:
        assert client.link.ask(fetch(60_000), client.answers.put)
        assert near.echo.seen.get(timeout=20) == "fetch"
        near.loop.post(near.listener.close)
        assert client.event()[0] == "lost"
        answer = client.answers.get(timeout=20)
        assert isinstance(answer, errors.OutcomeUnknownError)
        assert not client.link.ask(QUESTION, client.answers.put)


def test_what_never_left_this_process_is_called_unsent(near: Server) -> None:
    """The loop stands still, so the kernel's buffers fill up before the second request."""
    with connected(near) as client:
        go_on = threading.Event()
        near.loop.post(lambda: stand_still(go_on))
        assert client.link.ask(produce(bytes(64 << 20)), client.answers.put)
        assert client.link.ask(QUESTION, client.answers.put)
        client.link.close()
        first, second = client.answers.get(timeout=20), client.answers.get(timeout=20)
        go_on.set()
    assert isinstance(first, errors.OutcomeUnknownError)
    assert isinstance(second, errors.LeaderNotAvailableError)
    assert second.retriable
    assert near.on_loop(lambda: near.echo.produced) == []


def test_a_request_too_long_for_a_frame_is_refused_before_a_byte_of_it_is_sent(
    near: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_stream.rpc.framing.FRAME_BYTES_MAX", 1_000)
    with connected(near) as client:
        with pytest.raises(errors.ProtocolError):
            client.link.ask(produce(bytes(2_000)), client.answers.put)
        assert isinstance(client.ask(QUESTION), ListOffsetsResponse)


# --- who is let in -------------------------------------------------------------------------------


def test_a_wrong_secret_opens_nothing(server: Server) -> None:
    client = Client(server.endpoint.ways("boot"), secret=b"w" * 32)
    assert client.event()[0] == "failed"
    assert not client.link.ask(QUESTION, client.answers.put)
    assert server.peers() == 0
    assert server.echo.seen.empty()


def test_a_client_that_means_another_actor_is_not_let_in(server: Server) -> None:
    client = Client(server.endpoint.ways("boot"), name="c/host/node/0-2")
    assert client.event()[0] == "failed"
    assert server.peers() == 0


def test_something_else_that_listens_there_is_not_believed() -> None:
    path = f"/tmp/rs-t-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as trap:
        trap.bind(path)
        trap.listen()
        client = Client([path])
        other, _ = trap.accept()
        with other:
            other.recv(1_000)
            other.sendall(b"".join(encode_frame(FrameKind.CHALLENGE, 0, [b"n" * 32])))
            other.recv(1_000)
            other.sendall(b"".join(encode_frame(FrameKind.WELCOME, 0, [b"p" * 32])))
            kind, reason = client.event()
    Path(path).unlink()
    assert kind == "failed"
    assert "did not prove" in reason


def test_a_request_before_the_proof_is_not_read(server: Server) -> None:
    with RawPeer(server) as peer:
        peer.request([bytes(part) for part in wire.encode(QUESTION)])
        assert peer.is_cut_off()
    assert server.echo.seen.empty()
    assert_serves(server)


def test_a_long_frame_before_the_proof_is_refused_by_its_header(near: Server) -> None:
    header = struct.pack("<4sBBHQII", MAGIC, 1, FrameKind.HELLO, 0, 0, 1, FRAME_BYTES_MAX)
    with RawPeer(near) as peer:
        peer.say(header)
        assert peer.is_cut_off()
    assert_serves(near)


def test_who_proves_nothing_in_time_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "GREETING_MS", 50)
    with serving() as server, RawPeer(server) as silent:
        assert silent.is_cut_off()
        assert server.peers() == 0
    assert "proved nothing within 50 ms" in caplog.text


def test_a_thousand_silent_connections_keep_nobody_out(near: Server) -> None:
    crowd = []
    try:
        for _ in range(1_000):
            crowd.append(RawPeer(near))
            assert len(crowd) < 1_000 or near.peers() <= listening.STRANGERS_MAX
        assert_serves(near)
        assert near.peers() <= listening.STRANGERS_MAX + 1
    finally:
        for peer in crowd:
            peer.sock.close()


def test_one_connection_too_many_is_refused_and_the_others_stay(near: Server) -> None:
    near.listener._peers_max = 2
    with connected(near) as first, connected(near) as second:
        assert Client(near.endpoint.ways("boot")).event()[0] == "failed"
        for client in (first, second):
            assert isinstance(client.ask(QUESTION), ListOffsetsResponse)


# --- what is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(100), b"\xff" * 70_000])
def test_bytes_that_are_no_frames_cost_their_sender_the_connection(
    server: Server, data: bytes
) -> None:
    for is_proved in (False, True):
        with RawPeer(server) as peer:
            if is_proved:
                peer.prove()
            try:
                peer.say(data)
            except (BrokenPipeError, ConnectionResetError):
                continue
            assert peer.is_cut_off()
    assert_serves(server)


@pytest.mark.parametrize(
    "envelope", [b"", b"\xc1", b"\x91" * 100_000, b"\x93\xa7Nothing\x01\x02", b"\x92\xa1\xfe\xc0"]
)
def test_an_envelope_that_is_no_message_is_answered_with_an_error(
    near: Server, envelope: bytes
) -> None:
    with RawPeer(near) as peer:
        peer.prove()
        peer.request([envelope])
        answer = wire.decode(peer.frame().parts)
        assert isinstance(answer, Failed)
        assert isinstance(answer.error.to_error(), errors.InvalidArgumentError)


def test_a_peer_that_ends_in_the_middle_of_a_frame_is_named(
    near: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with RawPeer(near) as orderly:
        orderly.prove()
        orderly.end()
        assert orderly.is_cut_off()
    assert not caplog.text
    for cut in (7, 30):  # in the header, and behind it
        with RawPeer(near) as peer:
            peer.prove()
            peer.say(b"".join(encode_frame(FrameKind.REQUEST, 1, [b"x" * 100]))[:cut])
            peer.end()
            assert peer.is_cut_off()
    assert caplog.text.count("ended in the middle of a frame") == 2


def test_a_reader_that_does_not_read_is_cut_off_and_the_others_do_not_notice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "STALL_MS", 100)
    with serving() as server, RawPeer(server) as deaf:
        server.echo.answer_bytes = 4 << 20
        deaf.prove()
        deaf.request([bytes(part) for part in wire.encode(fetch())])
        assert server.echo.seen.get(timeout=20) == "fetch"
        assert_serves(server)
        while server.peers():
            pass
    assert "read nothing for 100 ms" in caplog.text


def test_answers_that_nobody_reads_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "OUTBOX_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(listening, "OUTBOX_PAUSE_BYTES", 1 << 30)
    with serving() as server, RawPeer(server) as deaf:
        server.echo.answer_bytes = 2 << 20
        deaf.prove()
        with suppress(ConnectionError):  # it may be cut off before the last one
            for _ in range(3):
                deaf.request([bytes(part) for part in wire.encode(fetch())])
        assert deaf.is_cut_off()
        assert_serves(server)
    assert "does not read" in caplog.text


def test_who_has_answers_waiting_is_not_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "OUTBOX_PAUSE_BYTES", 1_000)
    with serving() as server, RawPeer(server) as slow:
        server.echo.answer_bytes = 2 << 20
        slow.prove()
        request = [bytes(part) for part in wire.encode(fetch())]
        slow.request(request)
        assert server.echo.seen.get(timeout=20) == "fetch"
        assert server.peers() == 1  # that turn is over
        slow.request(request)
        assert_serves(server)
        assert server.echo.seen.get(timeout=20) == "list_offsets"
        assert server.echo.seen.empty()
        slow.frame()
        assert server.echo.seen.get(timeout=20) == "fetch"
        slow.frame()


# --- places --------------------------------------------------------------------------------------


def test_a_path_too_long_for_a_socket_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / ("d" * 120)
    assert listen_near(directory, "name") is None
    assert "does not listen on a Unix socket" in caplog.text


def test_a_directory_that_others_may_enter_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "open"
    directory.mkdir(mode=0o755)
    assert listen_near(directory, "name") is None
    assert "mode 0700" in caplog.text


def test_sockets_of_the_dead_are_swept_and_those_of_the_living_are_not() -> None:
    with serving() as server:
        living = Path(server.endpoint.path)
        dead = living.with_name("dead.sock")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(dead))
        for path in (living, dead):
            os.utime(path, (0, 0))
        another = listen_near(living.parent, "another")
        assert another is not None
        stop_listening(another)
        assert living.exists()
        assert not dead.exists()


def test_a_stopped_listener_leaves_no_file_behind() -> None:
    with serving() as server:
        path = Path(server.endpoint.path)
        assert path.exists()
    assert not path.exists()


def test_another_machines_path_is_not_tried() -> None:
    endpoint = Endpoint("their boot", "/", "127.0.0.1", 1)
    assert endpoint.ways("our boot") == [("127.0.0.1", 1)]
    assert endpoint.ways("their boot") == ["/", ("127.0.0.1", 1)]


def test_the_next_way_is_taken_when_the_first_leads_nowhere() -> None:
    with serving(far=True) as server:
        client = Client(["/tmp/rs-nothing-here", *server.endpoint.ways("boot")])
        assert client.event()[0] == "opened"
        assert isinstance(client.ask(QUESTION), ListOffsetsResponse)
        client.link.close()


def test_where_no_way_leads_there_the_reasons_are_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        kind, reason = Client(["/tmp/rs-nothing-here", ("127.0.0.1", port)]).event()
    assert kind == "failed"
    assert "/tmp/rs-nothing-here: " in reason
    assert f"127.0.0.1:{port}: " in reason


# --- the client's process ------------------------------------------------------------------------


def test_a_forked_child_leaves_its_parents_connection_alone(near: Server) -> None:
    with connected(near) as client:
        pid = os.fork()
        if not pid:
            is_refused = not client.link.ask(QUESTION, client.answers.put)
            os._exit(0 if is_refused and links.io_thread().is_forked is False else 1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert isinstance(client.ask(QUESTION), ListOffsetsResponse)


def test_an_answer_that_is_no_answer_ends_its_connection_and_no_other(near: Server) -> None:
    """The actor's reply names an error, with arguments that it does not take."""
    parts = wire.encode(Failed(ErrorInfo("DeliveryError", [])))
    with connected(near) as first, connected(near) as second:
        assert first.link.ask(fetch(60_000), first.answers.put)
        assert near.echo.seen.get(timeout=20) == "fetch"
        peer = next(iter(near.listener._peers))
        frame = encode_frame(FrameKind.ANSWER, 1, parts)
        near.loop.post(lambda: near.listener._send(peer, frame))
        assert isinstance(first.answers.get(timeout=20), errors.OutcomeUnknownError)
        assert isinstance(second.ask(QUESTION), ListOffsetsResponse)


def test_an_interrupted_write_ends_the_connection(near: Server) -> None:
    """Ctrl-C came when the kernel had bytes and before that was noted."""
    with connected(near) as client:
        client.link._is_changing = True
        assert not client.link.ask(QUESTION, client.answers.put)
        assert client.event()[0] == "lost"
    assert_serves(near)


def test_the_secret_is_never_sent(near: Server) -> None:
    with RawPeer(near) as peer:
        seen: list[bytes] = []
        receive = peer.frame

        def noted() -> object:
            frame = receive()
            seen.extend(bytes(part) for part in frame.parts)
            return frame

        peer.frame = noted  # type: ignore[method-assign,assignment]
        peer.prove()
    assert seen
    assert not any(SECRET in part for part in seen)
