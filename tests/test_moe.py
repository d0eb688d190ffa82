"""LLaDA-MoE: logits against the float64 forward of moe.py, routing, rows alone and in company, malformed folders."""
from __future__ import annotations

import re
from dataclasses import replace

import folders
import moe
import numpy as np
import oracle
import pytest
import routers
from comparisons import assert_bits_in_any_company, assert_close, assert_mapped_as_packed
from moe import MASK

from llada_native import LLaDAForCausalLM, ModelConfig, ModelFormatError, UnsupportedModelError, _native, caching, selectors
from llada_native.backend import tensor_specs
from llada_native.checkpoint import tensor_name

MATRIX = [
    {},
    {"num_experts": 4, "num_experts_per_tok": 1, "num_key_value_heads": 2},
    {"num_experts": 16, "num_experts_per_tok": 4, "moe_layer_freq": [1, 1, 1]},
    {"num_experts": 5, "num_experts_per_tok": 5, "moe_layer_freq": [0, 1, 1], "num_key_value_heads": 1},
    {"num_experts": 7, "num_experts_per_tok": 3, "expert_intermediate_size": 37, "hidden_size": 40, "dense_intermediate_size": 51},
    {"hidden_size": 264, "num_attention_heads": 3, "num_key_value_heads": 3, "expert_intermediate_size": 300, "num_experts": 6,
     "rms_norm_eps": 1e-6},
    {"moe_layer_freq": [0, 0, 1]},
    {"moe_layer_freq": [1], "num_hidden_layers": 1, "num_experts": 1, "num_experts_per_tok": 1},
]


@pytest.mark.parametrize("changes", MATRIX)
def test_matches_the_oracle(tmp_path, isa, changes):
    c = moe.config(**changes)
    folder, tensors = moe.written(tmp_path, c)
    model = LLaDAForCausalLM(folder, isa=isa)
    for n in (1, 2, 33, 130):
        assert_close(model.forward(moe.ids_of(n)), moe.forward(tensors, c, moe.ids_of(n)))


@pytest.mark.parametrize("changes", MATRIX)
def test_reference_backend_matches_the_oracle(tmp_path, changes):
    c = moe.config(**changes)
    folder, tensors = moe.written(tmp_path, c)
    model = LLaDAForCausalLM(folder, backend="reference")
    assert_close(model.forward(moe.ids_of(33)), moe.forward(tensors, c, moe.ids_of(33)), 2 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("mutation", [
    "renormalised weights", "softmax after top-k", "norm after rope", "norm over the whole width", "no query and key norm", "router bias",
    "sigmoid router", "experts' gate and up swapped", "dense layer ignored", "second best"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_mistake_would_be_seen(tmp_path, backend, mutation):
    c = moe.config(num_key_value_heads=2)
    folder, tensors = moe.written(tmp_path, c)
    ids = moe.ids_of(33)
    with pytest.raises(AssertionError, match="of the largest logit"):
        assert_close(LLaDAForCausalLM(folder, backend=backend).forward(ids), moe.forward(tensors, c, ids, mutation), 1e-3)


# ---- routing

def test_routes_are_the_most_probable():
    logits = np.random.default_rng(0).normal(0, 3, (200, 64)).astype(np.float32)
    wanted = oracle.softmax(logits.astype(np.float64))
    for top in (1, 2, 8, 63, 64):
        ids, weights = _native.route(logits.copy(), top)
        assert np.array_equal(ids, np.sort(np.argsort(-wanted, -1, kind="stable")[:, :top], -1))
        np.testing.assert_allclose(weights, np.take_along_axis(wanted, ids, -1), rtol=1e-6)


@pytest.mark.parametrize(("logits", "top", "ids"), [
    ([0, 0, 0, 0], 2, [0, 1]), ([1, 2, 2, 2], 2, [1, 2]), ([2, 1, 2, 0], 3, [0, 1, 2]), ([-500, 0, -400, -300], 3, [0, 1, 2]),
    ([1e30, -1e30, 3e38, 0], 2, [0, 2]), ([-np.inf, 0, -np.inf, -1], 3, [0, 1, 3]), ([7], 1, [0])])
def test_equal_experts_and_extremes(logits, top, ids):
    """Of equal probabilities, zero too, the lower id."""
    found, weights = _native.route(np.array([logits], np.float32), top)
    assert found[0].tolist() == ids
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(weights[0], oracle.softmax(np.array(logits, np.float64))[ids], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_number_stays_one(bad):
    logits = np.zeros((3, 5), np.float32)
    logits[1, 3] = bad
    ids, weights = _native.route(logits, 2)
    assert ids.tolist() == [[0, 1]] * 3 and np.isnan(weights[1]).all() and (weights[[0, 2]] == np.float32(0.2)).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_rows_go_to_the_experts_of_the_oracle(tmp_path, backend):
    """With all experts but one silenced, the rows that change are those that go to it."""
    c = moe.config(num_hidden_layers=1, moe_layer_freq=[1], num_experts=8, num_experts_per_tok=3)
    tensors, ids, routes = moe.tensors(c), np.arange(64), []
    moe.forward(tensors, c, ids, routes=routes)
    for e, changed in enumerate(routers.rows_by_expert(tmp_path, c, tensors, ids, backend)):
        assert np.array_equal(changed, (routes[0] == e).any(1)), e


# ---- formats, and rows in company

FORMATS = ("float32", "bfloat16", "float16", "bfloat16_fast", "int8", "int4")


def dense_and_alike(tmp_path, experts):
    """A folder with dense layers, and one with as many equal experts: all chosen, their probabilities add up to one."""
    c = moe.config(moe_layer_freq=[0, 0, 0], hidden_size=64, dense_intermediate_size=72, num_hidden_layers=3)
    dense = moe.tensors(c)
    alike = {**c, "moe_layer_freq": [1, 1, 1], "expert_intermediate_size": 72, "num_experts": experts, "num_experts_per_tok": experts}
    tensors = {}
    for name, tensor in moe.tensors(alike).items():
        tensors[name] = dense.get(re.sub(r"experts\.\d+\.", "", name), tensor)
    return folders.write(tmp_path / "dense", c, dense), folders.write(tmp_path / "alike", alike, tensors)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("experts", [1, 3])
def test_equal_experts_are_the_dense_layer(tmp_path, isa, dtype, experts):
    """In every format. Where activations are rounded, one may lie between two steps, and a last digit becomes a step: of a group's
    largest value at most 1/127 beside 8-bit weights, 1/60 beside 4-bit ones and 1/256 in bfloat16, in each of three layers. One pass in
    ten has such a row; that it has none in seven of nine says that the layers are the same."""
    one, other = (LLaDAForCausalLM(f, dtype=dtype, isa=isa, group_size=32) for f in dense_and_alike(tmp_path, experts))
    errors = []
    for seed in range(9):
        wanted, found = one.forward(moe.ids_of(40, seed)), other.forward(moe.ids_of(40, seed))
        errors.append(np.abs(found - wanted).max() / np.abs(wanted).max())
    step = {"int8": 1 / 127, "int4": 1 / 60, "bfloat16_fast": 1 / 256}.get(dtype, 0)
    assert sorted(errors)[6 if step else 8] < 1e-5 and max(errors) < 1e-5 + 3 * step, errors


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float_formats_hold_the_rounded_weights(tmp_path, isa, dtype):
    """Of all matrices except routers, which stay float32."""
    c = moe.config()
    folder, tensors = moe.written(tmp_path, c)
    held = {n: t if t.ndim == 1 or n.endswith("mlp.gate.weight") else t.astype(folders.DTYPES[dtype]).astype(np.float32)
            for n, t in tensors.items()}
    model = LLaDAForCausalLM(folder, dtype=dtype, isa=isa)
    assert_close(model.forward(moe.ids_of(33)), moe.forward(held, c, moe.ids_of(33)))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"hidden_size": 264, "num_attention_heads": 3, "num_key_value_heads": 1, "num_experts": 16,
                                          "num_experts_per_tok": 4, "expert_intermediate_size": 300}])
def test_rows_are_bit_identical(isa, dtype, changes):
    """Alone, in batches of any order, and selected: the company at an expert changes with each."""
    config = ModelConfig.from_dict(moe.config(**{"num_key_value_heads": 2, **changes}))
    model = LLaDAForCausalLM.random(config, dtype, isa=isa, num_threads=1, group_size=32)
    assert_bits_in_any_company(model, [moe.ids_of(n, n) for n in (33, 1, 128, 64, 7)])


def test_one_expert_for_all_rows_and_one_for_each(tmp_path, isa):
    """A router of zeros sends every row to the lowest ids; a sharp one spreads them. Neither order of sums depends on it."""
    c = moe.config(num_hidden_layers=1, moe_layer_freq=[1], num_experts=16, num_experts_per_tok=2)
    for name, scale in (("all", 0.0), ("spread", 20.0)):
        tensors = moe.tensors(c)
        tensors["model.layers.0.mlp.gate.weight"] *= np.float32(scale)
        model = LLaDAForCausalLM(folders.write(tmp_path / name, c, tensors), isa=isa, num_threads=3)
        assert_close(model.forward(moe.ids_of(100)), moe.forward(tensors, c, moe.ids_of(100)))


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    c = moe.config()
    tensors = moe.tensors(c)
    name = "model.layers.2.mlp.experts.5.up_proj.weight"
    tensors[name][7, 3] = -1e6
    with pytest.raises(ValueError, match=f"^{re.escape(name)}: expected at most 65504 in magnitude for float16"):
        LLaDAForCausalLM(folders.write(tmp_path, c, tensors), dtype="float16")


def test_infinities_reach_their_own_rows_only(tmp_path, isa):
    """One row that is no number goes to the first experts, where the other rows are what they are without it."""
    c = moe.config(num_hidden_layers=1, moe_layer_freq=[1])
    tensors = moe.tensors(c)
    for dtype in ("float32", "int8"):
        model = LLaDAForCausalLM(folders.write(tmp_path / dtype, c, tensors), dtype=dtype, isa=isa, group_size=32)
        wanted = model.forward([1, 2, 3])
        broken = {**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"].copy()}
        broken["model.embed_tokens.weight"][9] = np.nan
        model = LLaDAForCausalLM(folders.write(tmp_path / f"{dtype} broken", c, broken), dtype=dtype, isa=isa, group_size=32)
        found = model.forward([np.array([9, 9, 9]), np.array([1, 2, 3])])
        assert np.isnan(found[0]).all() and np.array_equal(found[1], wanted)


# ---- generation, caches, packed files

@pytest.fixture(scope="module", params=[0, 1])
def model(request, tmp_path_factory):
    return LLaDAForCausalLM(moe.written(tmp_path_factory.mktemp("moe"), moe.config(num_key_value_heads=2), request.param)[0])


def answer(result):
    return [ids.tolist() for ids in result.sequences], [c.tobytes() for c in result.confidence]


@pytest.mark.parametrize("options", [{}, {"preset": "fast"}, {"temperature": 0.7, "seed": 1}, {"cfg_scale": 1.0}, {"early_stop": True},
                                     {"preset": "balanced"}])
def test_generates(model, options):
    prompts = [[7, 8, 9], [3, 1, 4, 1, 5]]
    together = model.generate(prompts, gen_length=32, block_length=8, **options)
    assert all(MASK not in ids for ids in together.sequences)
    if "temperature" not in options:
        for i, prompt in enumerate(prompts):
            assert model.generate(prompt, gen_length=32, block_length=8, **options).sequences[0].tolist() == together.sequences[i].tolist()


def test_backends_generate_the_same(tmp_path):
    folder, _ = moe.written(tmp_path, moe.config())
    found = [LLaDAForCausalLM(folder, backend=b).generate([7, 8, 9], gen_length=16, block_length=8) for b in ("native", "reference")]
    assert found[0].sequences[0].tolist() == found[1].sequences[0].tolist()


@pytest.mark.parametrize("kind", [caching.Prefix, caching.Dual, caching.Delayed])
def test_a_cache_that_is_always_renewed_changes_no_bit(model, kind):
    options = {"gen_length": 32, "block_length": 8, "selector": selectors.Threshold(0.5)}
    wanted = model.generate([3, 1, 4, 1, 5], **options)
    assert answer(model.generate([3, 1, 4, 1, 5], cache=kind(refresh_every=1), **options)) == answer(wanted)


def test_caches_hold_normalised_keys(tmp_path, isa):
    """A request in two parts, through a cache, is the request."""
    folder, _ = moe.written(tmp_path, moe.config(num_hidden_layers=1, moe_layer_freq=[1]))
    backend = LLaDAForCausalLM(folder, isa=isa)._backend
    tokens, cache = moe.ids_of(40).astype(np.int32), backend.create_kv_cache()
    whole = backend.hidden(tokens, np.array([40], np.int32), np.arange(30, 40, dtype=np.int32))
    backend.hidden(tokens[:30], np.array([30], np.int32), np.empty(0, np.int32), caches=[cache])
    parts = backend.hidden(tokens[30:], np.array([10], np.int32), np.arange(10, dtype=np.int32), np.array([30], np.int32), [cache])
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("dtype", FORMATS)
def test_mapped_weights_are_the_packed_ones(tmp_path, isa, dtype):
    folder, _ = moe.written(tmp_path / "model", moe.config())
    assert_mapped_as_packed(folder, tmp_path / "cache", moe.ids_of(20), dtype=dtype, isa=isa, group_size=32)


@pytest.mark.parametrize("changes", [{"num_experts_per_tok": 3}, {"moe_layer_freq": [0, 1, 1]}, {"num_experts": 4},
                                     {"expert_intermediate_size": 32}])
def test_packed_files_tell_mixtures_apart(tmp_path, changes):
    """Another mixture under the same seed: some of the changes leave the file's size as it is."""
    for c in (moe.config(), moe.config(**changes)):
        plain = LLaDAForCausalLM.random(c, "int8", seed=3)
        kept = [LLaDAForCausalLM.random(c, "int8", seed=3, cache_dir=tmp_path) for _ in range(2)]
        assert all(np.array_equal(model.forward(moe.ids_of(20)), plain.forward(moe.ids_of(20))) for model in kept)


# ---- sizes

def test_every_tensor_is_counted(tmp_path):
    for changes in MATRIX:
        c = moe.config(**changes)
        config = ModelConfig.from_dict(c)
        named = {tensor_name(s, "LLaDAMoEModelLM"): s.shape for s in tensor_specs(config)}
        assert named == moe.shapes(c)
        assert config.n_parameters() == sum(int(np.prod(shape)) for shape in named.values())
        assert config.matrices() == sum(int(np.prod(shape)) for shape in named.values() if len(shape) == 2)


def test_llada_moe_has_the_published_size():
    """7B parameters, most of them in experts."""
    config = ModelConfig.from_dict(moe.config(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, num_experts=64, num_experts_per_tok=8,
        expert_intermediate_size=1024, dense_intermediate_size=8192, moe_layer_freq=[1] * 16, vocab_size=157184, mask_token_id=None,
        eos_token_id=156892))
    assert config.head_dim == 128 and config.mask_token_id == 156895 and config.dense_layers == ()
    assert round(config.n_parameters() / 1e9, 2) == 7.36


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("bfloat16", 16), ("int8", 8.5), ("int4", 4.5)])
def test_memory(dtype, bits):
    c = moe.config(hidden_size=128, expert_intermediate_size=256, dense_intermediate_size=384, num_experts=32)
    model = LLaDAForCausalLM.random(c, dtype, group_size=32)
    table, routers = 64 * 128, 2 * 32 * 128
    matrices = model.config.matrices() - 2 * table - routers
    tables = table * 2 * bits / 8 if bits > 9 else table * (2 + 8.5 / 8)
    assert abs(model.memory()["weights"] / (matrices * bits / 8 + tables + 4 * routers) - 1) < 0.01


@pytest.mark.parametrize("name", ["LLaDAMoEModelLM", "LLaDAMoEModel"])
def test_special_tokens_that_nothing_states(name):
    """The class has another name in the configuration of LLaDA-MoE-7B-A1B-Base."""
    config = ModelConfig.from_dict(moe.config(architectures=[name], vocab_size=157184, mask_token_id=None, eos_token_id=None))
    assert (config.architecture, config.mask_token_id, config.eos_token_id) == ("LLaDAMoEModelLM", 156895, 156892)


def test_a_dense_configuration_has_no_experts():
    config = ModelConfig.from_dict(folders.config())
    assert (config.qk_norm, config.n_experts, config.experts_per_token, config.expert_hidden_size, config.dense_layers) == (
        False, 0, 0, 0, ())


# ---- malformed folders

@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"num_experts_per_tok": 9}, ModelFormatError, r"num_experts_per_tok: expected at most num_experts \(8\), found 9"),
    ({"num_experts_per_tok": 0}, ModelFormatError, "num_experts_per_tok: expected a whole number from 1"),
    ({"num_experts": 0}, ModelFormatError, "num_experts: expected a whole number from 1 to 4096, found 0"),
    ({"num_experts": True}, ModelFormatError, "num_experts: expected a whole number"),
    ({"num_experts": None}, ModelFormatError, "num_experts: expected a whole number"),
    ({"expert_intermediate_size": None}, ModelFormatError, "expert_intermediate_size: expected a whole number"),
    ({"moe_layer_freq": [1, 1]}, ModelFormatError, r"moe_layer_freq: expected a list of 3 numbers \(num_hidden_layers\), each 0 or 1"),
    ({"moe_layer_freq": [1, 1, 2]}, ModelFormatError, r"moe_layer_freq: .*found \[1, 1, 2\]"),
    ({"moe_layer_freq": [1, 1, True]}, ModelFormatError, "moe_layer_freq: .*each 0 or 1"),
    ({"moe_layer_freq": [1, 1, [0]]}, ModelFormatError, "moe_layer_freq: .*each 0 or 1"),
    ({"moe_layer_freq": 1}, ModelFormatError, "moe_layer_freq: expected a list of 3 numbers"),
    ({"moe_layer_freq": None}, ModelFormatError, "moe_layer_freq: expected a list of 3 numbers"),
    ({"qk_layernorm": False}, UnsupportedModelError, "qk_layernorm = False is not supported: expected True"),
    ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor = 0.5 is not supported: expected 1"),
    ({"shared_expert_intermediate_size": 1024}, UnsupportedModelError, "shared_expert_intermediate_size = 1024 is not supported"),
    ({"tie_word_embeddings": True}, UnsupportedModelError, "tie_word_embeddings = True is not supported: expected False"),
    ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act = 'gelu' is not supported"),
    ({"attention_bias": True}, UnsupportedModelError, "attention_bias = True is not supported"),
    ({"moe_router_score_function": "sigmoid"}, UnsupportedModelError, "moe_router_score_function = 'sigmoid' is not supported"),
    ({"moe_router_enable_expert_bias": True}, UnsupportedModelError, "moe_router_enable_expert_bias = True is not supported"),
    ({"norm_topk_prob": True}, UnsupportedModelError, "norm_topk_prob = True is not supported"),
    ({"clip_qkv": 8.0}, UnsupportedModelError, "clip_qkv = 8.0 is not supported"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, UnsupportedModelError, "rope_scaling = .* is not supported"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModelError, "rope_parameters.rope_type = 'yarn' is not"),
    ({"rope_parameters": {"rope_theta": 1e3}}, ModelFormatError, r"rope_parameters.rope_theta: expected rope_theta \(.*\), found 1000"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ModelFormatError,
     r"rope_parameters.partial_rotary_factor: expected partial_rotary_factor \(1\), found 0.5"),
    ({"use_sliding_window": True}, UnsupportedModelError, "use_sliding_window = True is not supported"),
    ({"head_dim": 16}, ModelFormatError, r"head_dim: expected hidden_size / num_attention_heads \(8\), found 16"),
])
def test_what_llada_moe_has_not(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        LLaDAForCausalLM(folders.write(tmp_path, moe.config(**changes), moe.tensors(moe.config())))


@pytest.mark.parametrize("changes", [{"shared_expert_intermediate_size": 0}, {"partial_rotary_factor": 1.0}, {"norm_topk_prob": None},
                                     {"moe_router_score_function": "softmax"}, {"attention_bias": None}])
def test_other_ways_to_say_the_same(tmp_path, changes):
    c = moe.config(**changes)
    folder, tensors = moe.written(tmp_path, c)
    assert_close(LLaDAForCausalLM(folder).forward(moe.ids_of(9)), moe.forward(tensors, c, moe.ids_of(9)))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_experts",
                                 "num_experts_per_tok", "expert_intermediate_size", "dense_intermediate_size", "moe_layer_freq",
                                 "shared_expert_intermediate_size", "qk_layernorm", "partial_rotary_factor", "vocab_size",
                                 "max_position_embeddings", "rope_theta", "rms_norm_eps"])
def test_nothing_is_guessed(tmp_path, key):
    c = moe.config()
    del c[key]
    with pytest.raises(ModelFormatError, match=f"required key '{key}' is missing"):
        LLaDAForCausalLM(folders.write(tmp_path, c, moe.tensors(moe.config())))


def without(name):
    return lambda t: {n: v for n, v in t.items() if n != name}


DAMAGES = {
    "no expert": (without("model.layers.2.mlp.experts.7.up_proj.weight"),
                  r"1 missing \(model\.layers\.2\.mlp\.experts\.7\.up_proj\.weight\)"),
    "no router": (without("model.layers.0.mlp.gate.weight"), r"1 missing \(model\.layers\.0\.mlp\.gate\.weight\)"),
    "no norm of keys": (without("model.layers.0.self_attn.k_norm.weight"), r"1 missing \(model\.layers\.0\.self_attn\.k_norm\.weight\)"),
    "one expert too many": (lambda t: t | {"model.layers.0.mlp.experts.8.up_proj.weight": np.zeros((24, 32), np.float32)},
                            r"1 unexpected \(model\.layers\.0\.mlp\.experts\.8\.up_proj\.weight\)"),
    "a bias of experts": (lambda t: t | {"model.layers.0.mlp.expert_bias": np.zeros(8, np.float32)},
                          r"1 unexpected \(model\.layers\.0\.mlp\.expert_bias\)"),
    "a shared expert": (lambda t: t | {"model.layers.0.shared_expert.up_proj.weight": np.zeros((24, 32), np.float32)},
                        r"1 unexpected \(model\.layers\.0\.shared_expert\.up_proj\.weight\)"),
    "experts in a dense layer": (lambda t: t | {"model.layers.1.mlp.gate.weight": np.zeros((8, 32), np.float32)}, "1 unexpected"),
    "a turned expert": (lambda t: t | {"model.layers.0.mlp.experts.3.down_proj.weight": np.zeros((24, 32), np.float32)},
                        r"experts\.3\.down_proj\.weight: expected shape \(32, 24\), found \(24, 32\)"),
    "a short router": (lambda t: t | {"model.layers.2.mlp.gate.weight": np.zeros((7, 32), np.float32)},
                       r"layers\.2\.mlp\.gate\.weight: expected shape \(8, 32\), found \(7, 32\)"),
    "a norm as wide as all heads": (lambda t: t | {"model.layers.0.self_attn.q_norm.weight": np.ones(32, np.float32)},
                                    r"q_norm\.weight: expected shape \(8,\), found \(32,\)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_tensors_that_do_not_fit(tmp_path, backend, damage):
    change, message = DAMAGES[damage]
    folder = folders.write(tmp_path, moe.config(), change(moe.tensors(moe.config())))
    with pytest.raises(ModelFormatError, match=message):
        LLaDAForCausalLM(folder, backend=backend)


def test_shards_give_the_same_model(tmp_path):
    logits = [LLaDAForCausalLM(moe.written(tmp_path / str(n), moe.config(), shards=n)[0]).forward(moe.ids_of(9)) for n in (1, 4)]
    assert np.array_equal(*logits)


# ---- the engine's own checks

@pytest.mark.parametrize(("changes", "message"), [
    ({"experts_per_token": 9}, r"experts_per_token: expected at most 8 \(experts\), found 9"),
    ({"experts_per_token": 0}, "experts_per_token: expected more than 0"),
    ({"expert_hidden_size": 0}, "expert_hidden: expected more than 0"),
    ({"n_experts": -1}, "experts: expected more than 0"),
    ({"n_experts": 0}, "experts: expected more than 0 beside experts_per_token, expert_hidden or dense_layers, found 0"),
    ({"dense_layers": (3,)}, "dense_layers: expected ascending layers below 3, found 3 at 0"),
    ({"dense_layers": (1, 1)}, "dense_layers: expected ascending layers below 3, found 1 at 1"),
    ({"dense_layers": (-1,)}, "dense_layers: expected ascending layers below 3, found -1 at 0"),
])
def test_impossible_mixtures(changes, message):
    with pytest.raises(ValueError, match=message):
        _native.NativeModel(replace(ModelConfig.from_dict(moe.config()), **changes), "float32", 1)


@pytest.mark.parametrize(("tensor", "layer", "expert", "message"), [
    ("expert_up_proj", 0, 8, "expert 8 of layer 0, which has 8"), ("expert_up_proj", 0, -1, "expert -1 of layer 0, which has 8"),
    ("expert_up_proj", 1, 0, "expert 0 of layer 1, which has 0"), ("router", 1, -1, "rows 0 to 1 of a tensor that has 0"),
    ("up_proj", 0, -1, "rows 0 to 1 of a tensor that has 0"), ("expert_up_proj", 3, 0, "layer 3 of a model that has 3")])
def test_tensors_that_the_engine_has_not(tensor, layer, expert, message):
    model = _native.NativeModel(ModelConfig.from_dict(moe.config()), "float32", 1)
    with pytest.raises(ValueError, match=message):
        model.load(tensor, layer, 0, np.zeros((1, 32), np.float32), expert)
