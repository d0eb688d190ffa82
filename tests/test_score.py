"""Scores: the Monte-Carlo log-likelihood against the expectation that it estimates, enumerated over every number and choice of masks."""
from __future__ import annotations

import itertools
from fractions import Fraction

import folders
import numpy as np
import oracle
import pytest
from scipy import stats
from scipy.special import log_softmax

from llada_native import LLaDAForCausalLM
from llada_native.scoring import masked_counts

MASK = 58
PROMPT = np.array([4, 9, 2, 33, 17])
ANSWERS = [np.array([8]), np.array([21, 3]), np.array([50, 7, 7]), np.array([1, 40, 12, 6])]
STANDARD_ERRORS = 5


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """(model, config, tensors, folder) of a tiny model whose logits spread over several units, so that choices of masks differ."""
    config = folders.config(n_kv_heads=2, max_sequence_length=64)
    tensors = folders.tensors(config, seed=3)
    tensors["model.transformer.ff_out.weight"] *= 5
    folder = folders.write(tmp_path_factory.mktemp("sharp"), config, tensors)
    return LLaDAForCausalLM(folder, num_threads=1), config, tensors, folder


def log_p(sharp, prompt, target, hidden, cfg_scale=0.0):
    """Sum over the hidden positions of the log-probability of their tokens, in float64."""
    _, config, tensors, _ = sharp
    ids, hidden = np.concatenate([prompt, target]), np.array(hidden)
    ids[len(prompt) + hidden] = MASK
    logits = oracle.forward(tensors, config, ids)
    if cfg_scale:
        ids[:len(prompt)] = MASK
        without = oracle.forward(tensors, config, ids)
        logits = without + (cfg_scale + 1) * (logits - without)
    return float(log_softmax(logits, axis=1)[len(prompt) + hidden, target[hidden]].sum())


def samples(sharp, prompt, target, cfg_scale=0.0):
    """{k: every value that a sample with k masks can have, all of them equally likely}."""
    length = len(target)
    choices = {k: itertools.combinations(range(length), k) for k in range(1, length + 1)}
    return {k: np.array([length / k * log_p(sharp, prompt, target, hidden, cfg_scale) for hidden in some]) for k, some in choices.items()}


def torch_counts(k, length, batch):
    """`forward_process` of ML-GSAI/LLaDA, get_log_likelihood.py, in exact arithmetic: round is half to even there too.

    x = torch.round(torch.linspace(float(k), k + (b - 1) * (target_len / b), steps=b)).long(); x = ((x - 1) % target_len) + 1
    """
    return [(round(k + Fraction(j * length, batch)) - 1) % length + 1 for j in range(batch)]


def moments(values, length, batch):
    """Mean and variance of one batch: one draw of k, from which the counts of its samples follow."""
    means = {k: v.mean() for k, v in values.items()}
    spread = {k: v.var() for k, v in values.items()}
    batches = [torch_counts(k, length, batch) for k in range(1, length + 1)]
    of_batch = np.array([np.mean([means[c] for c in counts]) for counts in batches])
    within = np.mean([sum(spread[c] for c in counts) / batch**2 for counts in batches])
    return of_batch.mean(), of_batch.var() + within


# ---- the estimate


@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
@pytest.mark.parametrize(("mc_num", "batch_size"), [(400, 1), (800, 4), (1600, 16), (1200, 3)])
@pytest.mark.parametrize("target", ANSWERS, ids=len)
def test_score_estimates_the_enumerated_expectation(sharp, target, mc_num, batch_size, cfg_scale):
    """Within five standard errors, which follow from the enumeration too."""
    model, length = sharp[0], len(target)
    values = samples(sharp, PROMPT, target, cfg_scale)
    mean, variance = moments(values, length, batch_size)
    error = np.sqrt(variance / (mc_num // batch_size))
    found = model.score(PROMPT, target, mc_num=mc_num, batch_size=batch_size, cfg_scale=cfg_scale, seed=2)
    assert found.shape == (1,) and found.dtype == np.float64
    assert abs(found[0] - mean) < STANDARD_ERRORS * error + 1e-5 * abs(mean)
    if batch_size == 1:  # k is uniform: this is the bound of the paper itself
        assert mean == pytest.approx(np.mean([v.mean() for v in values.values()]), rel=1e-12)


@pytest.mark.parametrize("mistake", ["no weights", "independent masks", "one mask at a time", "all masked"])
def test_another_estimate_would_be_seen(sharp, mistake):
    """The standard error is small against what plausible mistakes change."""
    target = ANSWERS[3]
    values = samples(sharp, PROMPT, target)
    mean, variance = moments(values, 4, 1)
    error = np.sqrt(variance / 6400)
    if mistake == "no weights":
        wrong = np.mean([k / 4 * v.mean() for k, v in values.items()])
    elif mistake == "independent masks":  # the count is binomial for a mask probability uniform in (1/4, 1)
        count = stats.binom(4, np.linspace(0.25, 1, 1001)[:, None]).pmf(np.arange(1, 5)).mean(0)
        wrong = sum(p * k / 4 * v.mean() for p, (k, v) in zip(count, values.items(), strict=True))
    else:
        wrong = values[1 if mistake == "one mask at a time" else 4].mean()
    found = sharp[0].score(PROMPT, target, mc_num=6400, batch_size=1, seed=0)[0]
    assert abs(found - mean) < STANDARD_ERRORS * error < abs(found - wrong)


def test_error_falls_with_the_number_of_samples(sharp):
    """The spread of 64 seeds is the enumerated standard error: samples are independent, and no more and no less spread than they say."""
    target, length = ANSWERS[2], 3
    for mc_num, batch in ((8, 1), (32, 1), (32, 4)):
        mean, variance = moments(samples(sharp, PROMPT, target), length, batch)
        found = sharp[0].score(PROMPT, [target] * 64, mc_num=mc_num, batch_size=batch, seed=1)
        wanted = variance / (mc_num // batch)
        assert stats.chi2(64).ppf(1e-4) < ((found - mean)**2).sum() / wanted < stats.chi2(64).ppf(1 - 1e-4)


@pytest.mark.parametrize("cfg_scale", [0.0, 0.5, 3.0])
def test_one_token_is_exact_with_one_sample(sharp, cfg_scale):
    """Only one choice of masks exists, so that every seed and every number of samples gives it."""
    model = sharp[0]
    answers = [[t] for t in (0, 8, 21, 63)]
    wanted = [log_p(sharp, PROMPT, np.array(a), [0], cfg_scale) for a in answers]
    for options in ({"mc_num": 1}, {"mc_num": 1, "seed": 5}, {"mc_num": 6, "batch_size": 3}, {"mc_num": 32}):
        found = model.score(PROMPT, answers, cfg_scale=cfg_scale, **options)
        np.testing.assert_allclose(found, wanted, atol=1e-5 * (1 + cfg_scale), rtol=0)


def test_probabilities_of_all_tokens_sum_to_one(sharp):
    """exp(score) over the vocabulary, for answers of one token."""
    assert np.exp(sharp[0].score(PROMPT, [[t] for t in range(64)], mc_num=1)).sum() == pytest.approx(1, abs=1e-5)


def test_guidance_and_prompt_matter(sharp):
    model = sharp[0]
    scores = [model.score(p, ANSWERS[1], seed=0, cfg_scale=c)[0] for p, c in ((PROMPT, 0), (PROMPT, 1.0), (PROMPT[::-1], 0))]
    assert len({round(s, 3) for s in scores}) == 3


@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
def test_the_reference_backend_gives_the_same(sharp, cfg_scale):
    """The same seed draws the same masks."""
    slow = LLaDAForCausalLM(sharp[3], backend="reference")
    options = {"mc_num": 32, "seed": 3, "cfg_scale": cfg_scale}
    np.testing.assert_allclose(sharp[0].score(PROMPT, ANSWERS, **options), slow.score(PROMPT, ANSWERS, **options), atol=1e-5, rtol=1e-5)


def test_a_better_answer_scores_higher(demo):
    """The demo model knows its arithmetic."""
    right, wrong = demo.score("What is 17 plus 25?", ["17 + 25 = 42", "17 + 25 = 97"], mc_num=32, seed=0)
    assert right > wrong + 1


# ---- stratification


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32, 64])
def test_counts_of_a_batch_are_those_of_the_reference(batch):
    """Powers of two, in whose floating-point spacing nothing is rounded: float32 in torch, float64 here, agree."""
    for length in range(1, 130):
        for first in {1, 2, 3, length // 2 or 1, length}:
            if first > length:
                continue
            counts = masked_counts(first, length, batch)
            assert counts.tolist() == torch_counts(first, length, batch), (first, length)


@pytest.mark.parametrize("batch", [3, 5, 6, 7, 10, 12, 100])
def test_counts_of_other_batches(batch):
    """Halves may fall either way where the spacing is no binary fraction; nothing else may differ."""
    for length in range(1, 60):
        for first in range(1, length + 1):
            counts = masked_counts(first, length, batch)
            assert counts.min() >= 1 and counts.max() <= length
            for j, count in enumerate(counts):
                exact = first + Fraction(j * length, batch)
                either = {round(exact)} if exact % 1 != Fraction(1, 2) else {int(exact), int(exact) + 1}
                assert count in {(c - 1) % length + 1 for c in either}


def test_counts_cover_an_answer_evenly():
    """As many samples as tokens mask every number once; twice as many, twice, but for halves."""
    for length in range(1, 40):
        for first in range(1, length + 1):
            assert sorted(masked_counts(first, length, length)) == list(range(1, length + 1))
            per_count = np.bincount(masked_counts(first, length, 4 * length), minlength=length + 1)[1:]
            assert per_count.min() >= 3 and per_count.max() <= 5


def test_batch_size_changes_the_samples_not_the_estimand(sharp):
    """Default: 16, or the largest power of two that divides mc_num."""
    model = sharp[0]
    for mc_num, default in ((128, 16), (24, 8), (6, 2), (7, 1), (48, 16)):
        a, b = (model.score(PROMPT, ANSWERS[3], mc_num=mc_num, seed=1, **extra)[0] for extra in ({}, {"batch_size": default}))
        assert a == b
    assert model.score(PROMPT, ANSWERS[3], mc_num=16, seed=1, batch_size=4)[0] != a


# ---- seeds, forms


def test_seeds(sharp):
    """A seed for all is reproducible; a seed of its own gives an answer the same score in any company."""
    model = sharp[0]
    options = {"mc_num": 8}
    first = model.score(PROMPT, ANSWERS, seed=5, **options)
    assert np.array_equal(first, model.score(PROMPT, ANSWERS, seed=5, **options))
    assert not np.array_equal(first[1:], model.score(PROMPT, ANSWERS, seed=6, **options)[1:])
    own = [11, 12, 13, 14]
    alone = [model.score(PROMPT, a, seed=[s], **options)[0] for a, s in zip(ANSWERS, own, strict=True)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 0)):
        together = model.score(PROMPT, [ANSWERS[i] for i in order], seed=[own[i] for i in order], **options)
        assert together.tolist() == [alone[i] for i in order]
    twice = model.score(PROMPT, [ANSWERS[3]] * 2, seed=5, **options)
    assert twice[0] != twice[1]
    unseeded = {model.score(PROMPT, ANSWERS[3], mc_num=1)[0] for _ in range(20)}
    assert len(unseeded) > 1


def test_one_prompt_for_all_or_one_each(sharp):
    model = sharp[0]
    prompts = [PROMPT, PROMPT[:2], PROMPT[::-1], [7]]
    each = model.score(prompts, ANSWERS, seed=[1, 2, 3, 4])
    for i, (p, a) in enumerate(zip(prompts, ANSWERS, strict=True)):
        assert model.score(p, a, seed=[i + 1])[0] == each[i]
    assert np.array_equal(model.score(PROMPT, ANSWERS, seed=9), model.score([PROMPT] * 4, ANSWERS, seed=9))


def test_integer_answers_in_any_form(sharp):
    model = sharp[0]
    wanted = model.score(PROMPT, [[21, 3]], seed=0)
    for same in ([21, 3], (21, 3), np.array([21, 3]), np.array([[21, 3]]), [np.array([21, 3], np.uint8)], [(21, 3)]):
        assert np.array_equal(model.score(PROMPT, same, seed=0), wanted)


def test_text_answers(demo):
    """Encoded as they stand; a single text is one answer."""
    ids = demo.tokenizer.encode("42")
    options = {"mc_num": 4, "seed": 0}
    wanted = demo.score("What is 17 plus 25?", [ids], **options)
    for same in ("42", ["42"], ids):
        assert np.array_equal(demo.score("What is 17 plus 25?", same, **options), wanted)
    assert not np.array_equal(demo.score("What is 17 plus 25?", "42", chat=False, **options), wanted)


def test_another_mask_token(sharp):
    """What hides the answer."""
    _, config, tensors, _ = sharp
    logits = oracle.forward(tensors, config, np.array([*PROMPT, 40]))[-1]
    assert sharp[0].score(PROMPT, [8], mc_num=1, mask_id=40)[0] == pytest.approx(log_softmax(logits)[8], abs=1e-5)


# ---- refusals


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"mc_num": 10, "batch_size": 3}, ValueError, r"mc_num: expected a multiple of batch_size \(3\), found 10$"),
    ({"mc_num": 3, "batch_size": 6}, ValueError, r"mc_num: expected a multiple of batch_size \(6\), found 3$"),
    *(({name: value}, ValueError, rf"{name}: expected 1 to \d+, found {value}$") for name in ("mc_num", "batch_size")
      for value in (0, -1, 10**30)),
    *(({name: value}, TypeError, f"{name}: expected a whole number, found ") for name in ("mc_num", "batch_size")
      for value in (1.0, "8", True, [8])),
    *(({"cfg_scale": value}, ValueError, "cfg_scale: expected a number from 0 to .*, found ") for value in (-1, np.nan, np.inf)),
    ({"cfg_scale": "1"}, TypeError, "cfg_scale: expected a number, found '1'$"),
    ({"mask_id": 64}, ValueError, "mask_id: expected a token id from 0 to 63, found 64$"),
    ({"seed": -1}, ValueError, "seed: expected 0 to .*, found -1$"),
    ({"seed": [1, 2, 3]}, ValueError, "seed: expected one for each of 2 prompts, found 3$"),
    ({"seed": "x"}, TypeError, "seed: expected a whole number.*, found 'x'$"),
    ({"chat": "yes"}, ValueError, "chat: expected 'auto', True or False, found 'yes'$"),
    ({"prompts": [[1], [2], [3]]}, ValueError, "answers: expected one for each of 3 prompts, found 2$"),
    ({"prompts": []}, ValueError, "prompts.*: expected at least one.*, found none$"),
    ({"prompts": [[1], []]}, ValueError, r"prompts\[1\]: expected at least one token, found none$"),
    ({"prompts": [64]}, ValueError, r"prompts\[0\]: expected token ids from 0 to 63, found 64$"),
    ({"prompts": None}, TypeError, "prompts: expected .*, found NoneType$"),
    ({"answers": []}, ValueError, "answers: expected at least one token in each, found none$"),
    ({"answers": [[1], []]}, ValueError, "answers: expected at least one token in each, found none$"),
    ({"answers": [[1], [-1]]}, ValueError, r"answers\[1\]: expected token ids from 0 to 63, found -1$"),
    ({"answers": "text"}, ValueError, r"answers\[0\]: text needs a tokenizer"),
    *(({"answers": value}, TypeError, "answers: expected .*, found ") for value in (None, 5, [1.5], ["a", [1]], b"8", {1: 2}, [True])),
    ({"answers": [[1], [1] * 60]}, ValueError, r"answers\[1\]: expected .*max_tokens \(64\).*, found .*60"),
], ids=lambda part: str(part)[:60])
def test_refusals(sharp, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        sharp[0].score(**{"prompts": PROMPT, "answers": [[8], [9]], "mc_num": 4} | arguments)


def test_unknown_arguments_and_empty_text(sharp, demo):
    with pytest.raises(TypeError, match="temperature"):
        sharp[0].score(PROMPT, [8], temperature=1)
    for answers in ("", ["a", ""]):
        with pytest.raises(ValueError, match=r"^answers\[\d\]: expected at least one token, found none$"):
            demo.score("Hello", answers)


def test_the_longest_answer_fits(sharp):
    assert np.isfinite(sharp[0].score(PROMPT, [1] * 59, mc_num=1)).all()


def test_a_closed_model(sharp):
    with LLaDAForCausalLM(sharp[3], num_threads=1) as model:
        pass
    with pytest.raises(ValueError, match=r"^the model is closed$"):
        model.score(PROMPT, [8], mc_num=1)
