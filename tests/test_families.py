"""Checkpoints of the family beside LLaDA-8B: the same mathematics under other names, and what must not be guessed about them."""
from __future__ import annotations

import folders
import numpy as np
import oracle
import pytest
from safetensors.numpy import load_file

from llada_native import LLaDAForCausalLM, ModelFormatError, UnsupportedModelError

TOLERANCE = 1e-5  # of the largest logit, as for LLaDA-8B
MASK = 5          # of iLLaDA, which says so nowhere


def illada_config(**changes):
    """A config.json of a two-layer iLLaDA: grouped queries, tied embeddings."""
    return {"architectures": ["ILLaDAForCausalLM"], "model_type": "illada", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 512,
            "rope_theta": 500000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
            "mlp_bias": False, "layer_norm_eps": None, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
            **changes}


LEAVES = {"attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
          "attn_out": "self_attn.o_proj", "ff_norm": "post_attention_layernorm", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
          "ff_out": "mlp.down_proj"}


OUTER = {"wte.weight": "model.embed_tokens.weight", "ln_f.weight": "model.norm.weight", "ff_out.weight": "lm_head.weight"}


def illada_names(tensors):
    """Tensors of a LLaDA under the names that an iLLaDA has for them."""
    named = {}
    for name, value in tensors.items():
        _, _, rest = name.partition("model.transformer.")
        if rest.startswith("blocks."):
            _, layer, leaf, _ = rest.split(".")
            named[f"model.layers.{layer}.{LEAVES[leaf]}.weight"] = value
        else:
            named[OUTER[rest]] = value
    return named


def llada_of(config):
    """The LLaDA configuration of the same shape, for the oracle."""
    return folders.config(d_model=config["hidden_size"], n_layers=config["num_hidden_layers"], n_heads=config["num_attention_heads"],
                          n_kv_heads=config["num_key_value_heads"], mlp_hidden_size=config["intermediate_size"],
                          vocab_size=config["vocab_size"], embedding_size=config["vocab_size"], rope_theta=config["rope_theta"],
                          rms_norm_eps=config["rms_norm_eps"], weight_tying=config["tie_word_embeddings"])


def written(folder, config, seed=0, **more):
    tensors = folders.tensors(llada_of(config), seed)
    named = illada_names(tensors)
    named |= {name: make(named) for name, make in more.items()}
    return folders.write(folder, config, named), tensors


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4, "head_dim": 8}, {"intermediate_size": 130, "num_hidden_layers": 3}])
def test_illada_matches_the_oracle(tmp_path, backend, tied, changes):
    config = illada_config(tie_word_embeddings=tied, **changes)
    folder, tensors = written(tmp_path, config)
    model = LLaDAForCausalLM(folder, backend=backend)
    for n in (1, 7, 33, 130):
        ids = np.random.default_rng(n).integers(0, 64, n)
        wanted = oracle.forward(tensors, llada_of(config), ids)
        error = np.abs(model.forward(ids) - wanted).max() / np.abs(wanted).max()
        assert error <= TOLERANCE, error


@pytest.mark.parametrize("mutation", ["adjacent pairs", "eps", "no norm weight", "gate and up swapped", "interleaved kv heads", "causal"])
def test_a_mistake_would_be_seen(tmp_path, mutation):
    config = illada_config()
    folder, tensors = written(tmp_path, config)
    ids = np.random.default_rng(0).integers(0, 64, 33)
    wanted = oracle.forward(tensors, llada_of(config), ids, mutation)
    assert np.abs(LLaDAForCausalLM(folder).forward(ids) - wanted).max() > 10 * TOLERANCE * np.abs(wanted).max()


def test_illada_generates_what_the_same_llada_does(tmp_path):
    """One model under both names: the same bits, with the mask and end tokens of iLLaDA."""
    config = illada_config()
    folder, tensors = written(tmp_path / "illada", config)
    other = folders.write(tmp_path / "llada", {**llada_of(config), "mask_token_id": MASK, "eos_token_id": 2, "eot_token_id": None}, tensors)
    for options in ({}, {"preset": "fast"}, {"temperature": 0.7, "seed": 1}, {"cfg_scale": 1.0}):
        found, wanted = (LLaDAForCausalLM(f).generate([7, 8, 9], gen_length=16, block_length=8, **options) for f in (folder, other))
        assert found.sequences[0].tolist() == wanted.sequences[0].tolist()
        assert found.confidence[0].tobytes() == wanted.confidence[0].tobytes()
        assert MASK not in found.sequences[0] or not options.get("preset")


def test_the_mask_token_of_illada(tmp_path):
    assert LLaDAForCausalLM(written(tmp_path / "a", illada_config())[0]).config.mask_token_id == MASK
    assert LLaDAForCausalLM(written(tmp_path / "b", illada_config(mask_token_id=9))[0]).config.mask_token_id == 9


def test_a_stored_head_is_the_embedding_or_refused(tmp_path):
    same, _ = written(tmp_path / "same", illada_config(), **{"lm_head.weight": lambda t: t["model.embed_tokens.weight"]})
    assert "lm_head.weight" in load_file(same / "model.safetensors")
    ids = np.arange(20)
    wanted = LLaDAForCausalLM(written(tmp_path / "none", illada_config())[0]).forward(ids)
    assert np.array_equal(LLaDAForCausalLM(same).forward(ids), wanted)

    def changed(t):
        head = t["model.embed_tokens.weight"].copy()
        head[-1, -1] += 1e-3
        return head

    other, _ = written(tmp_path / "other", illada_config(), **{"lm_head.weight": changed})
    with pytest.raises(ModelFormatError, match=r"lm_head\.weight: expected the rows of model\.embed_tokens\.weight.*found others"):
        LLaDAForCausalLM(other)
    short, _ = written(tmp_path / "short", illada_config(), **{"lm_head.weight": lambda t: t["model.embed_tokens.weight"][:-1]})
    with pytest.raises(ModelFormatError, match=r"lm_head\.weight: expected shape \(64, 32\), found \(63, 32\)"):
        LLaDAForCausalLM(short)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act = 'gelu' is not supported: expected 'silu'"),
    ({"attention_bias": True}, UnsupportedModelError, "attention_bias = True is not supported"),
    ({"mlp_bias": True}, UnsupportedModelError, "mlp_bias = True is not supported"),
    ({"layer_norm_eps": 1e-5}, UnsupportedModelError, "layer_norm_eps = 1e-05 is not supported: expected None"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, UnsupportedModelError, "rope_scaling = .* is not supported"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModelError, "rope_parameters.rope_type = 'yarn' is not"),
    ({"rope_parameters": {"rope_theta": 1e3}}, ModelFormatError, r"rope_parameters.rope_theta: expected rope_theta \(.*\), found 1000"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModelError, "partial_rotary_factor = 0.5 is not supported"),
    ({"head_dim": 16}, ModelFormatError, r"head_dim: expected hidden_size / num_attention_heads \(8\), found 16"),
    ({"num_key_value_heads": 3}, ModelFormatError, r"num_key_value_heads: expected a divisor of num_attention_heads \(4\), found 3"),
    ({"num_key_value_heads": None}, ModelFormatError, "num_key_value_heads: expected a whole number"),
    ({"hidden_size": 34}, ModelFormatError, r"hidden_size: expected a multiple of num_attention_heads \(4\), found 34"),
    ({"rope_theta": 0}, ModelFormatError, "rope_theta: expected a number above 0"),
    ({"tie_word_embeddings": "yes"}, ModelFormatError, "tie_word_embeddings: expected true or false"),
])
def test_what_illada_has_not(tmp_path, changes, error, message):
    folder = folders.write(tmp_path, illada_config(**changes), illada_names(folders.tensors(llada_of(illada_config()))))
    with pytest.raises(error, match=message):
        LLaDAForCausalLM(folder)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
                                 "vocab_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "tie_word_embeddings",
                                 "hidden_act", "attention_bias", "mlp_bias"])
def test_nothing_about_illada_is_guessed(tmp_path, key):
    config = illada_config()
    del config[key]
    with pytest.raises(ModelFormatError, match=f"required key '{key}' is missing"):
        LLaDAForCausalLM(folders.write(tmp_path, config, illada_names(folders.tensors(llada_of(illada_config())))))
