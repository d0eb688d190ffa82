"""Whole generations in every shape of schedule and draw, against digests in data/goldens.json: the exact path stays what it is.

The model is the NumPy reference in float64, so that digests depend neither on the kernels of a processor nor on the last bits of its
libraries. ``python tests/test_golden.py`` writes the file anew, for a change of the results that is meant.
"""
import hashlib
import json
from pathlib import Path

import folders
import numpy as np
import pytest
from draws import DRAWS, SCHEDULES

from llada_native import LLaDAForCausalLM

GOLDENS = Path(__file__).parent / "data" / "goldens.json"
MASK = 58
DECIMALS = 9  # of confidences
PROMPTS = [[1, 2, 3], list(range(20, 31)), [7]]
TEXTS = ["Sort these numbers: 31, 7, 52, 12.", "What is 17 plus 25?"]


def tiny_cases():
    """(name, call) on a random model with grouped-query attention."""
    for schedule, lengths in SCHEDULES.items():
        for draw, options in DRAWS.items():
            yield f"{draw}, {schedule}", lambda m, o={**lengths, **options}: m.generate(PROMPTS, gen_length=16, seed=3, **o)
    for draw in ("greedy", "temperature", "guidance", "filters"):
        options = DRAWS[draw]
        yield f"{draw}, masks in the prompt", lambda m, o=options: m.generate([[1, MASK, 3, MASK], [5, 6]], gen_length=8, block_length=4,
                                                                            seed=[4, 5], **o)
        yield f"{draw}, constraints", lambda m, o=options: m.generate(PROMPTS, gen_length=8, block_length=4, seed=4,
                                                                    constraints={2: [9], 7: [57]}, **o)
        yield f"{draw}, infill", lambda m, o=options: m.infill([[MASK, 5, MASK, MASK], [6, MASK, 7, 8, MASK, MASK]], seed=6, **o)
        yield f"{draw}, infill in few steps", lambda m, o=options: m.infill([[MASK] * 5 + [3], [MASK, 4]], max_steps=2, seed=6, **o)


def demo_cases():
    for draw in ("greedy", "filters", "guidance"):
        yield f"demo, {draw}", lambda m, o=DRAWS[draw]: m.generate(TEXTS, gen_length=16, block_length=8, seed=7, **o)


def digest(result):
    parts = [np.concatenate(result.sequences).tobytes(), np.concatenate(result.commit_step).tobytes(),
             np.round(np.concatenate(result.confidence), DECIMALS).tobytes()]
    return f"{hashlib.sha256(b''.join(parts)).hexdigest()[:32]} {result.n_forward} {result.rows_computed}"


def digests(model, cases):
    return {name: digest(call(model)) for name, call in cases}


def tiny_reference(folder):
    config = folders.config(n_kv_heads=2)
    return LLaDAForCausalLM.from_pretrained(folders.write(folder, config, folders.tensors(config, 5)), backend="reference")


@pytest.fixture(scope="module")
def goldens():
    return json.loads(GOLDENS.read_text())


def test_tiny_model(tmp_path, goldens):
    found = digests(tiny_reference(tmp_path), tiny_cases())
    assert {name: d for name, d in found.items() if goldens.get(name) != d} == {}
    assert len(set(found.values())) > 0.7 * len(found), "the cases differ"


def test_demo_model(goldens):
    found = digests(LLaDAForCausalLM.from_pretrained(backend="reference"), demo_cases())
    assert {name: d for name, d in found.items() if goldens.get(name) != d} == {}


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        found = digests(tiny_reference(Path(place) / "tiny"), tiny_cases())
    found |= digests(LLaDAForCausalLM.from_pretrained(backend="reference"), demo_cases())
    GOLDENS.write_text(json.dumps(found, indent=0) + "\n")
    print(f"{len(found)} digests", file=sys.stderr)
