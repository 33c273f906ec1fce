"""From a user's objects to bytes and back.

Owns: the serializers that users name, and how anything given as one is called. Refuses: choosing a
serializer, and unpickling for anybody who did not ask for it by name.

A serializer is an object with `serialize(value) -> bytes` and `deserialize(data) -> value`, or for
one direction a plain callable. None stays None in both directions, without a call: a null key, a
tombstone.
"""

import builtins
import json as json_module
import math
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import cloudpickle as cloudpickle_module
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_stream.errors import InvalidArgumentError, SerializationError

Buffer = builtins.bytes | bytearray | memoryview


@runtime_checkable
class Serializer(Protocol):
    """Both directions of one encoding."""

    def serialize(self, value: Any, /) -> builtins.bytes:  # noqa: ANN401 - any user's object
        """The bytes that stand for `value`."""
        ...

    def deserialize(self, data: builtins.bytes, /) -> Any:  # noqa: ANN401 - any user's object
        """The value that `data` stands for."""
        ...


Serialize = Callable[[Any], builtins.bytes | None]
Deserialize = Callable[[builtins.bytes | None], Any]


class BytesSerializer:
    """Bytes as they are, and nothing else: the default."""

    def serialize(self, value: Buffer, /) -> builtins.bytes:
        """Bytes, or a copy of a buffer's.

        Raises:
            SerializationError: `value` is anything else, `str` too.
        """
        if isinstance(value, builtins.bytes):
            return value
        if isinstance(value, (bytearray, memoryview)):
            return builtins.bytes(value)
        raise SerializationError(
            f"{type(value).__name__} is not bytes: encode it, or pass key_serializer= or "
            "value_serializer=, for instance ray_stream.serializers.string or .json"
        )

    def deserialize(self, data: builtins.bytes, /) -> builtins.bytes:
        """The bytes."""
        return data


class StringSerializer:
    """`str` as UTF-8."""

    def serialize(self, value: str, /) -> builtins.bytes:
        """UTF-8.

        Raises:
            SerializationError: not a `str`, or one with lone surrogates.
        """
        if not isinstance(value, str):
            raise SerializationError(
                f"{type(value).__name__} is not str: this serializer takes str"
            )
        return value.encode()

    def deserialize(self, data: builtins.bytes, /) -> str:
        """Strict UTF-8."""
        return data.decode()


class JsonSerializer:
    """Whatever JSON has a form for, as UTF-8; NaN and infinities are not JSON and are refused."""

    def serialize(self, value: Any, /) -> builtins.bytes:  # noqa: ANN401 - any JSON value
        """Compact JSON."""
        text = json_module.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()

    def deserialize(self, data: builtins.bytes, /) -> Any:  # noqa: ANN401 - any JSON value
        """Strings, numbers, lists, dicts, bools, None."""
        return json_module.loads(data)


class MsgpackSerializer:
    """MessagePack, by msgspec: compact, and it has bytes and timestamps."""

    def serialize(self, value: Any, /) -> builtins.bytes:  # noqa: ANN401 - what msgspec takes
        """MessagePack."""
        return msgspec.msgpack.encode(value)

    def deserialize(self, data: builtins.bytes, /) -> Any:  # noqa: ANN401 - what msgspec makes
        """Plain values: a tuple or dataclass comes back as a list or dict."""
        return msgspec.msgpack.decode(data)


_KIND = b"ray_stream.kind"
_DTYPE = b"ray_stream.dtype"
_SHAPE = b"ray_stream.shape"


class ArrowSerializer:
    """Arrow tables, record batches and arrays as one Arrow IPC stream.

    Any Arrow implementation reads it. A stream that another one wrote comes back as a table.
    """

    def serialize(
        self, value: pa.Table | pa.RecordBatch | pa.Array | pa.ChunkedArray, /
    ) -> builtins.bytes:
        """An IPC stream."""
        if isinstance(value, pa.Table):
            return _write_stream(value, {_KIND: b"table"})
        if isinstance(value, pa.RecordBatch):
            return _write_stream(pa.Table.from_batches([value]), {_KIND: b"batch"})
        if isinstance(value, (pa.Array, pa.ChunkedArray)):
            kind = b"array" if isinstance(value, pa.Array) else b"chunked"
            return _write_stream(pa.table({"values": value}), {_KIND: kind})
        raise SerializationError(
            f"{type(value).__name__} is not an Arrow table, record batch or array"
        )

    def deserialize(
        self, data: builtins.bytes, /
    ) -> pa.Table | pa.RecordBatch | pa.Array | pa.ChunkedArray:
        """What was serialized; its buffers are those of `data`, uncopied."""
        table, metadata = _read_stream(data)
        kind = metadata.get(_KIND)
        if kind == b"batch":
            batches = table.combine_chunks().to_batches()
            return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
        if kind == b"array":
            return table.column(0).combine_chunks()
        if kind == b"chunked":
            return table.column(0)
        return table


class NumpySerializer:
    """NumPy arrays of numbers, booleans, times and fixed-width strings, dtype and shape included.

    Through Arrow IPC, never through pickle: arrays of objects and structured ones are refused.
    """

    def serialize(self, value: npt.ArrayLike, /) -> builtins.bytes:
        """An IPC stream of one binary value, dtype and shape beside it."""
        array = np.asarray(value)
        _check_dtype(array.dtype)
        metadata = {
            _KIND: b"ndarray",
            _DTYPE: array.dtype.str.encode(),
            _SHAPE: json_module.dumps(array.shape).encode(),
        }
        return _write_stream(pa.table({"values": pa.array([array.tobytes()])}), metadata)

    def deserialize(self, data: builtins.bytes, /) -> npt.NDArray[Any]:
        """The array, read-only: its memory is that of `data`."""
        table, metadata = _read_stream(data)
        if metadata.get(_KIND) != b"ndarray" or table.num_rows != 1:
            raise SerializationError("these bytes are not a NumPy array of ours")
        dtype = np.dtype(metadata[_DTYPE].decode())
        _check_dtype(dtype)
        shape = tuple(json_module.loads(metadata[_SHAPE]))
        content = table.column(0)[0].as_buffer()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != content.size:
            raise SerializationError(f"{content.size} bytes are not an array of shape {shape}")
        if not content.size:
            return np.empty(shape, dtype)
        return np.frombuffer(content, dtype).reshape(shape)


class CloudpickleSerializer:
    """Almost any Python object, by cloudpickle.

    Warning: `deserialize` runs code that the bytes name. Whoever can write to the topic can run
    anything in every process that reads it so. Use it only among your own jobs, name it on both
    sides, and prefer `json`, `msgpack`, `arrow` or `numpy` wherever they do. Pickles also tie both
    sides to the same versions of Python and of the classes in them: they are no format to keep.
    """

    def serialize(self, value: Any, /) -> builtins.bytes:  # noqa: ANN401 - any object
        """A pickle."""
        return cast("builtins.bytes", cloudpickle_module.dumps(value))

    def deserialize(self, data: builtins.bytes, /) -> Any:  # noqa: ANN401 - any object
        """The object: runs what the pickle says."""
        return cloudpickle_module.loads(data)


def as_serializer(serializer: Serializer | Callable[[Any], Any] | None) -> Serialize:
    """One function for anything that a user may pass as `key_serializer` or `value_serializer`.

    Args:
        serializer: an object with `serialize`, a callable, or None for strict bytes.

    Returns:
        A function that leaves None alone and otherwise returns bytes or raises SerializationError.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    chosen = bytes if serializer is None else serializer
    function = _function_of(chosen, "serialize")

    def serialize(value: Any) -> builtins.bytes | None:  # noqa: ANN401 - any user's object
        if value is None:
            return None
        try:
            data = function(value)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"{_name(chosen)} could not serialize a {type(value).__name__}: {error}"
            ) from error
        if isinstance(data, builtins.bytes):
            return data
        raise SerializationError(
            f"{_name(chosen)} returned {type(data).__name__}: a serializer returns bytes"
        )

    return serialize


def as_deserializer(deserializer: Serializer | Callable[[Any], Any] | None) -> Deserialize:
    """One function for anything that a user may pass as a deserializer.

    What it raises is the deserializer's own error: the consumer knows which record it was.

    Args:
        deserializer: an object with `deserialize`, a callable, or None for bytes as they are.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    function = _function_of(bytes if deserializer is None else deserializer, "deserialize")
    return lambda data: None if data is None else function(data)


def _function_of(serializer: object, direction: str) -> Callable[[Any], Any]:
    function = getattr(serializer, direction, serializer)
    if isinstance(serializer, type) and function is not serializer:
        raise InvalidArgumentError(f"{serializer!r} is a class: pass an instance of it")
    if not callable(function):
        raise InvalidArgumentError(
            f"{serializer!r} cannot {direction}: pass one of ray_stream.serializers (bytes, "
            f"string, json, arrow, numpy, msgpack, cloudpickle), an object with {direction}(), "
            "or a function"
        )
    return cast("Callable[[Any], Any]", function)


def _name(serializer: object) -> str:
    return getattr(serializer, "__name__", type(serializer).__name__)


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biufcmMSU" or dtype.hasobject:
        raise SerializationError(
            f"arrays of {dtype} are not serialized: numbers, booleans, times and fixed-width "
            "strings are; convert it, or use arrow or msgpack"
        )


def _write_stream(
    table: pa.Table, metadata: dict[builtins.bytes, builtins.bytes]
) -> builtins.bytes:
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), **metadata})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table)
    return cast("builtins.bytes", sink.getvalue().to_pybytes())


def _read_stream(data: builtins.bytes) -> tuple[pa.Table, dict[builtins.bytes, builtins.bytes]]:
    with pa.ipc.open_stream(data) as reader:
        table = reader.read_all()
    table.validate(full=True)
    metadata = dict(table.schema.metadata or {})
    own = {key: metadata.pop(key) for key in (_KIND, _DTYPE, _SHAPE) if key in metadata}
    return table.replace_schema_metadata(metadata or None), own


bytes = BytesSerializer()  # noqa: A001 - users write serializers.bytes
string = StringSerializer()
json = JsonSerializer()
arrow = ArrowSerializer()
numpy = NumpySerializer()
msgpack = MsgpackSerializer()
cloudpickle = CloudpickleSerializer()
