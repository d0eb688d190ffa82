"""One matrix product in llama.cpp's ggml, through the C libraries of llama-cpp-python: weights in the buffer where llama.cpp would put
them, repacked for the processor where it has a layout for it, float32 activations in and out."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import partial
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
FORMATS = {"Q4_0": 2, "Q4_K": 12, "Q8_0": 8, "BF16": 30, "F16": 1}  # enum ggml_type
F32 = 0
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
ADDRESSES = 1 << 20  # bytes for the descriptions of tensors and of a graph


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


base = ctypes.CDLL(str(LIBRARIES / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
cpu = ctypes.CDLL(str(LIBRARIES / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)


def function(library: ctypes.CDLL, name: str, result: object, *arguments: object) -> Callable[..., object]:
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found  # type: ignore[no-any-return]


init = function(base, "ggml_init", c_void_p, InitParams)
new_tensor = function(base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
multiply = function(base, "ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
new_graph = function(base, "ggml_new_graph", c_void_p, c_void_p)
expand = function(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)
quantize = function(base, "ggml_quantize_chunk", c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)
row_bytes = function(base, "ggml_row_size", c_size_t, c_int, c_int64)
allocate = function(base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
set_tensor = function(base, "ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
get_tensor = function(base, "ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
compute = function(base, "ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
free_buffer = function(base, "ggml_backend_buffer_free", None, c_void_p)
new_backend = function(cpu, "ggml_backend_cpu_init", c_void_p)
set_threads = function(cpu, "ggml_backend_cpu_set_n_threads", None, c_void_p, c_int)
registry = function(cpu, "ggml_backend_cpu_reg", c_void_p)
device_of = function(base, "ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)
address_of = function(base, "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p)
supports = function(base, "ggml_backend_dev_supports_op", c_bool, c_void_p, c_void_p)
default_buffers = function(base, "ggml_backend_get_default_buffer_type", c_void_p, c_void_p)


class Layer:
    """`layer(x)` is a call that computes x @ weight.T; `layer.out(x)` what it gives."""

    def __init__(self, weight: Floats, name: str, threads: int) -> None:
        self.outputs, self.inputs = weight.shape
        self.backend = new_backend()
        set_threads(self.backend, threads)
        kind = FORMATS[name]
        codes = np.empty(int(row_bytes(kind, self.inputs)) * self.outputs, np.uint8)  # type: ignore[call-overload]
        quantize(kind, weight.ctypes.data, codes.ctypes.data, 0, self.outputs, self.inputs, None)
        for buffers in (*self._repacking(), default_buffers(self.backend)):
            context = init(InitParams(ADDRESSES, None, True))
            self.weight = new_tensor(context, kind, self.inputs, self.outputs)
            if buffer := allocate(context, buffers):
                if self._fits():  # before anything is stored: a repacking buffer has no layout for other formats
                    set_tensor(self.weight, codes.ctypes.data, 0, codes.nbytes)
                    return
                free_buffer(buffer)
        raise RuntimeError(f"ggml has no place for {name}")

    def _repacking(self) -> list[int]:
        """The CPU's buffer types that change the layout of weights; llama.cpp tries them first."""
        address = address_of(registry(), b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device_of(registry(), 0))
        found = []
        while listed[len(found)]:
            found.append(listed[len(found)])
        return found

    def _product(self, rows: int) -> tuple[object, object, object]:
        context = init(InitParams(ADDRESSES, None, True))
        x = new_tensor(context, F32, self.inputs, rows)
        return context, x, multiply(context, self.weight, x)

    def _fits(self) -> bool:
        return bool(supports(device_of(registry(), 0), self._product(32)[2]))

    def _prepared(self, x: Floats) -> tuple[object, object]:
        context, source, product = self._product(len(x))
        graph = new_graph(context)
        expand(graph, product)
        if not allocate(context, default_buffers(self.backend)):
            raise MemoryError("ggml")
        set_tensor(source, x.ctypes.data, 0, x.nbytes)
        return graph, product

    def __call__(self, x: Floats) -> Callable[[], object]:
        return partial(compute, self.backend, self._prepared(x)[0])

    def out(self, x: Floats) -> Floats:
        graph, product = self._prepared(x)
        compute(self.backend, graph)
        found = np.empty((len(x), self.outputs), np.float32)
        get_tensor(product, found.ctypes.data, 0, found.nbytes)
        return found
