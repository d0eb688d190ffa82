"""Masks anywhere in a text, and words that stay where they are: what a model that writes from left to right cannot do.

    python infill.py [FOLDER]
"""
from __future__ import annotations

import sys

import llada_native


def main(folder: str | None = None) -> None:
    with llada_native.LLaDAForCausalLM(folder) as model:
        # A number is so many masks; what comes behind them helps to fill them.
        for first, second in ((17, 25), (12, 30)):
            print(model.infill([f"{first} + ", 2, " = 42"], prompt=f"What is {first} plus {second}?"))

        # How many there are is part of the question. A space belongs to the token behind it, so the text ends before the space.
        for masks in (1, 2, 3):
            story = ["Once upon a time, a fox lived near a river. One day the fox found a", masks, " in the river. The fox was very happy."]
            print(model.infill(story, prompt="Write a short story about a fox."))

        # An answer of any kind, in which some tokens are given: {position in the answer: text}.
        result = model.generate("What is 12 plus 30?", constraints={0: "12 + 30 ="})
        print(result)

        # How sure was it of what it filled in? Given tokens have no confidence.
        filled = model.infill(["12 + 30 = ", 2, "."], prompt="What is 12 plus 30?")
        written = filled.commit_step[0] >= 0
        print(filled, "written:", int(written.sum()), "tokens, the least sure with", f"{filled.confidence[0][written].min():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
