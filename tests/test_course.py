"""The course of a request: stopping early, rules and cache policies of a caller's own, statistics, refusals."""
from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import folders
import numpy as np
import oracle
import pytest
from draws import DRAWS, SCHEDULES
from scipy.special import softmax

from llada_native import EngineError, GenerationResult, InferTask, LLaDAForCausalLM, NonFiniteLogitsError, _sampler, cli
from llada_native.caching import Dual
from llada_native.canvas import Canvas, random_streams
from llada_native.denoiser import STATISTICS, Denoiser, Pass
from llada_native.options import GenerationOptions

MASK = 58
GEN = 16
CACHED = ({}, {"cfg_scale": 0.7}, {"temperature": 0.8}, {"cfg_scale": 0.7, "temperature": 0.8, "top_p": 0.8})


@dataclass(frozen=True)
class AboveHalf:
    """Every prediction with half of the probability, and the surest `least`."""

    wants: ClassVar[frozenset[str]] = frozenset(STATISTICS)
    reveals_masks: ClassVar[bool] = False
    tau: float = 0.5

    def memory(self):
        return []

    def choose(self, rows, least, memory):
        memory.append(rows.positions)
        assert len(rows.probability) == len(rows.second) == len(rows.entropy) == len(rows.positions)
        order = np.argsort(-rows.probability, kind="stable")
        return order[:max(least, int((rows.probability >= self.tau).sum()))]


@dataclass(frozen=True)
class Spans:
    """A full pass at the start of a block, then the rows from the block on: the prefix cache of Fast-dLLM."""

    keeps: ClassVar[bool] = True
    wants: ClassVar[frozenset[str]] = frozenset()
    always_full: bool = False
    doubting: bool = False

    def rows(self, view, held):
        assert (held.tokens >= 0).all() and held.age.max() == held.passes - 1
        assert held.passes_since_full == held.passes - 1 - held.age.min(), "the prompt is computed by full passes only"
        if self.always_full or not held.full_of_block:
            return None
        assert (held.tokens != view.tokens).any(), "the last pass has revealed something"
        return np.arange(view.begin, len(view.tokens))

    def renews(self, view, held):
        return self.rows(view, held) is None

    def doubts(self, found):
        return self.doubting


class Spy:
    """A backend that notes its caches and the number of rows of every pass, and fails when asked."""

    def __init__(self, backend):
        self.backend, self.caches, self.rows, self.fail_at = backend, [], [], 0

    def create_kv_cache(self, *dtype):
        self.caches.append(self.backend.create_kv_cache())
        return self.caches[-1]

    def hidden(self, tokens, lengths, rows, positions=None, caches=None, **gaps):
        self.rows.append(len(tokens))
        if len(self.rows) == self.fail_at:
            raise EngineError("on purpose")
        self.gaps = positions, gaps
        return self.backend.hidden(tokens, lengths, rows, positions, caches, **gaps)

    def __getattr__(self, name):
        return getattr(self.backend, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = folders.config(n_kv_heads=2)
    return folders.write(tmp_path_factory.mktemp("course"), config, folders.tensors(config, 5))


@pytest.fixture(scope="module")
def model(folder):
    return LLaDAForCausalLM.from_pretrained(folder, num_threads=1)


@pytest.fixture
def spy(model, monkeypatch):
    monkeypatch.setattr(model, "_backend", Spy(model._backend))
    return model._backend


@pytest.fixture(scope="module")
def likely(model):
    """Tokens that this model likes, so that end tokens come early."""
    canvas = np.full(40, MASK)
    canvas[:12] = np.random.default_rng(0).integers(0, 55, 12)
    return [int(t) for t in np.bincount(model.forward(canvas)[:, :MASK].argmax(1)).argsort()[::-1][:4]]


def prompts_of(seed, count=5):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 55, rng.integers(1, 20)) for _ in range(count)]


def same(a: GenerationResult, b: GenerationResult) -> bool:
    """Sequences, steps and confidences, to the bit."""
    return all(np.array_equal(x, y, equal_nan=True) for name in ("sequences", "commit_step", "confidence")
               for x, y in zip(getattr(a, name), getattr(b, name), strict=True))


# ---- early stop


@pytest.mark.parametrize("draw", DRAWS)
def test_early_stop_is_exact_up_to_the_cut(model, likely, draw):
    stopped = 0
    for i, schedule in enumerate(SCHEDULES.values()):
        for ends in ({"eos_id": likely[0], "eot_id": likely[1]}, {"eos_id": likely[2], "eot_id": 59}):
            options = {"gen_length": GEN, "seed": list(range(5)), **schedule, **DRAWS[draw], **ends}
            plain, early = (model.generate(prompts_of(i), early_stop=flag, **options) for flag in (False, True))
            assert early.text == plain.text and early.finish_reason == plain.finish_reason
            assert early.answer_lengths == plain.answer_lengths
            for k, n in enumerate(early.prompt_lengths):
                answer, whole, steps = early.sequences[k][n:], plain.sequences[k][n:], early.commit_step[k]
                written = steps >= 0
                found = np.flatnonzero(np.isin(answer, list(ends.values())))
                cut = found[0] + 1 if len(found) else GEN
                assert np.array_equal(answer[:cut], whole[:cut]) and np.array_equal(written[:cut], whole[:cut] != MASK)
                assert np.array_equal(answer[written], whole[written])
                assert np.array_equal(steps[written], plain.commit_step[k][written])
                assert np.array_equal(early.confidence[k][written], plain.confidence[k][written])
                assert np.isnan(early.confidence[k][~written]).all()
                if MASK in answer:  # drawn, and nothing but the schedule ended it
                    assert np.array_equal(answer, whole)
                else:
                    assert (answer[~written] == ends["eos_id"]).all()
                    assert steps.max() == steps[:cut].max(), "nothing is written once the answer is complete"
                    stopped += not written.all()
            assert early.n_forward <= plain.n_forward and early.rows_computed <= plain.rows_computed
    assert stopped > 3, "the test sees early ends"


@pytest.mark.parametrize("options", CACHED)
def test_early_stop_in_a_batch_equals_alone(model, likely, options):
    prompts = prompts_of(3, 8)
    options = {"gen_length": GEN, "block_length": 8, "eos_id": likely[0], "eot_id": likely[1], "early_stop": True, **options}
    alone = [model.generate(p, seed=[i], **options) for i, p in enumerate(prompts)]
    for order in (range(8), [5, 2, 7, 0, 1, 6, 3, 4]):
        together = model.generate([prompts[i] for i in order], seed=list(order), **options)
        for place, i in enumerate(order):
            for name in ("sequences", "commit_step", "confidence"):
                assert np.array_equal(getattr(together, name)[place], getattr(alone[i], name)[0], equal_nan=True)
        assert together.rows_computed == sum(a.rows_computed for a in alone)
        assert together.n_forward == max(a.n_forward for a in alone) > min(a.n_forward for a in alone)


def test_early_stop_waits_for_masks_before_the_end(model, likely):
    """A fixed end token at place 5: five more tokens are written and no others; with it at place 0 nothing is computed."""
    prompt = prompts_of(1, 1)
    options = {"gen_length": GEN, "block_length": GEN, "eos_id": likely[0], "suppress_tokens": [likely[0]], "early_stop": True}
    found = model.generate(prompt, constraints={5: [likely[0]]}, **options)
    assert (found.commit_step[0][:5] >= 0).all() and found.answer_lengths == [5] and MASK not in found.sequences[0]
    assert found.n_forward == (found.commit_step[0] >= 0).sum() == 1 + found.commit_step[0].max()
    steps = []
    found = model.generate(prompt, constraints={0: [likely[0]]}, callback=steps.append, **options)
    assert found.n_forward == 0 and steps == [] and found.finish_reason == ["stop"] and found.rows_per_token == float("inf")


def test_masks_in_the_prompt_are_waited_for(model, likely):
    options = {"gen_length": 8, "block_length": 4, "eos_id": likely[0]}
    plain, early = (model.generate([1, MASK, 2, MASK], constraints={0: [likely[0]]}, early_stop=flag, **options) for flag in (False, True))
    assert np.array_equal(plain.sequences[0][:5], early.sequences[0][:5])


def test_rows_leave_the_batch(demo):
    prompts = ["What is 17 plus 25?", "Write a story about a cat, a hill and a key."]
    steps = []
    found = demo.generate(prompts, early_stop=True, callback=steps.append)
    passes = [sum(len(s.positions[i]) > 0 for s in steps) for i in range(2)]
    assert found.rows_computed == sum(n * len(s) for n, s in zip(passes, found.sequences, strict=True)) and passes[0] < passes[1]
    assert steps[-1].masks_left == [0, 0] and steps[-1].text == found.text == demo.generate(prompts).text
    assert found.rows_per_token == found.rows_computed / sum(found.answer_lengths)


@pytest.mark.parametrize("options", CACHED)
def test_tasks_stop_early(model, likely, options):
    options = {"gen_length": GEN, "block_length": 8, "eos_id": likely[0], "early_stop": True, **options}
    ends = []
    for i, prompt in enumerate(prompts_of(4, 6)):
        wanted = model.generate(prompt, seed=[i], **options)
        renamed = {{"top_p": "topp"}.get(name, name): value for name, value in options.items()}
        task = InferTask(i, prompt, seed=i, **renamed)
        while not task.finished:
            task.next(model.batch_infer_one_round([task])[0])
        assert np.array_equal(task.sequence, wanted.sequences[0]) and task.finish_reason == wanted.finish_reason[0]
        assert len(task.revealed_positions) == wanted.n_forward
        ends.append(wanted.n_forward)
    assert min(ends) < GEN


def test_end_tokens_of_a_task_stop_it(model):
    task = InferTask(0, [1, 2, 3], GEN, end_tokens=range(57), early_stop=True, eos_id=57, block_length=4)
    while not task.finished:
        task.next(model.batch_infer_one_round([task])[0])
    assert task.finish_reason == "stop" and len(task.revealed_positions) <= 4 and (task.answer[4:] == 57).all()


# ---- selectors


def test_a_selector_of_ones_own_against_a_port(folder, model):
    """With the steps of the schedule as a floor. The mask token is never drawn."""
    config = folders.config(n_kv_heads=2)
    tensors = folders.tensors(config, 5)
    for seed in range(6):
        prompt, steps, tau = prompts_of(seed, 1)[0], (16, 4, 8)[seed % 3], (0.02, 0.05, 0.5)[seed % 3]
        ids, forwards = np.append(prompt, np.full(GEN, MASK)), 0
        for block in range(2):
            begin, end = len(prompt) + 8 * block, len(prompt) + 8 * (block + 1)
            for quota in [(8 + steps // 2 - 1 - i) // (steps // 2) for i in range(8)]:
                masks = np.flatnonzero(ids[:end] == MASK)
                if not len(masks):
                    break
                logits = oracle.forward(tensors, config, ids)[masks].astype(np.float64)
                logits[:, MASK] = -np.inf
                p = softmax(logits, axis=1)
                order = np.argsort(-p.max(1), kind="stable")[:max(quota, 1, int((p.max(1) >= tau).sum()))]
                ids[masks[order]] = p.argmax(1)[order]
                forwards += 1
            assert MASK not in ids[begin:end]
        found = model.generate(prompt, gen_length=GEN, block_length=8, max_steps=steps, selector=AboveHalf(tau))
        assert np.array_equal(found.sequences[0], ids) and found.n_forward == forwards <= steps


class FavoursMask(Spy):
    def head(self, hidden, begin, end, out):
        self.backend.head(hidden, begin, end, out)
        if begin <= MASK < end:
            out[:, MASK - begin] = 50


def test_only_the_reference_rule_writes_the_mask_token(model, monkeypatch):
    monkeypatch.setattr(model, "_backend", FavoursMask(model._backend))
    plain = model.generate([1, 2, 3], gen_length=GEN, block_length=8)
    assert (plain.sequences[0][3:] == MASK).all() and plain.n_forward == GEN
    found = model.generate([1, 2, 3], gen_length=GEN, block_length=8, selector=AboveHalf())
    assert MASK not in found.sequences[0] and found.n_forward <= GEN


class Remembering(AboveHalf):
    made: ClassVar[list[list[object]]] = []

    def memory(self):
        self.made.append([])
        return self.made[-1]


def test_every_request_has_one_memory(model):
    steps = []
    model.generate(prompts_of(0, 3), gen_length=GEN, block_length=4, selector=Remembering(0.05), callback=steps.append)
    assert [len(m) for m in Remembering.made] == [sum(len(s.positions[i]) > 0 for s in steps) for i in range(3)]
    assert len(set(map(len, Remembering.made))) > 1


class Lazy(AboveHalf):
    def choose(self, rows, least, memory):
        return np.empty(0, np.intp)


def test_a_selector_that_takes_too_little_is_named(model):
    with pytest.raises(ValueError, match=r"selector: expected at least 1 of 8 positions from .*Lazy.*found 0"):
        model.generate([1, 2], gen_length=8, selector=Lazy())


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "entropy", "margin"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_statistics_are_those_of_the_softmax(remasking, temperature):
    """Whatever the confidence is; asking for them changes neither tokens nor confidences."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(0, 4, (9, 501))).astype(np.float32)
    discounted = int(logits[0].argmax())
    owners = np.zeros(9, np.int32)
    runs = []
    for wanted in (0, 1, 2, 3):
        sampler, rule = _sampler.RowSampler(), _sampler.Rule(random_streams(3, 1)[0], temperature, remasking=remasking, suppressed=[7],
                                                           discounted=[discounted])
        sampler.begin([rule], owners)
        for begin in range(0, 501, 100):
            sampler.consume(np.ascontiguousarray(logits[:, begin:begin + 100]), begin)
        columns = [np.empty(9, np.intc), np.empty(9), *(np.full(9, np.nan) for _ in range(wanted))]
        assert sampler.finish(*columns) == -1
        runs.append(columns)
    for tokens, confidence, *_ in runs:
        assert np.array_equal(tokens, runs[0][0]) and np.array_equal(confidence, runs[0][1])
    tokens, _, probability, second, entropy = runs[3]
    logits[:, [7, discounted]] = -np.inf
    p = softmax(logits.astype(np.float64), axis=1)
    assert (tokens == discounted).any()
    np.testing.assert_allclose(probability, p[np.arange(9), tokens], rtol=1e-12)
    np.testing.assert_allclose(second, np.sort(p, 1)[:, -2], rtol=1e-12)
    wanted = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)
    np.testing.assert_allclose(entropy, np.where(tokens == discounted, np.inf, wanted), rtol=1e-9)


def test_damage_names_its_request(model, spy, monkeypatch):
    """Whatever others have left the batch."""
    def alone_damaged(tokens, lengths, *rest, **more):
        out = spy.backend.hidden(tokens, lengths, *rest, **more)
        return np.full_like(out, np.nan) if len(lengths) == 1 else out

    monkeypatch.setattr(spy, "hidden", alone_damaged)
    with pytest.raises(NonFiniteLogitsError, match="prompt 1: the logits"):
        model.infill([[1, MASK, 2], [3, MASK, MASK]])
    with pytest.raises(NonFiniteLogitsError, match="task 'x': the logits"):
        model.batch_infer_one_round([InferTask("x", [1, 2], 4)])


def test_only_wanted_statistics_are_filled(model):
    options = GenerationOptions.resolve({"gen_length": 4, "temperature": 1.0, "top_k": 5}, model._defaults, 64)
    plain = GenerationOptions.resolve({"gen_length": 4}, model._defaults, 64)
    canvases = [Canvas(np.array([1, 2], np.int32), o, stream) for o, stream in zip((options, plain), random_streams(0, 2), strict=True)]
    masks = np.arange(2, 6)
    one, two = Denoiser(model._backend).predict(canvases, [Pass(None, masks), Pass(None, masks, wants=frozenset({"second"}))])
    for found in (one, two):  # through two groups of rows: with and without a filter
        assert len(found.second) == 4 and (found.second > 0).all() and (found.second < 0.5).all()
        assert len(found.probability) == len(found.entropy) == 0 and np.array_equal(found.positions, masks)
    np.testing.assert_allclose(two.confidence, softmax(model.forward(canvases[1].ids)[2:].astype(np.float64), axis=1).max(1), rtol=1e-9)


# ---- cache policies


@pytest.mark.parametrize("options", CACHED)
def test_full_passes_into_a_cache_are_exact(model, spy, options):
    options = {"gen_length": GEN, "block_length": 8, "seed": 1, **options}
    plain = model.generate(prompts_of(2), **options)
    assert spy.caches == []
    assert same(model.generate(prompts_of(2), cache=Spans(always_full=True), **options), plain)
    assert len(spy.caches) == 5 * (1 + ("cfg_scale" in options)) and all(c.closed for c in spy.caches)


@pytest.mark.parametrize("options", CACHED)
def test_spans_equal_tasks_with_bound_caches(model, spy, options):
    """A caller's own loop over rounds: position 0 when a block begins, the block's begin after that."""
    for i, prompt in enumerate(prompts_of(6, 4)):
        options = {"gen_length": GEN, "block_length": 8, **options}
        spy.rows.clear()
        found = model.generate(prompt, seed=[i], cache=Spans(), **options)
        n, halves = len(prompt), 1 + ("cfg_scale" in options)
        assert spy.rows == [halves * k for k in [n + GEN, *[GEN] * 7, n + GEN, *[8] * 7]]
        renamed = {{"top_p": "topp"}.get(name, name): value for name, value in options.items()}
        task = InferTask(i, prompt, seed=i, **renamed)
        cache = model.create_kv_cache()
        for step in range(GEN):
            task.release_kvcache()
            task.bind_kvcache(cache, n + step // 8 * 8 if step % 8 else 0)
            task.next(model.batch_infer_one_round([task])[0])
        assert np.array_equal(task.sequence, found.sequences[0])
        assert found.rows_computed == sum(spy.rows[:GEN])


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 0.7}])
def test_doubted_passes_are_followed_by_full_ones(model, options):
    options = {"gen_length": GEN, "block_length": 8, **options}
    plain = model.generate(prompts_of(2), **options)
    doubting = model.generate(prompts_of(2), cache=Spans(doubting=True), **options)
    assert same(plain, doubting) and doubting.n_forward == GEN + 14, "but for the first of each block, all are doubted"
    task = InferTask(0, prompts_of(2)[0], cache=Spans(doubting=True), **options)
    while not task.finished:
        task.next(model.batch_infer_one_round([task])[0])
    assert np.array_equal(task.sequence, plain.sequences[0])


@pytest.mark.parametrize("options", CACHED[:3])
def test_caches_of_tasks_are_those_of_generate(model, spy, options):
    options = {"gen_length": GEN, "block_length": 8, **options}
    wanted = [model.generate(p, seed=[i], cache=Spans(), **options) for i, p in enumerate(prompts_of(7))]
    tasks = [InferTask(i, p, seed=i, cache=Spans(), **options) for i, p in enumerate(prompts_of(7))]
    while open_tasks := [t for t in tasks if not t.finished]:
        for task, token in zip(open_tasks, model.batch_infer_one_round(open_tasks), strict=True):
            task.next(token)
    for task, result in zip(tasks, wanted, strict=True):
        assert np.array_equal(task.sequence, result.sequences[0])
    assert all(c.closed for c in spy.caches)


def test_a_failed_pass_is_repeated_in_full(model, spy):
    task = InferTask(0, [1, 2, 3], GEN, block_length=8, temperature=0.5, seed=1, cache=Spans())
    for _ in range(3):
        task.next(model.batch_infer_one_round([task])[0])
    spy.fail_at = len(spy.rows) + 1
    with pytest.raises(EngineError):
        model.batch_infer_one_round([task])
    while not task.finished:
        task.next(model.batch_infer_one_round([task])[0])
    assert spy.rows[:6] == [19, 16, 16, 16, 19, 16] and MASK not in task.sequence
    task = InferTask(1, [1, 2, 3], GEN, cache=Spans())
    model.batch_infer_one_round([task])
    task.next(None)
    assert all(c.closed for c in spy.caches)


def test_a_stream_that_is_left_frees_its_caches(model, spy):
    stream = model.stream([1, 2, 3], gen_length=GEN, block_length=8, cache=Spans())
    next(stream)
    next(stream)
    assert not spy.caches[0].closed
    stream.close()
    assert spy.caches[0].closed


def test_finished_requests_free_their_caches(model, spy, likely):
    seen = []

    def look(step):
        open_ = [left > 0 for left in step.masks_left]
        assert [not c.closed for c in spy.caches] == open_
        seen.append(sum(open_))

    model.generate(prompts_of(3, 8), gen_length=GEN, block_length=8, eos_id=likely[0], eot_id=likely[1], early_stop=True, cache=Spans(),
                   callback=look)
    assert 8 > len(set(seen)) > 2 and seen[-1] == 0


def test_rows_with_gaps_say_their_slots(model, spy):
    """Positions 1, 2 and 5 of one request in a cache; another one of contiguous rows beside it."""
    options = GenerationOptions.resolve({"gen_length": 4}, model._defaults, 64)
    canvases = [Canvas(np.array([1, 2], np.int32), options, stream) for stream in random_streams(0, 2)]
    denoiser = Denoiser(spy)
    caches = [spy.create_kv_cache() for _ in range(2)]
    masks = np.arange(2, 6)
    denoiser.predict(canvases, [Pass(None, masks, [c]) for c in caches])
    assert spy.gaps[0].tolist() == [0, 0] and spy.gaps[1] == {}
    denoiser.predict(canvases, [Pass(np.array([1, 2, 5]), np.array([2, 5]), caches[:1]), Pass(np.arange(3, 6), masks[2:], caches[1:])])
    assert spy.gaps[0] is None and spy.gaps[1]["slots"].tolist() == [1, 2, 5, 3, 4, 5] and spy.rows == [12, 6]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 3}])
def test_a_pass_for_caches_alone_asks_for_no_logits(model, spy, monkeypatch, options):
    options = GenerationOptions.resolve({"gen_length": 4, **options}, model._defaults, 64)
    canvas = Canvas(np.array([1, 2], np.int32), options, random_streams(0, 1)[0])
    asked = []
    monkeypatch.setattr(spy, "head", lambda hidden, *rest: asked.append(len(hidden)), raising=False)
    denoiser, cache = Denoiser(spy), spy.create_kv_cache()
    found = denoiser.predict([canvas], [Pass(np.arange(6), np.empty(0, np.intp), [cache])])
    assert len(found[0].positions) == len(found[0].tokens) == 0 and cache.length == 6 and not asked


class Blind(Spans):
    def rows(self, view, held):
        return np.arange(len(view.tokens) - 1, len(view.tokens))


def test_a_policy_that_leaves_out_open_rows_is_named(model):
    with pytest.raises(ValueError, match=r"cache: expected all open positions among the rows of .*Blind.*, found no \[2 3 4"):
        model.generate([1, 2], gen_length=8, cache=Blind())


@pytest.mark.parametrize(("found", "error"), [
    (None, TypeError), (1, TypeError), ("a", TypeError), (np.array([0.0]), TypeError), (np.zeros((1, 1), int), TypeError),
    (np.ones(8, bool), TypeError), ([0, 0], ValueError), ([8], ValueError), ([-1], ValueError), ([], ValueError)], ids=repr)
def test_what_a_selector_may_not_return(model, found, error):
    class Wrong(AboveHalf):
        def choose(self, rows, least, memory):
            return found

    with pytest.raises(error, match=r"^selector: expected .*Wrong.*found"):
        model.generate([1, 2], gen_length=8, block_length=8, selector=Wrong())


def test_a_selector_may_return_a_list(model):
    class Lists(AboveHalf):
        def choose(self, rows, least, memory):
            return super().choose(rows, least, memory).tolist()

    options = {"gen_length": 8, "block_length": 8}
    assert same(model.generate([1, 2], selector=Lists(), **options), model.generate([1, 2], selector=AboveHalf(), **options))


@pytest.mark.parametrize(("change", "error"), [
    (lambda r: r.astype(float), TypeError), (lambda r: np.r_[r, 10**6], ValueError), (lambda r: r[None], TypeError),
    (lambda r: r[::-1], ValueError), (lambda r: np.r_[r[0], r], ValueError), (lambda r: np.r_[-1, r], ValueError),
    (lambda r: "a", TypeError), (lambda r: [0], ValueError)])
def test_what_a_policy_may_not_return(model, change, error):
    class Wrong(Dual):
        def rows(self, view, held):
            rows = super().rows(view, held)
            return rows if rows is None else change(rows)

    with pytest.raises(error, match=r"^cache: expected .*Wrong.*found"):
        model.generate([1, 2], gen_length=8, block_length=8, cache=Wrong())


def test_names_of_statistics_come_in_a_set(model):
    class Letters(AboveHalf):
        wants = "probability"

    with pytest.raises(ValueError, match=r"selector: expected to want some of .*, found 'probability'"):
        model.generate([1, 2], gen_length=8, selector=Letters())


@pytest.mark.parametrize("options", [{"editor": "wino"}, {"editor": "remask"}, {"remasking": "entropy"},
                                     {"editor": "wino", "selector": "quota"}], ids=repr)
def test_a_preset_that_stands_in_the_way_is_named(model, options):
    with pytest.raises(ValueError, match=r"preset='fast' brings .*cache=Delayed.*can be given"):
        model.generate([1, 2], gen_length=8, preset="fast", eos_id=3, **options)
    assert model.generate([1, 2], gen_length=8, preset="fast", eos_id=3, selector="quota", cache="dual", editor="wino").n_forward > 0


# ---- names and refusals


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"selector": "quotas"}, ValueError, "selector: expected 'quota' or another of threshold"),
    ({"selector": "quota:tau=1"}, ValueError, "quota: expected no parameters, found parameter 'tau'"),
    ({"selector": "quota:0.5"}, ValueError, "quota: expected parameter=value, found '0.5'"),
    ({"selector": "quota:)("}, ValueError, "quota: expected parameter=value"),
    ({"cache": "quota:tau=__import__('os')"}, ValueError, "cache: expected one of none"),
    ({"cache": "none:x=open('f')"}, ValueError, "none: expected no parameters, found parameter 'x'"),
    ({"cache": "dual:vicinity=3"}, ValueError, "dual: vicinity: expected two numbers of positions, like .16, 16., found 3"),
    ({"cache": "delayed:doubt=2"}, ValueError, "delayed: doubt: expected a number from 0 to 1, found 2"),
    ({"preset": "quick"}, ValueError, "preset: expected one of 'reference', 'balanced', 'fast', found 'quick'"),
    ({"selector": 0.9}, TypeError, "selector: expected one of 'quota', 'threshold'.* or an object with wants"),
    ({"selector": AboveHalf}, TypeError, r"AboveHalf\(\) makes one"),
    ({"cache": Spans}, TypeError, r"Spans\(\) makes one"),
    ({"cache": AboveHalf()}, TypeError,
     "cache: expected one of 'none', 'prefix', 'dual', 'delayed', 'committed' or an object with keeps, wants,"),
    ({"early_stop": 1}, TypeError, "early_stop: expected True or False"),
    ({"selector": AboveHalf(), "remasking": "entropy"}, ValueError, "remasking: 'entropy' is an order for selector='quota'"),
    ({"selector": AboveHalf(), "suppress_tokens": [i for i in range(64) if i != MASK]}, ValueError, "found all but the mask token"),
    ({"suppress_tokens": range(64)}, ValueError, "found the whole vocabulary"),
])
def test_refused_options(model, options, error, message):
    with pytest.raises(error, match=message):
        model.generate([1, 2], gen_length=8, **options)


class Curious(AboveHalf):
    wants = frozenset({"second", "third"})


def test_unknown_statistics_are_refused(model):
    with pytest.raises(ValueError, match="selector: expected to want some of probability, second, entropy, logits, found second, third"):
        model.generate([1, 2], gen_length=8, selector=Curious())


@pytest.mark.parametrize("options", [{"selector": AboveHalf()}, {"cache": Spans()}])
def test_masks_in_a_prompt_are_for_the_reference_rule(model, options):
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected no mask token.*infill"):
        model.generate([[1, 2], [1, MASK]], gen_length=8, **options)
    assert MASK not in model.infill([[MASK, 3, MASK]], **options).sequences[0]


def test_infill_refuses_to_stop_early(model):
    with pytest.raises(ValueError, match="early_stop: is for answers"):
        model.infill([[1, MASK]], early_stop=True)


def test_early_stop_needs_an_end_token(tmp_path):
    config = folders.config()
    for name in ("eos_token_id", "eot_token_id"):
        del config[name]
    bare = LLaDAForCausalLM.from_pretrained(folders.write(tmp_path, config, folders.tensors(config)))
    assert bare.generate([1], gen_length=4, eos_id=3, early_stop=True).n_forward <= 4
    with pytest.raises(ValueError, match=r"early_stop: .* eos_id must be given"):
        bare.generate([1], gen_length=4, early_stop=True)


def test_tasks_refuse_what_takes_more_than_a_token(model):
    with pytest.raises(ValueError, match="selector: a task takes one token a round"):
        InferTask(0, [1, 2], 8, selector=AboveHalf())
    with pytest.raises(ValueError, match="kv_cache: task 0 has caches of its own"):
        InferTask(0, [1, 2], 8, cache=Spans()).bind_kvcache(model.create_kv_cache())


def test_names_and_the_command_line(model, capsys):
    prompt = prompts_of(0, 1)
    assert same(model.generate(prompt, gen_length=8), model.generate(prompt, gen_length=8, selector="quota", cache="none"))
    assert same(model.generate(prompt, gen_length=8), model.generate(prompt, gen_length=8, cache="delayed:refresh_every=1"))
    assert cli.main(["generate", "--json", "--early-stop", "--selector", "quota", "--cache", "none", "What is 17 plus 25?"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["answers"][0]["text"] == "17 + 25 = 42" and printed["n_forward"] < 64
    assert cli.main(["generate", "--selector", "none", "hello"]) == 2
    assert "selector: expected one of quota, threshold" in capsys.readouterr().err
