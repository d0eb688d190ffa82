"""The live view of a run of the demo model, as a terminal emulator has it, drawn to an SVG file.

    python tools/live_picture.py docs/live.svg

The picture shows the middle of the run. It needs pyte.
"""
from __future__ import annotations

import argparse
import io
from html import escape
from pathlib import Path

import pyte

from llada_native import LiveView, LLaDAForCausalLM, Step, live

PROMPT = "Write a short story about a fox."
PASSES = 4  # of a frame
COLUMNS, LINES = 96, 7
CELL, HEIGHT, MARGIN = 8.4, 20, 12  # pixels of a character, of a line, around
STYLE = """\
text { font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; fill: #1f2328 }
.page { fill: #f6f8fa }
.mask { fill: #6e7781 }
.new { fill: #0550ae; font-weight: bold }
.struck { fill: #6e7781; text-decoration: line-through }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 } .mask { fill: #8b949e } .new { fill: #79c0ff } .struck { fill: #8b949e }
}
"""


class Screen(io.StringIO):
    """A terminal that keeps what it shows after each write."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.screen = pyte.Screen(COLUMNS, LINES)
        self.stream = pyte.Stream(self.screen)
        self.frames: list[list[list[tuple[str, str]]]] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.stream.feed(text)
        self.frames.append([[(cell.data, _kind(cell)) for cell in (self.screen.buffer[y][x] for x in range(COLUMNS))]
                            for y in range(LINES)])
        return len(text)


def _kind(cell: pyte.screens.Char) -> str:
    if cell.strikethrough:
        return "struck"
    return "new" if cell.bold else "mask" if cell.fg != "default" else ""


class Steady(LiveView):
    """A frame for so many passes, whatever the machine."""

    def __call__(self, step: Step) -> None:
        if step.forward % PASSES == 0:
            super().__call__(step)


def frames(prompt: str) -> list[list[list[tuple[str, str]]]]:
    """Every frame of a run."""
    live.FRAME, live.SHARE = 0.0, float("inf")
    terminal, size = Screen(), live.terminal.size
    live.terminal.size = lambda stream: (COLUMNS, LINES)
    try:
        LLaDAForCausalLM().generate(prompt, live=Steady(terminal, "always"))
    finally:
        live.terminal.size = size
    return terminal.frames


def drawn(frame: list[list[tuple[str, str]]], title: str) -> str:
    """An SVG picture of a frame, under the command that made it."""
    command = [(c, "") for c in f'$ llada-native generate --live "{title}"']
    lines = [command, *frame]
    while lines and all(not c.strip() for c, _ in lines[-1]):
        lines.pop()
    width = MARGIN * 2 + CELL * max(COLUMNS, len(command))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{MARGIN * 2 + HEIGHT * len(lines)}">',
           f"<style>{STYLE}</style>", '<rect class="page" width="100%" height="100%" rx="6"/>']
    for y, line in enumerate(lines):
        x = 0
        while x < len(line):
            end = next((i for i in range(x, len(line)) if line[i][1] != line[x][1]), len(line))
            text = "".join(c for c, _ in line[x:end]).rstrip()
            if text:
                out.append(f'<text x="{MARGIN + CELL * x:.1f}" y="{MARGIN + HEIGHT * y + 14}" textLength="{CELL * len(text):.1f}"'
                           f'{f" class={chr(34)}{line[x][1]}{chr(34)}" if line[x][1] else ""}>{escape(text)}</text>')
            x = end
    return "\n".join([*out, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default=PROMPT)
    a = parser.parse_args()
    seen = frames(a.prompt)
    a.out.write_text(drawn(seen[len(seen) // 2], a.prompt), "utf-8")


if __name__ == "__main__":
    main()
