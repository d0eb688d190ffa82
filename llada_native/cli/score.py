"""`llada-native score`: log-likelihoods of answers."""
from __future__ import annotations

import argparse
from typing import Any

from .. import checks
from ..options import LARGEST_SEED
from . import arguments, output
from .arguments import EXIT_OK


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "score", run, "log-likelihoods of answers to a prompt, in nats",
        'llada-native score --seed 0 "What is 12 plus 30?" "12 + 30 = 42" "12 + 30 = 43"',
        'llada-native score --mc-num 32 --json "What is 17 plus 25?" "17 + 25 = 42"')
    parser.add_argument("prompt", help="what is answered; @FILE reads it from a file, - from standard input (@@ is an @)")
    parser.add_argument("answer", nargs="+", help="one figure each, a lower bound")
    arguments.add_model(parser)
    parser.add_argument("--mc-num", type=arguments.count(), default=128, metavar="N", help="samples (default: 128)")
    parser.add_argument("--batch-size", type=arguments.count(), metavar="N", help="samples of a forward pass; divides mc-num")
    parser.add_argument("--cfg-scale", type=arguments.number(float, checks.scale), default=0.0, metavar="S", help="guidance (default: 0)")
    parser.add_argument("--seed", type=arguments.count(0, LARGEST_SEED), metavar="N", help="of the samples")
    parser.add_argument("--no-chat", dest="chat", action="store_false", help="do not apply the chat template")
    arguments.add_json(parser)


def run(a: argparse.Namespace) -> int:
    prompt, answers = arguments.read_argument(a.prompt, "prompt"), [arguments.read_argument(text, "answer") for text in a.answer]
    with arguments.open_model(a, texts=True) as model:
        found = model.score(prompt, answers, mc_num=a.mc_num, batch_size=a.batch_size, cfg_scale=a.cfg_scale, seed=a.seed,
                            chat="auto" if a.chat else False).tolist()
    scored = list(zip(answers, found, strict=True))
    if a.json:
        output.json_line({"prompt": prompt, "scores": [{"answer": text, "log_likelihood": value} for text, value in scored]})
    else:
        for text, value in scored:
            output.answer(f"{value:.4f}\t{text}")
    return EXIT_OK
