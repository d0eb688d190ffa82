"""Key-value caches of tasks: at position 0 they change nothing, behind it they are what the reference makes of them."""
from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import folders
import numpy as np
import oracle
import pytest
from backends import Gate
from interrupts import interrupted, large_model
from rounds import generated, new_task, prompt_of, rounds, state, take_round

import llada_native
from llada_native import EngineError, InferTask, KVCache, LLaDABatchedTask, LLaDAForCausalLM

ISAS = [name for name, supported in llada_native.cpu_info()["isas"].items() if supported]
MASK = 58


@pytest.fixture(scope="module")
def model(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


@pytest.fixture(scope="module")
def slow(tiny):
    return LLaDAForCausalLM.from_pretrained(tiny[0], backend="reference")


@pytest.fixture(scope="module")
def other(tiny):
    """The same weights, but another model."""
    return LLaDAForCausalLM.from_pretrained(tiny[0], num_threads=1)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """(folder, config, tensors). The keys and values of a first layer depend on tokens and positions only: no cache of them is stale."""
    config = folders.config(n_kv_heads=2, n_layers=1)
    tensors = folders.tensors(config, 1)
    return folders.write(tmp_path_factory.mktemp("one_layer"), config, tensors), config, tensors


def forward(backend, tokens, start=0, cache=None, rows=None):
    """Logits of one request through a backend; the tokens stand at `start`."""
    tokens = np.asarray(tokens, np.int32)
    rows = np.arange(len(tokens), dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
    hidden = backend.hidden(tokens, np.array([len(tokens)], np.int32), rows, np.array([start], np.int32), [cache])
    logits = np.empty((len(rows), backend.config.vocabulary), np.float32)
    backend.head(hidden, 0, logits.shape[1], logits)
    return logits


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_cache_at_position_zero_changes_nothing(model, temperature, cfg_scale):
    """Nor does what is left in it of another request, be that shorter or longer."""
    shared = model.create_kv_cache()
    for seed, length in ((1, 9), (2, 30), (3, 5)):
        options = {"temperature": temperature, "cfg_scale": cfg_scale, "seed": seed, "block_length": 4}
        wanted = generated(model, prompt_of(seed, length), 8, **options)[0]
        for cache in (model.create_kv_cache(), shared):
            task = new_task(seed, prompt_of(seed, length), 8, **options)
            task.bind_kvcache(cache)
            assert rounds(model, task) == wanted, (length, "shared" if cache is shared else "its own")


def test_a_cache_knows_its_tokens(model):
    prompt = prompt_of(1, 9)
    task, cache = InferTask(0, prompt, 4), model.create_kv_cache()
    assert isinstance(cache, KVCache) and (cache.length, cache.nbytes, cache.num_matched(prompt), len(cache.tokens)) == (0, 0, 0, 0)
    task.bind_kvcache(cache)
    assert task.kvcache() is cache and task.pos == 0
    before = np.concatenate([prompt, [MASK] * 4])
    model.batch_infer_one_round([task])
    assert cache.length == 13 and np.array_equal(cache.tokens, before) and cache.tokens.dtype == np.int32
    assert cache.num_matched(before) == 13
    task.next(task.pending_token)
    assert cache.num_matched(task.sequence) == task.revealed_positions[0], "the committed token is not in the cache yet"
    assert cache.num_matched(before[:4]) == 4 and cache.num_matched([*before, 1, 2]) == 13
    assert cache.num_matched([]) == 0 and cache.num_matched([prompt[0] + 1, *prompt[1:]]) == 0
    assert "length=13" in repr(cache) and str(cache.nbytes) in repr(cache)


def test_truncated_caches(model):
    prompt = prompt_of(1, 9)
    task, cache = InferTask(0, prompt, 4, cfg_scale=0.5), model.create_kv_cache()
    task.bind_kvcache(cache)
    take_round(model, task)
    cache.truncate(6)
    assert cache.length == 6 and np.array_equal(cache.tokens, prompt[:6]) and cache.num_matched(task.sequence) == 6
    assert cache.parts(True)[1].cache.length == 6
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=rf"length: expected 0 to 6, found {wrong}"):
            cache.truncate(wrong)
    with pytest.raises(ValueError, match=r"^pos: expected at most 6.*found 7"):
        task.bind_kvcache(cache, 7)
    task.bind_kvcache(cache, 6)
    assert LLaDABatchedTask([task]).req_pos.tolist() == [6]
    model.batch_infer_one_round([task])
    assert cache.length == 13 and np.array_equal(cache.tokens, task.sequence)
    cache.truncate(0)
    assert cache.length == 0 and cache.num_matched(prompt) == 0
    task.bind_kvcache(cache, 0)
    assert len(rounds(model, task)) == 3


def test_dropped_caches(model):
    task, cache, second = InferTask("x", prompt_of(1, 9), 4), model.create_kv_cache(), model.create_kv_cache()
    task.bind_kvcache(cache)
    take_round(model, task)
    model.drop_kv_cache(cache)
    second.drop(model)
    for dropped in (cache, second):
        assert dropped.closed and repr(dropped) == "KVCache(dropped)"
        for use in (lambda c: c.length, lambda c: c.handle, lambda c: c.truncate(0), lambda c: c.num_matched([1]), lambda c: c.tokens):
            with pytest.raises(ValueError, match="dropped"):
                use(dropped)
        with pytest.raises(ValueError, match=r"^kv_cache: was dropped"):
            InferTask(0, [1], 2).bind_kvcache(dropped)
        model.drop_kv_cache(dropped)
    before = state(task)
    with pytest.raises(ValueError, match=r"^kv_cache: was dropped"):
        model.batch_infer_one_round([task])
    assert state(task) == before
    assert task.release_kvcache() is cache
    assert len(rounds(model, task)) == 3
    for wrong in (None, "cache", cache._conditional.cache):
        with pytest.raises(TypeError, match=r"^kv_cache: expected a KVCache"):
            model.drop_kv_cache(wrong)


def test_binding_and_releasing(model, other):
    task, cache = InferTask("x", prompt_of(1, 9), 4), model.create_kv_cache()
    assert task.release_kvcache() is None and task.kvcache() is None
    task.bind_kvcache(cache, 0)
    take_round(model, task)
    task.bind_kvcache(cache, 9)
    assert (task.kvcache(), task.pos) == (cache, 9)
    before = state(task)
    for wrong, pos, kind, message in ((cache, 14, ValueError, "^pos: expected at most"), (cache, -1, ValueError, "^pos: "),
                                      (cache, 1.0, TypeError, "^pos: "), (None, 0, TypeError, "^kv_cache: expected a KVCache"),
                                      (other.create_kv_cache(), 0, ValueError, "^kv_cache: belongs to another model"),
                                      (model.create_kv_cache(), 1, ValueError, "^pos: expected at most 0")):
        with pytest.raises(kind, match=message):
            task.bind_kvcache(wrong, pos)
        assert state(task) == before
    assert task.release_kvcache() is cache and (task.kvcache(), task.pos) == (None, 0) and cache.length == 13
    model.batch_infer_one_round([task])
    assert np.array_equal(cache.tokens[:9], task.sequence[:9]) and cache.num_matched(task.sequence) < 13, "a released cache is left alone"
    fresh = InferTask("y", task.tokens, 4)
    fresh.bind_kvcache(cache, 9)
    assert fresh.pos == 9, "another request with the same prompt may begin behind it"
    stranger = InferTask("z", [*task.tokens[:5], (task.tokens[5] + 1) % 50, 1, 2, 3], 4)
    with pytest.raises(ValueError, match=r"^pos: expected at most 5"):
        stranger.bind_kvcache(cache, 6)


def test_a_task_in_a_round_keeps_its_cache(model, monkeypatch):
    """Another one would be said to hold the keys of the round."""
    gate = Gate(model._backend)
    monkeypatch.setattr(model, "_backend", gate)
    task, cache, another = InferTask("x", prompt_of(1, 9), 4), model.create_kv_cache(), model.create_kv_cache()
    task.bind_kvcache(cache)
    gate.open = False
    with ThreadPoolExecutor(1) as pool:
        took = pool.submit(model.batch_infer_one_round, [task])
        gate.arrive()
        try:
            for change in (lambda: task.bind_kvcache(another), task.release_kvcache, cache.drop, lambda: cache.truncate(0)):
                with pytest.raises(ValueError, match="is in a round on another thread"):
                    change()
        finally:
            gate.unlock()
        assert took.result() == [task.pending_token]
    assert task.kvcache() is cache and cache.num_matched(task.sequence) == 13 and another.length == 0
    assert task.release_kvcache() is cache
    cache.drop()


@pytest.mark.parametrize("engine", [*ISAS, "reference"])
def test_bytes_of_a_position(engine):
    """Keys and values of every layer and key-value head: float32 in every build of the engine, float64 in the reference."""
    config = folders.config(n_layers=3, d_model=256, n_heads=4, n_kv_heads=2, mlp_hidden_size=16)
    native = engine != "reference"
    loaded = LLaDAForCausalLM.random(config, "float32", num_threads=1, **({"isa": engine} if native else {"backend": engine}))
    cache = loaded.create_kv_cache()
    assert cache.bytes_per_token == 2 * 3 * 2 * 64 * (4 if native else 8)
    for guided in (False, True):
        task = InferTask(0, prompt_of(0, 90), 4, cfg_scale=0.5 * guided)
        task.bind_kvcache(cache)
        loaded.batch_infer_one_round([task])
        assert cache.bytes_per_token == 2 * 3 * 2 * 64 * (4 if native else 8) * (1 + guided)
        assert 94 * cache.bytes_per_token <= cache.nbytes <= (94 + 64) * cache.bytes_per_token


def test_guidance_keeps_a_second_cache(model):
    task, cache = InferTask(0, prompt_of(1, 9), 4, cfg_scale=0.7), model.create_kv_cache()
    task.bind_kvcache(cache)
    take_round(model, task)
    assert cache.parts(True)[1].cache.length == cache.length == 13 and cache.nbytes == 2 * cache._conditional.cache.bytes
    second = cache.parts(True)[1].cache
    cache.drop()
    assert second.closed


def with_prefix_cache(model, prompt, gen_length, block, cached=True, refresh=True, **options):
    """Rounds of a task that computes everything at the first round of a block, and from the block on in the others."""
    task, cache = new_task(0, prompt, gen_length, block_length=block, **options), model.create_kv_cache()
    if cached:
        task.bind_kvcache(cache)
    commits = []
    while not task.finished:
        first = len(commits) % block == 0
        if cached and (refresh or not commits):
            task.bind_kvcache(cache, 0 if first else task.block_end - block)
        elif cached:
            task.bind_kvcache(cache, len(prompt))
        commits.append(take_round(model, task))
    return commits, task


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 0.7}, {"temperature": 0.8, "seed": 1}, {"remasking": "entropy"}], ids=str)
def test_prefix_caches_equal_those_of_the_reference(model, slow, spied, options):
    """The approximation is the same in both backends, and it is one: the exact logits, and those of an older cache, are others."""
    prompt = prompt_of(1, 9)
    spies = spied(model), spied(slow)
    commits = [with_prefix_cache(m, prompt, 8, 4, **options)[0] for m in (model, slow)]
    assert [c[:2] for c in commits[0]] == [c[:2] for c in commits[1]]
    assert np.allclose([c[2] for c in commits[0]], [c[2] for c in commits[1]], atol=1e-5)
    requests = 2 if "cfg_scale" in options else 1
    lengths = [[17] * requests] + [[8] * requests] * 3 + [[17] * requests] + [[4] * requests] * 3
    for spy in spies:
        assert [[len(tokens) for tokens, _, _ in call] for call in spy.calls] == lengths, "rows before the block are not computed"
    for ours, theirs in zip(*(spy.calls for spy in spies), strict=True):
        for (tokens, rows, logits), (same_tokens, same_rows, wanted) in zip(ours, theirs, strict=True):
            assert np.array_equal(tokens, same_tokens) and np.array_equal(rows, same_rows)
            assert np.allclose(logits, wanted, atol=1e-4)
    exact, old = (with_prefix_cache(model, prompt, 8, 4, **kind, **options)[0] for kind in ({"cached": False}, {"refresh": False}))
    assert exact == generated(model, prompt, 8, block_length=4, **options)[0]
    assert exact[0] == commits[0][0], "the first round computes everything"
    assert exact[1:4] != commits[0][1:4] and old[5:] != commits[0][5:]


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 0.7}, {"temperature": 0.8, "seed": 1}], ids=str)
def test_prefix_caches_of_one_layer_are_exact(one_layer, options):
    """Nothing in them can be stale: rounds from the prompt's end, or from the block's begin, equal `generate` bit for bit."""
    loaded = LLaDAForCausalLM.from_pretrained(one_layer[0])
    prompt = prompt_of(1, 70)
    wanted = generated(loaded, prompt, 12, block_length=4, **options)[0]
    for refresh in (False, True):
        assert with_prefix_cache(loaded, prompt, 12, 4, refresh=refresh, **options)[0] == wanted


def test_a_prompt_computed_once_serves_other_tasks(one_layer):
    """The cache of one request begins another with the same prompt; in one layer that is exact."""
    loaded = LLaDAForCausalLM.from_pretrained(one_layer[0])
    prompt = prompt_of(1, 40)
    cache = loaded.create_kv_cache()
    first = InferTask(0, prompt, 16)
    first.bind_kvcache(cache)
    rounds(loaded, first)
    cache.truncate(40)
    second = InferTask(1, prompt, 4, 0.8, seed=3)
    second.bind_kvcache(cache, 40)
    assert rounds(loaded, second) == generated(loaded, prompt, 4, temperature=0.8, seed=3)[0]


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
@pytest.mark.parametrize("pos", [0, 20])
def test_keys_of_a_longer_request_are_not_seen(one_layer, pos, cfg_scale):
    """What a cache holds beyond a task's end belongs to another request."""
    loaded = LLaDAForCausalLM.from_pretrained(one_layer[0])
    prompt, cache = prompt_of(1, 40), loaded.create_kv_cache()
    long = InferTask("long", prompt, 16, cfg_scale=cfg_scale)
    long.bind_kvcache(cache)
    loaded.batch_infer_one_round([long])
    short = InferTask("short", prompt[:20], 4, cfg_scale=cfg_scale)
    short.bind_kvcache(cache, pos)
    assert rounds(loaded, short) == generated(loaded, prompt[:20], 4, cfg_scale=cfg_scale)[0]


def test_a_guided_task_needs_unconditional_keys(model):
    """The cache of an unguided task holds none, so a guided one cannot begin behind position 0."""
    cache, prompt = model.create_kv_cache(), prompt_of(1, 9)
    plain = InferTask("plain", prompt, 4)
    plain.bind_kvcache(cache)
    take_round(model, plain)
    guided, bystander = InferTask("guided", prompt, 4, cfg_scale=0.7), InferTask("bystander", prompt, 4)
    with pytest.raises(ValueError, match=r"^pos: "):
        guided.bind_kvcache(cache, 9)
        model.batch_infer_one_round([bystander, guided])
    assert bystander.pending_position is None and cache.length == 13


def test_unconditional_keys_of_other_tokens_are_not_taken(one_layer):
    """A guided task, an unguided one with another answer, a guided one again, in one cache: the last may not take what the first left."""
    loaded = LLaDAForCausalLM.from_pretrained(one_layer[0])
    cache, prompt = loaded.create_kv_cache(), prompt_of(1, 9)

    def begun(name, answer, **options):
        """A task whose first block of two holds that answer, computed from position 0 with the cache."""
        task = InferTask(name, prompt, 4, block_length=2, **options)
        task.bind_kvcache(cache)
        for _ in range(2):
            loaded.batch_infer_one_round([task])
            task.next(answer[task.pending_position - 9])
        loaded.batch_infer_one_round([task])
        return task

    begun("first", [1, 2], cfg_scale=0.7)
    begun("second", [3, 4])
    third = InferTask("third", prompt, 4, block_length=2, cfg_scale=0.7)
    for _ in range(2):
        loaded.batch_infer_one_round([third])
        third.next([3, 4][third.pending_position - 9])
    loaded.batch_infer_one_round([third])
    exact = third.pending_position, third.pending_token, third.pending_confidence
    try:
        third.bind_kvcache(cache, 11)
        loaded.batch_infer_one_round([third])
    except ValueError as e:
        assert str(e).startswith("pos: ")
    assert (third.pending_position, third.pending_token, third.pending_confidence) == exact, "keys of other tokens: one layer is exact"


def test_a_cache_knows_its_tokens_after_a_failed_head(model, spied):
    """The forward pass has replaced the keys when the head fails. The cache may not call them those of other tokens."""
    spy = spied(model)
    cache = model.create_kv_cache()
    first, second = InferTask("first", prompt_of(1, 9), 4), InferTask("second", prompt_of(2, 9), 4)
    first.bind_kvcache(cache)
    take_round(model, first)
    first.release_kvcache()
    second.bind_kvcache(cache)
    spy.fail_head = 1
    with pytest.raises(EngineError, match="on purpose"):
        model.batch_infer_one_round([second])
    assert len(cache.tokens) == cache.length
    with pytest.raises(ValueError, match=r"^pos: "):
        first.bind_kvcache(cache, 9)


def test_a_new_cache_can_be_asked_after_a_failed_head(model, spied):
    spy = spied(model)
    task, cache = InferTask(0, prompt_of(1, 9), 4), model.create_kv_cache()
    task.bind_kvcache(cache)
    spy.fail_head = 1
    with pytest.raises(EngineError, match="on purpose"):
        model.batch_infer_one_round([task])
    assert len(cache.tokens) == cache.length
    assert cache.num_matched(task.sequence) in (0, 13)
    assert rounds(model, task) == generated(model, prompt_of(1, 9), 4)[0]


@pytest.mark.parametrize("heads", [{"n_heads": 4, "n_kv_heads": 2}, {"d_model": 80, "n_heads": 2, "n_kv_heads": 1}], ids=str)
def test_growth_keeps_the_content(isa, heads):
    """Appended in many odd sizes, in one layer: each piece's logits are its rows of the whole, bit for bit."""
    loaded = LLaDAForCausalLM.random(folders.config(n_layers=1, **heads), "float32", isa=isa, num_threads=1)
    backend, cache = loaded._backend, loaded._backend.create_kv_cache()
    tokens, start, capacities = prompt_of(0, 400), 0, set()
    for n in itertools.cycle([1, 3, 7, 31, 64, 5, 2, 33, 17]):
        piece = tokens[start:start + n]
        assert np.array_equal(forward(backend, piece, start, cache), forward(backend, tokens[:start + len(piece)])[start:]), start
        start += len(piece)
        capacities.add(cache.bytes)
        assert cache.length == start and cache.bytes % cache.bytes_per_token == 0 and cache.bytes >= start * cache.bytes_per_token
        if start == len(tokens):
            break
    assert len(capacities) >= 4, "it grew"
    whole = forward(backend, tokens[200:201], 200, cache)
    assert np.array_equal(whole[0], forward(backend, tokens)[200])


def test_replaced_spans_equal_the_reference(tiny, slow, isa):
    """Random appends, replacements, truncations and companions, in caches of both backends; in two layers keys carry what they saw."""
    engine, reference = LLaDAForCausalLM.from_pretrained(tiny[0], isa=isa)._backend, slow._backend
    ours, theirs = ([b.create_kv_cache() for _ in range(2)] for b in (engine, reference))
    rng = np.random.default_rng(1)
    for _ in range(40):
        starts = [int(rng.integers(0, c.length + 1)) for c in ours] + [0]
        lengths = rng.integers(1, 40, 3).astype(np.int32)
        tokens = rng.integers(0, 64, lengths.sum()).astype(np.int32)
        rows = np.flatnonzero(rng.random(len(tokens)) < 0.5).astype(np.int32)
        found, wanted = (b.hidden(tokens, lengths, rows, np.array(starts, np.int32), [*caches, None])
                         for b, caches in ((engine, ours), (reference, theirs)))
        assert np.abs(found - wanted).max(initial=0) < 1e-4
        assert [c.length for c in ours] == [c.length for c in theirs]
        if rng.random() < 0.3:
            keep = int(rng.integers(0, ours[0].length + 1))
            ours[0].truncate(keep)
            theirs[0].truncate(keep)
    assert max(c.length for c in ours) > 64


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_cached_rows_of_one_layer_against_the_oracle(one_layer, backend):
    """After any replacement, rows are those of the forward pass over all tokens that the cache holds."""
    folder, config, tensors = one_layer
    engine = LLaDAForCausalLM.from_pretrained(folder, backend=backend)._backend
    cache, held, rng = engine.create_kv_cache(), np.empty(0, int), np.random.default_rng(2)
    for _ in range(25):
        start, piece = int(rng.integers(0, len(held) + 1)), rng.integers(0, 64, rng.integers(1, 30))
        held = np.concatenate([held[:start], piece, held[start + len(piece):]])
        wanted = oracle.forward(tensors, config, held)[start:start + len(piece)]
        assert np.abs(forward(engine, piece, start, cache) - wanted).max() < 1e-4
        if rng.random() < 0.3:
            held = held[:rng.integers(1, len(held) + 1)]
            cache.truncate(len(held))
        assert cache.length == len(held)


def test_appends_after_a_truncation_equal_a_new_cache(model, isa, tiny):
    """What was forgotten leaves no trace, wherever in a panel of keys the cut is."""
    backend = LLaDAForCausalLM.from_pretrained(tiny[0], isa=isa)._backend
    tokens, other = prompt_of(3, 100), prompt_of(4, 100)
    for cut in (1, 15, 16, 17, 33, 64, 65, 99):
        used, new = backend.create_kv_cache(), backend.create_kv_cache()
        forward(backend, tokens[:cut], 0, used)
        forward(backend, other[cut:], cut, used)
        used.truncate(cut)
        forward(backend, tokens[:cut], 0, new)
        for end in (cut + 1, 100):
            assert np.array_equal(forward(backend, tokens[cut:end], cut, used), forward(backend, tokens[cut:end], cut, new)), cut


def test_refused_forwards_leave_a_cache_as_it_was(model, other):
    backend = model._backend
    cache, second = backend.create_kv_cache(), backend.create_kv_cache()
    tokens = prompt_of(3, 20)
    forward(backend, tokens, 0, cache)
    forward(backend, tokens, 0, second)
    for wrong, start in (([1, 64], 10), ([-1, 1], 10), ([1], 21), ([1], -1)):
        with pytest.raises(ValueError, match=r"expected .* found"):
            forward(backend, wrong, start, cache)
        assert cache.length == 20
    with pytest.raises(ValueError, match="belongs to another model"):
        forward(other._backend, tokens, 0, cache)
    with pytest.raises(ValueError, match="expected 0 to 0"):
        forward(backend, tokens, 1, None)
    with pytest.raises(ValueError, match="is also that of request 0"):
        backend.hidden(*(np.array(a, np.int32) for a in ([1, 2], [1, 1], [0], [3, 4])), [cache, cache])
    with pytest.raises(TypeError):
        forward(backend, tokens, 0, "cache")
    assert cache.length == 20
    assert np.array_equal(forward(backend, [1, 2, 3], 10, cache), forward(backend, [1, 2, 3], 10, second))


def test_a_forward_without_rows_fills_the_cache(model):
    """What a caller needs to compute a prompt ahead."""
    backend, tokens = model._backend, prompt_of(3, 20)
    ahead, usual = backend.create_kv_cache(), backend.create_kv_cache()
    assert forward(backend, tokens, 0, ahead, rows=[]).shape == (0, 64) and ahead.length == 20
    forward(backend, tokens, 0, usual)
    assert np.array_equal(forward(backend, [1, 2], 20, ahead), forward(backend, [1, 2], 20, usual))


def test_an_interrupted_round_leaves_the_positions_before_it():
    """Then the same round gives what it would have given."""
    large = large_model()
    prompt = prompt_of(5, 1700)
    tasks = [InferTask(i, prompt, 4) for i in range(2)]
    for task in tasks:
        task.bind_kvcache(large.create_kv_cache())
    for task, token in zip(tasks, large.batch_infer_one_round(tasks), strict=True):
        task.next(token)
        task.bind_kvcache(task.kvcache(), 100)
    clock = time.perf_counter()
    wanted = large.batch_infer_one_round(tasks[:1])
    seconds = time.perf_counter() - clock
    task = tasks[1]
    with interrupted(seconds / 4):
        large.batch_infer_one_round([task])
    cache = task.kvcache()
    assert cache.length == cache.num_matched(task.sequence) == len(cache.tokens) == 100 and task.pending_position is None
    with pytest.raises(ValueError, match=r"^pos: expected at most 100"):
        task.bind_kvcache(cache, 101)
    assert large.batch_infer_one_round([task]) == wanted
    assert (task.pending_position, task.pending_confidence) == (tasks[0].pending_position, tasks[0].pending_confidence)
    assert cache.length == 1704 and np.array_equal(cache.tokens, task.sequence)
