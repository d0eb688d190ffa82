"""One linear layer in each engine: `engine(weight [outputs, inputs], threads)` gives layers by name, and `layer(x [rows, inputs])` a
call that computes `x @ weight.T`. A package that is absent raises ImportError.

Rows of x and of the result lie as an engine has them in a forward pass: ours an odd number of cache lines apart, those of the others side
by side. OpenBLAS copies them into a layout of its own, and is as fast with either."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llada_native import _native
from llada_native.bench import rows_apart

Floats = NDArray[np.float32]
Call = Callable[[], object]
Layers = dict[str, Callable[[Floats], Call]]

OURS = {**{dtype: (dtype, 128) for dtype in ("float32", "bfloat16", "bfloat16_fast", "int8")}, "int4, group 128": ("int4", 128),
        "int4, group 32": ("int4", 32)}


def ours(weight: Floats, threads: int, isa: str = "") -> Layers:
    def layer(packed: _native.PackedLinear, x: Floats) -> Call:
        return partial(packed, rows_apart(x), rows_apart(np.ones((len(x), len(weight)), np.float32)), threads)

    return {name: partial(layer, _native.PackedLinear(weight, dtype, isa, group)) for name, (dtype, group) in OURS.items()}


def openblas(weight: Floats, threads: int) -> Layers:
    """Through NumPy. Its number of threads is that of OPENBLAS_NUM_THREADS when NumPy was imported."""
    return {"OpenBLAS float32": lambda x: partial(np.matmul, x, weight.T, out=np.ones((len(x), len(weight)), np.float32))}


def llama_cpp(weight: Floats, threads: int) -> Layers:
    import ggml

    return {f"llama.cpp {name}": ggml.Layer(weight, name, threads) for name in ggml.FORMATS}


def torch(weight: Floats, threads: int) -> Layers:
    import torch as t

    t.set_num_threads(threads)
    linear, float32 = t.nn.functional.linear, t.from_numpy(weight)
    bfloat16 = float32.bfloat16()

    def inferred(function: Callable[..., object], *arguments: object) -> Call:
        return t.inference_mode()(partial(function, *arguments))

    layers: Layers = {"torch float32": lambda x: inferred(linear, t.from_numpy(x), float32),
                      "torch bfloat16": lambda x: inferred(linear, t.from_numpy(x).bfloat16(), bfloat16)}
    module = t.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = t.nn.Parameter(float32, requires_grad=False)
    for engine in ("fbgemm", "onednn"):
        if engine not in t.backends.quantized.supported_engines:
            continue
        t.backends.quantized.engine = engine  # read when weights are packed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favour of a package that these benchmarks do without
            quantised = t.ao.quantization.quantize_dynamic(t.nn.Sequential(module), {t.nn.Linear}, dtype=t.qint8)
        layers[f"torch int8 {engine}"] = lambda x, quantised=quantised: inferred(quantised, t.from_numpy(x))  # type: ignore[misc]
    return layers


def openvino(weight: Floats, threads: int) -> Layers:
    """Compressed weights as NNCF stores them: symmetric, float16 scales, one a channel for int8 and one a group for int4.

    The CPU plugin quantises activations to 8 bits by itself, in groups of DYNAMIC_QUANTIZATION_GROUP_SIZE, where the weights are
    compressed, the precision is float32 and the processor has VNNI: in groups of 128 or, for weights in groups of 32, of those.
    """
    import openvino as ov
    from openvino import opset13 as op

    core, (outputs, inputs) = ov.Core(), weight.shape

    def compressed(bits: int, group: int) -> ov.Node:
        groups, highest = weight.reshape(outputs, -1, group), (1 << bits - 1) - 1
        scales = (np.abs(groups).max(-1, keepdims=True) / highest).astype(np.float16)
        codes = np.clip(np.rint(groups / scales), -highest - 1, highest).astype(np.int8)
        stored = codes
        if bits == 4:  # two a byte, the first in the low half
            nibbles = codes.view(np.uint8).reshape(-1, 2) & 15
            stored = nibbles[:, 0] | nibbles[:, 1] << 4
        tensor = ov.Tensor(stored, ov.Shape(codes.shape), ov.Type.i4 if bits == 4 else ov.Type.i8)
        wide = op.multiply(op.convert(op.constant(tensor, shared_memory=False), np.float16), op.constant(scales))
        return op.convert(op.reshape(wide, op.constant([outputs, inputs]), False), np.float32)

    def layer(node: ov.Node, activation_group: int) -> Callable[[Floats], Call]:
        source = op.parameter([-1, inputs], np.float32)
        compiled = core.compile_model(ov.Model([op.matmul(source, node, False, True)], [source]), "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": activation_group})

        def prepared(x: Floats) -> Call:
            request = compiled.create_infer_request()
            request.set_input_tensor(ov.Tensor(x, shared_memory=True))
            return partial(request.infer, share_outputs=True)

        return prepared

    return {"OpenVINO float32": layer(op.constant(weight), 0), "OpenVINO int8": layer(compressed(8, inputs), 128),
            "OpenVINO int4, group 128": layer(compressed(4, 128), 128), "OpenVINO int4, group 32": layer(compressed(4, 32), 32)}


PEERS = (openblas, llama_cpp, torch, openvino)
