"""The arguments of a generation, named, typed and checked once."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from . import checks
from ._sampler import REMASKING
from .backend import CACHE_DTYPES
from .caching import CachePolicy
from .editors import NoEditor
from .method import BLOCK_CAUSAL_PRESETS, PRESETS, Method, block_causal
from .selectors import Selector
from .windows import Blocks, Grow

ALIASES = {"steps": "max_steps", "temperature_": "temperature", "max_new_tokens": "gen_length", "mask_token_id": "mask_id",
           "eos_token_id": "eos_id", "eot_token_id": "eot_id", "topp_": "top_p", "topk_": "top_k",
           "topp": "top_p", "topk": "top_k"}
# The reference sampler's own defaults; a checkpoint's generation_config.json may state others.
DEFAULT_GEN_LENGTH = 128
DEFAULT_BLOCK_LENGTH = 128
GROWING_BLOCK_LENGTH = 32
LARGEST_PENALTY = 1e6
LARGEST_SEED = (1 << 128) - 1


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate. Token ids equal the reference sampler's (ML-GSAI/LLaDA, generate.py) for the same values.

    Attributes
    ----------
    max_steps : int
        Denoising steps, over all blocks; a multiple of the number of blocks. Of block-causal models an answer may touch one block more than
        its length has, with as many steps again.
    gen_length : int or "auto"
        Tokens of the canvas; a multiple of block_length. "auto" is canvas="grow": the canvas starts short and grows to what the answer
        needs.
    block_length : int
        Tokens of a block. Blocks are filled from left to right. Of block-causal models: the model's own, and gen_length need not be a
        multiple.
    temperature : float
        0 is deterministic. Above it, float64 Gumbel noise draws from softmax(logits / temperature).
    cfg_scale : float
        Unsupervised classifier-free guidance: logits + cfg_scale * (logits - logits without the prompt).
    remasking : {"low_confidence", "random", "entropy", "margin"}
        Which predictions a step keeps: those with the most probable tokens, any, those whose distributions have the least entropy, or
        those whose likeliest token is furthest ahead of the second (the orders of Dream, arXiv:2508.15487).
    mask_id, eos_id, eot_id : int or None
        Special tokens; those of the checkpoint.
    logits_eos_inf : bool
        Never draw the end-of-text token.
    confidence_eos_eot_inf : bool or "compat"
        Keep end tokens for last: their confidence is 0 and they do not count in the confidence of others. "compat" does what the
        reference does, where end-of-text is exempt above temperature 0.
    top_k : int
        Draw among the k most likely tokens; 0 for all. Without temperature it changes nothing, nor does top_p.
    top_p : float
        Draw among the fewest most likely tokens whose mass, after temperature and top_k, reaches p. Confidences are those of the whole
        distribution.
    repetition_penalty : float
        Above 1, tokens of the prompt and of the answer so far become less likely: positive logits are divided by it, negative ones
        multiplied (Keskar et al., arXiv:1909.05858).
    suppress_tokens : tuple of int
        Tokens that are never drawn.
    preset : {"reference", "balanced", "fast"}
        A tested bundle of selector, cache and early_stop; what is given beside it wins. Of block-causal models: "reference", and those of
        LLaDA2.1, "quality" and "speed".
    selector : Selector, or its name with parameters, like "threshold:tau=0.9"
        Which predictions a forward pass keeps. "quota": as many as the schedule says, in the order of `remasking`.
    cache : CachePolicy, or its name with parameters, like "delayed:refresh_every=8"
        Which rows a forward pass computes. "none": all of them, which is exact. "committed", the default of block-causal models: those of
        the block that is being filled, which is exact too.
    canvas : Blocks, SuffixWindow, LookAhead or Grow, or its name with parameters, like "suffix_window:length=128"
        Which positions are there while a block is filled. "blocks": all.
    editor : TokenEdit, Remask or Wino, or its name with parameters, like "token_edit:tau=0.9"
        What may happen to tokens after they were written. "none": nothing.
    cache_dtype : {"float32", "float16"}
        Of the keys and values that `cache` keeps; float16 halves their memory and rounds them.
    early_stop : bool
        A request is finished once no mask is left before its first end token, with an editor at the end of a block; end-of-text fills the
        rest. Up to there, answers are what they are without.
    """

    max_steps: int
    gen_length: int
    block_length: int
    temperature: float
    cfg_scale: float
    remasking: Literal["low_confidence", "random", "entropy", "margin"]
    mask_id: int
    eos_id: int | None
    eot_id: int | None
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool | Literal["compat"]
    top_k: int
    top_p: float
    repetition_penalty: float
    suppress_tokens: tuple[int, ...]
    preset: str
    selector: Selector
    cache: CachePolicy
    canvas: Blocks
    editor: NoEditor
    cache_dtype: Literal["float32", "float16"]
    early_stop: bool

    @property
    def method(self) -> Method:
        return Method(self.selector, self.cache, self.canvas, self.editor, self.early_stop)

    @property
    def title(self) -> str:
        """How it decodes, on one line."""
        method, length = str(self.method), "auto" if self.canvas.grows else self.gen_length
        parts = [method or "reference", f"length {length}", f"blocks of {self.block_length}"]
        if not method or "selector" not in method:
            parts.append(f"{self.max_steps} steps")
        if self.remasking != "low_confidence":
            parts.append(self.remasking)
        parts += [f"{name} {value:g}" for name, value in (("temperature", self.temperature), ("guidance", self.cfg_scale)) if value]
        return ", ".join(parts)

    @property
    def blocks(self) -> int:
        """Of the canvas at the start."""
        return -(-self.gen_length // self.block_length)

    @property
    def steps_per_block(self) -> int:
        return self.max_steps // self.blocks

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return [i for i in (self.eos_id, self.eot_id) if i is not None]

    @property
    def suppressed(self) -> list[int]:
        """Tokens whose logit is -inf from the start."""
        return [*self.suppress_tokens, *([self.eos_id] if self.logits_eos_inf and self.eos_id is not None else []),
                *([] if self.method.draws_masks else [self.mask_id])]

    @property
    def discounted(self) -> list[int]:
        """Tokens whose logit is -inf in the confidence only.

        The reference sets N[EOS] and L[EOT] to -inf after the draw. At temperature 0 N is L itself, so both count; above it N is
        a copy that is not read again, so only EOT does.
        """
        if not self.confidence_eos_eot_inf or self.remasking == "random":
            return []
        if self.confidence_eos_eot_inf == "compat" and self.temperature > 0:
            return [] if self.eot_id is None else [self.eot_id]
        return self.end_ids

    @classmethod
    def resolve(cls, given: Mapping[str, Any], defaults: Mapping[str, Any], vocabulary: int,
                others: Sequence[str] = ()) -> GenerationOptions:
        """Options from keyword arguments, aliases included, completed by a checkpoint's defaults; `others` are as `named` has them.

        Raises
        ------
        TypeError
            An unknown argument (the message names the nearest), one given twice, or one of the wrong type.
        ValueError
            A value out of range, or lengths that do not divide.
        """
        values = named(given, others)
        known, elsewhere, kind = PRESETS, BLOCK_CAUSAL_PRESETS, "LLaDA2.1"
        if defaults.get("attention_block"):
            known, elsewhere, kind = BLOCK_CAUSAL_PRESETS, PRESETS, "models with full attention"
        preset = values.get("preset", "reference")
        if isinstance(preset, str) and preset in elsewhere.keys() - known.keys():
            raise ValueError(f"preset: expected one of {', '.join(map(repr, known))}, found {preset!r}, a preset of {kind}")
        preset = checks.one_of("preset", preset, known)
        brought = {name: part for name, part in known[preset].items() if name not in values}
        try:
            return cls._resolve({**brought, **values}, preset, defaults, vocabulary)
        except ValueError as error:
            if not any(repr(part) in str(error) for part in brought.values()):
                raise
            parts = ", ".join(f"{name}={part!r}" for name, part in brought.items())
            raise ValueError(f"{error}; preset={preset!r} brings {parts}, in the place of which others can be given") from error

    @classmethod
    def _resolve(cls, values: dict[str, Any], preset: str, defaults: Mapping[str, Any], vocabulary: int) -> GenerationOptions:
        attention_block = defaults.get("attention_block", 0)
        if attention_block:
            eos_id = values.get("eos_id", defaults.get("eos_id"))
            values = {**block_causal(attention_block, eos_id), **values}
        auto = isinstance(values.get("gen_length"), str)
        if auto:
            if values["gen_length"] != "auto":
                raise TypeError(f"gen_length: expected a whole number or 'auto', found {values['gen_length']!r}")
            values = {"canvas": "grow", **values}
        method = Method.resolve(values)
        if isinstance(method.canvas, Grow):
            for name in ("gen_length", "max_steps"):
                if name in values and not (name == "gen_length" and auto):
                    raise ValueError(f"{name}: canvas={method.canvas!r} finds the length of the answer, and begins with its `start`; "
                                     f"expected no {name}, found {values[name]}")
            gen_length = method.canvas.start
            longest = defaults.get("block_length", GROWING_BLOCK_LENGTH)
            block_length = checks.whole_number("block_length", values.get("block_length", longest))
            max_steps = block_length * -(-gen_length // block_length)
        elif auto:
            raise ValueError(f"gen_length: 'auto' is canvas='grow', found canvas={method.canvas!r} beside it")
        else:
            gen_length, block_length, max_steps = _lengths(values, defaults)
        remasking = checks.one_of("remasking", values.get("remasking", "low_confidence"), REMASKING)
        flag = values.get("confidence_eos_eot_inf", False)
        if not (isinstance(flag, str) and flag == "compat"):
            if not isinstance(flag, bool | np.bool_):
                raise TypeError(f"confidence_eos_eot_inf: expected True or False, or 'compat', found {flag!r}")
            flag = bool(flag)
        ids = {name: None if value is None else checks.token_id(name, value, vocabulary)
               for name in ("mask_id", "eos_id", "eot_id") for value in [values.get(name, defaults.get(name))]}
        suppressed = checks.token_ids("suppress_tokens", values.get("suppress_tokens", ()), vocabulary)
        logits_eos_inf = checks.boolean("logits_eos_inf", values.get("logits_eos_inf", False))
        if ids["mask_id"] is None:
            raise ValueError("mask_id: the checkpoint names no mask token, so it must be given")
        options = cls(
            max_steps=max_steps,
            gen_length=gen_length,
            block_length=block_length,
            temperature=checks.scale("temperature", values.get("temperature", 0.0)),
            cfg_scale=checks.scale("cfg_scale", values.get("cfg_scale", 0.0)),
            remasking=remasking,  # type: ignore[arg-type]
            mask_id=ids["mask_id"],
            eos_id=ids["eos_id"],
            eot_id=ids["eot_id"],
            logits_eos_inf=logits_eos_inf,
            confidence_eos_eot_inf=flag,
            top_k=checks.whole_number("top_k", values.get("top_k", 0), 0),
            top_p=checks.between("top_p", values.get("top_p", 1.0), 0, 1),
            repetition_penalty=checks.between("repetition_penalty", values.get("repetition_penalty", 1.0), 1 / LARGEST_PENALTY,
                                              LARGEST_PENALTY),
            suppress_tokens=suppressed,
            preset=preset,
            selector=method.selector,
            cache=method.cache,
            canvas=method.canvas,
            editor=method.editor,
            cache_dtype=checks.one_of("cache_dtype", values.get("cache_dtype", "float32"), CACHE_DTYPES),  # type: ignore[arg-type]
            early_stop=method.early_stop,
        )
        method.check(options, vocabulary, attention_block)
        return options


# What a model is made with: said apart, because it is often tried in a call.
MODEL_NAMES = ("dtype", "group_size", "cache_dir", "num_threads", "isa", "backend")
# What `LLaDAForCausalLM.generate` takes beside options.
CALL_NAMES = ("prompts", "attention_mask", "chat", "seed", "callback", "verbose", "constraints", "fallback", "live", "streamer", "carry")
# Of these, what a stream has no use for.
GENERATE_NAMES = ("callback", "verbose", "live", "streamer", "fallback")
STREAM_NAMES = (*(name for name in CALL_NAMES if name not in GENERATE_NAMES), "drafts")
OPTION_NAMES = tuple(f.name for f in fields(GenerationOptions))


def checked_seed(seed: Any, prompts: int) -> int | list[int] | None:
    """A seed for the batch, or one a prompt."""
    if seed is None:
        return None
    if isinstance(seed, list | tuple) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
        if len(seed) != prompts:
            raise ValueError(f"seed: expected one for each of {prompts} prompts, found {len(seed)}")
        return [checks.whole_number(f"seed[{i}]", s, 0, LARGEST_SEED) for i, s in enumerate(seed)]
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: expected a whole number or one a prompt, found {seed!r}")
    return checks.whole_number("seed", seed, 0, LARGEST_SEED)


def named(given: Mapping[str, Any], others: Sequence[str] = ()) -> dict[str, Any]:
    """Aliases to their names; None means the default. `others`, what the call takes beside options, may be meant by an unknown name."""
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name == "drafts":
            raise TypeError("drafts: is for generate, stream and infill, whose traces keep them")
        if name in MODEL_NAMES:
            raise TypeError(f"unknown argument {key!r}: it is one of the model, LLaDAForCausalLM.from_pretrained(..., {key}=...)")
        if name in CALL_NAMES:
            raise TypeError(f"unknown argument {key!r}: it is no option but one of a call, LLaDAForCausalLM.generate(..., {key}=...)")
        if name not in OPTION_NAMES:
            raise checks.unknown_argument(key, (*OPTION_NAMES, *ALIASES, *others))
        if name in values:
            raise TypeError(f"{name}: given twice, as {spelled[name]!r} and as {key!r}")
        values[name], spelled[name] = value, key
    return {name: value for name, value in values.items() if value is not None}


def _lengths(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[int, int, int]:
    """gen_length, block_length and max_steps, which divide each other."""
    gen_length = checks.whole_number("gen_length", values.get("gen_length", defaults.get("gen_length", DEFAULT_GEN_LENGTH)))
    if attention_block := defaults.get("attention_block", 0):
        return _causal_lengths(values, gen_length, attention_block)
    block_default = _divisor_near(gen_length, defaults.get("block_length", DEFAULT_BLOCK_LENGTH))
    block_length = checks.whole_number("block_length", values.get("block_length", block_default))
    if gen_length % block_length:
        raise ValueError(f"block_length: expected a divisor of gen_length ({gen_length}), found {block_length}; "
                         f"{_nearest_divisors(gen_length, block_length)} would do")
    blocks = gen_length // block_length
    max_steps = checks.whole_number("max_steps", values.get("max_steps", gen_length))
    if max_steps % blocks:
        down, up = max_steps // blocks * blocks, (max_steps // blocks + 1) * blocks
        would = f"{down} or {up}" if down else str(up)
        raise ValueError(f"max_steps: expected a multiple of the number of blocks ({blocks} = gen_length {gen_length} / block_length "
                         f"{block_length}), found {max_steps}; {would} would do")
    return gen_length, block_length, max_steps


def _causal_lengths(values: Mapping[str, Any], gen_length: int, attention_block: int) -> tuple[int, int, int]:
    """Those of a block-causal model. Its blocks do not begin where the prompt ends, so gen_length need not be whole blocks."""
    block_length = checks.whole_number("block_length", values.get("block_length", attention_block))
    if block_length != attention_block:
        raise ValueError(f"block_length: expected that of the model's attention ({attention_block}), found {block_length}")
    blocks = -(-gen_length // block_length)
    max_steps = checks.whole_number("max_steps", values.get("max_steps", blocks * block_length))
    if max_steps % blocks:
        raise ValueError(f"max_steps: expected a multiple of the number of blocks ({blocks} = gen_length {gen_length} / block_length "
                         f"{block_length}, rounded up), found {max_steps}")
    return gen_length, block_length, max_steps


def _divisor_near(n: int, wanted: int) -> int:
    """The largest divisor up to `wanted`, but the smallest above where that is less than half of it: a prime length is one block, for
    blocks of a token each would be filled from left to right."""
    below = next(d for d in range(min(n, wanted), 0, -1) if n % d == 0)
    return below if 2 * below >= min(n, wanted) else next(n // blocks for blocks in range(n // wanted, 0, -1) if n % blocks == 0)


def _nearest_divisors(n: int, wanted: int) -> str:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below, above = [d for d in divisors if d < wanted], [d for d in divisors if d > wanted]
    return " or ".join(str(d) for d in (below[-1:] + above[:1]))
