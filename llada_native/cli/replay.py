"""`llada-native replay`: records that were kept, as a page."""
from __future__ import annotations

import argparse
from typing import Any

from ..replay import MOST_RUNS, save_html
from ..trace import Trace
from . import arguments
from .arguments import EXIT_OK, InputError


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "replay", run, "a page to watch a run again",
        'llada-native generate --trace run.trace --drafts "Write a story about a fox, a river and a coin."',
        "llada-native replay run.trace -o run.html",
        'llada-native generate --trace fast.trace --preset fast "Write a story about a fox, a river and a coin."',
        "llada-native replay run.trace fast.trace --name reference --name fast -o both.html",
        more="The page is one file. It asks for nothing on a network, and opens in any browser.\n")
    parser.add_argument("trace", nargs="+", help=f"what 'generate --trace' wrote; up to {MOST_RUNS}, side by side")
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the page to write")
    parser.add_argument("--name", action="append", metavar="TEXT", help="of a run, one for each")
    parser.add_argument("--no-drafts", dest="drafts", action="store_false", help="leave out what was predicted and not written")


def run(a: argparse.Namespace) -> int:
    if len(a.trace) > MOST_RUNS:
        raise ValueError(f"trace: expected 1 to {MOST_RUNS} files, found {len(a.trace)}")
    arguments.check_out("--out", a.out, a.trace)
    save_html([_loaded(path) for path in a.trace], a.out, names=a.name, drafts=a.drafts)
    return EXIT_OK


def _loaded(path: str) -> Trace:
    try:
        return Trace.load(path)
    except ValueError as e:  # the file is wrong, not the argument
        raise InputError(str(e)) from e
