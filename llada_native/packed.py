"""Packed weights in a file: written by the first load, mapped read-only by later ones, so that processes share one copy.

Nothing in such a file is trusted to fit: it is used only when it names the same weights, configuration, format and kernels, and has
exactly the size that those ask for. Its numbers are weights, and cannot do more harm than wrong weights.
"""
from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from . import _native
from .backend import TensorSource
from .errors import EngineError

logger = logging.getLogger("llada_native")

MAGIC = b"LLADAPK1"
LARGEST_TAG = 1 << 20
LONGEST_NAME = 80  # bytes of a checkpoint's name in that of its file
ABANDONED = 24 * 3600  # seconds after which an unfinished file is what a killed process left
PACKED_FORMAT = 2  # of the layout in memory; to be raised when a kernel's layout changes


def tag_of(source: TensorSource, dtype: str, group_size: int, isa: str, **origin: str | None) -> str:
    """What a file of packed weights must have been made from and for."""
    return json.dumps({"format": PACKED_FORMAT, "isa": isa, "dtype": dtype, "group_size": group_size, "config": asdict(source.config),
                       "weights": source.fingerprint(), **origin}, sort_keys=True)


def read_tag(path: Path) -> str:
    """The tag of a packed file; empty when it has none."""
    with path.open("rb") as f:
        head = f.read(len(MAGIC) + 8)
        length = int.from_bytes(head[len(MAGIC):], "little")
        tag = f.read(length) if head.startswith(MAGIC) and length <= LARGEST_TAG else b""
    return tag.decode("utf-8", "replace")


def file_of(source: TensorSource, folder: Path, dtype: str, group_size: int, isa: str) -> Path:
    """One file for each checkpoint, format and kernels; a stale one is replaced."""
    place = hashlib.sha256(os.fsencode(source.name)).hexdigest()[:8]
    name = os.fsencode(Path(source.name).name)[:LONGEST_NAME].decode("utf-8", "ignore")
    return folder / f"{name}-{place}-{isa}-{dtype}-{group_size}.llada"


def load(path: Path, tag: str, build: Callable[..., _native.NativeModel]) -> _native.NativeModel | None:
    """The model of a packed file; None when there is none that fits."""
    _remove_abandoned(path)
    if not os.path.isfile(path):
        return None
    try:
        return build(packed_file=str(path), tag=tag)
    except (EngineError, ValueError) as e:
        logger.info("packed weights are made anew: %s", e)
        return None


def save(path: Path, tag: str, model: _native.NativeModel) -> bool:
    """Write packed weights under another name, then put them in place: readers see the old file or the new one, whole."""
    unfinished = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        logger.warning("packed weights are not kept: %s", e)
        return False
    try:
        model.save(str(unfinished), tag)
        os.replace(unfinished, path)
    except (EngineError, OSError) as e:
        logger.warning("packed weights are not kept: %s", e)
        return False
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return True


def _remove_abandoned(path: Path) -> None:
    """What processes that were killed while they wrote have left of a file: as large as the weights."""
    for unfinished in path.parent.glob(f"{glob.escape(path.stem)}.*.unfinished"):
        with contextlib.suppress(OSError):  # another process's, or gone
            if time.time() - unfinished.stat().st_mtime > ABANDONED:
                unfinished.unlink()
