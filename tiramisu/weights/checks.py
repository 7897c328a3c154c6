"""Weights as data: what a folder claims is checked before memory is allocated for it or a network computes with it."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiramisu.arrays import UInt8Array
from tiramisu.errors import WeightsError
from tiramisu.files import MIB, read_bounded
from tiramisu.labels import LabelSet

RESTORE = "restore the file, or give a folder that training wrote"
CONFIG_LIMIT = 16 * MIB
HEADER_LIMIT = 100 * MIB  # safetensors' own
MAX_TENSORS = 20_000  # the largest networks of timm have a quarter
MAX_CLASSES = 255  # masks are bytes, and one value is void
SMALL = 1024  # numbers in a configuration up to here are plausible whatever the tensors are
MODEL_NAME = re.compile(r"[\w.+-]+")  # names of hubs and paths have colons or slashes
NOT_OPTIONS = ("architecture", "protocol", "labels")
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # in bytes, of floating-point numbers
COMPUTED_WITH = ("weight", "bias", "running_mean", "running_var", "mean", "std")  # ends of names
INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")


class Place(NamedTuple):
    """Where a tensor lies in a safetensors file.

    Attributes:
        dtype: in safetensors' words, such as F32.
        shape: of the tensor.
        offset: of its first byte.
        length: in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def parse_json(text: str | bytes, source: Path) -> dict[str, Any]:
    """Parse a JSON object that comes with weights.

    Raises:
        WeightsError: it is none, is nested too deeply, or holds NaN, infinities or lone surrogates.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        values = json.loads(text, parse_constant=refuse)
        json.dumps(values, ensure_ascii=False).encode()
    except RecursionError as error:
        raise WeightsError(f"{source} does not describe a network: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise WeightsError(f"{source} does not describe a network: it holds lone surrogates") from error
    except ValueError as error:
        reason = "a number has too many digits" if "int_max_str_digits" in str(error) else str(error)
        raise WeightsError(f"{source} does not describe a network: {reason}; {RESTORE}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{source} does not describe a network; {RESTORE}")
    return values


def read_config_file(file: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        WeightsError: it is missing, larger than 16 MiB or damaged.
    """
    try:
        return parse_json(read_bounded(file, CONFIG_LIMIT), file)
    except OSError as error:
        raise WeightsError(f"{file} does not describe a network: {error.strerror}") from error


def read_header(file: Path) -> dict[str, Place]:
    """Return where each tensor lies in a safetensors file (length of the header, header in JSON, tensors).

    Raises:
        WeightsError: it is no such file, or cut short.
    """
    problem = f"{file} is not a readable safetensors file"
    remedy = "only safetensors weights are loaded; save them again with save_pretrained"
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise ValueError("it has no header")
            header = json.loads(stream.read(length))
        places = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)) or begin > end:
                raise ValueError(f"{name} has no shape or place")
            if 8 + length + end > size:
                raise ValueError("it is cut short")
            kind = entry["dtype"]
            if kind in SIZES and math.prod(shape) * SIZES[kind] != end - begin:
                raise ValueError(f"{name} has a shape of another size")
            places[name] = Place(kind, shape, 8 + length + begin, end - begin)
    except OSError as error:
        raise WeightsError(f"{problem} ({error.strerror}); {remedy}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{problem} ({str(error) or type(error).__name__}); {remedy}") from error
    if not places:
        raise WeightsError(f"{file} holds no tensors; give a folder that training wrote")
    if len(places) > MAX_TENSORS:
        raise WeightsError(f"{file} holds {len(places):,} tensors; networks here have {MAX_TENSORS:,} at most")
    return places


def check_values(file: Path, places: Mapping[str, Place]) -> None:
    """Check that the tensors of a safetensors file are numbers that a network can compute with.

    Raises:
        WeightsError: one is NaN or infinite, a variance is negative, or a deviation is not positive.
    """
    data = np.memmap(file, np.uint8, "r")
    for name, place in places.items():
        if place.dtype in INTEGERS and not name.endswith(COMPUTED_WITH):
            continue
        if place.dtype not in SIZES:
            raise WeightsError(f"{file}: the tensor {name} is of the type {place.dtype}, which is not supported here")
        numbers = _floats(data[place.offset : place.offset + place.length], place.dtype)
        if not np.isfinite(numbers).all():
            raise WeightsError(
                f"{file}: the tensor {name} holds NaN or infinite values; restore the file or train again"
            )
        if name == "std" and (numbers <= 0).any():
            raise WeightsError(f"{file}: the deviation std, by which images are divided, is not positive")
        if name.endswith("running_var") and (numbers < 0).any():
            raise WeightsError(f"{file}: the variance {name} is negative")


def _floats(data: UInt8Array, dtype: str) -> NDArray[np.floating]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, f"<f{SIZES[dtype]}")


def check_config(config: Mapping[str, Any], file: Path, places: Mapping[str, Place]) -> LabelSet | None:
    """Check what a config.json says against the tensors beside it.

    Args:
        config: its values.
        file: it, for messages.
        places: of the tensors, see `read_header`.

    Returns:
        The classes, where they are described.

    Raises:
        WeightsError: its classes, sizes or names make no sense.
    """
    if not isinstance(config.get("protocol", {}), dict):
        raise WeightsError(f"{file}: protocol is no mapping")
    classes = config.get("num_classes")
    if classes is not None and (type(classes) is not int or not 1 <= classes <= MAX_CLASSES):
        raise WeightsError(f"{file}: num_classes {classes} is not from 1 to {MAX_CLASSES}")
    options = {name: value for name, value in config.items() if name not in NOT_OPTIONS}
    plausible = max([SMALL, *(number for place in places.values() for number in place.shape)])
    for name, number in _numbers(options):
        if number > plausible:
            raise WeightsError(f"{file}: {name} {number} is larger than every dimension of the tensors beside it")
    layers = _layers(config)
    if layers > len(places):
        raise WeightsError(f"{file}: {layers:,} layers, but there are only {len(places)} tensors beside it")
    for name in ("encoder", "encoder_name"):
        given = config.get(name)
        if given is not None and (not isinstance(given, str) or not MODEL_NAME.fullmatch(given)):
            raise WeightsError(
                f"{file}: {name} {given} is the name of a hub or a path, which weights cannot bring along"
            )
    if "labels" not in config:
        return None
    try:
        labels = LabelSet.from_dict(config["labels"])
    except ValueError as error:
        raise WeightsError(f"{file}: {error}") from error
    if classes is not None and len(labels) != classes:
        raise WeightsError(f"{file}: {len(labels)} class names, but the network has {classes} outputs")
    return labels


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in plain values with the name of its option."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, str(key))
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, name)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, values


def _layers(config: Mapping[str, Any]) -> int:
    """Return how many dense layers a configuration asks for, as far as it says."""
    layers, poolings = config.get("layers_per_block"), config.get("num_poolings")
    if isinstance(layers, list):
        return sum(number for number in layers if isinstance(number, int))
    if isinstance(layers, int) and isinstance(poolings, int):
        return layers * (2 * poolings + 1)
    return 0
