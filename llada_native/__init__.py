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

from . import plots
from .caching import Delayed, Dual, NoCache, Prefix
from .carry import Carry
from .config import ModelConfig
from .conversion import convert
from .device import DeviceType
from .editors import NoEditor, Remask, TokenEdit, Wino
from .errors import (
    EngineError,
    GenerationCancelled,
    HubError,
    LladaError,
    MissingPackageError,
    ModelFormatError,
    ModelMemoryError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from .kv_cache import KVCache
from .library import get_include, get_library
from .live import LiveView
from .machine import cpu_info
from .model import LLaDAForCausalLM, generate, generate_with_cpp_model
from .options import GenerationOptions
from .replay import save_html
from .result import GenerationResult, Step
from .selectors import Credit, EntropyBound, EntropyThreshold, Factor, Hierarchy, Klass, LocalLeap, Margin, Quota, Threshold
from .streamers import Streamer, TextStreamer
from .tasks import InferTask, LLaDABatchedTask
from .trace import Trace
from .windows import Blocks, Grow, LookAhead, SuffixWindow

LLaDAForCauslLM = LLaDAForCausalLM  # as the task interface spells it

__version__ = "0.1.0"

logging.getLogger("llada_native").addHandler(logging.NullHandler())

__all__ = [
    "Blocks",
    "Carry",
    "Credit",
    "Delayed",
    "DeviceType",
    "Dual",
    "EngineError",
    "EntropyBound",
    "EntropyThreshold",
    "Factor",
    "GenerationCancelled",
    "GenerationOptions",
    "GenerationResult",
    "Grow",
    "Hierarchy",
    "HubError",
    "InferTask",
    "KVCache",
    "Klass",
    "LLaDABatchedTask",
    "LLaDAForCausalLM",
    "LLaDAForCauslLM",
    "LiveView",
    "LladaError",
    "LocalLeap",
    "LookAhead",
    "Margin",
    "MissingPackageError",
    "ModelConfig",
    "ModelFormatError",
    "ModelMemoryError",
    "NoCache",
    "NoEditor",
    "NonFiniteLogitsError",
    "Prefix",
    "Quota",
    "Remask",
    "Step",
    "Streamer",
    "SuffixWindow",
    "TextStreamer",
    "Threshold",
    "TokenEdit",
    "Trace",
    "UnsupportedModelError",
    "Wino",
    "convert",
    "cpu_info",
    "generate",
    "generate_with_cpp_model",
    "get_include",
    "get_library",
    "plots",
    "save_html",
]
