"""Rounds of tasks: bit for bit what `generate` gives, in any company; and rounds that are refused."""
from __future__ import annotations

import itertools
import threading

import folders
import numpy as np
import pytest
from rounds import Spy, generated, new_task, prompt_of, rounds, state, take_round

from llada_native import EngineError, InferTask, LLaDAForCausalLM

MASK = 58
REMASKING = ("low_confidence", "random", "entropy", "margin")


@pytest.fixture(scope="module")
def model(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


@pytest.fixture(scope="module")
def other(tiny):
    """The same weights, but another model."""
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


@pytest.mark.parametrize("remasking", REMASKING)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rounds_equal_generate(model, temperature, cfg_scale, remasking):
    """Positions, tokens and confidences of every commit, bit for bit, over blocks and prompts; one prompt holds masks."""
    for block, prompt in itertools.product((1, 2, 4, 8), (prompt_of(3, 9), np.array([5, MASK, 7, MASK]))):
        options = {"temperature": temperature, "cfg_scale": cfg_scale, "remasking": remasking, "block_length": block, "seed": 11}
        commits, result = generated(model, prompt, 8, **options)
        task = new_task(0, prompt, 8, **options)
        assert rounds(model, task) == commits, (block, len(prompt))
        assert np.array_equal(task.sequence, result.sequences[0]) and task.revealed_positions == [p for p, _, _ in commits]
        last = np.full(len(task.sequence), np.nan)
        for position, token, confidence in commits:
            last[position] = confidence if token != MASK else np.nan
        assert np.array_equal(last[len(prompt):], result.confidence[0], equal_nan=True)
        assert task.finish_reason == result.finish_reason[0]


FILTERS = [{"top_k": 3}, {"top_p": 0.3}, {"top_k": 20, "top_p": 0.5}, {"repetition_penalty": 1.5}, {"suppress_tokens": [46, 19, 27, 20]},
           {"logits_eos_inf": True, "eos_id": 46}, {"confidence_eos_eot_inf": True, "eos_id": 46, "eot_id": 19},
           {"confidence_eos_eot_inf": "compat", "eos_id": 46, "eot_id": 19}, {"mask_id": 60},
           {"top_k": 5, "top_p": 0.9, "repetition_penalty": 2.0, "suppress_tokens": [46, 19], "cfg_scale": 0.5}]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_in_rounds_equal_generate(model, options):
    prompt = prompt_of(4, 9)
    for temperature, seed in itertools.product((0.0, 0.8, 2.0), (0, 1)):
        drawn = {**options, "temperature": temperature, "seed": seed, "block_length": 8}
        assert rounds(model, new_task(0, prompt, 8, **drawn)) == generated(model, prompt, 8, **drawn)[0]


def test_seeds_in_rounds(model):
    """The same seed draws the same, one seed as a list of one draws what generate draws with it, other seeds draw otherwise."""
    prompt = prompt_of(4, 9)
    draws = {seed: rounds(model, InferTask(0, prompt, 8, 1.5, seed=seed)) for seed in (0, 1, 2**100, None)}
    assert draws[1] == rounds(model, InferTask(0, prompt, 8, 1.5, seed=np.int64(1))) != draws[0] != draws[2**100] != draws[None]
    assert rounds(model, InferTask(0, prompt, 8, 1.5, seed=[1])) == generated(model, prompt, 8, temperature=1.5, seed=[1])[0]
    assert draws[None] != rounds(model, InferTask(0, prompt, 8, 1.5))


@pytest.mark.parametrize("backend", ["reference", "placeholder"])
def test_rounds_equal_generate_in_other_backends(tiny, backend):
    loaded = LLaDAForCausalLM(tiny[0], backend=backend)
    for options in ({}, {"cfg_scale": 0.7}, {"temperature": 0.8, "seed": 1, "block_length": 2}):
        for cached in (False, True):
            task = new_task(0, prompt_of(5, 6), 4, **options)
            if cached:
                task.bind_kvcache(loaded.create_kv_cache())
            assert rounds(loaded, task) == generated(loaded, prompt_of(5, 6), 4, **options)[0]


def test_the_demo_model_answers_tasks(demo):
    texts = "What is 17 plus 25?", "Sort these numbers: 5, 1, 3."
    tasks = [InferTask(text, demo.tokenizer.encode_chat([{"role": "user", "content": text}]), 16) for text in texts]
    while not all(t.finished for t in tasks):
        active = [t for t in tasks if not t.finished]
        for task, token in zip(active, demo.batch_infer_one_round(active), strict=True):
            task.next(token)
    assert [demo.tokenizer.decode(t.answer[:np.isin(t.answer, t.end_tokens).argmax()]) for t in tasks] == ["17 + 25 = 42", "1, 3, 5"]
    assert [t.finish_reason for t in tasks] == ["stop", "stop"]


def mixed_requests(count, seed):
    """(prompt, gen_length, options, rounds after which the caller gives up or None) of requests that have little in common."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        gen_length = int(rng.choice([1, 2, 4, 6, 8, 12]))
        prompt = rng.integers(0, 55, rng.integers(1, 40))
        if i % 10 == 3:
            prompt[-1] = MASK
        options = {"temperature": float(rng.choice([0.0, 0.0, 0.8, 1.5])), "cfg_scale": float(rng.choice([0.0, 0.0, 0.7])),
                   "remasking": str(rng.choice(REMASKING)), "seed": int(rng.integers(1000)),
                   "block_length": int(rng.choice([d for d in range(1, gen_length + 1) if gen_length % d == 0]))}
        extra = [{}, {"top_k": 4}, {"top_p": 0.4}, {"repetition_penalty": 1.7}, {"suppress_tokens": [46, 19]},
                 {"confidence_eos_eot_inf": True}]
        options |= extra[rng.integers(len(extra))]
        out.append((prompt, gen_length, options, int(rng.integers(gen_length)) if i % 7 == 0 else None))
    return out


def drive(model, requests, seed, cached=()):
    """Requests that join, pause and leave in random order; the commits of each. Those in `cached` keep a cache at position 0."""
    rng = np.random.default_rng(seed)
    waiting = [int(i) for i in rng.permutation(len(requests))]
    tasks, commits, sizes = {}, [[] for _ in requests], set()
    while waiting or tasks:
        for _ in range(min(len(waiting), int(rng.integers(0, 5)))):
            i = waiting.pop()
            prompt, gen_length, options, _ = requests[i]
            tasks[i] = new_task(i, prompt, gen_length, **options)
            if i in cached:
                tasks[i].bind_kvcache(model.create_kv_cache())
        company = [int(i) for i in rng.permutation(list(tasks)) if rng.random() < 0.7]
        for i in [i for i in company if requests[i][3] == len(commits[i])]:
            tasks.pop(i).next(None)
            company.remove(i)
        sizes.add(len(company))
        for i, token in zip(company, model.batch_infer_one_round([tasks[i] for i in company]), strict=True):
            task = tasks[i]
            commits[i].append((task.pending_position, token, task.pending_confidence))
            task.next(token)
            if task.finished:
                del tasks[i]
    assert max(sizes) >= 8 and len(sizes) > 5, "companies of many sizes"
    return commits


@pytest.fixture(scope="module")
def fifty(tiny):
    """50 requests, the commits of each alone, and the logits of every forward pass of each alone, by its tokens and wanted rows."""
    model = LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)
    spy = model._backend = Spy(model._backend)
    requests = mixed_requests(50, 0)
    alone = [generated(model, prompt, gen_length, **options)[0][:give_up] for prompt, gen_length, options, give_up in requests]
    logits = {(tokens.tobytes(), rows.astype(np.int64).tobytes()): values for call in spy.calls for tokens, rows, values in call}
    return requests, alone, logits


@pytest.mark.parametrize("seed", [0, 1])
def test_fifty_tasks_that_join_and_leave(fifty, model, spied, seed):
    """Commits and logits of each, bit for bit, are those of `generate` of it alone."""
    requests, alone, logits = fifty
    spy = spied(model)
    found = drive(model, requests, seed)
    for i, (ours, wanted) in enumerate(zip(found, alone, strict=True)):
        assert ours == wanted, requests[i]
    seen = 0
    for call in spy.calls:
        for tokens, rows, values in call:
            assert np.array_equal(values, logits[tokens.tobytes(), rows.astype(np.int64).tobytes()])
            seen += len(call) > 1
    assert seen > 200


@pytest.mark.parametrize("threads", [1, 2])
def test_fifty_tasks_with_some_caches(fifty, model, threads):
    """A cache at position 0 changes nothing, in any company."""
    requests, alone, _ = fifty
    before, model.num_threads = model.num_threads, threads
    try:
        assert drive(model, requests, 2, cached=range(0, 50, 2)) == alone
    finally:
        model.num_threads = before


def test_order_of_the_company_does_not_matter(model):
    prompts, names = [prompt_of(i, n) for i, n in enumerate((9, 3, 14))], {}
    for order in itertools.permutations(range(3)):
        tasks = [InferTask(i, prompts[i], 6, 0.8 * (i != 1), seed=i, cfg_scale=0.5 * (i == 2)) for i in order]
        commits = {i: [] for i in order}
        for _ in range(6):
            for task, token in zip(tasks, model.batch_infer_one_round(tuple(tasks)), strict=True):
                commits[task.id].append((task.pending_position, token, task.pending_confidence))
                task.next(token)
        assert names.setdefault("first", commits) == commits
        assert all(t.finished for t in tasks)


# ---- rounds that are refused


def test_no_tasks_no_tokens(model):
    assert model.batch_infer_one_round([]) == []


@pytest.fixture
def company(model):
    """A task that has not joined, one with a pending position, and one with a cache and a token committed; and what they commit alone."""
    fresh = InferTask("fresh", prompt_of(6, 4), 4, 0.8, seed=1)
    pending, cached = InferTask("pending", prompt_of(7, 5), 4, 0.8, seed=2), InferTask("cached", prompt_of(8, 6), 4, 0.8, seed=3)
    cached.bind_kvcache(model.create_kv_cache())
    take_round(model, cached)
    model.batch_infer_one_round([pending])
    return fresh, pending, cached


def wrong_task(kind, model, other, company):
    """What cannot join a round of that company."""
    fresh, _, cached = company
    task = InferTask("wrong", prompt_of(9, 5), 4, block_length=2)
    if kind == "duplicate":
        return fresh
    if kind == "finished":
        rounds(model, task)
    elif kind == "another model":
        other.batch_infer_one_round([task])
    elif kind == "shared cache":
        task.bind_kvcache(cached.kvcache())
    elif kind == "cache of another model":
        task.bind_kvcache(other.create_kv_cache())
    elif kind == "dropped cache":
        task.bind_kvcache(model.create_kv_cache())
        task.kvcache().drop()
    elif kind == "truncated cache":
        task.bind_kvcache(model.create_kv_cache())
        take_round(model, task)
        task.bind_kvcache(task.kvcache(), 5)
        task.kvcache().truncate(4)
    elif kind == "mask before pos":
        task.bind_kvcache(model.create_kv_cache())
        model.batch_infer_one_round([task])
        task.bind_kvcache(task.kvcache(), 6)
    elif kind == "too long":
        task = InferTask("wrong", prompt_of(9, 500), 20)
    elif kind == "token beyond the vocabulary":
        task = InferTask("wrong", [1, 64], 4)
    else:
        task = {"no task": "task", "none": None, "its class": InferTask}[kind]
    return task


WRONG = [
    ("duplicate", ValueError, r"^tasks\[3\]: its task is also that of tasks\[0\]"),
    ("finished", ValueError, r"^tasks\[3\].*'wrong' is finished \(length\)"),
    ("another model", ValueError, r"'wrong' belongs to another model"),
    ("shared cache", ValueError, r"^tasks\[3\].*'cached'"),
    ("cache of another model", ValueError, r"kv_cache: belongs to another model"),
    ("dropped cache", ValueError, r"^kv_cache: was dropped"),
    ("truncated cache", ValueError, r"^pos: expected at most 4.*'wrong'.*found 5"),
    ("mask before pos", ValueError, r"^pos: .*no mask before position 6 of task 'wrong', found one at 5"),
    ("too long", ValueError, r"max_tokens \(512\).*500.*20"),
    ("token beyond the vocabulary", ValueError, r"'wrong': tokens.*found 64"),
    ("no task", TypeError, r"^tasks\[3\]: expected an InferTask, found 'task'"),
    ("none", TypeError, r"^tasks\[3\]: .*found None"),
    ("its class", TypeError, r"^tasks\[3\]: expected an InferTask"),
]


@pytest.mark.parametrize(("kind", "error", "message"), WRONG, ids=[w[0] for w in WRONG])
def test_a_refused_round_changes_no_task(model, other, company, kind, error, message):
    """Not even that a task belongs to the model; and each still draws the numbers it would have drawn."""
    wrong = wrong_task(kind, model, other, company)
    tasks = [*company, wrong]
    before = [state(t) for t in tasks if isinstance(t, InferTask)]
    with pytest.raises(error, match=message):
        model.batch_infer_one_round(tasks)
    assert [state(t) for t in tasks if isinstance(t, InferTask)] == before
    fresh, pending, cached = company
    pending.next(pending.pending_token)
    for task, seed, length in ((pending, 2, 5), (cached, 3, 6)):
        wanted, result = generated(model, prompt_of(seed + 5, length), 4, temperature=0.8, seed=seed)
        assert rounds(model, task) == wanted[1:] and np.array_equal(task.sequence, result.sequences[0])
    assert rounds(other, fresh) == generated(model, prompt_of(6, 4), 4, temperature=0.8, seed=1)[0], "another model may still take it"


def test_a_task_whose_cache_is_of_another_model_still_finds_that_model(model, other):
    task = InferTask(0, prompt_of(9, 5), 4)
    task.bind_kvcache(other.create_kv_cache())
    with pytest.raises(ValueError, match="belongs to another model"):
        model.batch_infer_one_round([task])
    assert rounds(other, task) == generated(other, prompt_of(9, 5), 4)[0]


def test_rounds_of_a_closed_model(tiny):
    loaded = LLaDAForCausalLM.from_pretrained(tiny[0])
    tasks = [InferTask("fresh", [1, 2], 4), InferTask("begun", [1, 2], 4)]
    take_round(loaded, tasks[1])
    cache = loaded.create_kv_cache()
    loaded.close()
    before = [state(t) for t in tasks]
    for call in (lambda: loaded.batch_infer_one_round(tasks), loaded.create_kv_cache, lambda: loaded.forward_logits_batch([[1, 2]])):
        with pytest.raises(ValueError, match="the model is closed"):
            call()
    assert [state(t) for t in tasks] == before
    tasks[1].next(None)
    loaded.drop_kv_cache(cache)


@pytest.mark.parametrize("options", [{"temperature": 0.8}, {"temperature": 0.8, "cfg_scale": 0.5}, {"remasking": "random"}], ids=str)
def test_a_round_that_failed_can_be_repeated(spied, options):
    """The engine fails between two tiles of logits, when tokens of the first have been drawn. Repeated, the round draws them again."""
    loaded = LLaDAForCausalLM.random(folders.config(vocab_size=9000, embedding_size=9000), "float32", num_threads=1)
    wanted = generated(loaded, [1, 2, 3], 4, seed=5, **options)[0]
    spy = spied(loaded)
    task = new_task(0, [1, 2, 3], 4, seed=5, **options)
    first = take_round(loaded, task)
    before = state(task)
    spy.fail_head = 2
    with pytest.raises(EngineError, match="on purpose"):
        loaded.batch_infer_one_round([task])
    assert state(task) == before
    assert [first, *rounds(loaded, task)] == wanted


def test_two_threads_cannot_take_one_task(model, prompts=((1, 2, 3, 4),)):
    """Rounds of the same task on several threads: each is either refused or whole, and the tokens are generate's."""
    wanted = model.generate(list(prompts[0]), gen_length=16, block_length=16, max_steps=16).sequences[0]
    task, refused = InferTask("shared", list(prompts[0]), 16, block_length=16), []
    turn = threading.Lock()

    def work():
        while not task.finished:
            try:
                [token] = model.batch_infer_one_round([task])
                with turn:
                    if task.pending_position is not None and not task.finished:
                        task.next(token)
            except ValueError as e:
                refused.append(str(e))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(task.sequence, wanted)
    assert len(set(task.revealed_positions)) == len(task.revealed_positions) == 16
    assert all("in a round on another thread" in message or "is finished" in message for message in refused)
