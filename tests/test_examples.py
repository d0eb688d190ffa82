"""The examples are run as a reader would run them, on the demo model, in a folder of their own, and print what they should.

Those of the C interface, generate.c and generate_ctypes.py, are run by test_c_api.py.
"""
import ast
import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import folders
import pytest

import llada_native
from llada_native.model import DEMO

EXAMPLES = Path(__file__).parent.parent / "examples"
ELSEWHERE = {"generate.c", "generate_ctypes.py"}
STORY = "Once upon a time, a fox lived near a river. One day the fox found a coin in the river. The fox was very happy."

PRINTED = {
    "numpy_pipeline.py": ["logits (2, 38, 512) float32", "answer '17 + 25 = 42' as the loop", "answer '7, 12, 31, 52' as the loop",
                          "likeliest 17 + 25 = 42 float64 (3,)"],
    "batch.py": ["What is 17 plus 25? -> 17 + 25 = 42 (stop, 10 tokens)",
                 "Sort these numbers: 31, 7, 52, 12. -> 7, 12, 31, 52 (stop, 13 tokens)",
                 "Reverse these words: red cat sun. -> sun cat red (stop, 5 tokens)",
                 f"Write a short story about a fox. -> {STORY.replace('coin', 'friend')} (stop, 37 tokens)", "alone the same: True"],
    "infill.py": ["17 + 25 = 42", "12 + 30 = 42", *(STORY.replace("coin", thing) for thing in ("lamp", "map", "coin")), "12 + 30 = 42",
                  "12 + 30 = 42. written: 2 tokens, the least sure with 1.000"],
    "guidance.py": [STORY.replace("fox", "dog"), "rows with guidance: 2 times those without"],
}


def started(name, folder, *arguments):
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    return subprocess.run([sys.executable, EXAMPLES / name, *map(str, arguments)], cwd=folder, env={**os.environ, "PYTHONPATH": path},
                          capture_output=True, text=True)


def run(name, folder, *arguments):
    done = started(name, folder, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_every_example_has_a_test():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*PRINTED, *ELSEWHERE, "tour.ipynb"}


@pytest.mark.parametrize("name", PRINTED)
def test_programs(name, tmp_path):
    printed = run(name, tmp_path)
    left = iter(printed)
    for line in PRINTED[name]:  # in this order, others between them
        assert line in left, (line, printed)
    if name == "guidance.py":
        chances = [float(line.rpartition(" ")[2]) for line in printed if line.startswith("scale")]
        assert chances == sorted(chances) and len(chances) == 4 and chances[-1] > chances[0] + 0.5
    assert not list(tmp_path.iterdir())


def test_programs_take_a_folder(tmp_path):
    assert run("infill.py", tmp_path, DEMO)[0] == "17 + 25 = 42"
    model = folders.write(tmp_path / "model", folders.config(), folders.tensors(folders.config()))
    done = started("batch.py", tmp_path, model)
    assert done.returncode == 1 and "tokenizer" in done.stderr.splitlines()[-1]  # a folder without one, by name


@pytest.fixture(scope="module")
def notebook():
    return json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))


def test_the_notebook_holds_no_outputs(notebook):
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    """Cell by cell; what ends a cell is shown, as Jupyter shows it."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names, shown, printed = {}, [], io.StringIO()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, "cell", "exec"), names)
                value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            if value is not None:
                shown.append(value)
    page, lines = shown[0], printed.getvalue().splitlines()
    assert isinstance(page, llada_native.GenerationResult) and "<iframe" in page._repr_html_() and str(page) == STORY
    assert lines[:2] == ["17 + 25 = 42", "7, 12, 31, 52"] and "15 'sun cat red' 0 masks left" in lines
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("reference", "balanced", "fast"))}
    assert rows["reference"][-3:] == ["the", "same", "text"]
    assert float(rows["fast"][3]) < float(rows["balanced"][3]) < float(rows["reference"][3])
    assert "12 + 30 = 42" in lines and shown[-1] == 0
    assert shown[1][0][0] == "1" and shown[1][0][1] > 0.9
    assert len(names["axes"]) == 3
    names["model"].close()
