"""`llada-native chat`: a conversation in the terminal, or one of the lines of standard input."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from .. import terminal
from ..errors import LladaError
from ..live import LiveView
from ..streamers import TextStreamer
from . import arguments, output
from .arguments import EXIT_OK, InputError
from .conversation import Conversation

PROMPT = "> "
DEMO_HINT = "the demo model knows single questions, like 'What is 12 plus 30?': /reset before the next one\n"


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "chat", run, "a conversation",
        "llada-native chat",
        'llada-native chat --preset fast --system "Answer in one word."',
        "llada-native chat --model path/to/LLaDA-8B-Instruct --gen-length 256 --block-length 32",
        "llada-native chat < questions.txt",
        more="A line is a question. /help lists the commands, Ctrl-C stops an answer, Ctrl-D or /quit ends the conversation.\n")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    arguments.add_model(parser)
    arguments.add_generation(parser)
    arguments.add_live(parser, "watch tokens appear (default: on a terminal)", None)


def run(a: argparse.Namespace) -> int:
    options = arguments.generation_options(a)
    if a.seed is not None:
        options["seed"] = a.seed
    system = arguments.valid(a.system, "--system")
    with arguments.open_model(a) as model:
        shell = Shell(Conversation(model, options, system), a.live, a.color)
        shell.loop(DEMO_HINT if a.model is None else "")
    return EXIT_OK


class Leave(Exception):
    """The conversation is over."""


class Shell:
    """Reads questions and commands, and prints answers.

    Parameters
    ----------
    conversation : Conversation
    live : bool, optional
        Show answers while they are made; default on a terminal.
    color : str
        Of the live view.
    """

    def __init__(self, conversation: Conversation, live: bool | None, color: str) -> None:
        self.conversation = conversation
        self.interactive = terminal.is_terminal(sys.stdin) and terminal.is_terminal(sys.stdout)
        self.live = terminal.is_terminal(sys.stderr) and terminal.is_terminal(sys.stdout) if live is None else live
        self.color = color
        self.commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self._help, "", "this list"),
            "set": (self._set, "NAME VALUE", "an option of generate; without a value its default, without a name all that are set"),
            "preset": (lambda text: self._assign("preset", text), "NAME", "a tested bundle of options"),
            "seed": (lambda text: self._assign("seed", text), "N", "for temperature above 0"),
            "system": (self._system, "TEXT", "the system prompt; without a text none"),
            "reset": (self._reset, "", "forget all turns"),
            "undo": (self._undo, "", "forget the last turn"),
            "save": (self._save, "FILE", "write system prompt, turns and settings"),
            "load": (self._load, "FILE", "go on from such a file"),
            "stats": (self._stats, "", "tokens, speed, and what was reused"),
            "quit": (self._quit, "", "end the conversation"),
        }

    def loop(self, hint: str = "") -> None:
        """Until the input ends or /quit is said; a terminal is told the hint."""
        if not terminal.is_terminal(sys.stdin):
            arguments.utf8(sys.stdin)
        if self.interactive:
            _edit_lines()
            output.answer(f"{self.conversation.model!r}\n{hint}/help lists the commands")
        while True:
            try:
                line = self._read()
                if line.startswith("/") and not line.startswith("//"):
                    self._obey(line[1:])
                elif line.strip():
                    self._answer(line[1:] if line.startswith("//") else line)
            except (EOFError, Leave):
                break
            except KeyboardInterrupt:  # at the prompt
                if not self.interactive:
                    raise
                print("\n/quit or Ctrl-D ends the conversation")
            except (LladaError, OSError, TypeError, ValueError) as e:
                if not self.interactive:
                    raise
                said = output.reason(e) if isinstance(e, OSError) else str(e)
                output.answer(f"llada-native: {' '.join(said.split())}")
        if self.interactive:
            print()

    def _read(self) -> str:
        try:
            if self.interactive:
                line = input(PROMPT)
            elif sys.stdin is None or not (line := sys.stdin.readline()):
                raise EOFError
            line.encode("utf-8")  # in some locales undecodable bytes come through as lone surrogates
        except UnicodeError as e:
            raise InputError("standard input: expected UTF-8 text") from e
        return line.strip()

    def _answer(self, question: str) -> None:
        dropped = self.conversation.trim(question)
        if dropped:
            print(f"({dropped} of {dropped + len(self.conversation.turns)} turns, the oldest, dropped: prompt and answer have to fit "
                  f"into {self.conversation.model.max_tokens} tokens)", file=sys.stdout if self.interactive else sys.stderr)
        model, before = self.conversation.model, len(self.conversation.turns)
        assert model.tokenizer is not None
        streamed = self.interactive and not self.live
        try:
            result = self.conversation.answer(question, live=LiveView(color=self.color) if self.live else False,
                                              streamer=TextStreamer(model.tokenizer) if streamed else None)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            kept = len(self.conversation.turns) > before
            if kept and not streamed:
                output.answer(self.conversation.turns[-1][1])
            print("(stopped)" if kept else "(stopped before a word had settled; the question is forgotten)")
            return
        if not streamed:
            output.answer(str(result))

    # ---- commands

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise ValueError(f"/{name}: expected one of {', '.join('/' + known for known in self.commands)}; // begins a question with /")
        command, _, _ = self.commands[name]
        command(rest.strip())

    def _help(self, _: str) -> None:
        for name, (_run, argument, what) in self.commands.items():
            print(f"/{name + ' ' + argument:16} {what}")

    def _set(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if not name:
            print(json.dumps(self.conversation.settings))
        else:
            self._assign(name, rest.strip())

    def _assign(self, name: str, text: str) -> None:
        try:
            value: Any = json.loads(text) if text else None
        except (ValueError, RecursionError):
            value = text
        if value is None and name not in self.conversation.settings:
            self.conversation.check({**self.conversation.settings, name: None})
            return
        self.conversation.set(name, value)

    def _system(self, text: str) -> None:
        self.conversation.system = text

    def _reset(self, _: str) -> None:
        self.conversation.reset()

    def _undo(self, _: str) -> None:
        if not self.conversation.undo():
            raise ValueError("/undo: there is no turn")

    def _save(self, path: str) -> None:
        self.conversation.save(_named("/save", path))

    def _load(self, path: str) -> None:
        self.conversation.load(_named("/load", path))

    def _stats(self, _: str) -> None:
        print(self.conversation.stats())

    def _quit(self, _: str) -> None:
        raise Leave


def _named(command: str, path: str) -> str:
    if not path:
        raise ValueError(f"{command}: expected a file")
    return path


def _edit_lines() -> None:
    """Arrow keys and a history, where Python was built with them."""
    try:
        import readline  # noqa: F401  # input() uses it from now on
    except ImportError:
        return
