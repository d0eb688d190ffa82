"""How a generation decodes: the parts that options name, and which of them make no sense together."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import checks, specs
from .caching import NAMES as CACHES
from .caching import CachePolicy, Delayed
from .denoiser import STATISTICS
from .selectors import NAMES as SELECTORS
from .selectors import Quota, Selector, Threshold

if TYPE_CHECKING:
    from .options import GenerationOptions



# Chosen from the frontier in docs/decoding.md.
PRESETS: dict[str, dict[str, Any]] = {
    "reference": {},
    "balanced": {"selector": Threshold(0.97), "early_stop": True},
    "fast": {"selector": Threshold(0.9), "cache": Delayed(refresh_every=8, doubt=0.7), "early_stop": True},
}


@dataclass(frozen=True)
class Method:
    """A selector, a cache policy, and whether answers end early."""

    selector: Selector
    cache: CachePolicy
    early_stop: bool

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Method:
        """The parts that options name; those of the reference sampler where they name none."""
        selector: Selector = part("selector", given.get("selector", "quota"), SELECTORS, ("wants", "reveals_masks", "memory", "choose"))
        cache: CachePolicy = part("cache", given.get("cache", "none"), CACHES, ("keeps", "wants", "rows", "doubts"))
        for option, wants in (("selector", selector.wants), ("cache", cache.wants)):
            if not set(wants) <= set(STATISTICS):
                raise ValueError(f"{option}: expected to want some of {', '.join(STATISTICS)}, found {', '.join(sorted(wants))}")
        return cls(selector, cache, checks.boolean("early_stop", given.get("early_stop", False)))

    @property
    def wants(self) -> frozenset[str]:
        """The statistics of a `Prediction` that its parts read."""
        return frozenset(self.selector.wants) | frozenset(self.cache.wants)

    @property
    def exact(self) -> bool:
        """Whether what is written is what the reference sampler writes."""
        return isinstance(self.selector, Quota) and not self.cache.keeps

    def check(self, options: GenerationOptions, vocabulary: int) -> None:
        """Raises ValueError where options and parts contradict each other."""
        if not isinstance(self.selector, Quota) and options.remasking != "low_confidence":
            raise ValueError(f"remasking: {options.remasking!r} is an order for selector='quota'; {self.selector!r} has one of its own")
        if len(set(options.suppressed)) >= vocabulary:
            found = "the whole vocabulary" if self.selector.reveals_masks else "all but the mask token"
            raise ValueError(f"suppress_tokens: expected to leave a token to draw, found {found}")
        if self.early_stop and options.eos_id is None:
            raise ValueError("early_stop: the checkpoint names no end-of-text token to fill an answer with, so eos_id must be given")


def part(option: str, value: Any, known: Mapping[str, type[Any]], attributes: Iterable[str]) -> Any:
    """An object as it is, or made from "name" or "name:parameter=value,...".

    Raises
    ------
    TypeError, ValueError
        No such name or parameter, or an object that lacks an attribute.
    """
    if isinstance(value, str):
        return specs.parse(option, value, known)
    missing = [a for a in attributes if not hasattr(value, a)]
    if isinstance(value, type) or missing:
        hint = f"; {value.__name__}() makes one" if isinstance(value, type) and not missing else ""
        raise TypeError(f"{option}: expected one of {', '.join(map(repr, known))} or an object with {', '.join(attributes)}, "
                        f"found {value!r}{hint}")
    return value
