"""How a generation decodes: the parts that options name, and which of them make no sense together."""
from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import checks
from .caching import CachePolicy, NoCache
from .denoiser import STATISTICS
from .selectors import Quota, Selector

if TYPE_CHECKING:
    from .options import GenerationOptions

SELECTORS: dict[str, type[Any]] = {"quota": Quota}
CACHES: dict[str, type[Any]] = {"none": NoCache}


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
        cache: CachePolicy = part("cache", given.get("cache", "none"), CACHES, ("keeps", "rows", "doubts"))
        if not set(selector.wants) <= set(STATISTICS):
            raise ValueError(f"selector: expected to want some of {', '.join(STATISTICS)}, found {', '.join(sorted(selector.wants))}")
        return cls(selector, cache, checks.boolean("early_stop", given.get("early_stop", False)))

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
        name, _, arguments = value.partition(":")
        kind = known[checks.one_of(option, name, known)]
        try:
            call = ast.parse(f"f({arguments})", mode="eval").body
            if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
                raise ValueError("expected parameters by name")
            return kind(**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
        except (SyntaxError, TypeError, ValueError) as e:
            raise ValueError(f"{option}: expected '{name}' or '{name}:parameter=value,...', found {value!r} ({e})") from e
    missing = [a for a in attributes if not hasattr(value, a)]
    if isinstance(value, type) or missing:
        hint = f"; {value.__name__}() makes one" if isinstance(value, type) and not missing else ""
        raise TypeError(f"{option}: expected one of {', '.join(map(repr, known))} or an object with {', '.join(attributes)}, "
                        f"found {value!r}{hint}")
    return value
