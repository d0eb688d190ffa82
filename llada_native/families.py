"""Architectures of checkpoints: the keys of their config.json, what of it is implemented, and the names of their tensors."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One model class, as the first of `architectures` in config.json names it.

    Attributes
    ----------
    keys : dict
        Attribute of `ModelConfig` -> key of config.json. Without one for `weight_tying` the head is its own.
    fixed : dict
        Options of which only these values are implemented; any other changes the architecture.
    required : tuple of str
        Of those, the ones whose absence would silently mean another value.
    names : dict
        Role of a tensor -> its name, `{layer}` standing for the layer and `{expert}` for the expert. Tensors of one name are stored one
        below another, in the order of `backend.tensor_specs`.
    mask_token_id, eos_token_id : int or None
        Where config.json does not state them.
    end_of_turn : str
        The token that ends one, where the tokenizer has it.
    stores_tied_head : bool
        A head that is the embedding may be stored all the same.
    qkv_bias, shifted_logits : bool
        As `ModelConfig` has them.
    stacked : dict
        Role of an expert's tensor -> the name under which some checkpoints store those of all experts as one, [experts, out, in].
    refused : dict
        Keys of config.json that only relatives have which are not implemented -> why.
    attention_block : int
        Of `ModelConfig`.
    words : str
        What splits text into words, by its name in `byte_level.PATTERNS`, where folders have vocab.json and merges.txt for a
        tokenizer.json.
    """

    keys: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    required: tuple[str, ...]
    names: Mapping[str, str]
    mask_token_id: int | None = None
    eos_token_id: int | None = None
    end_of_turn: str = "<|eot_id|>"
    stores_tied_head: bool = False
    stacked: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    attention_block: int = 0
    qkv_bias: bool = False
    shifted_logits: bool = False
    words: str = ""


# ML-GSAI/LLaDA. The leaf `ff_out` occurs twice: inside a block it is the down projection, outside the head. Defaults of the class are
# GPT-2's, so what must not be guessed is required.
LLADA = Family(
    keys={name: name for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size", "embedding_size",
                                  "max_sequence_length", "rope_theta", "rms_norm_eps", "weight_tying")},
    fixed={
        "block_type": ("llama",),
        "block_group_size": (1,),
        "activation_type": ("silu",),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "attention_layer_norm": (False,),
        "include_bias": (False,),
        "include_qkv_bias": (False, None),
        "bias_for_layer_norm": (False, None),
        "input_emb_norm": (False,),
        "scale_logits": (False,),
        "alibi": (False,),
        "rope": (True,),
        "rope_full_precision": (True,),
        "partial_rotary_factor": (1, None),
        "rope_scaling": (None,),
        "quantization_config": (None,),
    },
    required=("block_type", "layer_norm_type", "activation_type", "rope"),
    names={
        "embedding": "model.transformer.wte.weight",
        "final_norm": "model.transformer.ln_f.weight",
        "head": "model.transformer.ff_out.weight",
        **{role: f"model.transformer.blocks.{{layer}}.{leaf}.weight" for role, leaf in {
            "attn_norm": "attn_norm", "q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "attn_out",
            "mlp_norm": "ff_norm", "gate_proj": "ff_proj", "up_proj": "up_proj", "down_proj": "ff_out"}.items()},
    })

# iLLaDA-8B (arXiv:2606.25331): grouped queries, and neither its configuration nor its tokenizer names the mask token. A non-null
# layer_norm_eps would select another norm.
ILLADA = Family(
    keys={"n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
          "mlp_hidden_size": "intermediate_size", "vocab_size": "vocab_size", "max_sequence_length": "max_position_embeddings",
          "rope_theta": "rope_theta", "rms_norm_eps": "rms_norm_eps", "weight_tying": "tie_word_embeddings"},
    fixed={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "layer_norm_eps": (None,),
        "partial_rotary_factor": (1, None),
        "rope_scaling": (None,),
        "quantization_config": (None,),
    },
    required=("hidden_act", "attention_bias", "mlp_bias"),
    names={
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
        **{role: f"model.layers.{{layer}}.{leaf}.weight" for role, leaf in {
            "attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
            "o_proj": "self_attn.o_proj", "mlp_norm": "post_attention_layernorm", "gate_proj": "mlp.gate_proj",
            "up_proj": "mlp.up_proj", "down_proj": "mlp.down_proj"}.items()},
    },
    mask_token_id=5,
    stores_tied_head=True)

# LLaDA-MoE-7B-A1B. Its class weights the experts with their probabilities as they are, whatever norm_topk_prob says, and knows no score
# but the softmax; a configuration that asks for something else was not written for it.
LLADA_MOE = Family(
    keys={"n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
          "mlp_hidden_size": "dense_intermediate_size", "vocab_size": "vocab_size", "max_sequence_length": "max_position_embeddings",
          "rope_theta": "rope_theta", "rms_norm_eps": "rms_norm_eps", "n_experts": "num_experts",
          "experts_per_token": "num_experts_per_tok", "expert_hidden_size": "expert_intermediate_size", "moe_layers": "moe_layer_freq"},
    fixed={
        "qk_layernorm": (True,),
        "partial_rotary_factor": (1,),
        "shared_expert_intermediate_size": (None, 0),
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "clip_qkv": (None,),
        "moe_router_score_function": ("softmax", None),
        "moe_router_enable_expert_bias": (False, None),
        "norm_topk_prob": (False, None),
        "tie_word_embeddings": (False,),
        "use_sliding_window": (False, None),
        "rope_scaling": (None,),
        "quantization_config": (None,),
    },
    required=("qk_layernorm", "partial_rotary_factor", "shared_expert_intermediate_size"),
    names={
        **ILLADA.names,
        "q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
        "k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
        "router": "model.layers.{layer}.mlp.gate.weight",
        **{f"expert_{leaf}": f"model.layers.{{layer}}.mlp.experts.{{expert}}.{leaf}.weight"
           for leaf in ("gate_proj", "up_proj", "down_proj")},
    },
    mask_token_id=156895,
    eos_token_id=156892,
    end_of_turn="<|role_end|>")

# LLaDA2.0 and LLaDA2.1 (arXiv:2512.15745, arXiv:2602.08676). Defaults of the class are those of another model (biases, 30592 tokens, no
# shared expert), so what must not be guessed is required. Each row sees whole blocks of 32 up to its own.
_BLOCK_ROUTING = ("of LLaDA2.2, whose experts are chosen block by block; how, where scores tie or a block is not whole, and how its edits "
                  "are decoded, is not published")
LLADA2 = Family(
    keys={"n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
          "mlp_hidden_size": "intermediate_size", "vocab_size": "vocab_size", "max_sequence_length": "max_position_embeddings",
          "rope_theta": "rope_theta", "rms_norm_eps": "rms_norm_eps", "n_experts": "num_experts",
          "experts_per_token": "num_experts_per_tok", "expert_hidden_size": "moe_intermediate_size", "dense_first": "first_k_dense_replace",
          "head_dim": "head_dim", "rotary_share": "partial_rotary_factor", "rotary_dim": "rotary_dim",
          "expert_groups": "n_group", "chosen_groups": "topk_group", "expert_scale": "routed_scaling_factor",
          "shared_experts": "num_shared_experts"},
    fixed={
        "use_bias": (False,),
        "use_qkv_bias": (False,),
        "use_qk_norm": (True,),
        "norm_topk_prob": (True,),
        "score_function": ("sigmoid",),
        "router_dtype": ("fp32",),
        "moe_router_enable_expert_bias": (True,),
        "norm_head": (False,),
        "norm_softmax": (False, None),
        "use_rmsnorm": (True, None),
        "using_split_qkv_in_self_attention": (False, None),
        "hidden_act": ("silu",),
        "tie_word_embeddings": (False,),
        "use_sliding_window": (False, None),
        "block_size": (32, None),
        "rope_scaling": (None,),
        "quantization_config": (None,),
    },
    # Not use_qk_norm: every version of the class has it on, and the norms' tensors have to be there.
    required=("use_bias", "use_qkv_bias", "norm_topk_prob", "score_function", "router_dtype", "moe_router_enable_expert_bias"),
    names={
        "embedding": "model.word_embeddings.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
        **{role: f"model.layers.{{layer}}.{leaf}" for role, leaf in {
            "attn_norm": "input_layernorm.weight", "q_proj": "attention.query_key_value.weight",
            "k_proj": "attention.query_key_value.weight", "v_proj": "attention.query_key_value.weight",
            "q_norm": "attention.query_layernorm.weight", "k_norm": "attention.key_layernorm.weight",
            "o_proj": "attention.dense.weight", "mlp_norm": "post_attention_layernorm.weight", "router": "mlp.gate.weight",
            "router_bias": "mlp.gate.expert_bias"}.items()},
        **{prefix + leaf: f"model.layers.{{layer}}.mlp.{place}{leaf}.weight" for leaf in ("gate_proj", "up_proj", "down_proj")
           for prefix, place in (("", ""), ("expert_", "experts.{expert}."), ("shared_", "shared_experts."))},
    },
    stacked={f"expert_{leaf}": f"model.layers.{{layer}}.mlp.experts.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")},
    refused=dict.fromkeys(("expert_capacity", "delete_token_id", "split_token_id"), _BLOCK_ROUTING),
    mask_token_id=156895,
    eos_token_id=156892,
    end_of_turn="<|role_end|>",
    attention_block=32)

# Dream-7B (arXiv:2508.15487), DiffuCoder and Dream-Coder: the layers of Qwen2.5, from which they were trained on. Its class gives queries,
# keys and values a bias whatever the configuration says, and defaults to Llama's shape.
DREAM = Family(
    keys=ILLADA.keys,
    fixed={
        "hidden_act": ("silu",),
        "attention_bias": (True, None),
        "mlp_bias": (False, None),
        "use_sliding_window": (False, None),
        "partial_rotary_factor": (1, None),
        "rope_scaling": (None,),
        "quantization_config": (None,),
    },
    required=("hidden_act",),
    names={
        **ILLADA.names,
        **{f"{part}_bias": f"model.layers.{{layer}}.self_attn.{part}_proj.bias" for part in "qkv"},
    },
    mask_token_id=151666,
    eos_token_id=151643,
    end_of_turn="<|im_end|>",
    stores_tied_head=True,
    qkv_bias=True,
    shifted_logits=True,
    words="qwen2")

FAMILIES: dict[str, Family] = {"LLaDAModelLM": LLADA, "ILLaDAForCausalLM": ILLADA, "LLaDAMoEModelLM": LLADA_MOE,
                               "LLaDA2MoeModelLM": LLADA2, "DreamModel": DREAM}
OTHER_NAMES = {"LLaDAMoEModel": "LLaDAMoEModelLM"}  # under which some checkpoints state a class
