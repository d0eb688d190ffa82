"""What a terminal shows of a text: how wide it is, with nothing in it that the terminal would obey."""
from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from typing import TextIO

from . import checks

COLORS = ("auto", "always", "never")
DEFAULT_SIZE = 80, 24
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats such as those that turn the direction of writing, surrogates, separators
COMBINING = ("Mn", "Me")


def is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def knows_escapes(stream: TextIO | None) -> bool:
    """Whether it is a terminal that moves and colours by escape sequences."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines; what a terminal has by custom where the stream does not know."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return DEFAULT_SIZE
    return columns or DEFAULT_SIZE[0], lines or DEFAULT_SIZE[1]


def wants_color(choice: str, stream: TextIO) -> bool:
    """Whether to write colours: "auto" does so on a terminal that knows them, unless NO_COLOR is set (no-color.org)."""
    checks.one_of("color", choice, COLORS)
    if choice != "auto":
        return choice == "always"
    return knows_escapes(stream) and not os.environ.get("NO_COLOR")


@lru_cache(4096)
def visible(character: str) -> str:
    """The character, or how it is written in Python where a terminal would do something instead of showing it."""
    if unicodedata.category(character) in UNSEEN:
        return character.encode("unicode_escape").decode() if character != "\t" else "    "
    return character


@lru_cache(4096)
def columns(character: str) -> int:
    """Of a visible character."""
    if unicodedata.category(character) in COMBINING:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shown(text: str) -> str:
    """A text as it may be written to a terminal; its lines stay lines."""
    return text if text.isascii() and text.isprintable() else "".join(c if c in "\n\t" else visible(c) for c in text)


def writable(text: str, stream: TextIO | None) -> str:
    """A text as a stream can take it: what its encoding has no bytes for is written as in Python."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def width(text: str) -> int:
    """Columns of a visible text."""
    return len(text) if text.isascii() else sum(map(columns, text))


def cut(text: str, most: int) -> str:
    """The beginning of a visible text that takes no more columns."""
    used = 0
    for i, c in enumerate(text):
        used += columns(c)
        if used > most:
            return text[:i]
    return text
