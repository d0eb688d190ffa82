"""Parts of a decoding method by their names, as options and the command line give them."""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def parse(option: str, text: str, kinds: Mapping[str, type[Any]]) -> Any:
    """An object of a dataclass from its name and, after a colon, its parameters: "threshold", "threshold:tau=0.8,strict=true".

    Raises
    ------
    ValueError
        An unknown name or parameter (the message names the nearest), one given twice, or a value out of range.
    """
    name, colon, rest = text.partition(":")
    if name not in kinds:
        raise ValueError(f"{option}: expected {_choice(name, kinds)}, found {name!r}")
    known = [field.name for field in fields(kinds[name])]
    given: dict[str, Any] = {}
    for item in re.split(r",(?![^(]*\))", rest) if colon else []:  # not at the commas of (16,16)
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            known_here = f"; it has {', '.join(known)}" if known else ""
            raise ValueError(f"{name}: expected parameter=value, found {item!r}{known_here}")
        if key not in known:
            raise ValueError(f"{name}: expected {_choice(key, known)}, found parameter {key!r}")
        if key in given:
            raise ValueError(f"{name}: {key}: given twice")
        given[key] = _literal(value)
    try:
        return kinds[name](**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def spell(thing: Any, kinds: Mapping[str, type[Any]]) -> str:
    """The text that `parse` makes it from, without what is a default; its repr if it is of no known kind."""
    names = [name for name, kind in kinds.items() if type(thing) is kind]
    if not names:
        return repr(thing)
    given = [f"{f.name}={str(value).replace(' ', '')}" for f in fields(thing) if (value := getattr(thing, f.name)) != f.default]
    return names[0] + (":" + ",".join(given) if given else "")


def _choice(found: str, known: Iterable[str]) -> str:
    """What was to be expected, the nearest first."""
    names = list(known)
    for nearest in difflib.get_close_matches(found, names, n=1, cutoff=0.6):
        others = [name for name in names if name != nearest]
        return f"{nearest!r} or {'another of ' if others[1:] else ''}{', '.join(others)}" if others else repr(nearest)
    return f"one of {', '.join(names)}" if names else "no parameters"


def _literal(text: str) -> Any:
    """A value as it is written; what is none stays a string, for the check of its parameter to refuse."""
    if text.startswith("(") and text.endswith(")"):
        return tuple(_literal(part.strip()) for part in text[1:-1].split(","))
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
