"""Which predictions of a forward pass are written, and which stay masks."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ._sampler import most_confident

if TYPE_CHECKING:
    from .denoiser import Prediction


class Selector(Protocol):
    """A rule over the open rows of one request."""

    @property
    def wants(self) -> frozenset[str]:
        """The statistics of a `Prediction` that it reads: of "probability", "second", "entropy"."""
        ...

    @property
    def reveals_masks(self) -> bool:
        """Whether the mask token may be drawn. It then spends a step, as in the reference sampler."""
        ...

    def memory(self) -> Any:
        """What it keeps of one request from pass to pass."""
        ...

    def choose(self, rows: Prediction, least: int, memory: Any) -> NDArray[np.intp]:
        """Indices into the rows, surest first: at least `least` of them, or all where there are fewer."""
        ...


@dataclass(frozen=True)
class Quota:
    """As many of the surest predictions as the schedule says: the reference sampler."""

    wants: ClassVar[frozenset[str]] = frozenset()
    reveals_masks: ClassVar[bool] = True

    def memory(self) -> None:
        return None

    def choose(self, rows: Prediction, least: int, memory: Any) -> NDArray[np.intp]:
        chosen = np.empty(least, np.intc)
        return chosen[:most_confident(rows.confidence, least, chosen)].astype(np.intp)
