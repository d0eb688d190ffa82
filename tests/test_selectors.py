"""Selectors against plain ports of their rules (ports.py), on random and on hand-made rows."""
from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from types import SimpleNamespace

import numpy as np
import ports
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, softmax

from llada_native import selectors
from llada_native.selectors import (
    NAMES,
    Credit,
    EntropyBound,
    EntropyThreshold,
    Factor,
    Hierarchy,
    Klass,
    LocalLeap,
    Margin,
    Quota,
    Threshold,
    parse,
)

# Every rule with its defaults, its published variants, and parameters that random rows meet exactly.
CASES = [
    (Quota(), ports.quota, {}),
    (Threshold(), ports.threshold, {}),
    (Threshold(0.5), ports.threshold, {"tau": 0.5}),
    (Threshold(0.95, strict=True), ports.threshold, {"tau": 0.95, "strict": True}),
    (Threshold(0.5, strict=True), ports.threshold, {"tau": 0.5, "strict": True}),
    (Threshold(slack=1e-5), ports.threshold, {"slack": 1e-5}),
    (Threshold(0.75, slack=0.25), ports.threshold, {"tau": 0.75, "slack": 0.25}),
    (Threshold(0.0), ports.threshold, {"tau": 0.0}),
    (Threshold(1.0), ports.threshold, {"tau": 1.0}),
    (Factor(), ports.factor, {}),
    (Factor(0.5), ports.factor, {"f": 0.5}),
    (Factor(3.0), ports.factor, {"f": 3.0}),
    (Hierarchy(), ports.hierarchy, {}),
    (Hierarchy(0.92, 0.62), ports.hierarchy, {"tau": 0.92, "low": 0.62}),
    (Hierarchy(0.5, 0.25), ports.hierarchy, {"tau": 0.5, "low": 0.25}),
    (Hierarchy(0.5, 0.5), ports.hierarchy, {"tau": 0.5, "low": 0.5}),
    (EntropyBound(), ports.entropy_bound, {}),
    (EntropyBound(0.0), ports.entropy_bound, {"gamma": 0.0}),
    (EntropyBound(0.5), ports.entropy_bound, {"gamma": 0.5}),
    (EntropyThreshold(), ports.entropy_threshold, {}),
    (EntropyThreshold(0.5), ports.entropy_threshold, {"h": 0.5}),
    (Margin(), ports.margin, {}),
    (Margin(0.25), ports.margin, {"tau": 0.25}),
    (LocalLeap(), ports.local_leap, {}),
    (LocalLeap(0.75, 0.5, 1), ports.local_leap, {"anchor": 0.75, "tau": 0.5, "radius": 1}),
    (LocalLeap(0.75, 0.25, 16), ports.local_leap, {"anchor": 0.75, "tau": 0.25, "radius": 16}),
    (LocalLeap(radius=0), ports.local_leap, {"radius": 0}),
]
CONFIGURATIONS = [selector for selector, _, _ in CASES]
THRESHOLDS = [0.0, 0.25, 0.4, 0.5, 0.62, 0.75, 0.9, 0.92, 0.95, 1.0]


def make_rows(probability, positions=None, second=None, entropy=None, confidence=None):
    """What a selector sees; what a test leaves out may not be read."""
    n = len(probability)
    columns = {"probability": probability, "second": second, "entropy": entropy, "confidence": confidence}
    return SimpleNamespace(
        positions=np.arange(n) if positions is None else np.array(positions, np.intp), tokens=np.arange(n, dtype=np.int32),
        **{name: np.array(values, np.float64) for name, values in columns.items() if values is not None})


def plain(rows):
    """The same in Python numbers, for the ports."""
    return SimpleNamespace(**{name: values.tolist() for name, values in vars(rows).items()})


def chosen(selector, rows, least=1):
    return selector.choose(rows, least, selector.memory()).tolist()


def score(selector, rows):
    """What its surest first goes by."""
    if isinstance(selector, Quota):
        return rows.confidence
    if isinstance(selector, Margin):
        return rows.probability - rows.second
    return -rows.entropy if "entropy" in selector.wants else rows.probability


def from_logits(logits, positions):
    """Rows as a forward pass gives them: greedy tokens."""
    p = softmax(logits, axis=1)
    ordered = np.sort(p, axis=1)
    return make_rows(ordered[:, -1], positions, ordered[:, -2], entr(p).sum(axis=1), ordered[:, -1])


def random_rows(generator):
    """Rows of one of several kinds: independent columns, on a grid that meets thresholds, all sure, none sure, real softmaxes."""
    n = int(generator.choice([1, 2, 3, 8, 32, 40]))
    positions = 17 + np.sort(generator.choice(2 * n, n, replace=False)) if generator.random() < 0.7 else np.arange(n)
    kind = generator.integers(5)
    if kind == 0:
        return from_logits(generator.normal(0, generator.choice([0.5, 4, 12]), (n, 9)), positions)
    if kind == 1:
        probability, entropy = generator.choice(THRESHOLDS, n), generator.integers(0, 9, n) / 16
    elif kind == 2:
        probability, entropy = 1 - generator.choice([0, 1e-9, 1e-3, 0.01], n), generator.choice([0, 1e-6, 1e-3], n)
    elif kind == 3:
        probability, entropy = generator.uniform(0, 0.2, n), generator.uniform(2, 9, n)
    else:
        probability, entropy = generator.uniform(0, 1, n), generator.exponential(0.2, n)
    second = generator.choice(THRESHOLDS, n) * (1 - probability) if kind < 3 else generator.uniform(0, 1, n) * (1 - probability)
    confidence = generator.choice(THRESHOLDS, n) if generator.random() < 0.5 else generator.normal(size=n)
    return make_rows(probability, positions, second, entropy, confidence)


@pytest.mark.parametrize("selector, port, parameters", CASES, ids=[repr(selector) for selector in CONFIGURATIONS])
def test_port(selector, port, parameters):
    generator = np.random.default_rng(20261123)
    for _ in range(2000):
        rows = random_rows(generator)
        least = int(generator.choice([0, 1, 1, 1, 2, 3, 8, 64]))
        assert chosen(selector, rows, least) == port(plain(rows), least, **parameters), (vars(rows), least)


@pytest.mark.parametrize("selector", CONFIGURATIONS, ids=repr)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), least=st.integers(0, 50))
def test_every_rule_keeps_the_interface(selector, seed, least):
    """Different rows, at least `least`, the surest among them, surest first and ties by position; more for a larger `least`."""
    rows = random_rows(np.random.default_rng(seed))
    before = copy.deepcopy(vars(rows))
    n, found = len(rows.positions), chosen(selector, rows, least)
    order = ports.surest(score(selector, rows).tolist())
    assert len(set(found)) == len(found) and set(found) <= set(range(n))
    assert set(order[:least]) <= set(found)
    assert found == [i for i in order if i in found]
    assert set(chosen(selector, rows, 0)) | set(order[:least]) == set(found)
    assert all(np.array_equal(before[name], values) for name, values in vars(rows).items())
    assert selector.choose(rows, least, None).dtype == np.intp


@pytest.mark.parametrize("selector", CONFIGURATIONS, ids=repr)
def test_no_rows(selector):
    rows = make_rows([], [], [], [], [])
    assert chosen(selector, rows) == []


@pytest.mark.parametrize("selector", CONFIGURATIONS, ids=repr)
@pytest.mark.parametrize("probability, second, entropy", [(1.0, 0.0, 0.0), (1e-6, 1e-6, 11.0)], ids=["sure", "unsure"])
def test_one_row(selector, probability, second, entropy):
    assert chosen(selector, make_rows([probability], [7], [second], [entropy], [probability])) == [0]


@pytest.mark.parametrize("selector", [s for s in CONFIGURATIONS if not isinstance(s, Quota)], ids=repr)
def test_equal_rows(selector):
    """All sure: all are revealed in the order of positions. None sure: one, the first, unless equals of the best count."""
    sure, unsure = make_rows([1.0] * 6, None, [0.0] * 6, [0.0] * 6), make_rows([1e-3] * 6, None, [1e-3] * 6, [6.9] * 6)
    assert chosen(selector, sure) == [0, 1, 2, 3, 4, 5]
    if selector not in (Factor(3.0), Threshold(0.0)):
        assert chosen(selector, unsure) == ([0, 1, 2, 3, 4, 5] if getattr(selector, "slack", None) else [0])
        assert chosen(selector, unsure, 3)[:3] == [0, 1, 2]


# ---- by hand

def test_quota_goes_by_confidence():
    rows = make_rows([0.1, 0.9, 0.5, 0.3], confidence=[-0.5, -3.0, -0.1, -0.5])
    assert chosen(Quota(), rows, 3) == [2, 0, 3]
    assert chosen(Quota(), rows, 0) == []


def test_threshold_takes_equality_and_strict_does_not():
    """Two equal logits give a probability of exactly one half."""
    rows = from_logits(np.array([[0.0, 0.0, -np.inf], [3.0, 3.0, -np.inf], [5.0, 0.0, -np.inf]]), [0, 1, 2])
    assert rows.probability[0] == rows.probability[1] == 0.5
    assert chosen(Threshold(0.5), rows) == [2, 0, 1]
    assert chosen(Threshold(0.5, strict=True), rows) == [2]
    assert chosen(Hierarchy(0.5, 0.5), rows) == [2]
    assert chosen(LocalLeap(0.5, 0.5, 0), rows) == [2, 0, 1]


def test_slack_counts_from_the_best():
    rows = make_rows([0.5, 0.5 - 0.9e-5, 0.5 - 1.1e-5])
    assert chosen(Threshold(slack=1e-5), rows) == [0, 1]
    assert chosen(Threshold(), rows) == [0]
    assert chosen(Threshold(slack=0.5), make_rows([0.5, 0.0])) == [0, 1]  # equality
    assert chosen(Threshold(0.9, slack=0.5), make_rows([1.0, 0.9, 0.89])) == [0, 1, 2]  # 1 - 0.5 is below tau
    assert chosen(Threshold(0.4, slack=0.5), make_rows([1.0, 0.4, 0.39])) == [0, 1]  # tau is below 1 - 0.5


def test_factor_asks_more_of_more():
    """f = 1: the n-th needs more than n / (n + 1)."""
    assert chosen(Factor(), make_rows([0.51, 0.6, 0.1])) == [1]
    assert chosen(Factor(), make_rows([0.67, 0.9, 0.1])) == [1, 0]
    assert chosen(Factor(), make_rows([0.9375, 0.75, 0.9375])) == [0, 2]  # (3 + 1)(1 - 0.75) is 1, not below
    assert chosen(Factor(), make_rows([0.9375, 0.751, 0.9375])) == [0, 2, 1]
    assert chosen(Factor(), make_rows([0.95] * 19)) == list(range(18))
    assert chosen(Factor(2.0), make_rows([0.95] * 19)) == list(range(19))
    assert chosen(Factor(1e9), make_rows([0.0, 0.0])) == [0, 1]


def test_factor_is_the_joint_choice():
    """Fast-dLLM, theorem 1, on two tokens: all joints with the marginals of two accepted tokens have the greedy pair for a mode."""
    for p, q in [(0.67, 0.67), (0.7, 0.9), (0.67, 0.99)]:
        assert len(chosen(Factor(), make_rows([p, q]))) == 2
        for both in np.linspace(p + q - 1, min(p, q), 50):  # the probability of the pair, between its bounds
            assert both > max(p - both, q - both, 1 - p - q + both)


def test_hierarchy_goes_by_runs():
    rows = make_rows([0.5, 0.6, 0.3, 0.2, 0.41, 0.95, 0.91], [4, 5, 6, 9, 11, 12, 13])
    # runs 4-6, 9 and 11-13: their best are 5 (0.6), 9 (0.2, not above low) and 12; 13 is above tau
    assert chosen(Hierarchy(), rows) == [5, 6, 1]
    assert chosen(Hierarchy(0.95, 0.2), rows) == [5, 1]
    assert chosen(Hierarchy(0.95, 0.1), rows) == [5, 1, 3]
    assert chosen(Hierarchy(), rows, 5) == [5, 6, 1, 0, 4]
    assert chosen(Hierarchy(), make_rows([0.5, 0.5, 0.5], [0, 2, 3])) == [0, 1]
    assert chosen(Hierarchy(), make_rows([0.4, 0.4], [0, 2])) == [0]  # not above low: the surest alone
    assert chosen(Hierarchy(), make_rows([0.9, 0.9], [0, 1])) == [0]  # not above tau


def test_entropy_bound_leaves_out_the_largest():
    rows = make_rows([0.5] * 4, entropy=[0.25, 0.0, 0.125, 4.0])
    assert chosen(EntropyBound(0.125), rows) == [1, 2, 0]  # 0 + 0.125, with equality
    assert chosen(EntropyBound(0.12), rows) == [1, 2]
    assert chosen(EntropyBound(0.375), rows) == [1, 2, 0, 3]
    assert chosen(EntropyBound(0), make_rows([0.5] * 2, entropy=[3.0, 2.0])) == [1]


def test_low_entropy_comes_first():
    rows = make_rows([0.9, 0.8, 0.7], entropy=[0.4, 0.1, 0.39])
    assert chosen(EntropyThreshold(), rows) == [1, 2]  # 0.4 is not below 0.4
    assert chosen(EntropyThreshold(0), rows) == [1]
    assert chosen(EntropyThreshold(0), rows, 2) == [1, 2]


def test_margin_is_the_lead():
    rows = make_rows([0.9, 0.85, 0.3, 0.875], second=[0.09, 0.15, 0.6, 0.125])
    assert chosen(Margin(), rows) == [0]
    assert chosen(Margin(0.75), rows) == [0, 3]
    assert chosen(Margin(0), rows) == [0, 3, 1]  # a drawn token that is not the likeliest is behind
    assert chosen(Margin(), rows, 4) == [0, 3, 1, 2]


def test_local_leap_counts_positions():
    rows = make_rows([0.75, 0.8, 0.9, 0.74, 0.8, 0.8], [1, 5, 10, 11, 14, 15])
    assert chosen(LocalLeap(), rows) == [2, 4]  # 14 is 4 away, 5 and 15 are 5 away, 0.74 is not sure enough
    assert chosen(LocalLeap(radius=5), rows) == [2, 1, 4, 5]
    assert chosen(LocalLeap(radius=9), rows) == [2, 1, 4, 5, 0]
    assert chosen(LocalLeap(0.91), rows) == [2]  # no anchor
    assert chosen(LocalLeap(0.8, 0.75, 4), rows) == [2, 1, 4, 5, 0]


# ---- what is stated about them

def test_registry():
    assert {type(selector) for selector in CONFIGURATIONS} == set(NAMES.values()) - {Credit, Klass}  # those are in test_loops.py
    assert [name for name, kind in NAMES.items() if kind.reveals_masks] == ["quota"]
    others = {"quota": set(), "entropy_bound": {"entropy"}, "entropy_threshold": {"entropy"}, "margin": {"probability", "second"},
              "credit": {"probability", "logits"}, "klass": {"probability", "logits"}}
    assert {name: kind.wants for name, kind in NAMES.items()} == {name: {"probability"} for name in NAMES} | others
    for name, kind in NAMES.items():
        assert (kind().memory() is None) == (name not in ("credit", "klass"))
        assert name == re.sub(r"(?<=.)([A-Z])", r"_\1", kind.__name__).lower()
        assert kind.__doc__.count("arXiv:") and "References" in kind.__doc__


@pytest.mark.parametrize("selector", CONFIGURATIONS, ids=repr)
def test_a_configuration_is_a_value(selector):
    """Its repr makes it, so does its text; it can be pickled, compared and hashed, and not changed."""
    assert eval(repr(selector), vars(selectors)) == selector
    assert pickle.loads(pickle.dumps(selector)) == selector and len({selector, copy.copy(selector)}) == 1
    name = next(name for name, kind in NAMES.items() if kind is type(selector))
    values = ",".join(f"{key}={value}" for key, value in dataclasses.asdict(selector).items())
    assert parse(f"{name}:{values}" if values else name) == selector
    for field in dataclasses.fields(selector):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(selector, field.name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_docs_name_every_selector(name, request):
    page = (request.path.parent.parent / "docs" / "selectors.md").read_text("utf-8")
    assert f"`{NAMES[name]()!r}`" in page and f"`{name}`" in page


def test_parse():
    assert parse("threshold") == Threshold()
    assert parse("threshold:tau=0.8,strict=true") == Threshold(0.8, strict=True)
    assert parse("threshold: tau = 1 , slack=1e-5") == Threshold(1.0, slack=1e-5)
    assert parse("threshold:slack=None,strict=False") == Threshold()
    assert parse("local_leap:radius=2") == LocalLeap(radius=2)
    assert repr(parse("threshold:tau=1")) == "Threshold(tau=1.0, strict=False, slack=None)"


@pytest.mark.parametrize("text, message", [
    ("treshold", "selector: expected 'threshold' or another of quota, factor, "),
    ("localleap", "selector: expected 'local_leap' or another of "),
    ("", "selector: expected one of quota, .*, found ''"),
    ("Threshold(0.8)", "selector: expected 'threshold' or another of .*, found 'Threshold"),
    ("threshold:taw=0.8", "threshold: expected 'tau' or another of strict, slack, found parameter 'taw'"),
    ("threshold:xyz=0.8", "threshold: expected one of tau, strict, slack, found parameter 'xyz'"),
    ("quota:tau=0.8", "quota: expected no parameters, found parameter 'tau'"),
    ("margin:wants=1", "margin: expected one of tau, found parameter 'wants'"),
    ("threshold:tau=0.8,tau=0.9", "threshold: tau: given twice"),
    ("threshold:0.8", "threshold: expected parameter=value, found '0.8'"),
    ("threshold:", "threshold: expected parameter=value, found ''"),
    ("threshold:tau=0.8,", "threshold: expected parameter=value, found ''"),
    ("threshold:tau=high", "threshold: tau: expected a number, found 'high'"),
    ("threshold:tau=true", "threshold: tau: expected a number, found True"),
    ("threshold:tau=none", "threshold: tau: expected a number, found None"),
    ("threshold:tau=", "threshold: tau: expected a number, found ''"),
    ("threshold:strict=1", "threshold: strict: expected True or False, found 1"),
    ("threshold:tau=1.5", "threshold: tau: expected a number from 0 to 1, found 1.5"),
    ("threshold:tau=nan", "threshold: tau: expected a number from 0 to .*, found nan"),
    ("threshold:strict=true,slack=0.1", "threshold: slack: expected None with strict=True, found 0.1"),
    ("local_leap:radius=2.5", "local_leap: radius: expected a whole number, found 2.5"),
])
def test_parse_refuses(text, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        parse(text)


@pytest.mark.parametrize("make, message", [
    (lambda: Threshold(1.01), "tau: expected a number from 0 to 1, found 1.01"),
    (lambda: Threshold(-0.1), "tau: expected a number from 0 to .*, found -0.1"),
    (lambda: Threshold(slack=2), "slack: expected a number from 0 to 1, found 2"),
    (lambda: Threshold(strict=True, slack=0.1), "slack: expected None with strict=True, found 0.1"),
    (lambda: Factor(0), "f: expected a number above 0 .*, found 0"),
    (lambda: Factor(float("inf")), "f: expected .*, found inf"),
    (lambda: Hierarchy(0.5, 0.6), "low: expected a number from 0 to 0.5, found 0.6"),
    (lambda: Hierarchy(1.5), "tau: expected a number from 0 to 1, found 1.5"),
    (lambda: EntropyBound(-1), "gamma: expected a number from 0 .*, found -1"),
    (lambda: EntropyThreshold(float("nan")), "h: expected a number from 0 .*, found nan"),
    (lambda: Margin(2.0), "tau: expected a number from 0 to 1, found 2.0"),
    (lambda: LocalLeap(anchor=1.5), "anchor: expected a number from 0 to 1, found 1.5"),
    (lambda: LocalLeap(0.7), "tau: expected a number from 0 to 0.7, found 0.75"),
    (lambda: LocalLeap(radius=-1), "radius: expected 0 to .*, found -1"),
])
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match="^" + message + "$"):
        make()


@pytest.mark.parametrize("make", [
    lambda: Threshold("0.9"), lambda: Threshold(None), lambda: Threshold(strict=1), lambda: Threshold(slack=True),
    lambda: LocalLeap(radius=2.0), lambda: Factor([1]), lambda: Margin(np.array([0.5]))])
def test_values_of_the_wrong_type(make):
    with pytest.raises(TypeError, match=r"^\w+: expected .*, found "):
        make()


def test_values_are_plain():
    selector = LocalLeap(np.float32(1), np.float64(0.5), np.int64(3))
    assert repr(selector) == "LocalLeap(anchor=1.0, tau=0.5, radius=3)"
    assert repr(Threshold(1, np.bool_(False), 0)) == "Threshold(tau=1.0, strict=False, slack=0.0)"
