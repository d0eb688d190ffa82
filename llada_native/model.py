"""`LLaDAForCausalLM`: a model, its tokenizer, and what one does with them."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native, checks
from .backend import Backend, TensorSource
from .checkpoint import Checkpoint, RandomWeights, read_json
from .config import ModelConfig
from .decoding import VOCABULARY_TILE, Denoising, random_streams
from .errors import GenerationCancelled, ModelFormatError, ModelMemoryError
from .machine import available_memory, default_threads
from .options import GenerationOptions
from .progress import print_step
from .prompts import encode_prompts, id_rows, token_rows
from .result import GenerationResult, IntArray, Step
from .tokenizer import Tokenizer, special_token_id

DTYPES = ("auto", "float32", "bfloat16")
BACKENDS = ("native", "reference")
DEMO = Path(__file__).parent / "demo"
EOT = "<|eot_id|>"
GIB = 1 << 30
LARGEST_SEED = (1 << 128) - 1


class LLaDAForCausalLM:
    """A LLaDA on the CPU.

    Parameters
    ----------
    model_dir_path : path, optional
        A Hugging Face folder: config.json, safetensors weights, tokenizer.json. Without it, the demo model of this package.
    dtype : {"auto", "float32", "bfloat16"}
        Of the weights in memory. "auto" keeps bfloat16 checkpoints as they are and holds others as float32. Arithmetic is float32.
    backend : {"native", "reference"}
        The C++ engine, or NumPy in float64: the same answers, slowly.
    num_threads : int, optional
        Default: the cores this process may use.
    isa : str, optional
        A build of the kernels from `cpu_info`; default the fastest, or LLADA_ISA.

    Raises
    ------
    ModelFormatError, UnsupportedModelError
        The folder is malformed, or asks for what this version lacks.
    ModelMemoryError
        The weights do not fit into memory.
    ValueError
        An argument is out of range.

    Notes
    -----
    One model may be used from several threads; forward passes take turns. Pickling stores the path and the arguments, and loads
    again. As a context manager it frees its memory at the end.
    """

    def __init__(self, model_dir_path: str | Path | None = None, *, dtype: str = "auto", backend: str = "native",
                 num_threads: int | None = None, isa: str | None = None) -> None:
        if model_dir_path is not None and not isinstance(model_dir_path, str | Path):
            raise TypeError(f"model_dir_path: expected a folder's path, found {model_dir_path!r}")
        _check_engine(dtype, backend, num_threads, isa)
        folder = Path(model_dir_path) if model_dir_path is not None else DEMO
        source = Checkpoint(folder)
        if dtype == "auto":
            dtype = "bfloat16" if set(source.dtypes.values()) == {"bfloat16"} else "float32"
        tokenizer = Tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
        if tokenizer is not None and tokenizer.largest_id >= source.config.vocabulary:
            raise ModelFormatError(f"{tokenizer.path}: expected token ids below {source.config.vocabulary} (rows of the embedding), "
                                   f"found {tokenizer.largest_id}")
        self._set_up(source, tokenizer, dtype, backend, num_threads, isa)
        self._defaults = _generation_defaults(folder, source.config, tokenizer)
        self._recipe: tuple[Any, ...] = ("from_pretrained", model_dir_path)

    @classmethod
    def from_pretrained(cls, model_dir_path: str | Path | None = None, *, dtype: str = "auto", backend: str = "native",
                        num_threads: int | None = None, isa: str | None = None) -> LLaDAForCausalLM:
        """Load a checkpoint folder; the same as the constructor."""
        return cls(model_dir_path, dtype=dtype, backend=backend, num_threads=num_threads, isa=isa)

    @classmethod
    def random(cls, config: ModelConfig | dict[str, Any], dtype: str = "bfloat16", seed: int = 0, *, backend: str = "native",
               num_threads: int | None = None, isa: str | None = None) -> LLaDAForCausalLM:
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
        if isinstance(config, dict):
            config = ModelConfig.from_dict(config, "config")
        elif not isinstance(config, ModelConfig):
            raise TypeError(f"config: expected a ModelConfig or a dict, found {config!r}")
        model = cls.__new__(cls)
        model._set_up(RandomWeights(config, seed), None, dtype, backend, num_threads, isa)
        model._defaults = _token_defaults(config, None, None)
        model._recipe = ("random", config, seed)
        return model

    def _set_up(self, source: TensorSource, tokenizer: Tokenizer | None, dtype: str, backend: str, num_threads: int | None,
                isa: str | None) -> None:
        _check_engine(dtype, backend, num_threads, isa)
        self.config: ModelConfig = source.config
        self.tokenizer = tokenizer
        self.dtype = dtype if backend == "native" else "float64"
        self._arguments = {"dtype": dtype, "backend": backend, "num_threads": num_threads, "isa": isa}
        self._backend: Backend
        if backend == "reference":
            from .reference import ReferenceModel

            self._backend = ReferenceModel(source)
        else:
            self._backend = _load_native(source, dtype, default_threads() if num_threads is None else num_threads, isa or "")

    # ---- generation

    def generate(self, prompts: Any, *, attention_mask: Any = None, chat: bool | str = "auto",
                 seed: int | Sequence[int] | None = None, callback: Callable[[Step], object] | None = None, verbose: bool = False,
                 **options: Any) -> GenerationResult:
        """Answer prompts.

        Parameters
        ----------
        prompts : str, list of str, chat messages, list of chat messages, or integers
            Integers: one prompt in one dimension, several in two or as a list of arrays of any lengths.
        attention_mask : array, optional
            For two-dimensional integer prompts: 0 drops a position (left or right padding).
        chat : "auto", True or False
            Put text into the checkpoint's chat template; "auto" does so when it has one.
        seed : int or sequence of int, optional
            One for the batch, or one a prompt: a prompt with its own seed gives the same answer alone and in any batch.
        callback : callable, optional
            Called with each `Step`; a true value ends the run.
        verbose : bool
            Print each step to stderr.
        **options
            The attributes of `GenerationOptions`: max_steps, gen_length, block_length, temperature, cfg_scale, remasking,
            logits_eos_inf, confidence_eos_eot_inf, mask_id, eos_id, eot_id. Unset lengths come from the checkpoint's
            generation_config.json, else from the reference sampler (128); max_steps is gen_length.

        Returns
        -------
        GenerationResult

        Raises
        ------
        TypeError, ValueError
            An argument is unknown, of the wrong type or out of range.
        NonFiniteLogitsError
            The weights are damaged.
        GenerationCancelled
            Another thread closed the model.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function of a Step, found {callback!r}")
        run = self._denoising(prompts, attention_mask, chat, seed, options)
        cancelled = False
        with _interruptible(self._backend):
            for step in run.steps():
                if verbose:
                    print_step(step, self.tokenizer)
                if callback is not None and callback(step):
                    cancelled = True
                    break
        return self._result(run, cancelled)

    def stream(self, prompts: Any, *, attention_mask: Any = None, chat: bool | str = "auto",
               seed: int | Sequence[int] | None = None, **options: Any) -> Iterator[Step]:
        """The same generation as an iterator of steps. Closing it, or leaving its loop, stops the work.

        ``step.text`` is the settled beginning of each answer. Arguments and errors are those of `generate`, raised at the call.
        """
        run = self._denoising(prompts, attention_mask, chat, seed, options)

        def steps() -> Iterator[Step]:
            with _interruptible(self._backend):
                yield from run.steps()

        return steps()

    def _denoising(self, prompts: Any, attention_mask: Any, chat: bool | str, seed: Any, options: dict[str, Any]) -> Denoising:
        self._require_open()
        resolved = GenerationOptions.resolve(options, self._defaults, self.config.vocabulary)
        encoded = encode_prompts(prompts, attention_mask, chat, self.tokenizer, self.config.vocabulary)
        longest = max(len(ids) for ids in encoded) + resolved.gen_length
        if longest > self.config.max_sequence_length:
            raise ValueError(f"prompts: expected prompt and answer within max_sequence_length ({self.config.max_sequence_length} tokens), "
                             f"found a prompt of {longest - resolved.gen_length} and gen_length {resolved.gen_length}")
        streams = random_streams(_checked_seed(seed, len(encoded)), len(encoded))
        return Denoising(self._backend, encoded, resolved, streams, lambda canvas: self._text(canvas, resolved))

    def _text(self, answer: IntArray, options: GenerationOptions) -> str:
        """An answer up to its first mask or end token."""
        stop = np.flatnonzero(np.isin(answer, [options.mask_id, *options.end_ids]))
        return self.tokenizer.decode(answer[:stop[0]] if len(stop) else answer) if self.tokenizer else ""

    def _result(self, run: Denoising, cancelled: bool) -> GenerationResult:
        reasons, texts, lengths = [], [], []
        for c in run.canvases:
            ends = np.flatnonzero(np.isin(c.answer, run.options.end_ids))
            answer = c.answer[:ends[0]] if len(ends) else c.answer
            reasons.append("cancelled" if cancelled and run.options.mask_id in c.answer else "stop" if len(ends) else "length")
            lengths.append(int(np.count_nonzero(answer != run.options.mask_id)))
            texts.append(self.tokenizer.decode(answer[answer != run.options.mask_id]) if self.tokenizer else "")
        return GenerationResult(
            text=texts,
            sequences=[c.ids for c in run.canvases],
            prompt_lengths=[c.prompt_length for c in run.canvases],
            finish_reason=reasons,
            commit_step=[c.commit_step for c in run.canvases],
            confidence=[c.confidence for c in run.canvases],
            answer_lengths=lengths,
            n_forward=run.n_forward,
            rows_computed=run.rows_computed,
            timings={"forward": run.seconds_forward, "sample": run.seconds_sample, "total": run.seconds},
            backend=self._backend.name,
        )

    # ---- logits

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Logits of every position.

        Parameters
        ----------
        input_ids : integers
            One sequence, a two-dimensional batch, or a list of sequences of any lengths.
        attention_mask : array, optional
            0 drops a position of a two-dimensional batch; its logits are 0.

        Returns
        -------
        float32 array or list of arrays
            [length, vocabulary], [batch, length, vocabulary], or a list of [length, vocabulary].
        """
        rows = id_rows(input_ids, "input_ids")
        kept = token_rows(rows, attention_mask, self.config.vocabulary, "input_ids")
        if any(len(r) == 0 for r in kept) or not kept:
            raise ValueError("input_ids: expected at least one token in every row, found none")
        longest = max(len(r) for r in kept)
        if longest > self.config.max_sequence_length:
            raise ValueError(f"input_ids: expected at most max_sequence_length ({self.config.max_sequence_length}) tokens, found {longest}")
        self._require_open()
        with _interruptible(self._backend):
            logits = self._logits(kept)
        if attention_mask is not None:
            masks = [m.astype(bool) for m in id_rows(attention_mask, "attention_mask")]
            logits = [_scatter(part, mask) for part, mask in zip(logits, masks, strict=True)]
        if np.ndim(input_ids[0]) == 0:
            return logits[0]
        return np.stack(logits) if len({len(part) for part in logits}) == 1 else logits

    def forward_logits_batch(self, input_ids: Any, attention_mask: Any = None) -> NDArray[np.float32]:
        """Logits float32 [batch, length, vocabulary] of a two-dimensional batch; dropped positions are 0.

        Raises
        ------
        ValueError
            input_ids is not two-dimensional, or the mask does not fit it.
        """
        rows = id_rows(input_ids, "input_ids")
        lengths = [len(row) for row in rows]
        if not any(lengths) or len(set(lengths)) != 1 or np.ndim(input_ids[0]) == 0:
            raise ValueError(f"input_ids: expected two dimensions [batch, length], found {len(rows)} row(s) of length {lengths}")
        return np.asarray(self.forward(np.stack(rows), attention_mask))

    def _logits(self, requests: list[IntArray]) -> list[NDArray[np.float32]]:
        tokens = np.concatenate(requests)
        lengths = np.array([len(r) for r in requests], np.int32)
        hidden = self._backend.hidden(tokens, lengths, np.arange(len(tokens), dtype=np.int32))
        vocabulary = self.config.vocabulary
        logits = np.empty((len(tokens), vocabulary), np.float32)
        for begin in range(0, vocabulary, VOCABULARY_TILE):
            end = min(begin + VOCABULARY_TILE, vocabulary)
            tile = np.empty((len(tokens), end - begin), np.float32)
            self._backend.head(hidden, begin, end, tile)
            logits[:, begin:end] = tile
        return np.split(logits, np.cumsum(lengths)[:-1])

    # ---- housekeeping

    @property
    def backend(self) -> str:
        return self._backend.name

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

    def _require_open(self) -> None:
        if self._backend.closed:
            raise ValueError("the model is closed")

    def __enter__(self) -> LLaDAForCausalLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        kind, *place = self._recipe
        return _load_again, (type(self), kind, place, self._arguments)

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


def _check_engine(dtype: object, backend: object, num_threads: object, isa: object) -> None:
    checks.one_of("dtype", dtype, DTYPES)
    checks.one_of("backend", backend, BACKENDS)
    if num_threads is not None:
        checks.threads("num_threads", num_threads)
    if isa is not None:
        checks.one_of("isa", isa, _native.isas())


def _load_native(source: TensorSource, dtype: str, threads: int, isa: str) -> _native.NativeModel:
    need = source.config.matrices() * (4 if dtype == "float32" else 2)
    have = available_memory()
    if have is not None and need > have:
        raise ModelMemoryError(f"the weights need {need / GIB:.1f} GiB as {dtype}, and {have / GIB:.1f} GiB are available"
                               + ("; dtype='bfloat16' halves that" if dtype == "float32" else ""))
    try:
        model = _native.NativeModel(source.config, dtype, threads, isa)
        for spec, begin, rows in source.slices():
            model.load(spec.role, spec.layer, begin, rows)
    except MemoryError as e:
        raise ModelMemoryError(f"the weights need {need / GIB:.1f} GiB as {dtype}; an allocation failed") from e
    return model


def _generation_defaults(folder: Path, config: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Lengths from generation_config.json and token ids from the checkpoint."""
    defaults = _token_defaults(config, tokenizer, folder)
    path = folder / "generation_config.json"
    stated = read_json(path) if path.is_file() else {}
    for key in ("gen_length", "block_length"):
        value = stated.get(key)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelFormatError(f"{path}: {key}: expected a positive whole number, found {value!r}")
            defaults[key] = value
    return defaults


def _token_defaults(config: ModelConfig, tokenizer: Tokenizer | None, folder: Path | None) -> dict[str, Any]:
    """Token ids as far as the checkpoint states them. LLaDA-8B names the end of a turn in its tokenizer only."""
    eot = config.eot_token_id
    if eot is None and tokenizer is not None:
        eot = tokenizer.token_id(EOT)
    elif eot is None and folder is not None:
        eot = special_token_id(folder, EOT)
        if eot is not None and eot >= config.vocabulary:
            raise ModelFormatError(f"{folder / 'tokenizer_config.json'}: {EOT}: expected a token id from 0 to {config.vocabulary - 1}, "
                                   f"found {eot}")
    return {"mask_id": config.mask_token_id, "eos_id": config.eos_token_id, "eot_id": eot}


def _checked_seed(seed: Any, prompts: int) -> int | list[int] | None:
    if seed is None:
        return None
    if isinstance(seed, list | tuple) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
        if len(seed) != prompts:
            raise ValueError(f"seed: expected one for each of {prompts} prompts, found {len(seed)}")
        return [checks.whole_number(f"seed[{i}]", s, 0, LARGEST_SEED) for i, s in enumerate(seed)]
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: expected a whole number or one a prompt, found {seed!r}")
    return checks.whole_number("seed", seed, 0, LARGEST_SEED)


def _scatter(part: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    out = np.zeros((len(mask), part.shape[1]), np.float32)
    out[mask] = part
    return out


@contextmanager
def _interruptible(backend: Backend) -> Iterator[None]:
    """A model that is closed meanwhile ends the work with `GenerationCancelled`, inside a forward pass or between two."""
    try:
        yield
    except (InterruptedError, ValueError) as e:
        if not backend.closed:
            raise
        raise GenerationCancelled("the model was closed while it was working") from e


def _load_again(cls: type[LLaDAForCausalLM], kind: str, place: list[Any], arguments: dict[str, Any]) -> LLaDAForCausalLM:
    model: LLaDAForCausalLM = getattr(cls, kind)(*place, **arguments) if kind == "from_pretrained" else cls.random(
        place[0], arguments["dtype"], place[1], **{k: v for k, v in arguments.items() if k != "dtype"})
    return model

