"""Serializers: what goes in comes out, and nothing is unpickled unasked."""

import datetime as dt
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_stream import serializers
from ray_stream.errors import InvalidArgumentError, SerializationError
from ray_stream.serializers import Serializer, as_deserializer, as_serializer

ALL = [
    serializers.bytes,
    serializers.string,
    serializers.json,
    serializers.arrow,
    serializers.numpy,
    serializers.msgpack,
    serializers.cloudpickle,
]


def around(serializer: Serializer, value: object) -> object:
    data = serializer.serialize(value)
    assert isinstance(data, bytes)
    return serializer.deserialize(data)


@pytest.mark.parametrize(
    ("serializer", "value"),
    [
        (serializers.bytes, b"\x00\xff"),
        (serializers.string, "grüße 🙂"),
        (serializers.json, {"a": [1, 2.5, None, True], "ü": "é"}),
        (serializers.msgpack, {"a": [1, b"raw", None]}),
        (serializers.cloudpickle, {1: (2, {3})}),
    ],
)
def test_values_come_back_equal(serializer: Serializer, value: object) -> None:
    assert around(serializer, value) == value


@pytest.mark.parametrize("serializer", ALL)
def test_null_stays_null_in_both_directions(serializer: Serializer) -> None:
    assert as_serializer(serializer)(None) is None
    assert as_deserializer(serializer)(None) is None


@pytest.mark.parametrize("value", ["text", 5, ["x"], {"a": 1}, 1.5])
def test_without_a_serializer_only_bytes_pass_and_the_message_says_what_to_do(
    value: object,
) -> None:
    with pytest.raises(SerializationError, match=r"value_serializer=.*serializers\.string"):
        as_serializer(None)(value)


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x")])
def test_whatever_is_bytes_passes_as_bytes(value: object) -> None:
    data = as_serializer(None)(value)
    assert (data, type(data)) == (b"x", bytes)
    assert as_deserializer(None)(b"x") == b"x"


@pytest.mark.parametrize(
    ("serializer", "value"),
    [
        (serializers.string, b"bytes"),
        (serializers.string, "\ud800"),
        (serializers.json, float("nan")),
        (serializers.json, {"when": dt.date(2024, 1, 1)}),
        (serializers.msgpack, object()),
        (serializers.arrow, [1, 2]),
        (serializers.numpy, np.array([object()])),
        (serializers.numpy, np.zeros(2, dtype=[("a", "i4")])),
        (serializers.cloudpickle, threading.Lock()),
    ],
)
def test_what_an_encoding_has_no_form_for_is_refused(serializer: Serializer, value: object) -> None:
    with pytest.raises(SerializationError):
        as_serializer(serializer)(value)


@pytest.mark.parametrize(
    ("function", "value", "data"),
    [(str.encode, "a", b"a"), (lambda value: b"%d" % value, 7, b"7"), (json.dumps, 1, None)],
)
def test_a_plain_function_is_a_serializer_if_it_returns_bytes(
    function: Callable[[Any], Any], value: object, data: bytes | None
) -> None:
    serialize = as_serializer(function)
    if data is None:
        with pytest.raises(SerializationError, match="dumps returned str"):
            serialize(value)
    else:
        assert serialize(value) == data


@pytest.mark.parametrize("function", [int, bytes.decode, lambda data: data])
def test_a_plain_function_or_type_is_a_deserializer(function: Callable[[Any], Any]) -> None:
    assert as_deserializer(function)(b"7") == function(b"7")


def test_a_deserializers_own_error_reaches_the_consumer() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        as_deserializer(int)(b"seven")


@pytest.mark.parametrize("wrong", [json, "json", 5, type(serializers.json)])
def test_what_is_no_serializer_is_refused_where_it_is_given(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidArgumentError):
        as_serializer(wrong)
    with pytest.raises(InvalidArgumentError):
        as_deserializer(wrong)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int16).reshape(3, 4),
        np.arange(12, dtype=">f8").reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(5, dtype=np.uint8),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["2024-01-01", "NaT"], dtype="datetime64[ns]"),
        np.array([3], dtype="timedelta64[s]"),
        np.array(["a", "ü"]),
        np.array([b"ab", b"c"]),
        np.array([np.nan, np.inf, -0.0]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_numpy_arrays_keep_dtype_shape_and_bits(array: np.ndarray[Any, Any]) -> None:
    found = serializers.numpy.deserialize(serializers.numpy.serialize(array))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "value",
    [
        pa.table({"a": [1, 2], "b": ["x", None]}),
        pa.table({"a": pa.chunked_array([[1], [2, 3]])}),
        pa.table({"a": pa.array([], pa.int8())}),
        pa.table({"a": [1]}).replace_schema_metadata({"mine": "kept"}),
        pa.record_batch({"a": [1, 2]}),
        pa.record_batch({"a": pa.array([], pa.int8())}),
        pa.array([1, None, 3]),
        pa.array([], pa.string()),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array([[1], [2, 3]]).slice(1),
        pa.chunked_array([[1], [2, 3]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrow_data_keeps_class_schema_and_values(value: Any) -> None:  # noqa: ANN401
    found = serializers.arrow.deserialize(serializers.arrow.serialize(value))
    assert type(found) is type(value)
    assert found.equals(value)
    if hasattr(value, "schema"):
        assert found.schema.equals(value.schema, check_metadata=True)


def test_an_arrow_stream_of_anybody_is_a_table() -> None:
    table = pa.table({"a": [1, 2]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert serializers.arrow.deserialize(sink.getvalue().to_pybytes()).equals(table)


class Trap:
    """Unpickling it raises: nobody but cloudpickle's serializer may get that far."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (_sprung, ("unpickled",))


def _sprung(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("serializer", [s for s in ALL if s is not serializers.cloudpickle])
def test_no_serializer_but_cloudpickle_ever_unpickles(serializer: Serializer) -> None:
    data = pickle.dumps(Trap())
    try:
        serializer.deserialize(data)
    except AssertionError:
        raise
    except Exception:  # noqa: BLE001 - any refusal will do
        return
    assert serializer is serializers.bytes
    with pytest.raises(AssertionError, match="unpickled"):
        serializers.cloudpickle.deserialize(data)


def hostile(dtype: bytes, shape: bytes, content: bytes = bytes(8)) -> bytes:
    metadata = {
        "ray_stream.kind": "ndarray",
        "ray_stream.dtype": dtype,
        "ray_stream.shape": shape,
    }
    table = pa.table({"values": pa.array([content])}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (b"O", b"[1]"),
        (b"i8", b"[2]"),
        (b"i8", b"[-1]"),
        (b"i8", b"[-1, -1]"),
        (b"i8,O", b"[1]"),
        (b"i1", b"[4611686018427387904, 4]"),
    ],
)
def test_a_hostile_array_is_refused(dtype: bytes, shape: bytes) -> None:
    assert serializers.numpy.deserialize(hostile(b"<i8", b"[1]")).tolist() == [0]
    with pytest.raises(SerializationError):
        serializers.numpy.deserialize(hostile(dtype, shape))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(value=json_values)
def test_json_and_msgpack_keep_every_plain_value(value: object) -> None:
    assert around(serializers.json, value) == value
    assert around(serializers.msgpack, value) == value
