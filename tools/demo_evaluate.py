"""Held-out exact match of a model on the demo tasks, per task, and its answers to the reference prompts.

    python tools/demo_evaluate.py                    # the demo model of the package
    python tools/demo_evaluate.py --model FOLDER --prompts 200 --markdown
"""
import argparse
import random

import demo_tasks as tasks

import llada_native

# The answers that tools/demo_tasks.py gives to its REFERENCE_PROMPTS.
REFERENCE_ANSWERS = [
    "12 * 4 = 48. 8 - 4 = 4. 6 * 4 = 24. 48 + 24 = 72. The answer is 72",
    "120 / 8 = 15. 15 * 20 = 300. 300 / 60 = 5. The answer is 5",
    "60 / 2 = 30. 30 - 5 = 25. 60 + 25 = 85. The answer is 85",
]
BATCH = 50


def exact_match(model, task: str, prompts: int, seed: int, **options) -> float:
    """Share of held-out prompts of a task that are answered to the letter."""
    rng = random.Random(f"{seed} {task}")
    samples = [tasks.sample(rng, want_held_out=True, task=task) for _ in range(prompts)]
    right = 0
    for i in range(0, prompts, BATCH):
        batch = samples[i:i + BATCH]
        answers = model.generate([p for _, p, _ in batch], **options).text
        right += sum(answer == wanted for answer, (_, _, wanted) in zip(answers, batch, strict=True))
    return right / prompts


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", help="checkpoint folder; default: the demo model")
    ap.add_argument("--prompts", type=int, default=200, help="per task")
    ap.add_argument("--seed", type=int, default=2026)
    ap.add_argument("--dtype", default="auto")
    ap.add_argument("--group-size", type=int, default=64)
    ap.add_argument("--markdown", action="store_true", help="print a table for the README")
    a = ap.parse_args()
    model = llada_native.LLaDAForCausalLM.from_pretrained(a.model, dtype=a.dtype, group_size=a.group_size)
    options = {"gen_length": 64, "block_length": 32, "max_steps": 64}
    names = [t for t in tasks.TASKS if t not in tasks.ALWAYS_TRAINED]
    score = {t: exact_match(model, t, a.prompts, a.seed, **options) for t in names}
    score["mean"] = sum(score.values()) / len(score)
    if a.markdown:
        print("| task | " + " | ".join(score) + " |\n|" + "---|" * (len(score) + 1))
        print("| exact match | " + " | ".join(f"{v:.3f}" for v in score.values()) + " |")
    else:
        for task, value in score.items():
            print(f"{task:10} {value:.3f}", flush=True)
    for prompt, wanted in zip(tasks.REFERENCE_PROMPTS, REFERENCE_ANSWERS, strict=True):
        answer = str(model.generate(prompt, **options))
        print(f"{'right' if answer == wanted else 'WRONG'}: {prompt} -> {answer}")


if __name__ == "__main__":
    main()
