"""A Hugging Face folder -> configuration and checked tensors. Nothing in a folder is trusted.

The bytes of safetensors files are parsed by the `safetensors` library, which refuses malformed headers, overlaps, holes and
truncation. This module adds what only the configuration knows: which tensors there must be, and their shapes.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import TensorSpec, tensor_specs
from .config import ModelConfig
from .errors import ModelFormatError, UnsupportedModelError
from .families import FAMILIES

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SAMPLE_BYTES = 1 << 20  # of a shard, at either end
SLICE_BYTES = 64 << 20  # what a load holds beside the packed weights
LARGEST_JSON = 64 << 20


def tensor_name(spec: TensorSpec, architecture: str = "LLaDAModelLM") -> str:
    """The name that published checkpoints of an architecture give to a tensor."""
    return FAMILIES[architecture].names[spec.role].format(layer=spec.layer, expert=spec.expert)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, and the tensors of the model that it holds one below another."""

    shape: tuple[int, ...]
    parts: tuple[TensorSpec, ...]

    def index(self, part: int, begin: int, end: int) -> tuple[int | slice, ...]:
        """Where rows begin to end of a part are."""
        if len(self.shape) > len(self.parts[part].shape):
            return part, slice(begin, end)
        above = sum(p.shape[0] for p in self.parts[:part])
        return (slice(above + begin, above + end),)


def stored_tensors(config: ModelConfig, stacked: bool) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by their names; those of experts each by itself, or stacked as [experts, out, in]."""
    family = FAMILIES[config.architecture]
    names = {**family.names, **family.stacked} if stacked else family.names
    parts: dict[str, list[TensorSpec]] = {}
    for spec in tensor_specs(config):
        parts.setdefault(names[spec.role].format(layer=spec.layer, expert=spec.expert), []).append(spec)
    found = {}
    for name, specs in parts.items():
        first = specs[0]
        shape = ((len(specs), *first.shape) if stacked and first.role in family.stacked
                 else (sum(s.shape[0] for s in specs), *first.shape[1:]))
        found[name] = StoredTensor(shape, tuple(specs))
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, strictly: no NaN or Infinity, no duplicate keys, not a web page or a Git LFS pointer."""
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise ModelFormatError(f"{path}: expected at most {LARGEST_JSON} bytes, found {size}")
        data = path.read_bytes()
    except OSError as e:
        raise ModelFormatError(f"{path}: cannot be read: {e.strerror}") from e
    refuse_stand_in(path, data[:256])

    def constant(name: str) -> None:
        raise ModelFormatError(f"{path}: {name} is not JSON: expected a finite number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            twice = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
            raise ModelFormatError(f"{path}: duplicate key {twice!r}")
        return seen

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=constant, object_pairs_hook=unique)
    except UnicodeDecodeError as e:
        raise ModelFormatError(f"{path}: expected UTF-8 text, found byte {data[e.start]:#04x} at offset {e.start}") from e
    except RecursionError as e:
        raise ModelFormatError(f"{path}: nested too deeply") from e
    except ValueError as e:
        if isinstance(e, ModelFormatError):
            raise
        raise ModelFormatError(f"{path}: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def require_folder(path: Path) -> None:
    """That a checkpoint may be in it."""
    if not os.path.isdir(path):  # unlike Path.is_dir, False for names that no file can have
        kind = "neither" if os.path.exists(path) else "nothing"
        raise ModelFormatError(f"{path}: expected a checkpoint folder or a GGUF file on this machine, found {kind}")


def refuse_stand_in(path: Path, head: bytes) -> None:
    """Say plainly what downloads that went wrong leave behind."""
    if head.startswith(b"version https://git-lfs"):
        raise ModelFormatError(f"{path}: this is a Git LFS pointer, not the file: run 'git lfs pull' or download it again")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise ModelFormatError(f"{path}: this is a web page, not the file: the download went wrong")


class Checkpoint:
    """A folder with config.json and safetensors weights, checked against each other.

    Parameters
    ----------
    folder : path

    Raises
    ------
    ModelFormatError
        Something is missing, malformed or contradicts the configuration.
    UnsupportedModelError
        The configuration or a tensor's dtype is not implemented.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        require_folder(self.folder)
        self.config = ModelConfig.from_dict(read_json(self._file("config.json")), str(self.folder / "config.json"))
        architecture = self.config.architecture
        # A head that is the embedding may be stored all the same. It is read along, to see that it is.
        head = TensorSpec("head", -1, (self.config.vocabulary, self.config.d_model))
        stored = self.config.weight_tying and FAMILIES[architecture].stores_tied_head
        self.copies = {tensor_name(head, architecture): StoredTensor(head.shape, (head,))} if stored else {}
        self.shards, self.tensors = self._find_shards()
        self.dtypes = self._check_tensors()

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not os.path.isfile(path):
            kind = "a link to nothing" if os.path.islink(path) else "no such file"
            raise ModelFormatError(f"{path}: {kind}; a checkpoint folder has one")
        return path

    def _find_shards(self) -> tuple[dict[str, Path], dict[str, StoredTensor]]:
        """Tensor name -> file, from the index or from the one unsharded file; and what the tensors are."""
        index_path = self.folder / "model.safetensors.index.json"
        if not index_path.is_file() and not index_path.is_symlink():  # a link to nothing is named when it is read
            single = self.folder / "model.safetensors"
            if not single.is_file() and not single.is_symlink():
                raise ModelFormatError(f"{self.folder}: expected model.safetensors or model.safetensors.index.json, found neither")
            with open_shard(single) as f:
                shards = dict.fromkeys(f.keys(), single)
            return shards, self._match_names(set(shards), str(single))
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelFormatError(f"{index_path}: weight_map: expected an object, found {type(weight_map).__name__}")
        shards = {name: self._shard_path(index_path, name, shard) for name, shard in weight_map.items()}
        tensors = self._match_names(set(shards), str(index_path))
        for path in sorted(set(shards.values())):
            with open_shard(path) as f:
                stored = set(f.keys())
            mapped = {name for name, p in shards.items() if p == path}
            if stored != mapped:
                raise ModelFormatError(f"{path}: does not hold the tensors that the index says: "
                                       f"{listed(('missing', mapped - stored), ('not in the index', stored - mapped))}")
        return shards, tensors

    def _shard_path(self, index: Path, name: str, shard: object) -> Path:
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
            raise ModelFormatError(f"{index}: tensor {name}: expected the name of a file in this folder, found {shard!r}")
        if not shard.endswith(".safetensors"):
            raise ModelFormatError(f"{index}: tensor {name}: expected a .safetensors file, found {shard!r}")
        return self._file(shard)

    def _match_names(self, names: set[str], source: str) -> dict[str, StoredTensor]:
        """What a file is to hold by config.json; the experts' tensors as it names them."""
        tensors, stacked = (stored_tensors(self.config, stacked) for stacked in (False, True))
        if not names.isdisjoint(stacked.keys() - tensors.keys()):
            tensors = stacked
        missing, unexpected = tensors.keys() - names, names - tensors.keys() - self.copies.keys()
        if missing or unexpected:
            raise ModelFormatError(f"{source}: tensors do not match config.json: "
                                   f"{listed(('missing', missing), ('unexpected', unexpected))}")
        return tensors

    def _check_tensors(self) -> dict[str, str]:
        """Shape and dtype of every tensor, all mistakes of a folder at once. Dtypes of those that are not float32 in any model."""
        wrong, dtypes, known = [], {}, self.tensors | self.copies
        for path in sorted(set(self.shards.values())):
            with open_shard(path) as f:
                for name in sorted(n for n, p in self.shards.items() if p == path):
                    stored = f.get_slice(name)
                    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
                    if dtype not in DTYPES:
                        raise UnsupportedModelError(f"{path}: tensor {name}: expected dtype F32, F16 or BF16, found {dtype}")
                    expected = known[name].shape
                    if shape != expected:
                        wrong.append(f"{name}: expected shape {expected}, found {shape}")
                    if len(expected) > 1 and known[name].parts[0].role != "router":
                        dtypes[name] = DTYPES[dtype]
        if wrong:
            raise ModelFormatError(f"{self.folder}: {len(wrong)} tensor(s) do not fit config.json: {'; '.join(wrong[:8])}"
                                   + ("; ..." if len(wrong) > 8 else ""))
        return dtypes

    @property
    def name(self) -> str:
        return str(self.folder.resolve())

    def fingerprint(self) -> list[Any]:
        return sampled(set(self.shards.values()))

    def slices(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any]]]:
        """Every tensor in slices of rows."""
        with ShardReader(self.shards) as read:
            for name, tensor, part, begin, end in self._pieces():
                spec = tensor.parts[part]
                rows = read(name, tensor.index(part, begin, end))
                for copy in self.copies if spec.role == "embedding" else ():
                    if copy in self.shards and not np.array_equal(rows, read(copy, (slice(begin, end),))):
                        raise ModelFormatError(f"{self.shards[copy]}: tensor {copy}: expected the rows of {name}, which config.json ties "
                                               f"to it, found others among rows {begin} to {end - 1}")
                yield spec, begin, rows

    def _pieces(self) -> Iterator[tuple[str, StoredTensor, int, int, int]]:
        """Name, tensor, part, and the rows from one to another of it that are read at a time."""
        for name, tensor in self.tensors.items():
            for part, spec in enumerate(tensor.parts):
                step = max(1, SLICE_BYTES // (4 * int(np.prod(spec.shape[1:], dtype=np.int64))))
                for begin in range(0, spec.shape[0], step):
                    yield name, tensor, part, begin, min(begin + step, spec.shape[0])


class ShardReader:
    """Reads parts of tensors. A shard stays open until another is wanted, or `SLICE_BYTES` of it were read, which stay mapped with it."""

    def __init__(self, shards: Mapping[str, Path]) -> None:
        self.shards = shards
        self.stack = ExitStack()
        self.path: Path | None = None
        self.file: Any = None
        self.bytes = 0

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __call__(self, name: str, index: tuple[int | slice, ...]) -> NDArray[Any]:
        path = self.shards[name]
        if path != self.path or self.bytes >= SLICE_BYTES:
            self.stack.close()
            self.file, self.path, self.bytes = self.stack.enter_context(open_shard(path)), path, 0
        with named_errors(path):
            array = np.ascontiguousarray(self.file.get_slice(name)[index])
        self.bytes += array.nbytes
        return array


def sampled(paths: Iterable[Path]) -> list[Any]:
    """Name, size, time of change and a hash of the beginning and the end of every file."""
    found = []
    for path in sorted(paths):
        status = path.stat()
        with path.open("rb") as f:
            sample = f.read(SAMPLE_BYTES)
            f.seek(max(0, status.st_size - SAMPLE_BYTES))
            sample += f.read()
        found.append([path.name, status.st_size, status.st_mtime_ns, hashlib.sha256(sample).hexdigest()])
    return found


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16, which safetensors asks for)
    from safetensors import safe_open

    with named_errors(path):
        with path.open("rb") as raw:
            refuse_stand_in(path, raw.read(256))
        with safe_open(path, framework="np") as f:
            yield f


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as e:
        raise ModelFormatError(f"{path}: not a valid safetensors file ({path.stat().st_size} bytes): {e}") from e
    except OSError as e:
        raise ModelFormatError(f"{path}: cannot be read: {e}") from e


def listed(*kinds: tuple[str, set[str]]) -> str:
    """The first names of each kind that has some."""
    parts = []
    for label, names in kinds:
        if names:
            some = sorted(names)[:4]
            parts.append(f"{len(names)} {label} ({', '.join(some)}{', ...' if len(names) > 4 else ''})")
    return "; ".join(parts)


class RandomWeights:
    """Random tensors of any shape, for benchmarks without a download: uniform, zero mean, standard deviation 1/sqrt(columns).

    Each tensor has its own child of the seed, so its values do not depend on the slices it is read in.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.name = f"{config}/random-{seed}"  # like a folder's, so that shapes do not share a packed file

    def fingerprint(self) -> list[Any]:
        return ["random", self.seed]

    def slices(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any]]]:
        specs = tensor_specs(self.config)
        for spec, child in zip(specs, np.random.SeedSequence(self.seed).spawn(len(specs)), strict=True):
            rng = np.random.Generator(np.random.SFC64(child))
            if len(spec.shape) == 1:
                middle, spread = (0.0, 0.1) if spec.role == "router_bias" else (0.0 if spec.role.endswith("_bias") else 1.0, 0.3)
                yield spec, 0, rng.uniform(middle - spread, middle + spread, spec.shape).astype(np.float32)
                continue
            rows, columns = spec.shape
            step = max(1, SLICE_BYTES // (4 * columns))
            width = np.float32(12**0.5 / columns**0.5)
            for begin in range(0, rows, step):
                values = rng.random((min(step, rows - begin), columns), np.float32)
                values -= np.float32(0.5)
                values *= width
                yield spec, begin, values
