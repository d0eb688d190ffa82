"""The picture of docs/replay.md: the demo model's story on its page, in a headless Chromium.

    pip install pillow
    python tools/replay_picture.py docs
"""
from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

import llada_native

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import Browser

PROMPT = "Write a short story about a fox."
WIDTH, HEIGHT = 1000, 792
COLOURS = 96  # of the file


def main(folder: str) -> None:
    with llada_native.LLaDAForCausalLM() as model:
        result = model.generate(PROMPT, drafts=True)
    with tempfile.TemporaryDirectory() as place, Browser(WIDTH, HEIGHT) as browser:
        page = Path(place) / "run.html"
        result.save_html(page)
        browser.open(page.as_uri())
        browser.click("#show-order")
        browser.evaluate("(() => { const s = document.querySelector('#scrub'); s.value = 28; s.dispatchEvent(new Event('input')); })()")
        browser.evaluate("document.querySelectorAll('.text .cell')[13].click()")
        picture = Image.open(io.BytesIO(browser.picture("replay"))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(Path(folder) / "replay.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
