"""vocab.json, merges.txt and the added tokens of a folder -> the tokenizer.json that says the same.

Dream's folders have these, and a Python class for them that is Qwen2's.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from .byte_level import added_token, tokenizer_json
from .checkpoint import listed, read_json
from .errors import ModelFormatError
from .tokenizer import read_file, tokenizer_options

VOCABULARY, MERGES, ADDED, OPTIONS = "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def tokenizer_text(folder: Path, pattern: str) -> str | None:
    """The text of tokenizer.json; None when the folder has neither a vocabulary nor merges.

    Parameters
    ----------
    folder : path
    pattern : str
        What splits text into words.

    Raises
    ------
    ModelFormatError
        A file is missing or malformed, or two contradict each other.
    """
    there = [name for name in (VOCABULARY, MERGES) if (folder / name).is_file()]
    if not there:
        return None
    if len(there) == 1:
        raise ModelFormatError(f"{folder}: expected tokenizer.json, or {VOCABULARY} and {MERGES}, found {there[0]} alone")
    tokens = _Tokens()
    vocabulary = _vocabulary(folder / VOCABULARY, tokens)
    merges = _merges(folder / MERGES, vocabulary)
    return tokenizer_json(vocabulary, merges, _added_tokens(folder, tokens), pattern)


class _Tokens:
    """Tokens and their ids as the files of a folder state them: each has one of its own."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.texts: dict[int, str] = {}

    def state(self, path: Path, text: str, number: object) -> None:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ModelFormatError(f"{path}: token {text!r}: expected a whole number from 0, found {number!r}")
        if self.texts.setdefault(number, text) != text:
            raise ModelFormatError(f"{path}: token {text!r}: expected an id of its own, found {number}, the id of {self.texts[number]!r}")
        if self.ids.setdefault(text, number) != number:
            raise ModelFormatError(f"{path}: token {text!r}: expected the id {self.ids[text]}, as stated before, found {number}")


def _vocabulary(path: Path, tokens: _Tokens) -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = read_json(path)
    for text, number in vocabulary.items():
        tokens.state(path, text, number)
    missing = set(ByteLevel.alphabet()) - vocabulary.keys()
    if missing:  # such bytes would vanish from texts
        raise ModelFormatError(f"{path}: expected a token for each of the 256 bytes, found {listed(('missing', missing))}")
    return vocabulary


def _merges(path: Path, vocabulary: dict[str, int]) -> list[list[str]]:
    try:
        lines = read_file(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ModelFormatError(f"{path}: expected UTF-8 text, found byte {e.object[e.start]:#04x} at offset {e.start}") from e
    merges = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ModelFormatError(f"{path}: line {number}: expected two tokens with a space between them, found {line!r}")
        strangers = {*pair, "".join(pair)} - vocabulary.keys()
        if strangers:
            raise ModelFormatError(f"{path}: line {number}: expected two tokens of {VOCABULARY} that make a third, found {line!r}: "
                                   f"{listed(('missing', strangers))}")
        merges.append(pair)
    return merges


def _added_tokens(folder: Path, tokens: _Tokens) -> list[dict[str, Any]]:
    """Of both files, by their ids. The older one has no flags and nothing but control tokens."""
    found: dict[int, dict[str, Any]] = {}
    decoder = tokenizer_options(folder).get("added_tokens_decoder") or {}
    place = f"{folder / OPTIONS}: added_tokens_decoder"
    if not isinstance(decoder, dict):
        raise ModelFormatError(f"{place}: expected an object, found {type(decoder).__name__}")
    for key, entry in decoder.items():
        if not (key.isascii() and key.isdecimal()):
            raise ModelFormatError(f"{place}: expected token ids, found {key!r}")
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise ModelFormatError(f"{place}: {key}: expected an object with the token's content, found {entry!r}")
        flags = {flag: entry.get(flag, False) for flag in (*FLAGS, "special")}
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise ModelFormatError(f"{place}: {key}: {flag}: expected true or false, found {value!r}")
        tokens.state(folder / OPTIONS, entry["content"], int(key))
        found[int(key)] = added_token(int(key), entry["content"], **flags)
    path = folder / ADDED
    for text, number in read_json(path).items() if path.is_file() else ():
        tokens.state(path, text, number)
        found.setdefault(number, added_token(number, text, special=True))
    return [found[number] for number in sorted(found)]
