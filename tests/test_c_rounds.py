"""Rounds through the C interface: the confidences and draws of llada.h, against NumPy."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_folders as bad
import folders
import numpy as np
import pytest
from c_api import MASK, NONE, OK, PROMPT, Model
from scipy.stats import chisquare

from llada_native import LLaDAForCausalLM


@pytest.fixture
def model(tiny: Any) -> Any:
    with Model(tiny[0]) as loaded:
        yield loaded


def test_confidences_are_the_samplers_to_the_bit(tmp_path: Path) -> None:
    """Three vocabulary tiles and more masks than one pass of the head takes."""
    folders.random(tmp_path, vocab_size=8229, embedding_size=8229)
    with LLaDAForCausalLM(tmp_path) as python, Model(tmp_path) as model:
        result = python.generate(PROMPT, max_steps=40, gen_length=40, block_length=40)
        order = np.argsort(result.commit_step[0])
        canvas = np.array([*PROMPT, *[MASK] * 40], np.uint32)
        for answer_position in order:
            status, token, position, confidence = model.infer([canvas])
            assert status == OK
            assert position[0] == len(PROMPT) + answer_position and confidence[0] == result.confidence[0][answer_position]
            assert token[0] == result.sequences[0][position[0]]
            canvas[position] = token


def test_a_ragged_round(model: Model) -> None:
    """Each request as alone; blocks end where they are told to; no mask, no answer."""
    requests = [[1, MASK, MASK, 2], [3, 4], [MASK], [5, MASK, 6, MASK]]
    status, token, position, confidence = model.infer(requests, ends=[4, 4, 1, 2])
    assert status == OK
    for r, (request, end) in enumerate(zip(requests, [4, 4, 1, 2], strict=True)):
        alone = model.infer([request], ends=[end])
        assert (token[r], position[r], confidence[r]) == (alone[1][0], alone[2][0], alone[3][0])
    assert token[1] == position[1] == NONE and confidence[1] == 0
    assert position[0] in (1, 2) and position[2] == 0 and position[3] == 1
    assert model.infer([[1, MASK]], ends=[1])[2][0] == NONE
    assert model.infer([[1, MASK]], ends=[NONE])[2][0] == 1


def test_the_first_of_equals_wins(tmp_path: Path) -> None:
    """Weights of zero make all logits equal: token 0 at the first mask, confidence 1 / vocabulary."""
    zeros = {name: np.zeros_like(value) for name, value in bad.TENSORS.items()}
    folders.write(tmp_path, bad.GOOD, zeros)
    with Model(tmp_path) as model:
        status, token, position, confidence = model.infer([[1, MASK, MASK]])
        assert (status, token[0], position[0], confidence[0]) == (OK, 0, 1, 1 / 64)
        draws = [model.infer([[1, MASK]], temperature=[1], topk=[3], uniform=np.random.default_rng(i).random)[1][0] for i in range(40)]
        assert set(draws) == {0, 1, 2}


def reference_draw(logits: Any, temperature: float, topk: int, topp: float, uniform: Callable[[], float]) -> tuple[int, float]:
    """The rule of llada.h in NumPy, in the order of its definition."""
    row = logits.astype(np.float64)
    share = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    if temperature == 0:
        return int(row.argmax()), share[row.argmax()]
    kept = np.argsort(-row, kind="stable")[:topk or len(row)]
    if topp < 1:
        heat = np.exp((row[kept] - row[kept[0]]) / temperature)
        kept = kept[:np.searchsorted(np.cumsum(heat) / heat.sum(), np.float64(np.float32(topp))) + 1]
    kept = np.sort(kept)
    noisy = [row[i] - temperature * np.log(-np.log(uniform())) for i in kept]
    token = int(kept[np.argmax(noisy)])
    return token, share[token]


def test_draws_are_the_rule(model: Model) -> None:
    """Random rules over ragged requests: the same stream of numbers gives NumPy's tokens, positions and confidences."""
    rng = np.random.default_rng(5)
    for round_number in range(60):
        requests = [np.where(rng.random(n) < 0.5, MASK, rng.integers(0, 57, n)) for n in rng.integers(1, 40, 3)]
        temperature = np.float32(rng.choice([0, 0.3, 1, 4], 3))
        topk, topp = rng.choice([0, 1, 3, 20, 64, 500], 3), np.float32(rng.choice([1e-6, 0.1, 0.5, 0.9, 1], 3))
        ends = [int(rng.integers(0, len(r) + 2)) for r in requests]
        status, token, position, confidence = model.infer(requests, None, None, temperature, topk, topp, ends,
                                                          np.random.default_rng(round_number).random)
        assert status == OK
        rows, stream = model.forward(requests)[1], np.random.default_rng(round_number).random
        for r, request in enumerate(requests):
            best = (NONE, NONE, 0.0)
            for i, logits in enumerate(rows[sum(map(len, requests[:r])):][:len(request)]):
                if request[i] == MASK and i < ends[r]:
                    drawn, share = reference_draw(logits, float(temperature[r]), int(topk[r]), float(topp[r]), stream)
                    if best[0] == NONE or share > best[2] * (1 + 1e-12):
                        best = (drawn, i, share)
            assert (token[r], position[r]) == best[:2]
            assert confidence[r] == pytest.approx(best[2], rel=1e-12)


@pytest.mark.parametrize(("temperature", "topk", "topp"), [(0.5, 0, 1), (2, 0, 1), (1, 5, 1), (1, 0, 0.6)])
def test_draws_follow_the_distribution(temperature: float, topk: int, topp: float, model: Model) -> None:
    request = [7, 8, MASK]
    row = model.forward([request])[1][2].astype(np.float64) / temperature
    share = np.exp(row - row.max())
    ranked = np.argsort(-share, kind="stable")
    if topk:
        share[ranked[topk:]] = 0
    if topp < 1:
        share[ranked[np.searchsorted(np.cumsum(share[ranked]) / share.sum(), np.float64(np.float32(topp))) + 1:]] = 0
    share /= share.sum()
    counts = np.zeros(64, int)
    uniform = np.random.default_rng(1).random
    for _ in range(100):
        status, token, *_ = model.infer([request] * 50, temperature=[temperature] * 50, topk=[topk] * 50, topp=[topp] * 50, uniform=uniform)
        assert status == OK
        np.add.at(counts, token, 1)
    assert counts[share == 0].sum() == 0 and np.all(counts[share > 0.01] > 0)
    common = share * counts.sum() >= 5
    observed, expected = np.append(counts[common], counts[~common].sum()), np.append(share[common], share[~common].sum()) * counts.sum()
    kept = expected > 0
    assert chisquare(observed[kept], expected[kept]).pvalue > 1e-3


def test_a_uniform_of_zero_is_allowed(model: Model) -> None:
    status, token, *_ = model.infer([[1, MASK]], temperature=[1], topk=[1], uniform=lambda: 0.0)
    assert status == OK and token[0] == model.infer([[1, MASK]])[1][0]
