"""The sampler alone: statistics over tiles, draws, ties, quotas."""
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, softmax

from llada_native import _sampler
from llada_native.canvas import random_streams, transfer_quotas

FALSE_ALARM = 1e-4  # probability that a chi-square test with a fixed seed would have failed by chance


def sample(logits, tile=7, seed=0, unconditional=None, seen=(), **rule):
    """Tokens and confidences of all rows, fed in tiles."""
    rows, vocabulary = logits.shape
    sampler, rule = _sampler.RowSampler(), _sampler.Rule(random_streams(seed, 1)[0], **rule)
    rule.seen = np.array(seen, np.intc)
    sampler.begin([rule], np.zeros(rows, np.int32))
    for begin in range(0, vocabulary, tile):
        part = logits[:, begin:begin + tile]
        if unconditional is not None:
            part = np.concatenate([part, unconditional[:, begin:begin + tile]])
        sampler.consume(np.array(part, np.float32, order="C"), begin)
    tokens, confidence = np.empty(rows, np.intc), np.empty(rows)
    bad = sampler.finish(tokens, confidence)
    return tokens, confidence, bad


@pytest.fixture
def logits():
    return (np.random.default_rng(0).standard_normal((50, 40)) * 4).astype(np.float32)


@pytest.mark.parametrize("tile", [1, 7, 39, 40, 64])
def test_greedy_token_and_confidence(logits, tile):
    tokens, confidence, bad = sample(logits, tile=tile)
    assert bad == -1
    assert np.array_equal(tokens, logits.argmax(1))
    np.testing.assert_allclose(confidence, softmax(logits.astype(float), axis=1).max(1), rtol=1e-13)


def test_ties_go_to_the_lowest_token():
    logits = np.zeros((1, 40), np.float32)
    logits[0, [9, 23, 24]] = 5
    for tile in (1, 3, 10, 40):
        assert sample(logits, tile=tile)[0][0] == 9


def test_suppressed_token_leaves_token_and_confidence(logits):
    hidden = int(np.bincount(logits.argmax(1)).argmax())
    tokens, confidence, _ = sample(logits, suppressed=[hidden])
    without = logits.astype(float).copy()
    without[:, hidden] = -np.inf
    assert np.array_equal(tokens, without.argmax(1)) and hidden in logits.argmax(1)
    np.testing.assert_allclose(confidence, softmax(without, axis=1).max(1), rtol=1e-13)


def test_discounted_tokens_keep_their_place_without_confidence(logits):
    a, b = np.bincount(logits.argmax(1)).argsort()[-2:]
    tokens, confidence, _ = sample(logits, discounted=[a, b])
    assert np.array_equal(tokens, logits.argmax(1))
    without = logits.astype(float).copy()
    without[:, [a, b]] = -np.inf
    wanted = np.take_along_axis(softmax(without, axis=1), tokens[:, None], 1)[:, 0]
    np.testing.assert_allclose(confidence, wanted, rtol=1e-13)
    assert (confidence[np.isin(tokens, [a, b])] == 0).all() and np.isin(tokens, [a, b]).any()


def test_guidance(logits):
    unconditional = (np.random.default_rng(1).standard_normal(logits.shape) * 4).astype(np.float32)
    tokens, confidence, _ = sample(logits, cfg_scale=1.5, unconditional=unconditional)
    guided = unconditional + np.float32(2.5) * (logits - unconditional)
    assert np.array_equal(tokens, guided.argmax(1)) and not np.array_equal(tokens, logits.argmax(1))
    np.testing.assert_allclose(confidence, softmax(guided.astype(float), axis=1).max(1), rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_softmax(temperature):
    """Chi-square of 40,000 draws against softmax(logits / T)."""
    row = (np.random.default_rng(5).standard_normal(30) * 1.5).astype(np.float32)
    draws, confidence, _ = sample(np.tile(row, (40_000, 1)), temperature=temperature, tile=11, seed=3)
    wanted = softmax(row.astype(float) / temperature)
    counts = np.bincount(draws, minlength=30)
    common = wanted * len(draws) >= 5  # the usual condition; the rare rest is one cell
    observed, expected = [np.append(x[common], x[~common].sum()) for x in (counts, wanted * len(draws))]
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > FALSE_ALARM
    # Confidence is that of the drawn token without temperature.
    np.testing.assert_allclose(confidence, softmax(row.astype(float))[draws], rtol=1e-12)


def test_a_wrong_temperature_would_be_seen():
    row = (np.random.default_rng(5).standard_normal(30) * 1.5).astype(np.float32)
    draws, _, _ = sample(np.tile(row, (40_000, 1)), temperature=1.05, seed=3)
    expected = softmax(row.astype(float)) * len(draws)
    assert stats.chisquare(np.bincount(draws, minlength=30), expected).pvalue < FALSE_ALARM


def test_large_logits_do_not_overflow():
    """The reference's exp(l) overflows float64 beyond 709; the log domain does not."""
    logits = np.array([[2000.0, 1999.0, -3000.0]], np.float32)
    draws = [sample(logits, temperature=1.0, seed=s)[0][0] for s in range(200)]
    assert set(draws) == {0, 1}
    _, confidence, _ = sample(logits)
    np.testing.assert_allclose(np.log(confidence), log_softmax(logits.astype(float), axis=1)[:, 0], rtol=1e-12)


@pytest.mark.parametrize("poison", [np.nan, -np.inf])
def test_rows_without_an_answer_are_named(logits, poison):
    logits[17] = poison
    assert sample(logits)[2] == 17
    logits[17] = 0
    assert sample(logits)[2] == -1


@pytest.mark.parametrize("where", [slice(21, 22), slice(0, 7), slice(35, 40)])
def test_one_nan_is_seen(logits, where):
    """In the middle of a tile, or all of the first or the last one."""
    logits[3, where] = np.nan
    assert sample(logits)[2] == 3



def test_quotas():
    for masks in range(70):
        for steps in range(1, 70):
            quotas = transfer_quotas(masks, steps)
            assert sum(quotas) == masks and len(quotas) == min(steps, masks)
            assert not masks or (max(quotas) - min(quotas) <= 1 and quotas == sorted(quotas, reverse=True) and quotas[-1] > 0)
    assert transfer_quotas(3, 1 << 24) == [1, 1, 1]


def test_streams_of_single_seeds_do_not_depend_on_the_batch():
    alone = random_streams([7], 1)[0].random_raw(4)
    assert np.array_equal(random_streams([3, 7, 9], 3)[1].random_raw(4), alone)
    assert not np.array_equal(random_streams(7, 2)[0].random_raw(4), random_streams(7, 2)[1].random_raw(4))


@pytest.mark.parametrize("temperature", [1e-12, 1e-3, 0.7, 30.0, 1e6])
@pytest.mark.parametrize("spread", [1e-9, 1.0, 40.0])
def test_noise_that_is_left_out_could_not_have_won(temperature, spread):
    """Every draw against the argmax over the noise of all tokens, from the same numbers."""
    rows, vocabulary = 60, 3000
    logits = (np.random.default_rng(1).standard_normal((rows, vocabulary)) * spread).astype(np.float32)
    sampler, tokens, confidence = _sampler.RowSampler(), np.empty(rows, np.intc), np.empty(rows)
    sampler.begin([_sampler.Rule(np.random.PCG64(7), temperature)], np.zeros(rows, np.int32))
    sampler.consume(logits.copy(), 0)
    assert sampler.finish(tokens, confidence) == -1
    uniform = np.random.Generator(np.random.PCG64(7)).random((rows, vocabulary))
    noisy = logits - temperature * np.log(-np.log(uniform))
    best = noisy.max(1)
    # The two logarithms of NumPy and of libm may differ in the last place, which a tie of that size would show.
    close = noisy[np.arange(rows), tokens] >= best - 4 * np.spacing(np.abs(best)) - 4 * temperature * np.spacing(40.0)
    assert close.all() and (tokens == noisy.argmax(1)).mean() > 0.95
