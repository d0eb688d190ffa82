"""`llada-native convert`: a folder with packed weights."""
from __future__ import annotations

import argparse
from typing import Any

from ..conversion import convert
from ..converted import Converted
from ..progress import Bar
from . import arguments, output
from .arguments import EXIT_OK


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "convert", run, "write a folder with packed weights, which opens at once",
        "llada-native convert path/to/LLaDA-8B-Instruct llada-8b-int4 --dtype int4",
        'llada-native generate --model llada-8b-int4 "What is diffusion?"',
        more="The folder holds the weights as this machine's kernels want them. It needs nothing of SOURCE afterwards, and another kind of "
             "processor needs a folder of its own (--isa). It appears whole or not at all.\n")
    parser.add_argument("source", metavar="SOURCE", help="checkpoint folder, GGUF file, or repository of the Hugging Face hub")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    arguments.add_weights(parser)
    parser.add_argument("--force", action="store_true", help="replace OUT when convert wrote it")


def run(a: argparse.Namespace) -> int:
    arguments.check_groups(a, a.dtype)
    with Bar("packing") as bar:
        out = convert(a.source, a.out, dtype=a.dtype, group_size=a.group_size, isa=a.isa, num_threads=a.num_threads, force=a.force,
                      revision=a.revision, progress=bar)
    made = Converted(out)
    if a.group_size is not None and made.dtype not in arguments.GROUPED:
        output.say(f"warning: --group-size changes nothing for weights of dtype {made.dtype}")
    mib = sum(p.stat().st_size for p in out.iterdir()) / (1 << 20)
    output.answer(f"{out}: {made.stated()}, {mib:.1f} MiB")
    return EXIT_OK
