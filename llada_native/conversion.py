"""`convert`: a checkpoint -> a folder that opens at once, because its weights lie there as the engine holds them."""
from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from . import _native, checks, packed
from .converted import WEIGHTS, Converted
from .errors import EngineError
from .gguf_checkpoint import GGUFCheckpoint
from .hub import locate
from .loading import GIB, Opened, check_engine, open_model, pack, weight_bytes
from .machine import default_threads

DESCRIPTION = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def convert(source: str | Path, out: str | Path, *, dtype: str = "auto", group_size: int | None = None, isa: str | None = None,
            num_threads: int | None = None, force: bool = False, revision: str | None = None,
            progress: Callable[[float], object] = lambda fraction: None) -> Path:
    """Write a folder that `LLaDAForCausalLM.from_pretrained` maps into memory, without reading the checkpoint again.

    Its weights are packed for one dtype and one instruction set: a copy of this machine's memory, to be made on each kind of machine. It
    appears whole or not at all.

    Parameters
    ----------
    source : path
        A checkpoint folder, a GGUF file, or a repository of the Hugging Face hub, as `LLaDAForCausalLM` takes it.
    out : path
        The folder to write; ~ is the user's folder.
    dtype, group_size, isa, num_threads
        As of `LLaDAForCausalLM`.
    force : bool
        Replace `out` when it is a folder that this function wrote.
    revision : str, optional
        Branch, tag or commit of a repository; default its main branch.
    progress : callable, optional
        Called with the fraction of the weights that are packed, from 0 to 1.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    FileExistsError
        `out` is there, and is not to be replaced.
    OSError
        It cannot be written, for instance because the disk is full.
    ModelFormatError, UnsupportedModelError, MissingPackageError, HubError, ModelMemoryError
        As of `LLaDAForCausalLM`.

    Examples
    --------
    >>> convert("path/to/LLaDA-8B-Instruct", "llada-8b-int4", dtype="int4")  # doctest: +SKIP
    """
    for name, value in (("source", source), ("out", out)):
        if not isinstance(value, str | Path):
            raise TypeError(f"{name}: expected a path, found {value!r}")
    check_engine(dtype, group_size, "native", num_threads, isa, None)
    out = Path(checks.expanded(str(out)))
    _require_free(out, checks.boolean("force", force))
    place = locate(source, revision)
    opened = open_model(place.path, "native")
    config, dtype, group_size = opened.source.config, opened.dtype if dtype == "auto" else dtype, group_size or opened.group_size
    if isinstance(opened.source, Converted):
        opened.source.slices()
    isa = isa or _native.active_isa()
    need, total = weight_bytes(config, dtype, group_size), config.n_parameters()
    threads = default_threads() if num_threads is None else num_threads
    with _unfinished(out, force) as folder:
        have = shutil.disk_usage(folder).free
        if need > have:
            raise OSError(f"{out}: the weights need {need / GIB:.1f} GiB as {dtype}, and {have / GIB:.1f} GiB are free on that disk")
        def advance(done: int) -> None:
            os.utime(folder)  # somebody is at work
            progress(done / total)

        advance(0)
        model = pack(opened.source, dtype, group_size, partial(_native.NativeModel, config, dtype, threads, isa, group_size),
                     advance)
        try:
            model.save(str(folder / WEIGHTS), packed.tag_of(opened.source, dtype, group_size, isa, revision=place.revision))
        except EngineError as e:
            raise OSError(f"{out}: the weights cannot be written: is the disk full? {need / GIB:.1f} GiB are needed") from e
        finally:
            model.close()
        _describe(place.path, opened, folder)
    return out


def _describe(source: Path, opened: Opened, folder: Path) -> None:
    """What a folder has beside the weights."""
    if isinstance(opened.source, GGUFCheckpoint):
        (folder / "config.json").write_text(json.dumps(opened.source.config_json, indent=2), "utf-8")
    for name in DESCRIPTION:
        if name in opened.tokenizer_texts:
            (folder / name).write_text(opened.tokenizer_texts[name], "utf-8")
        elif (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _require_free(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise FileExistsError(f"{out}: is there already; force (--force) replaces a folder that convert wrote")
    if out.is_symlink() or not out.is_dir() or {p.name for p in out.iterdir()} - {WEIGHTS, *DESCRIPTION} or not Converted.lies_in(out):
        raise FileExistsError(f"{out}: was not written by convert, and is not replaced")


@contextmanager
def _unfinished(out: Path, force: bool) -> Iterator[Path]:
    """A folder to fill, which then becomes `out`; nothing is left of it when filling it fails."""
    # A relative path may lead through the folder that is renamed; a link at its end is not followed.
    out = out.resolve() if out.name in ("", "..") else out.parent.resolve() / out.name
    folder, old = (out.with_name(f".{out.name}.{uuid.uuid4().hex}.{kind}") for kind in ("unfinished", "old"))
    _remove_abandoned(out)
    folder.mkdir(parents=True)
    try:
        yield folder
        _require_free(out, force)
        if os.path.lexists(out):
            os.rename(out, old)
            os.utime(old)
        os.rename(folder, out)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(out):
            os.rename(old, out)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """What processes that were killed while they filled or replaced such a folder have left of it: as large as the weights."""
    names = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{32}}\.(unfinished|old)")
    for folder in out.parent.glob(".*"):
        found = names.fullmatch(folder.name)
        if found is None or (found[1] == "old" and not os.path.lexists(out)):  # the only one that there is
            continue
        with suppress(OSError):  # another process's, or gone
            if time.time() - max(path.lstat().st_mtime for path in (folder, *folder.iterdir())) > packed.ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
