"""The live view: what a person sees on a terminal, frame by frame, and what it costs."""
import io
import time
import unicodedata

import numpy as np
import pyte
import pytest
from terminals import Terminal

from llada_native import LiveView, LLaDAForCausalLM, live, terminal
from llada_native.trace import Trace

PROMPT = "Sort these numbers: 31, 7, 52, 12."
MASK, END = 9, 8


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


class Words:
    """A tokenizer of a few words and special tokens behind them. Words may be parts of characters, as bytes."""

    def __init__(self, *words):
        self.words = words

    def decode(self, ids):
        words = [self.words[i] for i in ids if i < len(self.words)]
        return b"".join(w if isinstance(w, bytes) else w.encode() for w in words).decode("utf-8", "replace")


@pytest.fixture
def size(monkeypatch):
    """The size that terminals claim, [columns, lines]; they know escape sequences."""
    monkeypatch.setenv("TERM", "xterm")
    now = [80, 24]
    monkeypatch.setattr(terminal, "size", lambda stream: tuple(now))
    return now


@pytest.fixture
def every_frame(monkeypatch):
    monkeypatch.setattr(live, "FRAME", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)


class Scene:
    """A view of canvases that the test writes, and the screen that it is on."""

    def __init__(self, tokenizer, canvases, columns=80, lines=24, color="never", stream=None):
        self.out = stream or Tty()
        self.screen = pyte.Screen(columns, lines)
        self.feed, self.read = pyte.Stream(self.screen), 0
        self.trace = Trace([np.array(c, np.int32) for c in canvases], [0] * len(canvases), MASK)
        self.view = LiveView(self.out, color)
        self.view.begin(tokenizer, [END], None)

    def step(self, *writes, seconds=1.0, grows=()):
        """One pass that writes (request, position, token), and then grows by (request, position, masks)."""
        from llada_native.result import Step
        from llada_native.trace import REVEAL, Forward, Growth, Write

        events = [(r, Write(REVEAL, np.array([p]), np.array([t], np.int32), np.array([0.5]))) for r, p, t in writes]
        events += [(r, Growth(position, added)) for r, position, added in grows]
        passes = [(r, len(c), 1, True) for r, c in enumerate(self.trace.canvases)]
        self.trace.forwards.append(Forward(passes, events=events, seconds=seconds))
        n = len(self.trace.forwards)
        self.view(Step(n - 1, 8, 0, 2, seconds, n - 1, self.trace, None, None, None))
        return self.look()

    def look(self):
        text = self.out.getvalue()
        self.feed.feed(text[self.read:])
        self.read = len(text)
        return [line.rstrip() for line in self.screen.display]


def test_four_kinds_are_told_apart_by_glyph(every_frame, size):
    scene = Scene(Words("one", " two", " three", "four"), [[MASK] * 6])
    assert scene.step((0, 0, 0))[0] == "▌one░░░░░"
    assert scene.step((0, 3, END - 5))[0] == "one░░▌four░░"
    assert scene.step((0, 2, END), (0, 1, 1))[0] == "one▌ two✗✗four░░"
    assert scene.step()[0] == "one two✗✗four░░"


def test_special_tokens_and_what_follows_the_end(every_frame, size):
    words = Words("7", ",", " 12", "x", "", "", "", "", "")
    scene = Scene(words, [[MASK] * 5])
    scene.step((0, 0, 0), (0, 1, END), (0, 2, 3), (0, 3, END))
    assert scene.step()[0] == "7✗✗x✗░"


@pytest.mark.parametrize(("color", "colored"), [("never", False), ("always", True), ("auto", True)])
def test_colors_are_beside_the_glyphs(every_frame, size, monkeypatch, color, colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    scene = Scene(Words("a"), [[MASK] * 2], color=color)
    assert scene.step((0, 0, 0))[0] == "▌a░"
    new, mask = scene.screen.buffer[0][1], scene.screen.buffer[0][2]
    assert (new.bold, new.fg != mask.fg) == (colored, colored)
    assert ("\x1b[1;36m" in scene.out.getvalue()) == colored


def test_no_color_is_honoured(every_frame, size, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    scene = Scene(Words("a"), [[MASK] * 2], color="auto")
    scene.step((0, 0, 0))
    assert "\x1b[1" not in scene.out.getvalue() and "\x1b[9" not in scene.out.getvalue()


def test_a_frame_replaces_the_last_without_clearing(every_frame, size):
    scene = Scene(Words("ab", "cd"), [[MASK] * 3])
    scene.feed.feed("what was there before\r\n")
    scene.step((0, 0, 0))
    lines = scene.step((0, 1, 1))
    assert lines[:2] == ["what was there before", "ab▌cd░"] and not any(lines[3:])
    assert lines[2].startswith("block 1/2  step 2/8  1 masks left")
    assert "\x1b[2J" not in scene.out.getvalue() and "\x1b[H" not in scene.out.getvalue()
    scene.view.end()
    lines = scene.look()
    assert lines[0] == "what was there before" and "2 passes in 1.00 s" in lines[1] and not any(lines[2:])


def test_a_frame_of_fewer_lines_leaves_nothing_of_the_last(every_frame, size):
    """Tokens that are no text take less room than their masks."""
    size[0] = 40
    scene = Scene(Words("", "a"), [[1, *[MASK] * 49]], columns=40)
    lines = scene.step()
    assert lines[:2] == ["a" + "░" * 38, "░" * 11] and lines[2].startswith("block") and not any(lines[3:])
    scene.step(*[(0, p, 0) for p in range(1, 49)])
    lines = scene.step()
    assert lines[0] == "a░" and lines[1].startswith("block") and not any(lines[2:])
    lines = scene.step((0, 49, 1))
    assert lines[0] == "a▌a" and lines[1].startswith("block") and not any(lines[2:])


def test_unchanged_lines_are_not_written_again(every_frame, size):
    size[0] = 12
    scene = Scene(Words("a" * 11, "b"), [[0, MASK]], columns=12)
    scene.step()
    before = len(scene.out.getvalue())
    scene.step((0, 1, 1))
    assert "aaaa" not in scene.out.getvalue()[before:] and scene.look()[:2] == ["a" * 11, "▌b"]


@pytest.mark.parametrize("columns", [8, 9, 13, 20])
def test_lines_never_wrap(every_frame, size, columns):
    """Long tokens, wide ones and combining marks: a line has at most one column less than the terminal."""
    size[0] = columns
    words = Words("supercalifragilistic", "漢字漢字漢字漢字漢字", "e\u0301" * 9, "\U0001f600", "a\nb", "", " ", "x", "")
    rng = np.random.default_rng(columns)
    scene = Scene(words, [rng.integers(0, 8, 12).tolist() + [MASK] * 30], columns=columns, lines=60)
    size[1] = 60
    scene.step()
    for _ in range(20):
        lines = scene.step((0, int(rng.integers(12, 42)), int(rng.integers(0, 8))))
        assert any(line.startswith("block") for line in lines)
    wide = max(sum(2 if unicodedata.east_asian_width(c) in "WF" else unicodedata.combining(c) == 0 for c in line) for line in lines)
    assert wide <= columns - 1
    assert sum(line.startswith("block") for line in lines) == 1  # no frame left anything behind


def test_a_text_longer_than_the_terminal_shows_where_the_masks_are(every_frame, size):
    size[:] = 20, 6
    scene = Scene(Words("word "), [[0] * 100 + [MASK] * 4 + [0] * 100], columns=20, lines=6)
    lines = scene.step()
    assert any("░" in line for line in lines) and lines[4].startswith("block")
    for i in range(4):
        lines = scene.step((0, 100 + i, 0))
    assert lines[4].startswith("block") and sum(line.startswith("block") for line in lines) == 1


def test_after_a_resize_it_goes_on_below(every_frame, size):
    scene = Scene(Words("ab"), [[MASK] * 3])
    scene.step((0, 0, 0))
    size[0] = 40
    lines = scene.step((0, 1, 0))
    assert lines[0] == "▌ab░░" and lines[2] == "ab▌ab░"


def test_control_characters_are_shown_and_not_obeyed(every_frame, size):
    words = Words("\x1b[2J", "\x07", "\u202e", "\r", "\x9b31m", "\t|")
    scene = Scene(words, [[0, 1, 2, 3, 4, 5, MASK]])
    lines = scene.step()
    assert lines[0] == r"\x1b[2J\x07\u202e\r\x9b31m    |░"
    assert scene.out.getvalue().count("\x1b[2J") == 0 and "\x07" not in scene.out.getvalue()


def test_a_character_of_several_tokens(every_frame, size):
    word = "漢".encode()
    scene = Scene(Words(word[:1], word[1:2], word[2:]), [[0, 1, 2, 0, MASK, 2]])
    assert scene.step()[0] == "漢\ufffd░\ufffd"


def test_an_answer_that_grows_before_what_was_written(every_frame, size):
    scene = Scene(Words("a", "b"), [[MASK] * 3])
    assert scene.step((0, 0, 0), (0, 2, 1), grows=[(0, 1, 2)])[0] == "▌a░░░▌b"
    assert scene.step((0, 2, 0))[0] == "a░▌a░b"


def test_several_prompts(every_frame, size):
    scene = Scene(Words("a", "b"), [[MASK] * 2, [MASK] * 3])
    assert scene.step((0, 0, 0), (1, 2, 1))[:2] == ["[0] ▌a░", "[1] ░░▌b"]


def test_terminals_that_know_no_other_glyphs(every_frame, size):
    class Latin(Tty):
        encoding = "ascii"

    size[0] = 9
    scene = Scene(Words("a", "漢"), [[MASK] * 4], columns=9, stream=Latin())
    assert scene.step((0, 0, 0))[0] == "+a___"
    lines = scene.step((0, 1, 1))  # what is written for a character has a width of its own
    assert lines[:2] == ["a+\\u6f22", "__"] and scene.out.getvalue().isascii()


@pytest.mark.parametrize(("narrow", "term"), [((7, 24), "xterm"), ((80, 1), "xterm"), ((1, 1), "xterm"), ((80, 24), "dumb")])
def test_terminals_that_are_tiny_or_know_no_escapes_get_lines(size, narrow, term, monkeypatch):
    monkeypatch.setattr(live, "LINE", 0.0)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", term)
    size[:] = narrow
    scene = Scene(Words("a"), [[MASK] * 2])
    scene.step((0, 0, 0))
    assert "\x1b" not in scene.out.getvalue() and scene.out.getvalue().startswith("block 1/2  step 1/8  1 masks left")


def test_at_most_15_frames_a_second(size, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: clock[0])
    scene = Scene(Words("a"), [[MASK] * 1000])
    frames = []
    monkeypatch.setattr(scene.view, "_draw", lambda step: frames.append(clock[0]))
    for i in range(900):
        clock[0] += 0.005
        scene.step((0, i, 0))
    assert len(frames) <= 4.5 * 15 + 1 and len(frames) > 4.5 * 12
    assert min(np.diff(frames)) >= 1 / 15


def test_a_slow_frame_waits_for_its_share(size, monkeypatch):
    """Frames of 10 ms are a second apart, so that they take one hundredth of the time."""
    clock = [0.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: clock[0])
    scene = Scene(Words("a"), [[MASK] * 1000])
    spent = []

    def draw(step):
        clock[0] += 0.01
        spent.append(0.01)

    monkeypatch.setattr(scene.view, "_draw", draw)
    for i in range(1000):
        clock[0] += 0.02
        scene.step((0, i, 0))
    assert 0.005 < sum(spent) / clock[0] <= 0.0101


def test_off_a_terminal_there_are_lines(demo, capsys, monkeypatch, every_frame):
    monkeypatch.setattr(live, "LINE", 0.0)
    result = demo.generate(PROMPT, live=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 65 and "\x1b" not in "".join(lines) and lines[0].startswith("block 1/2  step 1/64  63 masks left")
    assert lines[-1].startswith(f"{result.tokens_per_forward:.2f} tokens/forward  {result.rows_per_token:.0f} rows/token  64 passes in ")


@pytest.mark.parametrize("options", [{}, {"preset": "fast"}, {"cfg_scale": 0.5}, {"gen_length": "auto"},
                                     {"editor": "wino", "early_stop": True}])
def test_figures_are_those_of_the_result(demo, options):
    view = LiveView(out := io.StringIO())
    result = demo.generate([PROMPT, "What is 17 plus 25?"], live=view, **options)
    assert out.getvalue().splitlines()[-1].startswith(
        f"{result.tokens_per_forward:.2f} tokens/forward  {result.rows_per_token:.0f} rows/token  {result.n_forward} passes in ")


def test_answers_do_not_depend_on_it(demo, every_frame, size):
    plain = demo.generate([PROMPT, "What is 12 plus 30?"], temperature=0.7, seed=1)
    seen = demo.generate([PROMPT, "What is 12 plus 30?"], temperature=0.7, seed=1, live=LiveView(Tty()))
    assert all(map(np.array_equal, plain.sequences, seen.sequences))


def test_infill_shows_it_too(demo, capsys, monkeypatch):
    monkeypatch.setattr(live, "LINE", 0.0)
    demo.infill(["12 + 30 = ", 2, "."], prompt="What is 12 plus 30?", live=True)
    assert "2 passes in" in capsys.readouterr().err


def test_what_it_refuses(demo):
    with pytest.raises(ValueError, match="live: writes to stderr as verbose=True does"):
        demo.generate(PROMPT, live=True, verbose=True)
    with pytest.raises(TypeError, match="live: expected True or False"):
        demo.generate(PROMPT, live=1)
    with pytest.raises(ValueError, match="color: expected one of 'auto'"):
        LiveView(color="red")
    with pytest.raises(TypeError, match="live: is for generate"):
        demo.stream(PROMPT, live=True)


@pytest.mark.parametrize("kind", [Tty, io.StringIO])
@pytest.mark.parametrize("error", [BrokenPipeError, ValueError("I/O operation on closed file")])
def test_a_stream_that_breaks_does_not_stop_the_work(demo, every_frame, size, kind, error):
    class Broken(kind):
        def write(self, text):
            raise error

    assert str(demo.generate(PROMPT, live=LiveView(Broken()))) == "7, 12, 31, 52"


def test_without_a_tokenizer_there_are_ids(every_frame, size):
    scene = Scene(None, [[MASK] * 2])
    assert scene.step((0, 0, 3))[0] == "▌3 ░"


@pytest.mark.resident
def test_it_costs_a_hundredth(size):
    """A frame every 100 times its own cost, at most, and next to nothing in between. By the time of this thread's processor, which a
    pause of the machine does not count in."""
    spent = 0.0

    class Timed(LiveView):
        def __call__(self, step):
            nonlocal spent
            start = time.thread_time()
            super().__call__(step)
            spent += time.thread_time() - start

    model = LLaDAForCausalLM()
    start = time.thread_time()
    for _ in range(5):
        model.generate(PROMPT, live=Timed(Tty()))
    share = spent / (time.thread_time() - start)
    assert share < 0.03, f"{share:.1%}"  # 1 % by design, of which waiting for other threads is part


# ---- a real pseudo terminal

def test_on_a_terminal():
    with Terminal("generate", "--live", "--backend", "reference", PROMPT) as t:
        assert t.finish() == 0
    assert t.text.splitlines()[-1] == "7, 12, 31, 52" and "64 passes in" in t.text.splitlines()[0]
    seen = [f for f in t.frames if "masks left" in f]
    assert seen and any("░" in f for f in seen) and all(f.count("masks left") == 1 for f in seen)


def test_no_color_on_a_terminal():
    with Terminal("generate", "--live", "--backend", "reference", PROMPT, NO_COLOR="1") as t:
        assert t.finish() == 0
    assert b"\x1b[1;36m" not in t.written and b"\x1b[90m" not in t.written and "░".encode() in t.written


def test_an_interrupt_leaves_a_clean_terminal():
    with Terminal("generate", "--live", "--backend", "reference", "--gen-length", "512", "--block-length", "512", PROMPT) as t:
        t.wait_for("masks left")
        t.interrupt()
        assert t.finish() == 130
    assert t.text.splitlines()[-1] == "llada-native: interrupted" and "░" not in t.text and "masks left" not in t.text


def test_the_picture_of_the_documents(monkeypatch):
    """Made of what an emulator shows of a real run; tools/live_picture.py writes it to docs/live.svg."""
    import live_picture

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "FRAME", live.FRAME)
    monkeypatch.setattr(live, "SHARE", live.SHARE)
    seen = live_picture.frames(PROMPT)
    assert len(seen) == 17  # a frame every four passes, and the line that stays
    picture = live_picture.drawn(seen[8], PROMPT)
    assert all(f'class="{kind}"' in picture for kind in ("mask", "new", "struck")) and "masks left" in picture and "<script" not in picture
