"""`llada-native replay`: records that were kept, as a page."""
from __future__ import annotations

import argparse

from ..trace import Trace
from . import MOST_RUNS, save_html

EPILOG = """\
examples:
  llada-native generate --trace run.trace --drafts "Write a short story about a fox."
  llada-native replay run.trace -o run.html
  llada-native generate --trace fast.trace --preset fast "Write a short story about a fox."
  llada-native replay run.trace fast.trace --name reference --name fast -o both.html

The page is one file. It asks for nothing on a network, and opens in any browser.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put it among the commands of a parser."""
    parser = commands.add_parser("replay", help="a page to watch a run again", epilog=EPILOG,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="+", help=f"what 'generate --trace' wrote; up to {MOST_RUNS}, side by side")
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the page to write")
    parser.add_argument("--name", action="append", metavar="TEXT", help="of a run, one for each")
    parser.add_argument("--no-drafts", dest="drafts", action="store_false", help="leave out what was predicted and not written")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page; gives the exit code."""
    if len(arguments.trace) > MOST_RUNS:
        raise ValueError(f"trace: expected 1 to {MOST_RUNS} files, found {len(arguments.trace)}")
    save_html([Trace.load(path) for path in arguments.trace], arguments.out, names=arguments.name, drafts=arguments.drafts)
    return 0
