"""One wait for sockets: nobody is told what was ready for another."""

import os
import socket
from collections.abc import Iterator

import pytest

from ray_stream.rpc.reactor import READABLE, WRITABLE, Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


def readable_pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    far.send(b"x")
    return near, far


def test_what_was_ready_for_a_socket_is_not_told_to_the_next_of_its_descriptor(
    reactor: Reactor,
) -> None:
    told: list[str] = []
    pairs = {name: readable_pair() for name in ("first", "second")}
    quiet = socket.socketpair()

    def serve(name: str) -> None:
        told.append(name)
        if len(told) > 1:
            return
        other = pairs["second" if name == "first" else "first"][0]
        reactor.forget(other)
        descriptor = other.fileno()
        other.close()
        reused = socket.socket(fileno=os.dup2(quiet[0].fileno(), descriptor))
        pairs["new"] = (reused, quiet[1])
        reactor.watch(reused, READABLE, lambda _: told.append("new"))

    for name in ("first", "second"):
        reactor.watch(pairs[name][0], READABLE, lambda _, name=name: serve(name))  # type: ignore[misc]
    reactor.wait(0)
    assert len(told) == 1
    reactor.wait(0)
    assert told[0] == told[1], "the one that is still there"
    assert "new" not in told
    quiet[1].send(b"y")
    reactor.wait(0)
    assert "new" in told
    for near, far in (*pairs.values(), quiet):
        near.close()
        far.close()


def test_a_socket_is_told_what_it_is_ready_for_and_of_its_end_as_both(reactor: Reactor) -> None:
    told: list[int] = []
    near, far = socket.socketpair()
    reactor.watch(near, READABLE | WRITABLE, told.append)
    reactor.wait(0)
    far.send(b"x")
    reactor.wait(0)
    reactor.change(near, READABLE, told.append)
    reactor.wait(0)
    far.close()
    reactor.wait(0)
    assert told == [WRITABLE, READABLE | WRITABLE, READABLE, READABLE | WRITABLE]
    assert reactor.has_ready()
    reactor.forget(near)
    reactor.forget(near)
    assert not reactor.has_ready()
    near.close()
