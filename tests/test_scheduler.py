"""Continuous batching: whoever shares a pass, a request gets what it gets alone; queues, limits, deadlines and failures."""
from __future__ import annotations

import threading
import time

import backends
import folders
import llada2
import numpy as np
import pytest

from llada_native import EngineError, GenerationCancelled, LLaDAForCausalLM
from llada_native.generation import prepared
from llada_native.scheduler import DeadlineError, Job, QueueFullError, Scheduler, ShutdownError, cut_at, held_back

PATIENCE = 900  # seconds: a machine that is shared may stand still for minutes
PROMPT = "Sort these numbers: 31, 7, 52, 12."
SHORT = {"gen_length": 8, "block_length": 8}
METHODS = {
    "reference": {},
    "blocks": {"gen_length": 48, "block_length": 16, "max_steps": 24},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    "random": {"remasking": "random", "max_steps": 32},
    "guided": {"cfg_scale": 1.5, "gen_length": 32},
    "early stop": {"early_stop": True},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
    "guided cache": {"preset": "fast", "cfg_scale": 0.5},
    "wino": {"editor": "wino", "gen_length": 32},
    "edits": {"editor": "token_edit", "selector": "threshold", "gen_length": 32},
    "grows": {"gen_length": "auto"},
    "window": {"canvas": "suffix_window:length=32", "selector": "threshold"},
    "klass": {"selector": "klass"},
}


@pytest.fixture
def gated(demo):
    """A model whose passes wait for the test, and its gate."""
    model = LLaDAForCausalLM.from_pretrained()
    model._backend = backends.Gate(model._backend)
    with model:
        yield model, model._backend


@pytest.fixture
def scheduler(demo):
    with_end = Scheduler(demo)
    yield with_end
    with_end.close()


def job(model, prompts=PROMPT, *, seed=0, stop=(), deadline=PATIENCE, follow=False, drafts=False, notify=None, **options):
    return Job(prepared(model, prompts, None, "auto", seed, None, options), stop, deadline, follow, drafts, notify)


def finished(job):
    assert job.done.wait(PATIENCE)
    if job.error is not None:
        raise job.error
    return job


def same(result, alone):
    assert result.text == alone.text and result.finish_reason == alone.finish_reason
    for found, expected in zip(result.sequences, alone.sequences, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(result.confidence, alone.confidence, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (result.n_forward, result.rows_computed) == (alone.n_forward, alone.rows_computed)


def test_company_changes_nothing(demo, scheduler):
    """Every method at once, in two orders, and joining one after the other: bit for bit what each gives alone."""
    alone = {name: demo.generate(PROMPT, seed=i, **options) for i, (name, options) in enumerate(METHODS.items())}
    numbered = list(enumerate(METHODS.items()))
    for order, pause in ((numbered, 0.0), (numbered[::-1], 0.03)):
        jobs = {}
        for i, (name, options) in order:
            jobs[name] = scheduler.submit(job(demo, seed=i, **options))
            time.sleep(pause)
        for name, found in jobs.items():
            same(finished(found).result, alone[name])


def test_several_prompts_of_one_request(demo, scheduler):
    prompts = [PROMPT, "What is 17 plus 25?", PROMPT]
    jobs = [scheduler.submit(job(demo, prompts, seed=5, temperature=0.9, gen_length=32)) for _ in range(3)]
    for found in jobs:
        same(finished(found).result, demo.generate(prompts, seed=5, temperature=0.9, gen_length=32))


def test_block_causal_models(tmp_path):
    config = llada2.config()
    folder = folders.write(tmp_path, config, llada2.tensors(config))
    with LLaDAForCausalLM(folder) as model:
        scheduler = Scheduler(model)
        prompts = [np.random.default_rng(n).integers(0, 60, n) for n in (1, 31, 40, 70)]
        options = [{"gen_length": 64}, {"gen_length": 40, "selector": "quota"}, {"preset": "quality", "gen_length": 64}, {"cache": "none",
                   "gen_length": 32}]
        jobs = [scheduler.submit(job(model, ids, gen_length=o["gen_length"], **{k: v for k, v in o.items() if k != "gen_length"}))
                for ids, o in zip(prompts, options, strict=True)]
        for ids, o, found in zip(prompts, options, jobs, strict=True):
            same(finished(found).result, model.generate(ids, seed=0, **o))
        scheduler.close()


def test_requests_join_between_passes(gated):
    """The second joins while the first is under way; both share passes from then on."""
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model)
    first = scheduler.submit(job(model, **SHORT))
    gate.arrive()
    gate.let()
    gate.arrive()  # the second pass of the first request
    second = scheduler.submit(job(model, **SHORT))
    gate.unlock()
    finished(first), finished(second)
    assert gate.passes == [1, 1, *[2] * 6, 1, 1]
    scheduler.close()


def test_first_come_first_served(gated):
    """A request that needs the whole batch waits for room, and those behind it wait too, though they would fit."""
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model, max_requests=2)
    order, jobs = [], []
    for name, prompts in (("one", PROMPT), ("two", [PROMPT, PROMPT]), ("three", PROMPT)):
        jobs.append(scheduler.submit(job(model, prompts, notify=lambda name=name: order.append(name), **SHORT)))
        if name == "one":
            gate.arrive()
    gate.unlock()
    for each in jobs:
        finished(each)
    assert order == ["one", "two", "three"]
    assert gate.passes == [1] * 8 + [2] * 8 + [1] * 8
    scheduler.close()


def test_rows_are_bounded(gated):
    model, gate = gated
    gate.open = False
    rows = job(model, **SHORT).rows
    assert job(model, cfg_scale=1.0, **SHORT).rows == 2 * rows == job(model, [PROMPT, PROMPT], **SHORT).rows
    assert job(model, gen_length="auto").rows == model.max_tokens
    scheduler = Scheduler(model, max_rows=2 * rows + 1)
    with pytest.raises(ValueError, match=f"at most {2 * rows + 1} positions in one request, guidance counted twice, found {3 * rows}"):
        scheduler.submit(job(model, [PROMPT] * 3, **SHORT))
    jobs = [scheduler.submit(job(model, **SHORT))]
    gate.arrive()
    jobs += [scheduler.submit(job(model, **SHORT)) for _ in range(3)]
    gate.unlock()
    for each in jobs:
        finished(each)
    assert max(gate.passes) == 2
    scheduler.close()


def test_too_many_answers(demo, scheduler):
    with pytest.raises(ValueError, match="at most 16 answers of one request, found 17"):
        scheduler.submit(job(demo, [PROMPT] * 17, **SHORT))


def test_a_full_queue_refuses(gated):
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model, max_requests=1, max_waiting=2)
    jobs = [scheduler.submit(job(model, **SHORT))]
    gate.arrive()
    jobs += [scheduler.submit(job(model, **SHORT)) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting, and there is room for 2") as refused:
        scheduler.submit(job(model, **SHORT))
    assert 1 <= refused.value.retry_after <= 60 and scheduler.waiting == 2 and scheduler.running == 1
    for seconds, expected in ((0.001, 1), (2.5, 8), (1e6, 60)):  # three rounds of what a request took of late
        scheduler._seconds = seconds
        with pytest.raises(QueueFullError) as refused:
            scheduler.check_room()
        assert refused.value.retry_after == expected
    gate.unlock()
    for each in jobs:
        finished(each)
    assert scheduler.counts["refused"] == 4 and scheduler.counts["finished"] == 3
    scheduler.close()


@pytest.mark.parametrize("company", [False, True])
def test_cancelled_within_one_pass(gated, company):
    """Cancelled in the middle of a pass: that pass is its last."""
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model)
    both = [scheduler.submit(job(model, **SHORT)) for _ in range(1 + company)]
    gate.arrive()
    scheduler.cancel(both[0])
    gate.unlock()
    with pytest.raises(GenerationCancelled, match="the request was cancelled"):
        finished(both[0])
    if company:
        same(finished(both[1]).result, model.generate(PROMPT, seed=0, **SHORT))
    assert sum(n for n in gate.passes[:9]) <= 1 + 1 + 8 * company
    assert scheduler.counts["cancelled"] == 1
    scheduler.close()


@pytest.mark.parametrize("how", ["finished", "cancelled", "failed"])
def test_caches_are_freed(gated, how):
    model, gate = gated
    model._backend = notes = backends.NotesCaches(gate)
    gate.open = False
    scheduler = Scheduler(model)
    one = scheduler.submit(job(model, cache="dual", **SHORT))
    gate.arrive()
    gate.let()
    gate.arrive()
    assert notes.made and not any(cache.closed for cache in notes.made)
    if how == "cancelled":
        scheduler.cancel(one)
    elif how == "failed":
        gate.failure = EngineError("kernel gemm_f32 failed")
    gate.unlock()
    assert one.done.wait(PATIENCE) and (one.error is None) == (how == "finished")
    assert all(cache.closed for cache in notes.made)
    scheduler.close()


def test_cancelled_while_waiting(gated):
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model, max_requests=1)
    first, second = scheduler.submit(job(model, **SHORT)), scheduler.submit(job(model, **SHORT))
    gate.arrive()
    scheduler.cancel(second)
    assert second.done.is_set() and scheduler.waiting == 0
    gate.unlock()
    finished(first)
    scheduler.cancel(first)  # has ended: nothing happens
    assert scheduler.counts["cancelled"] == 1
    scheduler.close()


@pytest.mark.parametrize("running", [True, False])
def test_deadlines(gated, running):
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model, max_requests=1)
    jobs = [scheduler.submit(job(model, deadline=0.05 if running else PATIENCE, **SHORT))]
    jobs.append(scheduler.submit(job(model, deadline=PATIENCE if running else 0.05, **SHORT)))
    gate.arrive()
    time.sleep(0.06)
    gate.unlock()
    late, other = jobs if running else jobs[::-1]
    with pytest.raises(DeadlineError, match=r"not done within its 0\.05 seconds"):
        finished(late)
    finished(other)
    assert scheduler.counts["late"] == 1
    scheduler.close()


@pytest.mark.parametrize("failure", [EngineError("kernel gemm_f32 failed"), MemoryError(), RuntimeError("anything")])
def test_a_failure_is_that_of_its_requests(gated, failure):
    """Those in the pass fail with its error; the next request is answered."""
    model, gate = gated
    scheduler = Scheduler(model)
    gate.failure = failure
    with pytest.raises(type(failure) if not isinstance(failure, MemoryError) else MemoryError):
        finished(scheduler.submit(job(model, **SHORT)))
    same(finished(scheduler.submit(job(model, **SHORT))).result, model.generate(PROMPT, seed=0, **SHORT))
    assert scheduler.alive and scheduler.running == 0 and scheduler.counts["failed"] == 1
    scheduler.close()


@pytest.mark.parametrize("where", ["_advance", "_conclude"])
def test_a_failure_beside_the_pass_is_of_one_request(gated, monkeypatch, where):
    """What goes wrong with the text of one request does not concern those who shared its passes."""
    model, gate = gated
    scheduler = Scheduler(model)
    gate.open = False
    first = scheduler.submit(job(model, **SHORT))
    gate.arrive()
    broken, other = job(model, **SHORT), job(model, **SHORT)

    def fail(*_):
        raise RuntimeError("no text")

    monkeypatch.setattr(broken, where, fail)
    for one in (broken, other):
        scheduler.submit(one)
    gate.unlock()
    with pytest.raises(RuntimeError, match="no text"):
        finished(broken)
    for one in (first, other):
        same(finished(one).result, model.generate(PROMPT, seed=0, **SHORT))
    assert max(gate.passes) == 3
    assert scheduler.alive and scheduler.running == 0 and scheduler.counts["failed"] == 1 and scheduler.counts["finished"] == 2
    scheduler.close()


def test_a_closed_model(demo):
    model = LLaDAForCausalLM.from_pretrained()
    scheduler = Scheduler(model)
    ready = job(model, **SHORT)
    model.close()
    with pytest.raises(GenerationCancelled, match="closed"):
        finished(scheduler.submit(ready))
    scheduler.close()


@pytest.mark.parametrize("grace", [0.0, float(PATIENCE)])
def test_shutdown(gated, grace):
    """Running requests get their grace, then an error; new ones are refused at once."""
    model, gate = gated
    gate.open = False
    scheduler = Scheduler(model, max_requests=1)
    jobs = [scheduler.submit(job(model, **SHORT)) for _ in range(2)]
    gate.arrive()
    closing = threading.Thread(target=scheduler.close, args=(grace,))
    closing.start()
    while not scheduler._closing:
        time.sleep(0.001)
    with pytest.raises(ShutdownError):
        scheduler.submit(job(model, **SHORT))
    if not grace:
        while not jobs[1].cancelled:
            time.sleep(0.001)
    gate.unlock()
    closing.join(PATIENCE)
    for each in jobs:
        if grace:
            finished(each)
        else:
            with pytest.raises(ShutdownError, match="shutting down"):
                finished(each)
    assert not scheduler.alive
    scheduler.close()


def test_stop_strings_end_a_request(demo, scheduler):
    """As soon as the settled text holds one; the answer is cut before it, and counts the tokens that it took."""
    whole = finished(scheduler.submit(job(demo, block_length=8, follow=True)))
    text = whole.answers[0].text
    assert text == "7, 12, 31, 52"
    early = finished(scheduler.submit(job(demo, block_length=8, stop=("nowhere", ", 3", "12, 31"))))
    [answer] = early.answers
    assert (answer.text, answer.finish_reason) == ("7, 12", "stop")  # ", 3" is complete before "12, 31" is
    ids = answer.tokens.tolist()
    assert ", 3" in demo.tokenizer.decode(ids) and ", 3" not in demo.tokenizer.decode(ids[:-1])
    assert len(answer.confidence) == len(ids) and early.result.n_forward < whole.result.n_forward


def test_one_answer_stops_and_others_go_on(demo, scheduler):
    prompts = [PROMPT, "What is 17 plus 25?"]
    found = finished(scheduler.submit(job(demo, prompts, stop=("=",), block_length=8)))
    alone = demo.generate(prompts, seed=0, block_length=8)
    assert [a.text for a in found.answers] == ["7, 12, 31, 52", "17 + 25 "]
    np.testing.assert_array_equal(found.result.sequences[0], alone.sequences[0])


def test_progress_is_settled_text_and_drafts(gated):
    """Texts only grow, each the beginning of the answer; canvases and drafts are those of the step."""
    model, gate = gated
    gate.open = False
    scheduler, seen, told = Scheduler(model), [], threading.Semaphore(0)
    steps = list(gate_free(model, **SHORT))
    followed = scheduler.submit(job(model, follow=True, drafts=True, notify=told.release, **SHORT))
    for step in steps:
        gate.arrive()
        gate.let()
        assert told.acquire(timeout=PATIENCE)
        seen.append(followed.progress)
        np.testing.assert_array_equal(seen[-1].canvases[0], step.canvas[0])
        np.testing.assert_array_equal(seen[-1].drafts[0], step.drafts[0])
        assert seen[-1].texts == tuple(step.text)
    finished(followed)
    assert followed.answers[0].text.startswith(seen[-1].texts[0])
    scheduler.close()


def gate_free(model, **options):
    """Steps of the same request alone, taken before the gate is of interest."""
    with LLaDAForCausalLM.from_pretrained() as other:
        yield from other.stream(PROMPT, drafts=True, seed=0, **options)


@pytest.mark.parametrize(("text", "stops", "cut"), [
    ("abcabc", ("c",), "ab"), ("abc", ("x",), None), ("abc", (), None), ("abc", ("bc", "ab"), ""), ("", ("a",), None),
    ("abcd", ("abcd", "bc"), "a"), ("abcd", ("bcd", "abcd"), "")])
def test_cut(text, stops, cut):
    assert cut_at(text, stops) == cut


@pytest.mark.parametrize(("text", "stops", "held"), [
    ("abc", ("cd",), 1), ("abc", ("bcd", "cd"), 2), ("abc", ("x",), 0), ("", ("a",), 0), ("aaa", ("aaab",), 3), ("abc", (), 0)])
def test_what_may_be_a_stop_string_is_held_back(text, stops, held):
    assert held_back(text, stops) == held


def test_many_threads(demo):
    """Requests from 16 threads, some of which change their minds: each that ends well ends as alone."""
    scheduler, errors = Scheduler(demo, max_requests=5), []
    alone = {seed: demo.generate(PROMPT, seed=seed, temperature=1.0, gen_length=16) for seed in range(4)}

    def client(number):
        for i in range(6):
            each = scheduler.submit(job(demo, seed=i % 4, temperature=1.0, gen_length=16))
            if (number + i) % 5 == 0:
                scheduler.cancel(each)
            try:
                same(finished(each).result, alone[i % 4])
            except GenerationCancelled:
                if (number + i) % 5:
                    errors.append("cancelled, though nobody wanted that")
            except BaseException as e:
                errors.append(e)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == [] and scheduler.running == scheduler.waiting == 0
    scheduler.close()
