"""The pictures of docs/how_it_works.md, from runs of the demo model.

    python tools/how_it_works.py docs

They show tokens, passes and rows, and nothing that depends on the machine.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llada_native import Delayed, Dual, GenerationResult, LLaDAForCausalLM, Prefix

SORT, STORY = "Sort these numbers: 31, 7, 52, 12.", "Write a short story about a fox."
STYLE = """\
text { font: 12px ui-sans-serif, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; white-space: pre }
.mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.mid { text-anchor: middle } .quiet { fill: #59636e } .strong { font-weight: bold }
.page { fill: #ffffff } .mask { fill: #d1d9e0 } .kept { fill: #dde4ea } .done { fill: #f6f8fa }
.new { fill: #0969da } .row { fill: #8fb8e8 } .on { fill: #ffffff; font-weight: bold }
.wrong { fill: #bc4c00; font-weight: bold; text-decoration: underline }
.line { stroke: #818b98; stroke-width: 1; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet { fill: #9198a1 }
  .page { fill: #0d1117 } .mask { fill: #3d444d } .kept { fill: #262c36 } .done { fill: #151b23 }
  .new { fill: #4493f8 } .row { fill: #1f4f8f } .on { fill: #0d1117 } .wrong { fill: #f0883e } .line { stroke: #656c76 }
}
"""
LINE, CHARACTER = 20, 7.3  # pixels of a line, of a character of `mono`
MARGIN = 12


@dataclass(frozen=True)
class Picture:
    """An SVG drawing, part by part."""

    width: float
    height: float
    parts: list[str]

    @classmethod
    def empty(cls, width: float, height: float, title: str) -> Picture:
        return cls(width, height, [f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>",
                                   '<rect class="page" width="100%" height="100%" rx="6"/>'])

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>')

    def line(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self.parts.append(f'<path class="line" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(text)}</text>')

    def __str__(self) -> str:
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
                          f'width="{self.width:g}" height="{self.height:g}">', *self.parts, "</svg>\n"])


def written_in(result: GenerationResult) -> NDArray[np.int64]:
    """The pass that wrote each position of the first answer, from 0."""
    found = np.full(len(result.trace.answer(0, -1)), -1)
    for row in result.trace.writes:
        found[row["position"] - result.prompt_lengths[0]] = row["forward"]
    return found


def pieces(result: GenerationResult) -> list[str]:
    """What each token of the first answer says, end tokens as a sign."""
    trace = result.trace
    texts = trace.pieces.texts
    return ["⊣" if i in trace.end_ids else texts[i] for i in trace.answer(0, len(trace) - 1).tolist()]


def denoising(model: LLaDAForCausalLM) -> Picture:
    """A short answer after every pass."""
    result = model.generate(SORT, gen_length=16, block_length=16)
    order, said, cell, left = written_in(result), pieces(result), 34, 74
    picture = Picture.empty(left + cell * len(said) + MARGIN, MARGIN * 2 + LINE * (len(result.trace) + 2), f"Sixteen passes over: {SORT}")
    picture.text(MARGIN, MARGIN + 14, SORT, "strong")
    for forward in range(-1, len(result.trace)):
        y = MARGIN + LINE * (forward + 2)
        picture.text(MARGIN, y + 14, f"pass {forward + 1}" if forward >= 0 else "start", "quiet")
        for i, text in enumerate(said):
            kind = "mask" if order[i] > forward else "new" if order[i] == forward else "done"
            picture.box(left + cell * i, y + 1, cell - 2, LINE - 2, kind)
            if kind != "mask":
                picture.text(left + cell * i + cell / 2 - 1, y + 14, text.replace(" ", "␣"), "mono mid" + " on" * (kind == "new"))
    return picture


def blocks(model: LLaDAForCausalLM) -> Picture:
    """The order of an answer's tokens, for three lengths of a block."""
    cell, lengths = 4, (64, 16, 4)
    results = [model.generate(STORY, gen_length=64, block_length=n) for n in lengths]
    side, step = cell * 64, cell * 64 + 36
    picture = Picture.empty(MARGIN * 2 + step * len(lengths) - 8, MARGIN * 2 + LINE * 3 + side + 4,
                            "Positions over passes, by block length")
    for k, (length, result) in enumerate(zip(lengths, results, strict=True)):
        x, y = MARGIN + 20 + step * k, MARGIN + LINE + 4
        picture.text(x, MARGIN + 14, f"block_length={length}", "mono strong")
        picture.box(x, y, side, side, "done")
        for begin in range(0, 64, length):
            picture.box(x + cell * begin, y + cell * begin, cell * length, cell * length, "kept")
        ends = [text == "⊣" for text in pieces(result)]
        for position, forward in enumerate(written_in(result)):
            picture.box(x + cell * forward, y + cell * position, cell, cell, "row" if ends[position] else "new")
        picture.text(x + side / 2, y + side + 16, "pass →", "mid quiet")
        picture.parts.append(f'<text class="mid quiet" transform="translate({x - 8:g} {y + side / 2:g}) rotate(-90)">← position</text>')
    picture.text(MARGIN + 20, MARGIN + LINE * 3 + side - 2,
                 "bright: a token of the answer; pale: an end token; grey: the passes of a block over its positions", "quiet")
    return picture


def thresholds(model: LLaDAForCausalLM) -> Picture:
    """An answer by how sure a token has to be."""
    exact = model.generate(STORY, gen_length=64, block_length=32)
    rows = [("one a pass", exact), *((f"tau={tau}", model.generate(STORY, gen_length=64, block_length=32, selector=f"threshold:tau={tau}"))
                                     for tau in (0.97, 0.9, 0.7, 0.5))]
    right, left = pieces(exact), 168
    characters = max(len(result.text[0]) for _, result in rows)
    picture = Picture.empty(left + CHARACTER * characters + MARGIN, MARGIN * 2 + LINE * (len(rows) + 1), "Answers and passes by threshold")
    picture.text(MARGIN, MARGIN + 14, STORY, "strong")
    for k, (name, result) in enumerate(rows):
        y = MARGIN + LINE * (k + 1) + 14
        picture.text(MARGIN, y, name, "mono")
        picture.text(MARGIN + 84, y, f"{result.n_forward} passes", "quiet")
        x = float(left)
        for text, wanted in zip(pieces(result)[:result.answer_lengths[0]], right, strict=False):
            picture.parts.append(f'<text x="{x:.1f}" y="{y}" textLength="{CHARACTER * len(text):.1f}" lengthAdjust="spacingAndGlyphs" '
                                 f'class="mono{" wrong" * (text != wanted)}">{escape(text)}</text>')
            x += CHARACTER * len(text)
    return picture


def recorded(policy: Any) -> tuple[Any, list[Any]]:
    """A cache policy, and what will be the rows of every pass: None is all of them, as in the first one, for which it is not asked."""
    seen: list[Any] = [None]

    class Recorded(type(policy)):  # type: ignore[misc]
        def rows(self, view: Any, held: Any) -> Any:
            seen.append(super().rows(view, held))
            return seen[-1]

    return Recorded(**vars(policy)), seen


def caches(model: LLaDAForCausalLM) -> Picture:
    """The rows that each pass computes, by cache policy."""
    options = {"gen_length": 32, "block_length": 8}
    plain = model.generate(STORY, **options)
    runs: list[tuple[str, GenerationResult, Sequence[Any]]] = [("none", plain, [None] * len(plain.trace))]
    for name, policy in (("prefix", Prefix()), ("dual", Dual()), ("delayed", Delayed())):
        cache, seen = recorded(policy)
        runs.append((name, model.generate(STORY, cache=cache, **options), seen))
    cell, height = 6, 4
    prompt, length = plain.prompt_lengths[0], len(plain.sequences[0])
    width, left = cell * 32, MARGIN + 56
    picture = Picture.empty(left + (width + 24) * len(runs) - 24 + MARGIN, MARGIN * 2 + LINE * 3 + height * length + 4,
                            "Rows computed over passes, by cache policy")
    y = MARGIN + LINE + 4
    picture.text(MARGIN, y + height * prompt / 2 + 4, "prompt", "quiet")
    picture.text(MARGIN, y + height * (prompt + length) / 2 + 4, "answer", "quiet")
    for k, (name, result, seen) in enumerate(runs):
        x = left + (width + 24) * k
        picture.text(x, MARGIN + 14, name, "mono strong")
        picture.text(x + 70, MARGIN + 14, f"{result.rows_computed / 32:.1f} rows a token", "quiet")
        picture.box(x, y, width, height * length, "kept")
        written = written_in(result)
        for forward, rows in enumerate(seen):
            rows = np.arange(length) if rows is None else rows
            assert len(rows) == result.trace.passes["rows"][forward]
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                picture.box(x + cell * forward, y + height * int(run[0]), cell, height * len(run), "row")
            for position in np.flatnonzero(written == forward):
                picture.box(x + cell * forward, y + height * (prompt + int(position)), cell, height, "new")
        picture.line(x, y + height * prompt, x + width, y + height * prompt)
        picture.text(x + width / 2, y + height * length + 16, "pass →", "mid quiet")
    picture.text(left, y + height * length + 36, "bright: the token that a pass writes; blue: the other rows that it computes; "
                 "grey: rows whose keys and values are kept", "quiet")
    return picture


PICTURES = {"denoising": denoising, "blocks": blocks, "thresholds": thresholds, "caches": caches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures are written")
    folder = parser.parse_args().folder
    with LLaDAForCausalLM() as model:
        for name, draw in PICTURES.items():
            (folder / f"{name}.svg").write_text(str(draw(model)), "utf-8")


if __name__ == "__main__":
    main()
