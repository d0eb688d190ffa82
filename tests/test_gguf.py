"""GGUF files: what the engine holds of them, that both ways to write a model are read rightly, and that nothing in a file is trusted."""
import json
import pickle
import re
import shutil
import struct
import sys
import tracemalloc
from dataclasses import replace

import folders
import gguf
import gguf_files
import ml_dtypes
import numpy as np
import pytest
import test_moe
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

import llada_native
from llada_native import (
    LLaDAForCausalLM,
    MissingPackageError,
    ModelConfig,
    ModelFormatError,
    UnsupportedModelError,
    _native,
    cli,
    gguf_checkpoint,
)
from llada_native.backend import IntegerRows
from llada_native.gguf_checkpoint import GGUFCheckpoint
from llada_native.tokenizer import Tokenizer

IDS = np.arange(40) * 7 % 57
INTEGERS = {"Q8_0": (-127, 127), "Q5_0": (-16, 15), "Q4_0": (-8, 7)}


def floats(rows):
    return rows.floats() if isinstance(rows, IntegerRows) else np.asarray(rows, np.float32)


def loaded(checkpoint):
    """Every tensor of a source, whole: (role, layer, expert) -> float32."""
    parts = {}
    for spec, begin, rows in checkpoint.slices():
        so_far = parts.setdefault((spec.role, spec.layer, spec.expert), [])
        assert begin == sum(map(len, so_far))
        so_far.append(floats(rows))
    return {key: np.concatenate(p) for key, p in parts.items()}


# ---- values

@pytest.mark.parametrize("kind", gguf_files.TYPES)
def test_values_are_those_of_the_gguf_package(tmp_path, kind):
    """Bit for bit, over random blocks with scales of every finite float16: subnormals, zeros, both signs."""
    config, rng = gguf_files.config(n_layers=1, n_kv_heads=4), np.random.default_rng(0)
    w, stored = gguf_files.writer(tmp_path / "a.gguf", "diffuse", config), {}
    for name, tensor in folders.tensors(config).items():
        name = gguf_files.name_of(name)
        if tensor.ndim == 1:
            stored[name], blocks = tensor, tensor
        elif kind in gguf_files.FLOATS:
            bits = rng.integers(0, 1 << 32, tensor.shape, np.uint32)
            bits &= ~np.uint32(1 << 23 | 1 << 10)  # exponents that are not all ones: finite as float32, as bfloat16 and as float16
            blocks = {"F32": bits.view(np.float32), "F16": (bits.astype(np.uint16) & ~np.uint16(1 << 10)).view(np.float16),
                      "BF16": (bits >> 16).astype(np.uint16).view(np.uint8)}[kind]
            stored[name] = gguf_files.decode(kind, blocks)
        else:
            size = gguf.GGML_QUANT_SIZES[Type[kind]][1]
            blocks = gguf_files.random_blocks(kind, tensor.shape, rng)
            for at in gguf_files.SCALES[kind][0]:
                scales = rng.integers(0, 1 << 16, (len(blocks), blocks.shape[1] // size), np.uint16) & ~np.uint16(1 << 10)
                blocks.reshape(len(blocks), -1, size)[:, :, at:at + 2] = scales[..., None].view(np.uint8)
            stored[name] = gguf_files.decode(kind, blocks)
        gguf_files.add(w, name, blocks, "F32" if tensor.ndim == 1 else kind)
    gguf_files.finish(w)
    checkpoint = GGUFCheckpoint(tmp_path / "a.gguf")
    names = {(spec.role, spec.layer, spec.expert): name for spec, name in checkpoint.specs}
    for key, values in loaded(checkpoint).items():
        assert values.shape == stored[names[key]].shape and values.tobytes() == stored[names[key]].tobytes(), key
    if kind not in gguf_files.FLOATS:  # the test saw every byte there is
        assert len(np.unique(blocks)) == 256


@pytest.mark.parametrize("arch", ["llada", "diffuse"])
@pytest.mark.parametrize("kind", gguf_files.TYPES)
def test_the_same_bits_as_a_folder_of_the_same_values(tmp_path, kind, arch):
    path, folder = gguf_files.pair(tmp_path, kind, arch)
    one, other = LLaDAForCausalLM(path, dtype="float32"), LLaDAForCausalLM(folder, dtype="float32")
    assert one.config == replace(other.config, dtype=None)
    assert np.array_equal(one.forward(IDS), other.forward(IDS))
    answers = [m.generate(IDS[:9], gen_length=16, block_length=8, max_steps=8).sequences for m in (one, other)]
    assert np.array_equal(*answers)


@pytest.mark.parametrize("slice_bytes", [1, 1 << 16])
@pytest.mark.parametrize("arch", ["llada", "diffuse"])
def test_slices_of_any_size(tmp_path, arch, slice_bytes, monkeypatch):
    path, _ = gguf_files.pair(tmp_path, "Q4_K", arch)
    whole = loaded(GGUFCheckpoint(path))
    monkeypatch.setattr(gguf_checkpoint, "SLICE_BYTES", slice_bytes)
    for key, values in loaded(GGUFCheckpoint(path)).items():
        assert np.array_equal(values, whole[key]), key


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "BF16"])
def test_no_more_than_slices_in_memory(tmp_path, kind, monkeypatch):
    """Matrices of 16 MiB as float32, in slices of 1 MiB: what is allocated at once is a few of these."""
    path = tmp_path / "a.gguf"
    gguf_files.write(path, kind, config=gguf_files.config(d_model=512, mlp_hidden_size=8192, n_layers=1))
    monkeypatch.setattr(gguf_checkpoint, "SLICE_BYTES", 1 << 20)
    checkpoint = GGUFCheckpoint(path)
    sum(rows.size for _, _, rows in checkpoint.slices())  # what is imported on the way
    tracemalloc.start()
    try:
        assert sum(rows.size for _, _, rows in checkpoint.slices()) == checkpoint.config.n_parameters()
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_the_wrong_dialect_would_be_seen(tmp_path):
    """Rows of queries and keys in the other program's order: nothing fails, and the logits are others."""
    config = gguf_files.config()
    values = gguf_files.write(tmp_path / "right.gguf", "F32", "llada", config)
    w = gguf_files.writer(tmp_path / "wrong.gguf", "diffuse", config)
    for name, tensor in values.items():
        target = gguf_files.name_of(name)
        heads = {"attn_q": 4, "attn_k": 2}.get(target.split(".")[-2])
        gguf_files.add(w, target, gguf_files.adjacent_pairs(tensor, heads) if heads else tensor, "F32")
    gguf_files.finish(w)
    right, wrong = (LLaDAForCausalLM(tmp_path / f"{name}.gguf").forward(IDS) for name in ("right", "wrong"))
    assert np.abs(right - wrong).max() > 0.01 * np.abs(right).max()
    assert np.array_equal(right[:1] * 0, wrong[:1] * 0)  # both are finite


@pytest.mark.parametrize("kind", gguf_files.TYPES)
def test_both_dialects_are_one_model(tmp_path, kind):
    """Whole rows change places, and with them their blocks: the engine's own formats see no difference."""
    one, other = (LLaDAForCausalLM(gguf_files.pair(tmp_path / arch, kind, arch)[0]) for arch in ("llada", "diffuse"))
    assert one.dtype == other.dtype and np.array_equal(one.forward(IDS), other.forward(IDS))


def test_a_tied_head(tmp_path):
    config = gguf_files.config(weight_tying=True)
    path, folder = gguf_files.pair(tmp_path, "Q8_0", config=config)
    assert LLaDAForCausalLM(path).config.weight_tying
    assert np.array_equal(LLaDAForCausalLM(path, dtype="float32").forward(IDS), LLaDAForCausalLM(folder, dtype="float32").forward(IDS))


# ---- formats in memory

AUTO = {"F32": ("float32", "F32"), "F16": ("float16", "F16"), "BF16": ("bfloat16", "BF16"), "Q8_0": ("int8", "Q8_0"),
        **{kind: ("int4", kind) for kind in ("Q4_0", "Q4_1", "Q4_K")},
        **{kind: ("int8", kind) for kind in ("Q5_0", "Q5_1", "Q5_K", "Q6_K")},
        "Q4_K_M": ("int4", {"output.weight": "Q6_K", "attn_v.weight": "Q6_K", "ffn_down.weight": "Q6_K", "": "Q4_K"})}


@pytest.mark.parametrize("mix", AUTO)
def test_auto_is_what_most_weights_are(tmp_path, mix):
    dtype, kinds = AUTO[mix]
    path, folder = gguf_files.pair(tmp_path, kinds)
    model, other = LLaDAForCausalLM(path), LLaDAForCausalLM(folder, dtype=dtype, group_size=32)
    assert model.dtype == dtype and pickle.loads(pickle.dumps(model)).dtype == dtype
    if mix in INTEGERS:  # held as they are, where a folder's floats are quantised: 8-bit activations remain
        exact = LLaDAForCausalLM(path, backend="reference").forward(IDS)
        assert np.sqrt(((model.forward(IDS) - exact) ** 2).mean() / (exact**2).mean()) < 0.06
    else:
        assert np.array_equal(model.forward(IDS), other.forward(IDS))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_are_held_as_they_are(isa, dtype, kind):
    """A layer times 127 in one input: that input is quantised to 127 with scale 1, so the output is 127 * integer * scale, rounded once."""
    rng, (low, high) = np.random.default_rng(0), INTEGERS[kind]
    values = rng.integers(low, high + 1, (40, 96)).astype(np.int8)
    scales = rng.uniform(-2, 2, (40, 3)).astype(np.float16).astype(np.float32)
    if dtype == "int4" and kind != "Q4_0":
        with pytest.raises(ValueError, match="integers that int4 holds"):
            _native.PackedLinear(IntegerRows(values, scales), dtype, isa, 32)
        return
    layer = _native.PackedLinear(IntegerRows(values, scales), dtype, isa, 32)
    out = np.empty((96, 40), np.float32)
    layer(np.eye(96, dtype=np.float32) * 127, out)
    wanted = np.float32(127) * values * np.repeat(scales, 32, 1)
    assert np.array_equal(out.T, wanted)


@pytest.mark.parametrize(("dtype", "group", "value"), [("int8", 64, 1), ("int8", 128, 1), ("int8", 32, -128), ("int4", 32, 8),
                                                       ("int4", 32, -9), ("float32", 32, 1), ("bfloat16", 32, 1)])
def test_integers_that_a_format_has_not(isa, dtype, group, value):
    rows = IntegerRows(np.full((8, 128), value, np.int8), np.ones((8, 4), np.float32))
    with pytest.raises(ValueError, match="weight: expected integers"):
        _native.PackedLinear(rows, dtype, isa, group)


@pytest.mark.parametrize("scales", [(8, 0), (7, 4), (8, 3)])
def test_scales_that_do_not_fit_integers(scales):
    rows = IntegerRows(np.ones((8, 128), np.int8), np.ones(scales, np.float32))
    message = re.escape(f"expected scales of groups of (8, 128) values, found shape {scales}")
    with pytest.raises(ValueError, match="weight: " + message):
        _native.PackedLinear(rows, "int8", group=32)
    model = _native.NativeModel(ModelConfig.from_dict(gguf_files.config()), "int8", 1, group=32)
    with pytest.raises(ValueError, match="up_proj: " + message):
        model.load_integers("up_proj", 0, 0, rows.values, rows.scales)


@pytest.mark.parametrize("columns", [32, 224, 288])
def test_rows_of_another_width(columns):
    """Nothing beyond an array is read, and nothing of it is left."""
    model = _native.NativeModel(ModelConfig.from_dict(gguf_files.config()), "int8", 1, group=32)
    for tensor, layer in (("q_proj", 0), ("embedding", -1), ("head", -1)):
        message = rf"{tensor}: expected rows of 256 columns, found shape \(4, {columns}\)"
        with pytest.raises(ValueError, match=message):
            model.load(tensor, layer, 0, np.zeros((4, columns), np.float32))
        if tensor != "embedding":
            with pytest.raises(ValueError, match=message):
                model.load_integers(tensor, layer, 0, np.zeros((4, columns), np.int8), np.zeros((4, columns // 32), np.float32))
    with pytest.raises(ValueError, match=r"attn_norm: expected rows of 1 columns, found shape \(4, 2\)"):
        model.load("attn_norm", 0, 0, np.zeros((4, 2), np.float32))


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", "int8"), ("Q5_0", "int8"), ("Q4_0", "int8"), ("Q4_0", "int4")])
def test_a_model_holds_the_integers_of_its_file(tmp_path, kind, dtype):
    """q_proj, the embedding and the head in the engine's own file, unpacked by its description."""
    config = gguf_files.config(n_layers=1, n_kv_heads=4)
    values = gguf_files.write(tmp_path / "a.gguf", kind, "diffuse", config)
    model = LLaDAForCausalLM(tmp_path / "a.gguf", dtype=dtype)
    model._backend.save(str(tmp_path / "a.llada"), "")
    data = np.frombuffer((tmp_path / "a.llada").read_bytes(), np.uint8)
    panel, at, d, vocabulary = _native.Kernels(model.isa).panel, 4096, 256, 64

    def take(count, numbers):
        nonlocal at
        found = data[at:at + count].view(numbers)
        at += -(-count // 64) * 64
        return found

    def matrix(rows, bits):
        codes = take(rows * d * bits // 8, np.uint8)
        if bits == 4:
            pairs = codes.reshape(-1, d // 8, panel, 4)
            codes = np.stack([pairs & 15, pairs >> 4], 2)  # [panels, depth / 8, 2, panel, 4]
        codes = codes.reshape(-1, d // 4, panel, 4).transpose(0, 2, 1, 3).reshape(rows, d)
        scales = take(rows * d // 32 * 4, np.float32).reshape(-1, d // 32, panel).transpose(0, 2, 1).reshape(rows, -1)
        return (codes.astype(np.int32) - (8 if bits == 4 else 128)).astype(np.float32) * np.repeat(scales, 32, 1)

    embedding = take(vocabulary * d * 2, ml_dtypes.bfloat16).reshape(vocabulary, d)
    assert np.array_equal(embedding, values["model.transformer.wte.weight"].astype(ml_dtypes.bfloat16))
    take(d * 4, np.float32), take(d * 4, np.float32)
    assert np.array_equal(matrix(d, 4 if dtype == "int4" else 8), values["model.transformer.blocks.0.q_proj.weight"])
    at = len(data) - 8 - vocabulary * (d + d // 32 * 4)
    assert np.array_equal(matrix(vocabulary, 8), values["model.transformer.ff_out.weight"])


def test_other_groups_are_quantised_anew(tmp_path):
    path, folder = gguf_files.pair(tmp_path, "Q8_0")
    one, other = (LLaDAForCausalLM(p, dtype="int8", group_size=64) for p in (path, folder))
    assert np.array_equal(one.forward(IDS), other.forward(IDS))


def test_an_8_bit_value_that_the_engine_has_not(tmp_path):
    """-128, which no program writes: its rows are quantised anew, and the model still answers."""
    config = gguf_files.config(n_layers=1)
    w, rng = gguf_files.writer(tmp_path / "a.gguf", "diffuse", config), np.random.default_rng(0)
    for name, tensor in folders.tensors(config).items():
        stored = tensor if tensor.ndim == 1 else gguf_files.random_blocks("Q8_0", tensor.shape, rng)
        gguf_files.add(w, gguf_files.name_of(name), stored, "F32" if tensor.ndim == 1 else "Q8_0")
    gguf_files.finish(w)
    model, exact = LLaDAForCausalLM(tmp_path / "a.gguf"), LLaDAForCausalLM(tmp_path / "a.gguf", dtype="float32")
    assert model.dtype == "int8"
    np.testing.assert_allclose(model.forward(IDS), exact.forward(IDS), atol=0.05 * np.abs(exact.forward(IDS)).max())


# ---- mixtures of experts

def moe_file(path, c, tensors, kind="F32"):
    w = gguf.GGUFWriter(path, "llada-moe")
    for key, value in (("block_count", "num_hidden_layers"), ("context_length", "max_position_embeddings"),
                       ("embedding_length", "hidden_size"), ("attention.head_count", "num_attention_heads"),
                       ("attention.head_count_kv", "num_key_value_heads"),
                       ("expert_count", "num_experts"), ("expert_used_count", "num_experts_per_tok"),
                       ("expert_feed_forward_length", "expert_intermediate_size")):
        w.add_uint32(f"llada-moe.{key}", c[value])
    w.add_float32("llada-moe.rope.freq_base", c["rope_theta"])
    w.add_float32("llada-moe.attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    w.add_bool("llada-moe.attention.causal", False)
    w.add_bool("diffusion.shift_logits", False)
    w.add_uint32("tokenizer.ggml.mask_token_id", c["mask_token_id"])
    rng, values = np.random.default_rng(0), {}

    def put(target, published):
        both = [tensors[name] for name in published]
        simple = both[0].ndim == 1 or target.endswith("ffn_gate_inp.weight")
        stored = [gguf_files.encode("F32" if simple else kind, t, rng) for t in both]
        values.update((name, gguf_files.decode("F32" if simple else kind, s)) for name, s in zip(published, stored, strict=True))
        gguf_files.add(w, target, np.stack(stored) if ".experts." in published[0] else stored[0], "F32" if simple else kind)

    for target, published in (("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")):
        put(f"{target}.weight", [f"{published}.weight"])
    for i in range(c["num_hidden_layers"]):
        for target, leaf in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_q", "self_attn.q_proj"),
                             ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"),
                             ("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm"), ("ffn_gate_inp", "mlp.gate")):
            put(f"blk.{i}.{target}.weight", [f"model.layers.{i}.{leaf}.weight"])
        for part in ("gate", "up", "down"):
            put(f"blk.{i}.ffn_{part}_exps.weight",
                [f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight" for e in range(c["num_experts"])])
    gguf_files.finish(w)
    return values


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_mixtures_of_experts(tmp_path, kind):
    c = test_moe.moe_config(hidden_size=64, expert_intermediate_size=32, moe_layer_freq=[1, 1], num_hidden_layers=2, num_key_value_heads=2)
    values = moe_file(tmp_path / "moe.gguf", c, test_moe.moe_tensors(c), kind)
    folder = folders.write(tmp_path / "folder", c, values)
    one, other = LLaDAForCausalLM(tmp_path / "moe.gguf", dtype="float32"), LLaDAForCausalLM(folder, dtype="float32")
    ids = test_moe.ids_of(33)
    assert np.array_equal(one.forward(ids), other.forward(ids))
    assert one.config.n_experts == c["num_experts"] and one.config.mask_token_id == c["mask_token_id"]
    if kind != "F32":
        small = LLaDAForCausalLM(tmp_path / "moe.gguf")
        assert small.dtype == {"Q8_0": "int8", "Q4_0": "int4"}[kind] and np.isfinite(small.forward(ids)).all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_experts": 4095}, r"llada-moe.expert_count: expected as many as have tensors \(8\), found 4095"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok: expected at most num_experts"),
    ({"expert_intermediate_size": 64}, r"blk.0.ffn_gate_exps.weight: expected shape \(8, 64, 64\), found \(8, 32, 64\)"),
])
def test_experts_that_do_not_fit(tmp_path, changes, message, monkeypatch):
    c = test_moe.moe_config(hidden_size=64, expert_intermediate_size=32, moe_layer_freq=[1, 1], num_hidden_layers=2, num_experts=8)
    tensors, write = test_moe.moe_tensors(c), gguf.GGUFWriter.add_uint32
    keys = {"llada-moe.expert_count": "num_experts", "llada-moe.expert_used_count": "num_experts_per_tok",
            "llada-moe.expert_feed_forward_length": "expert_intermediate_size"}
    monkeypatch.setattr(gguf.GGUFWriter, "add_uint32", lambda w, key, value: write(w, key, changes.get(keys.get(key), value)))
    moe_file(tmp_path / "moe.gguf", c, tensors)
    with pytest.raises(ModelFormatError, match=message):
        LLaDAForCausalLM(tmp_path / "moe.gguf")


# ---- Dream

@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_dream(tmp_path, kind):
    """Llama's tensors in the order of the folder, and biases of queries, keys and values."""
    c = {"architectures": ["DreamModel"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
         "intermediate_size": 96, "vocab_size": 64, "max_position_embeddings": 512, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
         "tie_word_embeddings": False, "hidden_act": "silu", "mask_token_id": 58, "eos_token_id": 57}
    alike = folders.config(d_model=64, n_kv_heads=2, mlp_hidden_size=96, vocab_size=64, rope_theta=1e6, rms_norm_eps=1e-6)
    rng, w, values = np.random.default_rng(0), gguf_files.writer(tmp_path / "dream.gguf", "dream", alike), {}
    leaves = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
              "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
              "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "token_embd": "embed_tokens", "output_norm": "norm"}
    tensors = {gguf_files.name_of(name): tensor for name, tensor in folders.tensors(alike).items()}
    tensors |= {f"blk.{i}.attn_{part}.bias": rng.normal(0, 1, 64 if part == "q" else 32).astype(np.float32)
                for i in range(2) for part in "qkv"}
    for name, tensor in tensors.items():
        *block, leaf, what = name.split(".")
        published = "lm_head" if leaf == "output" else f"model.layers.{block[1]}.{leaves[leaf]}" if block else f"model.{leaves[leaf]}"
        stored = gguf_files.encode("F32" if tensor.ndim == 1 else kind, tensor, rng)
        values[f"{published}.{what}"] = gguf_files.decode("F32" if tensor.ndim == 1 else kind, stored)
        gguf_files.add(w, name, stored, "F32" if tensor.ndim == 1 else kind)
    gguf_files.finish(w)
    folder = folders.write(tmp_path / "folder", c, values)
    one, other = LLaDAForCausalLM(tmp_path / "dream.gguf", dtype="float32"), LLaDAForCausalLM(folder, dtype="float32")
    assert np.array_equal(one.forward(IDS), other.forward(IDS)) and one.config == replace(other.config, dtype=None)


# ---- the tokenizer

def demo_file(path, add_bos_token=True, pre="bailingmoe2", **changes):
    """The demo model, with the keys of a tokenizer as llama.cpp writes them."""
    from llada_native.checkpoint import Checkpoint, tensor_name
    from llada_native.model import DEMO

    config = json.loads((DEMO / "config.json").read_text())
    tokenizer, options = (json.loads((DEMO / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    texts = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    special = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
    w = gguf_files.writer(path, "llada", config)
    keys = {"model": "gpt2", "pre": pre, "tokens": [texts.get(i, special.get(i, f"[PAD{i}]")) for i in range(config["vocab_size"])],
            "token_type": [3 if i in special else 1 if i in texts else 5 for i in range(config["vocab_size"])],
            "merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]], "bos_token_id": 506, "padding_token_id": 507,
            "add_bos_token": add_bos_token, **changes}
    for key, value in keys.items():
        add = {str: w.add_string, bool: w.add_bool, int: w.add_uint32, list: w.add_array, float: w.add_float32}.get(type(value))
        if add:
            add(f"tokenizer.ggml.{key}", value)
    w.add_chat_template(options["chat_template"])
    checkpoint = Checkpoint(DEMO)
    for spec, _, rows in checkpoint.slices():
        name = gguf_files.name_of(tensor_name(spec))
        stored = gguf_files.adjacent_pairs(rows, 4) if spec.role in ("q_proj", "k_proj") else rows
        kind = "F32" if rows.ndim == 1 else "BF16"
        gguf_files.add(w, name, stored.astype(np.float32) if kind == "F32" else np.ascontiguousarray(stored).view(np.uint8), kind)
    gguf_files.finish(w)
    return path


@pytest.fixture(scope="module")
def demo_gguf(tmp_path_factory):
    return LLaDAForCausalLM(demo_file(tmp_path_factory.mktemp("demo") / "demo.gguf"))


def test_the_demo_model_answers_from_a_gguf_file(demo, demo_gguf):
    assert demo_gguf.dtype == demo.dtype == "bfloat16"
    for prompt in ("Sort these numbers: 31, 7, 52, 12.", "What is 17 plus 25?"):
        one, other = (model.generate(prompt, gen_length=64) for model in (demo, demo_gguf))
        assert one.text == other.text and np.array_equal(one.sequences, other.sequences)


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_the_tokenizer_is_that_of_the_folder(demo, demo_gguf, text):
    one, other = demo.tokenizer, demo_gguf.tokenizer
    assert one.encode(text) == other.encode(text)
    assert one.decode(one.encode(text)) == other.decode(one.encode(text))
    chat = [{"role": "user", "content": text}]
    assert one.encode_chat(chat) == other.encode_chat(chat)


def test_decomposed_text_is_composed(demo_gguf):
    assert demo_gguf.tokenizer.encode("cafe\u0301") == demo_gguf.tokenizer.encode("caf\u00e9")


def test_no_beginning_of_text_twice(demo_gguf):
    """The file says add_bos_token, and the template begins with it."""
    ids = demo_gguf.tokenizer.encode_chat([{"role": "user", "content": "a"}])
    assert ids.count(506) == 1 and 506 not in demo_gguf.tokenizer.encode("a")


def test_special_tokens(demo_gguf):
    tokenizer = demo_gguf.tokenizer
    assert (tokenizer.token_id("<|eot_id|>"), tokenizer.token_id("<|mdm_mask|>")) == (511, 508)
    assert demo_gguf.generate("What is 17 plus 25?").finish_reason == ["stop"]
    assert tokenizer.decode([508]) == "" and tokenizer.decode([508], skip_special_tokens=False) == "<|mdm_mask|>"


def test_splitting_words_as_qwen2():
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    from llada_native.byte_level import PATTERNS

    split = {name: [text for text, _ in Split(Regex(pattern), "isolated").pre_tokenize_str("It's 42!?\n\nx  y")]
             for name, pattern in PATTERNS.items()}
    for name, words in split.items():
        assert words == ["It", "'s", " ", "4", "2", "!?\n\n", "x", " ", " y"], name


def test_without_a_tokenizer(tmp_path):
    path, _ = gguf_files.pair(tmp_path, "F32", "diffuse")
    model = LLaDAForCausalLM(path)
    assert model.tokenizer is None and model.config.mask_token_id == 58
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        model.generate("hello")


WRONG_TOKENIZERS = {
    "another model": (UnsupportedModelError, "tokenizer.ggml.model = 'llama'", {"model": "llama"}),
    "a list for a model": (ModelFormatError, "tokenizer.ggml.model: expected text, found a list of 2", {"model": [1, 2]}),
    "another way to split": (UnsupportedModelError, "tokenizer.ggml.pre = 'gpt-4o'", {"pre": "gpt-4o"}),
    "no way to split": (ModelFormatError, "required key 'tokenizer.ggml.pre' is missing", {"pre": None}),
    "a number for a name": (ModelFormatError, "tokenizer.ggml.pre: expected text, found 3", {"pre": 3}),
    "no tokens": (ModelFormatError, "required key 'tokenizer.ggml.tokens' is missing", {"tokens": None}),
    "numbers for tokens": (ModelFormatError, "tokenizer.ggml.tokens: expected a list of texts, found a list of 3", {"tokens": [1, 2, 3]}),
    "a token twice": (ModelFormatError, "tokenizer.ggml.tokens: expected none twice, found 'a'", {"tokens": ["a", "b", "a"]}),
    "too few types": (ModelFormatError, "tokenizer.ggml.token_type: expected 512 whole numbers, found a list of 2", {"token_type": [1, 1]}),
    "types in words": (ModelFormatError, "tokenizer.ggml.token_type: expected 512 whole numbers", {"token_type": ["1"] * 512}),
    "an unknown type": (ModelFormatError, "tokenizer.ggml.token_type: expected numbers from 1 to 5, found 9", {"token_type": [9] * 512}),
    "no merges": (ModelFormatError, "required key 'tokenizer.ggml.merges' is missing", {"merges": None}),
    "a merge of one": (ModelFormatError, "tokenizer.ggml.merges: expected two tokens with a space between them, found 'a'",
                       {"merges": ["a"]}),
    "a merge of strangers": (ModelFormatError, "not a valid tokenizer", {"merges": ["zzzz yyyy"]}),
    "an end beyond the tokens": (ModelFormatError, "tokenizer.ggml.bos_token_id: expected a token id from 0 to 511, found 512",
                                 {"bos_token_id": 512}),
    "an end that is text": (ModelFormatError, "tokenizer.ggml.bos_token_id: expected a token id", {"bos_token_id": "<s>"}),
}


@pytest.mark.parametrize("case", WRONG_TOKENIZERS)
def test_tokenizers_that_are_refused(tmp_path, case):
    error, message, changes = WRONG_TOKENIZERS[case]
    path = demo_file(tmp_path / "demo.gguf", **changes)
    with pytest.raises(error, match=re.escape(message)) as caught:
        LLaDAForCausalLM(path)
    assert str(path) in str(caught.value)


def test_more_tokens_than_rows(tmp_path):
    path = demo_file(tmp_path / "demo.gguf", tokens=["tt", "t", *(f"t{i}" for i in range(600))], token_type=[1] * 602, merges=["t t"])
    with pytest.raises(ModelFormatError, match="expected token ids below 512"):
        LLaDAForCausalLM(path)


# ---- keys

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


# ---- containers

class Container:
    """A file of one small float32 model, byte by byte."""

    def __init__(self):
        config = folders.config(n_layers=1, vocab_size=64)
        numbers = {"block_count": 1, "context_length": 512, "embedding_length": 32, "feed_forward_length": 48, "attention.head_count": 4,
                   "attention.head_count_kv": 4}
        self.magic, self.version, self.n_tensors, self.n_keys, self.alignment = b"GGUF", 3, None, None, 32
        self.keys = [(b"general.architecture", 8, text(b"diffuse")), (b"diffuse.model_type", 8, text(b"llada")),
                     *[(f"diffuse.{key}".encode(), 4, struct.pack("<I", value)) for key, value in numbers.items()],
                     (b"diffuse.rope.freq_base", 6, struct.pack("<f", 1e4)),
                     (b"diffuse.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))]
        self.tensors, self.data = [], b""
        for name, tensor in folders.tensors(config).items():
            self.tensors.append([gguf_files.name_of(name).encode(), list(tensor.shape[::-1]), 0, len(self.data)])
            self.data += tensor.tobytes() + bytes(-tensor.nbytes % self.alignment)

    def header(self):
        counts = (len(self.tensors) if self.n_tensors is None else self.n_tensors, len(self.keys) if self.n_keys is None else self.n_keys)
        out = self.magic + struct.pack("<IQQ", self.version, *counts)
        for key, kind, value in self.keys:
            out += text(key) + struct.pack("<I", kind) + value
        for name, dims, kind, offset in self.tensors:
            out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return out

    def write(self, path):
        header = self.header()
        path.write_bytes(header + bytes(-len(header) % self.alignment) + self.data)
        return path


def text(data):
    return struct.pack("<Q", len(data)) + data


def put(**changes):
    return lambda c: vars(c).update(changes)


def key(name, kind, value):
    return lambda c: c.keys.append((name, kind, value))


def tensor(i, field, value):
    def change(c):
        c.tensors[i][field] = value
    return change


def quantised(scale):
    """The last tensor, the head, as Q8_0 in the place of its floats."""
    def change(c):
        blocks = np.ones((64, 34), np.uint8)
        blocks[:, :2] = np.full((64, 1), 0.01, np.float16).view(np.uint8)
        blocks[47, :2] = np.array([scale], np.float16).view(np.uint8)
        c.data, c.tensors[-1][2] = c.data[:c.tensors[-1][3]] + blocks.tobytes(), 8
    return change


HUGE = 1 << 62
DAMAGES = {
    "another magic": (put(magic=b"GGML"), "or a GGUF file, which begins with b'GGUF', found a file that begins with b'GGML'"),
    "safetensors": (put(magic=b"\x10\0\0\0"), "expected a checkpoint folder or a GGUF file"),
    "a Git LFS pointer": (put(magic=b"version https://git-lfs.github.com/spec/v1"), "this is a Git LFS pointer"),
    "a web page": (put(magic=b"<!DOCTYPE html>"), "this is a web page"),
    "version 1": (put(version=1), "expected GGUF version 2 or 3, little-endian, found version 1"),
    "version 4": (put(version=4), "found version 4"),
    "big-endian": (put(version=3 << 24), "found a big-endian file"),
    "a huge number of tensors": (put(n_tensors=HUGE), "number of tensors: expected at most"),
    "a huge number of keys": (put(n_keys=(1 << 64) - 1), "number of metadata keys: expected at most"),
    "one tensor more": (lambda c: put(n_tensors=len(c.tensors) + 1)(c), "tensor"),
    "one tensor less": (lambda c: put(n_tensors=len(c.tensors) - 1)(c), "expected to end at byte"),
    "one key more": (lambda c: put(n_keys=len(c.keys) + 1)(c), "expected"),
    "one key less": (lambda c: put(n_keys=len(c.keys) - 1)(c), "expected"),
    "a huge text": (key(b"a", 8, struct.pack("<Q", HUGE)), "a: expected a text of at most 268435456 bytes, found 4611686018427387904"),
    "a huge list of texts": (key(b"a", 9, struct.pack("<IQ", 8, HUGE)), "a: expected at most"),
    "a huge list of numbers": (key(b"a", 9, struct.pack("<IQ", 12, HUGE)), "a: expected at most"),
    "a list of lists": (key(b"a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 0)), "found one of type 9"),
    "a list of type 77": (key(b"a", 9, struct.pack("<IQ", 77, 0)), "found one of type 77"),
    "a value of type 13": (key(b"a", 13, b"\0" * 8), "a: expected a type of value from 0 to 12, found 13"),
    "a flag of 2": (key(b"a", 7, b"\2"), "a: expected 0 or 1, found 2"),
    "a list of flags": (key(b"a", 9, struct.pack("<IQ", 7, 2) + b"\1\3"), "a: expected 0 or 1, found 3"),
    "a key twice": (key(b"diffuse.block_count", 4, struct.pack("<I", 1)), "duplicate key 'diffuse.block_count'"),
    "a text beyond the end": (key(b"a", 8, struct.pack("<Q", 1 << 20)), "a: expected 1048576 bytes at byte"),
    "a key of a megabyte": (key(b"a" * (1 << 20), 4, bytes(4)), "expected a text of at most 1024 bytes, found 1048576"),
    "a key that is no text": (key(b"\xff\xfe", 4, b"\0" * 4), "expected UTF-8 text, found byte 0xff"),
    "a value that is no text": (key(b"a", 8, text(b"\xc3\x28")), "a: expected UTF-8 text, found byte 0xc3"),
    "alignment 0": (key(b"general.alignment", 4, struct.pack("<I", 0)), "general.alignment: expected a power of two up to 65536, found 0"),
    "alignment 48": (key(b"general.alignment", 4, struct.pack("<I", 48)), "general.alignment: expected a power of two"),
    "alignment 2^31": (key(b"general.alignment", 4, struct.pack("<I", 1 << 31)), "general.alignment: expected a power of two"),
    "alignment as text": (key(b"general.alignment", 8, text(b"32")), "general.alignment: expected type 4 (u32), found type 8"),
    "alignment that the offsets have not": (key(b"general.alignment", 4, struct.pack("<I", 4096)), "an offset that is a multiple of 4096"),
    "a tensor twice": (lambda c: c.tensors.append(list(c.tensors[0])), "duplicate tensor 'token_embd.weight'"),
    "a tensor's name that is no text": (tensor(0, 0, b"\xf0\x28"), "name of tensor 0: expected UTF-8 text"),
    "a tensor too many": (lambda c: (c.tensors.append([b"rope_freqs.weight", [8], 0, len(c.data)]), put(data=c.data + bytes(32))(c)),
                          "1 unexpected (rope_freqs.weight)"),
    "a hole": (lambda c: c.tensors.pop(3), "tensor blk.0.attn_v.weight: expected to begin at byte"),
    "another name": (tensor(3, 0, b"blk.0.attn_x.weight"), "1 missing (blk.0.attn_k.weight); 1 unexpected (blk.0.attn_x.weight)"),
    "an embedding that is missing": (tensor(0, 0, b"a"), "expected a matrix token_embd.weight, found none"),
    "an embedding of one dimension": (tensor(0, 1, [2048]), "expected a matrix token_embd.weight, found shape (2048,)"),
    "no dimensions": (tensor(0, 1, []), "token_embd.weight: expected 1 to 4 dimensions, found 0"),
    "five dimensions": (tensor(0, 1, [32, 64, 1, 1, 1]), "expected 1 to 4 dimensions, found 5"),
    "a dimension of zero": (tensor(0, 1, [32, 0]), "token_embd.weight: expected dimensions from 1 to"),
    "a dimension of 2^63": (tensor(0, 1, [32, 1 << 63]), "token_embd.weight: expected dimensions from 1 to"),
    "dimensions whose product overflows": (tensor(0, 1, [1 << 32, 1 << 32]), "expected to end at byte"),
    "another shape": (tensor(2, 1, [16, 64]), "blk.0.attn_q.weight: expected shape (32, 32), found (64, 16)"),
    "turned about": (tensor(8, 1, [48, 32]), "blk.0.ffn_up.weight: expected shape (48, 32), found (32, 48)"),
    "Q2_K": (tensor(0, 2, 10), "token_embd.weight: expected a type of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, "
             "found Q2_K"),
    "type 9999": (tensor(0, 2, 9999), "found unknown type 9999"),
    "rows of no whole blocks": (tensor(9, 2, 8), "blk.0.ffn_down.weight: expected rows of whole Q8_0 blocks of 32, found 48"),
    "an offset that is not aligned": (tensor(3, 3, 33), "expected an offset that is a multiple of 32, found 33"),
    "an offset beyond the end": (tensor(3, 3, 1 << 40), "expected to begin at byte"),
    "an offset of 2^64": (tensor(3, 3, (1 << 64) - 32), "expected to begin at byte"),
    "tensors one over the other": (tensor(3, 3, 32), "tensor blk.0.attn_k.weight: expected to begin at byte"),
    "data that is too short": (lambda c: put(data=c.data[:-4])(c), "tensor output.weight: expected to end at byte"),
    "more data": (lambda c: put(data=c.data + bytes(32))(c), "expected to end at byte"),
    "no data": (put(data=b""), "expected to end at byte"),
    "a scale that is NaN": (quantised(np.nan), "tensor output.weight: expected finite scales of its blocks"),
    "a scale that is infinite": (quantised(np.inf), "tensor output.weight: expected finite scales of its blocks"),
}


def test_the_container_is_a_good_one(tmp_path):
    """So what `test_damaged_containers` sees refused is the damage."""
    good = LLaDAForCausalLM(Container().write(tmp_path / "good.gguf"))
    config = folders.config(n_layers=1, vocab_size=64)
    folder = folders.write(tmp_path / "folder", config, folders.tensors(config))
    assert np.array_equal(good.forward(IDS), LLaDAForCausalLM(folder).forward(IDS))
    container = Container()
    quantised(0.01)(container)
    assert np.isfinite(LLaDAForCausalLM(container.write(tmp_path / "quantised.gguf")).forward(IDS)).all()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_containers(tmp_path, damage):
    change, message = DAMAGES[damage]
    container = Container()
    change(container)
    path = container.write(tmp_path / "bad.gguf")
    tracemalloc.start()
    try:
        with pytest.raises((ModelFormatError, UnsupportedModelError), match=re.escape(message)) as caught:
            LLaDAForCausalLM(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24  # nothing is made of a length before it was held against the file's
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_every_truncation(tmp_path):
    """Of the header after every byte, and of the data here and there."""
    container, path = Container(), tmp_path / "cut.gguf"
    whole = container.write(path).read_bytes()
    for n in [*range(len(container.header()) + 40), *range(len(whole) // 2, len(whole), 997)]:
        path.write_bytes(whole[:n])
        with pytest.raises(ModelFormatError, match=re.escape(str(path))):
            GGUFCheckpoint(path)


def test_random_bytes_in_the_header(tmp_path):
    """Whatever a byte becomes: the same model, another one that is whole, or an error with the file's name."""
    container, path, rng = Container(), tmp_path / "flipped.gguf", np.random.default_rng(0)
    whole = np.frombuffer(container.write(path).read_bytes(), np.uint8)
    size, seen = len(container.header()), 0
    for _ in range(1500):
        data = whole.copy()
        data[rng.integers(0, size, rng.integers(1, 4))] = rng.integers(0, 256)
        path.write_bytes(data.tobytes())
        try:
            GGUFCheckpoint(path)
        except (ModelFormatError, UnsupportedModelError) as e:
            seen += 1
            assert str(path) in str(e)
    assert seen > 500


def test_a_scale_that_is_no_number_in_k_types(tmp_path):
    for kind, at in (("Q4_K", 2), ("Q5_K", 0), ("Q6_K", 208), ("Q4_1", 2), ("Q5_1", 0), ("Q5_0", 0), ("Q4_0", 0)):
        config = gguf_files.config(n_layers=1)
        w, rng = gguf_files.writer(tmp_path / f"{kind}.gguf", "llada", config), np.random.default_rng(0)
        for name, values in folders.tensors(config).items():
            target = gguf_files.name_of(name)
            stored = values if values.ndim == 1 else gguf_files.random_blocks(kind, values.shape, rng)
            if target == "blk.0.attn_q.weight":
                stored[17, at:at + 2] = np.array([np.nan], np.float16).view(np.uint8)
            gguf_files.add(w, target, stored, "F32" if values.ndim == 1 else kind)
        gguf_files.finish(w)
        with pytest.raises(ModelFormatError, match=r"blk\.0\.attn_q\.weight: expected finite scales"):
            LLaDAForCausalLM(tmp_path / f"{kind}.gguf")


def test_a_number_that_is_none_reaches_the_logits(tmp_path):
    """As in a folder: floats are taken as they are, and the error comes from what they lead to."""
    container = Container()
    begin = container.tensors[0][3]
    container.data = container.data[:begin] + np.full(32, np.nan, np.float32).tobytes() + container.data[begin + 128:]
    model = LLaDAForCausalLM(container.write(tmp_path / "nan.gguf"))
    with pytest.raises(llada_native.NonFiniteLogitsError):
        model.generate([[0, 1]], mask_id=58, gen_length=8, block_length=8)


# ---- several files

def split(tmp_path, count=3):
    """A model in several files, as llama-gguf-split leaves them: all keys in the first."""
    gguf_files.write(tmp_path / "whole.gguf", "Q8_0")
    reader = gguf.GGUFReader(tmp_path / "whole.gguf")
    tensors = list(reader.tensors)
    for part in range(count):
        w = gguf.GGUFWriter(tmp_path / f"m-{part + 1:05}-of-{count:05}.gguf", "llada")
        for field in reader.fields.values() if part == 0 else ():
            if not field.name.startswith(("GGUF.", "general.")):
                w.add_key_value(field.name, field.contents(), field.types[0])
        for name, value in (("no", part), ("count", count)):
            w.add_uint16(f"split.{name}", value)
        w.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[part * len(tensors) // count:(part + 1) * len(tensors) // count]:
            w.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        gguf_files.finish(w)
    return tmp_path / f"m-00001-of-{count:05}.gguf"


def test_several_files(tmp_path):
    parts, whole = LLaDAForCausalLM(split(tmp_path)), LLaDAForCausalLM(tmp_path / "whole.gguf")
    assert np.array_equal(parts.forward(IDS), whole.forward(IDS))


def test_several_files_of_which_one_is_missing(tmp_path):
    first = split(tmp_path)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelFormatError, match=r"m-00002-of-00003.gguf: no such file: m-00001-of-00003.gguf is one of 3"):
        LLaDAForCausalLM(first)


def test_several_files_and_not_the_first(tmp_path):
    split(tmp_path)
    renamed = shutil.copyfile(tmp_path / "m-00001-of-00003.gguf", tmp_path / "model.gguf")
    for path in (tmp_path / "m-00002-of-00003.gguf", renamed):
        with pytest.raises(ModelFormatError, match=re.escape("one of 3 files: expected the first, named '...-00001-of-00003.gguf'")):
            LLaDAForCausalLM(path)


def test_several_files_with_one_tensor_twice(tmp_path):
    first = split(tmp_path)
    shutil.copyfile(tmp_path / "m-00002-of-00003.gguf", tmp_path / "m-00003-of-00003.gguf")
    with pytest.raises(ModelFormatError, match=r"m-00003-of-00003.gguf: tensor .*: also in m-00002-of-00003.gguf"):
        LLaDAForCausalLM(first)


# ---- around it

def test_without_the_package(tmp_path, monkeypatch):
    path, _ = gguf_files.pair(tmp_path, "F32")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"GGUF files need the package gguf: pip install 'llada-native\[gguf\]'") as caught:
        LLaDAForCausalLM(path)
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, llada_native.LladaError)


def test_the_package_does_not_import_gguf():
    import subprocess

    code = "import sys, llada_native; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=llada_native.__path__[0] + "/..").returncode == 0


@pytest.mark.parametrize("data", [b"", b"G", b"GGUF", b"PK\x03\x04"])
def test_files_that_are_no_model(tmp_path, data):
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(ModelFormatError, match=re.escape(str(tmp_path / "model.bin"))):
        LLaDAForCausalLM(tmp_path / "model.bin")


def test_the_reference_backend(tmp_path):
    path, folder = gguf_files.pair(tmp_path, "Q5_0")
    one, other = (LLaDAForCausalLM(p, backend="reference") for p in (path, folder))
    assert np.array_equal(one.forward(IDS), other.forward(IDS))


def test_the_placeholder(tmp_path):
    path, _ = gguf_files.pair(tmp_path, "Q5_0")
    assert LLaDAForCausalLM(path, backend="placeholder").forward(IDS).shape == (40, 64)


def test_packed_files_of_a_gguf_file(tmp_path):
    path, _ = gguf_files.pair(tmp_path, "Q4_0")
    plain, first, second = (LLaDAForCausalLM(path, cache_dir=d) for d in (None, tmp_path / "cache", tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert np.array_equal(plain.forward(IDS), first.forward(IDS)) and np.array_equal(plain.forward(IDS), second.forward(IDS))
    gguf_files.write(path, "Q4_0", seed=5)
    assert not np.array_equal(LLaDAForCausalLM(path, cache_dir=tmp_path / "cache").forward(IDS), plain.forward(IDS))


def test_the_command_line(tmp_path, capsys):
    path = demo_file(tmp_path / "demo.gguf")
    assert cli.main(["generate", "--model", str(path), "Sort these numbers: 31, 7, 52, 12."]) == 0
    assert capsys.readouterr().out == "7, 12, 31, 52\n"
    assert cli.main(["info", "--json", "--model", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert (found["architecture"], found["dtype"], found["chat_template"]) == ("LLaDAModelLM", "bfloat16", True)


def test_tokenizers_of_files_say_which_file(tmp_path):
    path = demo_file(tmp_path / "demo.gguf")
    from llada_native.gguf_tokenizer import tokenizer_files

    tokenizer = Tokenizer(path, tokenizer_files(path, GGUFCheckpoint(path).metadata))
    assert tokenizer.path == path
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Tokenizer(path, {"tokenizer.json": "{}", "tokenizer_config.json": "{}"})
