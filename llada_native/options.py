"""The arguments of a generation, named, typed and checked once."""
from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

ALIASES = {"steps": "max_steps", "temperature_": "temperature", "max_new_tokens": "gen_length", "mask_token_id": "mask_id",
           "eos_token_id": "eos_id", "eot_token_id": "eot_id"}
REMASKING = ("low_confidence", "random")
# The reference sampler's own defaults; a checkpoint's generation_config.json may state others.
DEFAULT_GEN_LENGTH = 128
DEFAULT_BLOCK_LENGTH = 128


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate. Token ids equal the reference sampler's (ML-GSAI/LLaDA, generate.py) for the same values.

    Attributes
    ----------
    max_steps : int
        Denoising steps, over all blocks; a multiple of the number of blocks.
    gen_length : int
        Tokens of the canvas; a multiple of block_length.
    block_length : int
        Tokens of a block. Blocks are filled from left to right.
    temperature : float
        0 is deterministic. Above it, float64 Gumbel noise draws from softmax(logits / temperature).
    cfg_scale : float
        Unsupervised classifier-free guidance: logits + cfg_scale * (logits - logits without the prompt).
    remasking : {"low_confidence", "random"}
        Which predictions a step keeps: the surest, or any.
    mask_id, eos_id, eot_id : int or None
        Special tokens; those of the checkpoint.
    logits_eos_inf : bool
        Never draw the end-of-text token.
    confidence_eos_eot_inf : bool or "compat"
        Keep end tokens for last: their confidence is 0 and they do not count in the confidence of others. "compat" does what the
        reference does, where end-of-text is exempt above temperature 0.
    """

    max_steps: int
    gen_length: int
    block_length: int
    temperature: float
    cfg_scale: float
    remasking: Literal["low_confidence", "random"]
    mask_id: int
    eos_id: int | None
    eot_id: int | None
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool | Literal["compat"]

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.max_steps // self.blocks

    @property
    def end_ids(self) -> list[int]:
        return [i for i in (self.eos_id, self.eot_id) if i is not None]

    @property
    def suppressed(self) -> list[int]:
        """Tokens whose logit is -inf from the start."""
        return [self.eos_id] if self.logits_eos_inf and self.eos_id is not None else []

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
    def resolve(cls, given: Mapping[str, Any], defaults: Mapping[str, Any], vocabulary: int) -> GenerationOptions:
        """Options from keyword arguments, aliases included, completed by a checkpoint's defaults.

        Raises
        ------
        TypeError
            An unknown argument (the message names the nearest), one given twice, or one of the wrong type.
        ValueError
            A value out of range, or lengths that do not divide.
        """
        values = _named(given)
        gen_length = _integer("gen_length", values.get("gen_length"), defaults.get("gen_length", DEFAULT_GEN_LENGTH), low=1)
        block_default = math.gcd(gen_length, defaults.get("block_length", DEFAULT_BLOCK_LENGTH))
        block_length = _integer("block_length", values.get("block_length"), block_default, low=1)
        if gen_length % block_length:
            raise ValueError(f"block_length: expected a divisor of gen_length ({gen_length}), found {block_length}; "
                             f"{_nearest_divisors(gen_length, block_length)} would do")
        blocks = gen_length // block_length
        max_steps = _integer("max_steps", values.get("max_steps"), gen_length, low=1)
        if max_steps % blocks:
            down, up = max_steps // blocks * blocks, (max_steps // blocks + 1) * blocks
            would = f"{down} or {up}" if down else str(up)
            raise ValueError(f"max_steps: expected a multiple of the number of blocks ({blocks} = gen_length {gen_length} / block_length "
                             f"{block_length}), found {max_steps}; {would} would do")
        remasking = values.get("remasking", "low_confidence")
        if remasking not in REMASKING:
            raise ValueError(f"remasking: expected one of {', '.join(map(repr, REMASKING))}, found {remasking!r}")
        flag = values.get("confidence_eos_eot_inf", False)
        if flag != "compat":
            flag = _boolean("confidence_eos_eot_inf", flag)
        mask_id = _token("mask_id", values.get("mask_id", defaults.get("mask_id")), vocabulary)
        if mask_id is None:
            raise ValueError("mask_id: the checkpoint names no mask token, so it must be given")
        return cls(
            max_steps=max_steps,
            gen_length=gen_length,
            block_length=block_length,
            temperature=_real("temperature", values.get("temperature", 0.0)),
            cfg_scale=_real("cfg_scale", values.get("cfg_scale", 0.0)),
            remasking=remasking,
            mask_id=mask_id,
            eos_id=_token("eos_id", values.get("eos_id", defaults.get("eos_id")), vocabulary),
            eot_id=_token("eot_id", values.get("eot_id", defaults.get("eot_id")), vocabulary),
            logits_eos_inf=_boolean("logits_eos_inf", values.get("logits_eos_inf", False)),
            confidence_eos_eot_inf=flag,
        )


OPTION_NAMES = tuple(f.name for f in fields(GenerationOptions))


def _named(given: Mapping[str, Any]) -> dict[str, Any]:
    """Aliases to their names; None means the default."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name not in OPTION_NAMES:
            raise unknown_argument(key)
        if name in values:
            raise TypeError(f"{name}: given twice, also as {key!r}")
        values[name] = value
    return {name: value for name, value in values.items() if value is not None}


def unknown_argument(key: str, others: tuple[str, ...] = ()) -> TypeError:
    known = [*OPTION_NAMES, *ALIASES, *others]
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    return TypeError(f"unknown argument {key!r}: did you mean {nearest!r}?")


def _integer(name: str, value: object, default: int, low: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, found {value!r}")
    if not low <= value <= 1 << 24:
        raise ValueError(f"{name}: expected {low} to {1 << 24}, found {value}")
    return int(value)


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, found {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: expected a finite number of at least 0, found {value}")
    return float(value)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {value!r}")
    return value


def _token(name: str, value: object, vocabulary: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a token id, found {value!r}")
    if not 0 <= value < vocabulary:
        raise ValueError(f"{name}: expected a token id from 0 to {vocabulary - 1}, found {value}")
    return int(value)


def _nearest_divisors(n: int, wanted: int) -> str:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below, above = [d for d in divisors if d < wanted], [d for d in divisors if d > wanted]
    return " or ".join(str(d) for d in (below[-1:] + above[:1]))
