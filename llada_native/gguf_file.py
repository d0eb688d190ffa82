"""The container of a GGUF file: its metadata, and where its tensors lie. Nothing in it is trusted.

The `gguf` package dequantises; its reader takes a file at its word, so the few hundred bytes of structure are read here: every count and
length is held against what is left of the file before anything is made of it.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import refuse_stand_in
from .errors import MissingPackageError, ModelFormatError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # alike in little-endian files
LARGEST_HEADER = 1 << 28
LARGEST_ARRAY = 1 << 22  # texts or numbers of a metadata value, and tensors
LONGEST_NAME = 1 << 10
LARGEST_DIMENSION = 1 << 40
LARGEST_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, TEXT, ARRAY, U32 = 7, 8, 9, 4


@dataclass(frozen=True)
class BlockType:
    """How a tensor's elements are stored: so many bytes for so many of them."""

    name: str
    elements: int
    bytes: int
    scales: tuple[int, ...] = ()  # where in a block its float16 scales lie


TYPES = {0: BlockType("F32", 1, 4), 1: BlockType("F16", 1, 2), 30: BlockType("BF16", 1, 2),
         2: BlockType("Q4_0", 32, 18, (0,)), 3: BlockType("Q4_1", 32, 20, (0, 2)),
         6: BlockType("Q5_0", 32, 22, (0,)), 7: BlockType("Q5_1", 32, 24, (0, 2)), 8: BlockType("Q8_0", 32, 34, (0,)),
         12: BlockType("Q4_K", 256, 144, (0, 2)), 13: BlockType("Q5_K", 256, 176, (0, 2)), 14: BlockType("Q6_K", 256, 210, (208,))}


def gguf_package() -> ModuleType:
    """The `gguf` package.

    Raises
    ------
    MissingPackageError
        It is not installed.
    """
    try:
        import gguf
    except ImportError as e:
        raise MissingPackageError("GGUF files need the package gguf: pip install 'llada-native[gguf]'") from e
    return gguf


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file, its shape in NumPy's order: the dimension that runs fastest comes last."""

    name: str
    file: Path
    type: BlockType
    shape: tuple[int, ...]
    begin: int  # byte of the file

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.elements * self.type.bytes

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=object)) * self.row_bytes

    def rows(self, begin: int, end: int) -> NDArray[np.uint8]:
        """The bytes [end - begin, row_bytes] of rows, counted over all dimensions but the last. Mapped as long as they are in use."""
        try:
            return np.memmap(self.file, np.uint8, "r", self.begin + begin * self.row_bytes, (end - begin, self.row_bytes))
        except (OSError, ValueError) as e:  # ValueError: shorter than it was
            raise ModelFormatError(f"{self.file}: tensor {self.name}: cannot be read: {e}") from e


class GGUFFile:
    """Metadata and tensors of one file.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    metadata : dict
        Key -> number, bool, text, list of texts or array of numbers.
    tensors : dict of str to GGUFTensor

    Raises
    ------
    ModelFormatError
        The file is malformed.
    UnsupportedModelError
        A version, a byte order or a type of tensor that is not implemented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with path.open("rb") as f:
                head = f.read(256)
            refuse_stand_in(path, head)
            if head[:4] != MAGIC:
                found = f"a file that begins with {head[:4]!r}" if head else "an empty file"
                raise ModelFormatError(f"{path}: expected a checkpoint folder or a GGUF file, which begins with {MAGIC!r}, found {found}")
            cursor = _Cursor(path, self.size)
        except OSError as e:
            raise ModelFormatError(f"{path}: cannot be read: {e.strerror}") from e
        version = cursor.number("version", 4)
        if version not in VERSIONS:
            big_endian = version.to_bytes(4, "little") in (v.to_bytes(4, "big") for v in VERSIONS)
            raise UnsupportedModelError(f"{path}: expected GGUF version {' or '.join(map(str, VERSIONS))}, little-endian, found "
                                        + ("a big-endian file" if big_endian else f"version {version}"))
        n_tensors, n_keys = (cursor.count(f"number of {what}", least) for what, least in (("tensors", 25), ("metadata keys", 13)))
        self.metadata: dict[str, Any] = {}
        for i in range(n_keys):
            key = cursor.text(f"metadata key {i}", LONGEST_NAME)
            if key in self.metadata:
                raise ModelFormatError(f"{path}: duplicate key {key!r}")
            kind = cursor.number(key, 4)
            if key == "general.alignment" and kind != U32:
                raise ModelFormatError(f"{path}: {key}: expected type {U32} (u32), found type {kind}")
            self.metadata[key] = cursor.value(key, kind)
        self.tensors = self._tensors(cursor, n_tensors)

    def _tensors(self, cursor: _Cursor, count: int) -> dict[str, GGUFTensor]:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise ModelFormatError(f"{self.path}: general.alignment: expected a power of two up to {LARGEST_ALIGNMENT}, found {alignment}")
        headers: dict[str, tuple[tuple[int, ...], BlockType, int]] = {}
        for i in range(count):
            name = cursor.text(f"name of tensor {i}", LONGEST_NAME)
            if name in headers:
                raise ModelFormatError(f"{self.path}: duplicate tensor {name!r}")
            headers[name] = self._header(cursor, name, alignment)
        begin = end = -(-cursor.at // alignment) * alignment
        tensors = {name: GGUFTensor(name, self.path, kind, shape, begin + offset) for name, (shape, kind, offset) in headers.items()}
        before = "the metadata"
        for t in sorted(tensors.values(), key=lambda t: t.begin):
            following = -(-end // alignment) * alignment
            if t.begin != following:
                raise ModelFormatError(f"{self.path}: tensor {t.name}: expected to begin at byte {following}, behind {before}, "
                                       f"found byte {t.begin}")
            end, before = t.begin + t.bytes, t.name
            if end > self.size:
                raise ModelFormatError(f"{self.path}: tensor {t.name}: expected to end at byte {end}, found a file of {self.size} bytes")
        if self.size - end >= alignment:
            raise ModelFormatError(f"{self.path}: expected to end at byte {end}, with {before}, found a file of {self.size} bytes")
        return tensors

    def _header(self, cursor: _Cursor, name: str, alignment: int) -> tuple[tuple[int, ...], BlockType, int]:
        what = f"tensor {name}"
        rank = cursor.number(what, 4)
        if not 1 <= rank <= 4:
            raise ModelFormatError(f"{self.path}: {what}: expected 1 to 4 dimensions, found {rank}")
        shape = tuple(cursor.number(what, 8) for _ in range(rank))[::-1]
        if not all(1 <= n <= LARGEST_DIMENSION for n in shape):
            raise ModelFormatError(f"{self.path}: {what}: expected dimensions from 1 to {LARGEST_DIMENSION}, found {shape}")
        number = cursor.number(what, 4)
        if number not in TYPES:
            known = ", ".join(t.name for t in TYPES.values())
            raise UnsupportedModelError(f"{self.path}: {what}: expected a type of {known}, found {_type_name(number)}")
        kind = TYPES[number]
        if shape[-1] % kind.elements:
            raise ModelFormatError(f"{self.path}: {what}: expected rows of whole {kind.name} blocks of {kind.elements}, found {shape[-1]}")
        offset = cursor.number(what, 8)
        if offset % alignment:
            raise ModelFormatError(f"{self.path}: {what}: expected an offset that is a multiple of {alignment}, found {offset}")
        return shape, kind, offset


def shown(value: object) -> str:
    """A value for a message, however long."""
    if isinstance(value, list | np.ndarray):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _type_name(number: int) -> str:
    try:
        return str(gguf_package().GGMLQuantizationType(number).name)
    except ValueError:
        return f"unknown type {number}"


class _Cursor:
    """Reads one thing after the other, none beyond the end."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size, self.at = path, size, len(MAGIC)
        self.data = np.memmap(path, np.uint8, "r", shape=(min(size, LARGEST_HEADER),)).data

    def take(self, what: str, n: int) -> memoryview:
        begin, self.at = self.at, self.at + n
        if self.at > len(self.data):
            if self.at <= self.size:
                raise UnsupportedModelError(f"{self.path}: {what}: expected metadata of at most {LARGEST_HEADER} bytes")
            raise ModelFormatError(f"{self.path}: {what}: expected {n} bytes at byte {begin}, found a file of {self.size} bytes")
        return self.data[begin:self.at]

    def number(self, what: str, n: int) -> int:
        """A whole number of n bytes, without a sign."""
        return int.from_bytes(self.take(what, n), "little")

    def count(self, what: str, least: int) -> int:
        """Of things that take at least so many bytes each."""
        found = self.number(what, 8)
        most = min(LARGEST_ARRAY, (self.size - self.at) // least)
        if found > most:
            raise ModelFormatError(f"{self.path}: {what}: expected at most {most} in a file of {self.size} bytes, found {found}")
        return found

    def text(self, what: str, longest: int = LARGEST_HEADER) -> str:
        length = self.number(what, 8)
        if length > longest:
            raise ModelFormatError(f"{self.path}: {what}: expected a text of at most {longest} bytes, found {length}")
        data = bytes(self.take(what, length))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise ModelFormatError(f"{self.path}: {what}: expected UTF-8 text, found byte {data[e.start]:#04x}") from e

    def value(self, key: str, kind: int) -> Any:
        if kind == TEXT:
            return self.text(key)
        if kind == BOOL:
            return self.flags(key, 1)[0]
        if kind in NUMBERS:
            return self.numbers(key, kind, 1)[0].item()
        if kind != ARRAY:
            raise ModelFormatError(f"{self.path}: {key}: expected a type of value from 0 to 12, found {kind}")
        of = self.number(key, 4)
        if of == TEXT:
            return [self.text(key) for _ in range(self.count(key, 8))]
        if of == BOOL:
            return self.flags(key, self.count(key, 1))
        if of in NUMBERS:
            return self.numbers(key, of, self.count(key, np.dtype(NUMBERS[of]).itemsize))
        raise ModelFormatError(f"{self.path}: {key}: expected a list of texts, numbers or flags, found one of type {of}")

    def numbers(self, key: str, kind: int, count: int) -> NDArray[Any]:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(bytes(self.take(key, count * dtype.itemsize)), dtype)

    def flags(self, key: str, count: int) -> Sequence[bool]:
        data = bytes(self.take(key, count))
        for byte in data:
            if byte > 1:
                raise ModelFormatError(f"{self.path}: {key}: expected 0 or 1, found {byte}")
        return [byte == 1 for byte in data]
