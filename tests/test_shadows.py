"""Shadows: the last rows of a request, which stand for others of its rows and see what those see, but not them."""
from __future__ import annotations

import time
from typing import NamedTuple

import folders
import numpy as np
import pytest
from interrupts import interrupted, large_model
from slots import BACKENDS, BUILDS, FAR, numbers, scattered

from llada_native import LLaDAForCausalLM

MASK = 58
HEADS = [{"n_kv_heads": 4}, {"n_kv_heads": 2}, {"d_model": 80, "n_heads": 2, "n_kv_heads": 1}]
SEES = "sees", "sees its twin", "sees no shadow", "sees only its own shadow", "ordinary rows see shadows"


class Request(NamedTuple):
    tokens: np.ndarray  # [ordinary + shadows]
    slots: np.ndarray  # [ordinary]
    places: np.ndarray  # [ordinary + shadows]
    twins: np.ndarray  # [shadows]
    cache: object = None

    @property
    def plain(self):
        """Without the shadows."""
        return self._replace(tokens=self.tokens[:len(self.slots)], places=self.places[:len(self.slots)], twins=numbers([]))


def arrays(requests):
    """tokens, lengths, slots, places, twins as a backend takes them."""
    slots = [np.append(r.slots, np.full(len(r.twins), -1)) for r in requests]
    twins = [np.append(np.full(len(r.slots), -1), r.twins) for r in requests]
    lengths = numbers([len(r.tokens) for r in requests])
    parts = ([r.tokens for r in requests], slots, [r.places for r in requests], twins)
    tokens, slots, places, twins = (numbers(np.concatenate(part)) for part in parts)
    return tokens, lengths, slots, places, twins


def hidden(backend, *requests, rows=None):
    """Final-norm output for each request, cut where they meet."""
    tokens, lengths, slots, places, twins = arrays(requests)
    rows = np.arange(len(tokens), dtype=np.int32) if rows is None else numbers(rows)
    out = backend.hidden(tokens, lengths, rows, None, [r.cache for r in requests], slots, places, twins)
    return np.split(out, np.searchsorted(rows, np.cumsum(lengths)[:-1]))


def logits(backend, request):
    states, = hidden(backend, request)
    out = np.empty((len(states), backend.config.vocabulary), np.float32)
    backend.head(states, 0, out.shape[1], out)
    return out


def engine_of(folder, backend, isa=None):
    return LLaDAForCausalLM.from_pretrained(folder, backend=backend, isa=isa, num_threads=1)._backend


@pytest.fixture(scope="module")
def engines(tiny):
    return {name: engine_of(tiny[0], name) for name in BACKENDS}


@pytest.fixture(params=BACKENDS)
def engine(request, engines):
    return engines[request.param]


def same(backend, found, wanted):
    """Bit for bit, but for NumPy's products in float64, whose sums depend on the shape."""
    return np.allclose(found, wanted, rtol=0, atol=1e-12) if backend.name == "reference" else np.array_equal(found, wanted)


# ---- requests


def block(rng, length, shadows, begin):
    """A whole sequence whose block [begin, begin + shadows) has shadows, as WINO asks for."""
    places = np.append(np.arange(length), begin + np.arange(shadows))
    tokens = np.append(rng.integers(0, 64, length), np.full(shadows, MASK))
    return Request(tokens, np.arange(length), places, begin + np.arange(shadows))


def drawn(rng, length, shadows):
    """Some slots of a cache of this length, and shadows of any slots anywhere."""
    slots = scattered(rng, length)
    held = max(length, int(slots[-1]) + 1)
    rows = len(slots) + shadows
    return Request(rng.integers(0, 64, rows), slots, rng.integers(0, 400, rows), rng.integers(0, held, shadows))


class Plan:
    """Random passes over one cache."""

    def __init__(self, seed, passes, most=9):
        rng, length = np.random.default_rng(seed), 0
        self.passes = []
        for _ in range(passes):
            self.passes.append(drawn(rng, length, int(rng.integers(0, most))))
            length = max(length, int(self.passes[-1].slots[-1]) + 1)

    def run(self, backend, *others, dtype="float32", plain=False):
        """Every pass, behind other requests; its rows of each."""
        cache, found = backend.create_kv_cache(dtype), []
        for request in self.passes:
            request = (request.plain if plain else request)._replace(cache=cache)
            found.append(hidden(backend, *others, request)[-1])
        return found


# ---- against the definition


class Oracle:
    """One request in float64 from Hugging Face tensor names, its mask written out. It shares no code with the package.

    It remembers the keys and values of the slots, rounded to `cache`; `sees` names the rule or a mistake in it.
    """

    def __init__(self, tensors, config, cache=np.float64, sees="sees"):
        self.w = {name.removeprefix("model.transformer."): t.astype(np.float64) for name, t in tensors.items()}
        self.config, self.cache, self.sees = config, cache, sees
        self.store = [{} for _ in range(config["n_layers"])]  # slot -> (key, value), each [kv_heads, head_dim]

    def mask(self, keys, ordinary, twins):
        """What each row sees of `keys` slots and, behind them, of the shadows: [ordinary + shadows, keys + shadows]"""
        row, key = np.arange(ordinary + len(twins))[:, None], np.arange(keys + len(twins))
        is_twin = key == np.append(np.full(ordinary, -1), twins)[:, None]
        sees_shadow = {"sees no shadow": False, "sees only its own shadow": row - ordinary == key - keys}.get(self.sees, True)
        sees_shadow = np.where(row >= ordinary, sees_shadow, self.sees == "ordinary rows see shadows")
        return np.where(key >= keys, sees_shadow, ~is_twin | (self.sees == "sees its twin"))

    def __call__(self, request):
        """Logits [rows, vocabulary]"""
        c, w, n, ordinary = self.config, self.w, len(request.tokens), len(request.slots)
        dim = c["d_model"] // c["n_heads"]
        angle = np.float32(request.places)[:, None] * np.float32(c["rope_theta"] ** (-np.arange(0, dim, 2) / dim))
        turn = np.exp(1j * angle.astype(np.float64))[:, None]  # [rows, 1, dim / 2]

        def norm(x, name):
            return x / np.sqrt((x * x).mean(1, keepdims=True) + c["rms_norm_eps"]) * w[name]

        def rope(x):
            turned = (x[..., :dim // 2] + 1j * x[..., dim // 2:]) * turn
            return np.concatenate([turned.real, turned.imag], 2)

        x = w["wte.weight"][request.tokens]
        for i, store in enumerate(self.store):
            h = norm(x, f"blocks.{i}.attn_norm.weight")
            q, k, v = ((h @ w[f"blocks.{i}.{name}_proj.weight"].T).reshape(n, -1, dim) for name in "qkv")
            q, k = rope(q), rope(k)
            k, v = (each.astype(self.cache).astype(np.float64) for each in (k, v))
            store.update(zip(request.slots.tolist(), zip(k, v, strict=False), strict=False))
            seen = [*(store[slot] for slot in range(len(store))), *zip(k[ordinary:], v[ordinary:], strict=True)]
            k, v = (np.repeat(np.stack(each), c["n_heads"] // c["n_kv_heads"], 1) for each in zip(*seen, strict=True))
            scores = np.einsum("rhd,khd->hrk", q, k) / np.sqrt(dim)
            weights = np.exp(scores) * self.mask(len(store), ordinary, request.twins)
            attended = np.einsum("hrk,khd->rhd", weights / weights.sum(2, keepdims=True), v).reshape(n, -1)
            x = x + attended @ w[f"blocks.{i}.attn_out.weight"].T
            h = norm(x, f"blocks.{i}.ff_norm.weight")
            gate, up = (h @ w[f"blocks.{i}.{name}_proj.weight"].T for name in ("ff", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"blocks.{i}.ff_out.weight"].T
        return norm(x, "ln_f.weight") @ w["ff_out.weight"].T


def close(found, wanted):
    return np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.fixture(scope="module", params=HEADS, ids=str)
def model(request, tmp_path_factory):
    """(folder, config, tensors), with every key-value head shared by some queries and by none."""
    config = folders.config(**request.param)
    tensors = folders.tensors(config, 5)
    return folders.write(tmp_path_factory.mktemp("shadows") / "model", config, tensors), config, tensors


# Slots and shadows around the edges of a block of 128 keys, and a shadow that sees nothing but itself.
SIZES = [(1, 1), (1, 3), (2, 2), (20, 8), (64, 32), (126, 1), (126, 2), (126, 3), (127, 1), (127, 2), (128, 1), (128, 8), (129, 1),
         (129, 129), (160, 32), (255, 1), (256, 1), (257, 32)]


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
def test_a_block_of_shadows_against_the_oracle(model, backend, isa):
    folder, config, tensors = model
    engine, rng = engine_of(folder, backend, isa), np.random.default_rng(0)
    for length, shadows in SIZES:
        for begin in {0, length - shadows, (length - shadows) // 2}:
            request = block(rng, length, shadows, max(0, begin))
            request = request._replace(twins=request.twins % length)
            assert close(logits(engine, request), Oracle(tensors, config)(request)), (length, shadows, begin)


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
def test_shadows_beside_a_cache_against_the_oracle(model, backend, isa):
    """Slots with gaps, twins that only the cache holds, any places."""
    folder, config, tensors = model
    engine, oracle = engine_of(folder, backend, isa), Oracle(tensors, config)
    cache = engine.create_kv_cache()
    for request in Plan(1, 25).passes:
        assert close(logits(engine, request._replace(cache=cache)), oracle(request))
        assert cache.length == len(oracle.store[0])
    assert cache.length > 128


def test_float16_caches_round_shadows(model):
    """The reference exactly as the oracle rounds; the engine, in float32, but for a unit of float16 here and there."""
    folder, config, tensors = model
    engine, reference = engine_of(folder, "native"), engine_of(folder, "reference")
    for request in (drawn(np.random.default_rng(2), 0, 9), block(np.random.default_rng(2), 90, 40, 50)):
        rounded, exact = Oracle(tensors, config, np.float16)(request), Oracle(tensors, config)(request)
        loss = np.abs(rounded - exact)[len(request.slots):].max()
        found = [logits(each, request._replace(cache=each.create_kv_cache("float16"))) for each in (reference, engine)]
        assert loss > 1e-5 and np.abs(found[0] - rounded).max() < 1e-6 and np.abs(found[1] - rounded).max() < loss / 2


@pytest.mark.parametrize("mistake", SEES[1:])
def test_a_mistake_would_be_seen(model, mistake):
    folder, config, tensors = model
    engine = engine_of(folder, "native")
    for length, shadows in ((20, 8), (160, 32)):
        request = block(np.random.default_rng(0), length, shadows, length - shadows)
        assert not close(logits(engine, request), Oracle(tensors, config, sees=mistake)(request))


@pytest.mark.parametrize(("backend", "isa"), [*BUILDS, ("placeholder", None)])
def test_a_shadow_sees_all_but_its_twin(backend, isa):
    """In one layer; in more of them, others tell what they saw of the twin. Tokens 12 and 13 are shadows of 5 and 9."""
    engine = LLaDAForCausalLM.random(folders.config(n_layers=1, n_kv_heads=2), "float32", isa=isa, num_threads=1, backend=backend)._backend
    whole = block(np.random.default_rng(3), 12, 2, 5)._replace(twins=numbers([5, 9]))
    found, = hidden(engine, whole)
    for change in range(14):
        tokens = whole.tokens.copy()
        tokens[change] = (tokens[change] + 1) % 60
        other, = hidden(engine, whole._replace(tokens=tokens))
        unchanged = {5: [12], 9: [13], 12: range(12), 13: range(12)}.get(change, [])
        assert [row for row in range(14) if np.array_equal(other[row], found[row])] == list(unchanged)


# ---- rows depend on their request alone, and not on its shadows


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_other_rows_and_caches_are_what_they_are_without_shadows(isa, weights):
    """A cache shows what it holds in the passes that follow."""
    size = {"n_kv_heads": 2} if weights != "int4" else {"d_model": 128, "mlp_hidden_size": 128, "n_kv_heads": 2}
    without_trace(LLaDAForCausalLM.random(folders.config(**size), weights, isa=isa, num_threads=2)._backend)


@pytest.mark.parametrize("backend", ["reference", "placeholder"])
def test_other_rows_and_caches_are_what_they_are_without_shadows_in_other_backends(engines, backend):
    without_trace(engines[backend])


def without_trace(backend):
    for dtype in ("float32", "float16"):
        plan = Plan(4, 30, most=40)
        runs = (plan.run(backend, dtype=dtype, plain=plain) for plain in (False, True))
        for request, found, wanted in zip(plan.passes, *runs, strict=True):
            assert len(found) == len(wanted) + len(request.twins)
            assert same(backend, found[:len(wanted)], wanted), dtype
        assert max(request.slots[-1] for request in plan.passes) > 128
    for length, shadows in SIZES:
        request = block(np.random.default_rng(length), length, min(length, shadows), length - min(length, shadows))
        assert same(backend, hidden(backend, request)[0][:length], hidden(backend, request.plain)[0])


@pytest.mark.parametrize("size", HEADS, ids=str)
def test_rows_are_bit_identical(isa, size):
    """Alone, beside requests with and without shadows and caches of both kinds, and on 1, 2 and 3 threads."""
    model = LLaDAForCausalLM.random(folders.config(**size), "float32", isa=isa, num_threads=1)
    backend, rng = model._backend, np.random.default_rng(6)
    plan, free = Plan(7, 10, most=40), block(rng, 140, 32, 100)
    alone = {dtype: plan.run(backend, dtype=dtype) for dtype in ("float32", "float16")}
    alone_free, = hidden(backend, free)
    for threads in (1, 2, 3):
        model.num_threads = threads
        caches = [backend.create_kv_cache(dtype) for dtype in ("float32", "float16")]
        for cache in caches:
            hidden(backend, block(rng, 50, 1, 0)._replace(cache=cache))
        others = [free, block(rng, 41, 7, 3), block(rng, 9, 0, 0), *(drawn(rng, 50, 5)._replace(cache=cache) for cache in caches)]
        for around in ((), others, others[::-1]):
            for dtype, wanted in alone.items():
                for found, rows in zip(plan.run(backend, *around, dtype=dtype), wanted, strict=True):
                    assert np.array_equal(found, rows), f"{dtype}, {threads} threads, {len(around)} others"
        assert np.array_equal(hidden(backend, *others)[0], alone_free)


def test_selected_rows_are_the_rows(engine):
    """Only shadows, only others, some of both, none: nothing changes, not in the caches either."""
    rng = np.random.default_rng(8)
    requests = [block(rng, 30, 8, 10), drawn(rng, 0, 5), block(rng, 5, 0, 0)]
    total = sum(len(r.tokens) for r in requests)
    after = block(rng, 3, 2, 0)

    def run(rows):
        caches = [engine.create_kv_cache() for _ in requests]
        found = hidden(engine, *(r._replace(cache=c) for r, c in zip(requests, caches, strict=True)), rows=rows)
        return np.concatenate(found), hidden(engine, *(after._replace(cache=c) for c in caches))

    whole, later = run(None)
    for rows in (range(30, 38), range(30), [3, 29, 30, 37, 38], [total - 6], [total - 1], [31], []):
        found, again = run(rows)
        assert np.array_equal(found, whole[numbers(rows)])
        assert all(np.array_equal(one, other) for one, other in zip(again, later, strict=True))


def test_without_places_shadows_stand_at_the_slots_of_their_twins(engine):
    """Also where positions stand for slots, behind a cache, beside a request that has no shadows."""
    rng = np.random.default_rng(9)
    tokens, twins = numbers(rng.integers(0, 60, 12)), numbers([-1, -1, -1, -1, 9, 5, 0, 9, -1, -1, -1, -1])
    slots = numbers([6, 7, 8, 9, -1, -1, -1, -1, 0, 1, 2, 3])
    lengths, rows = numbers([8, 4]), np.arange(12, dtype=np.int32)

    def run(positions, slots, places):
        cache = engine.create_kv_cache()
        hidden(engine, block(np.random.default_rng(0), 8, 0, 0)._replace(cache=cache))
        found = engine.hidden(tokens, lengths, rows, positions, [cache, None], slots, places, twins)
        assert cache.length == 10
        return np.concatenate([found, *hidden(engine, block(np.random.default_rng(1), 4, 2, 1)._replace(cache=cache))])

    wanted = run(None, slots, np.where(twins < 0, slots, twins).astype(np.int32))
    assert np.array_equal(run(None, slots, None), wanted)
    assert np.array_equal(run(numbers([6, 0]), None, None), wanted)
    assert np.array_equal(run(numbers([6, 0]), None, np.where(twins < 0, slots, twins).astype(np.int32)), wanted)
    assert not np.array_equal(run(None, slots, numbers(np.where(twins < 0, slots, twins + 1)))[4:8], wanted[4:8])


def test_no_shadows_among_twins(engine):
    request = block(np.random.default_rng(10), 40, 0, 0)
    tokens, lengths, slots, places, twins = arrays([request])
    rows = np.arange(40, dtype=np.int32)
    assert np.array_equal(engine.hidden(tokens, lengths, rows, None, None, slots, places, twins), engine.hidden(tokens, lengths, rows))


def test_a_cache_does_not_grow_from_pass_to_pass(isa):
    """It makes room for the shadows, once."""
    backend = LLaDAForCausalLM.random(folders.config(), "float32", isa=isa, num_threads=1)._backend
    for dtype in ("float32", "float16"):
        cache = backend.create_kv_cache(dtype)
        request = block(np.random.default_rng(11), 120, 32, 80)._replace(cache=cache)
        hidden(backend, request)
        held, workspace = cache.bytes, backend.workspace_bytes
        assert cache.length == 120 and held >= 152 * cache.bytes_per_token
        for _ in range(5):
            hidden(backend, request)
        assert (cache.length, cache.bytes, backend.workspace_bytes) == (120, held, workspace)


# ---- NaN


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder with one layer, in whose embedding token 7 is NaN."""
    config = folders.config(n_layers=1, n_kv_heads=2)
    tensors = folders.tensors(config)
    tensors["model.transformer.wte.weight"][7] = np.nan
    return folders.write(tmp_path_factory.mktemp("damaged") / "model", config, tensors)


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_nan_reaches_those_who_see_it(damaged, backend, isa, dtype):
    engine = engine_of(damaged, backend, isa)
    for length, twin in ((1, 0), (2, 0), (20, 5), (127, 126), (128, 0), (128, 127), (129, 128), (200, 100), (256, 255)):
        whole = block(np.random.default_rng(length), length, 1, twin)
        whole = whole._replace(tokens=np.where(whole.tokens == 7, 8, whole.tokens))

        def run(where, whole=whole):
            cache = None if dtype is None else engine.create_kv_cache(dtype)
            tokens = whole.tokens.copy()
            tokens[where] = 7
            found, = hidden(engine, whole._replace(tokens=tokens, cache=cache))
            later = None if cache is None else hidden(engine, block(np.random.default_rng(0), 1, 0, 0)._replace(cache=cache))[0]
            return np.isnan(found).all(1), found, later

        _, good, good_later = run([])
        assert np.isfinite(good).all()
        lost, found, _ = run([twin])
        assert lost[:length].all() and not lost[length] and same(engine, found[length], good[length]), "the twin's not the shadow"
        lost, found, later = run([length])
        assert lost[length] and same(engine, found[:length], good[:length]), "the shadow's stays there"
        assert later is None or same(engine, later, good_later), "and not in the cache"
        if length > 1:
            assert run([(twin + 1) % length])[0].all(), "another's reaches all"


# ---- refusals and failures


SHADOWS = " (shadows are the last rows of a request), found "
SEEN = " (a slot that its request sees), found "
FIRST = " (a request does not begin with a shadow), found "


@pytest.mark.parametrize(("change", "message"), [
    ({"twins": [-1, -1, -1, 4]}, "twins: expected one for each of 5 tokens, found 4"),
    ({"twins": []}, "twins: expected one for each of 5 tokens, found 0"),
    ({"twins": [0, 0, 0, 4, 5]}, "twins[0]: expected -1" + FIRST + "0"),
    ({"twins": [-2, -1, -1, -1, -1]}, "twins[0]: expected -1" + FIRST + "-2"),
    ({"lengths": [3, 2], "slots": [4, 9, 20, 0, 1]}, "twins[3]: expected -1" + FIRST + "4"),
    ({"twins": [-1, -1, -1, 4, -1]}, "twins[4]: expected 0 to 20" + SHADOWS + "-1"),
    ({"slots": [4, -1, -1, 9, 20], "twins": [-1, 4, -1, -1, -1]}, "twins[2]: expected 0 to 19" + SHADOWS + "-1"),
    ({"twins": [-1, -1, -1, 4, 21]}, "twins[4]: expected 0 to 20" + SEEN + "21"),
    ({"twins": [-1, -1, -1, -2, 5]}, "twins[3]: expected 0 to 20" + SEEN + "-2"),
    ({"twins": [-1, -1, -1, 2**31 - 1, 5]}, f"twins[3]: expected 0 to 20{SEEN}{2**31 - 1}"),
    ({"twins": [-1, -1, -1, -2**31, 5]}, f"twins[3]: expected 0 to 20{SEEN}{-2**31}"),
    ({"slots": [4, 9, 19, -1, -1], "twins": [-1, -1, -1, 20, 19]}, "twins[3]: expected 0 to 19" + SEEN + "20"),
    ({"slots": None, "positions": [4], "twins": [-1, -1, -1, 19, 20]}, "twins[4]: expected 0 to 19" + SEEN + "20"),
    ({"slots": [4, 9, 20, 21, -1]}, "slots[3]: expected -1 (of a shadow), found 21"),
    ({"slots": [4, 9, 20, -1, 4]}, "slots[4]: expected -1 (of a shadow), found 4"),
    ({"slots": [4, 9, 20, -1, -2]}, "slots[4]: expected -1 (of a shadow), found -2"),
    ({"slots": [4, 9, -1, -1, -1]},
     "slots[2]: expected 10 to 20 (ascending, and without a gap behind what its cache holds), found -1"),
    ({"places": [4, 9, 20, -1, 5]}, f"places[3]: expected 0 to {FAR - 1}, found -1"),
    ({"places": [4, 9, 20, 4, FAR]}, f"places[4]: expected 0 to {FAR - 1}, found {FAR}"),
    ({"tokens": [1, 2, 3, 58, 64]}, "tokens[4]: expected 0 to 63, found 64"),
    ({"rows": [0, 5]}, "rows[1]: expected ascending rows below 5, found 5"),
], ids=lambda x: str(x)[:60])
def test_bad_shadows(engine, change, message):
    """Refused before anything is written: the cache, of 20 positions, answers as one that was not there."""
    arguments = {"tokens": [1, 2, 3, 58, 58], "lengths": [5], "rows": [0, 4], "positions": None, "slots": [4, 9, 20, -1, -1],
                 "places": [4, 9, 20, 4, 9], "twins": [-1, -1, -1, 4, 9]}
    caches = [engine.create_kv_cache() for _ in range(2)]
    for cache in caches:
        hidden(engine, block(np.random.default_rng(0), 20, 0, 0)._replace(cache=cache))
    held = caches[0].bytes
    given = {name: None if value is None else numbers(value) for name, value in (arguments | change).items()}
    with pytest.raises(ValueError) as error:
        engine.hidden(caches=[caches[0], None][:len(given["lengths"])], **given)
    assert str(error.value) == message
    assert caches[0].length == 20 and caches[0].bytes == held
    after = block(np.random.default_rng(1), 8, 3, 2)
    one, other = (hidden(engine, after._replace(cache=cache))[0] for cache in caches)
    assert np.array_equal(one, other)
    good = {name: None if value is None else numbers(value) for name, value in arguments.items()}
    assert len(engine.hidden(caches=[caches[0]], **good)) == 2


def test_twins_of_another_type(engines):
    for wrong in (np.array([-1, 0], np.int64), [-1, 0], np.array([-1.0, 0.0]), np.full(4, -1, np.int32)[::2], "-0"):
        with pytest.raises((TypeError, ValueError)):
            engines["native"].hidden(numbers([1, 2]), numbers([2]), numbers([0]), None, None, None, None, wrong)


def test_an_interrupted_forward_leaves_what_is_before_its_first_slot():
    """And nothing of the shadows."""
    model = large_model()
    backend, whole = model._backend, block(np.random.default_rng(12), 1000, 300, 600)
    for dtype in ("float32", "float16"):
        caches = [backend.create_kv_cache(dtype) for _ in range(2)]
        for cache in caches:
            hidden(backend, whole.plain._replace(cache=cache), rows=[])
        kept = np.append(np.arange(101, 1000, 2), np.arange(1000, 1300))
        some = Request(whole.tokens[kept], numbers(range(101, 1000, 2)), whole.places[kept], whole.twins)
        clock = time.perf_counter()
        hidden(backend, some._replace(cache=caches[1]))
        seconds = time.perf_counter() - clock
        with interrupted(seconds / 4):
            hidden(backend, some._replace(cache=caches[0]))
        assert caches[0].length == 101 and caches[1].length == 1000
        caches[1].truncate(101)
        rest = Request(whole.tokens[101:], numbers(range(101, 1000)), whole.places[101:], whole.twins)
        one, other = (hidden(backend, rest._replace(cache=cache), rows=[0, 700, 898, 1198])[0] for cache in caches)
        assert np.array_equal(one, other)


def test_a_failure_of_the_reference_leaves_what_is_before_its_first_slot(tiny, monkeypatch):
    engine = engine_of(tiny[0], "reference")
    cache = engine.create_kv_cache()
    hidden(engine, block(np.random.default_rng(0), 20, 0, 0)._replace(cache=cache))
    usual = engine.weight
    monkeypatch.setattr(engine, "weight", lambda role, layer=-1: 1 / 0 if (role, layer) == ("up_proj", 1) else usual(role, layer))
    with pytest.raises(ZeroDivisionError):
        hidden(engine, Request(numbers([1, 2, MASK]), numbers([6, 20]), numbers([6, 20, 6]), numbers([6]), cache))
    assert cache.length == 6
