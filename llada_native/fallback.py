"""What happens when an engine fails or is closed: a reason, in the log and as a warning, and another backend when the caller wants one."""
from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import checks
from .backend import Backend
from .errors import EngineError, GenerationCancelled, ModelMemoryError, NonFiniteLogitsError

logger = logging.getLogger("llada_native")

FALLBACKS = ("reference", "placeholder")
# What a working engine does not raise. Wrong arguments and malformed folders are not among them: no backend can help there.
ENGINE_FAILURES = (EngineError, ModelMemoryError, NonFiniteLogitsError)
WHAT_IT_IS = {"reference": "right answers in NumPy, slowly", "placeholder": "pseudo-logits, whose output means nothing"}


def checked_fallback(fallback: object) -> str | None:
    return None if fallback is None else checks.one_of("fallback", fallback, FALLBACKS)


def report(error: BaseException, backend: str, fallback: str, facts: dict[str, Any]) -> None:
    """Log everything that is known of a failure, and warn the package's caller that another backend takes over."""
    details = "; ".join(f"{name}: {value}" for name, value in facts.items())
    logger.error("the %s engine failed: %s: %s | %s | going on with backend=%r", backend, type(error).__name__, error, details, fallback,
                 exc_info=error)
    warn_caller(f"the {backend} engine failed ({type(error).__name__}: {error}); going on with backend={fallback!r}: "
                f"{WHAT_IT_IS[fallback]}")


def warn_caller(message: str) -> None:
    """A RuntimeWarning at the line that called this package."""
    frame, depth = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, RuntimeWarning, stacklevel=depth)


@contextmanager
def interruptible(backend: Backend) -> Iterator[None]:
    """A model that is closed meanwhile ends the work with `GenerationCancelled`, inside a forward pass or between two."""
    try:
        yield
    except (InterruptedError, ValueError) as e:
        if not backend.closed:
            raise
        raise GenerationCancelled("the model was closed while it was working") from e
