"""Argument checks: each returns the value in its plain type, or says the name, what was expected and what was found."""
from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

import numpy as np

LARGEST_COUNT = 1 << 24
LARGEST_SCALE = 1e30
LARGEST_THREADS = 1024
LONGEST_SHOWN = 200  # characters of a wrong value
LONGEST_PRINTED = 4096  # bits; Python refuses to print numbers of some thousand digits


def shown(value: object) -> str:
    """A number for a message, however large."""
    if isinstance(value, int) and value.bit_length() > LONGEST_PRINTED:
        return f"a number of {value.bit_length()} bits"
    return str(value)


def cut(text: str) -> str:
    """A text for a message, without what would fill the screen."""
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def expanded(path: str) -> str:
    """A path in which ~ is the user's folder; what cannot be a path stays as it is, for others to refuse."""
    try:
        return os.path.expanduser(path)
    except ValueError:
        return path


def whole_number(name: str, value: object, low: int = 1, high: int = LARGEST_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, found {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, found {shown(value)}")
    return int(value)


def scale(name: str, value: object) -> float:
    """A number of at least 0; infinity and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, found {value!r}")
    number = value if isinstance(value, int) else float(value)  # a float16 cannot be compared with the limit
    if not 0 <= number <= LARGEST_SCALE:
        raise ValueError(f"{name}: expected a number from 0 to {LARGEST_SCALE:g}, found {shown(value)}")
    return float(number)


def between(name: str, value: object, low: float, high: float) -> float:
    """A number above `low` and up to `high`."""
    number = scale(name, value)
    if not low < number <= high:
        raise ValueError(f"{name}: expected a number above {low:g} and up to {high:g}, found {value}")
    return number


def within(name: str, value: object, low: float, high: float) -> float:
    """A number from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, found {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, found {shown(value)}")
    return float(value)


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, found {value!r}")
    return bool(value)


def one_of(name: str, value: object, choices: Iterable[str]) -> str:
    allowed = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, allowed))}, found {value!r}")
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, found {value!r}")
    return value


def token_id(name: str, value: object, vocabulary: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a token id, found {value!r}")
    if not 0 <= value < vocabulary:
        raise ValueError(f"{name}: expected a token id from 0 to {vocabulary - 1}, found {shown(value)}")
    return int(value)


def token_ids(name: str, values: object, vocabulary: int) -> tuple[int, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name}: expected a list of token ids, found {values!r}")
    return tuple(token_id(f"{name}[{i}]", value, vocabulary) for i, value in enumerate(values))


def threads(name: str, value: object) -> int:
    return whole_number(name, value, 1, LARGEST_THREADS)


def unknown_argument(key: str, known: Iterable[str]) -> TypeError:
    names = list(known)
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(names)}"
    return TypeError(f"unknown argument {key!r}: {hint}")
