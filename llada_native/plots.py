"""Pictures of a run, by matplotlib, which the extra `viz` brings: when tokens were written, how sure they were, what passes computed."""
from __future__ import annotations

from typing import Any

import numpy as np

from .errors import MissingPackageError
from .trace import REVOKE, Growth, Trace

ORDER_COLOURS = "viridis"  # from early to late, told apart by colour-blind people too
COLOUR, OTHER_COLOUR = "#0b5c8f", "#b06000"


def commit_order(trace: Trace, request: int = 0, axes: Any = None) -> Any:
    """A point for every token that was written: its pass to the right, its position downwards, its colour the pass again.

    Parameters
    ----------
    trace : Trace
    request : int
    axes : matplotlib Axes, optional
        Where to draw; default a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    MissingPackageError
        There is no matplotlib.
    IndexError
        No such request.
    """
    axes, writes = _axes(axes), _writes(trace, request)
    passes = writes["forward"] + 1
    axes.scatter(passes, writes["position"] - trace.prompt_lengths[request], c=passes, cmap=ORDER_COLOURS, s=14)
    for border in _borders(trace, request):
        axes.axhline(border - 0.5, color="0.7", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(title="Order", xlabel="pass", ylabel="position in the answer")
    return axes


def confidence(trace: Trace, request: int = 0, axes: Any = None) -> Any:
    """The confidence of every token when it was written, over positions. Parameters are those of `commit_order`."""
    axes, writes = _axes(axes), _writes(trace, request)
    known = writes[np.isfinite(writes["confidence"])]
    axes.scatter(known["position"] - trace.prompt_lengths[request], known["confidence"], c=known["forward"] + 1, cmap=ORDER_COLOURS, s=14)
    for border in _borders(trace, request):
        axes.axvline(border - 0.5, color="0.7", linewidth=0.8)
    axes.set(title="Confidence", xlabel="position in the answer", ylabel="confidence when written")
    return axes


def rows(trace: Trace, request: int = 0, axes: Any = None) -> Any:
    """The rows that each pass computed; passes over the whole sequence in another colour. Parameters are those of `commit_order`."""
    axes, passes = _axes(axes), _passes(trace, request)
    for full, colour, label in ((False, COLOUR, "part of the sequence"), (True, OTHER_COLOUR, "whole sequence")):
        some = passes[passes["full"] == full]
        if len(some):
            axes.bar(some["forward"] + 1, some["rows"], width=1, color=colour, label=label)
    axes.set(title="Rows", xlabel="pass", ylabel="rows computed")
    axes.margins(y=0.2)  # room for the legend above the bars
    axes.legend(frameon=False, loc="upper right")
    return axes


def overview(trace: Trace, request: int = 0, axes: Any = None) -> Any:
    """The three beside each other, in an array of three Axes."""
    if axes is None:
        axes = _pyplot().subplots(1, 3, figsize=(13, 3.8), layout="constrained")[1]
    if not hasattr(axes, "__len__"):
        raise TypeError(f"axes: expected 3 of matplotlib's Axes, found {axes!r}")
    if len(axes) != 3:
        raise ValueError(f"axes: expected 3, found {len(axes)}")
    for draw, one in zip((commit_order, confidence, rows), axes, strict=True):
        draw(trace, request, one)
    return axes


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as e:
        raise MissingPackageError("plots are drawn by matplotlib, which is not installed: pip install 'llada-native[viz]'") from e
    return pyplot


def _axes(axes: Any) -> Any:
    return _pyplot().subplots(layout="constrained")[1] if axes is None else axes


def _checked(trace: Trace, request: int) -> int:
    if not isinstance(trace, Trace):
        raise TypeError(f"trace: expected a Trace, such as result.trace, found {type(trace).__name__}")
    trace.canvas(request, -1)  # refuses what there is not
    return request


def _writes(trace: Trace, request: int) -> Any:
    """Tokens that were written into the answer, at their positions in the last canvas."""
    request = _checked(trace, request)
    writes = trace.writes[trace.writes["request"] == request]
    for forward, of, position, added in trace.growths.tolist():  # after the writes of its pass
        if of == request:
            before = writes["forward"] <= forward
            writes["position"][before] = Growth(position, added).moved(writes["position"][before])
    return writes[(writes["kind"] != REVOKE) & (writes["position"] >= trace.prompt_lengths[request])]


def _passes(trace: Trace, request: int) -> Any:
    request = _checked(trace, request)
    return trace.passes[trace.passes["request"] == request]


def _borders(trace: Trace, request: int) -> list[int]:
    """Where blocks begin within the answer; nothing grows before the block that is being filled, so there they stay."""
    begins = np.unique(_passes(trace, request)["begin"]) - trace.prompt_lengths[request]
    return [int(b) for b in begins if b > 0]
