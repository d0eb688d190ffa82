"""The command line: a thin front end over the API. Errors are one line on stderr; exit codes say what happened."""
from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import __version__
from ..errors import LladaError
from . import batch, bench, chat, completion, convert, generate, infill, info, output, replay, score, selftest, serve
from .arguments import EXIT_CODES, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Parser, examples

# A command is a module with `add(commands)`, which adds its parser and sets `run`: a function of the arguments that returns an exit code.
COMMANDS = (generate, chat, infill, score, batch, serve, replay, info, bench, convert, selftest, completion)
EPILOG = examples(
    'llada-native generate "Sort these numbers: 31, 7, 52, 12."',
    'llada-native generate --model path/to/LLaDA-8B-Instruct --gen-length 128 --block-length 32 "What is diffusion?"',
    "llada-native chat",
    "llada-native info --model path/to/LLaDA-8B-Instruct",
) + f"\nllada-native COMMAND --help has examples for each command.\n\n{EXIT_CODES}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default ``sys.argv[1:]``.
    """
    code = EXIT_OK
    try:
        arguments = build_parser().parse_args(argv)
        if sys.stdout is None:  # the shell has closed it
            return _fail("standard output is closed", EXIT_FAILURE)
        with _warnings_shown():
            code = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader left
        pass
    except OSError as e:
        return _fail(output.reason(e), EXIT_FAILURE)
    except (LladaError, UnicodeError) as e:
        return _fail(str(e), EXIT_FAILURE)
    except (ValueError, TypeError) as e:  # of the API: an argument is wrong
        return _fail(str(e), EXIT_USAGE)
    except MemoryError as e:
        return _fail(f"out of memory: {e}" if str(e) else "out of memory", EXIT_FAILURE)
    finally:
        _flush()
    return code


def build_parser() -> Parser:
    """The parser of all commands; shell completion is made from it."""
    parser = Parser(prog="llada-native", description="LLaDA masked diffusion language models on the CPU.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"llada-native {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _flush() -> None:
    """What nobody takes any more, the interpreter shall not try to write again at its exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


class _LogWarnings(logging.Handler):
    """Shows the log's warnings, unless the log goes somewhere. What it says of failures comes as errors or Python's warnings too."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING and not logging.getLogger().handlers:
            output.say(f"warning: {record.getMessage()}")


@contextmanager
def _warnings_shown() -> Iterator[None]:
    logger, handler = logging.getLogger("llada_native"), _LogWarnings()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: output.say(f"warning: {message}")
            yield
    finally:
        logger.removeHandler(handler)


def _fail(message: str, code: int) -> int:
    output.say(message)
    return code
