"""What commands share: their parser, the options of a model and of a generation, prompts, and numbers that are out of range."""
from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TextIO

from .. import checks, terminal
from .._sampler import REMASKING
from ..backend import CACHE_DTYPES
from ..caching import NAMES as CACHES
from ..editors import NAMES as EDITORS
from ..errors import LladaError
from ..fallback import FALLBACKS
from ..loading import BACKENDS, DEFAULT_GROUP_SIZE, DTYPES, GROUP_SIZES
from ..method import BLOCK_CAUSAL_PRESETS, PRESETS
from ..model import LLaDAForCausalLM
from ..options import LARGEST_SEED
from ..selectors import NAMES as SELECTORS
from ..windows import NAMES as CANVASES

GROUPED = ("int8", "int4")  # dtypes of weights that share scales
EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = ("exit codes: 0 done, 1 the model, a file or a text was refused or the engine failed, 2 an argument is wrong, "
              "130 interrupted\n")
FLAGS: dict[str, bool | str] = {"off": False, "on": True, "compat": "compat"}
# Options whose names on the command line are those of the API.
PLAIN_OPTIONS = ("max_steps", "gen_length", "block_length", "temperature", "cfg_scale", "remasking", "top_k", "top_p",
                 "repetition_penalty", "preset", "selector", "cache", "cache_dtype", "canvas", "editor", "early_stop")


class InputError(LladaError):
    """What was to be read is not there or not what was expected."""


class Help(argparse.HelpFormatter):
    """Lines of a text are paragraphs, as wide as the help of options; those that are indented stand as they were written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width, break_on_hyphens=False)
                         for line in text.splitlines())


class Parser(argparse.ArgumentParser):
    """One whose errors are one line, and whose examples stand as they were written."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=Help, **arguments)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown arguments are refused here, by the command that has the options they may have been meant for."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            meant = [name for text in unknown for name in get_close_matches(text.partition("=")[0], options, 1, 0.7)]
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f" (did you mean {', '.join(meant)}?)" if meant else ""))
        return found, unknown

    def exit(self, status: int = EXIT_OK, message: str | None = None) -> NoReturn:
        if status == EXIT_OK and sys.stdout is not None:
            sys.stdout.flush()  # help that nobody could read is a failure
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"llada-native: {' '.join(message.split())}; see {self.prog} --help\n")


def examples(*lines: str) -> str:
    """The end of a help text."""
    return "examples:\n" + "".join(f"  {line}\n" for line in lines)


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, *lines: str,
                more: str = "") -> argparse.ArgumentParser:
    """The parser of a command, with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".",
                                                          epilog=f"{examples(*lines)}{more and chr(10)}{more}\n{EXIT_CODES}")
    parser.set_defaults(run=run)
    return parser


def number(kind: Callable[[str], Any], check: Callable[..., Any], *limits: Any) -> Callable[[str], Any]:
    """The type of an option: a number within the limits of the API."""
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {wanted}, found {text!r}") from None
        try:
            return check("", value, *limits)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e).removeprefix(": ")) from None
    return parse


def count(low: int = 1, high: int = checks.LARGEST_COUNT) -> Callable[[str], Any]:
    return number(int, checks.whole_number, low, high)


def _length(text: str) -> Any:
    return text if text == "auto" else count()(text)


# ---- a model

def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="weights in memory (default: auto)")
    parser.add_argument("--group-size", type=int, choices=GROUP_SIZES,
                        help=f"weights that share a scale, for int8 and int4 (default: {DEFAULT_GROUP_SIZE}; of GGUF files 32)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a repository of the hub (default: main)")
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-threads", type=count(1, checks.LARGEST_THREADS), metavar="N",
                        help="default: the cores this process may use")
    parser.add_argument("--isa", help="kernels to use; 'info' lists them")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="PATH", help="checkpoint folder, GGUF file, or repository of the hub like org/name or "
                        "org/name:file.gguf; default: the demo model")
    add_weights(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="native", help="C++ engine, slow NumPy, or pseudo-logits to try the wiring")
    parser.add_argument("--cache-dir", metavar="FOLDER", help="keep packed weights here: later loads map them")


def open_model(a: argparse.Namespace, texts: bool = False) -> LLaDAForCausalLM:
    """The model that the arguments name; with `texts` one that can read them, or InputError."""
    check_groups(a, a.dtype)
    model = LLaDAForCausalLM.from_pretrained(a.model, dtype=a.dtype, group_size=a.group_size, backend=a.backend,
                                             num_threads=a.num_threads, isa=a.isa, cache_dir=a.cache_dir, revision=a.revision,
                                             fallback=getattr(a, "fallback", None))
    if model.backend == "native":  # others hold no weights of a dtype
        check_groups(a, model.dtype)
    if texts and model.tokenizer is None:
        model.close()
        raise InputError(f"{a.model}: expected a model with a tokenizer, found no tokenizer.json; the Python API takes token ids")
    return model


def check_groups(a: argparse.Namespace, dtype: str) -> None:
    """Raises ValueError where groups are asked for and weights of this dtype have none."""
    if a.group_size is not None and dtype not in ("auto", *GROUPED):
        raise ValueError(f"--group-size: is for dtype {' and '.join(GROUPED)}, found {dtype}")


# ---- a generation

def add_generation(parser: argparse.ArgumentParser, lengths: bool = True) -> None:
    """The options of `GenerationOptions`; without `lengths` for a text to fill, which has its own."""
    parser.add_argument("--max-steps", "--steps", type=count(), metavar="N",
                        help=f"denoising steps (default: {'gen-length' if lengths else 'one for each mask'})")
    if lengths:
        parser.add_argument("--gen-length", "--max-new-tokens", type=_length, metavar="N",
                            help="tokens of the answer's canvas (default: 128, demo model 64); auto: as many as the answer needs")
        parser.add_argument("--block-length", type=count(), metavar="N",
                            help="tokens of a block; divides gen-length (default: 128, demo model 32, or a divisor near that)")
    parser.add_argument("--temperature", type=number(float, checks.scale), metavar="T", help="0 (default) is deterministic")
    parser.add_argument("--cfg-scale", type=number(float, checks.scale), metavar="S", help="classifier-free guidance (default: 0, off)")
    parser.add_argument("--remasking", choices=REMASKING, help="which predictions a step keeps (default: low_confidence)")
    parser.add_argument("--top-k", type=count(0), metavar="K", help="draw among the K most likely tokens (default: all)")
    parser.add_argument("--top-p", type=number(float, checks.between, 0, 1), metavar="P",
                        help="draw among the fewest tokens with mass P (default: 1)")
    parser.add_argument("--repetition-penalty", type=number(float, checks.scale), metavar="R",
                        help="above 1, seen tokens become less likely")
    parser.add_argument("--preset", choices=list(PRESETS | BLOCK_CAUSAL_PRESETS), help="a tested bundle of early stop, selector and "
                        "cache (default: reference, exact); quality and speed are those of LLaDA2.1")
    if lengths:
        parser.add_argument("--early-stop", action=argparse.BooleanOptionalAction,
                            help="a prompt ends with its answer, not with its canvas")
    parser.add_argument("--selector", metavar="NAME", help="which predictions a pass keeps, like threshold:tau=0.8; of "
                        + ", ".join(SELECTORS))
    parser.add_argument("--cache", metavar="NAME", help="which rows a pass computes, like delayed:refresh_every=8; of "
                        + ", ".join(CACHES))
    parser.add_argument("--cache-dtype", choices=CACHE_DTYPES, help="of the keys and values that a cache keeps (default: float32)")
    parser.add_argument("--canvas", metavar="NAME", help="which positions are there, like suffix_window:length=128; of "
                        + ", ".join(CANVASES))
    parser.add_argument("--editor", metavar="NAME", help="what may change after it was written, like token_edit:tau=0.9; of "
                        + ", ".join(EDITORS))
    parser.add_argument("--logits-eos-inf", action="store_true", help="never draw the end-of-text token")
    parser.add_argument("--confidence-eos-eot-inf", choices=FLAGS, default="off",
                        help="reveal end tokens last; 'compat' is the reference's own reading")
    parser.add_argument("--seed", type=count(0, LARGEST_SEED), metavar="N", help="for temperature above 0 and random remasking")


def generation_options(a: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, as `generate` takes them."""
    given = {name: getattr(a, name, None) for name in PLAIN_OPTIONS}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if a.logits_eos_inf:
        options["logits_eos_inf"] = True
    if a.confidence_eos_eot_inf != "off":
        options["confidence_eos_eot_inf"] = FLAGS[a.confidence_eos_eot_inf]
    return options


def add_fallback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fallback", choices=FALLBACKS, help="what to go on with when the C++ engine fails (default: an error)")


def add_live(parser: argparse.ArgumentParser, help: str, default: bool | None = False) -> None:
    parser.add_argument("--live", action=argparse.BooleanOptionalAction, default=default, help=help)
    parser.add_argument("--color", choices=terminal.COLORS, default="auto",
                        help="of the live view: auto (default) has them on a terminal where NO_COLOR is not set")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


# ---- files

def check_out(name: str, out: str, sources: Iterable[str]) -> None:
    """Raises InputError where a file to write is one of those to read, by whatever path."""
    for source in sources:
        if os.path.exists(out) and os.path.exists(source) and os.path.samefile(out, source):
            raise InputError(f"{name}: expected another file than {source}, which is read, found {out}")


# ---- prompts

def read_prompts(a: argparse.Namespace) -> list[str]:
    """The prompts of arguments and files; standard input where there are none."""
    prompts = [read_argument(text, "prompt") for text in a.prompt] + [read_text(path) for path in a.file]
    return prompts or [read_stdin()]


def add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="one answer each; @FILE reads it from a file (@@ is an @), - or none at all from "
                        "standard input. A file is one prompt, however many lines it has; 'batch' answers line by line")
    parser.add_argument("--file", action="append", default=[], metavar="FILE", help="a prompt from a file; may be repeated")


def read_argument(text: str, name: str) -> str:
    """The text that an argument states, or that of the file it names."""
    if text == "-":
        return read_stdin(name)
    if text.startswith("@@"):
        text = text[1:]
    elif (path := named_file(text)) is not None:
        if not path:
            raise InputError("@: expected the name of a file behind it; @@ is an @")
        return read_text(path, name)
    _stated(text, "an argument", name)
    return valid(text, name)


def named_file(text: str) -> str | None:
    """The file that an argument names; None when it is a text."""
    return text[1:] if text.startswith("@") and not text.startswith("@@") else None


def read_text(path: str, name: str = "prompt") -> str:
    try:
        return _stated(Path(path).read_text("utf-8"), path, name)
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: expected UTF-8 text, found byte {e.object[e.start]:#04x} at {e.start}") from e
    except ValueError as e:  # a NUL in the name
        raise InputError(f"{path!r}: {e}") from e


def read_stdin(name: str = "prompt") -> str:
    if sys.stdin is None or terminal.is_terminal(sys.stdin):
        raise InputError(f"no {name}: give one as an argument or on standard input")
    utf8(sys.stdin)
    try:
        return _stated(sys.stdin.read(), "standard input", name)
    except UnicodeDecodeError as e:
        raise InputError("standard input: expected UTF-8 text") from e


def utf8(stream: TextIO | None) -> None:
    """What is piped is UTF-8 in every locale."""
    if isinstance(stream, io.TextIOWrapper) and (stream.encoding.lower(), stream.errors) != ("utf-8", "strict"):
        stream.reconfigure(encoding="utf-8", errors="strict")


def valid(text: str, name: str) -> str:
    """An argument's text. Its bytes are UTF-8 or refused, as whatever the locale has decoded them."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # it was no argument of a process
        data = text.encode("utf-8", "surrogatepass")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{name}: expected UTF-8 text") from e


def _stated(text: str, source: str, name: str) -> str:
    if not text.strip():
        raise InputError(f"no {name}: {source} is empty")
    return text.strip()
