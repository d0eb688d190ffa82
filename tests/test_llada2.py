"""LLaDA2: logits against a float64 forward, routing, whole blocks of rows seen, caches that change no bit, malformed folders."""
from __future__ import annotations

import re
from dataclasses import replace

import folders
import llada2
import numpy as np
import pytest
from test_forward import assert_close

from llada_native import LLaDAForCausalLM, ModelConfig, ModelFormatError, UnsupportedModelError, _native
from llada_native.backend import tensor_specs
from llada_native.checkpoint import Checkpoint, StoredTensor, stored_tensors, tensor_name

FORMATS = ("float32", "bfloat16", "float16", "int8", "int4")
LENGTHS = (1, 7, 31, 32, 33, 64, 100, 128)
LEAST_GAP = 1e-4  # between the scores of an expert that is chosen and one that is not: float32 then chooses as float64 does


def written(folder, c, seed=0, dtype="float32", shards=1, stacked=False):
    tensors = llada2.tensors(c, seed)
    return folders.write(folder, c, llada2.stacked(c, tensors) if stacked else tensors, dtype, shards), tensors


def wanted(tensors, c, n):
    """Tokens whose routes do not hang on a rounding, and their logits."""
    for seed in range(100):
        ids, gaps = np.random.default_rng([n, seed]).integers(0, 60, n), [np.array([np.inf])]
        logits = llada2.forward(tensors, c, ids, gaps=gaps)
        if min(gap.min() for gap in gaps) > LEAST_GAP:
            return ids, logits
    raise AssertionError("no tokens whose routes are certain")


MATRIX = [
    {},
    {"num_key_value_heads": 4, "partial_rotary_factor": 1.0, "n_group": 2, "topk_group": 1},
    {"num_key_value_heads": 1, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "num_hidden_layers": 2},
    {"first_k_dense_replace": 2, "num_shared_experts": 0, "num_experts": 16, "num_experts_per_tok": 4},
    {"num_shared_experts": 2, "num_experts": 12, "n_group": 3, "topk_group": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 37},
    {"head_dim": 32, "hidden_size": 72, "num_key_value_heads": 1, "partial_rotary_factor": 0.25, "num_experts_per_tok": 1,
     "routed_scaling_factor": 1.5, "rms_norm_eps": 1e-5},
]


@pytest.mark.parametrize("changes", MATRIX)
def test_matches_the_oracle(tmp_path, isa, changes):
    c = llada2.config(**changes)
    folder, tensors = written(tmp_path, c)
    model = LLaDAForCausalLM(folder, isa=isa)
    for n in LENGTHS:
        ids, logits = wanted(tensors, c, n)
        assert_close(model.forward(ids), logits)
