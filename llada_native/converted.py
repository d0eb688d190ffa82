"""A folder that `convert` wrote: a checkpoint's description beside its weights as the engine holds them."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import _native, packed
from .checkpoint import read_json, sampled
from .config import ModelConfig
from .errors import EngineError, ModelFormatError, UnsupportedModelError

WEIGHTS = "model.llada"


class Converted:
    """Packed weights of one format and instruction set, with the folder's configuration.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    dtype, group_size, isa
        What the weights were packed as and for.
    revision : str or None
        The commit of the repository that they came from.

    Raises
    ------
    ModelFormatError
        A file is missing or malformed, or the weights are not those of config.json.
    UnsupportedModelError
        The weights have the layout of another version of this package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / WEIGHTS
        path = folder / "config.json"
        self.config = ModelConfig.from_dict(read_json(path), str(path))
        try:
            self.tag = packed.read_tag(self.file)
        except OSError as e:
            raise ModelFormatError(f"{self.file}: cannot be read: {e.strerror}") from e
        try:
            found = json.loads(self.tag)
            self.format, config = found["format"], found["config"]
            self.dtype, self.group_size, self.isa = str(found["dtype"]), int(found["group_size"]), str(found["isa"])
            self.revision: str | None = found.get("revision")
        except (KeyError, RecursionError, TypeError, ValueError) as e:
            raise ModelFormatError(f"{self.file}: is no file of packed weights") from e
        if self.format != packed.PACKED_FORMAT:
            raise UnsupportedModelError(f"{self.file}: packed weights of format {self.format}, this version reads {packed.PACKED_FORMAT}: "
                                        f"convert the checkpoint with it, over this folder with --force (it holds {self.stated()})")
        if config != json.loads(json.dumps(asdict(self.config))):
            raise ModelFormatError(f"{self.file}: was packed from another configuration than {path.name} has, or by another version of "
                                   "this package: convert the checkpoint again")

    @staticmethod
    def lies_in(folder: Path) -> bool:
        return os.path.isfile(folder / WEIGHTS)

    @property
    def name(self) -> str:
        return str(self.folder.resolve())

    def agreed(self, dtype: str, group_size: int | None, isa: str | None) -> str:
        """The instruction set, when what is asked for is what lies here.

        Raises
        ------
        ValueError
            Something else is asked for, or this processor lacks the instruction set.
        """
        wanted: dict[str, str | int] = {"dtype": dtype if dtype != "auto" else self.dtype,
                                        "isa": isa or os.environ.get("LLADA_ISA") or self.isa}
        if self.dtype in ("int8", "int4"):
            wanted["group_size"] = group_size or self.group_size
        for name, value in wanted.items():
            found = getattr(self, name)
            if value != found:
                whose = " in LLADA_ISA" if name == "isa" and not isa else ""
                raise ValueError(f"{name}: {self.folder} holds {self.stated()}, expected {name}={found!r}, found {value!r}{whose}: to have "
                                 "another, convert the checkpoint again: 'llada-native convert --help'")
        if not _native.isas().get(self.isa):
            usable = ", ".join(name for name, supported in _native.isas().items() if supported)
            raise ValueError(f"isa: {self.folder} holds {self.stated()}, and this processor has {usable}: to have another, convert the "
                             "checkpoint again: 'llada-native convert --help'")
        return self.isa

    def stated(self) -> str:
        groups = f" in groups of {self.group_size}" if self.dtype in ("int8", "int4") else ""
        return f"weights packed as {self.dtype}{groups} for {self.isa}"

    def map(self, threads: int) -> _native.NativeModel:
        try:
            return _native.NativeModel(self.config, self.dtype, threads, self.isa, self.group_size, str(self.file), self.tag)
        except (EngineError, ValueError) as e:
            raise ModelFormatError(str(e)) from e

    def fingerprint(self) -> list[Any]:
        return sampled([self.file])

    def slices(self) -> Iterator[Any]:
        raise UnsupportedModelError(f"{self.folder}: holds {self.stated()} and nothing else: use the checkpoint that it was converted from")
