"""LLaDA2: logits against a float64 forward, routing, whole blocks of rows seen, caches that change no bit."""
from __future__ import annotations

import json
from dataclasses import replace

import folders
import llada2
import numpy as np
import pytest
import routers
from comparisons import assert_bits_in_any_company, assert_close, assert_mapped_as_packed

from llada_native import LLaDAForCausalLM, ModelConfig, _native
from llada_native.backend import tensor_specs
from llada_native.checkpoint import Checkpoint, stored_tensors, tensor_name
from llada_native.cli import main
from llada_native.loading import load_backend, weight_bytes

FORMATS = ("float32", "bfloat16", "float16", "bfloat16_fast", "int8", "int4")
LENGTHS = (1, 7, 31, 32, 33, 64, 100, 128)

MATRIX = [
    {},
    {"num_key_value_heads": 4, "partial_rotary_factor": 1.0, "n_group": 2, "topk_group": 1},
    {"num_key_value_heads": 1, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "num_hidden_layers": 2,
     "num_shared_experts": 5},  # wider than all else
    {"first_k_dense_replace": 2, "num_shared_experts": 0, "num_experts": 16, "num_experts_per_tok": 4},
    {"num_shared_experts": 2, "num_experts": 12, "n_group": 3, "topk_group": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 37},
    {"head_dim": 32, "hidden_size": 72, "num_key_value_heads": 1, "partial_rotary_factor": 0.25, "num_experts_per_tok": 1,
     "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-5},
]


@pytest.mark.parametrize("changes", MATRIX)
def test_matches_the_oracle(tmp_path, isa, changes):
    c = llada2.config(**changes)
    folder, tensors = llada2.written(tmp_path, c)
    model = LLaDAForCausalLM(folder, isa=isa)
    for n in LENGTHS:
        ids, logits = llada2.wanted(tensors, c, n)
        assert_close(model.forward(ids), logits)


@pytest.mark.parametrize("changes", MATRIX)
def test_reference_backend_matches_the_oracle(tmp_path, changes):
    c = llada2.config(**changes)
    folder, tensors = llada2.written(tmp_path, c)
    ids, logits = llada2.wanted(tensors, c, 100)
    assert_close(LLaDAForCausalLM(folder, backend="reference").forward(ids), logits, 2 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("mutation", [
    "interleaved qkv", "rope on all", "rope on the last", "norm after rope", "not renormalised", "not scaled", "biased weights", "no bias",
    "best of a group", "no groups", "softmax router", "no shared expert", "no mask", "causal", "blocks from the prompt's end"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_mistake_would_be_seen(tmp_path, backend, mutation):
    c = llada2.config(num_experts=16)
    folder, tensors = llada2.written(tmp_path, c)
    ids, logits = llada2.wanted(tensors, c, 100)
    model = LLaDAForCausalLM(folder, backend=backend)
    assert_close(model.forward(ids), logits)
    with pytest.raises(AssertionError, match="of the largest logit"):
        assert_close(model.forward(ids), llada2.forward(tensors, c, ids, mutation), 1e-3)


@pytest.mark.parametrize("dtype", FORMATS)
def test_stacked_experts_are_the_same_experts(tmp_path, dtype):
    c = llada2.config()
    folders_of = [llada2.written(tmp_path / str((stacked, shards)), c, stack=stacked, shards=shards)[0]
                  for stacked in (False, True) for shards in (1, 5)]
    logits = [LLaDAForCausalLM(f, dtype=dtype, group_size=32).forward(np.arange(50)) for f in folders_of]
    assert all(np.array_equal(found, logits[0]) for found in logits[1:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float_formats_hold_the_rounded_weights(tmp_path, isa, dtype):
    """Of all matrices except routers, which stay float32, as their biases do."""
    c = llada2.config()
    folder, tensors = llada2.written(tmp_path, c)
    held = {n: t if t.ndim == 1 or n.endswith("mlp.gate.weight") else t.astype(folders.DTYPES[dtype]).astype(np.float32)
            for n, t in tensors.items()}
    ids, logits = llada2.wanted(held, c, 33)
    assert_close(LLaDAForCausalLM(folder, dtype=dtype, isa=isa).forward(ids), logits)


# ---- routing

def test_routes_of_groups():
    rng = np.random.default_rng(0)
    for experts, groups, kept, top in ((256, 8, 4, 8), (16, 4, 2, 4), (16, 8, 1, 2), (12, 3, 3, 5), (8, 1, 1, 8), (6, 3, 2, 1)):
        c = {"n_group": groups, "topk_group": kept, "num_experts_per_tok": top, "routed_scaling_factor": 2.5}
        logits, bias = rng.normal(0, 2, (300, experts)).astype(np.float32), rng.normal(0, 0.3, experts).astype(np.float32)
        ids, weights, gaps = llada2.route(c, logits.astype(np.float64), bias.astype(np.float64))
        found_ids, found_weights = _native.route(logits.copy(), top, bias, groups, kept, 2.5)
        certain = gaps > llada2.LEAST_GAP
        assert certain.sum() > 200
        assert np.array_equal(found_ids[certain], ids[certain])
        np.testing.assert_allclose(found_weights[certain], weights[certain], rtol=2e-6)


@pytest.mark.parametrize(("logits", "bias", "groups", "kept", "top", "ids"), [
    ([0] * 8, [0] * 8, 4, 2, 3, [0, 1, 2]),  # equal groups and experts: the lowest
    ([0] * 8, [0, 0, 0, 0, 0, 0, 1, 0], 4, 1, 2, [6, 7]),
    ([0] * 8, [0, 0, 3, -3, 1, 1, 0, 0], 4, 1, 2, [4, 5]),  # two good ones outdo the best and the worst
    ([0] * 8, [1, 1, 1, 1, 0, 0, 1, 1], 4, 2, 4, [0, 1, 2, 3]),
    ([99, -99, 99, -99], [0] * 4, 2, 1, 1, [0]),
    ([5, 4, 3, 2], [-9, -8, -7, -6], 2, 1, 2, [2, 3]),  # the bias decides, below zero too
    ([0, 1, 2, 3], [0] * 4, 1, 1, 4, [0, 1, 2, 3])])
def test_equal_experts_and_groups(logits, bias, groups, kept, top, ids):
    found, weights = _native.route(np.array([logits], np.float32), top, np.array(bias, np.float32), groups, kept, 2.0)
    assert found[0].tolist() == ids
    sigmoids = 1 / (1 + np.exp(-np.array(logits, np.float64)[ids]))
    np.testing.assert_allclose(weights[0], 2 * (sigmoids / sigmoids.sum() if top > 1 else sigmoids), rtol=1e-6)


@pytest.mark.parametrize(("logit", "bias"), [(np.nan, 0), (0, np.nan), (0, np.inf), (0, -np.inf)])
def test_scores_that_are_no_numbers(logit, bias):
    logits, biases = np.zeros((1, 8), np.float32), np.zeros(8, np.float32)
    logits[0, 3], biases[5] = logit, bias
    ids, weights = _native.route(logits, 2, biases, 4, 2)
    assert ids.tolist() == [[0, 1]] and np.isnan(weights).all()


def test_scores_beyond_reach():
    """Infinite logits are sigmoids of 0 and 1; a row of zeros has weights of zero."""
    ids, weights = _native.route(np.array([[np.inf, -np.inf, 0, 0], [-np.inf] * 4], np.float32), 2, np.zeros(4, np.float32))
    assert ids.tolist() == [[0, 2], [0, 1]]
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_go_to_the_experts_of_the_oracle(tmp_path, backend):
    """With all experts but one silenced, the rows that change are those that go to it."""
    c = llada2.config(num_hidden_layers=1, first_k_dense_replace=0, num_experts_per_tok=3)
    tensors, routes = llada2.tensors(c), []
    ids, _ = llada2.wanted(tensors, c, 64)
    llada2.forward(tensors, c, ids, routes=routes)
    for e, changed in enumerate(routers.rows_by_expert(tmp_path, c, tensors, ids, backend)):
        assert np.array_equal(changed, (routes[0] == e).any(1)), e


# ---- whole blocks: what a row sees, with caches and without

def i32(*values):
    return np.array(values, np.int32)


def rows(begin, end=None):
    return np.arange(0 if end is None else begin, begin if end is None else end, dtype=np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llada2.written(tmp_path_factory.mktemp("llada2"), llada2.config())


def backend_of(folder, **options):
    return LLaDAForCausalLM(folder[0], group_size=32, **options)._backend


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 60, n).astype(np.int32)


def exactly(backend):
    """The reference adds up in the order of its linear algebra, which depends on the shape."""
    return np.array_equal if backend.name == "native" else lambda a, b: np.allclose(a, b, rtol=1e-12, atol=1e-12)


CHUNKS = [(32,), (64, 32), (32, 32, 32), (96,)]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("cache_dtype", ["float32", "float16"])
def test_a_cached_block_is_the_whole_pass(folder, isa, dtype, cache_dtype):
    """Prefilled in chunks of whole blocks, in any, the prompt's end and the answer's within one; float16 caches agree with each other."""
    backend = backend_of(folder, isa=isa, dtype=dtype)
    for n in (1, 31, 32, 33, 45, 100, 128):
        ids = tokens_of(n, n)
        whole_cache = backend.create_kv_cache(cache_dtype) if cache_dtype == "float16" else None
        whole = backend.hidden(ids, i32(n), rows(n), caches=[whole_cache])
        for chunks in CHUNKS:
            cache, begin, chunk = backend.create_kv_cache(cache_dtype), 0, 0
            while begin < n:
                end = min(n, begin + chunks[chunk % len(chunks)])
                found = backend.hidden(ids[begin:end], i32(end - begin), rows(end - begin), i32(begin), [cache])
                assert np.array_equal(found, whole[begin:end]), (n, chunks, begin)
                begin, chunk = end, chunk + 1
            assert cache.length == n


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_comes_later_is_not_seen(folder, backend):
    """A block anew, in a cache that holds those behind it, and with other tokens: the prefix up to its end."""
    backend = backend_of(folder, backend=backend)
    same, ids = exactly(backend), tokens_of(100)
    cache = backend.create_kv_cache()
    whole = backend.hidden(ids, i32(100), rows(100), caches=[cache])
    for begin, end in ((0, 32), (32, 64), (64, 96), (96, 100), (32, 100), (0, 64)):
        found = backend.hidden(ids[begin:end], i32(end - begin), rows(end - begin), caches=[cache], slots=rows(begin, end))
        assert same(found, whole[begin:end])
    other = ids.copy()
    other[32:64] = tokens_of(32, 9)
    found = backend.hidden(other[32:64], i32(32), rows(32), i32(32), [cache])
    assert same(found, backend.hidden(other[:64], i32(64), rows(32, 64)))
    assert not np.allclose(found, whole[32:64])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_row_sees_its_own_block_in_the_cache_too(tmp_path, backend):
    """One row of a block anew, behind and before others that the cache holds. One layer: nothing that is kept depends on what was seen."""
    folder = llada2.written(tmp_path, llada2.config(num_hidden_layers=1))
    backend = backend_of(folder, backend=backend)
    same, ids = exactly(backend), tokens_of(100)
    cache = backend.create_kv_cache()
    whole = backend.hidden(ids, i32(100), rows(100), caches=[cache])
    for slots in ([40], [0, 31, 32, 99], [5, 70], list(range(3, 100, 7))):
        found = backend.hidden(ids[slots], i32(len(slots)), rows(len(slots)), caches=[cache], slots=i32(*slots))
        assert same(found, whole[slots])
    cache.truncate(40)
    assert same(backend.hidden(ids[40:48], i32(8), rows(8), i32(40), [cache]), backend.hidden(ids[:48], i32(48), rows(40, 48)))


@pytest.mark.parametrize("cache_dtype", ["float32", "float16"])
def test_requests_of_a_batch_have_blocks_of_their_own(folder, isa, cache_dtype):
    """Ragged, some cached, in any order and number of threads, and with any rows selected."""
    model = LLaDAForCausalLM(folder[0], isa=isa)
    backend = model._backend
    requests = [(tokens_of(n, n), begin) for n, begin in ((100, 64), (33, 0), (70, 32), (1, 0), (64, 32), (45, 0))]

    def prefilled():
        caches = [backend.create_kv_cache(cache_dtype) if begin else None for _, begin in requests]
        for (ids, begin), cache in zip(requests, caches, strict=True):
            if begin:
                backend.hidden(ids[:begin], i32(begin), rows(0), caches=[cache])
        return caches

    alone = [backend.hidden(ids[begin:], i32(len(ids) - begin), rows(len(ids) - begin), i32(begin), [cache])
             for (ids, begin), cache in zip(requests, prefilled(), strict=True)]
    for threads in (1, 2, 3):
        model.num_threads = threads
        for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3]):
            caches = prefilled()
            tokens = np.concatenate([requests[i][0][requests[i][1]:] for i in order])
            lengths = i32(*(len(alone[i]) for i in order))
            expected = np.concatenate([alone[i] for i in order])
            some = np.sort(np.random.default_rng(threads).choice(len(tokens), 40, replace=False)).astype(np.int32)
            found = backend.hidden(tokens, lengths, some, i32(*(requests[i][1] for i in order)), [caches[i] for i in order])
            assert np.array_equal(found, expected[some])


@pytest.mark.parametrize("block", [1, 5, 8, 1000])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_blocks_of_any_size(folder, backend, block):
    path, tensors = folder
    source = Checkpoint(path)
    source.config = replace(source.config, attention_block=block)
    built = load_backend(source, backend, "float32", 64, 2, None)
    ids = tokens_of(33, 1)
    gaps = []
    logits = llada2.forward(tensors, llada2.config(), ids, block=block, gaps=gaps)
    assert min(gap.min() for gap in gaps) > 1e-5
    found = np.empty((33, 64), np.float32)
    built.head(built.hidden(ids, i32(33), rows(33)), 0, 64, found)
    assert_close(found, logits)


@pytest.mark.parametrize("backend", ["native", "reference", "placeholder"])
def test_places_and_shadows_are_refused(folder, backend):
    backend = backend_of(folder, backend=backend)
    ids, cache = tokens_of(6), backend.create_kv_cache()
    assert np.array_equal(backend.hidden(ids, i32(6), rows(6), places=rows(6)), backend.hidden(ids, i32(6), rows(6)))
    with pytest.raises(ValueError, match=r"^places\[3\]: expected 3 \(its slot, by which this model tells blocks apart\), found 9$"):
        backend.hidden(ids, i32(6), rows(6), places=i32(0, 1, 2, 9, 4, 5), caches=[cache])
    with pytest.raises(ValueError, match=r"^twins\[4\]: expected -1 \(rows of this model see blocks, and a shadow has none\), found 2$"):
        backend.hidden(ids, i32(6), rows(6), twins=i32(-1, -1, -1, -1, 2, 3), caches=[cache])
    assert cache.length == 0


def test_a_position_beyond_the_block_changes_nothing(folder):
    """A token changes the rows of its block and of those behind it, and no bit before."""
    model, ids = LLaDAForCausalLM(folder[0]), tokens_of(100)
    whole = model.forward(ids)
    for at in (0, 31, 32, 50, 96):
        other = ids.copy()
        other[at] = (other[at] + 1) % 60
        changed = (model.forward(other) != whole).any(1)
        assert not changed[:at // 32 * 32].any() and changed[at // 32 * 32:].all()


# ---- rows in company, packed files

@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"hidden_size": 264, "head_dim": 88, "num_attention_heads": 3, "num_key_value_heads": 1,
                                          "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 300}])
def test_rows_are_bit_identical(isa, dtype, changes):
    """Alone, in batches of any order, and selected: the company at an expert changes with each."""
    model = LLaDAForCausalLM.random(ModelConfig.from_dict(llada2.config(**changes)), dtype, isa=isa, num_threads=1, group_size=32)
    assert_bits_in_any_company(model, [tokens_of(n, n) for n in (33, 1, 128, 64, 7)])


@pytest.mark.parametrize("dtype", FORMATS)
def test_mapped_weights_are_the_packed_ones(tmp_path, isa, dtype):
    folder, _ = llada2.written(tmp_path / "model", llada2.config())
    assert_mapped_as_packed(folder, tmp_path / "cache", np.arange(50), dtype=dtype, isa=isa, group_size=32)


@pytest.mark.parametrize(("chosen", "bias", "groups", "kept", "message"), [
    (2, 4, 3, 1, "groups: expected a divisor of 4 and no more chosen ones, found 3 and 1"),
    (2, 4, 2, 3, "groups: expected a divisor of 4 and no more chosen ones, found 2 and 3"),
    (2, 4, 0, 0, "groups: expected a divisor of 4 and no more chosen ones, found 0 and 0"),
    (3, 4, 2, 1, "chosen: expected 1 to 2, found 3"),
    (2, 3, 2, 1, "bias: expected 4 values, found 3"),
])
def test_choices_that_there_are_not(chosen, bias, groups, kept, message):
    with pytest.raises(ValueError, match=message):
        _native.route(np.zeros((1, 4), np.float32), chosen, np.zeros(bias, np.float32), groups, kept)


@pytest.mark.parametrize("changes", [{"n_group": 2}, {"topk_group": 3}, {"routed_scaling_factor": 1.0}, {"partial_rotary_factor": 0.25},
                                     {"num_shared_experts": 0}])
def test_packed_files_tell_configurations_apart(tmp_path, changes):
    """Another configuration under the same seed: most of the changes leave the file's size as it is."""
    logits = []
    for c in (llada2.config(), llada2.config(**changes)):
        plain = LLaDAForCausalLM.random(c, "int8", seed=3)
        kept = [LLaDAForCausalLM.random(c, "int8", seed=3, cache_dir=tmp_path) for _ in range(2)]
        logits.append(plain.forward(np.arange(60)))
        assert all(np.array_equal(model.forward(np.arange(60)), logits[-1]) for model in kept)
    assert not np.array_equal(*logits)


# ---- sizes

def test_every_tensor_is_counted():
    for changes in MATRIX:
        c = llada2.config(**changes)
        config = ModelConfig.from_dict(c)
        shapes = llada2.shapes(c)
        assert {name: t.shape for name, t in stored_tensors(config, False).items()} == shapes
        assert {tensor_name(s, config.architecture) for s in tensor_specs(config)} == set(shapes)
        stacked = {name: t.shape for name, t in llada2.stacked(c, {n: np.empty(s) for n, s in shapes.items()}).items()}
        assert {name: t.shape for name, t in stored_tensors(config, True).items()} == stacked
        assert config.n_parameters() == sum(int(np.prod(shape)) for shape in shapes.values())
        assert config.matrices() == sum(int(np.prod(shape)) for shape in shapes.values() if len(shape) == 2)


MINI = {"hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
        "intermediate_size": 5120, "moe_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "vocab_size": 157184, "max_position_embeddings": 32768, "mask_token_id": None, "eos_token_id": None,
        "pad_token_id": 156892}


def test_mini_has_the_published_size():
    config = ModelConfig.from_dict(llada2.config(**MINI))
    assert round(config.n_parameters() / 1e9, 2) == 16.26
    assert (config.head_dim, config.rotary_dim, config.shared_expert_hidden_size, config.dense_layers) == (128, 64, 512, (0,))
    assert (config.mask_token_id, config.attention_block, config.routing, config.expert_scale) == (156895, 32, "sigmoid", 2.5)
    assert config.eos_token_id == 156892


def test_flash_has_the_published_size():
    config = ModelConfig.from_dict(llada2.config(**{**MINI, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                                                    "intermediate_size": 9216, "moe_intermediate_size": 1024}))
    assert 100 <= config.n_parameters() / 1e9 <= 103


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("bfloat16", 16), ("int8", 8.5), ("int4", 4.5)])
def test_memory(dtype, bits):
    c = llada2.config(hidden_size=128, head_dim=32, moe_intermediate_size=256, intermediate_size=384, num_experts=32)
    model = LLaDAForCausalLM.random(c, dtype, group_size=32)
    table, routers = 64 * 128, 2 * 32 * 128
    layers = model.config.matrices() - 2 * table - routers
    tables = table * 2 * bits / 8 if bits > 9 else table * (2 + 8.5 / 8)
    held = layers * bits / 8 + tables + 4 * routers
    assert abs(model.memory()["weights"] / held - 1) < 0.01
    assert abs(weight_bytes(model.config, dtype, 32) / held - 1) < 1e-3


def test_other_families_see_all_and_turn_all():
    config = ModelConfig.from_dict(folders.config())
    assert (config.head_dim, config.rotary_dim, config.attention_block, config.routing, config.shared_expert_hidden_size) == (
        8, 8, 0, "softmax", 0)


# ---- the engine's own checks

@pytest.mark.parametrize(("changes", "message"), [
    ({"rotary_dim": 18}, r"rotary_dim: expected an even number up to 16 \(head_dim\), found 18"),
    ({"rotary_dim": 3}, "rotary_dim: expected an even number"),
    ({"rotary_dim": -2}, "rotary_dim: expected an even number"),
    ({"attention_block": -1}, "attention_block: expected 0 or more, found -1"),
    ({"shared_expert_hidden_size": -1}, "shared_expert_hidden: expected 0 or more, found -1"),
    ({"expert_groups": 3}, r"expert_groups: expected a divisor of 8 \(experts\), found 3"),
    ({"expert_groups": 0}, "expert_groups: expected a divisor"),
    ({"expert_groups": 8}, "expert_groups: expected at least 2 experts in a group, whose two best are its score, found 1"),
    ({"chosen_groups": 5}, r"chosen_groups: expected 1 to 4 \(expert_groups\), found 5"),
    ({"chosen_groups": 0}, "chosen_groups: expected 1 to 4"),
    ({"experts_per_token": 5}, r"experts_per_token: expected at most 4 \(experts in the chosen groups\), found 5"),
    ({"expert_scale": 0.0}, "expert_scale: expected more than 0"),
    ({"routing": "softmax"}, "routing: expected sigmoid beside expert_groups, chosen_groups or expert_scale, found softmax"),
    ({"n_experts": 0, "experts_per_token": 0, "expert_hidden_size": 0, "dense_layers": ()},
     "experts: expected more than 0 beside shared_expert_hidden or a routing, found 0"),
])
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        _native.NativeModel(replace(ModelConfig.from_dict(llada2.config()), **changes), "float32", 1)


@pytest.mark.parametrize(("tensor", "layer"), [("router_bias", 0), ("shared_up_proj", 0), ("up_proj", 1)])
def test_tensors_that_the_engine_has_not(tensor, layer):
    model = _native.NativeModel(ModelConfig.from_dict(llada2.config()), "float32", 1)
    array = np.zeros(8, np.float32) if tensor == "router_bias" else np.zeros((1, 64), np.float32)
    with pytest.raises(ValueError, match="of a tensor that has 0"):
        model.load(tensor, layer, 0, array)


def test_what_info_says(tmp_path, capsys):
    folder, _ = llada2.written(tmp_path, llada2.config())
    assert main(["info", "--model", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["model"]
    assert {key: said[key] for key in ("experts", "experts_per_token", "expert_hidden_size", "shared_expert_hidden_size", "dense_layers",
                                       "head_dim", "attention_block")} == {
        "experts": 8, "experts_per_token": 2, "expert_hidden_size": 24, "shared_expert_hidden_size": 24, "dense_layers": [0],
        "head_dim": 16, "attention_block": 32}
