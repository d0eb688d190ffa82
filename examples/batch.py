"""Prompts of any lengths in one batch, each with a seed of its own: every answer is the one that the prompt gets alone.

    python batch.py [FOLDER]
"""
from __future__ import annotations

import sys

import llada_native

PROMPTS = ["What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12.", "Reverse these words: red cat sun.",
           "Write a short story about a fox."]


def main(folder: str | None = None) -> None:
    with llada_native.LLaDAForCausalLM(folder) as model:
        # A random order makes stories differ from seed to seed: with the usual one the surest of the draws are kept.
        options = {"gen_length": 64, "block_length": 16, "temperature": 0.5, "remasking": "random", "early_stop": True}
        result = model.generate(PROMPTS, seed=[10, 11, 12, 13], **options)
        for prompt, text, reason, tokens in zip(PROMPTS, result.text, result.finish_reason, result.answer_lengths, strict=True):
            print(f"{prompt} -> {text} ({reason}, {tokens} tokens)")

        alone = [str(model.generate(prompt, seed=seed, **options)) for seed, prompt in enumerate(PROMPTS, start=10)]
        print("alone the same:", alone == result.text)
        print(f"{result.n_forward} passes for all, {result.rows_per_token:.0f} rows for each token")


if __name__ == "__main__":
    main(*sys.argv[1:])
