"""`llada-native info`: the machine, the build and a model."""
from __future__ import annotations

import argparse
from typing import Any

from .. import __version__
from ..loading import GIB
from ..machine import available_memory, cpu_info
from ..model import DEMO, LLaDAForCausalLM
from . import arguments, output
from .arguments import EXIT_OK


def add(commands: Any) -> None:
    parser = arguments.add_command(commands, "info", run, "the machine, the build and a model",
                                   "llada-native info", "llada-native info --json --model path/to/LLaDA-8B-Instruct")
    arguments.add_model(parser)
    arguments.add_json(parser)


def run(a: argparse.Namespace) -> int:
    memory = available_memory()
    facts: dict[str, Any] = {"version": __version__, **cpu_info(),
                             "available_memory_gib": None if memory is None else round(memory / GIB, 1)}
    with arguments.open_model(a) as model:
        facts["model"] = {"folder": str(a.model or DEMO), **model_facts(model)}
    if a.json:
        output.json_line(facts)
        return EXIT_OK
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                output.answer(f"  {name}: {item}")
        else:
            print(f"{key}: {value}")
    return EXIT_OK


def model_facts(model: LLaDAForCausalLM) -> dict[str, Any]:
    c = model.config
    facts = {"architecture": c.architecture, "parameters": c.n_parameters(), "layers": c.n_layers, "d_model": c.d_model,
             "heads": c.n_heads, "kv_heads": c.n_kv_heads, "head_dim": c.head_dim, "mlp_hidden_size": c.mlp_hidden_size,
             "vocabulary": c.vocabulary, "max_sequence_length": c.max_sequence_length, "dtype": model.dtype, "backend": model.backend,
             "isa": model.isa, "num_threads": model.num_threads, "weights_mib": round(model.memory()["weights"] / (1 << 20), 1),
             "tokenizer": model.tokenizer is not None, "chat_template": bool(model.tokenizer and model.tokenizer.chat_template)}
    if model.group_size:
        facts["group_size"] = model.group_size
    if c.n_experts:
        facts |= {"experts": c.n_experts, "experts_per_token": c.experts_per_token, "expert_hidden_size": c.expert_hidden_size,
                  "shared_expert_hidden_size": c.shared_expert_hidden_size, "dense_layers": list(c.dense_layers)}
    if model.revision:
        facts["revision"] = model.revision
    if c.attention_block:
        facts["attention_block"] = c.attention_block
    return facts
