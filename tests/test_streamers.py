"""Streamers by the protocol of transformers' text diffusion streamer: what they are told, and in which order."""
import io

import numpy as np
import pytest

from llada_native import EngineError, TextStreamer

PROMPT = "Sort these numbers: 31, 7, 52, 12."


class Recorder:
    """Everything that it is told, in order."""

    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(("put", value))

    def put_draft(self, value):
        self.heard.append(("draft", value))

    def end(self):
        self.heard.append(("end", None))

    def of(self, kind):
        return [value for what, value in self.heard if what == kind]


class Foreign:
    """Reads values as transformers' streamers do: by shape, index and tolist, one request at a time."""

    def __init__(self, tokenizer):
        self.tokenizer, self.ids, self.drafts, self.ended = tokenizer, [], [], 0

    def _row(self, value):
        assert len(value.shape) == 2 and value.shape[0] == 1
        return value[0].tolist()

    def put(self, value):
        self.ids += self._row(value)

    def put_draft(self, value, **_):
        self.drafts.append(self.tokenizer.decode(self.ids + self._row(value)))

    def end(self):
        self.ended += 1


OPTIONS = [{}, {"preset": "fast"}, {"preset": "balanced", "temperature": 0.5, "seed": 3}, {"gen_length": "auto"}, {"editor": "wino"},
           {"canvas": "look_ahead", "selector": "threshold:tau=0.8"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_pieces_make_up_the_answer(demo, options):
    streamer = Recorder()
    result = demo.generate(PROMPT, streamer=streamer, **options)
    prompt, *pieces = streamer.of("put")
    assert all(piece.shape[0] == 1 and piece.shape[1] and piece.dtype == np.int32 for piece in pieces)
    n = result.prompt_lengths[0]
    np.testing.assert_array_equal(prompt[0], result.sequences[0][:n])
    answer = np.concatenate(pieces, 1)[0]
    np.testing.assert_array_equal(answer, result.sequences[0][n:n + result.answer_lengths[0]])
    assert demo.tokenizer.decode(answer) == str(result)
    assert streamer.heard[0][0] == "put" and streamer.heard[-1][0] == "end" and len(streamer.of("end")) == 1


def test_drafts_follow_what_was_put(demo):
    """Behind the tokens so far, the guess of every pass for the rest; the last ones are the answer."""
    streamer = Foreign(demo.tokenizer)
    result = demo.generate(PROMPT, streamer=streamer, selector="threshold:tau=0.9")
    whole = demo.tokenizer.decode(result.sequences[0][:result.prompt_lengths[0]]) + str(result)
    assert demo.tokenizer.decode(streamer.ids) == whole and streamer.ended == 1
    assert streamer.drafts and all(draft.startswith(whole[:20]) for draft in streamer.drafts)
    steps = list(demo.stream(PROMPT, selector="threshold:tau=0.9", drafts=True))
    assert streamer.drafts[0].endswith(steps[0].draft_text[0]) and steps[0].draft_text[0]


def test_without_put_draft_none_is_made(demo):
    class Plain:
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value[0].tolist()

        def end(self):
            self.ended = True

    streamer = Plain()
    assert demo.tokenizer.decode(streamer.ids) == ""
    assert demo.generate(PROMPT, streamer=streamer).text[0] in demo.tokenizer.decode(streamer.ids) and streamer.ended


def test_text_streamer_prints_what_settles(demo, capsys):
    result = demo.generate(PROMPT, streamer=TextStreamer(demo.tokenizer))
    assert capsys.readouterr().out == f"{result}\n"
    demo.generate(PROMPT, streamer=TextStreamer(demo.tokenizer, skip_prompt=False))
    assert capsys.readouterr().out.endswith(f"assistant\n\n{result}\n")


def test_text_streamer_waits_for_whole_characters():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    printed = io.StringIO()
    streamer = TextStreamer(Bytes(), stream=printed)
    seen = []
    for value in (list(b"prompt"), [*b"a", 0xE6], [0xBC], [0xA2, *b"b"]):
        streamer.put(np.array([value]))
        seen.append(printed.getvalue())
    streamer.end()
    assert seen == ["", "a", "a", "a漢b"] and printed.getvalue() == "a漢b\n"
    streamer.put(np.array([list(b"prompt")]))
    streamer.put(np.array([[0xE6]]))
    streamer.end()  # what never became a character is shown as it is
    assert printed.getvalue() == "a漢b\n\ufffd\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_obeys_nothing_of_what_is_streamed(terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    class Words:
        def decode(self, ids):
            return "a\x1b[2J" if len(ids) else ""

    streamer = TextStreamer(Words(), stream=(printed := Stream()))
    streamer.put(np.array([[1]]))
    streamer.put(np.array([[2]]))
    streamer.end()
    assert printed.getvalue() == ("a\\x1b[2J\n" if terminal else "a\x1b[2J\n")


def test_what_a_stream_has_no_bytes_for():
    class Ascii(io.StringIO):
        encoding = "ascii"

    class Words:
        def decode(self, ids):
            return "漢é" if len(ids) else ""

    streamer = TextStreamer(Words(), stream=(printed := Ascii()))
    streamer.put(np.array([[1]]))
    streamer.put(np.array([[2]]))
    streamer.end()
    assert printed.getvalue() == "\\u6f22\\xe9\n"


def test_a_callback_ends_the_stream_too(demo):
    streamer = Recorder()
    demo.generate(PROMPT, streamer=streamer, callback=lambda step: step.forward == 3)
    assert streamer.heard[-1][0] == "end" and len(streamer.of("draft")) == 4


def test_it_ends_when_the_engine_fails(demo, monkeypatch):
    from llada_native.denoiser import Denoiser

    def fail(*_):
        raise EngineError("broken")

    monkeypatch.setattr(Denoiser, "predict", fail)
    streamer = Recorder()
    with pytest.raises(EngineError):
        demo.generate(PROMPT, streamer=streamer)
    assert [what for what, _ in streamer.heard] == ["put", "end"]


def test_what_it_refuses(demo):
    class Logits(Recorder):
        _takes_logits = True

    with pytest.raises(TypeError, match="streamer: expected an object with put and end, found 3"):
        demo.generate(PROMPT, streamer=3)
    with pytest.raises(TypeError, match="streamer: expected one that takes tokens"):
        demo.generate(PROMPT, streamer=Logits())
    with pytest.raises(ValueError, match="streamer: expected one prompt, found 2"):
        demo.generate([PROMPT, PROMPT], streamer=Recorder())
    with pytest.raises(ValueError, match="streamer: cannot take back"):
        demo.generate(PROMPT, streamer=Recorder(), fallback="reference")
    with pytest.raises(TypeError, match="streamer: is for generate"):
        demo.stream(PROMPT, streamer=Recorder())
