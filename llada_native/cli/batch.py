"""`llada-native batch`: a file of prompts, line by line, that goes on where it was interrupted."""
from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import GenerationCancelled, LladaError, ModelMemoryError
from ..model import LLaDAForCausalLM
from ..options import ALIASES, CALL_NAMES, LARGEST_SEED
from ..progress import Bar
from . import arguments, output
from .arguments import EXIT_FAILURE, EXIT_OK, InputError

LONGEST_LINE = 1 << 24  # bytes
RECORD = b'{"id": '  # how every line of OUT begins
SYNC = 1.0  # seconds between two that are forced to the disk
MORE = """\
A line of IN is a prompt ("text"), or an object with "prompt" (text) or "messages" (a list of role and content), and "id", "seed" and \
options of generate as they like: {"id": 7, "prompt": "What is diffusion?", "gen_length": 64}. A line of OUT is an object with "id" (that \
of the line, or its number), "text", "finish_reason" and "tokens"; or "id" and "error". Lines of OUT have the order of IN. Started again, \
the command leaves out what OUT has. With --seed N line n draws with the seed N + n - 1 unless it has its own. The answers do not depend \
on --batch-size. The exit code is 1 if lines were refused.
"""


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "batch", run, "answer a file of prompts, and go on where it was interrupted",
        "llada-native batch prompts.jsonl answers.jsonl",
        "llada-native batch --preset fast --batch-size 32 prompts.jsonl answers.jsonl", more=MORE)
    parser.add_argument("source", metavar="IN", help="JSON lines; - for standard input")
    parser.add_argument("out", metavar="OUT", help="JSON lines, appended to; - for standard output")
    parser.add_argument("--batch-size", type=arguments.count(1, 4096), default=8, metavar="N",
                        help="prompts of a forward pass (default: 8)")
    arguments.add_model(parser)
    arguments.add_generation(parser)
    parser.add_argument("--no-chat", dest="chat", action="store_false", help="do not apply the chat template to texts")


@dataclass
class Line:
    """A line of the input: what it asks for, or why that is nothing."""

    number: int
    id: Any
    prompt: Any = None
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def company(self) -> tuple[Any, ...]:
        """What lines have in common that one call of `generate` answers."""
        # As text, for 1 equals True and 1.0, which are not taken for each other.
        return isinstance(self.prompt, str), self.seed is None, json.dumps(self.options, sort_keys=True)


def run(a: argparse.Namespace) -> int:
    given = arguments.generation_options(a)
    with ExitStack() as stack:
        model = stack.enter_context(arguments.open_model(a, texts=True))
        model.options(**given)
        source = _standard_input() if a.source == "-" else stack.enter_context(Path(a.source).open("rb"))
        if "-" not in (a.source, a.out):
            arguments.check_out("OUT", a.out, [a.source])
        out = Output(a.out)
        stack.callback(out.close)
        bar = stack.enter_context(Bar("answering"))
        size = None if a.source == "-" else os.fstat(source.fileno()).st_size
        pending: list[Line] = []
        refused = 0
        for line in parsed(source, given, a.seed):
            if out.has(line.id):
                continue
            if pending and (len(pending) == a.batch_size or line.error or line.company != pending[0].company):
                refused += out.write(answered(model, pending, a.chat))
                pending = []
            if line.error:
                refused += out.write([record(line)])
            else:
                pending.append(line)
            if size:
                bar(min(1.0, source.tell() / size))
        if pending:
            refused += out.write(answered(model, pending, a.chat))
    if out.kept:
        refusals = f", {out.kept_refused} of them refused" if out.kept_refused else ""
        output.say(f"{a.out} had records of {out.kept} lines already{refusals}: they stay as they are")
    if refused:
        output.say(f"{refused} of {out.written} lines were refused; their records say why")
    return EXIT_FAILURE if refused or out.kept_refused else EXIT_OK


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("IN: standard input is closed")
    return sys.stdin.buffer


def parsed(source: BinaryIO, given: dict[str, Any], seed: int | None) -> Iterator[Line]:
    """The lines of a file; empty ones are none."""
    first: dict[str, int] = {}
    number = 0
    while data := source.readline(LONGEST_LINE + 1):
        number += 1
        if len(data) > LONGEST_LINE:
            while not data.endswith(b"\n") and (data := source.readline(LONGEST_LINE)):
                pass
            yield Line(number, number, error=f"expected at most {LONGEST_LINE} bytes, found more")
            continue
        if not data.strip():
            continue
        line = _parsed(number, data, given, seed)
        if (before := first.setdefault(_key(line.id), number)) != number and not line.error:
            line.error = f"id: {line.id!r} is that of line {before}"
        yield line


def _parsed(number: int, data: bytes, given: dict[str, Any], seed: int | None) -> Line:
    line = Line(number, number, seed=None if seed is None else (seed + number - 1) % (LARGEST_SEED + 1))
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    except (ValueError, RecursionError) as e:
        line.error = f"expected JSON, a text in quotes or an object: {e}"
        return line
    fields: Any = {"prompt": found} if isinstance(found, str) else found
    if not isinstance(fields, dict):
        line.error = f"expected a text or an object, found {type(fields).__name__}"
        return line
    name = fields.pop("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        line.error = f"id: expected a text or a whole number, found {type(name).__name__}"
        return line
    line.id, line.seed = name, fields.pop("seed", line.seed)
    prompts = [fields.pop(key) for key in ("prompt", "messages") if key in fields]
    if prompts == [""]:
        line.error = "prompt: expected a text, found an empty one"
        return line
    if len(prompts) != 1 or not isinstance(prompts[0], str | list) or not prompts[0]:
        line.error = "expected either prompt, a text, or messages, a list"
        return line
    own = {ALIASES.get(key, key) for key in fields}  # an option of both is the line's, by whatever name
    line.options = {**{key: value for key, value in given.items() if key not in own}, **fields}
    line.prompt = prompts[0]  # never a list of prompts
    if isinstance(line.prompt, list) and not all(isinstance(message, dict) for message in line.prompt):
        line.error = "messages: expected objects with role and content"
    if reserved := {*CALL_NAMES, "drafts"} & set(fields):
        line.error = f"{min(reserved)}: expected options of a generation, found an argument of generate"
    return line


def _key(name: Any) -> str:
    return json.dumps(name)


def record(line: Line, error: str | None = None) -> dict[str, Any]:
    return {"id": line.id, "error": f"line {line.number}: {error or line.error}"}


def answered(model: LLaDAForCausalLM, lines: list[Line], chat: bool) -> list[dict[str, Any]]:
    """A record for each of some lines of one company; where one is refused, the others go alone."""
    seeds = [line.seed for line in lines if line.seed is not None]
    try:
        model.options(**lines[0].options)  # whose hints are what a line may have
        result = model.generate([line.prompt for line in lines], chat="auto" if chat else False,
                                seed=seeds or None, **lines[0].options)
    except (GenerationCancelled, ModelMemoryError):  # these would befall every line
        raise
    except (LladaError, TypeError, ValueError) as e:
        if len(lines) == 1:
            return [record(lines[0], str(e))]
        return [one for line in lines for one in answered(model, [line], chat)]
    return [{"id": line.id, "text": text, "finish_reason": reason, "tokens": tokens}
            for line, text, reason, tokens in zip(lines, result.text, result.finish_reason, result.answer_lengths, strict=True)]


class Output:
    """The file of answers, and what it had.

    Parameters
    ----------
    path : str
        "-" for standard output. Half a line at the end of a file is what an interruption left, and is taken away.

    Attributes
    ----------
    written : int
        Records that were appended.
    kept, kept_refused : int
        Lines that had records before, and those among them whose records are of errors.

    Raises
    ------
    InputError
        The file holds something else than answers.
    """

    def __init__(self, path: str) -> None:
        self.written = self.kept = self.kept_refused = 0
        self._had: defaultdict[str, deque[bool]] = defaultdict(deque)  # for each record of an id whether it is of an error
        self._synced = time.monotonic()
        self._file: BinaryIO | None = None
        if path == "-":
            return
        had = os.path.isfile(path) or not os.path.exists(path)  # a pipe or a device has nothing to read, or no end
        self._file = open(path, "a+b" if had else "ab")  # noqa: SIM115  # closed by close
        try:
            if had:
                self._read(path, self._file)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: str, file: BinaryIO) -> None:
        file.seek(0)
        whole = number = 0
        while data := file.readline(LONGEST_LINE):
            number += 1
            half = not data.endswith(b"\n")
            try:
                if half and (len(data) == LONGEST_LINE or not data.startswith(RECORD[:len(data)])):
                    raise ValueError("is not the beginning of a record either")
                if half:
                    file.truncate(whole)
                    break
                found = json.loads(data)
                self._had[_key(found["id"])].append("error" in found)
            except (KeyError, TypeError, ValueError, RecursionError) as e:
                raise InputError(f"{path}: line {number}: expected a record with an id, as batch writes it, found something else") from e
            whole += len(data)
        file.seek(0, io.SEEK_END)

    def has(self, name: Any) -> bool:
        """Whether the file had a record of this id; each counts for one line."""
        had = self._had[_key(name)]
        if not had:
            return False
        self.kept += 1
        self.kept_refused += had.popleft()
        return True

    def write(self, records: list[dict[str, Any]]) -> int:
        """Append records; returns how many are of errors."""
        self.written += len(records)
        if self._file is None:
            for one in records:
                output.json_line(one)
        else:
            data = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
            self._file.write(data.encode("utf-8", "backslashreplace"))
            self._file.flush()
            if time.monotonic() - self._synced > SYNC:
                self._sync(self._file)
        return sum("error" in one for one in records)

    def _sync(self, file: BinaryIO) -> None:
        if os.path.isfile(file.name):
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._sync(self._file)
            self._file.close()
