"""GGUF files: what the engine holds of them, and that both ways to write a model are read rightly."""
import json
import pickle
import re
import sys
import tracemalloc
from dataclasses import replace

import folders
import gguf
import gguf_files
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import llada_native
from llada_native import LLaDAForCausalLM, MissingPackageError, ModelConfig, ModelFormatError, _native, cli, gguf_checkpoint
from llada_native.backend import IntegerRows
from llada_native.gguf_checkpoint import GGUFCheckpoint

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
    """A layer times the largest activation in one input: that is quantised to itself with scale 1, so the output is it times the integer
    times the scale, rounded once."""
    rng, (low, high) = np.random.default_rng(0), INTEGERS[kind]
    values = rng.integers(low, high + 1, (40, 96)).astype(np.int8)
    scales = rng.uniform(-2, 2, (40, 3)).astype(np.float16).astype(np.float32)
    if dtype == "int4" and kind != "Q4_0":
        with pytest.raises(ValueError, match="integers that int4 holds"):
            _native.PackedLinear(IntegerRows(values, scales), dtype, isa, 32)
        return
    layer = _native.PackedLinear(IntegerRows(values, scales), dtype, isa, 32)
    out = np.empty((96, 40), np.float32)
    largest = np.float32(127 if dtype == "int8" else 120)
    layer(np.eye(96, dtype=np.float32) * largest, out)
    wanted = largest * values * np.repeat(scales, 32, 1)
    assert np.array_equal(out.T, wanted)


@pytest.mark.parametrize(("dtype", "group", "value"), [("int8", 64, 1), ("int8", 128, 1), ("int8", 32, -128), ("int4", 32, 8),
                                                       ("int4", 32, -9), ("float32", 32, 1), ("bfloat16", 32, 1)])
def test_integers_that_a_format_has_not(isa, dtype, group, value):
    rows = IntegerRows(np.full((8, 128), value, np.int8), np.ones((8, 4), np.float32))
    with pytest.raises(ValueError, match="weight: expected integers"):
        _native.PackedLinear(rows, dtype, isa, group)


@pytest.mark.parametrize("scale", [1 + 2.0**-11, 1e-9, 65536, np.inf])
def test_scales_that_float16_has_not(isa, scale):
    scales = np.ones((8, 4), np.float32)
    scales[5, 2] = scale
    with pytest.raises(ValueError, match="weight: expected integers that int8 holds"):
        _native.PackedLinear(IntegerRows(np.ones((8, 128), np.int8), scales), "int8", isa, 32)


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
        scales = take(rows * d // 32 * 2, np.float16).astype(np.float32).reshape(-1, d // 32, panel).transpose(0, 2, 1).reshape(rows, -1)
        return (codes.astype(np.int32) - (8 if bits == 4 else 128)).astype(np.float32) * np.repeat(scales, 32, 1)

    embedding = take(vocabulary * d * 2, ml_dtypes.bfloat16).reshape(vocabulary, d)
    assert np.array_equal(embedding, values["model.transformer.wte.weight"].astype(ml_dtypes.bfloat16))
    take(d * 4, np.float32), take(d * 4, np.float32)
    assert np.array_equal(matrix(d, 4 if dtype == "int4" else 8), values["model.transformer.blocks.0.q_proj.weight"])
    at = len(data) - 8 - vocabulary * (d + d // 32 * 2)
    assert np.array_equal(matrix(vocabulary, 8), values["model.transformer.ff_out.weight"])


def test_other_groups_are_quantised_anew(tmp_path):
    path, folder = gguf_files.pair(tmp_path, "Q8_0")
    one, other = (LLaDAForCausalLM(p, dtype="int8", group_size=64) for p in (path, folder))
    assert np.array_equal(one.forward(IDS), other.forward(IDS))


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0", "Q4_K"])
def test_floats_are_made_of_integers(tmp_path, kind):
    path, folder = gguf_files.pair(tmp_path, kind)
    one, other = (LLaDAForCausalLM(p, dtype="bfloat16_fast") for p in (path, folder))
    assert one.dtype == "bfloat16_fast" and np.array_equal(one.forward(IDS), other.forward(IDS))


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
    path = gguf_files.demo_file(tmp_path / "demo.gguf")
    assert cli.main(["generate", "--model", str(path), "Sort these numbers: 31, 7, 52, 12."]) == 0
    assert capsys.readouterr().out == "7, 12, 31, 52\n"
    assert cli.main(["info", "--json", "--model", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert (found["architecture"], found["dtype"], found["chat_template"]) == ("LLaDAModelLM", "bfloat16", True)
