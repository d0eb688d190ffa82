"""Rows with gaps: where the keys and values of each row lie in a request's cache, and the position of each for RoPE."""
from __future__ import annotations

import time

import folders
import numpy as np
import oracle
import pytest
from interrupts import interrupted, large_model
from slots import BACKENDS, BUILDS, FAR, Plan, hidden, logits, numbers, scattered

from llada_native import LLaDAForCausalLM


@pytest.fixture(scope="module")
def engines(tiny):
    return {name: LLaDAForCausalLM.from_pretrained(tiny[0], backend=name, num_threads=1)._backend for name in BACKENDS}


@pytest.fixture(params=BACKENDS)
def engine(request, engines):
    return engines[request.param]


# ---- against the older call


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_slots_without_gaps_are_positions(isa, dtype):
    """Bit for bit: appended, replaced, beside a request without a cache, and with the places said."""
    model = LLaDAForCausalLM.random(folders.config(n_kv_heads=2), dtype, isa=isa, num_threads=2)
    same_as_positions(model._backend)


@pytest.mark.parametrize("backend", ["reference", "placeholder"])
def test_slots_without_gaps_are_positions_in_other_backends(engines, backend):
    same_as_positions(engines[backend])


def same_as_positions(backend):
    rng = np.random.default_rng(3)
    caches = [[backend.create_kv_cache() for _ in range(2)] for _ in range(3)]
    for _ in range(25):
        starts = numbers([*(rng.integers(0, c.length + 1) for c in caches[0]), 0])
        lengths = rng.integers(1, 40, 3).astype(np.int32)
        tokens = rng.integers(0, 60, lengths.sum()).astype(np.int32)
        rows = np.flatnonzero(rng.random(len(tokens)) < 0.5).astype(np.int32)
        slots = np.concatenate([start + np.arange(n, dtype=np.int32) for start, n in zip(starts, lengths, strict=True)])
        wanted = backend.hidden(tokens, lengths, rows, starts, [*caches[0], None])
        assert np.array_equal(backend.hidden(tokens, lengths, rows, None, [*caches[1], None], slots), wanted)
        assert np.array_equal(backend.hidden(tokens, lengths, rows, starts, [*caches[2], None], None, slots), wanted)
        assert [c.length for c in caches[0]] == [c.length for c in caches[1]] == [c.length for c in caches[2]]
    assert caches[0][0].length > 64


# ---- against the oracle


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
def test_places_are_the_positions_of_rope(tiny, backend, isa):
    folder, config, tensors = tiny
    engine = LLaDAForCausalLM.from_pretrained(folder, isa=isa, backend=backend)._backend
    rng = np.random.default_rng(4)
    for places in (np.arange(30) + 7, np.sort(rng.choice(500, 30, replace=False)), np.repeat(np.arange(10), 3),
                   rng.permutation(30), np.append(np.arange(29), 100_000)):
        tokens = rng.integers(0, 64, 30)
        wanted = oracle.forward(tensors, config, tokens, places=places)
        assert np.abs(logits(engine, tokens, np.arange(30), places) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_place_concerns_all_who_see_it(engine):
    """Of a row in the pass, and of one that only the cache holds."""
    caches, states = [engine.create_kv_cache() for _ in range(2)], []
    for cache, place in zip(caches, (3, 70), strict=True):
        first, = hidden(engine, ([5, 6, 7], [0, 1, 2], [0, place, 9], cache))
        later, = hidden(engine, ([8], [3], [20], cache))
        states.append((first[0], first[2], later[0]))
    for one, other in zip(*states, strict=True):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
def test_scattered_slots_against_the_oracle(tiny, backend, isa):
    """In two layers, keys carry what they saw when they were computed."""
    folder, config, tensors = tiny
    engine = LLaDAForCausalLM.from_pretrained(folder, isa=isa, backend=backend)._backend
    cache, store = engine.create_kv_cache(), [{} for _ in range(config["n_layers"])]
    for tokens, slots, places, keep in Plan(5, 30).passes:
        wanted = oracle.forward(tensors, config, tokens, places=places, store=store, slots=slots)
        found = logits(engine, tokens, slots, places, cache)
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
        assert cache.length == len(store[0])
        if keep is not None:
            cache.truncate(keep)
            store = [{slot: pair for slot, pair in layer.items() if slot < keep} for layer in store]
    assert cache.length > 64


def test_scattered_slots_equal_the_reference(engines):
    native, reference = (Plan(6, 40).run(engines[name], ([1, 2, 3], [0, 1, 2], None, None)) for name in ("native", "reference"))
    for found, wanted in zip(native, reference, strict=True):
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("backend", "isa"), [*BUILDS, ("placeholder", None)])
def test_stale_keys_of_one_layer_are_fresh(backend, isa):
    """Keys and values of a first layer depend on token and place only: every pass equals its rows of one without a cache, bit for bit
    in the engine."""
    model = LLaDAForCausalLM.random(folders.config(n_layers=1, n_kv_heads=2), "float32", isa=isa, num_threads=1, backend=backend)
    engine, cache, rng = model._backend, model._backend.create_kv_cache(), np.random.default_rng(7)
    held, where = np.empty(0, int), np.empty(0, int)
    for _ in range(30):
        slots = scattered(rng, len(held))
        grown = max(len(held), int(slots[-1]) + 1)
        held, where = np.resize(held, grown), np.resize(where, grown)
        held[slots], where[slots] = rng.integers(0, 60, len(slots)), rng.integers(0, 300, len(slots))
        found, = hidden(engine, (held[slots], slots, where[slots], cache))
        wanted = hidden(engine, (held, np.arange(grown), where, None))[0][slots]
        assert np.allclose(found, wanted, rtol=0, atol=1e-12) if backend == "reference" else np.array_equal(found, wanted)
    assert cache.length == grown > 64


# ---- rows depend on their request alone


@pytest.mark.parametrize("size", [{"d_model": 32, "n_heads": 4, "n_kv_heads": 2}, {"d_model": 80, "n_heads": 2, "n_kv_heads": 1}], ids=str)
def test_rows_with_gaps_are_bit_identical(isa, size):
    """Alone, behind other requests with and without caches, and on 1, 2 and 3 threads."""
    model = LLaDAForCausalLM.random(folders.config(**size), "float32", isa=isa, num_threads=1)
    backend, plan = model._backend, Plan(8, 12)
    alone = plan.run(backend)
    for threads in (1, 2, 3):
        model.num_threads = threads
        beside = backend.create_kv_cache()
        hidden(backend, (np.arange(50), np.arange(50), None, beside))
        others = [(np.arange(41), np.arange(41), np.arange(41) * 3, None), ([5, 6, 7], [3, 17, 49], [9, 8, 7], beside)]
        for around in ((), others, others[::-1]):
            for found, wanted in zip(plan.run(backend, *around), alone, strict=True):
                assert np.array_equal(found, wanted), f"{threads} threads, {len(around)} others"


def test_selected_rows_with_gaps_are_the_rows(engine):
    """The rows that are asked for change nothing, not in the cache either: none, some, all."""
    rng = np.random.default_rng(9)
    tokens, slots, places = rng.integers(0, 60, 20), np.sort(rng.choice(45, 20, replace=False)), rng.permutation(100)[:20]
    slots[-4:] = 44 + np.arange(4)
    caches = [engine.create_kv_cache() for _ in range(4)]
    for cache in caches:
        hidden(engine, (np.arange(45) % 60, np.arange(45), None, cache))
    first = (tokens, slots, places)
    whole, = hidden(engine, (*first, caches[0]))
    after, = hidden(engine, ([1, 2], [0, 48], [70, 71], caches[0]))
    for cache, rows in zip(caches[1:], ([], [3, 4, 11, 19], [19]), strict=True):
        found, = hidden(engine, (*first, cache), rows=rows)
        assert np.array_equal(found, whole[rows]) and cache.length == 48
        assert np.array_equal(hidden(engine, ([1, 2], [0, 48], [70, 71], cache))[0], after)


# ---- refusals and failures


@pytest.mark.parametrize(("slots", "where", "message"), [
    ([3, 3, 4], 1, "slots[1]: expected 4 to 20 (ascending, and without a gap behind what its cache holds), found 3"),
    ([9, 2], 1, "slots[1]: expected 10 to 20 (ascending, and without a gap behind what its cache holds), found 2"),
    ([-1, 2], 0, "slots[0]: expected 0 to 20 (ascending, and without a gap behind what its cache holds), found -1"),
    ([21], 0, "slots[0]: expected 0 to 20 (ascending, and without a gap behind what its cache holds), found 21"),
    ([4, 20, 22], 2, "slots[2]: expected 21 to 21 (ascending, and without a gap behind what its cache holds), found 22"),
    ([4, 2**31 - 1], 1, "slots[1]: expected 5 to 20 (ascending, and without a gap behind what its cache holds), found 2147483647"),
])
def test_bad_slots(engine, slots, where, message):
    refused(engine, message, lambda cache: hidden(engine, ([1] * len(slots), slots, [0] * len(slots), cache)))
    shifted = message.replace(f"slots[{where}]", f"slots[{where + 3}]")
    refused(engine, shifted, lambda cache: hidden(engine, ([1] * 3, range(3), None, None), ([1] * len(slots), slots, None, cache)))


@pytest.mark.parametrize("place", [-1, -2**31, FAR, 2**31 - 1])
def test_bad_places(engine, place):
    message = f"places[2]: expected 0 to {FAR - 1}, found {place}"
    refused(engine, message, lambda cache: hidden(engine, ([1, 2, 3], [2, 5, 9], [1, 1, place], cache)))
    refused(engine, message, lambda _: hidden(engine, ([1, 2, 3], [0, 1, 2], [1, 1, place], None)))


@pytest.mark.parametrize(("change", "message"), [
    ({"positions": [4]}, "positions: expected none beside slots, found some"),
    ({"positions": [0]}, "positions: expected none beside slots, found some"),
    ({"slots": [4, 5]}, "slots: expected one for each of 3 tokens, found 2"),
    ({"slots": []}, "slots: expected one for each of 3 tokens, found 0"),
    ({"places": [4, 5, 6, 7]}, "places: expected one for each of 3 tokens, found 4"),
    ({"places": []}, "places: expected one for each of 3 tokens, found 0"),
    ({"slots": None, "positions": [21]}, "positions[0]: expected 0 to 20 (what its cache holds), found 21"),
    ({"slots": None, "positions": [1, 2]}, "positions: expected one for each of 1 requests, found 2"),
    ({"lengths": [2]}, "lengths: expected a sum of 3 tokens, found 2"),
    ({"lengths": [3, 0]}, "lengths[1]: expected at least 1, found 0"),
    ({"lengths": [16_000_000, -15_999_997]}, "lengths[1]: expected at least 1, found -15999997"),
    ({"tokens": [1, 2, 64]}, "tokens[2]: expected 0 to 63, found 64"),
    ({"tokens": [1, -2, 3]}, "tokens[1]: expected 0 to 63, found -2"),
    ({"rows": [0, 3]}, "rows[1]: expected ascending rows below 3, found 3"),
    ({"rows": [1, 1]}, "rows[1]: expected ascending rows below 3, found 1"),
    ({"rows": [-1]}, "rows[0]: expected ascending rows below 3, found -1"),
], ids=lambda x: str(x)[:40])
def test_bad_arguments_beside_slots(engine, change, message):
    arguments = {"tokens": [1, 2, 3], "lengths": [3], "rows": [0, 2], "positions": None, "slots": [4, 9, 20], "places": [4, 9, 20]} | change
    arrays = {name: None if value is None else numbers(value) for name, value in arguments.items()}
    refused(engine, message, lambda cache: engine.hidden(caches=[cache] * len(arguments["lengths"]), **arrays))


def test_a_request_without_a_cache_has_no_gaps(engine):
    for slots, message in (([1, 2], "slots[0]: expected 0 to 0 "), ([0, 2], "slots[1]: expected 1 to 1 ")):
        with pytest.raises(ValueError) as error:
            hidden(engine, ([1, 2], slots, None, None))
        assert str(error.value).startswith(message)


def test_slots_of_another_type(engines):
    for wrong in (np.array([4, 5], np.int64), [4, 5], np.array([4.0, 5.0]), np.arange(4, dtype=np.int32)[::2], "45"):
        refused(engines["native"], None, lambda cache, wrong=wrong: engines["native"].hidden(
            numbers([1, 2]), numbers([2]), numbers([0]), None, [cache], wrong), (TypeError, ValueError))


def refused(engine, message, call, kinds=ValueError):
    """The call raises; the cache, which holds 20 positions, answers as one that was not there."""
    caches = [engine.create_kv_cache() for _ in range(2)]
    for cache in caches:
        hidden(engine, (np.arange(20), np.arange(20), None, cache))
    held = caches[0].bytes
    with pytest.raises(kinds) as error:
        call(caches[0])
    assert message is None or str(error.value) == message
    assert caches[0].length == 20 and caches[0].bytes == held
    one, other = (hidden(engine, ([7, 8], [3, 20], [3, 30], cache))[0] for cache in caches)
    assert np.array_equal(one, other)


def test_an_interrupted_forward_leaves_what_is_before_its_first_slot():
    """And those keep their keys: the same slots again, and all behind them, give what a new cache gives."""
    model = large_model()
    backend, tokens = model._backend, np.random.default_rng(10).integers(0, 60, 1500)
    caches = [backend.create_kv_cache() for _ in range(2)]
    for cache in caches:
        hidden(backend, (tokens, range(1500), None, cache), rows=[])
    some = np.arange(101, 1500, 2)
    clock = time.perf_counter()
    hidden(backend, (tokens[some], some, None, caches[1]))
    seconds = time.perf_counter() - clock
    with interrupted(seconds / 4):
        hidden(backend, (tokens[some], some, None, caches[0]))
    assert caches[0].length == 101
    caches[1].truncate(101)
    one, other = (hidden(backend, (tokens[101:], range(101, 1500), None, cache), rows=[0, 700, 1398])[0] for cache in caches)
    assert np.array_equal(one, other)


def test_a_failure_of_the_reference_leaves_what_is_before_its_first_slot(tiny, monkeypatch):
    engine = LLaDAForCausalLM.from_pretrained(tiny[0], backend="reference")._backend
    caches = [engine.create_kv_cache() for _ in range(2)]
    for cache in caches:
        hidden(engine, (np.arange(20), np.arange(20), None, cache))
    usual = engine.weight
    monkeypatch.setattr(engine, "weight", lambda role, layer=-1: 1 / 0 if (role, layer) == ("up_proj", 1) else usual(role, layer))
    with pytest.raises(ZeroDivisionError):
        hidden(engine, ([1, 2], [6, 20], None, caches[0]), ([1], [9], None, caches[1]))
    assert [c.length for c in caches] == [6, 9]
