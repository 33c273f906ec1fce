"""How two ends of a connection prove to each other that they know the cluster's secret.

Owns: the four greetings and the check of proofs. Refuses: sockets, randomness (nonces are
arguments), encryption: inside one Ray cluster is one trust domain (DESIGN D8).

The client says hello with a nonce and whom it wants; the server challenges with one of its own; the
client proves, then the server does. A proof is HMAC-SHA256 over both nonces, the role and the name
of the server, so that it fits nowhere else: no other connection, direction, or actor that has taken
over an address. The secret itself never travels, and nothing else is read before the proof.
"""

import hashlib
import hmac

from ray_stream.errors import AuthenticationError
from ray_stream.log.storage import Buffer
from ray_stream.rpc.framing import Frame, FrameKind, encode_frame

NONCE_BYTES = 32
_CLIENT = b"client"
_SERVER = b"server"


def prove(secret: bytes, role: bytes, name: str, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What only a holder of the secret can say, about this connection alone."""
    told = (b"ray_stream 1", role, client_nonce, server_nonce, name.encode())
    message = b"".join(len(one).to_bytes(4, "little") + one for one in told)
    return hmac.digest(secret, message, hashlib.sha256)


class ServerHandshake:
    """The server's side of one connection."""

    def __init__(self, secret: bytes, name: str, nonce: bytes) -> None:
        """Args: name: of the actor that listens; nonce: random, for this connection alone."""
        self._secret = secret
        self._name = name
        self._nonce = nonce
        self._client_nonce = b""
        self.is_done = False

    def received(self, frame: Frame) -> list[Buffer]:
        """Take a greeting; returns what is to be sent.

        Raises:
            AuthenticationError: it is not the greeting that is due, or it proves nothing.
        """
        if not self._client_nonce:
            self._client_nonce = _only(frame, FrameKind.HELLO)
            return encode_frame(FrameKind.CHALLENGE, 0, [self._nonce])
        nonces = (self._client_nonce, self._nonce)
        expected = prove(self._secret, _CLIENT, self._name, *nonces)
        if not hmac.compare_digest(_only(frame, FrameKind.PROOF), expected):
            raise AuthenticationError(
                "a client did not prove the cluster's secret to this actor: it belongs to another "
                "cluster, or meant another actor"
            )
        self.is_done = True
        return encode_frame(
            FrameKind.WELCOME, 0, [prove(self._secret, _SERVER, self._name, *nonces)]
        )


class ClientHandshake:
    """The client's side of one connection."""

    def __init__(self, secret: bytes, name: str, nonce: bytes) -> None:
        """Args: name: of the actor that is meant; nonce: random, for this connection alone."""
        self._secret = secret
        self._name = name
        self._nonce = nonce
        self._server_nonce = b""
        self.is_done = False

    def hello(self) -> list[Buffer]:
        """What is sent first."""
        return encode_frame(FrameKind.HELLO, 0, [self._nonce])

    def received(self, frame: Frame) -> list[Buffer]:
        """Take a greeting; returns what is to be sent.

        Raises:
            AuthenticationError: it is not the greeting that is due, or it proves nothing.
        """
        if not self._server_nonce:
            self._server_nonce = _only(frame, FrameKind.CHALLENGE)
            told = prove(self._secret, _CLIENT, self._name, self._nonce, self._server_nonce)
            return encode_frame(FrameKind.PROOF, 0, [told])
        expected = prove(self._secret, _SERVER, self._name, self._nonce, self._server_nonce)
        if not hmac.compare_digest(_only(frame, FrameKind.WELCOME), expected):
            raise AuthenticationError(
                f"whoever listens there did not prove to be {self._name}: it is something else"
            )
        self.is_done = True
        return []


def _only(frame: Frame, kind: FrameKind) -> bytes:
    """The one part of a greeting: a nonce or a proof, 32 bytes either."""
    if frame.kind is not kind or [len(part) for part in frame.parts] != [NONCE_BYTES]:
        raise AuthenticationError(
            f"{kind.name} with {NONCE_BYTES} bytes is due, not {frame.kind.name} with "
            f"{[len(part) for part in frame.parts]}"
        )
    return bytes(frame.parts[0])
