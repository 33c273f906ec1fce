"""Reading on the leader's own machine: from its files, by its leave.

Owns: open files, and what stands in them. Refuses: deciding what may be read and how much
(`grants`), and judging what was: what cannot be read here is asked of the leader again, which sends
bytes then.

Never `mmap`: a mapping of a file that is truncated ends the interpreter.
"""

import logging
from collections import OrderedDict

import msgspec

from ray_stream.errors import StorageError, StorageFullError
from ray_stream.log.buffers import read_view
from ray_stream.log.storage import File, Storage
from ray_stream.rpc.messages import FetchRequest

LOG = logging.getLogger(__name__)
FILES_MAX = 64


class LocalReader:
    """One consumer's open files. For the thread that drives the consumer."""

    def __init__(self, storage: Storage, boot_id: str) -> None:
        """Args: storage: where files are; boot_id: of this machine, empty to read none."""
        self._storage = storage
        self._boot_id = boot_id
        self._files: OrderedDict[str, File] = OrderedDict()

    def asking(self, request: FetchRequest) -> FetchRequest:
        """The request, saying on which machine files would be read."""
        if not self._boot_id or not request.extent_bytes:
            return request
        return msgspec.structs.replace(request, boot_id=self._boot_id)

    def read(self, path: str, length: int, position: int) -> memoryview | None:
        """What stands there, less than `length` at the end of the file; None: it cannot be read.

        The bytes are nobody's to change: they stay as they are for as long as anything refers to
        them.
        """
        try:
            return read_view(self._file(path), length, position)
        except (StorageError, StorageFullError, FileNotFoundError) as surprise:
            LOG.info("%s is not read here: %s", path, surprise)
            self._forget(path)
            return None

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.popitem()[1].close()

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
        file = self._files.pop(path, None)
        if file is not None:
            file.close()
