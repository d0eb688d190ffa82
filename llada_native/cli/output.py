"""What commands print: answers on stdout, and beside them one line at a time on stderr."""
from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

from .. import terminal


def answer(text: str) -> None:
    """Print a text. A terminal shows its control characters and obeys none; what stdout has no bytes for is written as in Python."""
    shown = terminal.shown(text) if terminal.is_terminal(sys.stdout) else text
    print(terminal.writable(shown, sys.stdout), flush=True)


def json_line(value: Any) -> None:
    """Print a value as JSON, in ASCII where stdout has no bytes for more."""
    line = json.dumps(value, ensure_ascii=False)
    print(line if terminal.writable(line, sys.stdout) == line else json.dumps(value), flush=True)


def reason(error: OSError) -> str:
    """What the system refused, in words."""
    return f"{os.fspath(error.filename)}: {error.strerror}" if error.filename and error.strerror else str(error)


def say(message: str) -> None:
    """One line on stderr, with nothing in it that a terminal would obey. Where nobody listens it is not said."""
    if sys.stderr is not None:  # print would take stdout
        with suppress(OSError):
            print("llada-native: " + terminal.shown(" ".join(message.split())), file=sys.stderr, flush=True)
