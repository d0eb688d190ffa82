"""Folders of LLaDA2: shards, settings said in other ways, and what is malformed."""
from __future__ import annotations

import json

import folders
import llada2
import numpy as np
import pytest
from comparisons import assert_close
from safetensors.numpy import save_file

from llada_native import LLaDAForCausalLM, ModelFormatError, UnsupportedModelError, checkpoint
from llada_native.backend import tensor_specs
from llada_native.checkpoint import Checkpoint


def test_shards_are_opened_once_for_many_tensors(tmp_path, monkeypatch):
    """And again when what was read of one is a slice of memory."""
    folder, _ = llada2.written(tmp_path, llada2.config(), shards=3)
    opened, open_shard = [], checkpoint.open_shard

    def counted(path):
        opened.append(path)
        return open_shard(path)

    source = Checkpoint(folder)
    monkeypatch.setattr(checkpoint, "open_shard", counted)
    whole = list(source.slices())
    assert len(opened) <= 6 and len(whole) == len(tensor_specs(source.config))
    opened.clear()
    monkeypatch.setattr(checkpoint, "SLICE_BYTES", 4096)
    parts = {}
    for spec, begin, array in source.slices():
        assert begin == sum(map(len, parts.setdefault(spec, [])))
        parts[spec].append(array)
    assert len(opened) > 20
    assert all(np.array_equal(np.concatenate(parts[spec]), array) for spec, _, array in whole)


def test_float32_biases_do_not_widen_a_bfloat16_checkpoint(tmp_path):
    """Published checkpoints may keep routers and their biases as float32; "auto" holds the rest as it is."""
    c = llada2.config()
    stored = {name: t if "mlp.gate." in name else t.astype(folders.DTYPES["bfloat16"]) for name, t in llada2.tensors(c).items()}
    folder = folders.write(tmp_path, c, llada2.tensors(c), "bfloat16")
    save_file(stored, folder / "model.safetensors")
    assert LLaDAForCausalLM(folder).dtype == "bfloat16"


# ---- malformed folders

@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"num_experts": 9}, ModelFormatError, r"n_group: expected a divisor of num_experts \(9\), found 4"),
    ({"topk_group": 5}, ModelFormatError, r"topk_group: expected at most n_group \(4\), found 5"),
    ({"n_group": 8}, ModelFormatError, r"n_group: expected at most 4 \(two experts a group, which are its score\), found 8"),
    ({"n_group": 0}, ModelFormatError, "n_group: expected a whole number from 1"),
    ({"n_group": None}, ModelFormatError, "n_group: expected a whole number from 1"),
    ({"topk_group": 0}, ModelFormatError, "topk_group: expected a whole number from 1"),
    ({"num_experts_per_tok": 5}, ModelFormatError, r"num_experts_per_tok: expected at most 4 \(experts of 2 groups, topk_group\), found 5"),
    ({"num_experts_per_tok": 9}, ModelFormatError, r"num_experts_per_tok: expected at most num_experts \(8\), found 9"),
    ({"num_shared_experts": -1}, ModelFormatError, "num_shared_experts: expected a whole number from 0 to 4096, found -1"),
    ({"num_shared_experts": True}, ModelFormatError, "num_shared_experts: expected a whole number"),
    ({"first_k_dense_replace": 4}, ModelFormatError, "first_k_dense_replace: expected a whole number from 0 to 3, found 4"),
    ({"first_k_dense_replace": -1}, ModelFormatError, "first_k_dense_replace: expected a whole number from 0 to 3"),
    ({"first_k_dense_replace": None}, ModelFormatError, "first_k_dense_replace: expected a whole number"),
    ({"routed_scaling_factor": 0}, ModelFormatError, "routed_scaling_factor: expected a number above 0"),
    ({"partial_rotary_factor": 0}, ModelFormatError, "partial_rotary_factor: expected a number above 0"),
    ({"partial_rotary_factor": 1.5}, ModelFormatError, "partial_rotary_factor: expected an even number of dimensions up to 16.*found 1.5"),
    ({"partial_rotary_factor": 0.2}, ModelFormatError, "partial_rotary_factor: expected an even number of dimensions"),
    ({"partial_rotary_factor": 0.01}, ModelFormatError, "partial_rotary_factor: expected an even number of dimensions"),
    ({"rotary_dim": 16}, ModelFormatError, r"rotary_dim: expected 8 \(head_dim \* partial_rotary_factor\), found 16"),
    ({"head_dim": 15}, ModelFormatError, "head_dim: expected an even number up to 256, found 15"),
    ({"head_dim": 258}, ModelFormatError, "head_dim: expected an even number up to 256, found 258"),
    ({"head_dim": "16"}, ModelFormatError, "head_dim: expected a whole number"),
    ({"head_dim": None, "hidden_size": 66}, ModelFormatError, r"hidden_size: expected a multiple of num_attention_heads \(4\), found 66"),
    ({"num_key_value_heads": 0}, ModelFormatError, "num_key_value_heads: expected a whole number from 1"),
    ({"num_key_value_heads": 3}, ModelFormatError, r"num_key_value_heads: expected a divisor of num_attention_heads \(4\), found 3"),
    ({"use_bias": True}, UnsupportedModelError, "use_bias = True is not supported: expected False"),
    ({"use_qkv_bias": True}, UnsupportedModelError, "use_qkv_bias = True is not supported: expected False"),
    ({"use_qk_norm": False}, UnsupportedModelError, "use_qk_norm = False is not supported: expected True"),
    ({"norm_topk_prob": False}, UnsupportedModelError, "norm_topk_prob = False is not supported: expected True"),
    ({"score_function": "softmax"}, UnsupportedModelError, "score_function = 'softmax' is not supported: expected 'sigmoid'"),
    ({"router_dtype": "bf16"}, UnsupportedModelError, "router_dtype = 'bf16' is not supported: expected 'fp32'"),
    ({"moe_router_enable_expert_bias": False}, UnsupportedModelError, "moe_router_enable_expert_bias = False is not supported"),
    ({"norm_head": True}, UnsupportedModelError, "norm_head = True is not supported: expected False"),
    ({"using_split_qkv_in_self_attention": True}, UnsupportedModelError, "using_split_qkv_in_self_attention = True is not supported"),
    ({"tie_word_embeddings": True}, UnsupportedModelError, "tie_word_embeddings = True is not supported: expected False"),
    ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act = 'gelu' is not supported"),
    ({"use_sliding_window": True}, UnsupportedModelError, "use_sliding_window = True is not supported"),
    ({"block_size": 64}, UnsupportedModelError, "block_size = 64 is not supported: expected 32"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, UnsupportedModelError, "rope_scaling = .* is not supported"),
    ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedModelError, "quantization_config = .* is not supported"),
    ({"expert_capacity": 48}, UnsupportedModelError, r"expert_capacity = 48 is not supported: it is of LLaDA2\.2, .* not published"),
    ({"delete_token_id": 156930}, UnsupportedModelError, "delete_token_id = 156930 is not supported: it is of LLaDA2.2"),
    ({"split_token_id": 0}, UnsupportedModelError, "split_token_id = 0 is not supported: it is of LLaDA2.2"),
    ({"rope_parameters": [1]}, ModelFormatError, r"rope_parameters: expected an object, found \[1\]"),
    ({"rope_parameters": {"rope_type": "yarn"}}, UnsupportedModelError, "rope_parameters.rope_type = 'yarn' is not supported"),
    ({"rope_parameters": {"factor": 4}}, UnsupportedModelError, "rope_parameters.factor = 4 is not supported: expected only rope_theta"),
    ({"rope_parameters": {"rope_theta": 1e4}}, ModelFormatError, r"rope_parameters.rope_theta: expected rope_theta \(600000\), found 1"),
    ({"rope_parameters": {"partial_rotary_factor": 1}}, ModelFormatError,
     r"rope_parameters.partial_rotary_factor: expected partial_rotary_factor \(0.5\), found 1"),
])
def test_what_llada2_has_not(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        LLaDAForCausalLM(folders.write(tmp_path, llada2.config(**changes), llada2.tensors(llada2.config())))


@pytest.mark.parametrize("changes", [
    {"num_shared_experts": None}, {"use_sliding_window": None, "block_size": 32, "rotary_dim": 8}, {"expert_capacity": None},
    {"model_type": "llada2_moe_veomni", "_moe_implementation": "fused"},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 600000.0, "partial_rotary_factor": 0.5}}, {"rope_parameters": None}])
def test_other_ways_to_say_the_same(tmp_path, changes):
    c = llada2.config(**changes)
    folder, tensors = llada2.written(tmp_path, c)
    ids, logits = llada2.wanted(tensors, c, 33)
    assert_close(LLaDAForCausalLM(folder).forward(ids), logits)


def test_the_end_of_a_turn(tmp_path):
    folder, _ = llada2.written(tmp_path, llada2.config())
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"56": {"content": "<|role_end|>"}}}))
    out = LLaDAForCausalLM(folder).generate([1, 2], gen_length=32, constraints={1: 56})
    assert out.finish_reason == ["stop"] and out.answer_lengths[0] <= 1


@pytest.mark.parametrize("absent", [("rope_theta", "partial_rotary_factor"), ("rope_theta",)])
@pytest.mark.parametrize("null", [True, False])
def test_rope_settings_in_an_object_of_their_own(tmp_path, absent, null):
    c = llada2.config()
    settings = {"rope_parameters": {"rope_type": "default", **{key: c[key] for key in absent}}}
    other = {**c, **settings, **dict.fromkeys(absent)} if null else {k: v for k, v in {**c, **settings}.items() if k not in absent}
    tensors = llada2.tensors(c)
    ids, logits = llada2.wanted(tensors, c, 33)
    assert_close(LLaDAForCausalLM(folders.write(tmp_path, other, tensors)).forward(ids), logits)


@pytest.mark.parametrize("key", ["use_qk_norm", "norm_head", "use_sliding_window", "rope_scaling", "hidden_act", "mask_token_id",
                                 "head_dim"])
def test_what_may_be_left_unsaid(tmp_path, key):
    """Every version of the class has the same default, or the weights say it."""
    c, tensors = llada2.config(), llada2.tensors(llada2.config())
    folder = folders.write(tmp_path, {k: v for k, v in c.items() if k != key}, tensors)
    ids, logits = llada2.wanted(tensors, c, 33)
    assert_close(LLaDAForCausalLM(folder).forward(ids), logits)


@pytest.mark.parametrize("key", [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size",
    "num_experts", "num_experts_per_tok", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "norm_topk_prob",
    "routed_scaling_factor", "score_function", "router_dtype", "moe_router_enable_expert_bias", "use_bias", "use_qkv_bias",
    "partial_rotary_factor", "rope_theta", "rms_norm_eps", "max_position_embeddings", "vocab_size"])
def test_nothing_is_guessed(tmp_path, key):
    c = llada2.config()
    del c[key]
    with pytest.raises(ModelFormatError, match=f"required key '{key}' is missing"):
        LLaDAForCausalLM(folders.write(tmp_path, c, llada2.tensors(llada2.config())))


def without(name):
    return lambda t: {n: v for n, v in t.items() if n != name}


def put(name, *shape):
    return lambda t: t | {name: np.zeros(shape, np.float32)}


LAYER = "model.layers.1."
DAMAGES = {
    "no projection": (without(LAYER + "attention.query_key_value.weight"), r"1 missing \(model\.layers\.1\.attention\.query_key_value"),
    "projections apart": (put(LAYER + "attention.q_proj.weight", 64, 64), r"1 unexpected \(model\.layers\.1\.attention\.q_proj\.weight\)"),
    "projections without values": (put(LAYER + "attention.query_key_value.weight", 96, 64),
                                   r"query_key_value\.weight: expected shape \(128, 64\), found \(96, 64\)"),
    "a bias of projections": (put(LAYER + "attention.query_key_value.bias", 128), "1 unexpected"),
    "no bias of the router": (without(LAYER + "mlp.gate.expert_bias"), r"1 missing \(model\.layers\.1\.mlp\.gate\.expert_bias\)"),
    "a short bias": (put(LAYER + "mlp.gate.expert_bias", 7), r"expert_bias: expected shape \(8,\), found \(7,\)"),
    "no shared expert": (without(LAYER + "mlp.shared_experts.up_proj.weight"), r"1 missing \(.*shared_experts\.up_proj\.weight\)"),
    "a wide shared expert": (put(LAYER + "mlp.shared_experts.up_proj.weight", 48, 64),
                             r"shared_experts\.up_proj\.weight: expected shape \(24, 64\), found \(48, 64\)"),
    "no norm of keys": (without(LAYER + "attention.key_layernorm.weight"), r"1 missing \(.*key_layernorm\.weight\)"),
    "experts in the dense layer": (put("model.layers.0.mlp.gate.weight", 8, 64), r"1 unexpected \(model\.layers\.0\.mlp\.gate\.weight\)"),
    "an expert too many": (put(LAYER + "mlp.experts.8.up_proj.weight", 24, 64), r"1 unexpected \(.*experts\.8\.up_proj\.weight\)"),
    "gates and ups as one": (put(LAYER + "mlp.experts.gate_up_proj", 8, 48, 64), r"1 unexpected \(.*mlp\.experts\.gate_up_proj\)"),
    "one stacked tensor": (put(LAYER + "mlp.experts.gate_proj", 8, 24, 64), r"5 missing \(.*\); 48 unexpected"),
}
STACKED_DAMAGES = {
    "no stack": (without(LAYER + "mlp.experts.up_proj"), r"1 missing \(model\.layers\.1\.mlp\.experts\.up_proj\)"),
    "a stack too short": (put(LAYER + "mlp.experts.up_proj", 7, 24, 64), r"up_proj: expected shape \(8, 24, 64\), found \(7, 24, 64\)"),
    "a turned stack": (put(LAYER + "mlp.experts.up_proj", 8, 64, 24), r"up_proj: expected shape \(8, 24, 64\), found \(8, 64, 24\)"),
    "a flat stack": (put(LAYER + "mlp.experts.up_proj", 192, 64), r"experts\.up_proj: expected shape \(8, 24, 64\), found \(192, 64\)"),
    "an expert beside": (put(LAYER + "mlp.experts.0.up_proj.weight", 24, 64), r"1 unexpected \(.*experts\.0\.up_proj\.weight\)"),
}


@pytest.mark.parametrize("damage", DAMAGES | STACKED_DAMAGES)
def test_tensors_that_do_not_fit(tmp_path, damage):
    change, message = (DAMAGES | STACKED_DAMAGES)[damage]
    c = llada2.config()
    tensors = llada2.tensors(c) if damage in DAMAGES else llada2.stacked(c, llada2.tensors(c))
    with pytest.raises(ModelFormatError, match=message):
        LLaDAForCausalLM(folders.write(tmp_path, c, change(tensors)))
