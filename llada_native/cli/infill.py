"""`llada-native infill`: fill the masks of a text."""
from __future__ import annotations

import argparse
import re
from typing import Any

from .. import checks
from ..live import LiveView
from . import arguments, output
from .arguments import EXIT_OK, InputError

MASK = re.compile(r"\[MASK(?::([1-9][0-9]{0,5}))?\]")
MISSPELT = re.compile(r"\[MASKS?(?![A-Za-z])[^\]]{0,20}\]?")


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "infill", run, "fill the masks of a text",
        'llada-native infill --prompt "What is 12 plus 30?" "12 + 30 = [MASK:2]."',
        'llada-native infill --model path/to/LLaDA-8B-Instruct "The capital of France is [MASK]."',
        'llada-native infill @letter.txt',
        more="[MASK] is a mask, [MASK:5] five of them; each becomes a token. What is given stays as it is. A mask that is misspelt is "
             "refused.\n")
    parser.add_argument("text", nargs="*", help="with [MASK] or [MASK:n] where something is to be filled in; one answer each; @FILE reads "
                        "it from a file (@@ is an @), - or none at all from standard input")
    parser.add_argument("--prompt", help="what comes before, for instance a question; @FILE reads it from a file")
    arguments.add_model(parser)
    arguments.add_generation(parser, lengths=False)
    arguments.add_fallback(parser)
    parser.add_argument("--no-chat", dest="chat", action="store_false", help="do not apply the chat template to the prompt")
    arguments.add_live(parser, "watch tokens appear, on stderr")
    arguments.add_json(parser)


def parts(text: str) -> list[str | int]:
    """A text as `infill` takes it.

    Raises
    ------
    InputError
        No mask, or one that is misspelt.
    """
    pieces: list[str | int] = []
    end = 0
    for found in MASK.finditer(text):
        pieces += [text[end:found.start()], int(found[1] or 1)]
        end = found.end()
    pieces.append(text[end:])
    for piece in pieces:
        if isinstance(piece, str) and (wrong := MISSPELT.search(piece)):
            raise InputError(f"text: expected [MASK] or [MASK:n] with n from 1 to 999999, found {wrong[0]}")
    if not end:
        raise InputError(f"text: expected [MASK] where something is to be filled in, found {checks.cut(repr(text))}")
    return [piece for piece in pieces if piece != ""]


def run(a: argparse.Namespace) -> int:
    texts = [parts(arguments.read_argument(text, "text")) for text in a.text or ["-"]]
    prompt = None if a.prompt is None else arguments.read_argument(a.prompt, "prompt")
    with arguments.open_model(a, texts=True) as model:
        mask_id = model.options().mask_id  # given options are checked with the lengths of the texts
        # A list of numbers alone would be one of token ids.
        given = [text if any(isinstance(part, str) for part in text) else [mask_id] * sum(map(int, text)) for text in texts]
        result = model.infill(given, prompt=prompt, seed=a.seed, chat="auto" if a.chat else False, fallback=a.fallback,
                              live=LiveView(color=a.color) if a.live else False, **arguments.generation_options(a))
    if a.json:
        output.json_line({"texts": result.text, "n_forward": result.n_forward, "backend": result.backend})
    else:
        output.answer(str(result))
    return EXIT_OK
