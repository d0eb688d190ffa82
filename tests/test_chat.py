"""Conversations: what the model is asked, what is dropped, what is remembered, and how it feels in a terminal."""
import json

import folders
import llada2
import pytest
from terminals import Terminal

from llada_native import LLaDAForCausalLM, cli
from llada_native.cli.arguments import InputError
from llada_native.cli.chat import Shell
from llada_native.cli.conversation import Conversation

QUESTION = "What is 12 plus 30?"


class Asked:
    """A model that says what it was asked, and answers as the demo model does."""

    def __init__(self, model):
        self.model, self.prompts = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def generate(self, messages, **arguments):
        self.prompts.append(messages)
        return self.model.generate(messages, **arguments)


@pytest.fixture
def conversation(demo):
    return Conversation(Asked(demo), {"preset": "fast"})


def test_turns_become_messages(conversation):
    conversation.system = "Be brief."
    assert str(conversation.answer(QUESTION)) == "12 + 30 = 42"
    conversation.answer("What is 17 plus 25?")
    assert conversation.model.prompts[1] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": conversation.turns[0][1]}, {"role": "user", "content": "What is 17 plus 25?"}]
    assert conversation.undo() and len(conversation.turns) == 1
    conversation.reset()
    assert conversation.turns == [] and not conversation.undo() and conversation.system == "Be brief."


def test_the_oldest_turns_go_first(demo):
    """Until prompt and answer fit, counted anew here; the system prompt stays."""
    model = LLaDAForCausalLM(max_tokens=256)
    talk = Conversation(model, {"preset": "fast"}, "Be brief.")
    talk.turns = [(f"question {i} " * 4, f"answer {i}") for i in range(8)]

    def fits(turns, question):
        messages = [{"role": "system", "content": "Be brief."}]
        for asked, answered in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return len(model.tokenizer.encode_chat([*messages, {"role": "user", "content": question}])) + 64 <= 256

    wanted = next(n for n in range(9) if fits(talk.turns[n:], QUESTION))
    assert 0 < wanted < 8
    kept = talk.turns[wanted:]
    assert talk.trim(QUESTION) == wanted and talk.turns == kept
    assert talk.trim(QUESTION) == 0
    talk.answer(QUESTION)  # and so it can be answered
    before = list(talk.turns)
    with pytest.raises(ValueError, match="beside the answer there is room for 192"):
        talk.trim("word " * 300)
    assert talk.turns == before


def test_settings_are_checked_at_once(conversation):
    conversation.set("gen_length", 32)
    assert len(conversation.answer(QUESTION).commit_step[0]) == 32
    for name, value, message in (("gen_length", -1, "gen_length"), ("temprature", 1, "did you mean 'temperature'"), ("seed", -1, "seed"),
                                 ("preset", "fats", "preset"), ("gen_length", 2000, r"fewer than the model's max_tokens \(1024\)"),
                                 ("gen_length", 1024, "found 1024")):
        with pytest.raises((TypeError, ValueError), match=message):
            conversation.set(name, value)
    assert conversation.settings == {"preset": "fast", "gen_length": 32}
    conversation.set("gen_length", None)
    assert conversation.settings == {"preset": "fast"}


def test_saved_and_loaded(conversation, demo, tmp_path):
    conversation.answer(QUESTION)
    conversation.system = "Sei kurz. 简短"
    conversation.save(path := str(tmp_path / "talk.json"))
    other = Conversation(demo)
    other.load(path)
    assert (other.system, other.turns, other.settings) == (conversation.system, conversation.turns, conversation.settings)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"system": 1, "turns": [], "settings": {}}', "[" * 100000,
                                  '{"system": "", "turns": [[1, 2]], "settings": {}}', '{"system": "", "turns": [["a"]], "settings": {}}',
                                  '{"system": "", "turns": [], "settings": {"nonsense": 1}}', '{"system": "", "turns": 1, "settings": {}}',
                                  '{"system": "", "turns": [], "settings": 1}', '{"system": "", "turns": [], "settings": []}',
                                  '{"system": "\\ud800", "turns": [], "settings": {}}',
                                  '{"system": "", "turns": [["a", "\\ud800"]], "settings": {}}'])
def test_files_that_are_none_of_it(conversation, tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    before = (conversation.system, list(conversation.turns), dict(conversation.settings))
    with pytest.raises(InputError, match=r"talk\.json: expected a conversation"):
        conversation.load(str(path))
    assert (conversation.system, conversation.turns, conversation.settings) == before


def test_an_interruption_keeps_what_had_settled(demo):
    talk = Conversation(demo)

    def stop_at(passes):
        def stop(step):
            if step.forward == passes:
                raise KeyboardInterrupt
        return stop

    with pytest.raises(KeyboardInterrupt):
        talk.answer(QUESTION, callback=stop_at(0))
    assert talk.turns == []
    whole = str(demo.generate(QUESTION))
    with pytest.raises(KeyboardInterrupt):
        talk.answer(QUESTION, callback=stop_at(30))
    [(question, answer)] = talk.turns
    assert question == QUESTION and answer and whole.startswith(answer)


def test_an_answer_that_stopped_at_once_is_not_the_one_before(conversation, monkeypatch, capsys):
    """Though the question is."""
    def stop(*_, **__):
        raise KeyboardInterrupt

    conversation.turns = [(QUESTION, "an earlier answer")]
    monkeypatch.setattr(conversation.model, "generate", stop)
    shell = Shell(conversation, live=True, color="never")
    shell.interactive = True
    shell._answer(QUESTION)
    assert capsys.readouterr().out == "(stopped before a word had settled; the question is forgotten)\n"
    assert conversation.turns == [(QUESTION, "an earlier answer")]


def test_keys_are_reused_where_they_can_be(tmp_path, demo):
    folder = folders.write(tmp_path, config := llada2.config(), llada2.tensors(config))
    folders_tokenizer(folder)
    model = LLaDAForCausalLM(folder)
    talk, plain = Conversation(model, {"gen_length": 32}), Conversation(model, {"gen_length": 32, "cache": "none"})
    for question in ("a b c " * 10, "d e", "f"):
        assert str(talk.answer(question)) == str(plain.answer(question))
    assert talk.carry.reused >= 32 and f"reused: {talk.carry.reused} positions" in talk.stats()
    assert talk.carry.held > 0
    talk.reset()
    assert talk.turns == [] and talk.carry.held == 0, "the memory is free"
    assert "none, as cache=none and guidance keep none" in plain.stats()
    assert "none, as every row of this model sees the whole canvas" in Conversation(demo).stats()


def folders_tokenizer(folder):
    """Words of one letter, and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz:")} | {f"w{i}": i for i in range(27, 64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="z"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"chat_template": "{% for m in messages %}{{ m['role'][0] + ' : ' + m['content'] + ' ' }}{% endfor %}a :"}))


def test_a_model_without_a_template_is_refused(tiny, capsys):
    assert cli.main(["chat", "--model", str(tiny[0])]) == 1
    assert "expected a model with a tokenizer and a chat template" in capsys.readouterr().err


# ---- lines of standard input

def piped(monkeypatch, capsys, text, *arguments):
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "utf-8"))
    code = cli.main(["chat", "--preset", "fast", *arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_piped_conversation_is_quiet(monkeypatch, capsys):
    assert piped(monkeypatch, capsys, f"{QUESTION}\n\nSort these numbers: 31, 7, 52, 12.\n/reset\nWhat is 17 plus 25?") == (
        0, f"12 + 30 = 42\n{second(QUESTION)}\n17 + 25 = 42\n", "")


def second(question):
    """What the demo model, which was taught single questions, makes of a second one."""
    model = LLaDAForCausalLM()
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "12 + 30 = 42"},
                {"role": "user", "content": "Sort these numbers: 31, 7, 52, 12."}]
    return str(model.generate(messages, preset="fast"))


@pytest.mark.parametrize(("line", "code", "message"), [
    ("/nonsense", 2, "/nonsense: expected one of /help, /set"), ("/undo", 2, "/undo: there is no turn"),
    ("/load /no/such", 1, "No such file"), ("/save", 2, "/save: expected a file"),
    ("/set temperature -1", 2, "temperature"), ("/seed x", 2, "seed"),
    ("word " * 2000, 2, "room for"), (b"\xff\xfe\n", 1, "UTF-8")])
def test_piped_errors(monkeypatch, capsys, line, code, message):
    found = piped(monkeypatch, capsys, line)
    assert found[0] == code and message in found[2] and found[2].count("\n") == 1


def test_every_command(monkeypatch, capsys, tmp_path):
    path = tmp_path / "talk.json"
    code, out, err = piped(monkeypatch, capsys, f"""/system Be brief.
{QUESTION}
/set gen_length 32
/preset balanced
/seed 3
/set
/set gen_length
/save {path}
/undo
/load {path}
/stats
//help
/help
/quit
never asked
""")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "12 + 30 = 42" and json.loads(lines[1]) == {"preset": "balanced", "gen_length": 32, "seed": 3}
    assert lines[2].startswith("1 turn remembered; 1 whole answer, ")
    assert json.loads(path.read_text())["settings"] == {"preset": "balanced", "seed": 3}
    assert sum(line.startswith("/") for line in lines) == 11 and "never" not in out


def test_what_is_dropped_is_said(monkeypatch, capsys):
    text = "".join(f"{'word ' * 90}{i}\n" for i in range(6))
    code, _, err = piped(monkeypatch, capsys, text)
    assert code == 0 and "(1 of " in err and " turns, the oldest, dropped: " in err and "have to fit into 1024 tokens)" in err


# ---- a real pseudo terminal

def test_in_a_terminal():
    with Terminal("chat", "--preset", "fast") as t:
        t.wait_for("> ")
        t.type(f"{QUESTION}\n")
        t.wait_for("42\r\n> ")
        t.type("/nonsense\n")
        t.wait_for("/nonsense: expected one of")
        t.type("/set temperature 2 2\n")
        t.wait_for("temperature: expected a number")
        t.interrupt()
        t.wait_for("/quit or Ctrl-D ends")
        t.type("/quit\n")
        assert t.finish() == 0
    assert "passes in" in t.text and "Traceback" not in t.text


def test_an_interrupt_stops_the_answer_but_not_the_chat():
    with Terminal("chat", "--backend", "reference", "--gen-length", "512", "--block-length", "512") as t:
        t.wait_for("> ")
        t.type(f"{QUESTION}\n")
        t.wait_for("masks left")
        t.interrupt()
        t.wait_for("(stopped")
        t.type("/set gen_length 32\n/set block_length 32\n/preset fast\n/reset\n")
        mark = len(t.written)
        t.type(f"{QUESTION}\n")
        t.wait_for("= 42\r\n> ", since=mark)
        t.type("\x04")
        assert t.finish() == 0


def test_without_the_live_view_text_is_printed_as_it_settles():
    with Terminal("chat", "--no-live", "--backend", "reference") as t:
        t.wait_for("> ")
        t.type(f"{QUESTION}\n")
        t.wait_for("= 42\r\n> ")
        t.type("\x04")
        assert t.finish() == 0
    assert "masks left" not in t.text and "12 + 30 = 42" in t.text and t.text.count("12 + 30") == 1
