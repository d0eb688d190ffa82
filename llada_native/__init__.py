"""LLaDA masked diffusion language models on ordinary CPUs, without torch.

>>> import llada_native
>>> print(llada_native.generate("Sort these numbers: 31, 7, 52, 12."))
7, 12, 31, 52
"""
import logging
from importlib.util import find_spec

if find_spec("llada_native._native") is None:
    raise ImportError(f"llada_native at {__path__[0]} is the source folder, without its extension modules: work in another folder to use "
                      "the installed package, or build them in place with 'make build'")

from .config import ModelConfig
from .errors import (
    GenerationCancelled,
    LladaError,
    ModelFormatError,
    ModelMemoryError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from .machine import cpu_info
from .model import LLaDAForCausalLM, generate
from .options import GenerationOptions
from .result import GenerationResult, Step

__version__ = "0.1.0"

logging.getLogger("llada_native").addHandler(logging.NullHandler())

__all__ = [
    "GenerationCancelled",
    "GenerationOptions",
    "GenerationResult",
    "LLaDAForCausalLM",
    "LladaError",
    "ModelConfig",
    "ModelFormatError",
    "ModelMemoryError",
    "NonFiniteLogitsError",
    "Step",
    "UnsupportedModelError",
    "cpu_info",
    "generate",
]
