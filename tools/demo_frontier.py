"""What decoding methods cost in accuracy and give in speed, on held-out prompts of the demo tasks.

    python tools/demo_frontier.py                                       # the configurations below
    python tools/demo_frontier.py --model FOLDER --prompts 100 --svg frontier.svg
    python tools/demo_frontier.py --only '{"selector": "factor:f=1.5"}' '{"preset": "fast"}' --prompts 20

Rows per token are rows of forward passes over tokens before the first end token. Tokens a second are those of one prompt at a time, the
configurations in turn.
A loss is that of the mean over tasks against the reference, in points, with the half width of its 95 % interval: the prompts are the same,
so only those that one of the two gets right count (McNemar). Points of the frontier, with nothing better in both, have a star.
"""
from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import demo_tasks as tasks

import llada_native

LENGTHS = {"gen_length": 64, "block_length": 32}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "reference": {},
    "reference, early stop": {"early_stop": True},
    "threshold .9": {"selector": "threshold:tau=0.9"},
    "threshold .9, early stop": {"selector": "threshold:tau=0.9", "early_stop": True},
    "threshold .95, early stop": {"selector": "threshold:tau=0.95", "early_stop": True},
    "threshold .97, early stop": {"selector": "threshold:tau=0.97", "early_stop": True},
    "factor 1, early stop": {"selector": "factor", "early_stop": True},
    "hierarchy .9, early stop": {"selector": "hierarchy", "early_stop": True},
    "entropy bound .05, early stop": {"selector": "entropy_bound", "early_stop": True},
    "entropy threshold .4, early stop": {"selector": "entropy_threshold", "early_stop": True},
    "margin .8, early stop": {"selector": "margin", "early_stop": True},
    "local leap, early stop": {"selector": "local_leap", "early_stop": True},
    "prefix, threshold .9, early stop": {"selector": "threshold", "cache": "prefix", "early_stop": True},
    "dual, threshold .9, early stop": {"selector": "threshold", "cache": "dual", "early_stop": True},
    "dual, doubt .9, threshold .9, early stop": {"selector": "threshold", "cache": "dual:doubt=0.9", "early_stop": True},
    "delayed, threshold .9, early stop": {"selector": "threshold", "cache": "delayed", "early_stop": True},
    "delayed, doubt .7, threshold .9, early stop": {"selector": "threshold", "cache": "delayed:doubt=0.7", "early_stop": True},
    "delayed, doubt .9, threshold .9, early stop": {"selector": "threshold", "cache": "delayed:doubt=0.9", "early_stop": True},
    "delayed, prompt every 8, doubt .7, threshold .9, early stop": {"selector": "threshold", "cache": "delayed:doubt=0.7,prompt_every=8",
                                                                    "early_stop": True},
    "credit, early stop": {"selector": "credit", "early_stop": True},
    "klass, early stop": {"selector": "klass", "early_stop": True},
    "suffix window of 16, threshold .9, early stop": {"selector": "threshold", "canvas": "suffix_window:length=16", "early_stop": True},
    "look ahead, threshold .9, early stop": {"selector": "threshold", "canvas": "look_ahead", "early_stop": True},
    "auto, threshold .9, early stop": {"selector": "threshold", "gen_length": "auto", "early_stop": True},
    "token edit .9, threshold .9": {"selector": "threshold", "editor": "token_edit", "early_stop": True},
    "wino": {"editor": "wino", "early_stop": True},
    "remask": {"editor": "remask", "early_stop": True},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
}
LABELLED = ("reference", "reference, early stop", "threshold .9", "balanced", "fast", "entropy bound .05, early stop",
            "local leap, early stop")
BATCH = 50
ALONE = 40  # prompts that are timed one at a time


@dataclass
class Measured:
    """One configuration."""

    right: list[bool]  # [prompts of all tasks]
    rows_per_token: float
    forwards: float = 0.0  # an answer
    tokens_per_second: float = 0.0


def measure(model: llada_native.LLaDAForCausalLM, samples: list[tuple[str, str]], options: dict[str, Any]) -> Measured:
    right, rows, tokens = [], 0, 0
    for i in range(0, len(samples), BATCH):
        batch = samples[i:i + BATCH]
        out = model.generate([prompt for prompt, _ in batch], **{**LENGTHS, **options})
        right += [answer == wanted for answer, (_, wanted) in zip(out.text, batch, strict=True)]
        rows, tokens = rows + out.rows_computed, tokens + sum(out.answer_lengths)
    return Measured(right, rows / tokens)


def measure_rates(model: llada_native.LLaDAForCausalLM, samples: list[tuple[str, str]], chosen: dict[str, dict[str, Any]],
                  results: dict[str, Measured]) -> None:
    """Prompt by prompt all configurations in turn, so that a machine that slows down does so for all."""
    prompts = [prompt for prompt, _ in random.Random(0).sample(samples, min(ALONE, len(samples)))]
    tokens, forwards, seconds = (dict.fromkeys(chosen, 0.0) for _ in range(3))
    for prompt in prompts:
        for name, options in chosen.items():
            start = time.perf_counter()
            out = model.generate(prompt, **{**LENGTHS, **options})
            seconds[name] += time.perf_counter() - start
            tokens[name] += sum(out.answer_lengths)
            forwards[name] += out.n_forward
    for name, found in results.items():
        found.forwards, found.tokens_per_second = forwards[name] / len(prompts), tokens[name] / seconds[name]


def loss(reference: Measured, found: Measured) -> tuple[float, float]:
    """Points lost against the reference, and the half width of the 95 % interval."""
    pairs = list(zip(reference.right, found.right, strict=True))
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return 100 * (lost - won) / len(pairs), 196 * math.sqrt(lost + won - (lost - won) ** 2 / len(pairs)) / len(pairs)


def frontier(results: dict[str, Measured]) -> set[str]:
    """Those that no other one beats in accuracy without more rows, or in rows with the same accuracy."""
    def beaten(a: Measured) -> bool:
        return any(sum(b.right) >= sum(a.right) and b.rows_per_token <= a.rows_per_token
                   and (sum(b.right), -b.rows_per_token) != (sum(a.right), -a.rows_per_token) for b in results.values())

    return {name for name, found in results.items() if not beaten(found)}


def table(results: dict[str, Measured]) -> str:
    reference, best = results["reference"], frontier(results)
    lines = ["| configuration | exact match | loss, points | rows per token | fewer rows | forwards an answer | tokens/s | faster |",
             "|---|---|---|---|---|---|---|---|"]
    for name, found in results.items():
        lost, width = loss(reference, found)
        lines.append(f"| {name}{' *' if name in best else ''} | {sum(found.right) / len(found.right):.4f} | {lost:+.2f} ± {width:.2f} | "
                     f"{found.rows_per_token:.1f} | {reference.rows_per_token / found.rows_per_token:.1f}x | {found.forwards:.1f} | "
                     f"{found.tokens_per_second:.0f} | {found.tokens_per_second / reference.tokens_per_second:.1f}x |")
    return "\n".join(lines)


def svg(results: dict[str, Measured]) -> str:
    """Exact match over rows per token, on a logarithmic scale; filled points are the frontier, names are those of LABELLED."""
    width, height, margin, best = 720, 420, 60, frontier(results)
    rows = [math.log(m.rows_per_token) for m in results.values()]
    share = [sum(m.right) / len(m.right) for m in results.values()]
    low, high = min(share) - 0.002, max(share) + 0.002
    points = []
    for (name, _), x, y in zip(results.items(), rows, share, strict=True):
        cx = margin + (x - min(rows)) / ((max(rows) - min(rows)) or 1) * (width - 3 * margin)
        cy = height - margin - (y - low) / (high - low) * (height - 2 * margin)
        points.append(f'<circle cx="{cx:.0f}" cy="{cy:.0f}" r="4" fill="{"#06c" if name in best else "none"}" stroke="#06c">'
                      f'<title>{escape(name)}</title></circle>')
        if name in LABELLED:
            points.append(f'<text x="{cx + 7:.0f}" y="{cy + 3:.0f}" font-size="9">{escape(name)}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
            f'<rect width="100%" height="100%" fill="#fff"/>'
            f'<text x="{width / 2}" y="{height - 15}" font-size="12" text-anchor="middle">rows per token, {math.exp(min(rows)):.0f} to '
            f'{math.exp(max(rows)):.0f}, logarithmic</text>'
            f'<text x="12" y="20" font-size="12">exact match, {low:.3f} to {high:.3f}</text>{"".join(points)}</svg>\n')


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", help="checkpoint folder; default: the demo model")
    ap.add_argument("--prompts", type=int, default=200, help="per task")
    ap.add_argument("--seed", type=int, default=2026)
    ap.add_argument("--only", nargs="+", metavar="JSON", help="options to measure beside the reference, instead of the configurations")
    ap.add_argument("--svg", type=Path, help="draw the frontier")
    a = ap.parse_args()
    model = llada_native.LLaDAForCausalLM.from_pretrained(a.model)
    try:
        chosen = CONFIGURATIONS if a.only is None else {"reference": {}} | {text: json.loads(text) for text in a.only}
        for options in chosen.values():
            model.options(**(LENGTHS | options))
    except (TypeError, ValueError) as e:
        ap.error(f"--only: expected options of generate, like '{{\"preset\": \"fast\"}}': {e}")
    samples = []
    for task in (t for t in tasks.TASKS if t not in tasks.ALWAYS_TRAINED):
        rng = random.Random(f"{a.seed} {task}")
        samples += [tasks.sample(rng, want_held_out=True, task=task)[1:] for _ in range(a.prompts)]
    results = {}
    for name, options in chosen.items():
        results[name] = measure(model, samples, options)
        print(f"{name}: {sum(results[name].right)} of {len(samples)}, {results[name].rows_per_token:.1f} rows per token", flush=True)
    measure_rates(model, samples, chosen, results)
    print(table(results))
    if a.svg:
        a.svg.write_text(svg(results))


if __name__ == "__main__":
    main()
