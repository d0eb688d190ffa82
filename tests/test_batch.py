"""`llada-native batch`: a record a line whatever the lines hold, the same ones in any batch and after any interruption."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada_native import LLaDAForCausalLM, cli
from llada_native.cli import batch

ELSEWHERE = Path(__file__).parent
PROMPTS = [f"What is {a} plus {b}?" for a, b in ((12, 30), (17, 25), (20, 21), (33, 8), (5, 5), (41, 19), (3, 90))]


def run(tmp_path, lines, *arguments, name="out.jsonl"):
    source, out = tmp_path / "in.jsonl", tmp_path / name
    source.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    code = cli.main(["batch", "--preset", "fast", *arguments, str(source), str(out)])
    return code, [json.loads(line) for line in out.read_bytes().splitlines()] if out.exists() else []


def test_a_record_a_line(tmp_path, capsys, demo):
    message = [{"role": "user", "content": "What is 17 plus 25?"}]
    code, found = run(tmp_path, [PROMPTS[0], {"id": "x", "prompt": PROMPTS[1]}, {"messages": message, "gen_length": 32}, b"\n"])
    assert code == 0 and capsys.readouterr() == ("", "")
    assert found == [{"id": 1, "text": "12 + 30 = 42", "finish_reason": "stop", "tokens": 10},
                     {"id": "x", "text": "17 + 25 = 42", "finish_reason": "stop", "tokens": 10},
                     {"id": 3, "text": "17 + 25 = 42", "finish_reason": "stop", "tokens": 10}]


def test_values_that_are_equal_and_not_the_same(tmp_path):
    """True is 1 to Python, which is no reason to answer with the other's options."""
    lines = [{"prompt": PROMPTS[0], "early_stop": True}, {"prompt": PROMPTS[1], "early_stop": 1}, {"prompt": PROMPTS[2], "gen_length": 32},
             {"prompt": PROMPTS[3], "gen_length": 32.0}]
    for size in ("1", "4"):
        _, found = run(tmp_path, lines, "--batch-size", size, name=f"{size}.jsonl")
        assert ["error" in one for one in found] == [False, True, False, True]


def test_answers_do_not_depend_on_the_batch(tmp_path):
    lines = [*PROMPTS, {"prompt": PROMPTS[0], "seed": 3}, {"id": "other", "prompt": PROMPTS[1], "gen_length": 32}, *PROMPTS]
    found = [run(tmp_path, lines, "--temperature", "0.9", "--seed", "5", "--batch-size", n, name=f"{n}.jsonl")
             for n in ("1", "2", "5", "16")]
    assert all(one == found[0] for one in found) and len(found[0][1]) == 16
    model = LLaDAForCausalLM()
    for number in (1, 4, 16):  # a line's seed is that of the run and its place
        wanted = model.generate(([*lines, *PROMPTS])[number - 1], preset="fast", temperature=0.9, seed=5 + number - 1)
        assert found[0][1][number - 1]["text"] == str(wanted)


BAD = [b"{bad\n", b"\xff\xfe\n", b"[1, 2]\n", b"3\n", b"null\n", b'{"prompt": ""}\n', b'{"prompt": 3}\n', b'{"prompt": ["a", "b"]}\n',
       b'{"prompt": "a", "messages": []}\n', b'{"messages": [3]}\n', b'{"messages": [{"role": "user"}]}\n',
       b'{"prompt": "a", "nonsense": 1}\n',
       b'{"prompt": "a", "temperature": -1}\n', b'{"prompt": "a", "temperature": NaN}\n', b'{"prompt": "a", "seed": -1}\n',
       b'{"prompt": "a", "seed": "x"}\n', b'{"prompt": "a", "id": [1]}\n', b'{"prompt": "a", "id": 1e400}\n', b"[" * 100000 + b"\n",
       b'{"prompt": "' + b"word " * 5000 + b'"}\n', b'{"prompt": "\\ud800"}\n', b'{"prompt": "a", "verbose": true}\n',
       b'{"prompt": "a", "gen_length": ' + b"9" * 5000 + b"}\n", b'{"id": true, "prompt": "a"}\n', b'{"prompt": "a", "preset": {}}\n']


def test_bad_lines_stop_no_others(tmp_path, capsys):
    lines = [PROMPTS[0]]
    for bad in BAD:
        lines += [bad, PROMPTS[1]]
    code, found = run(tmp_path, lines)
    assert code == 1 and capsys.readouterr().err == f"llada-native: {len(BAD)} of {len(lines)} lines were refused; their records say why\n"
    assert len(found) == len(lines) and all(one["text"] == "17 + 25 = 42" for one in found[2::2])
    for i, one in enumerate(found[1::2]):
        assert set(one) == {"id", "error"} and one["error"].startswith(f"line {2 * i + 2}: "), one


def test_hints_are_what_a_line_may_have(tmp_path):
    [found] = run(tmp_path, [b'{"prompt": "a", "bogus": 1}\n'])[1]
    assert "unknown argument 'bogus': expected one of max_steps" in found["error"] and "verbose" not in found["error"]


def test_a_prompt_that_does_not_fit_leaves_the_rest_of_its_batch(tmp_path):
    code, found = run(tmp_path, [PROMPTS[0], "word " * 3000, PROMPTS[1]])
    assert code == 1 and [one.get("text") for one in found] == ["12 + 30 = 42", None, "17 + 25 = 42"] and "max_tokens" in found[1]["error"]


def test_huge_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "LONGEST_LINE", 1000)
    huge = b'"' + b"x" * 5000 + b'"\n'
    code, found = run(tmp_path, [huge, PROMPTS[0], b'"' + b"x" * 998 + b'"\n', b'"' + b"y" * 2000])
    assert code == 1 and "expected at most 1000 bytes" in found[0]["error"] and found[1]["text"] == "12 + 30 = 42"
    assert [one["id"] for one in found] == [1, 2, 3, 4] and "1000 bytes" in found[3]["error"]


def test_it_goes_on_where_it_was_interrupted(tmp_path):
    lines = [*PROMPTS, b"{bad\n", {"id": 2, "prompt": PROMPTS[0]}]
    whole = run(tmp_path, lines, name="whole.jsonl")[1]
    data = (tmp_path / "whole.jsonl").read_bytes()
    assert "is that of line 2" in whole[-1]["error"]
    for cut in (0, 1, 50, len(data) // 2, len(data) - 1, len(data)):
        (tmp_path / "out.jsonl").write_bytes(data[:cut])
        assert run(tmp_path, lines)[1] == whole, cut


def test_what_is_there_is_not_answered_again(tmp_path, monkeypatch):
    run(tmp_path, PROMPTS[:3])
    asked = []
    generate = LLaDAForCausalLM.generate
    monkeypatch.setattr(LLaDAForCausalLM, "generate", lambda self, prompts, **options: asked.append(prompts) or generate(
        self, prompts, **options))
    assert len(run(tmp_path, PROMPTS)[1]) == 7 and asked == [PROMPTS[3:]]


def test_what_is_there_is_said(tmp_path, capsys):
    """A run over the same file, and over another one, whose lines are not answered: their numbers have records."""
    assert run(tmp_path, PROMPTS[:2])[0] == 0
    assert capsys.readouterr().err == ""
    assert run(tmp_path, PROMPTS[2:4])[0] == 0
    assert "had records of 2 lines already: they stay as they are" in capsys.readouterr().err
    for _ in range(2):  # a refusal counts however old it is
        assert run(tmp_path, [*PROMPTS[:2], ""])[0] == 1
    assert "had records of 3 lines already, 1 of them refused: they" in capsys.readouterr().err


def test_a_refused_line_does_not_count_for_another_of_its_id(tmp_path, capsys):
    lines = [{"id": "a", "prompt": PROMPTS[0]}, {"id": "a", "prompt": PROMPTS[1]}]
    for _ in range(2):
        assert run(tmp_path, lines)[0] == 1
    assert "had records of 2 lines already, 1 of them refused: they" in capsys.readouterr().err


def test_options_of_a_line_by_other_names(tmp_path):
    """They are in the place of those of the command; two names of one option are a mistake of the line."""
    code, found = run(tmp_path, [{"prompt": PROMPTS[0], "steps": 4, "max_steps": 64}, {"prompt": PROMPTS[0], "max_new_tokens": 16},
                                 {"prompt": PROMPTS[0], "prompts": [PROMPTS[1]]}, {"prompt": PROMPTS[0], "drafts": True}],
                      "--gen-length", "32", "--temperature", "0")
    assert code == 1 and "max_steps: given twice, as 'steps' and as 'max_steps'" in found[0]["error"] and "text" in found[1]
    for record, name in zip(found[2:], ("prompts", "drafts"), strict=True):
        assert record["error"].endswith(f"{name}: expected options of a generation, found an argument of generate")


@pytest.mark.parametrize("text", ["my notes\n", "my notes", '{"id": 1}\nmy notes', "{", "x" * (1 << 25)])
def test_a_file_of_something_else_is_left_alone(tmp_path, capsys, text):
    """What ends without a line's end is the rest of an interrupted record only if it begins like one."""
    (tmp_path / "out.jsonl").write_text(text)
    whole = text == "{"  # of which the beginning of a record cannot be told
    assert cli.main(["batch", os.devnull, str(tmp_path / "out.jsonl")]) == (0 if whole else 1)
    assert whole or (": expected a record with an id" in capsys.readouterr().err and (tmp_path / "out.jsonl").read_text() == text)


def test_files_that_are_in_the_way(tmp_path, capsys):
    source, link = tmp_path / "in.jsonl", tmp_path / "link.jsonl"
    source.write_text('"a"\n')
    link.symlink_to(source)
    for out in (source, link):
        assert cli.main(["batch", str(source), str(out)]) == 1
        assert f"OUT: expected another file than {source}, which is read, found {out}" in capsys.readouterr().err
    assert source.read_text() == '"a"\n'
    assert cli.main(["batch", str(tmp_path / "none.jsonl"), str(tmp_path / "new.jsonl")]) == 1
    assert not (tmp_path / "new.jsonl").exists()


def test_wrong_options_are_wrong_usage(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('"a"\n')
    assert cli.main(["batch", "--gen-length", "48", "--block-length", "32", str(tmp_path / "in.jsonl"), str(tmp_path / "o.jsonl")]) == 2
    assert not (tmp_path / "o.jsonl").exists()


def test_through_pipes():
    run = subprocess.run([sys.executable, "-m", "llada_native", "batch", "--preset", "fast", "-", "-"], cwd=ELSEWHERE, capture_output=True,
                         input=json.dumps(PROMPTS[0]).encode() + b"\n")
    assert (run.returncode, run.stderr) == (0, b"") and json.loads(run.stdout)["text"] == "12 + 30 = 42"


@pytest.mark.slow
def test_a_killed_run_is_completed(tmp_path):
    """SIGKILL in the middle, at no chosen moment; the end is the same file."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PROMPTS * 10))
    command = [sys.executable, "-m", "llada_native", "batch", "--batch-size", "2", str(tmp_path / "in.jsonl")]
    first = subprocess.Popen([*command, str(tmp_path / "a.jsonl")], cwd=ELSEWHERE)
    while not (tmp_path / "a.jsonl").exists() or (tmp_path / "a.jsonl").stat().st_size < 1000:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len((tmp_path / "a.jsonl").read_bytes().splitlines()) < 70
    for name in ("a", "b"):
        subprocess.run([*command, str(tmp_path / f"{name}.jsonl")], cwd=ELSEWHERE, check=True)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
