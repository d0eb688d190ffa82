"""Layers of experts beside dense layers with the multiply-adds of the experts that a row has; and block-causal generation."""
from functools import cache
from statistics import median

import numpy as np

from llada_native import LLaDAForCausalLM

from .bench_forward import request
from .common import EXPERT_LAYERS, LLADA2_MINI_LAYER, LongCall, durations

DENSE = {"LLaDA-MoE": {"moe_layer_freq": [0], "dense_intermediate_size": 8 * 1024},
         "LLaDA2-mini": {"first_k_dense_replace": 1, "intermediate_size": (8 + 1) * 512}}


@cache
def layer(name, dense):
    """One layer of int4 with random weights; random rows spread over all experts."""
    return LLaDAForCausalLM.random(EXPERT_LAYERS[name] | (DENSE[name] if dense else {}), "int4")


def step(model, rows):
    """Arguments of `hidden`: a batch of blocks of 32 rows, or part of one."""
    return request(model, rows, max(1, rows // 32))


def seconds(model, rows):
    """Of a forward pass up to the final norm, every row selected."""
    arguments = step(model, rows)
    return median(durations(lambda: model._backend.hidden(*arguments)))


class ExpertLayer(LongCall):
    """One layer of int4 at its true shape, on every core."""

    params = (tuple(EXPERT_LAYERS), (8, 32, 128))
    param_names = ("model", "rows")

    def setup(self, model, rows):
        self.model = layer(model, dense=False)
        self.arguments = step(self.model, rows)

    def time_forward(self, *_):
        self.model._backend.hidden(*self.arguments)

    time_forward.version = "2"

    def track_time_over_dense(self, model, rows):
        """Over a layer whose MLP has as many multiply-adds for a row: what it costs that rows have experts of their own."""
        return seconds(self.model, rows) / seconds(layer(model, dense=True), rows)

    track_time_over_dense.version = "2"
    track_time_over_dense.unit = "ratio"

    def track_gain_a_row(self, model, rows):
        """Rows a second over those of one block of 32: what a batch gains."""
        return rows / 32 * seconds(self.model, 32) / seconds(self.model, rows)

    track_gain_a_row.version = "1"
    track_gain_a_row.unit = "ratio"


# Four layers of LLaDA2-mini's kind, small enough that a whole answer is a call.
SMALL = LLADA2_MINI_LAYER | {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                             "num_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "moe_intermediate_size": 128,
                             "first_k_dense_replace": 1, "intermediate_size": 1280, "mask_token_id": 511}
PROMPT_LENGTH, GEN_LENGTH = 128, 64


@cache
def block_causal():
    return LLaDAForCausalLM.random(SMALL, "int4")


class Committed(LongCall):
    """Whole answers of a block-causal model with random weights, one token a pass: every row anew, or finished blocks kept."""

    params = (("none", "committed"), (1, 4))
    param_names = ("cache", "batch")

    def setup(self, cache, batch):
        self.model, self.cache = block_causal(), cache
        self.prompts = np.random.default_rng(0).integers(0, 511, (batch, PROMPT_LENGTH), np.int32)

    def call(self, cache=None):
        return self.model.generate(self.prompts, gen_length=GEN_LENGTH, cache=cache or self.cache)

    def time_generate(self, *_):
        self.call()

    time_generate.version = "1"

    def track_tokens_per_second(self, cache, batch):
        return GEN_LENGTH * batch / median(durations(self.call))

    track_tokens_per_second.version = "1"
    track_tokens_per_second.unit = "token/s"

    def track_rows_per_token(self, cache, batch):
        return self.call().rows_computed / (GEN_LENGTH * batch)

    track_rows_per_token.version = "1"
    track_rows_per_token.unit = "row/token"

    def track_error(self, *_):
        """Tokens that are not those of whole passes."""
        found, wanted = (np.concatenate(self.call(cache).sequences) for cache in (self.cache, "none"))
        return int((found != wanted).sum())

    track_error.version = "1"
    track_error.unit = "tokens"
