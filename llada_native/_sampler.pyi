from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class RowSampler:
    capacity: int
    temperature: float
    cfg_scale: float
    def __init__(
        self,
        capacity: int,
        temperature: float,
        cfg_scale: float,
        suppressed: Sequence[int],
        discounted: Sequence[int],
        streams: Sequence[np.random.BitGenerator],
    ) -> None: ...
    def begin(self, rows: int) -> None: ...
    def consume(self, tile: NDArray[np.float32], first: int, requests: NDArray[np.int32]) -> None: ...
    def finish(self, tokens: NDArray[np.intc], confidence: NDArray[np.float64]) -> int: ...
    def draw_confidence(self, requests: NDArray[np.int32], confidence: NDArray[np.float64]) -> None: ...

def most_confident(confidence: NDArray[np.float64], quota: int, chosen: NDArray[np.intc]) -> int: ...
