"""A repository of the Hugging Face hub -> its files on this machine, in the cache that the package huggingface_hub keeps."""
from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checks
from .errors import HubError, MissingPackageError, ModelFormatError
from .fallback import warn_caller

logger = logging.getLogger("llada_native")

# What a model is read from. Folders inside a repository hold other things, like the same weights for other programs.
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
         "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json", "*.safetensors")
IN_FOLDERS = "*/*"
# The hub's own rule for names is narrower; what it refuses it says itself.
REPOSITORY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<file>.*))?", re.ASCII)
# What git allows as a name.
REVISION = re.compile(r"(?!/)(?!.*\.\.)[^\s\x00-\x1f\x7f~^:?*\[\\]+")
PART = re.compile(r"-\d{5}-of-(\d{5}\.gguf)")  # of a file that llama-gguf-split divided
TIMEOUT = 10  # seconds that the hub has for its first answer


@dataclass(frozen=True)
class Place:
    """Where a model's files are; the commit, when they are a repository's."""

    path: Path
    revision: str | None = None


def locate(name: str | Path, revision: str | None = None) -> Place:
    """The folder or file of a name. What lies on this machine comes first; a `Path` is never a repository.

    Parameters
    ----------
    name : str or path
        Of a folder or a GGUF file, where ~ is the user's folder; or a repository: "organization/name", or "organization/name:file.gguf"
        for one of its GGUF files.
    revision : str, optional
        Branch, tag or commit of a repository; default its main branch.

    Raises
    ------
    ModelFormatError
        There is no such file, and no repository can have this name.
    MissingPackageError
        It may be a repository, and the package huggingface_hub is not installed.
    HubError
        The repository is missing, gated or out of reach, or lacks the revision or the files.
    TypeError, ValueError
        A revision that is none, or one of local files.
    """
    if revision is not None:
        if not isinstance(revision, str):
            raise TypeError(f"revision: expected a branch, tag or commit, found {revision!r}")
        if not REVISION.fullmatch(revision):
            raise ValueError(f"revision: expected a branch, tag or commit, found {revision!r}")
    if not os.path.lexists(name):
        name = type(name)(checks.expanded(str(name)))
    if isinstance(name, Path) or os.path.lexists(name):
        if revision is not None:
            raise ValueError(f"revision: is for repositories of the Hugging Face hub, and {name} is a path on this machine")
        return Place(Path(name))
    repository = REPOSITORY.fullmatch(name)
    if repository is None:
        raise ModelFormatError(f"{name or repr(name)}: expected a folder or GGUF file on this machine, or a repository of the Hugging Face "
                               "hub as 'organization/name' or 'organization/name:file.gguf', found neither")
    file = repository["file"]
    if file is not None and (not file.endswith(".gguf") or file.startswith("/") or ".." in file.split("/")):
        raise ModelFormatError(f"{name}: expected the name of a GGUF file after the colon, found {file!r}")
    return _Repository(repository["name"], file, revision or "main").fetched()


class _Repository:
    def __init__(self, name: str, file: str | None, revision: str) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants, errors
        except ImportError as e:
            raise MissingPackageError(f"{name}: no such path on this machine; repositories of the Hugging Face hub need the package "
                                      "huggingface_hub: pip install 'llada-native[hub]'") from e
        self.name, self.file, self.revision = name, file, revision
        self.hub, self.errors = huggingface_hub, errors
        self.offline: bool = constants.HF_HUB_OFFLINE

    def fetched(self) -> Place:
        """Its files, downloaded where the cache lacks them."""
        reason = self._out_of_reach()
        try:
            with self._named_errors():
                folder = Path(self._download(local_files_only=reason is not None))
        except self.errors.LocalEntryNotFoundError as e:
            raise HubError(f"{self.name}: no such path on this machine; expected the hub's answer, or all files of revision "
                           f"{self.revision!r} of a repository of this name in the cache, found neither: {reason or _first_line(e)}") from e
        except (self.errors.HTTPError, OSError) as e:
            raise HubError(f"{self.name}: the download stopped ({type(e).__name__}: {_first_line(e)}); the next one goes on from "
                           "there") from e
        path = folder if self.file is None else folder / self.file
        if not path.exists():
            raise HubError(f"{self.name}: expected {self.file} in the cache, found no such file: {reason}")
        if reason is not None and not self.offline:
            warn_caller(f"{self.name}: {reason}; going on with commit {folder.name} in the cache")
        logger.info("%s: revision %s is commit %s", self.name, self.revision, folder.name)
        return Place(path, folder.name)

    def _out_of_reach(self) -> str | None:
        """Why the hub does not answer; None when it does, and has what is wanted."""
        if self.offline:
            return "HF_HUB_OFFLINE forbids to ask the hub"
        try:
            with self._named_errors():
                info = self.hub.HfApi().model_info(self.name, revision=self.revision, timeout=TIMEOUT)
        except (self.errors.HTTPError, OSError) as e:
            return f"the hub is out of reach ({type(e).__name__}: {_first_line(e)})"
        self._require_files([sibling.rfilename for sibling in info.siblings or []])
        return None

    def _require_files(self, names: list[str]) -> None:
        wanted = self.file or "config.json"
        if wanted in names:
            return
        some = sorted(name for name in names if name.endswith(".gguf"))[:8]
        kinds = f"; a GGUF file of it is named like '{self.name}:{some[0]}'; there are {', '.join(some)}" if some else ""
        raise HubError(f"{self.name}: expected {wanted} in revision {self.revision!r}, found {len(names)} other file(s){kinds}")

    def _download(self, local_files_only: bool) -> str:
        if self.file is None:
            wanted: dict[str, Any] = {"allow_patterns": list(FILES), "ignore_patterns": [IN_FOLDERS]}
        else:
            wanted = {"allow_patterns": [PART.sub(r"-?????-of-\1", glob.escape(self.file))]}
        path: str = self.hub.snapshot_download(self.name, revision=self.revision, tqdm_class=_bar(), local_files_only=local_files_only,
                                               **wanted)
        return path

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """What a user can do something about."""
        e = self.errors
        try:
            yield
        except e.GatedRepoError as error:
            raise HubError(f"{self.name}: the repository is gated: accept its conditions on the hub, and set HF_TOKEN to a token of "
                           "that account") from error
        except e.RepositoryNotFoundError as error:
            raise HubError(f"{self.name}: expected a path on this machine or a repository of the Hugging Face hub, found neither; for a "
                           "private one set HF_TOKEN") from error
        except e.RevisionNotFoundError as error:
            raise HubError(f"{self.name}: expected a branch, tag or commit of the repository, found revision {self.revision!r}") from error
        except e.HFValidationError as error:
            raise ModelFormatError(f"{self.name}: expected a path on this machine or the name of a repository, found neither: "
                                   f"{_first_line(error)}") from error


def _bar() -> type:
    """The library's bar of files, on a terminal only, as it has its bars of bytes."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": kwargs.get("disable") or None})

    return Bar


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
