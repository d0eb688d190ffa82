"""The command line: prompts from anywhere, uniform exit codes, completion, and hostile surroundings."""
import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import llada_native
from llada_native import Trace, cli
from llada_native.cli import completion, infill, output
from llada_native.cli.arguments import EXIT_CODES

ELSEWHERE = Path(__file__).parent
DEMO = Path(llada_native.__file__).parent / "demo"
PROMPT = "Sort these numbers: 31, 7, 52, 12."
NAMES = sorted(command.__name__.rpartition(".")[2] for command in cli.COMMANDS)


def shell(line, **options):
    """A line of bash in which llada-native is this one; its output is buffered, as it is for users."""
    setup = f'llada-native() {{ {shlex.quote(sys.executable)} -m llada_native "$@"; }}; '
    environment = {**os.environ, **options.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(["bash", "-c", setup + line], capture_output=True, cwd=ELSEWHERE, env=environment, **options)


# ---- prompts

def test_prompts_from_everywhere(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("What is 12 plus 30?\n", "utf-8")
    assert cli.main(["generate", "--preset", "fast", "--json", PROMPT, f"@{tmp_path}/one.txt", "--file", f"{tmp_path}/one.txt"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["prompt"] for one in found["answers"]] == [PROMPT, "What is 12 plus 30?", "What is 12 plus 30?"]
    assert cli.main(["generate", "--preset", "fast", "--json", "@@12"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["prompt"] == "@12"


def test_a_prompt_without_quotes_is_pointed_out(capsys, monkeypatch):
    question = ["What", "is", "3", "plus", "4?"]
    assert cli.main(["generate", "--preset", "fast", *question]) == 0
    assert capsys.readouterr().err == ""  # off a terminal
    monkeypatch.setattr("llada_native.terminal.is_terminal", lambda stream: stream is sys.stderr)
    assert cli.main(["generate", "--preset", "fast", *question]) == 0
    out, err = capsys.readouterr()
    assert err == "llada-native: 5 prompts of one word each; a prompt of several words stands in quotes\n" and out.count("\n") >= 5
    for prompts in (["What is 3 plus 4?", "hello", "you"], ["hello", "you"], ["你好吗", "今天天气怎么样", "谢谢"]):
        assert cli.main(["generate", "--preset", "fast", *prompts]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("data", "message"), [(b"\xff", "expected UTF-8 text, found byte 0xff at 0"),
                                               (b" \n", "is empty"), (None, "No such file")])
def test_files_that_are_no_prompt(tmp_path, capsys, data, message):
    path = tmp_path / "p.txt"
    if data is not None:
        path.write_bytes(data)
    for arguments in ((f"@{path}",), ("--file", str(path))):
        assert cli.main(["generate", *arguments]) == 1
        err = capsys.readouterr().err
        assert message in err and str(path) in err and err.count("\n") == 1


def test_a_trace_is_saved(tmp_path, capsys):
    assert cli.main(["generate", "--trace", str(tmp_path / "run.npz"), PROMPT]) == 0
    trace = Trace.load(tmp_path / "run.npz")
    assert len(trace) == 64 and capsys.readouterr().out == "7, 12, 31, 52\n"


@pytest.mark.parametrize("given", [["--file", "{}"], ["@{}"]])
def test_a_trace_overwrites_no_prompt(tmp_path, capsys, given):
    path = tmp_path / "one.txt"
    path.write_text(PROMPT)
    assert cli.main(["generate", *(word.format(path) for word in given), "--trace", str(path)]) == 1
    assert f"--trace: expected another file than {path}, which is read" in capsys.readouterr().err and path.read_text() == PROMPT


def test_infill_and_score(capsys):
    assert cli.main(["infill", "--prompt", "What is 12 plus 30?", "12 + 30 = [MASK:2].", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == ["12 + 30 = 42."]
    assert cli.main(["infill", "[MASK:3]"]) == 0
    assert cli.main(["infill", "--max-steps", "1", "a [MASK:4]"]) == 0  # which the blocks of an answer of default length would refuse
    assert cli.main(["infill", "no mask"]) == 1
    assert "expected [MASK]" in capsys.readouterr().err
    assert cli.main(["score", "--seed", "0", "--json", "What is 12 plus 30?", "12 + 30 = 42", "12 + 30 = 43"]) == 0
    right, wrong = json.loads(capsys.readouterr().out)["scores"]
    wanted = llada_native.LLaDAForCausalLM().score("What is 12 plus 30?", ["12 + 30 = 42", "12 + 30 = 43"], seed=0).tolist()
    assert [right["log_likelihood"], wrong["log_likelihood"]] == wanted and wanted[0] > wanted[1]


@pytest.mark.parametrize(("text", "wanted"), [("a[MASK]b", ["a", 1, "b"]), ("[MASK:12]", [12]),
                                              ("[MASKED] [MASK:7] [mask]", ["[MASKED] ", 7, " [mask]"]), ("[MASK][MASK:2] c", [1, 2, " c"]),
                                              ("[UNMASK] [MASK]", ["[UNMASK] ", 1])])
def test_parts_of_a_text(text, wanted):
    assert infill.parts(text) == wanted


@pytest.mark.parametrize("mask", ["[MASK:x]", "[MASK:0]", "[MASK:1234567]", "[MASK:]", "[MASK:2", "[MASK-2]", "[MASK :2]", "[MASKS]",
                                  "[MASK:01]"])
def test_masks_that_are_misspelt(mask, capsys):
    assert cli.main(["infill", f"a [MASK:2] b {mask}"]) == 1
    assert f"found {mask}" in capsys.readouterr().err


def test_texts_to_fill_from_files_and_pipes(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("12 + 30 = [MASK:2].\n", "utf-8")
    wanted = "12 + 30 = 42.\n"
    (tmp_path / "prompt.txt").write_text("What is 12 plus 30?\n", "utf-8")
    for prompt in ("What is 12 plus 30?", f"@{tmp_path}/prompt.txt"):
        assert cli.main(["infill", "--prompt", prompt, f"@{tmp_path}/text.txt"]) == 0
        assert capsys.readouterr().out == wanted
    (tmp_path / "long.txt").write_text("no mask " * 1000, "utf-8")
    assert cli.main(["infill", f"@{tmp_path}/long.txt"]) == 1
    assert len(capsys.readouterr().err) < 400
    for argument in ("", "-"):
        run = shell(f"llada-native infill --prompt 'What is 12 plus 30?' {argument} < {shlex.quote(str(tmp_path / 'text.txt'))}")
        assert (run.stdout.decode(), run.stderr) == (wanted, b"")
    run = shell(f"llada-native score --seed 0 --mc-num 2 - '12 + 30 = 42' < {shlex.quote(str(tmp_path / 'text.txt'))}")
    assert run.returncode == 0 and run.stdout.endswith(b"\t12 + 30 = 42\n")


def test_what_was_refused_is_told_from_wrong_arguments(tmp_path, capsys):
    for arguments, said in ((["generate", "@"], "@: expected the name of a file"), (["generate", ""], "no prompt: an argument is empty"),
                            (["score", "a", ""], "no answer: an argument is empty"), (["infill", ""], "no text: an argument is empty")):
        assert cli.main(arguments) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["generate", "a"], ["score", "a", "b"], ["infill", "[MASK]"], ["batch", "-", "-"], ["chat"]],
                         ids=lambda arguments: arguments[0])
def test_a_model_that_cannot_read(arguments, tmp_path, capsys):
    for path in DEMO.iterdir():
        if path.suffix in (".json", ".safetensors") and "tokenizer" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    assert cli.main([*arguments, "--model", str(tmp_path)]) == 1
    assert "tokenizer" in capsys.readouterr().err


# ---- help, usage, exit codes

@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and " ".join(EXIT_CODES.split()) in " ".join(text.split())
    lines = [line.strip() for line in text.partition("examples:\n")[2].partition("\n\n")[0].splitlines()]
    assert any(f"llada-native {name}" in line for line in lines)
    for line in lines:
        words = shlex.split(re.sub(r"\(|\)", "", line.split("llada-native ", 1)[1].split(" > ")[0].split(" < ")[0]))
        cli.build_parser().parse_args(words)


@pytest.mark.parametrize("width", [80, 96, 160])  # at 96 "--batch-size" meets the end of a line
@pytest.mark.parametrize("name", NAMES)
def test_help_has_one_width(name, width, monkeypatch, capsys):
    """That of the terminal, which argparse leaves two columns of: paragraphs fill it, and what is indented below them may be wider."""
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    described, _, epilog = capsys.readouterr().out.partition("\n\n")[2].partition("examples:\n")
    paragraphs = [line for line in epilog.splitlines() if not line.startswith(" ")]
    assert max(map(len, [*described.splitlines(), *paragraphs])) <= width - 2
    for line, following in pairwise(paragraphs):
        assert not (line and following) or (len(f"{line} {following.split()[0]}") > width - 2 and not line.endswith("-")), line


@pytest.mark.parametrize(("arguments", "message"), [
    (["generate", "--gen-lenth", "5", "x"], "--gen-lenth (did you mean --gen-length?); see llada-native generate --help"),
    (["generate", "x", "--temprature=1", "--prest"],
     "--temprature=1 --prest (did you mean --temperature, --preset?); see llada-native generate --help"),
    (["infill", "--gen-lenth", "5", "x"], "--gen-lenth; see llada-native infill --help"),  # it has no such option
    (["convert", "a", "b", "c"], "c; see llada-native convert --help"),
    (["--vresion", "info"], "--vresion (did you mean --version?); see llada-native --help")])
def test_unknown_options_name_the_nearest(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"llada-native: unrecognized arguments: {message}\n")


@pytest.mark.parametrize("arguments", [["generate", "--temperature", "-1", "x"], ["generate", "--temperature", "nan", "x"],
                                       ["generate", "--top-p", "2", "x"], ["generate", "--top-k", "-1", "x"],
                                       ["generate", "--seed", "-1", "x"],
                                       ["generate", "--gen-length", "0", "x"], ["generate", "--gen-length", "many", "x"],
                                       ["generate", "--num-threads", "0", "x"], ["generate", "--max-steps", "1e9", "x"],
                                       ["generate", "--color", "red", "x"], ["bench", "--rows", "0"],
                                       ["batch", "--batch-size", "0", "a", "b"],
                                       ["score", "--mc-num", "0", "a", "b"], ["nonsense"], [], ["completion", "tcsh"]])
def test_values_out_of_range_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and err.startswith("llada-native: ") and "--help" in err


# ---- completion

def test_completion_knows_every_option():
    described = {command.name: command for command in completion.described(cli.build_parser())}
    assert sorted(described) == NAMES
    [commands] = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        wanted = {option for action in parser._actions for option in action.option_strings}
        assert {option for one in described[name].options for option in one.names} == wanted


CASES = [(["gen"], {"generate"}), (["generate", "--pre"], {"--preset"}), (["generate", "--preset", "b"], {"balanced"}),
         (["completion", "z"], {"zsh"})]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    commands = completion.described(cli.build_parser())
    for name, make in completion.SHELLS.items():
        (folder / name).write_text(make(commands))
    return folder


@pytest.mark.parametrize(("words", "wanted"), CASES)
def test_bash_completes(scripts, tmp_path, words, wanted):
    line = " ".join(map(shlex.quote, ["llada-native", *words]))
    run = subprocess.run(["bash", "-c", f"source {scripts}/bash; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _llada_native; "
                          'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, cwd=tmp_path)
    assert set(run.stdout.split()) == wanted and run.stderr == ""


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
@pytest.mark.parametrize(("words", "wanted"), CASES)
def test_zsh_completes(scripts, tmp_path, words, wanted):
    line = " ".join(map(shlex.quote, ["llada-native", *words]))
    run = subprocess.run(["zsh", "-fc", "compadd() { shift; print -l -- ${(M)@:#$words[CURRENT]*} }; _files() { }; "
                          f"source {scripts}/zsh; words=({line}); CURRENT={len(words) + 1}; _llada_native"],
                         capture_output=True, text=True, cwd=tmp_path)
    assert set(run.stdout.split()) == wanted and run.stderr == ""


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
@pytest.mark.parametrize(("words", "wanted"), CASES)
def test_fish_completes(scripts, tmp_path, words, wanted):
    run = subprocess.run(["fish", "-Nc", f"source {scripts}/fish; complete -C 'llada-native {' '.join(words)}'"], capture_output=True,
                         text=True, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    assert {line.split("\t")[0] for line in run.stdout.splitlines()} == wanted and run.stderr == ""


# ---- hostile surroundings

@pytest.mark.parametrize(("line", "code", "message"), [
    (f"llada-native generate '{PROMPT}' >&-", 1, b"standard output is closed"),
    (f"llada-native generate '{PROMPT}' > /dev/full", 1, b"No space left"),
    ("llada-native generate --help > /dev/full", 1, b"No space left"),
    ("llada-native --version > /dev/full", 1, b"No space left"),
    ("llada-native generate <&-", 1, b"no prompt"),
    ("printf '\\xff' | PYTHONUTF8=1 llada-native generate", 1, b"standard input: expected UTF-8 text"),
    ("printf '\\xff' | LC_ALL=C llada-native generate", 1, b"standard input: expected UTF-8 text"),
    ("llada-native generate $'\\xff'", 1, b"prompt: expected UTF-8 text"),
    ("llada-native score $'\\xff' a", 1, b"prompt: expected UTF-8 text"),
    ("llada-native score a $'\\xff'", 1, b"answer: expected UTF-8 text"),
    ("llada-native infill $'\\xff[MASK]'", 1, b"text: expected UTF-8 text"),
    ("llada-native infill --prompt $'\\xff' '[MASK]'", 1, b"prompt: expected UTF-8 text"),
    ("llada-native chat --system $'\\xff'", 1, b"--system: expected UTF-8 text"),
    ("head -c 3000000 /dev/zero | tr '\\0' 'x' | llada-native generate", 2, b"max_tokens"),
    ("llada-native generate @/no/such", 1, b"No such file"),
    ("llada-native generate ' '", 1, b"no prompt: an argument is empty"),
    ("llada-native batch - - <&-", 1, b"IN: standard input is closed"),
    ("ulimit -v 16000000; echo '\"a\"' | llada-native batch - /dev/full", 1, b"No space left"),  # which can be read without an end
    ("echo '\"a\"' | llada-native batch --preset fast - >(cat)", 0, b""),
    ("(echo '\"a\"'; echo '\"b\"') | llada-native batch --preset fast --batch-size 1 - - | head -1; exit ${PIPESTATUS[1]}", 0, b""),
    ("llada-native completion bash | head -1; exit ${PIPESTATUS[0]}", 0, b""),
    (f"llada-native generate --live '{PROMPT}' 2>&-", 0, b""),
    (f"[ $(llada-native generate --verbose '{PROMPT}' 2>&- | wc -l) = 1 ]", 0, b""),
])
def test_hostile_surroundings(line, code, message):
    run = shell(line)
    assert run.returncode == code and message in run.stderr, run
    assert b"Traceback" not in run.stderr and b"Exception" not in run.stderr and run.stderr.count(b"\n") == (code != 0)


@pytest.mark.parametrize("line", ["llada-native generate --model /no/such a 2>&-", "llada-native generate --model /no/such a 2>/dev/full"])
def test_errors_that_nobody_takes(line):
    """They do not go to stdout instead, and the exit code says what happened."""
    run = shell(line)
    assert (run.returncode, run.stdout, run.stderr) == (1, b"", b"")


def test_a_warning_of_the_log_is_shown():
    run = shell(f"llada-native generate --dtype int8 --cache-dir /dev/null/folder '{PROMPT}'")
    assert (run.returncode, run.stdout) == (0, b"7, 12, 31, 52\n")
    assert run.stderr.startswith(b"llada-native: warning: packed weights are not kept: ") and run.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_texts_that_stdout_has_no_bytes_for(encoding, tmp_path):
    """The work is not lost: JSON stays the same JSON, and other output is legible."""
    environment = {"PYTHONIOENCODING": encoding}
    run = shell("llada-native generate --preset fast --json '漢 é 😀' | cat", env=environment)
    assert (run.stderr, json.loads(run.stdout.decode(encoding))["answers"][0]["prompt"]) == (b"", "漢 é 😀")
    run = shell("""echo '{"id": "漢 é 😀", "prompt": "a"}' | llada-native batch --preset fast - -""", env=environment)
    assert (run.stderr, json.loads(run.stdout.decode(encoding))["id"]) == (b"", "漢 é 😀")
    run = shell("llada-native infill --backend placeholder '漢[MASK]'", env=environment)
    wanted = "漢".encode(encoding, "backslashreplace")
    assert run.stderr == b"" and wanted in run.stdout
    run = shell(f"llada-native convert --dtype int8 {shlex.quote(str(Path(llada_native.__file__).parent / 'demo'))} '{tmp_path}/漢'",
                env=environment)
    assert run.stderr == b"" and wanted in run.stdout


@pytest.mark.parametrize("line", ["llada-native generate --json --preset fast '漢 é'",
                                  "echo '漢 é' | llada-native generate --json --preset fast",
                                  "llada-native score --json --mc-num 1 '漢 é' a", "llada-native score --json --mc-num 1 '漢 é' '漢 é'"])
def test_utf8_in_a_locale_of_ascii(line):
    """Python would decode it so that nobody knows it again."""
    run = shell(line, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert (run.returncode, run.stderr) == (0, b"")
    found = json.loads(run.stdout)
    assert found.get("prompt", found.get("answers", [{}])[0].get("prompt")) == "漢 é"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_obeys_nothing_of_an_answer(monkeypatch, terminal):
    class Stream(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stdout", out := Stream())
    monkeypatch.setattr(sys, "stderr", err := Stream())
    output.answer("a\x1b]0;title\x07\nb\u202e")
    assert out.getvalue() == ("a\\x1b]0;title\\x07\nb\\u202e\n" if terminal else "a\x1b]0;title\x07\nb\u202e\n")
    output.say("two\nlines\x1b[2J")
    assert err.getvalue() == "llada-native: two lines\\x1b[2J\n"


def test_an_answer_outlives_its_record(capsys):
    assert cli.main(["generate", "--trace", "/dev/full", PROMPT]) == 1
    assert capsys.readouterr() == ("7, 12, 31, 52\n", "llada-native: [Errno 28] No space left on device\n")


def test_a_record_without_a_folder_is_refused_before_the_work(capsys):
    assert cli.main(["generate", "--trace", "/no/such/run.npz", PROMPT]) == 1
    assert capsys.readouterr() == ("", "llada-native: --trace: no such folder: /no/such\n")


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["info", "--dtype", "bfloat16"], 2, "--group-size: is for dtype int8 and int4, found bfloat16"),
    (["info"], 2, "--group-size: is for dtype int8 and int4, found"),
    (["info", "--backend", "placeholder"], 0, ""), (["info", "--dtype", "int4"], 0, ""),
    (["serve", "--port", "0"], 2, "--group-size: is for dtype int8 and int4, found"),
    (["convert", "--dtype", "float32", "IN", "OUT"], 2, "--group-size: is for dtype int8 and int4, found float32"),
    (["convert", "IN", "OUT"], 0, "warning: --group-size changes nothing for weights of dtype")])
def test_groups_of_weights_that_have_none(arguments, code, message, tmp_path, capsys):
    paths = {"IN": str(Path(llada_native.__file__).parent / "demo"), "OUT": str(tmp_path / "out")}
    assert cli.main([*(paths.get(word, word) for word in arguments), "--group-size", "32"]) == code
    assert message in (err := capsys.readouterr().err) and err.count("\n") == bool(message)


def test_kernels_that_are_not_there_are_refused_before_a_word(capsys):
    assert cli.main(["bench", "--isa", "nonsense"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "instruction set 'nonsense' is not in this build" in err


def test_memory_that_is_not_there(monkeypatch, capsys):
    def run(_):
        raise MemoryError

    monkeypatch.setattr(cli.info, "run", run)
    assert cli.main(["info"]) == 1 and capsys.readouterr().err == "llada-native: out of memory\n"


def test_quiet_when_piped():
    run = shell(f"llada-native generate '{PROMPT}' | cat")
    assert (run.returncode, run.stdout, run.stderr) == (0, b"7, 12, 31, 52\n", b"")
