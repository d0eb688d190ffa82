"""A GGUF file -> configuration and checked tensors, under the names that Hugging Face folders have.

Two programs write LLaDA as GGUF, and not the same: llama.cpp reorders the rows of q_proj and k_proj for a RoPE of adjacent pairs,
diffuse-cpp leaves them. Neither says so in the file. The architecture it states decides; with the other reading nothing would fail, and
every answer would be wrong.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import IntegerRows, TensorSpec, tensor_specs
from .checkpoint import SLICE_BYTES, listed, sampled
from .config import LARGEST_DIMENSION, LARGEST_LAYERS, LARGEST_NUMBER, ModelConfig
from .errors import ModelFormatError, UnsupportedModelError
from .families import FAMILIES
from .gguf_file import GGUFFile, GGUFTensor, gguf_package, shown

DECODED_AT_ONCE = 1 << 18  # weights: what the gguf package makes on the way stays in the cache
GROUP_SIZE = 32  # of the types that are integers with a scale


@dataclass(frozen=True)
class Dialect:
    """What general.architecture says of a file.

    Attributes
    ----------
    architecture : str
        The model class, a key of `FAMILIES`.
    permuted : bool
        Rows of q_proj and k_proj lie as a RoPE of adjacent pairs wants them.
    shifted : bool
        Logits are those of the next position: the only value of diffusion.shift_logits that is right.
    model_type : str or None
        The only value of {arch}.model_type that is right, where the architecture has several models.
    """

    architecture: str
    permuted: bool = False
    shifted: bool = False
    model_type: str | None = None


DIALECTS = {"llada": Dialect("LLaDAModelLM", permuted=True), "llada-moe": Dialect("LLaDAMoEModelLM"),
            "dream": Dialect("DreamModel", shifted=True), "diffuse": Dialect("LLaDAModelLM", model_type="llada")}

# Attribute of `ModelConfig` -> key after the architecture.
KEYS = {"n_layers": "block_count", "d_model": "embedding_length", "n_heads": "attention.head_count",
        "n_kv_heads": "attention.head_count_kv", "mlp_hidden_size": "feed_forward_length", "max_sequence_length": "context_length",
        "n_experts": "expert_count", "experts_per_token": "expert_used_count", "expert_hidden_size": "expert_feed_forward_length"}
NUMBERS = {"rope_theta": "rope.freq_base", "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
SOFTMAX = 1  # of expert_gating_func
HEAD_DIMENSIONS = ("rope.dimension_count", "attention.key_length", "attention.value_length")

NAMES = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight",
         **{role: f"blk.{{layer}}.{leaf}" for role, leaf in {
             "attn_norm": "attn_norm.weight", "q_proj": "attn_q.weight", "k_proj": "attn_k.weight", "v_proj": "attn_v.weight",
             "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias", "q_norm": "attn_q_norm.weight",
             "k_norm": "attn_k_norm.weight", "o_proj": "attn_output.weight", "mlp_norm": "ffn_norm.weight",
             "gate_proj": "ffn_gate.weight", "up_proj": "ffn_up.weight", "down_proj": "ffn_down.weight",
             "router": "ffn_gate_inp.weight", "expert_gate_proj": "ffn_gate_exps.weight", "expert_up_proj": "ffn_up_exps.weight",
             "expert_down_proj": "ffn_down_exps.weight"}.items()}}

# In memory, where dtype is "auto": integers of no fewer bits, in groups of the blocks' own size.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "int8", "Q4_0": "int4", "Q4_1": "int4", "Q4_K": "int4",
          "Q5_0": "int8", "Q5_1": "int8", "Q5_K": "int8", "Q6_K": "int8"}


class GGUFCheckpoint:
    """A GGUF file, or the first of several that belong together, checked against its own metadata.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    config_json : dict
        What the config.json of a folder with this model would say.

    Raises
    ------
    ModelFormatError
        Something is missing, malformed or contradicts the metadata.
    UnsupportedModelError
        The architecture, an option or a tensor's type is not implemented.
    MissingPackageError
        The package gguf is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        first = GGUFFile(self.path)
        gguf_package()  # missing only where there is a file for it
        self.metadata = first.metadata
        keys = _Keys(self.path, self.metadata)
        self.dialect = keys.dialect()
        self.files = [first, *(GGUFFile(p) for p in keys.other_parts())]
        self.stored = self._all_tensors()
        keys.check_counts(self.stored)
        self.config_json = keys.config(self.dialect, self.stored)
        self.config = ModelConfig.from_dict(self.config_json, str(self.path))
        keys.check_head_dimension(self.config)
        self.specs = [(spec, NAMES[spec.role].format(layer=spec.layer)) for spec in tensor_specs(self.config)]
        self._check_tensors()

    def _all_tensors(self) -> dict[str, GGUFTensor]:
        stored: dict[str, GGUFTensor] = {}
        for file in self.files:
            for name, tensor in file.tensors.items():
                if name in stored:
                    raise ModelFormatError(f"{file.path}: tensor {name}: also in {stored[name].file.name}")
                stored[name] = tensor
        return stored

    def _check_tensors(self) -> None:
        """Names and shapes, all mistakes of a file at once."""
        shapes = {name: spec.shape if spec.expert < 0 else (self.config.n_experts, *spec.shape) for spec, name in self.specs}
        missing, unexpected = set(shapes) - set(self.stored), set(self.stored) - set(shapes)
        if missing or unexpected:
            raise ModelFormatError(f"{self.path}: tensors do not match the metadata: "
                                   f"{listed(('missing', missing), ('unexpected', unexpected))}")
        wrong = [f"{name}: expected shape {shape}, found {self.stored[name].shape}" for name, shape in shapes.items()
                 if self.stored[name].shape != shape]
        if wrong:
            raise ModelFormatError(f"{self.path}: {len(wrong)} tensor(s) do not fit the metadata: {'; '.join(wrong[:8])}"
                                   + ("; ..." if len(wrong) > 8 else ""))

    @property
    def name(self) -> str:
        return str(self.path.resolve())

    @property
    def dtype(self) -> str:
        """The engine's dtype that is nearest to the type of most weights in the layers' matrices."""
        weights: Counter[str] = Counter()
        for spec, name in self.specs:
            if spec.layer >= 0 and len(spec.shape) == 2:
                weights[DTYPES[self.stored[name].type.name]] += spec.shape[0] * spec.shape[1]
        return weights.most_common(1)[0][0]

    def fingerprint(self) -> list[Any]:
        return sampled(file.path for file in self.files)

    def slices(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any] | IntegerRows]]:
        """Every tensor in slices of rows, whole heads where rows change places within one."""
        for spec, name in self.specs:
            stored = self.stored[name]
            if len(spec.shape) == 1:
                yield spec, 0, _decode(stored, stored.rows(0, 1)).reshape(-1)
                continue
            rows, columns = spec.shape
            head = self.config.head_dim if self.dialect.permuted and spec.role in ("q_proj", "k_proj") else 1
            step = max(1, SLICE_BYTES // (4 * columns * head)) * head
            first = max(spec.expert, 0) * rows
            for begin in range(0, rows, step):
                end = min(begin + step, rows)
                blocks: NDArray[np.uint8] = stored.rows(first + begin, first + end)
                if head > 1:
                    blocks = split_halves(blocks, head)
                yield spec, begin, _integers(stored, blocks) or _decode(stored, blocks)


def split_halves(rows: NDArray[np.uint8], head_dim: int) -> NDArray[np.uint8]:
    """Rows of whole heads from adjacent pairs (0, half), (1, half + 1), ... to the first half and then the second."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _scales(stored: GGUFTensor, blocks: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The float16 scales [rows, blocks of a row, scales of a block]."""
    each = blocks.reshape(len(blocks), -1, stored.type.bytes)
    scales = np.concatenate([each[:, :, at:at + 2] for at in stored.type.scales], axis=2).view(np.float16)
    if not np.isfinite(scales).all():
        raise ModelFormatError(f"{stored.file}: tensor {stored.name}: expected finite scales of its blocks, found others")
    return scales


def _integers(stored: GGUFTensor, blocks: NDArray[np.uint8]) -> IntegerRows | None:
    """Rows of a type that is an integer times a scale, exactly; None for others."""
    each, kind = blocks.reshape(len(blocks), -1, stored.type.bytes), stored.type.name
    if kind == "Q8_0":
        values = each[:, :, 2:].view(np.int8)
    elif kind in ("Q4_0", "Q5_0"):
        nibbles = each[:, :, -16:]
        values = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).view(np.int8)
        if kind == "Q5_0":
            values |= (np.unpackbits(each[:, :, 2:6], axis=2, bitorder="little") << 4).view(np.int8)
        values -= 8 if kind == "Q4_0" else 16
    else:
        return None
    scales = _scales(stored, blocks)[:, :, 0].astype(np.float32)
    return IntegerRows(np.ascontiguousarray(values).reshape(len(blocks), -1), np.ascontiguousarray(scales))


def _decode(stored: GGUFTensor, blocks: NDArray[np.uint8]) -> NDArray[Any]:
    """Rows as floats, in the type of the file where that is one."""
    kind = stored.type.name
    if kind == "BF16":
        import ml_dtypes

        return np.ascontiguousarray(blocks).view(ml_dtypes.bfloat16)
    if kind in ("F32", "F16"):
        return np.ascontiguousarray(blocks).view(np.dtype("<f4" if kind == "F32" else "<f2"))
    _scales(stored, blocks)  # all of them finite
    gguf = gguf_package()
    out = np.empty((len(blocks), stored.shape[-1]), np.float32)
    step = max(1, DECODED_AT_ONCE // stored.shape[-1])
    for begin in range(0, len(blocks), step):
        some = slice(begin, begin + step)
        out[some] = gguf.quants.dequantize(np.ascontiguousarray(blocks[some]), gguf.GGMLQuantizationType[kind])
    return out


class _Keys:
    """Typed access to the metadata; every complaint names the file and the key."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path, self.metadata = path, metadata
        self.architecture = self.text("general.architecture")

    def dialect(self) -> Dialect:
        dialect = DIALECTS.get(self.architecture)
        if dialect is None:
            raise UnsupportedModelError(f"{self.path}: general.architecture: unknown architecture {shown(self.architecture)}; this version "
                                        f"runs {', '.join(DIALECTS)}")
        fixed = {"diffusion.shift_logits": dialect.shifted, self.own("attention.causal"): False, self.own("rope.scaling.type"): "none",
                 self.own("rope.scaling.factor"): 1.0, self.own("rope.scale_linear"): 1.0,
                 self.own("expert_shared_count"): 0, self.own("expert_weights_norm"): False, self.own("expert_gating_func"): SOFTMAX,
                 self.own("model_type"): dialect.model_type}
        for key, expected in fixed.items():
            found = self.metadata.get(key, expected)
            if expected is not None and (type(found) is not type(expected) or found != expected):
                raise UnsupportedModelError(f"{self.path}: {key} = {shown(found)} is not supported: expected {expected!r} for "
                                            f"{self.architecture}")
        if dialect.model_type is not None:
            self.text(self.own("model_type"))
        return dialect

    def other_parts(self) -> list[Path]:
        """The files that belong to this one, by the names that llama-gguf-split gives them."""
        if "split.count" not in self.metadata:
            return []
        count, part = self.integer("split.count", 1, 99999), self.integer("split.no", 0, 99998)
        if count == 1:
            return []
        found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", self.path.name)
        if part != 0 or not found or (int(found[2]), int(found[3])) != (1, count):
            raise ModelFormatError(f"{self.path}: split.count: one of {count} files: expected the first, named "
                                   f"'...-00001-of-{count:05}.gguf'")
        parts = [self.path.with_name(f"{found[1]}-{i:05}-of-{count:05}.gguf") for i in range(2, count + 1)]
        for each in parts:
            if not each.is_file():
                raise ModelFormatError(f"{each}: no such file: {self.path.name} is one of {count}")
        return parts

    def config(self, dialect: Dialect, stored: dict[str, GGUFTensor]) -> dict[str, Any]:
        family = FAMILIES[dialect.architecture]
        config: dict[str, Any] = {"architectures": [dialect.architecture], **{key: family.fixed[key][0] for key in family.required}}
        table = stored.get(NAMES["embedding"])
        if table is None or len(table.shape) != 2:
            raise ModelFormatError(f"{self.path}: expected a matrix {NAMES['embedding']}, found "
                                   + ("none" if table is None else f"shape {table.shape}"))
        vocabulary, vocab_size = table.shape[0], self.own("vocab_size")
        if vocab_size in self.metadata and self.integer(vocab_size) != vocabulary:
            raise self.wrong(vocab_size, f"the rows of {table.name} ({vocabulary})")
        values: dict[str, Any] = {"vocab_size": vocabulary, "embedding_size": vocabulary, "weight_tying": NAMES["head"] not in stored}
        for attribute, key in KEYS.items():
            if attribute in family.keys:
                values[attribute] = self.size(attribute, self.own(key))
        for attribute, key in NUMBERS.items():
            values[attribute] = self.positive(self.own(key))
        values["moe_layers"] = [1] * values["n_layers"]
        config |= {key: values[attribute] for attribute, key in family.keys.items()}
        for name in ("mask", "eos", "eot"):
            keys = (self.own(f"{name}_token_id"), f"tokenizer.ggml.{name}_token_id")
            stated = [self.integer(key, 0, vocabulary - 1) for key in keys if key in self.metadata]
            if stated:
                config[f"{name}_token_id"] = stated[0]
        return config

    def check_counts(self, stored: dict[str, GGUFTensor]) -> None:
        """Before anything is made of the numbers: layers and experts are as many as have tensors."""
        found = {KEYS["n_layers"]: sum(re.fullmatch(r"blk\.\d+\.attn_norm\.weight", name) is not None for name in stored)}
        experts = stored.get(NAMES["expert_gate_proj"].format(layer=0))
        if experts is not None:
            found[KEYS["n_experts"]] = experts.shape[0]
        for key, count in found.items():
            if self.integer(self.own(key)) != count:
                raise self.wrong(self.own(key), f"as many as have tensors ({count})")

    def size(self, attribute: str, key: str) -> int:
        """A dimension; what llama.cpp does not write where it says nothing has its value from others."""
        if attribute == "n_kv_heads" and key not in self.metadata:
            key = self.own(KEYS["n_heads"])
        if attribute == "mlp_hidden_size" and key not in self.metadata and self.own(KEYS["expert_hidden_size"]) in self.metadata:
            key = self.own(KEYS["expert_hidden_size"])  # of dense layers, of which there are none
        return self.integer(key, 1, LARGEST_LAYERS if attribute == "n_layers" else LARGEST_DIMENSION)

    def check_head_dimension(self, config: ModelConfig) -> None:
        for key in map(self.own, HEAD_DIMENSIONS):
            if key in self.metadata and self.integer(key) != config.head_dim:
                raise self.wrong(key, f"{self.own(KEYS['d_model'])} / {self.own(KEYS['n_heads'])} ({config.head_dim})")

    def own(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def text(self, key: str) -> str:
        value = self.required(key)
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def integer(self, key: str, low: int = 1, high: int = LARGEST_DIMENSION) -> int:
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def positive(self, key: str) -> float:
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST_NUMBER:
            raise self.wrong(key, f"a number above 0 and up to {LARGEST_NUMBER:g}")
        return float(str(np.float32(value)))  # the shortest number that float32 stores so: 1e-05, not 9.999999747378752e-06

    def required(self, key: str) -> Any:
        if key not in self.metadata:
            raise ModelFormatError(f"{self.path}: required key {key!r} is missing")
        return self.metadata[key]

    def wrong(self, key: str, expected: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: {key}: expected {expected}, found {shown(self.metadata[key])}")
