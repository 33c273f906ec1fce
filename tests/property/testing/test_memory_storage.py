"""The storage in memory shows what a real disk shows, whatever is done to both."""

import shutil
import tempfile
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_stream.errors import RayStreamError
from ray_stream.log.storage import DiskStorage, File, Lock, Storage
from ray_stream.testing.memory import MemoryStorage

PARTS = ("a", "b", "c")
paths = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)
names = st.sampled_from(PARTS)
data = st.binary(max_size=700)
slots = st.integers(0, 3)


T = TypeVar("T")
Subject = TypeVar("Subject")


def outcome(call: Callable[[Subject], T], subject: Subject) -> T | type[Exception]:
    """What the caller sees: a result, or the class of the error."""
    try:
        return call(subject)
    except (RayStreamError, FileNotFoundError) as error:
        return type(error)


class TwoStorages(RuleBasedStateMachine):
    """Does the same to a disk and to the model of one."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="rs-storage-")
        self.both: tuple[Storage, Storage] = (DiskStorage(), MemoryStorage())
        self.both[1].make_directory(self.root)
        self.files: dict[int, tuple[File, File]] = {}
        self.locks: dict[int, tuple[str, Lock, Lock]] = {}

    def teardown(self) -> None:
        for slot in list(self.files):
            self.close(slot)
        for slot in list(self.locks):
            self.release(slot)
        shutil.rmtree(self.root)

    def same(self, call: Callable[[Storage], object]) -> object:
        real, model = (outcome(call, one) for one in self.both)
        assert real == model
        return real

    def same_handles(self, call: Callable[[Storage], T | None]) -> tuple[T, T] | None:
        """Both give a handle, or neither does, for the same reason."""
        real, model = (outcome(call, one) for one in self.both)
        if real is None or model is None or isinstance(real, type) or isinstance(model, type):
            assert real is model
            return None
        return real, model

    def same_of(self, slot: int, call: Callable[[File], object]) -> None:
        if slot in self.files:
            real, model = self.files[slot]
            assert outcome(call, real) == outcome(call, model)

    @rule(path=paths, slot=slots, create=st.booleans())
    def open(self, path: str, slot: int, create: bool) -> None:
        self.close(slot)
        if pair := self.same_handles(lambda s: s.open(f"{self.root}/{path}", create=create)):
            self.files[slot] = pair

    @rule(path=paths, slot=slots)
    def open_for_reading(self, path: str, slot: int) -> None:
        if self.both[0].is_directory(f"{self.root}/{path}"):
            return  # Linux opens it and refuses each read
        self.close(slot)
        if pair := self.same_handles(lambda s: s.open_for_reading(f"{self.root}/{path}")):
            self.files[slot] = pair

    @rule(slot=slots)
    def close(self, slot: int) -> None:
        for file in self.files.pop(slot, ()):
            file.close()

    @rule(slot=slots, buffers=st.lists(data, max_size=3))
    def append(self, slot: int, buffers: list[bytes]) -> None:
        self.same_of(slot, lambda file: file.write(buffers, file.size()))

    @rule(slot=slots, buffer=data, position=st.integers(0, 2000))
    def write(self, slot: int, buffer: bytes, position: int) -> None:
        # A refused write (read-only file) must leave the file as it was: append-only callers
        # never write before the end of a file that they cannot write to.
        self.same_of(slot, lambda file: file.write([buffer], position))

    @rule(slot=slots, size=st.integers(0, 2000))
    def truncate(self, slot: int, size: int) -> None:
        self.same_of(slot, lambda file: file.truncate(size))

    @rule(slot=slots, length=st.integers(0, 3000), position=st.integers(0, 3000))
    def read(self, slot: int, length: int, position: int) -> None:
        self.same_of(slot, lambda file: (file.size(), file.read(length, position)))

    @rule(slot=slots)
    def sync(self, slot: int) -> None:
        self.same_of(slot, lambda file: file.sync())
        self.same_of(slot, lambda file: file.drop_cache())

    @rule(path=paths)
    def make_directory(self, path: str) -> None:
        self.same(lambda s: s.make_directory(f"{self.root}/{path}"))

    @rule(path=paths)
    def remove_directory(self, path: str) -> None:
        self.same(lambda s: s.remove_directory(f"{self.root}/{path}"))

    @rule(path=paths)
    def sync_directory(self, path: str) -> None:
        self.same(lambda s: s.sync_directory(f"{self.root}/{path}"))

    def is_locked(self, path: str) -> bool:
        """Whether a lock lies there, or below: nobody may take such a file away."""
        return any(f"{held}/".startswith(f"{path}/") for held, _, _ in self.locks.values())

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        if not self.is_locked(path):
            self.same(lambda s: s.unlink(f"{self.root}/{path}"))

    @rule(path=paths, new=names)
    def rename(self, path: str, new: str) -> None:
        beside = f"{path.rpartition('/')[0]}/{new}".removeprefix("/")
        if not (self.is_locked(path) or self.is_locked(beside)):
            self.same(lambda s: s.rename(f"{self.root}/{path}", f"{self.root}/{beside}"))

    @rule(path=paths, position=st.integers(0, 2), slot=slots)
    def lock(self, path: str, position: int, slot: int) -> None:
        if pair := self.same_handles(lambda s: s.lock(f"{self.root}/{path}", position)):
            self.release(slot)
            self.locks[slot] = (path, *pair)

    @rule(slot=slots)
    def release(self, slot: int) -> None:
        for lock in self.locks.pop(slot, ())[1:]:
            lock.release()
            lock.release()

    @rule(path=paths)
    def look(self, path: str) -> None:
        whole = f"{self.root}/{path}"
        self.same(lambda s: (s.exists(whole), s.is_directory(whole)))

    @invariant()
    def the_trees_are_the_same(self) -> None:
        waiting = [self.root]
        while waiting:
            path = waiting.pop()
            real, model = (one.list_directory(path) for one in self.both)
            assert real == model
            waiting += [f"{path}/{n}" for n in real if self.both[0].is_directory(f"{path}/{n}")]


TestTwoStorages = TwoStorages.TestCase
TestTwoStorages.settings = settings(
    stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
