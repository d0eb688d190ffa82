"""The Python of README and docs runs, and prints what it says."""
import contextlib
import io
import re
from pathlib import Path

import pytest

import llada_native
from llada_native import cli

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "README.zh-CN.md", "docs/tasks.md", "docs/decoding.md", "docs/replay.md", "docs/command_line.md"]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, monkeypatch, tmp_path):
    """Those of a page one after the other, as a reader would; a checkpoint that nobody here has is the demo model."""
    load = llada_native.LLaDAForCausalLM.from_pretrained
    monkeypatch.setattr(llada_native.LLaDAForCausalLM, "from_pretrained",
                        lambda path=None, *rest, **arguments: load(None, *rest, **arguments))
    monkeypatch.chdir(tmp_path)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in blocks(page):
            exec(block, names)
    assert blocks(page)
    if page.startswith("README"):
        assert "7, 12, 31, 52" in printed.getvalue() and "12 + 30 = 42." in printed.getvalue()
    elif page == "docs/replay.md":
        assert {path.name for path in tmp_path.iterdir()} == {"run.html", "both.html", "run.trace", "again.html", "plots.png"}
    elif page == "docs/command_line.md":
        assert printed.getvalue() == "7, 12, 31, 52\n"
    elif page == "docs/decoding.md":
        assert "passes," in printed.getvalue() and "7, 12, 31, 52" in printed.getvalue()
    else:
        assert sorted(printed.getvalue().split("\n"))[1:] == [f"{i} {i} + 25 = {i + 25} stop" for i in range(20, 26)]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", *(f"docs/{name}.md" for name in (
    "selectors", "models", "weights", "gguf", "running", "c_api", "demo_model", "server")), "SECURITY.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_every_option_is_in_both_readmes():
    for page in PAGES[:2]:
        text = (ROOT / page).read_text("utf-8")
        for name in llada_native.GenerationOptions.__dataclass_fields__:
            assert f"`{name}`" in text, (page, name)


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_selftest(capsys, dtype):
    assert cli.main(["selftest", "--dtype", dtype]) == 0
    printed = capsys.readouterr().out
    for section in ("basic generation", "C++ integration", "advanced parameters"):
        assert section in printed
    assert "FAIL" not in printed and "all passed" in printed


def test_selftest_fails_aloud(capsys, monkeypatch):
    """A sampler that ignores its seed, for instance."""
    from llada_native import canvas, generation

    monkeypatch.setattr(generation, "random_streams", lambda seed, requests: canvas.random_streams(None, requests))
    assert cli.main(["selftest"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL sampling: Failed: found another answer for the same seed" in printed and "1 of" in printed
