"""GGUF files byte by byte, and models in several of them: nothing in a file is trusted."""
import re
import shutil
import struct
import tracemalloc

import folders
import gguf
import gguf_files
import numpy as np
import pytest

import llada_native
from llada_native import LLaDAForCausalLM, ModelFormatError, UnsupportedModelError
from llada_native.gguf_checkpoint import GGUFCheckpoint

IDS = np.arange(40) * 7 % 57


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
