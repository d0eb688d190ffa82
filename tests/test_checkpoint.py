"""The published LLaDA-8B-Instruct: its real configuration, index and tokenizer settings."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llada_native import _native
from llada_native.backend import tensor_specs
from llada_native.checkpoint import read_json, tensor_name
from llada_native.config import ModelConfig
from llada_native.tokenizer import special_token_id

FOLDER = Path(__file__).parent / "data" / "llada-8b-instruct"
MIB = 1 << 20


@pytest.fixture(scope="module")
def config():
    return ModelConfig.from_dict(read_json(FOLDER / "config.json"))


def test_configuration(config):
    assert (config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim) == (32, 4096, 32, 32, 128)
    assert (config.mlp_hidden_size, config.vocabulary, config.max_sequence_length) == (12288, 126464, 4096)
    assert (config.rope_theta, config.rms_norm_eps, config.weight_tying) == (500000.0, 1e-5, False)
    assert (config.mask_token_id, config.eos_token_id) == (126336, 126081)
    assert special_token_id(FOLDER, "<|eot_id|>") == 126348


def test_every_tensor_of_the_index_is_understood(config):
    index = read_json(FOLDER / "model.safetensors.index.json")
    specs = {tensor_name(s): s for s in tensor_specs(config)}
    assert set(specs) == set(index["weight_map"]) and len(specs) == 291
    bytes_as_bfloat16 = 2 * sum(_size(s.shape) for s in specs.values())
    assert bytes_as_bfloat16 == index["metadata"]["total_size"] == 2 * config.n_parameters()


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


MEMORY_SCRIPT = """
import json, resource, sys
from pathlib import Path
import numpy as np
from llada_native import LLaDAForCausalLM, ModelConfig

def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10, int(fields["VmHWM"].split()[0]) << 10

config = json.loads(Path(sys.argv[1]).read_text())
config["n_layers"] = 2
before, _ = resident()
model = LLaDAForCausalLM.random(config, "bfloat16", seed=0)
loaded, _ = resident()
out = model.generate(np.arange(32), gen_length=32, block_length=32, max_steps=2)
generated, peak = resident()
print(json.dumps({"before": before, "loaded": loaded, "generated": generated, "peak": peak, "forwards": out.n_forward,
                  "parameters": model.config.n_parameters(), **model.memory()}))
"""


@pytest.mark.slow
def test_memory_of_two_layers_at_full_width(tmp_path):
    """Resident memory within 10 % of the weights plus a workspace without a rows x vocabulary array, peak included."""
    script = tmp_path / "memory.py"
    script.write_text(MEMORY_SCRIPT)
    run = subprocess.run([sys.executable, script, FOLDER / "config.json"], capture_output=True, text=True, check=True, cwd=tmp_path)
    m = json.loads(run.stdout)
    print(m)
    assert m["forwards"] == 2
    assert 2 * m["parameters"] <= m["weights"] <= 1.001 * 2 * m["parameters"] + MIB
    # Activations of 64 rows: 4 of d_model, 2 of the MLP, packed keys and values, rotary tables; a tile of 4096 logits a row. One
    # array of 32 rows x 126464 float32 logits alone would be 15.4 MiB more. On tile registers the 64 rows also as three bfloat16 numbers.
    parts = 64 * 12288 * 6 if _native.Kernels(_native.active_isa()).has_tiles else 0
    assert m["workspace"] < 16 * MIB + parts
    assert m["generated"] - m["before"] <= 1.10 * m["weights"] + m["workspace"]
    assert m["generated"] - m["loaded"] < m["workspace"] + 12 * MIB
    assert m["peak"] - m["before"] <= 1.10 * m["weights"] + m["workspace"]
