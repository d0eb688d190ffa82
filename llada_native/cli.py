"""The command line: a thin front end over the API. Errors are one line on stderr; exit codes say what happened."""
from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from . import __version__, checks
from ._sampler import REMASKING
from .backend import CACHE_DTYPES
from .caching import NAMES as CACHES
from .conversion import convert
from .converted import Converted
from .editors import NAMES as EDITORS
from .errors import LladaError
from .fallback import FALLBACKS
from .loading import BACKENDS, DEFAULT_GROUP_SIZE, DTYPES, GIB, GROUP_SIZES
from .machine import available_memory, cpu_info
from .method import BLOCK_CAUSAL_PRESETS, PRESETS
from .model import DEMO, LLaDAForCausalLM
from .progress import Bar
from .result import GenerationResult
from .selectors import NAMES as SELECTORS
from .server import command as serve
from .windows import NAMES as CANVASES

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
EPILOG = """\
examples:
  llada-native generate "Sort these numbers: 31, 7, 52, 12."
  llada-native generate --model path/to/LLaDA-8B-Instruct --gen-length 128 --block-length 32 "What is diffusion?"
  echo "What is 17 plus 25?" | llada-native generate --json
  llada-native info --model path/to/LLaDA-8B-Instruct
  llada-native convert path/to/LLaDA-8B-Instruct llada-8b-int4 --dtype int4

exit codes: 0 done, 1 the model or the input was refused, 2 wrong usage, 130 interrupted
"""


CONVERT_EPILOG = """\
example, for a folder that opens within a second:
  llada-native convert path/to/LLaDA-8B-Instruct llada-8b-int4 --dtype int4
  llada-native generate --model llada-8b-int4 "What is diffusion?"

The folder holds the weights as this machine's kernels want them. It needs nothing of SOURCE afterwards, and another kind of processor
needs a folder of its own (--isa). It appears whole or not at all.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default ``sys.argv[1:]``.
    """
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader left; keep the interpreter from writing again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except (LladaError, ValueError, TypeError, OSError) as e:
        return _fail(str(e), EXIT_FAILURE)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"llada-native: warning: {message}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    print("llada-native: " + " ".join(message.split()), file=sys.stderr)
    return code


def _generate(a: argparse.Namespace) -> int:
    prompts = [_read_stdin() if text == "-" else text for text in a.prompt or ["-"]]
    options = {name: getattr(a, name) for name in ("max_steps", "gen_length", "block_length", "temperature", "cfg_scale", "remasking",
                                               "top_k", "top_p", "repetition_penalty", "preset", "selector", "cache", "cache_dtype",
                                               "canvas", "editor", "early_stop",
                                               "fallback")}
    options = {name: value for name, value in options.items() if value is not None}
    flags: dict[str, bool | str] = {"off": False, "on": True, "compat": "compat"}
    with _load(a) as model:
        result = model.generate(prompts, seed=a.seed, chat="auto" if a.chat else False, verbose=a.verbose,
                                logits_eos_inf=a.logits_eos_inf,
                                confidence_eos_eot_inf=flags[a.confidence_eos_eot_inf], **options)
    print(json.dumps(_as_json(prompts, result), ensure_ascii=False) if a.json else result)
    return EXIT_OK


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("no prompt: give one as an argument or on standard input")
    try:
        text = sys.stdin.read().strip()
        text.encode("utf-8")  # in some locales undecodable bytes come through as lone surrogates
    except UnicodeError as e:
        raise ValueError("standard input: expected UTF-8 text") from e
    if not text:
        raise ValueError("no prompt: standard input is empty")
    return text


def _as_json(prompts: list[str], result: GenerationResult) -> dict[str, Any]:
    answers = [{"prompt": prompt, "text": text, "finish_reason": reason}
               for prompt, text, reason in zip(prompts, result.text, result.finish_reason, strict=True)]
    return {"answers": answers, "n_forward": result.n_forward, "tokens_per_second": round(result.tokens_per_second, 2),
            "seconds": round(result.timings["total"], 4), "backend": result.backend}


def _info(a: argparse.Namespace) -> int:
    memory = available_memory()
    facts: dict[str, Any] = {"version": __version__, **cpu_info(),
                             "available_memory_gib": None if memory is None else round(memory / GIB, 1)}
    with _load(a) as model:
        c = model.config
        facts["model"] = {"folder": str(a.model or DEMO), "architecture": c.architecture, "parameters": c.n_parameters(),
                          "layers": c.n_layers, "d_model": c.d_model, "heads": c.n_heads, "kv_heads": c.n_kv_heads, "head_dim": c.head_dim,
                          "mlp_hidden_size": c.mlp_hidden_size, "vocabulary": c.vocabulary,
                          "max_sequence_length": c.max_sequence_length, "dtype": model.dtype, "backend": model.backend, "isa": model.isa,
                          "num_threads": model.num_threads,
                          "weights_mib": round(model.memory()["weights"] / (1 << 20), 1), "tokenizer": model.tokenizer is not None,
                          "chat_template": bool(model.tokenizer and model.tokenizer.chat_template)}
        if c.n_experts:
            facts["model"] |= {"experts": c.n_experts, "experts_per_token": c.experts_per_token,
                               "expert_hidden_size": c.expert_hidden_size, "shared_expert_hidden_size": c.shared_expert_hidden_size,
                               "dense_layers": list(c.dense_layers)}
        if c.attention_block:
            facts["model"]["attention_block"] = c.attention_block
    if a.json:
        print(json.dumps(facts))
        return EXIT_OK
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {item}")
        else:
            print(f"{key}: {value}")
    return EXIT_OK


def _selftest(a: argparse.Namespace) -> int:
    from . import selftest

    seen: list[dict[str, Any]] = []

    def report(section: str, name: str, good: bool, text: str, seconds: float) -> None:
        if not a.json:
            if not seen or seen[-1]["section"] != section:
                print(section)
            print(f"  {'ok  ' if good else 'FAIL'} {name}: {text} ({seconds:.2f} s)", flush=True)
        seen.append({"section": section, "name": name, "passed": good, "seen": text, "seconds": round(seconds, 3)})

    with _load(a) as model:
        passed = selftest.run(model, a.model is None and a.backend != "placeholder", report)
    failures = sum(not check["passed"] for check in seen)
    print(json.dumps({"passed": passed, "checks": seen}) if a.json else
          f"{len(seen)} checks, all passed" if passed else f"{failures} of {len(seen)} checks failed")
    return EXIT_OK if passed else EXIT_FAILURE


def _bench(a: argparse.Namespace) -> int:
    from . import bench

    facts = bench.machine()
    isa, threads = a.isa or facts["isa"], a.num_threads or facts["num_threads"]
    found: list[dict[str, Any]] = []

    def report(line: dict[str, Any]) -> None:
        found.append(line)
        if not a.json:
            group = "" if line["group_size"] is None else f"group {line['group_size']}"
            print(f"{line['dtype']:10}{group:10}{line['rows']:6}{line['gflops']:12.0f}{line['fraction_of_peak']:10.2f}"
                  f"{line['milliseconds']:12.0f}", flush=True)

    if not a.json:
        print(f"matrix products of LLaDA-8B, kernels {isa}, {threads} threads; peak: fused multiply-adds of float32\n"
              f"{'dtype':20}{'rows':>6}{'10^9 op/s':>12}{'of peak':>10}{'ms/forward':>12}", flush=True)
    bench.measure(a.rows, threads, isa, report)
    if a.json:
        print(json.dumps({"isa": isa, "num_threads": threads, "results": found}))
    return EXIT_OK


def _convert(a: argparse.Namespace) -> int:
    with Bar("packing") as bar:
        out = convert(a.source, a.out, dtype=a.dtype, group_size=a.group_size, isa=a.isa, num_threads=a.num_threads, force=a.force,
                      progress=bar)
    mib = sum(p.stat().st_size for p in out.iterdir()) / (1 << 20)
    print(f"{out}: {Converted(out).stated()}, {mib:.1f} MiB")
    return EXIT_OK


def _length(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, found {text!r}") from None


def _row_count(text: str) -> int:
    return checks.whole_number("--rows", int(text), 1, 4096)


def _load(a: argparse.Namespace) -> LLaDAForCausalLM:
    return LLaDAForCausalLM.from_pretrained(a.model, dtype=a.dtype, group_size=a.group_size, backend=a.backend,
                                            num_threads=a.num_threads, isa=a.isa, cache_dir=a.cache_dir,
                                            fallback=getattr(a, "fallback", None))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llada-native", description="LLaDA masked diffusion language models on the CPU.", epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"llada-native {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("--dtype", choices=DTYPES, default="auto", help="weights in memory (default: auto)")
    weights.add_argument("--group-size", type=int, choices=GROUP_SIZES,
                         help=f"weights that share a scale, for int8 and int4 (default: {DEFAULT_GROUP_SIZE}; of GGUF files 32)")
    weights.add_argument("--num-threads", type=int, metavar="N", help="default: the cores this process may use")
    weights.add_argument("--isa", help="kernels to use; 'info' lists them")

    common = argparse.ArgumentParser(add_help=False, parents=[weights])
    common.add_argument("--model", metavar="PATH", help="checkpoint folder or GGUF file; default: the demo model")
    common.add_argument("--backend", choices=BACKENDS, default="native",
                        help="C++ engine, slow NumPy, or pseudo-logits to try the wiring")
    common.add_argument("--cache-dir", metavar="FOLDER", help="keep packed weights here: later loads map them")
    common.add_argument("--json", action="store_true", help="machine-readable output")

    generate = commands.add_parser("generate", parents=[common], help="answer prompts", epilog=EPILOG,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    generate.add_argument("prompt", nargs="*", help="one answer each; - or none reads one prompt from standard input")
    generate.add_argument("--max-steps", "--steps", type=int, metavar="N", help="denoising steps (default: gen-length)")
    generate.add_argument("--gen-length", "--max-new-tokens", type=_length, metavar="N",
                          help="tokens of the answer's canvas; auto: as many as the answer needs")
    generate.add_argument("--block-length", type=int, metavar="N", help="tokens of a block; divides gen-length")
    generate.add_argument("--temperature", type=float, metavar="T", help="0 (default) is deterministic")
    generate.add_argument("--cfg-scale", type=float, metavar="S", help="classifier-free guidance (default: 0, off)")
    generate.add_argument("--remasking", choices=REMASKING, help="which predictions a step keeps (default: low_confidence)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw among the K most likely tokens (default: all)")
    generate.add_argument("--top-p", type=float, metavar="P", help="draw among the fewest tokens with mass P (default: 1)")
    generate.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1, seen tokens become less likely")
    generate.add_argument("--preset", choices=list(PRESETS | BLOCK_CAUSAL_PRESETS), help="a tested bundle of early stop, selector and "
                          "cache (default: reference, exact); quality and speed are those of LLaDA2.1")
    generate.add_argument("--early-stop", action=argparse.BooleanOptionalAction, help="a prompt ends with its answer, not with its canvas")
    generate.add_argument("--selector", metavar="NAME", help="which predictions a pass keeps, like threshold:tau=0.8; of "
                          + ", ".join(SELECTORS))
    generate.add_argument("--cache", metavar="NAME", help="which rows a pass computes, like delayed:refresh_every=8; of "
                          + ", ".join(CACHES))
    generate.add_argument("--cache-dtype", choices=CACHE_DTYPES, help="of the keys and values that a cache keeps (default: float32)")
    generate.add_argument("--canvas", metavar="NAME", help="which positions are there, like suffix_window:length=128; of "
                          + ", ".join(CANVASES))
    generate.add_argument("--editor", metavar="NAME", help="what may change after it was written, like token_edit:tau=0.9; of "
                          + ", ".join(EDITORS))
    generate.add_argument("--fallback", choices=FALLBACKS, help="what to go on with when the C++ engine fails (default: an error)")
    generate.add_argument("--logits-eos-inf", action="store_true", help="never draw the end-of-text token")
    generate.add_argument("--confidence-eos-eot-inf", choices=("off", "on", "compat"), default="off",
                          help="reveal end tokens last; 'compat' is the reference's own reading")
    generate.add_argument("--seed", type=int, help="for temperature above 0 and random remasking")
    generate.add_argument("--no-chat", dest="chat", action="store_false", help="do not apply the chat template")
    generate.add_argument("--verbose", action="store_true", help="print every step to stderr")
    generate.set_defaults(run=_generate)

    info = commands.add_parser("info", parents=[common], help="the machine, the build and a model")
    info.set_defaults(run=_info)

    selftest = commands.add_parser("selftest", parents=[common], help="check this installation: exit code 0 when all is well")
    selftest.set_defaults(run=_selftest)

    conversion = commands.add_parser("convert", parents=[weights], help="write a folder with packed weights, which opens at once",
                                  epilog=CONVERT_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    conversion.add_argument("source", metavar="SOURCE", help="checkpoint folder or GGUF file")
    conversion.add_argument("out", metavar="OUT", help="folder to write")
    conversion.add_argument("--force", action="store_true", help="replace OUT when convert wrote it")
    conversion.set_defaults(run=_convert)

    bench = commands.add_parser("bench", help="speed of LLaDA-8B's matrix products on this machine, per dtype")
    bench.add_argument("--rows", type=_row_count, nargs="+", default=[32, 160], metavar="N", help="rows of a forward (default: 32 160)")
    bench.add_argument("--num-threads", type=int, metavar="N", help="default: the cores this process may use")
    bench.add_argument("--isa", help="kernels to use; 'info' lists them")
    bench.add_argument("--json", action="store_true", help="machine-readable output")
    bench.set_defaults(run=_bench)
    serve.add(commands, common)
    return parser
