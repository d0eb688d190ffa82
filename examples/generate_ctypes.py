"""The C interface from Python with ctypes and NumPy: fills an answer block by block and prints its ids.

    python generate_ctypes.py FOLDER 1,2,3 --gen-length 64 --block-length 32
"""
from __future__ import annotations

import argparse
import ctypes
from collections.abc import Sequence

import numpy as np

from llada_native.library import get_library

UINT32S = np.ctypeslib.ndpointer(np.uint32, flags="C_CONTIGUOUS")
NONE = 0xFFFFFFFF


class Meta(ctypes.Structure):
    """LLaDAMeta of llada.h."""

    _fields_ = (("dtype", ctypes.c_int), ("weights_dtype", ctypes.c_int),
                *((name, ctypes.c_uint32) for name in ("layers", "d_model", "heads", "kv_heads", "head_dim", "mlp_hidden", "vocabulary",
                                                       "max_tokens", "mask_token")),
                ("tied_head", ctypes.c_int32), ("norm_eps", ctypes.c_double), ("rope_theta", ctypes.c_double))


def open_library(path: str | None = None) -> ctypes.CDLL:
    """Load libllada and declare what this example calls."""
    library = ctypes.CDLL(path or get_library())
    library.lladaLoadModel.restype = ctypes.c_void_p
    library.lladaLoadModel.argtypes = [ctypes.c_char_p, ctypes.c_int]
    library.lladaModelMeta.argtypes = [ctypes.c_void_p, ctypes.POINTER(Meta)]
    library.destroyLLaDAModel.argtypes = [ctypes.c_void_p]
    library.inferBatchLLaDA.argtypes = [
        ctypes.c_void_p, UINT32S, ctypes.c_uint32, UINT32S, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_void_p, UINT32S, ctypes.c_void_p, ctypes.c_void_p, UINT32S, UINT32S, ctypes.c_void_p]
    library.lladaLastError.restype = ctypes.c_char_p
    return library


def generate(folder: str, prompt: Sequence[int], gen_length: int = 64, block_length: int = 32) -> list[int]:
    """Ids of the answer, one token a round at temperature 0.

    Raises
    ------
    ValueError
        The lengths do not divide.
    RuntimeError
        The library refused a call.
    """
    if gen_length < 1 or block_length < 1 or gen_length % block_length:
        raise ValueError(f"block_length: expected a divisor of gen_length ({gen_length}), found {block_length}")
    library = open_library()

    def check(status: int) -> None:
        if status:
            raise RuntimeError(library.lladaLastError().decode())

    model, meta = library.lladaLoadModel(str(folder).encode(), 0), Meta()
    check(library.lladaLastStatus())
    try:
        check(library.lladaModelMeta(model, meta))
        canvas = np.array([*prompt, *[meta.mask_token] * gen_length], np.uint32)
        length = np.array([len(canvas)], np.uint32)
        token, position = np.empty(1, np.uint32), np.empty(1, np.uint32)
        for end in range(len(prompt) + block_length, len(canvas) + 1, block_length):
            while True:
                check(library.inferBatchLLaDA(model, canvas, len(canvas), length, 1, None, None, None, None, None,
                                              np.array([end], np.uint32), None, None, token, position, None))
                if position[0] == NONE:
                    break
                canvas[position] = token
    finally:
        library.destroyLLaDAModel(model)
    return [int(i) for i in canvas[len(prompt):]]


def token_ids(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected ids such as 1,2,3, found {text!r}")
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("prompt", type=token_ids, help="token ids such as 1,2,3")
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--block-length", type=int, default=32)
    arguments = parser.parse_args()
    try:
        print(*generate(arguments.folder, arguments.prompt, arguments.gen_length, arguments.block_length))
    except (ValueError, RuntimeError) as e:
        raise SystemExit(f"generate_ctypes: {e}") from e


if __name__ == "__main__":
    main()
