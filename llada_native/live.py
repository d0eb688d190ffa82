"""The live view: an answer while it is denoised, in place on a terminal, and a line now and then elsewhere."""
from __future__ import annotations

import sys
import time
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple, TextIO

import numpy as np

from . import terminal
from .result import IntArray, Step
from .tokenizer import HALF_A_CHARACTER, Tokenizer
from .trace import Growth

FRAME = 1 / 15  # seconds from one frame to the next, at least
SOONER = 4  # the first frame comes so many times sooner: a small model may be done before the second is due
SHARE = 0.01  # of the time that frames may take: after a slow one the next waits
LINE = 1.0  # seconds from one line to the next off a terminal
NARROWEST, LOWEST = 8, 2  # a terminal with less gets lines
LONGEST_CHARACTER = 4  # tokens that a character's bytes may be spread over

MASKED, NEW, SETTLED, STRUCK = range(4)
GLYPHS = ("░", "▌", "", "✗")
PLAIN_GLYPHS = ("_", "+", "", "x")  # for terminals that do not know the others
COLORS = ("\x1b[90m", "\x1b[1;36m", "", "\x1b[9;90m")  # grey, bold cyan, nothing, struck through
RESET, ERASE_LINE, ERASE_BELOW = "\x1b[0m", "\x1b[K", "\x1b[J"


class Fragment(NamedTuple):
    """Part of a line, or the end of one."""

    text: str
    columns: int
    kind: int


class LiveView:
    """What `generate(live=True)` shows; give one to choose where and how.

    Masks are ░. A token of the latest passes follows ▌, one behind the answer's end ✗, and settled ones stand as they are. Where the
    stream is no terminal a line a second says how far the run is.

    Parameters
    ----------
    stream : text file, optional
        Default stderr.
    color : {"auto", "always", "never"}
        "auto" writes colours on a terminal where NO_COLOR is not set.

    Raises
    ------
    TypeError, ValueError
        Another color, or a stream that cannot be written to.
    """

    def __init__(self, stream: TextIO | None = None, color: str = "auto") -> None:
        if stream is not None and not hasattr(stream, "write"):
            raise TypeError(f"stream: expected a text file, found {stream!r}")
        self.stream = stream
        terminal.wants_color(color, sys.stderr)
        self.color = color

    def begin(self, tokenizer: Tokenizer | None, ends: Collection[int], whole: int | None) -> None:
        """A run starts; `ends` are its end tokens, and `whole` the tokens of an answer that count."""
        self._out = sys.stderr if self.stream is None else self.stream
        self._size = terminal.size(self._out) if self._out is not None else (0, 0)
        self._in_place = terminal.knows_escapes(self._out) and self._size >= (NARROWEST, 0) and self._size[1] >= LOWEST
        self._colored = terminal.wants_color(self.color, self._out)
        self._glyphs = GLYPHS if _can_write(self._out) else PLAIN_GLYPHS
        self._tokenizer, self._ends, self._whole = tokenizer, list(ends), whole
        self._pieces: dict[tuple[int, ...], list[tuple[str, int]]] = {}
        self._shown: list[str] = []  # lines of the last frame
        self._forward, self._rows = -1, 0
        self._step: Step | None = None
        self._due = float("inf") if self._out is None else time.perf_counter() + (FRAME / SOONER if self._in_place else LINE)

    def __call__(self, step: Step) -> None:
        """A pass was made."""
        self._step = step
        now = time.perf_counter()
        if now >= self._due:
            self._due = float("inf")
            try:
                self._draw(step)
            except (OSError, ValueError):  # nobody looks any more, or the stream was closed, which is no reason to stop the work
                self._out = None
                return
            took = time.perf_counter() - now
            self._due = now + max(FRAME if self._in_place else LINE, took / SHARE)

    def end(self) -> None:
        """The run is over: a line of figures stays."""
        if self._step is None or self._out is None:
            return
        step, self._step = self._step, None
        answers, _ = self._progress(step)
        line = f"{self._figures(step, answers)}  {step.forward + 1} passes in {step.seconds:.2f} s"
        if self._in_place:
            line = self._home() + ERASE_BELOW + terminal.cut(line, self._size[0] - 1) + "\r"
            self._shown = []
        with suppress(OSError, ValueError):
            self._write(line + "\n")

    # ---- a frame

    def _draw(self, step: Step) -> None:
        answers, fresh = self._progress(step)
        masks = sum(int(np.count_nonzero(answer == step.trace.mask_id)) for answer in answers)
        status = (f"block {step.block + 1}/{step.n_blocks}  step {step.index + 1}/{step.n_steps}  {masks} masks left  "
                  f"{self._figures(step, answers)}  {step.seconds_left:.1f} s left")
        if not self._in_place:
            self._write(status + "\n")
            return
        if (now := terminal.size(self._out)) != self._size:  # what the terminal made of the old frame is unknown: go on below it
            self._size = now
            self._write("\r\n")
            self._shown = []
        columns, lines = max(2, self._size[0] - 1), max(1, self._size[1] - 1)
        body: list[str] = []
        focus = None
        for request, answer in enumerate(answers):
            name = [Fragment(f"[{request}] ", len(str(request)) + 3, SETTLED)] if len(answers) > 1 else []
            laid, masked = self._lay_out([*name, *self._fragments(answer, fresh[request], step.trace.mask_id)], columns)
            focus = len(body) + masked if focus is None and masked is not None else focus
            body += laid
        if len(body) > lines - 1:
            first = min(max(0, (0 if focus is None else focus) - (lines - 1) // 2), len(body) - (lines - 1))
            body = body[first:first + lines - 1]
        self._replace([*body, terminal.cut(status, columns)])

    def _progress(self, step: Step) -> tuple[list[IntArray], list[set[int]]]:
        """The answers as they stand, and of each the positions written since the last frame."""
        trace = step.trace
        fresh: list[set[int]] = [set() for _ in trace.canvases]
        for forward in trace.forwards[self._forward + 1:step.forward + 1]:
            self._rows += sum(rows for _, rows, *_ in forward.passes)
            for request, event in forward.events:
                if isinstance(event, Growth):
                    fresh[request] = {p + event.added * (p >= event.position) for p in fresh[request]}
                else:
                    fresh[request].update(event.positions.tolist())
        self._forward = step.forward
        answers = [trace.answer(r, step.forward)[:self._whole] for r in range(len(trace.canvases))]
        return answers, [{p - n for p in found} for found, n in zip(fresh, trace.prompt_lengths, strict=True)]

    def _figures(self, step: Step, answers: list[IntArray]) -> str:
        tokens = 0
        for answer in answers:
            end = np.flatnonzero(np.isin(answer, self._ends))[:1]
            tokens += int(np.count_nonzero((answer[:end[0]] if len(end) else answer) != step.trace.mask_id))
        rows = f"{self._rows / tokens:.0f}" if tokens else "-"
        return f"{tokens / (step.forward + 1):.2f} tokens/forward  {rows} rows/token"

    def _fragments(self, answer: IntArray, fresh: set[int], mask_id: int) -> list[Fragment]:
        ids: list[int] = answer.tolist()
        end = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        fragments = []
        i = 0
        while i < len(ids):
            if ids[i] == mask_id:
                fragments.append(Fragment(self._glyphs[MASKED], 1, MASKED))
                i += 1
                continue
            kind = STRUCK if i >= end else NEW if i in fresh else SETTLED
            used, pieces = self._character(ids[i:i + LONGEST_CHARACTER], mask_id)
            if glyph := self._glyphs[kind]:
                fragments.append(Fragment(glyph, 1, kind))
            fragments += [Fragment(text, columns, kind) for text, columns in pieces]
            i += used
        return fragments

    def _character(self, ids: list[int], mask_id: int) -> tuple[int, list[tuple[str, int]]]:
        """The tokens that make up the first one's last character, one as a rule, and what they look like."""
        pieces = self._piece((ids[0],))
        if pieces and HALF_A_CHARACTER in pieces[-1][0]:
            for n in range(2, len(ids) + 1):
                if ids[n - 1] == mask_id:
                    break
                whole = self._piece(tuple(ids[:n]))
                if whole and HALF_A_CHARACTER not in whole[-1][0]:
                    return n, whole
        return 1, pieces

    def _piece(self, ids: tuple[int, ...]) -> list[tuple[str, int]]:
        """The parts of lines that tokens stand for, "\\n" between them. Special tokens stand for nothing."""
        found = self._pieces.get(ids)
        if found is None:
            text = self._tokenizer.decode(ids) if self._tokenizer else f"{ids[0]} "
            found = []
            for i, line in enumerate(text.split("\n")):
                seen = terminal.writable("".join(map(terminal.visible, line)), self._out)
                found += ([("\n", 0)] if i else []) + ([(seen, terminal.width(seen))] if seen else [])
            self._pieces[ids] = found
        return found

    def _lay_out(self, fragments: list[Fragment], columns: int) -> tuple[list[str], int | None]:
        """Lines of at most so many columns, and the first with a mask."""
        lines: list[str] = []
        parts: list[str] = []
        used, kind, focus = 0, SETTLED, None
        colors = COLORS if self._colored else ("",) * len(COLORS)

        def close() -> None:
            nonlocal used, kind
            lines.append("".join(parts) + (RESET if colors[kind] else ""))
            parts.clear()
            used, kind = 0, SETTLED

        for fragment in fragments:
            if fragment.text == "\n":
                close()
                continue
            if used and used + fragment.columns > columns:
                close()
            if fragment.kind != kind:
                parts.append((RESET if colors[kind] else "") + colors[fragment.kind])
                kind = fragment.kind
            if kind == MASKED and focus is None:
                focus = len(lines)
            text, left = fragment.text, fragment.columns
            while left > columns:
                first = terminal.cut(text, columns)
                parts.append(first)
                close()
                text, left = text[len(first):], left - terminal.width(first)
                parts.append(colors[fragment.kind])
                kind = fragment.kind
            parts.append(text)
            used += left
        close()
        return lines, focus

    def _home(self) -> str:
        """To the beginning of the last frame."""
        return "\r" + (f"\x1b[{len(self._shown) - 1}A" if len(self._shown) > 1 else "")

    def _replace(self, lines: list[str]) -> None:
        """Write the lines that are others than in the last frame, in one go."""
        out = [self._home()]
        for i, line in enumerate(lines):
            before = self._shown[i] if i < len(self._shown) else None
            out.append(("\r\n" if i else "") + ("" if line == before else line + ERASE_LINE))
        if len(lines) < len(self._shown):
            out.append(f"\r\n{ERASE_BELOW}\x1b[A")
        self._shown = lines
        self._write("".join(out) + "\r")  # where the ^C that a terminal echoes does not begin another line

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _can_write(stream: TextIO) -> bool:
    try:
        "".join(GLYPHS).encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True
