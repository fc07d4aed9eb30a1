"""TensorBoard event files, read exactly and while they are written.

An event file is a chain of TFRecords: length (8 bytes), its checksum (4), the data,
its checksum (4); the data is a protobuf `Event`. TensorBoard itself is not among the
workshop's packages; protobuf's own runtime parses the messages, from the few fields of
TensorFlow's `event.proto`, `summary.proto` and `tensor.proto` that hold scalars.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["Scalar", "is_event_file", "read_scalars"]

_HEADER_BYTES, _FOOTER_BYTES = 12, 4

# TensorFlow's numbers of types (types.proto), and how `struct` calls them.
_FORMS = {1: "<f", 2: "<d", 3: "<i", 9: "<q", 19: "<e"}


@dataclass(frozen=True)
class Scalar:
    """One value of an event file.

    Attributes:
        tag: Its name, such as `train/reward`.
        step: The writer's step.
        value: The value, as written.
        time: When it was written, seconds since 1970.
    """

    tag: str
    step: int
    value: float
    time: float


def is_event_file(path: Path) -> bool:
    """Whether a file begins as an event file does: a length with the right checksum.

    Args:
        path: Any file.

    Example:
        >>> is_event_file(Path(__file__))
        False
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    return len(header) == _HEADER_BYTES and _checked(header[:8], header[8:])


def read_scalars(path: str | Path) -> list[Scalar]:
    """All scalars of an event file, in the order in which they were written.

    Args:
        path: The file, also of a run that is still writing: a record that is not whole
            yet is left for the next call.

    Raises:
        WorkshopError: The file cannot be read, is no event file, or is damaged.

    Example:
        >>> from workshop_lib.data import data_path
        >>> folder = data_path("recorded/nemo-rl/honest")
        >>> scalars = read_scalars(next(folder.glob("events.*")))
        >>> [round(s.value, 3) for s in scalars if s.tag == "train/reward"][:2]
        [0.129, 0.148]
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WorkshopError(f"{path} cannot be read: {error.strerror}") from error
    event_class = _event_class()
    scalars = []
    for at, record in _records(data, path):
        try:
            event = event_class.FromString(record)
        except Exception as error:
            raise WorkshopError(f"{path} byte {at}: a record is no TensorBoard event") from error
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                scalars.append(Scalar(value.tag, event.step, number, event.wall_time))
    return scalars


def _records(data: bytes, path: str | Path) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER_BYTES <= len(data):
        if not _checked(data[at : at + 8], data[at + 8 : at + 12]):
            if at == 0:
                raise WorkshopError(f"{path} is no TensorBoard event file")
            raise WorkshopError(f"{path} is damaged at byte {at}; what is before it can be kept")
        (length,) = struct.unpack_from("<Q", data, at)
        begin = at + _HEADER_BYTES
        end = begin + length
        if end + _FOOTER_BYTES > len(data):
            return  # still being written
        if not _checked(data[begin:end], data[end : end + _FOOTER_BYTES]):
            raise WorkshopError(f"{path} is damaged at byte {at}; what is before it can be kept")
        yield at, data[begin:end]
        at = end + _FOOTER_BYTES


def _number(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    for name in ("float_val", "double_val", "int_val", "int64_val"):
        numbers = getattr(value.tensor, name)
        if len(numbers) == 1:
            return float(numbers[0])
    # The same as bytes, in the machine's order, which is little-endian wherever this runs.
    form = _FORMS.get(value.tensor.dtype)
    if form and len(value.tensor.tensor_content) == struct.calcsize(form):
        return float(struct.unpack(form, value.tensor.tensor_content)[0])
    return None


@cache
def _event_class() -> Any:
    """TensorFlow's `Event`, as far as scalars need it; other fields are skipped."""
    from google.protobuf import (  # type: ignore[import-untyped]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(
        name="workshop/event.proto", package="workshop", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    optional, repeated = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    double, single, text = kinds.TYPE_DOUBLE, kinds.TYPE_FLOAT, kinds.TYPE_STRING
    messages: dict[str, list[tuple[str, int, Any, Any, str]]] = {
        "Tensor": [
            ("dtype", 1, optional, kinds.TYPE_INT32, ""),
            ("tensor_content", 4, optional, kinds.TYPE_BYTES, ""),
            ("float_val", 5, repeated, single, ""),
            ("double_val", 6, repeated, double, ""),
            ("int_val", 7, repeated, kinds.TYPE_INT32, ""),
            ("int64_val", 10, repeated, kinds.TYPE_INT64, ""),
        ],
        "Value": [
            ("tag", 1, optional, text, ""),
            ("simple_value", 2, optional, single, ""),
            ("tensor", 8, optional, kinds.TYPE_MESSAGE, "Tensor"),
        ],
        "Summary": [("value", 1, repeated, kinds.TYPE_MESSAGE, "Value")],
        "Event": [
            ("wall_time", 1, optional, double, ""),
            ("step", 2, optional, kinds.TYPE_INT64, ""),
            ("summary", 5, optional, kinds.TYPE_MESSAGE, "Summary"),
        ],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, of in fields:
            added = message.field.add(name=field, number=number, label=label, type=kind)
            if of:
                added.type_name = f".workshop.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("workshop.Event"))


@cache
def _crc_table() -> tuple[int, ...]:
    # CRC-32C (Castagnoli), reflected polynomial: RFC 3720, appendix B.4.
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _checked(data: bytes, stored: bytes) -> bool:
    """Whether a TFRecord's masked checksum is right."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    # TensorFlow rotates and shifts it, so that a checksum of checksums is no special case.
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked) == stored
