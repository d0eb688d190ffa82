"""How a generation decodes: the parts that options name, and which of them make no sense together."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import checks, specs
from .caching import NAMES as CACHES
from .caching import CachePolicy, Committed, Delayed, NoCache
from .denoiser import WANTS
from .editors import NAMES as EDITORS
from .editors import NoEditor, Remask, TokenEdit, Wino
from .selectors import NAMES as SELECTORS
from .selectors import Credit, Klass, Quota, Selector, Threshold
from .windows import NAMES as CANVASES
from .windows import Blocks, CausalBlocks, Grow, LookAhead

if TYPE_CHECKING:
    from .options import GenerationOptions

# Chosen from the frontier in docs/decoding.md.
PRESETS: dict[str, dict[str, Any]] = {
    "reference": {},
    "balanced": {"selector": Threshold(0.97), "early_stop": True},
    "fast": {"selector": Threshold(0.9), "cache": Delayed(refresh_every=8, doubt=0.9, prompt_every=32), "early_stop": True},
}
# Of block-causal models. "quality" and "speed" are those of LLaDA2.1 (arXiv:2602.08676), which was trained to edit.
BLOCK_CAUSAL_PRESETS: dict[str, dict[str, Any]] = {
    "reference": {},
    "quality": {"selector": Threshold(0.7, strict=True), "editor": TokenEdit(0.5)},
    "speed": {"selector": Threshold(0.5, strict=True), "editor": TokenEdit(0.0)},
}


def block_causal(attention_block: int, eos_id: int | None) -> dict[str, Any]:
    """The reference sampler of block-causal models: LLaDA2.0's `generate` (arXiv:2512.15745)."""
    return {"selector": Threshold(0.95, strict=True), "cache": Committed(), "canvas": CausalBlocks(attention_block),
            "early_stop": eos_id is not None}


@dataclass(frozen=True)
class Method:
    """A selector, a cache policy, a canvas policy, an editor, and whether answers end early."""

    selector: Selector
    cache: CachePolicy
    canvas: Blocks
    editor: NoEditor
    early_stop: bool

    @classmethod
    def resolve(cls, given: Mapping[str, Any]) -> Method:
        """The parts that options name; those of the reference sampler where they name none.

        Raises
        ------
        TypeError, ValueError
            No such part.
        """
        editor: NoEditor = named_part("editor", given.get("editor", "none"), EDITORS, NoEditor)
        selector = part("selector", given.get("selector", "quota"), SELECTORS, ("wants", "reveals_masks", "memory", "choose"))
        cache: CachePolicy = part("cache", given.get("cache", "none"), CACHES, ("keeps", "wants", "rows", "renews", "doubts"))
        canvas: Blocks = named_part("canvas", given.get("canvas", "blocks"), CANVASES, Blocks)
        if editor.drafts is not None and isinstance(selector, Quota):
            selector = editor.drafts
        for option, wants in (("selector", selector.wants), ("cache", cache.wants)):
            if isinstance(wants, str) or not set(wants) <= set(WANTS):
                found = repr(wants) if isinstance(wants, str) else ", ".join(sorted(wants))
                raise ValueError(f"{option}: expected to want some of {', '.join(WANTS)}, found {found}")
        return cls(selector, cache, canvas, editor, checks.boolean("early_stop", given.get("early_stop", False)))

    def __str__(self) -> str:
        """Its parts that are not the reference sampler's, as options name them."""
        parts = [(name, specs.spell(value, kinds)) for name, value, kinds in (
            ("selector", self.selector, SELECTORS), ("cache", self.cache, CACHES), ("canvas", self.canvas, CANVASES),
            ("editor", self.editor, EDITORS))]
        implied = (specs.spell(self.editor.drafts or Quota(), SELECTORS), "none", "blocks", "none")  # some editors bring a selector
        named = [f"{name} {text}" for (name, text), without in zip(parts, implied, strict=True) if text != without]
        return ", ".join([*named, *(["early stop"] if self.early_stop else [])])

    @property
    def wants(self) -> frozenset[str]:
        """The statistics of a `Prediction` that its parts read."""
        return frozenset({*self.selector.wants, *self.cache.wants, *(["probability"] if self.canvas.grows else [])})

    @property
    def draws_masks(self) -> bool:
        """Whether the mask token may be drawn. What changes a canvas counts its masks, and finished blocks that later ones have seen stay
        as they are."""
        return self.selector.reveals_masks and not self.editor.edits and not isinstance(self.canvas, CausalBlocks | Grow)

    @property
    def exact(self) -> bool:
        """Whether what is written is what the reference sampler writes."""
        return isinstance(self.selector, Quota) and not self.cache.keeps and type(self.canvas) is Blocks and not self.editor.edits

    def check(self, options: GenerationOptions, vocabulary: int, attention_block: int = 0) -> None:
        """Raises ValueError where options, parts and a model of such blocks contradict each other."""
        self._check_attention(attention_block)
        quota, selector, editor, canvas = isinstance(self.selector, Quota), self.selector, self.editor, self.canvas
        if editor.drafts is not None and selector != editor.drafts:
            raise ValueError(f"editor: {editor!r} reveals tokens by a rule of its own, found selector={selector!r} beside it")
        if not quota and options.remasking != "low_confidence":
            raise ValueError(f"remasking: {options.remasking!r} is an order for selector='quota'; {selector!r} has one of its own")
        if len(set(options.suppressed)) >= vocabulary:
            found = "the whole vocabulary" if self.draws_masks else "all but the mask token"
            raise ValueError(f"suppress_tokens: expected to leave a token to draw, found {found}")
        if self.early_stop and options.eos_id is None:
            raise ValueError("early_stop: the checkpoint names no end-of-text token to fill an answer with, so eos_id must be given")
        if options.logits_eos_inf and options.eos_id is None:
            raise ValueError("logits_eos_inf: the checkpoint names no end-of-text token to keep from the draw, so eos_id must be given")
        if options.confidence_eos_eot_inf and not options.end_ids:
            raise ValueError("confidence_eos_eot_inf: the checkpoint names no end token to keep for last, so one must be given")
        if isinstance(selector, Credit | Klass) and (options.temperature > 0 or options.confidence_eos_eot_inf):
            raise ValueError(f"selector: {selector!r} follows a distribution from pass to pass; expected temperature 0 and "
                             "confidence_eos_eot_inf=False")
        if isinstance(editor, Remask) and not quota:
            raise ValueError(f"editor: {editor!r} shares out the steps of a block, so it goes with selector='quota', found {selector!r}")
        if editor.edits and not isinstance(editor, Remask) and options.repetition_penalty != 1:
            raise ValueError(f"editor: {editor!r} judges written tokens, which repetition_penalty makes less likely for standing there; "
                             f"expected 1, found {options.repetition_penalty:g}")
        if isinstance(editor, Wino) and options.cfg_scale > 0:
            raise ValueError(f"editor: {editor!r} knows no guidance; expected cfg_scale 0, found {options.cfg_scale:g}")
        if isinstance(editor, Wino) and isinstance(self.cache, Delayed):
            raise ValueError(f"editor: {editor!r} tests tokens against the whole block as it stands; expected another cache than "
                             f"{self.cache!r}, which keeps part of it")
        if isinstance(canvas, LookAhead) and (quota or editor.edits):
            what = "selector='quota', whose shares are those of one block" if quota else f"editor={editor!r}, which works on one block"
            fits = "selector='threshold'" if quota else "editor='none'"
            raise ValueError(f"canvas: {canvas!r} fills several blocks at a time; expected another part than {what}: {fits} fits")
        if isinstance(canvas, Grow):
            if options.eos_id is None:
                raise ValueError("canvas: the checkpoint names no end-of-text token to tell the length by, so eos_id must be given")
            if options.logits_eos_inf or options.confidence_eos_eot_inf or options.eos_id in options.suppress_tokens:
                raise ValueError(f"canvas: {canvas!r} tells the length by the probability of the end token; expected no logits_eos_inf, no "
                                 "confidence_eos_eot_inf, and no suppress_tokens with it")
            if editor.edits:
                raise ValueError(f"editor: {editor!r} works on a block as it stands, and with canvas={canvas!r} blocks change")

    def _check_attention(self, attention_block: int) -> None:
        """A block-causal model has a canvas and a cache of its own."""
        if not attention_block:
            for option, value in (("canvas", self.canvas), ("cache", self.cache)):
                if isinstance(value, CausalBlocks | Committed):
                    raise ValueError(f"{option}: {value!r} is for block-causal models, and here every row sees the whole canvas; expected "
                                     "another")
            return
        has = f"the model is block-causal, with blocks of {attention_block} from the start of the prompt"
        if self.canvas != CausalBlocks(attention_block):
            raise ValueError(f"canvas: {has}; expected none or {CausalBlocks(attention_block)!r}, found {self.canvas!r}")
        if not isinstance(self.cache, Committed | NoCache):
            raise ValueError(f"cache: {has}, whose keys do not change once they are finished; expected 'committed' or 'none', found "
                             f"{self.cache!r}")
        if isinstance(self.editor, Wino):
            raise ValueError(f"editor: {has}, and {self.editor!r} needs rows that see the whole canvas; expected another")


def named_part(option: str, value: Any, known: Mapping[str, type[Any]], base: type[Any]) -> Any:
    """The same where there are no others than the known ones.

    Raises
    ------
    TypeError, ValueError
        No such name or parameter, or another object.
    """
    if isinstance(value, str):
        return specs.parse(option, value, known)
    if not isinstance(value, base):
        hint = f"; {value.__name__}() makes one" if isinstance(value, type) and issubclass(value, base) else ""
        kinds = ", ".join(kind.__name__ for kind in known.values())
        raise TypeError(f"{option}: expected one of {', '.join(map(repr, known))} or of {kinds}, found {value!r}{hint}")
    return value


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
        if 0 < len(missing) < len(list(attributes)):
            hint = f", which has no {', '.join(missing)}"
        raise TypeError(f"{option}: expected one of {', '.join(map(repr, known))} or an object with {', '.join(attributes)}, "
                        f"found {value!r}{hint}")
    return value
