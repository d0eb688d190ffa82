"""What narrows or orders the draw: top-k, top-p, entropy and margin, repetition penalty, suppression.

The oracles are written here, in float64: a sort for the filters, SciPy for the confidences, and a plain denoising loop for whole
generations.
"""
from __future__ import annotations

import itertools

import folders
import numpy as np
import oracle
import pytest
from scipy import stats
from scipy.special import softmax

from llada_native import LLaDAForCausalLM, _sampler
from llada_native.canvas import random_streams
from llada_native.denoiser import WHOLE_ROWS

FALSE_ALARM = 1e-4  # probability that a chi-square test with a fixed seed would have failed by chance
GEN = 8
SCHEDULES = [(8, 8), (8, 3), (8, 1), (4, 6), (2, 4), (4, 16)]
TEMPERATURES = [0.5, 1.0, 2.0]
FILTERS = [(1, 1.0), (3, 1.0), (17, 1.0), (0, 0.05), (0, 0.6), (0, 0.97), (6, 0.7), (6, 0.999), (20, 0.4)]


def sample(logits, tile=None, seed=0, seen=(), **rule):
    """Tokens and confidences of all rows, fed in tiles; one tile a row by default, which filters need."""
    rows, vocabulary = logits.shape
    sampler, rule = _sampler.RowSampler(), _sampler.Rule(random_streams(seed, 1)[0], **rule)
    rule.seen = np.array(seen, np.intc)
    sampler.begin([rule], np.zeros(rows, np.int32))
    for begin in range(0, vocabulary, tile or vocabulary):
        sampler.consume(np.array(logits[:, begin:begin + (tile or vocabulary)], np.float32, order="C"), begin)
    tokens, confidence = np.empty(rows, np.intc), np.empty(rows)
    assert sampler.finish(tokens, confidence) == -1
    return tokens, confidence


def kept(row, temperature, top_k=0, top_p=1.0):
    """Tokens that a draw can give, and their probabilities: top-k by logit, the lowest token on ties, then the nucleus of the rest."""
    row = np.asarray(row, np.float64)
    order = np.argsort(-row, kind="stable")
    order = order[row[order] > -np.inf]
    if 0 < top_k < len(order):
        order = order[:top_k]
    p = softmax(row[order] / temperature)
    if top_p < 1:
        count = int(np.searchsorted(np.cumsum(p), top_p)) + 1  # the token that crosses p is in
        order, p = order[:count], p[:count]
    return order, p / p.sum()


def chi_square(draws, tokens, p):
    """p-value of draws against probabilities; cells with fewer than five expected draws are one."""
    counts = np.bincount(draws, minlength=tokens.max() + 1)[tokens]
    expected = p * len(draws)
    common = expected >= 5
    observed, expected = (np.append(x[common], x[~common].sum()) for x in (counts, expected))
    cells = expected > 0
    return stats.chisquare(observed[cells], expected[cells]).pvalue if cells.sum() > 1 else 1.0


@pytest.fixture
def row():
    return (np.random.default_rng(5).standard_normal(30) * 1.5).astype(np.float32)


# ---- top-k and top-p


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_draws_follow_the_filtered_distribution(row, temperature, top_k, top_p):
    tokens, p = kept(row, temperature, top_k, top_p)
    draws, confidence = sample(np.tile(row, (20_000, 1)), temperature=temperature, top_k=top_k, top_p=top_p, seed=1)
    assert set(draws) <= set(tokens)
    assert set(tokens[p * len(draws) > 20]) <= set(draws)
    assert chi_square(draws, tokens, p) > FALSE_ALARM
    # Confidence is that of the whole distribution, without temperature.
    np.testing.assert_allclose(confidence, softmax(row.astype(float))[draws], rtol=1e-12)


def test_filters_narrow_the_draw(row):
    """The combinations above are not one test repeated, and neither filter hides the other."""
    sets = [tuple(sorted(kept(row, t, *f)[0])) for t in TEMPERATURES for f in FILTERS]
    assert len(set(sets)) > 9
    assert len(kept(row, 1.0, 6, 0.7)[0]) < min(6, len(kept(row, 1.0, 0, 0.7)[0]))


@pytest.mark.parametrize("order", ["nucleus first", "untempered nucleus", "crossing token left out"])
def test_another_definition_of_the_filters_would_be_seen(row, order):
    t, k, p = 2.0, 6, 0.7
    tokens, _ = kept(row, t, k, p)
    if order == "nucleus first":
        other = np.intersect1d(kept(row, t, 0, p)[0], kept(row, t, k)[0])
    elif order == "untempered nucleus":
        other = kept(row, 1.0, k, p)[0]
    else:
        other = tokens[:-1]
    draws, _ = sample(np.tile(row, (20_000, 1)), temperature=t, top_k=k, top_p=p, seed=1)
    assert set(draws) == set(tokens) != set(other)


@pytest.mark.parametrize("seed", range(4))
def test_sets_of_random_rows(seed):
    """Every token with more than one expected draw in fifty is seen, none outside the set is."""
    rng = np.random.default_rng(seed)
    for _ in range(25):
        vocabulary = int(rng.integers(1, 60))
        logits = (rng.standard_normal(vocabulary) * rng.uniform(0.1, 4)).astype(np.float32)
        logits[rng.random(vocabulary) < 0.2] = -np.inf
        logits[rng.integers(vocabulary)] = 1.0
        t, k, p = rng.uniform(0.3, 3), int(rng.integers(0, vocabulary + 3)), rng.uniform(0.01, 1)
        tokens, probability = kept(logits, t, k, p)
        draws, _ = sample(np.tile(logits, (1500, 1)), temperature=t, top_k=k, top_p=p, seed=seed)
        assert set(tokens[probability > 0.02]) <= set(draws) <= set(tokens), (t, k, p)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (30, 1.0), (31, 1.0), (1 << 24, 1.0), (30, 1 - 1e-15)])
def test_filters_that_leave_everything(row, temperature, top_k, top_p):
    """In distribution, that is: a filtered row draws its numbers in another order."""
    draws, _ = sample(np.tile(row, (20_000, 1)), temperature=temperature, top_k=top_k, top_p=top_p, seed=2)
    assert chi_square(draws, np.arange(30), softmax(row.astype(float) / temperature)) > FALSE_ALARM


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.3}, {"top_k": 3, "top_p": 0.5}, {"top_k": 1}])
def test_without_temperature_filters_change_nothing(options):
    logits = np.random.default_rng(1).standard_normal((40, 33)).astype(np.float32)
    plain, filtered = sample(logits), sample(logits, **options)
    assert np.array_equal(plain[0], filtered[0]) and np.array_equal(plain[1], filtered[1])
    assert not _sampler.Rule(random_streams(0, 1)[0], **options).filtered
    assert _sampler.Rule(random_streams(0, 1)[0], temperature=1.0, **options).filtered


@pytest.mark.parametrize(("top_k", "top_p", "wanted"), [
    (2, 1.0, {3, 9}), (3, 1.0, {3, 9, 11}), (4, 1.0, {3, 9, 11, 20}), (0, 0.5, {3, 9}), (0, 0.51, {3, 9, 11}), (3, 0.5, {3, 9}),
    (3, 0.7, {3, 9, 11}), (1, 0.9, {3}), (0, 1e-9, {3})])
def test_ties_go_to_the_lowest_tokens(top_k, top_p, wanted):
    """Four equal logits, and all other tokens impossible: a quarter of the mass each, exactly."""
    logits = np.full(25, -np.inf, np.float32)
    logits[[20, 3, 11, 9]] = 2.5
    for temperature in TEMPERATURES:
        draws, _ = sample(np.tile(logits, (500, 1)), temperature=temperature, top_k=top_k, top_p=top_p)
        assert set(draws) == wanted


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.9}])
def test_impossible_tokens_do_not_fill_the_places(row, options):
    """-inf logits are outside of both filters, also when fewer than k are left, or one."""
    for finite in (12, 4, 1):
        logits = np.full(30, -np.inf, np.float32)
        where = np.random.default_rng(finite).permutation(30)[:finite]
        logits[where] = row[where]
        tokens, p = kept(logits, 1.0, **options)
        draws, _ = sample(np.tile(logits, (5000, 1)), temperature=1.0, **options)
        assert set(tokens[p > 0.01]) <= set(draws) <= set(tokens) <= set(where)


def test_suppressed_tokens_do_not_fill_the_places(row):
    """Suppression comes before the filters; a discounted token is drawn like any other."""
    best = np.argsort(-row)[:3]
    without = row.copy()
    without[best] = -np.inf
    draws, _ = sample(np.tile(row, (3000, 1)), temperature=1.0, top_k=4, suppressed=best)
    assert set(draws) == set(kept(without, 1.0, 4)[0])
    draws, confidence = sample(np.tile(row, (3000, 1)), temperature=1.0, top_k=4, discounted=best)
    assert set(draws) == set(kept(row, 1.0, 4)[0])
    assert (confidence[np.isin(draws, best)] == 0).all() and (confidence[~np.isin(draws, best)] > 0).all()


def test_the_penalty_comes_before_the_filters():
    logits = np.array([3.0, 2.0, 1.0, 0.5], np.float32)
    draws, confidence = sample(np.tile(logits, (2000, 1)), temperature=1.0, top_k=2, repetition_penalty=4.0, seen=[0])
    assert set(draws) == {1, 2}
    np.testing.assert_allclose(confidence, softmax([0.75, 2.0, 1.0, 0.5])[draws], rtol=1e-7)


@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
def test_huge_logits_keep_their_order(scale):
    logits = (np.array([0.9, -1.0, 0.99, 0.1]) * scale).astype(np.float32)
    for options in ({"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.999}):
        draws, confidence = sample(np.tile(logits, (50, 1)), temperature=1.0, **options)
        assert set(draws) == {2} and (confidence == 1).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures(row, temperature):
    """Cold is the best token, hot is even among those kept."""
    for options in ({"top_k": 5}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.9}):
        draws, _ = sample(np.tile(row, (3000, 1)), temperature=temperature, **options)
        if temperature < 1:
            assert set(draws) == {row.argmax()}
        else:
            tokens = np.argsort(-row)[:5 if "top_k" in options else 15]
            assert set(draws) == set(tokens)
            assert chi_square(draws, tokens, np.full(len(tokens), 1 / len(tokens))) > FALSE_ALARM


# ---- models


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """(model, config, tensors): a tiny model whose logits spread over several units, so that filters and orders have something to do."""
    config = folders.config(n_kv_heads=2)
    tensors = folders.tensors(config, seed=3)
    tensors["model.transformer.ff_out.weight"] *= 5
    folder = folders.write(tmp_path_factory.mktemp("sharp"), config, tensors)
    return LLaDAForCausalLM(folder, num_threads=1), config, tensors


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.6}, {"topk_": 7, "topp_": 0.8}, {"top_k": 1}])
def test_one_token_generations_follow_the_filtered_distribution(sharp, options):
    """2,000 prompts with their own seeds, against the oracle's logits."""
    model, config, tensors = sharp
    prompt, temperature = [4, 9, 2, 33], 1.3
    logits = oracle.forward(tensors, config, np.array([*prompt, config["mask_token_id"]]))[-1]
    tokens, p = kept(logits, temperature, **{{"topk_": "top_k", "topp_": "top_p"}.get(k, k): v for k, v in options.items()})
    found = model.generate([prompt] * 2000, gen_length=1, temperature=temperature, seed=list(range(2000)), **options)
    draws = np.array([s[-1] for s in found.sequences])
    assert set(tokens[p > 0.01]) <= set(draws) <= set(tokens)
    assert chi_square(draws, tokens, p) > FALSE_ALARM
    np.testing.assert_allclose([c[0] for c in found.confidence], softmax(logits)[draws], rtol=1e-4)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8, "cfg_scale": 0.6},
                                     {"top_k": 5, "remasking": "random"}, {"top_p": 0.7, "remasking": "entropy"}])
def test_a_seed_gives_the_same_filtered_answer_alone_and_in_any_batch(sharp, options):
    """24 rows alone, 96 together: the sampler sees them in pieces of WHOLE_ROWS, guided rows with their partners."""
    model, _, _ = sharp
    prompts = [np.random.default_rng(i).integers(0, 55, n) for i, n in enumerate((9, 3, 14, 6))]
    options = {"gen_length": 24, "block_length": 24, "max_steps": 6, "temperature": 1.1, **options}
    assert 24 < WHOLE_ROWS < 4 * 24
    alone = [model.generate(p, seed=[100 + i], **options) for i, p in enumerate(prompts)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3)):
        together = model.generate([prompts[i] for i in order], seed=[100 + i for i in order], **options)
        for place, i in enumerate(order):
            assert np.array_equal(together.sequences[place], alone[i].sequences[0])
            assert np.array_equal(together.confidence[place], alone[i].confidence[0])
    assert not np.array_equal(model.generate(prompts[0], seed=[7], **options).sequences[0], alone[0].sequences[0])


def test_the_size_of_the_pieces_changes_nothing(sharp, monkeypatch):
    """One row at a time, some, or all 40 of a prompt."""
    model, _, _ = sharp
    runs = []
    for rows in (1, 7, 32, 1000):
        monkeypatch.setattr("llada_native.denoiser.WHOLE_ROWS", rows)
        runs.append(model.generate([1, 2, 3], gen_length=40, block_length=40, max_steps=8, temperature=1.2, top_k=12, top_p=0.9,
                                   cfg_scale=0.4, seed=5))
    for run in runs[1:]:
        assert np.array_equal(run.sequences[0], runs[0].sequences[0]) and np.array_equal(run.confidence[0], runs[0].confidence[0])


def test_a_vocabulary_of_several_tiles():
    """Filters see the whole row where the vocabulary is wider than a tile; what they keep is in several."""
    config = folders.config(embedding_size=9001, vocab_size=9001, n_kv_heads=2, n_layers=1)
    model = LLaDAForCausalLM.random(config, dtype="float32", num_threads=1)
    logits = model.forward([5, 6, 7, 58])[-1].astype(float)
    for options in ({"top_k": 3}, {"top_p": 0.03}):
        tokens, p = kept(logits, 0.7, **options)
        found = model.generate([[5, 6, 7]] * 600, gen_length=1, temperature=0.7, seed=0, mask_id=58, **options)
        draws = np.array([s[-1] for s in found.sequences])
        assert set(tokens[p > 0.03]) <= set(draws) <= set(tokens) and min(tokens) < 4096 < max(tokens)
        assert chi_square(draws, tokens, p) > FALSE_ALARM
        np.testing.assert_allclose([c[0] for c in found.confidence], softmax(logits)[draws], rtol=1e-6)


# ---- entropy and margin


def entropy_confidence(p):
    return -stats.entropy(p, axis=-1)


def margin_confidence(p):
    top = np.sort(p, axis=-1)
    return top[..., -1] - top[..., -2]


ORDERS = {"entropy": entropy_confidence, "margin": margin_confidence}


@pytest.mark.parametrize("remasking", ORDERS)
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 40.0])
def test_confidence_of_every_tiling(remasking, spread):
    logits = (np.random.default_rng(0).standard_normal((60, 41)) * spread).astype(np.float32)
    wanted = ORDERS[remasking](softmax(logits.astype(float), axis=1))
    for tile in (1, 2, 7, 40, 41, 64):
        tokens, confidence = sample(logits, tile=tile, remasking=remasking)
        assert np.array_equal(tokens, logits.argmax(1))
        np.testing.assert_allclose(confidence, wanted, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("remasking", ORDERS)
def test_ascending_and_descending_rows(remasking):
    """Every tile brings a new maximum, or none does; the runner-up is in an earlier tile, in the same, or in a later one."""
    up = np.linspace(-9, 9, 24).astype(np.float32)
    logits = np.stack([up, up[::-1], np.roll(up, 5), np.where(np.arange(24) == 13, 9.5, up)]).astype(np.float32)
    wanted = ORDERS[remasking](softmax(logits.astype(float), axis=1))
    for tile in range(1, 25):
        np.testing.assert_allclose(sample(logits, tile=tile, remasking=remasking)[1], wanted, rtol=1e-11)


@pytest.mark.parametrize("remasking", ORDERS)
def test_a_peaked_row_is_surer_than_a_flat_one(remasking):
    """Both orders reveal the surest first: confidence rises with the height of the peak."""
    logits = np.zeros((6, 30), np.float32)
    logits[:, 4] = [0, 1, 2, 4, 8, 16]
    for tile in (30, 11):
        _, confidence = sample(logits, tile=tile, remasking=remasking)
        assert (np.diff(confidence) > 0).all()
    limits = {"entropy": (-np.log(30), 0), "margin": (0, 1)}[remasking]
    np.testing.assert_allclose(confidence[[0, -1]], limits, atol=1e-4)


@pytest.mark.parametrize("remasking", ORDERS)
def test_confidence_without_suppressed_and_discounted_tokens(remasking):
    """Both lose their mass; a discounted token that is drawn has the least confidence there is."""
    logits = (np.random.default_rng(2).standard_normal((80, 20)) * 2).astype(np.float32)
    often = np.bincount(logits.argmax(1)).argsort()[::-1][:3]
    suppressed, discounted = often[:1], often[1:]
    drawn = logits.astype(float)
    drawn[:, suppressed] = -np.inf
    counted = drawn.copy()
    counted[:, discounted] = -np.inf
    tokens = drawn.argmax(1)
    least = -np.inf if remasking == "entropy" else 0
    wanted = np.where(np.isin(tokens, discounted), least, ORDERS[remasking](softmax(counted, axis=1)))
    for tile in (1, 6, 20):
        found, confidence = sample(logits, tile=tile, remasking=remasking, suppressed=suppressed, discounted=discounted)
        assert np.array_equal(found, tokens)
        np.testing.assert_allclose(confidence, wanted, rtol=1e-11)
    assert np.isin(tokens, discounted).sum() > 3


@pytest.mark.parametrize("remasking", ORDERS)
def test_one_token_that_counts(remasking):
    """All others are impossible or discounted: certain, or, if it is itself discounted, the least there is."""
    logits = np.full((1, 9), -np.inf, np.float32)
    logits[0, [2, 5]] = 1, 3
    for tile in (1, 3, 9):
        assert sample(logits, tile=tile, remasking=remasking, suppressed=[2])[1] == {"entropy": 0, "margin": 1}[remasking]
        least = {"entropy": -np.inf, "margin": 0}[remasking]
        assert sample(logits, tile=tile, remasking=remasking, discounted=[5])[1] == least
        assert sample(logits, tile=tile, remasking=remasking, discounted=[2, 5])[1] == least


@pytest.mark.parametrize("remasking", ORDERS)
@pytest.mark.parametrize("logits", [
    [3e38, -3e38, 1.0, 0.0], [-3e38, -3e38, -3e38, -3.1e38], [2000.0, 1999.0, -3000.0, 1999.0], [-2000.0, -2001.0, -2000.5, -9000.0],
    [5.0, 5.0, -np.inf, -np.inf], [-np.inf, -np.inf, 1.0, 0.5], [1e-40, 0.0, -1e-40, 0.0],
], ids=str)
def test_confidence_of_extreme_rows(remasking, logits):
    logits = np.array([logits], np.float32)
    wanted = ORDERS[remasking](softmax(logits.astype(float), axis=1))
    for tile in (1, 2, 3, 4):
        _, confidence = sample(logits, tile=tile, remasking=remasking)
        np.testing.assert_allclose(confidence, wanted, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("remasking", ORDERS)
def test_order_does_not_depend_on_the_drawn_token(remasking):
    """Above temperature 0 the confidence is that of the distribution, whichever token was drawn, filtered or not."""
    logits = np.tile((np.random.default_rng(3).standard_normal(20) * 2).astype(np.float32), (200, 1))
    wanted = ORDERS[remasking](softmax(logits[0].astype(float)))
    for filters in ({}, {"top_k": 6}):
        tokens, confidence = sample(logits, temperature=1.5, remasking=remasking, **filters)
        assert len(set(tokens)) > 4
        np.testing.assert_allclose(confidence, wanted, rtol=1e-12)


# ---- whole generations


def denoise(tensors, config, prompt, gen_length, block_length, max_steps, *, remasking="low_confidence", penalty=1.0, suppressed=(),
            cfg_scale=0.0, answer=None):
    """The denoising loop at temperature 0 in float64. Returns the sequence, the steps of its commits, and every canvas on the way."""
    mask = config["mask_token_id"]
    x = np.concatenate([prompt, np.full(gen_length, mask) if answer is None else answer]).astype(int)
    given, n = x != mask, len(prompt)
    commit, canvases, per_block = np.full(gen_length, -1), [], max_steps * block_length // gen_length
    for block in range(gen_length // block_length):
        end = n + (block + 1) * block_length
        quotas = oracle.transfer_counts(np.array([(x[end - block_length:end] == mask).sum()]), per_block)[0]
        for i, quota in enumerate(quotas):
            if quota == 0:
                continue
            logits = oracle.forward(tensors, config, x)
            if cfg_scale:
                hidden = np.where(given, mask, x)
                without = oracle.forward(tensors, config, hidden)
                logits = without + (cfg_scale + 1) * (logits - without)
            for t in set(x[x != mask]) if penalty != 1 else ():
                logits[:, t] = np.where(logits[:, t] > 0, logits[:, t] / penalty, logits[:, t] * penalty)
            logits[:, list(suppressed)] = -np.inf
            best, p = logits.argmax(1), softmax(logits, axis=1)
            confidence = p.max(1) if remasking == "low_confidence" else ORDERS[remasking](p)
            masked = np.flatnonzero(x[:end] == mask)
            chosen = masked[np.argsort(-confidence[masked], kind="stable")[:quota]]
            x[chosen] = best[chosen]
            commit[chosen - n] = np.where(best[chosen] == mask, -1, block * per_block + i)
            canvases.append(x[n:].copy())
    return x, commit, canvases


PROMPTS = [np.random.default_rng(i).integers(0, 55, n) for i, n in enumerate((9, 3, 14))]


def check_generation(sharp, schedules=SCHEDULES, **rule):
    """All schedules of three prompts in one batch against the loop above. Returns the sequences."""
    model, config, tensors = sharp
    names = {"penalty": "repetition_penalty", "suppressed": "suppress_tokens"}
    options = {names.get(name, name): value for name, value in rule.items()}
    sequences = []
    for block, steps in schedules:
        found = model.generate(PROMPTS, gen_length=GEN, block_length=block, max_steps=steps, **options)
        wanted = [denoise(tensors, config, p, GEN, block, steps, **rule) for p in PROMPTS]
        for ours, step, (ids, commit, _) in zip(found.sequences, found.commit_step, wanted, strict=True):
            assert np.array_equal(ours, ids), (block, steps)
            assert np.array_equal(step, commit), (block, steps)
        assert found.n_forward == max(len(canvases) for _, _, canvases in wanted)
        sequences += found.sequences
    return sequences


@pytest.mark.parametrize("cfg_scale", [0.0, 0.8])
@pytest.mark.parametrize("remasking", ["low_confidence", *ORDERS])
def test_token_ids_of_every_order(sharp, remasking, cfg_scale):
    check_generation(sharp, remasking=remasking, cfg_scale=cfg_scale)


def test_orders_differ(sharp):
    """The orders above are three orders."""
    model, _, _ = sharp
    commits = [np.concatenate(model.generate(PROMPTS, gen_length=GEN, remasking=r).commit_step) for r in ("low_confidence", *ORDERS)]
    for a, b in itertools.combinations(commits, 2):
        assert not np.array_equal(a, b)


@pytest.mark.parametrize("remasking", ORDERS)
def test_end_tokens_come_last_in_every_order(sharp, remasking):
    """confidence_eos_eot_inf gives the least confidence: other masks of the block go first."""
    model, config, _ = sharp
    canvas = np.full(30, config["mask_token_id"])
    eos, eot = (int(t) for t in np.bincount(model.forward(canvas).argmax(1)).argsort()[::-1][:2])
    ends = []

    def look(step):
        ends.append((int(np.isin(step.tokens[0], [eos, eot]).sum()), step.confidence[0].tolist()))

    model.generate(PROMPTS[0], gen_length=16, block_length=16, remasking=remasking, eos_id=eos, eot_id=eot, confidence_eos_eot_inf=True,
                   callback=look)
    least = {"entropy": -np.inf, "margin": 0}[remasking]
    assert any(n for n, _ in ends)
    assert all((confidence == [least]) == (n == 1) for n, confidence in ends)


# ---- repetition penalty


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 2.0, 1e6])
def test_penalty_divides_positive_and_multiplies_negative_logits(penalty):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((50, 40)) * 3).astype(np.float32)
    logits[:, 7], logits[3, 8], logits[4] = 0.0, -np.inf, -np.abs(logits[4])
    seen = np.array([0, 1, 7, 8, 13, 25, 39])
    wanted = logits.astype(float)
    part = wanted[:, seen]
    wanted[:, seen] = np.where(part > 0, part / penalty, part * penalty)
    for tile in (1, 9, 40):
        tokens, confidence = sample(logits, tile=tile, repetition_penalty=penalty, seen=seen)
        assert np.array_equal(tokens, wanted.argmax(1))
        np.testing.assert_allclose(confidence, softmax(wanted, axis=1).max(1), rtol=1e-6)
    assert np.array_equal(tokens, logits.argmax(1)) == (penalty == 1)


@pytest.mark.parametrize("remasking", ["low_confidence", *ORDERS])
@pytest.mark.parametrize("penalty", [0.8, 1.5, 30.0])
def test_token_ids_with_a_penalty(sharp, remasking, penalty):
    """Tokens of the prompt and of the answer so far count; the mask does not."""
    sequences = check_generation(sharp, SCHEDULES[:4], remasking=remasking, penalty=penalty, cfg_scale=0.5 if penalty == 1.5 else 0.0)
    plain = check_generation(sharp, SCHEDULES[:4], remasking=remasking)
    assert any(not np.array_equal(a, b) for a, b in zip(sequences, plain, strict=True))


def test_a_large_penalty_repeats_nothing_from_step_to_step(sharp):
    """With one token a step, while the model has positive logits to offer; without a penalty this model repeats itself."""
    model, _, _ = sharp
    answers = {p: model.generate([1], gen_length=12, block_length=12, repetition_penalty=p).sequences[0][1:] for p in (1.0, 1e6)}
    assert len(set(answers[1e6])) == 12 > len(set(answers[1.0])) and 1 not in answers[1e6]


def test_the_mask_token_is_not_penalised(sharp, tmp_path):
    """A model that often wants the mask token keeps wanting it at any penalty, though the canvas is full of it."""
    _, config, tensors = sharp
    head = tensors["model.transformer.ff_out.weight"].copy()
    head[58] = head[oracle.forward(tensors, config, np.array([1, 2, *[58] * 8])).argmax(1)[-1]] * 1.5
    tensors = {**tensors, "model.transformer.ff_out.weight": head}
    with LLaDAForCausalLM(folders.write(tmp_path, config, tensors), num_threads=1) as model:
        for penalty in (1.5, 1e6):
            assert (check_generation((model, config, tensors), penalty=penalty)[0][-GEN:] == 58).any()


def test_the_penalty_of_a_prompt_is_its_own(sharp):
    """In a batch, tokens of one prompt are not held against another."""
    model, _, _ = sharp
    options = {"gen_length": 8, "repetition_penalty": 5.0}
    together = model.generate(PROMPTS, **options)
    for p, ids in zip(PROMPTS, together.sequences, strict=True):
        assert np.array_equal(model.generate(p, **options).sequences[0], ids)


@pytest.mark.parametrize("penalty", [1e-300, 1e-39, 1e6])
def test_every_accepted_penalty_has_finite_logits(sharp, penalty):
    """A value that is accepted must not end in an error that blames the weights."""
    model, _, _ = sharp
    try:
        model.generate(PROMPTS[0], gen_length=4, repetition_penalty=penalty)
    except ValueError as e:
        assert str(e).startswith("repetition_penalty: expected")


# ---- suppressed tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5}, {"temperature": 1.5, "top_k": 10}, {"remasking": "entropy"},
                                     {"temperature": 2.0, "remasking": "random", "cfg_scale": 0.5}], ids=str)
def test_suppressed_tokens_never_appear(sharp, options):
    model, _, _ = sharp
    options = {"gen_length": 16, "block_length": 8, "seed": 1, **options}
    free = np.concatenate([s[3:] for s in model.generate([[1, 2, 3]] * 20, **options).sequences])
    common = [int(t) for t in np.bincount(free).argsort()[::-1][:len(set(free)) // 2 + 1]]
    assert np.isin(common, free).all()
    found = model.generate([[1, 2, 3]] * 20, suppress_tokens=common, **options)
    assert not np.isin(np.concatenate([s[3:] for s in found.sequences]), common).any()


@pytest.mark.parametrize("remasking", ["low_confidence", *ORDERS])
def test_token_ids_with_suppressed_tokens(sharp, remasking):
    model, _, _ = sharp
    first = model.generate(PROMPTS, gen_length=GEN).sequences
    check_generation(sharp, SCHEDULES[:4], remasking=remasking, suppressed=sorted({int(t) for s in first for t in s[-GEN:]}))


def test_suppressing_everything_is_refused(sharp):
    model, _, _ = sharp
    for tokens, options in ((range(64), {}), ([t for t in range(64) if t != 57], {"logits_eos_inf": True}),
                            ([*range(64), *range(64)], {})):
        with pytest.raises(ValueError, match=r"^suppress_tokens: expected to leave a token to draw, found the whole vocabulary$"):
            model.generate([1, 2], gen_length=2, suppress_tokens=tokens, **options)


@pytest.mark.parametrize("left", [5, 57])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_token_that_is_left_is_drawn(sharp, left, temperature):
    """Also when it is the end-of-text token, which may be drawn unless logits_eos_inf forbids it."""
    model, _, _ = sharp
    found = model.generate([1, 2], gen_length=4, suppress_tokens=[t for t in range(64) if t != left], temperature=temperature)
    assert found.sequences[0].tolist() == [1, 2, left, left, left, left]
    np.testing.assert_array_equal(found.confidence[0], 1.0)


@pytest.mark.parametrize("values", [[5, 9], (9, 5, 5), {5, 9}, np.array([5, 9]), np.array([5, 9], np.uint8), range(5, 10, 4)], ids=str)
def test_suppressed_tokens_come_in_any_collection(sharp, values):
    model, _, _ = sharp
    options = {"gen_length": 8, "temperature": 2.0, "seed": 0}
    wanted = model.generate([1, 2], suppress_tokens=[5, 9], **options).sequences[0]
    assert np.array_equal(model.generate([1, 2], suppress_tokens=values, **options).sequences[0], wanted)
