"""From a folder or a configuration to a backend with its weights, and the defaults that a checkpoint states."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from . import _native, checks, packed
from .backend import Backend, IntegerRows, TensorSource, TensorSpec
from .byte_level import PATTERNS
from .checkpoint import Checkpoint, read_json, require_folder, tensor_name
from .config import ModelConfig
from .converted import Converted
from .errors import ModelFormatError, ModelMemoryError
from .fallback import FALLBACKS
from .families import FAMILIES
from .gguf_checkpoint import GROUP_SIZE, GGUFCheckpoint
from .gguf_tokenizer import tokenizer_files
from .machine import available_memory, default_threads
from .tokenizer import Tokenizer, special_token_id, stated_token
from .vocabulary_files import tokenizer_text

DTYPES = ("auto", "float32", "bfloat16", "bfloat16_fast", "float16", "int8", "int4")
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
BACKENDS = ("native", "reference", "placeholder")
GIB = 1 << 30


def check_engine(dtype: object, group_size: object, backend: object, num_threads: object, isa: object, fallback: object) -> None:
    """With a fallback, an instruction set that this build lacks is a failure of the engine, not of the caller."""
    checks.one_of("dtype", dtype, DTYPES)
    if group_size is not None and (group_size not in GROUP_SIZES or isinstance(group_size, bool)):
        raise (ValueError if isinstance(group_size, int) else TypeError)(
            f"group_size: expected one of {', '.join(map(str, GROUP_SIZES))}, found {group_size!r}")
    checks.one_of("backend", backend, BACKENDS)
    if num_threads is not None:
        checks.threads("num_threads", num_threads)
    if fallback is not None:
        checks.one_of("fallback", fallback, FALLBACKS)
    if isa is not None and not (fallback and isinstance(isa, str)):
        checks.one_of("isa", isa, _native.isas())


@dataclass(frozen=True)
class Opened:
    """A model's files: its weights, and what they say beside."""

    source: TensorSource
    tokenizer: Tokenizer | None
    defaults: dict[str, Any]
    dtype: str  # "auto" stands for it
    group_size: int  # where none is given
    tokenizer_texts: dict[str, str]  # of the files that a folder has for its tokenizer, where these files say it in another way


def open_model(place: Path, backend: str) -> Opened:
    """A checkpoint folder, a folder that `convert` wrote, or a GGUF file.

    Raises
    ------
    ModelFormatError, UnsupportedModelError
        It is malformed, or asks for what this version lacks.
    MissingPackageError
        It is a GGUF file, and the package gguf is not installed.
    """
    if os.path.isfile(place):
        checkpoint = GGUFCheckpoint(place)
        texts = tokenizer_files(place, checkpoint.metadata) or {}
        tokenizer = Tokenizer(place, texts) if texts else None
        opened = Opened(checkpoint, tokenizer, token_defaults(checkpoint.config, tokenizer, None), checkpoint.dtype, GROUP_SIZE, texts)
    else:
        source: TensorSource
        dtype, group_size = "float32", DEFAULT_GROUP_SIZE
        if backend == "placeholder":
            source = ConfigOnly(place)
        elif Converted.lies_in(place):
            source = Converted(place)
            dtype, group_size = source.dtype, source.group_size
        else:
            source = Checkpoint(place)
            dtype = "bfloat16" if set(source.dtypes.values()) == {"bfloat16"} else "float32"
        named = (place / "tokenizer.json").is_file()
        texts = {} if named else vocabulary_texts(place, source.config)
        tokenizer = Tokenizer(place, texts) if named or texts else None
        opened = Opened(source, tokenizer, generation_defaults(place, source.config, tokenizer), dtype, group_size, texts)
    if tokenizer is not None and tokenizer.largest_id >= opened.source.config.vocabulary:
        raise ModelFormatError(f"{tokenizer.path}: expected token ids below {opened.source.config.vocabulary} (rows of the embedding), "
                               f"found {tokenizer.largest_id}")
    return opened


def vocabulary_texts(folder: Path, config: ModelConfig) -> dict[str, str]:
    """tokenizer.json by its name, of a family whose folders have vocab.json and merges.txt for it."""
    words = FAMILIES[config.architecture].words
    text = tokenizer_text(folder, PATTERNS[words]) if words else None
    return {} if text is None else {"tokenizer.json": text}


def weight_bytes(config: ModelConfig, dtype: str, group_size: int) -> int:
    """Memory of the matrices, embedding and head included."""
    routers, scales = config.routers(), 2 / group_size
    others = config.matrices() - routers
    if dtype not in ("int8", "int4"):
        return others * (4 if dtype == "float32" else 2) + 4 * routers
    table, tied = config.vocabulary * config.d_model, config.weight_tying
    linear = others - table * (1 if tied else 2)
    return int(linear * ((0.5 if dtype == "int4" else 1) + scales) + 4 * routers + table * ((1 + scales) + (0 if tied else 2)))


def load_backend(source: TensorSource, backend: str, dtype: str, group_size: int, num_threads: int | None, isa: str | None,
                 cache_dir: Path | None = None) -> Backend:
    """A backend with its weights.

    Raises
    ------
    ModelMemoryError
        The weights do not fit into memory.
    ValueError
        The instruction set is absent or unsupported, LLADA_NUM_THREADS or LLADA_ISA is wrong, or a weight is beyond float16.
    """
    if backend == "native":
        if isa is not None:
            checks.one_of("isa", isa, _native.isas())
        return _load_native(source, dtype, group_size, default_threads() if num_threads is None else num_threads, isa or "", cache_dir)
    if backend == "reference":
        from .reference import ReferenceModel

        return ReferenceModel(source)
    from .placeholder import PlaceholderModel

    return PlaceholderModel(source.config)


def _load_native(source: TensorSource, dtype: str, group_size: int, threads: int, isa: str, cache_dir: Path | None) -> _native.NativeModel:
    """Maps packed weights when there are some that fit; packs them otherwise, and keeps them when there is a place for them."""
    if isinstance(source, Converted):
        return source.map(threads)
    build = partial(_native.NativeModel, source.config, dtype, threads, isa, group_size)
    if cache_dir is None:
        return pack(source, dtype, group_size, build)
    kernels = isa or _native.active_isa()
    path, tag = packed.file_of(source, cache_dir, dtype, group_size, kernels), packed.tag_of(source, dtype, group_size, kernels)
    model = packed.load(path, tag, build)
    if model is not None:
        return model
    model = pack(source, dtype, group_size, build)
    if packed.save(path, tag, model):
        return packed.load(path, tag, build) or model
    return model


def pack(source: TensorSource, dtype: str, group_size: int, build: Callable[[], _native.NativeModel],
         progress: Callable[[int], object] = lambda weights: None) -> _native.NativeModel:
    """A model with the weights of a source; `progress` hears how many of them are packed.

    Raises
    ------
    ModelMemoryError, ValueError
        As `load_backend`.
    """
    need = weight_bytes(source.config, dtype, group_size)
    have = available_memory()
    if have is not None and need > have:
        raise ModelMemoryError(f"the weights need {need / GIB:.1f} GiB as {dtype}, and {have / GIB:.1f} GiB are available"
                               + ("; dtype='int4' takes a quarter of bfloat16" if dtype != "int4" else ""))
    try:
        model, done = build(), 0
        for spec, begin, rows in source.slices():
            try:
                _store(model, spec, begin, rows)
            except OverflowError as e:
                raise ValueError(f"{tensor_name(spec, source.config.architecture)}: {e}") from e
            done += rows.size
            progress(done)
    except MemoryError as e:
        raise ModelMemoryError(f"the weights need {need / GIB:.1f} GiB as {dtype}; an allocation failed") from e
    return model


def _store(model: _native.NativeModel, spec: TensorSpec, begin: int, rows: NDArray[Any] | IntegerRows) -> None:
    """Integers as they are where the model holds such ones, as the floats they stand for elsewhere."""
    if isinstance(rows, IntegerRows):
        if model.load_integers(spec.role, spec.layer, begin, rows.values, rows.scales, spec.expert):
            return
        rows = rows.floats()
    model.load(spec.role, spec.layer, begin, rows, spec.expert)


class ConfigOnly:
    """A folder's configuration without its weights, for the placeholder."""

    def __init__(self, folder: Path) -> None:
        require_folder(folder)
        path = folder / "config.json"
        self.config = ModelConfig.from_dict(read_json(path), str(path))
        self.name = str(folder)

    def fingerprint(self) -> list[Any]:
        return []

    def slices(self) -> Any:
        raise ModelFormatError("this model was opened without its weights")


def generation_defaults(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Lengths from generation_config.json and token ids from the checkpoint."""
    defaults = token_defaults(config, tokenizer, folder)
    path = folder / "generation_config.json"
    stated = read_json(path) if path.is_file() else {}
    for key in ("gen_length", "block_length"):
        value = stated.get(key)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelFormatError(f"{path}: {key}: expected a positive whole number, found {value!r}")
            defaults[key] = value
    return defaults


def token_defaults(config: ModelConfig, tokenizer: Tokenizer | None, folder: Path | None) -> dict[str, Any]:
    """Token ids as far as the checkpoint states them. LLaDA-8B names the end of a turn in its tokenizer only, and others that of a text."""
    def named(token: str) -> int | None:
        if tokenizer is not None:
            return tokenizer.token_id(token)
        if folder is None:
            return None
        number = special_token_id(folder, token)
        if number is not None and number >= config.vocabulary:
            raise ModelFormatError(f"{folder / 'tokenizer_config.json'}: {token}: expected a token id from 0 to {config.vocabulary - 1}, "
                                   f"found {number}")
        return number

    eos, eot = config.eos_token_id, config.eot_token_id
    if eos is None:
        text = tokenizer.eos_token if tokenizer is not None else stated_token(folder, "eos_token") if folder is not None else None
        eos = None if text is None else named(text)
    if eot is None:
        eot = named(FAMILIES[config.architecture].end_of_turn)
    return {"mask_id": config.mask_token_id, "eos_id": eos, "eot_id": eot, "attention_block": config.attention_block}
