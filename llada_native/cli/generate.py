"""`llada-native generate`: answers to prompts."""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from .. import terminal
from ..live import LiveView
from ..result import GenerationResult
from . import arguments, output
from .arguments import EXIT_OK, InputError

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9',.:;?!-]*")  # of a language that puts spaces between them


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "generate", run, "answer prompts",
        'llada-native generate "Sort these numbers: 31, 7, 52, 12."',
        'llada-native generate --live "Reverse these words: red cat sun."',
        'llada-native generate --preset fast --json "What is 17 plus 25?" "What is 12 plus 30?"',
        'echo "What is 17 plus 25?" | llada-native generate --json',
        'llada-native generate --model path/to/LLaDA-8B-Instruct --gen-length 128 --block-length 32 "What is diffusion?"')
    arguments.add_prompts(parser)
    arguments.add_model(parser)
    arguments.add_generation(parser)
    arguments.add_fallback(parser)
    parser.add_argument("--no-chat", dest="chat", action="store_false", help="do not apply the chat template")
    arguments.add_live(parser, "watch tokens appear, on stderr")
    parser.add_argument("--verbose", action="store_true", help="print every step to stderr")
    parser.add_argument("--trace", metavar="FILE", help="keep the record of the run, for replay")
    parser.add_argument("--drafts", action="store_true", help="the record keeps what was predicted and not written too")
    arguments.add_json(parser)


def run(a: argparse.Namespace) -> int:
    if a.drafts and not a.trace:
        raise ValueError("--drafts: is for --trace, whose record keeps them")
    prompts = arguments.read_prompts(a)
    if len(a.prompt) > 2 and all(map(WORD.fullmatch, a.prompt)) and terminal.is_terminal(sys.stderr):
        output.say(f"{len(prompts)} prompts of one word each; a prompt of several words stands in quotes")
    if a.trace:
        if not (folder := Path(a.trace).absolute().parent).is_dir():
            raise InputError(f"--trace: no such folder: {folder}")
        arguments.check_out("--trace", a.trace, [*a.file, *filter(None, map(arguments.named_file, a.prompt))])
    with arguments.open_model(a, texts=True) as model:
        result = model.generate(prompts, seed=a.seed, chat="auto" if a.chat else False, verbose=a.verbose, fallback=a.fallback,
                                live=LiveView(color=a.color) if a.live else False, drafts=a.drafts, **arguments.generation_options(a))
    try:
        if a.trace:
            result.trace.save(a.trace)
    finally:  # an answer is there, whatever became of its record
        if a.json:
            output.json_line(as_json(prompts, result))
        else:
            output.answer(str(result))
    return EXIT_OK


def as_json(prompts: list[str], result: GenerationResult) -> dict[str, Any]:
    answers = [{"prompt": prompt, "text": text, "finish_reason": reason}
               for prompt, text, reason in zip(prompts, result.text, result.finish_reason, strict=True)]
    return {"answers": answers, "n_forward": result.n_forward, "rows_computed": result.rows_computed,
            "tokens_per_second": round(result.tokens_per_second, 2), "seconds": round(result.timings["total"], 4),
            "backend": result.backend}
