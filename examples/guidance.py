"""Classifier-free guidance: how a scale above 0 pulls predictions towards the prompt.

    python guidance.py [FOLDER]

Every pass also sees the canvas without its prompt, and its logits become unconditional + (scale + 1) (conditional - unconditional). That is
twice the rows.
"""
from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

import llada_native

PROMPT, WORD = "Write a short story about a dog.", " dog"
BEGINNING = "Once upon a time, a"


def probability(model: llada_native.LLaDAForCausalLM, prompt: NDArray[np.int32], answer: NDArray[np.int32], scale: float) -> float:
    """Of `WORD` at the first mask of an answer, by NumPy from two rows of logits."""
    mask = model.options().mask_id
    at = len(prompt) + int(np.flatnonzero(answer == mask)[0])
    conditional, unconditional = (model.forward(np.concatenate([given, answer]))[at].astype(np.float64)
                                  for given in (prompt, np.full_like(prompt, mask)))
    guided = unconditional + (scale + 1) * (conditional - unconditional)
    likely = np.exp(guided - guided.max())
    return float(likely[model.tokenizer.encode(WORD)[0]] / likely.sum())


def main(folder: str | None = None) -> None:
    with llada_native.LLaDAForCausalLM(folder) as model:
        prompt = np.asarray(model.tokenizer.encode_chat([{"role": "user", "content": PROMPT}]), np.int32)
        answer = np.asarray([*model.tokenizer.encode(BEGINNING), *[model.options().mask_id] * 8], np.int32)
        for scale in (-1.0, -0.5, 0.0, 1.0):     # -1 is the model that has not seen the prompt
            print(f"scale {scale:4}: p({WORD!r}) = {probability(model, prompt, answer, scale):.4f}")

        plain, guided = (model.generate(PROMPT, gen_length=64, block_length=32, cfg_scale=scale) for scale in (0.0, 1.0))
        print(guided)
        print("rows with guidance:", guided.rows_computed // plain.rows_computed, "times those without")


if __name__ == "__main__":
    main(*sys.argv[1:])
