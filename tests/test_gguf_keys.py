"""The metadata of a GGUF file: keys that are missing, wrong or of another model."""
import re

import gguf
import gguf_files
import numpy as np
import pytest

from llada_native import LLaDAForCausalLM, ModelFormatError, UnsupportedModelError

IDS = np.arange(40) * 7 % 57


def rewritten(tmp_path, arch, change):
    """A good file with its metadata changed: `change` gets {key: (type, value)}."""
    gguf_files.write(tmp_path / "good.gguf", "F32", arch, gguf_files.config(n_layers=1))
    reader = gguf.GGUFReader(tmp_path / "good.gguf")
    keys = {f.name: (f.types[0], f.contents()) for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    change(keys)
    w = gguf.GGUFWriter(tmp_path / "bad.gguf", keys.pop("general.architecture")[1])
    for key, (kind, value) in keys.items():
        w.add_key_value(key, value, kind, sub_type=gguf.GGUFValueType.UINT32 if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        w.add_tensor(tensor.name, tensor.data)
    gguf_files.finish(w)
    return tmp_path / "bad.gguf"


U32, F32, BOOL, TEXT, LIST = (getattr(gguf.GGUFValueType, name) for name in ("UINT32", "FLOAT32", "BOOL", "STRING", "ARRAY"))
REQUIRED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "rope.freq_base",
            "attention.layer_norm_rms_epsilon")


@pytest.mark.parametrize("arch", ["llada", "diffuse"])
@pytest.mark.parametrize("key", REQUIRED)
def test_missing_keys(tmp_path, arch, key):
    path = rewritten(tmp_path, arch, lambda keys: keys.pop(f"{arch}.{key}"))
    with pytest.raises(ModelFormatError, match=re.escape(f"{path}: required key '{arch}.{key}' is missing")):
        LLaDAForCausalLM(path)


WRONG_KEYS = [
    *[(key, value, ModelFormatError, f"llada.{key}: expected") for key in REQUIRED[:5]
      for value in ((U32, 0), (TEXT, "4"), (F32, 4.0), (BOOL, True), (LIST, [4, 4]))],
    *[(key, value, ModelFormatError, f"llada.{key}: expected a number above 0") for key in REQUIRED[5:]
      for value in ((F32, 0.0), (F32, -1.0), (F32, float("nan")), (F32, float("inf")), (TEXT, "1"), (BOOL, True))],
    ("attention.head_count", (U32, 3), ModelFormatError, "d_model: expected a multiple of n_heads"),
    ("attention.head_count_kv", (U32, 3), ModelFormatError, "n_kv_heads: expected a divisor"),
    ("block_count", (U32, 4294967295), ModelFormatError, "llada.block_count: expected a whole number from 1 to"),
    ("block_count", (U32, 2), ModelFormatError, "llada.block_count: expected as many as have tensors (1), found 2"),
    ("embedding_length", (U32, 512), ModelFormatError, "llada.rope.dimension_count: expected llada.embedding_length / "),
    ("feed_forward_length", (U32, 512), ModelFormatError, "blk.0.ffn_gate.weight: expected shape (512, 256), found (256, 256)"),
    ("vocab_size", (U32, 65), ModelFormatError, "llada.vocab_size: expected the rows of token_embd.weight (64), found 65"),
    ("rope.dimension_count", (U32, 32), ModelFormatError, "llada.rope.dimension_count: expected llada.embedding_length / "),
    ("attention.key_length", (U32, 128), ModelFormatError, "llada.attention.key_length: expected"),
    ("attention.causal", (BOOL, True), UnsupportedModelError, "llada.attention.causal = True is not supported"),
    ("attention.causal", (U32, 0), UnsupportedModelError, "llada.attention.causal = 0 is not supported"),
    ("expert_weights_norm", (BOOL, True), UnsupportedModelError, "llada.expert_weights_norm = True is not supported"),
    ("expert_shared_count", (U32, 1), UnsupportedModelError, "llada.expert_shared_count = 1 is not supported"),
    ("expert_gating_func", (U32, 2), UnsupportedModelError, "llada.expert_gating_func = 2 is not supported"),
    ("rope.scaling.type", (TEXT, "yarn"), UnsupportedModelError, "llada.rope.scaling.type = 'yarn' is not supported"),
    ("rope.scaling.factor", (F32, 4.0), UnsupportedModelError, "llada.rope.scaling.factor = 4.0 is not supported: expected 1.0"),
    ("rope.scale_linear", (F32, 4.0), UnsupportedModelError, "llada.rope.scale_linear = 4.0 is not supported: expected 1.0"),
    ("mask_token_id", (U32, 64), ModelFormatError, "llada.mask_token_id: expected a whole number from 0 to 63, found 64"),
]


@pytest.mark.parametrize(("key", "value", "error", "message"), WRONG_KEYS)
def test_wrong_keys(tmp_path, key, value, error, message):
    path = rewritten(tmp_path, "llada", lambda keys: keys.update({f"llada.{key}": value}))
    with pytest.raises(error, match=re.escape(message)) as caught:
        LLaDAForCausalLM(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("arch", "changes", "message"), [
    ("llada", {"diffusion.shift_logits": (BOOL, True)}, "diffusion.shift_logits = True is not supported: expected False for llada"),
    ("llada", {"general.architecture": (TEXT, "llama")}, "unknown architecture 'llama'; this version runs llada, llada-moe"),
    ("llada", {"general.architecture": (TEXT, "rnd1")}, "unknown architecture 'rnd1'"),
    ("diffuse", {"diffuse.model_type": (TEXT, "llada2_moe")}, "diffuse.model_type = 'llada2_moe' is not supported: expected 'llada'"),
    ("diffuse", {"diffuse.model_type": (TEXT, "dream")}, "diffuse.model_type = 'dream' is not supported: expected 'llada'"),
])
def test_models_that_are_refused_by_name(tmp_path, arch, changes, message):
    path = rewritten(tmp_path, arch, lambda keys: keys.update(changes))
    with pytest.raises(UnsupportedModelError, match=re.escape(message)) as caught:
        LLaDAForCausalLM(path)
    assert str(path) in str(caught.value)


def test_what_may_be_missing(tmp_path):
    def change(keys):
        for key in ("diffusion.shift_logits", "llada.attention.causal", "llada.vocab_size", "llada.rope.dimension_count",
                    "tokenizer.ggml.mask_token_id", "tokenizer.ggml.eos_token_id"):
            del keys[key]

    model = LLaDAForCausalLM(rewritten(tmp_path, "llada", change))
    assert model.config.mask_token_id is None and model.config.eos_token_id is None
    whole = LLaDAForCausalLM(tmp_path / "good.gguf")
    assert np.array_equal(model.forward(IDS), whole.forward(IDS))
    alike = rewritten(tmp_path, "llada", lambda keys: keys.update({"llada.attention.head_count_kv": (U32, 4)}))
    with pytest.raises(ModelFormatError, match=r"attn_k.weight: expected shape \(256, 256\), found \(128, 256\)"):
        LLaDAForCausalLM(alike)
    without = rewritten(tmp_path, "llada", lambda keys: keys.pop("llada.attention.head_count_kv"))
    with pytest.raises(ModelFormatError, match=r"attn_k.weight: expected shape \(256, 256\), found \(128, 256\)"):
        LLaDAForCausalLM(without)
