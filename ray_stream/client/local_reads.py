"""Reading stored batches on the leader's own machine: from its files, by its leave.

Owns: open files, and turning the extents in an answer into bytes. Refuses: deciding what may be
read (the leader's answer says where and how far, and wakes who waits; STORAGE section 6), and
judging damage: whatever surprises is asked of the leader again, which sends bytes then.

Never `mmap`: a mapping of a file that is truncated ends the interpreter.
"""

import contextlib
import logging
from collections import OrderedDict
from typing import TypeVar

import msgspec

from ray_stream.errors import (
    CorruptBatchError,
    LeaderNotAvailableError,
    StorageError,
    StorageFullError,
)
from ray_stream.log.buffers import read_view
from ray_stream.log.storage import File, Storage
from ray_stream.records.batch import check_payload_checksum
from ray_stream.records.header import HEADER_BYTES, decode_header
from ray_stream.rpc.messages import Extent, FetchRequest, FetchResponse, FetchResult

LOG = logging.getLogger(__name__)
FILES_MAX = 64
AnswerT = TypeVar("AnswerT")


class _SurpriseError(Exception):
    """The file is not what the leader said."""


class LocalReader:
    """One consumer's open files. For the thread that drives the consumer."""

    def __init__(self, storage: Storage, boot_id: str) -> None:
        """Args: storage: where files are; boot_id: of this machine, empty to read none."""
        self._storage = storage
        self._boot_id = boot_id
        self._files: OrderedDict[str, File] = OrderedDict()
        self._remote: dict[str, None] = {}
        """Hosts whose files cannot be read here."""
        self._asked: dict[int, str] = {}

    def asking(self, request_id: int, host: str, request: FetchRequest) -> FetchRequest:
        """The request, saying that the answer may name files."""
        if not self._boot_id or host in self._remote:
            return request
        self._asked[request_id] = host
        return msgspec.structs.replace(request, boot_id=self._boot_id)

    def answered(
        self, request_id: int, answer: AnswerT
    ) -> AnswerT | FetchResponse | LeaderNotAvailableError:
        """The answer with the bytes in it; an error that has it asked again, when they are not."""
        host = self._asked.pop(request_id, None)
        if host is None or not isinstance(answer, FetchResponse):
            return answer
        if all(result.extent is None for result in answer.results):
            return answer
        try:
            return self._resolved(answer)
        except (_SurpriseError, StorageError, StorageFullError, FileNotFoundError) as surprise:
            LOG.info("the files of %s are not read here: %s", host, surprise)
            self._remote[host] = None
            return LeaderNotAvailableError(f"its files cannot be read here: {surprise}")

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.popitem()[1].close()

    def _resolved(self, answer: FetchResponse) -> FetchResponse:
        results: list[FetchResult] = []
        batches: list[object] = []
        place = 0
        for result in answer.results:
            if result.extent is None:
                batches += answer.batches[place : place + result.buffers]
                place += result.buffers
                results.append(result)
            else:
                batches.append(self._read(result.extent))
                results.append(msgspec.structs.replace(result, buffers=1, extent=None))
        return FetchResponse(results, batches)

    def _read(self, extent: Extent) -> memoryview:
        """Whole batches in front of the end that was granted."""
        view = read_view(self._file(extent.path), extent.length, extent.position)
        if view[:HEADER_BYTES] != extent.header:
            self._forget(extent.path)
            raise _SurpriseError(f"{extent.path} has other bytes at {extent.position}")
        place = 0
        with contextlib.suppress(CorruptBatchError):  # damage is the leader's to tell
            while place + HEADER_BYTES <= len(view):
                header = decode_header(view, place)
                behind = place + header.batch_bytes
                if header.next_offset > extent.end_offset or behind > len(view):
                    break
                check_payload_checksum(header, view[place + HEADER_BYTES : behind])
                place = behind
        if not place:
            self._forget(extent.path)
            raise _SurpriseError(f"{extent.path} has no whole batch at {extent.position}")
        return view[:place]

    def _file(self, path: str) -> File:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self._storage.open_for_reading(path)
            if len(self._files) > FILES_MAX:
                self._files.popitem(last=False)[1].close()
        else:
            self._files.move_to_end(path)
        return file

    def _forget(self, path: str) -> None:
        """A file of that name may have been made anew."""
        self._files.pop(path).close()
