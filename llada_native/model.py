"""`LLaDAForCausalLM`: a model, its tokenizer, and what one does with them."""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _native, checks
from .backend import Backend, TensorSource
from .carry import Carry
from .checkpoint import RandomWeights
from .config import ModelConfig
from .converted import Converted
from .denoiser import Denoiser, Request
from .device import DeviceType, check_device
from .errors import GenerationCancelled, LladaError, ModelFormatError
from .fallback import interruptible, report
from .generation import prepared, prepared_infill
from .hub import locate
from .kv_cache import KVCache
from .live import LiveView
from .loading import DEFAULT_GROUP_SIZE, DTYPES, check_engine, load_backend, open_model, token_defaults
from .options import GENERATE_NAMES, LARGEST_SEED, STREAM_NAMES, GenerationOptions
from .prompts import as_arrays, id_rows, token_rows
from .result import GenerationResult, IntArray, Step
from .scoring import score_all
from .streamers import Streamer
from .tasks import InferTask, Round
from .tokenizer import Tokenizer

DEMO = Path(__file__).parent / "demo"


class LLaDAForCausalLM:
    """A LLaDA on the CPU.

    Parameters
    ----------
    model_dir_path : path, optional
        A Hugging Face folder: config.json, safetensors weights, tokenizer.json; a folder that `convert` wrote; or a GGUF file. A text that
        is no path of this machine names a repository of the Hugging Face hub, "organization/name", or a GGUF file in one,
        "organization/name:file.gguf"; what the cache of huggingface_hub lacks of it is downloaded. Without it, the demo model of this
        package.
    device : DeviceType or "cpu"
        DEVICE_TYPE_CPU; this build has no other.
    ndev : int
        1: all cores are one device.
    max_tokens : int, optional
        Most tokens of a prompt with its answer; default the checkpoint's max_sequence_length.
    dtype : {"auto", "float32", "bfloat16", "bfloat16_fast", "float16", "int8", "int4"}
        Of the weights in memory. "auto" keeps bfloat16 checkpoints as they are and holds others as float32; of a GGUF file it is what is
        nearest to most of its weights, and of a converted folder what lies there. Float weights are multiplied
        in float32, those of "bfloat16_fast" with activations rounded to bfloat16, integer ones with 8-bit activations and exact integer
        sums; then the embedding is bfloat16 and the head int8. "float16" refuses weights above 65504, "int4" those above 524032, "int8"
        those above 8319008: their scales are float16.
    group_size : {32, 64, 128}, optional
        Weights of an output channel that share a scale, for int8 and int4: fewer are more exact, more are faster and smaller. Default 64;
        of a GGUF file 32, as in its own blocks. Other dtypes have no scales, whatever is given.
    backend : {"native", "reference", "placeholder"}
        The C++ engine; NumPy in float64: the same answers, slowly; or pseudo-logits without weights, for trying out the wiring.
    num_threads : int, optional
        Default: the cores this process may use.
    isa : str, optional
        A build of the kernels from `cpu_info`; default the fastest, or LLADA_ISA.
    fallback : {None, "reference", "placeholder"}
        What to go on with, after a RuntimeWarning, when the C++ engine cannot be set up. None raises.
    cache_dir : path, optional
        Folder for packed weights, where ~ is the user's folder: the first load writes a file there, later ones map it, at once and shared
        between processes. None packs at every load.
    revision : str, optional
        Branch, tag or commit of a repository; default its main branch.

    Attributes
    ----------
    revision : str or None
        The commit that a repository's files are of, and those of a folder that was converted from one; None for others.

    Raises
    ------
    ModelFormatError, UnsupportedModelError
        The folder or file is malformed, or asks for what this version lacks.
    MissingPackageError
        A GGUF file without the package gguf: pip install 'llada-native[gguf]'; a repository without huggingface_hub: [hub].
    HubError
        A repository is missing, gated or out of reach, or lacks the revision or a file.
    ModelMemoryError
        The weights do not fit into memory.
    TypeError, ValueError
        An argument is of the wrong type or out of range.

    Notes
    -----
    One model may be used from several threads; forward passes take turns. Pickling stores the path, the commit and the arguments, and
    loads again. As a context manager it frees its memory at the end.
    """

    def __init__(self, model_dir_path: str | Path | None = None, device: DeviceType | str = DeviceType.DEVICE_TYPE_CPU, ndev: int = 1,
                 max_tokens: int | None = None, *, dtype: str = "auto", group_size: int | None = None, backend: str = "native",
                 num_threads: int | None = None, isa: str | None = None, fallback: str | None = None,
                 cache_dir: str | Path | None = None, revision: str | None = None) -> None:
        if model_dir_path is not None and not isinstance(model_dir_path, str | Path):
            raise TypeError(f"model_dir_path: expected a folder's path, found {model_dir_path!r}")
        check_device(device, ndev)
        check_engine(dtype, group_size, backend, num_threads, isa, fallback)
        place = locate(DEMO if model_dir_path is None else model_dir_path, revision)
        opened = open_model(place.path, backend)
        if isinstance(opened.source, Converted):
            isa = opened.source.agreed(dtype, group_size, isa)
        self.revision = opened.source.revision if isinstance(opened.source, Converted) else place.revision
        self._recipe: tuple[Any, ...] = ("from_pretrained", model_dir_path, place.revision)
        self._set_up(opened.source, opened.tokenizer, opened.defaults, max_tokens,
                     {"dtype": opened.dtype if dtype == "auto" else dtype, "group_size": group_size or opened.group_size,
                      "backend": backend, "num_threads": num_threads, "isa": isa, "fallback": fallback, "cache_dir": cache_dir})

    @classmethod
    def from_pretrained(cls, model_dir_path: str | Path | None = None, device: DeviceType | str = DeviceType.DEVICE_TYPE_CPU, ndev: int = 1,
                        max_tokens: int | None = None, **arguments: Any) -> LLaDAForCausalLM:
        """Load a checkpoint folder, a GGUF file or a repository of the Hugging Face hub; the same as the constructor."""
        return cls(model_dir_path, device, ndev, max_tokens, **arguments)

    @classmethod
    def random(cls, config: ModelConfig | dict[str, Any], dtype: str = "bfloat16", seed: int = 0, *,
               group_size: int | None = None, backend: str = "native",
               max_tokens: int | None = None, num_threads: int | None = None, isa: str | None = None,
               fallback: str | None = None, cache_dir: str | Path | None = None) -> LLaDAForCausalLM:
        """A model of any shape with random weights and no tokenizer, for benchmarks without a download.

        Parameters
        ----------
        config : ModelConfig or dict
            A dict is read like a config.json.
        seed : int
            Of the weights; they do not depend on dtype, threads or instruction set.
        """
        checks.one_of("dtype", dtype, DTYPES[1:])
        checks.whole_number("seed", seed, 0, LARGEST_SEED)
        check_engine(dtype, group_size, backend, num_threads, isa, fallback)
        if isinstance(config, dict):
            config = ModelConfig.from_dict(config, "config")
        elif not isinstance(config, ModelConfig):
            raise TypeError(f"config: expected a ModelConfig or a dict, found {config!r}")
        model = cls.__new__(cls)
        model.revision = None
        model._recipe = ("random", config, seed)
        model._set_up(RandomWeights(config, seed), None, token_defaults(config, None, None), max_tokens,
                      {"dtype": dtype, "group_size": group_size or DEFAULT_GROUP_SIZE, "backend": backend, "num_threads": num_threads,
                       "isa": isa, "fallback": fallback, "cache_dir": cache_dir})
        return model

    def _set_up(self, source: TensorSource, tokenizer: Tokenizer | None, defaults: dict[str, Any], max_tokens: int | None,
                engine: dict[str, Any]) -> None:
        self.config: ModelConfig = source.config
        self.tokenizer = tokenizer
        largest = self.config.max_sequence_length
        self.max_tokens = largest if max_tokens is None else checks.whole_number("max_tokens", max_tokens, 1, largest)
        self._source, self._defaults, self._engine = source, defaults, engine
        self._substitutes: dict[str, Backend] = {}
        self._lock = threading.Lock()  # of the substitutes
        self._idle_denoisers: list[Denoiser] = []  # with buffers of earlier rounds
        fallback, cache_dir = engine["fallback"], engine["cache_dir"]
        if cache_dir is not None and not isinstance(cache_dir, str | Path):
            raise TypeError(f"cache_dir: expected a folder's path, found {cache_dir!r}")
        if cache_dir == "" or "\0" in str(cache_dir):
            raise ValueError(f"cache_dir: expected a folder's path, found {cache_dir!r}")
        folder = None if cache_dir is None else Path(checks.expanded(str(cache_dir)))
        arguments = engine["dtype"], engine["group_size"], engine["num_threads"], engine["isa"]
        self._backend: Backend
        try:
            self._backend = load_backend(source, engine["backend"], *arguments, folder)
        except (LladaError, MemoryError, RuntimeError, ValueError) as e:
            if fallback is None or engine["backend"] != "native" or isinstance(e, ModelFormatError):
                raise
            report(e, "native", fallback, self._facts())
            self._backend = load_backend(source, fallback, *arguments)

    def _substitute(self, backend: str) -> Backend:
        """A backend to go on with after a failure, made when first needed."""
        with self._lock:
            if backend not in self._substitutes and not self._backend.closed:
                self._substitutes[backend] = load_backend(self._source, backend, self._engine["dtype"], self._engine["group_size"],
                                                          None, None)
            if self._backend.closed:
                self._close_substitutes()
                raise GenerationCancelled("the model was closed while it was working")
            return self._substitutes[backend]

    def _facts(self) -> dict[str, Any]:
        """What a report of a failure needs to know of the model."""
        c, engine = self.config, self._engine
        return {"architecture": c.architecture, "layers": c.n_layers, "d_model": c.d_model, "heads": c.n_heads, "kv_heads": c.n_kv_heads,
                "mlp_hidden_size": c.mlp_hidden_size, "vocabulary": c.vocabulary, "dtype": engine["dtype"],
                "group_size": engine["group_size"], "isa": engine["isa"] or "default", "num_threads": engine["num_threads"] or "default"}

    # ---- generation

    def options(self, **options: Any) -> GenerationOptions:
        """What `generate` makes of these options with this model: every one of them, with its value.

        Raises
        ------
        TypeError, ValueError
            As `generate` does.
        """
        return GenerationOptions.resolve(options, self._defaults, self.config.vocabulary)

    def generate(self, prompts: Any, max_steps: int | None = None, gen_length: int | Literal["auto"] | None = None,
                 block_length: int | None = None, temperature_: float | None = None, cfg_scale: float | None = None,
                 remasking: str | None = None, mask_id: int | None = None, logits_eos_inf: bool | None = None,
                 confidence_eos_eot_inf: bool | str | None = None, verbose: bool = False, topp_: float | None = None,
                 topk_: int | None = None, *, attention_mask: Any = None,
                 chat: bool | str = "auto", seed: int | Sequence[int] | None = None, constraints: Any = None,
                 callback: Callable[[Step], object] | None = None, fallback: str | None = None, live: bool | LiveView = False,
                 streamer: Streamer | None = None, carry: Carry | None = None, drafts: bool = False,
                 **options: Any) -> GenerationResult:
        """Answer prompts.

        Parameters
        ----------
        prompts : str, list of str, chat messages, list of chat messages, or integers
            Integers: one prompt in one dimension, several in two or as a list of arrays of any lengths. Any kind of array will do.
        temperature_, cfg_scale, remasking, mask_id, topp_, topk_, logits_eos_inf, confidence_eos_eot_inf
            As `GenerationOptions` has them; None is the default.
        max_steps, gen_length, block_length
            As `GenerationOptions` has them; None is the default. Unset lengths come from the checkpoint's generation_config.json, else
            from the reference sampler (128); max_steps is gen_length.
        verbose : bool
            Print each step to stderr.
        attention_mask : array, optional
            For two-dimensional integer prompts: 0 drops a position (left or right padding).
        chat : "auto", True or False
            Put text into the checkpoint's chat template; "auto" does so when it has one.
        seed : int or sequence of int, optional
            One for the batch, or one a prompt: a prompt with its own seed gives the same answer alone and in any batch.
        constraints : dict or list of dict, optional
            Words that stay fixed: {position in the canvas: text, token id or list of ids}, one dict for all prompts or one each.
        callback : callable, optional
            Called with each `Step`; a true value ends the run.
        fallback : {None, "reference", "placeholder"}
            What to start again with, after a RuntimeWarning, when the C++ engine fails. None raises.
        live : bool or LiveView
            Show the answers on stderr while they are made, in place on a terminal.
        streamer : object with put, end and perhaps put_draft, optional
            Is told of the one answer while it is made (see `Streamer`); `TextStreamer` prints it.
        carry : Carry, optional
            Keys and values that this generation takes over from an earlier one, and leaves to the next; of block-causal models.
        drafts : bool
            ``result.trace`` keeps what every pass predicted for the masks it looked at, written or not: 12 bytes a prediction. Pages of
            `GenerationResult.save_html` then show a token's rivals and the guesses that were thrown away.
        **options
            The other attributes of `GenerationOptions`, and the names without underscore: temperature, top_p, top_k,
            repetition_penalty, suppress_tokens, eos_id, eot_id.

        Returns
        -------
        GenerationResult

        Raises
        ------
        TypeError, ValueError
            An argument is unknown, of the wrong type or out of range.
        EngineError, ModelMemoryError, NonFiniteLogitsError
            The engine failed, or the weights are damaged.
        GenerationCancelled
            Another thread closed the model.
        """
        named = {"max_steps": max_steps, "gen_length": gen_length, "block_length": block_length, "temperature_": temperature_,
                 "cfg_scale": cfg_scale, "remasking": remasking, "mask_id": mask_id, "logits_eos_inf": logits_eos_inf,
                 "confidence_eos_eot_inf": confidence_eos_eot_inf, "topp_": topp_, "topk_": topk_}
        options.update({name: value for name, value in named.items() if value is not None})
        return prepared(self, prompts, attention_mask, chat, seed, constraints, options, carry).run(verbose, callback, fallback, live,
                                                                                                   streamer, drafts)

    def generate_with_cpp_model(self, *args: Any, fallback: str | None = "reference", **arguments: Any) -> GenerationResult:
        """`generate`, which by default goes on with the NumPy reference when the C++ engine fails.

        The failure is logged with all that is known of it, and a RuntimeWarning names it. ``result.backend`` says what made the
        answer.

        Parameters
        ----------
        *args, **arguments
            As in `generate`.
        fallback : {"reference", "placeholder", None}
            "placeholder" goes on with pseudo-logits whose output means nothing, None raises.
        """
        return self.generate(*args, fallback=fallback, **arguments)

    def stream(self, prompts: Any, *, attention_mask: Any = None, chat: bool | str = "auto",
               seed: int | Sequence[int] | None = None, constraints: Any = None, drafts: bool = False, carry: Carry | None = None,
               **options: Any) -> Iterator[Step]:
        """The same generation as an iterator of steps. Closing it, or leaving its loop, stops the work and frees its caches.

        ``step.new_text`` is what a step adds to the settled beginning of each answer, ``step.text``, and ``step.trace`` the record so far.
        Other arguments, but for callback, verbose, live, streamer and fallback, and errors are those of `generate`; wrong arguments are
        refused at the call.

        Parameters
        ----------
        drafts : bool
            Steps carry what they predicted for the masks that they did not write, in ``step.drafts`` and ``step.draft_text``, and
            ``step.trace`` keeps it.
        """
        for name in GENERATE_NAMES:
            if name in options:
                raise TypeError(f"{name}: is for generate; a stream is a loop over its own steps")
        return prepared(self, prompts, attention_mask, chat, seed, constraints, options, carry, STREAM_NAMES).steps(drafts)

    def infill(self, texts: Any, *, prompt: Any = None, max_steps: int | None = None, chat: bool | str = "auto",
               seed: int | Sequence[int] | None = None, verbose: bool = False, callback: Callable[[Step], object] | None = None,
               fallback: str | None = None, live: bool | LiveView = False, drafts: bool = False,
               **options: Any) -> GenerationResult:
        """Fill the masks of a text; what is given never changes.

        Parameters
        ----------
        texts : list of (str or int), integers, or a list of those
            Parts of one text, a whole number n standing for n masks: ``["The capital of France is ", 1, "."]``. Or token ids with mask
            tokens among them.
        prompt : str or chat messages, optional
            What comes before the texts, for instance an instruction.
        max_steps : int, optional
            Denoising steps; default one a mask.
        **options
            As in `generate`. The text is the canvas and one block.

        Returns
        -------
        GenerationResult
            Its text is the whole text with its masks filled.

        Raises
        ------
        TypeError, ValueError
            A text has no mask, an argument is unknown, of the wrong type or out of range.
        """
        given = options if max_steps is None else {**options, "max_steps": max_steps}
        return prepared_infill(self, texts, prompt, chat, seed, given).run(verbose, callback, fallback, live, drafts=drafts)

    def score(self, prompts: Any, answers: Any, *, mc_num: int = 128, batch_size: int | None = None, cfg_scale: float = 0.0,
              chat: bool | str = "auto", seed: int | Sequence[int] | None = None, mask_id: int | None = None) -> NDArray[np.float64]:
        """Log-likelihood of answers given their prompts, by Monte Carlo: a lower bound, as `get_log_likelihood` of the reference has it.

        Parameters
        ----------
        prompts : as in `generate`
            One for all answers, or one each.
        answers : str, list of str, or integers
            Text is encoded as it stands, without special tokens of a chat.
        mc_num : int
            Samples. 1 is exact for answers of a single token.
        batch_size : int, optional
            Samples of one forward pass, among which the numbers of masks are spread evenly; divides mc_num. Default 16, or fewer.
        cfg_scale : float
            Guidance, with the prompt hidden.
        seed : int or sequence of int, optional
            One for all, or one an answer.

        Returns
        -------
        float64 [answers]
            In nats.
        """
        return score_all(self, prompts, answers, mc_num, batch_size, cfg_scale, chat, seed, mask_id)

    def _check_length(self, name: str, prompt: int, answer: int, what: str = "gen_length") -> None:
        if prompt + answer > self.max_tokens:
            raise ValueError(f"{name}: expected prompt and answer within the model's max_tokens ({self.max_tokens}), found a prompt of "
                             f"{prompt} and {what} {answer}")

    # ---- tasks

    def batch_infer_one_round(self, tasks: Sequence[InferTask]) -> list[int]:
        """One round of denoising for any set of tasks, in one forward pass.

        In each task the most confident mask of its current block is chosen: its position is left in ``task.pending_position``, its
        token is returned, and ``task.next(token)`` commits it. Tasks may join and leave between rounds; a task's tokens do not depend on
        the others.

        Parameters
        ----------
        tasks : list of InferTask

        Returns
        -------
        list of int
            One token a task.

        Raises
        ------
        TypeError, ValueError
            A task occurs twice, is finished, belongs to another model or does not fit this one; no task has changed.
        """
        self._require_open()
        with interruptible(self._backend):
            denoiser = self._idle_denoisers.pop() if self._idle_denoisers else Denoiser(self._backend)
            denoiser.backend = self._backend
            try:
                return Round(self, tasks).run(denoiser)
            finally:
                self._idle_denoisers.append(denoiser)

    def create_kv_cache(self, dtype: str = "float32") -> KVCache:
        """An empty cache of keys and values for one task; `dtype` is "float32" or "float16" (see `KVCache`)."""
        self._require_open()
        return KVCache(self, dtype)

    def drop_kv_cache(self, kv_cache: KVCache) -> None:
        """Free a cache's memory now."""
        if not isinstance(kv_cache, KVCache):
            raise TypeError(f"kv_cache: expected a KVCache, found {kv_cache!r}")
        if kv_cache._backend is not self._backend:
            raise ValueError("kv_cache: belongs to another model")
        kv_cache.drop()

    def max_context_len(self) -> int:
        """Most tokens of a prompt with its answer."""
        return self.max_tokens

    # ---- logits

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Logits of every position: what the model would write there, also where the row before predicts it (`config.shifted_logits`).

        Parameters
        ----------
        input_ids : integers
            One sequence, a two-dimensional batch, or a list of sequences of any lengths; any kind of array.
        attention_mask : array, optional
            0 drops a position of a two-dimensional batch; its logits are 0.

        Returns
        -------
        float32 array or list of arrays
            [length, vocabulary], [batch, length, vocabulary], or a list of [length, vocabulary].
        """
        input_ids = as_arrays(input_ids, "input_ids")
        rows = id_rows(input_ids, "input_ids")
        kept = token_rows(rows, attention_mask, self.config.vocabulary, "input_ids")
        if any(len(r) == 0 for r in kept) or not kept:
            raise ValueError("input_ids: expected at least one token in every row, found none")
        longest = max(len(r) for r in kept)
        if longest > self.max_tokens:
            raise ValueError(f"input_ids: expected at most max_tokens ({self.max_tokens}), found {longest}")
        self._require_open()
        with interruptible(self._backend):
            logits = self._logits(kept)
        if attention_mask is not None:
            masks = [m.astype(bool) for m in id_rows(attention_mask, "attention_mask")]
            logits = [_scatter(part, mask) for part, mask in zip(logits, masks, strict=True)]
        if input_ids[0].ndim == 0:
            return logits[0]
        return np.stack(logits) if len({len(part) for part in logits}) == 1 else logits

    def forward_logits_batch(self, input_ids: Any, attention_mask: Any = None) -> NDArray[np.float32]:
        """Logits float32 [batch, length, vocabulary] of a two-dimensional batch; dropped positions are 0.

        Raises
        ------
        ValueError
            input_ids is not two-dimensional, or the mask does not fit it.
        """
        input_ids = as_arrays(input_ids, "input_ids")
        rows = id_rows(input_ids, "input_ids")
        lengths = [len(row) for row in rows]
        if not any(lengths) or len(set(lengths)) != 1 or input_ids[0].ndim == 0:
            raise ValueError(f"input_ids: expected two dimensions [batch, length], found {len(rows)} row(s) of length {lengths}")
        return np.asarray(self.forward(np.stack(rows), attention_mask))

    def _logits(self, requests: list[IntArray]) -> list[NDArray[np.float32]]:
        denoiser = Denoiser(self._backend)
        hidden = denoiser.hidden([Request(ids, np.arange(len(ids))) for ids in requests])
        logits = np.empty((len(hidden), self.config.vocabulary), np.float32)
        denoiser.logits(hidden, logits)
        return np.split(logits, np.cumsum([len(ids) for ids in requests])[:-1])

    # ---- housekeeping

    @property
    def backend(self) -> str:
        return self._backend.name

    @property
    def dtype(self) -> str:
        """Of the weights in memory."""
        return {"native": str(self._engine["dtype"]), "reference": "float64"}.get(self.backend, "none")

    @property
    def group_size(self) -> int | None:
        """Weights that share a scale; None where weights are floats."""
        return int(self._engine["group_size"]) if self.dtype in ("int8", "int4") else None

    @property
    def isa(self) -> str | None:
        """The build of the kernels in use; None for backends without kernels."""
        return self._backend.isa if isinstance(self._backend, _native.NativeModel) else None

    @property
    def num_threads(self) -> int:
        """Threads of a forward pass; may be set. Results do not depend on it."""
        return self._backend.num_threads if isinstance(self._backend, _native.NativeModel) else 1

    @num_threads.setter
    def num_threads(self, threads: int) -> None:
        checks.threads("num_threads", threads)
        if isinstance(self._backend, _native.NativeModel):
            self._backend.num_threads = threads

    def memory(self) -> dict[str, int]:
        """Bytes held: ``weights`` and ``workspace`` (activations, grown to the largest batch so far)."""
        if isinstance(self._backend, _native.NativeModel):
            return {"weights": self._backend.weight_bytes, "workspace": self._backend.workspace_bytes}
        return {"weights": self._backend.weight_bytes, "workspace": 0}  # type: ignore[attr-defined]

    def close(self) -> None:
        """Free the weights. A generation on another thread ends with `GenerationCancelled`."""
        self._backend.close()
        with self._lock:
            self._close_substitutes()

    def _close_substitutes(self) -> None:
        for backend in self._substitutes.values():
            backend.close()

    def _require_open(self) -> None:
        if self._backend.closed:
            raise ValueError("the model is closed")

    def __enter__(self) -> LLaDAForCausalLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        kind, *place = self._recipe
        return _load_again, (type(self), kind, place, {"max_tokens": self.max_tokens, **self._engine})

    def __repr__(self) -> str:
        c = self.config
        return (f"LLaDAForCausalLM({c.n_parameters() / 1e6:.1f}M parameters, {c.n_layers} layers, dtype={self.dtype!r}, "
                f"backend={self.backend!r})")


def generate(prompts: Any, model: LLaDAForCausalLM | str | Path | None = None, **arguments: Any) -> GenerationResult:
    """Answer prompts with a model, a checkpoint folder, or the demo model of this package.

    A folder is loaded anew by each call; to answer many prompts, load once with `LLaDAForCausalLM.from_pretrained`.

    Parameters
    ----------
    prompts, **arguments
        As in `LLaDAForCausalLM.generate`.
    model : LLaDAForCausalLM or path, optional
    """
    if isinstance(model, LLaDAForCausalLM):
        return model.generate(prompts, **arguments)
    with LLaDAForCausalLM.from_pretrained(model) as loaded:
        return loaded.generate(prompts, **arguments)


def generate_with_cpp_model(prompts: Any, model: LLaDAForCausalLM | str | Path | None = None, *, fallback: str | None = "reference",
                            **arguments: Any) -> GenerationResult:
    """`generate`, which goes on with another backend when the C++ engine fails, be it while loading or while generating.

    Parameters
    ----------
    prompts, **arguments
        As in `LLaDAForCausalLM.generate`.
    model : LLaDAForCausalLM or path, optional
    fallback : {"reference", "placeholder", None}
        See `LLaDAForCausalLM.generate_with_cpp_model`.
    """
    if isinstance(model, LLaDAForCausalLM):
        return model.generate_with_cpp_model(prompts, fallback=fallback, **arguments)
    with LLaDAForCausalLM.from_pretrained(model, fallback=fallback) as loaded:
        return loaded.generate_with_cpp_model(prompts, fallback=fallback, **arguments)


def _scatter(part: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    out = np.zeros((len(mask), part.shape[1]), np.float32)
    out[mask] = part
    return out


def _load_again(cls: type[LLaDAForCausalLM], kind: str, place: list[Any], arguments: dict[str, Any]) -> LLaDAForCausalLM:
    if kind == "from_pretrained":
        return cls.from_pretrained(place[0], revision=place[1], **arguments)
    return cls.random(place[0], seed=place[1], **arguments)

