"""What README and docs say is so: links, options, attributes, names of commands and files, figures that are another page's."""
import argparse
import dataclasses
import re
from pathlib import Path

import pages
import pytest
from pages import PAGES, ROOT, TRANSLATIONS

from llada_native import GenerationOptions, GenerationResult, cli

PARAMETERS = ["docs/parameters.md", "docs/parameters.zh-CN.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", pages.FENCE.sub("", pages.text(page))):
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in pages.anchors(str(there.resolve().relative_to(ROOT.resolve()))), target


def test_every_page_is_in_the_index():
    index = pages.text("docs/README.md")
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"]({Path(page).name})" in index, page
    for path in (ROOT / "examples").iterdir():
        assert f"](../examples/{path.name})" in index, path


@pytest.mark.parametrize("page", PARAMETERS)
def test_every_option_and_attribute_is_documented(page):
    first, _, rest = pages.text(page).partition("\n## ")
    for name in GenerationOptions.__dataclass_fields__:
        assert f"`{name}`" in first, name
    attributes = {field.name for field in dataclasses.fields(GenerationResult)} | {
        name for name, value in vars(GenerationResult).items() if isinstance(value, property)}
    for name in attributes:
        assert f"`{name}`" in rest, name


def test_every_command_is_documented():
    page = pages.text("docs/command_line.md")
    for command in cli.COMMANDS:
        assert f"\n| `{command.__name__.rpartition('.')[2]}` | " in page


def test_every_environment_variable_is_documented():
    sources = [path.read_text("utf-8") for folder, kind in (("llada_native", "*.py"), ("src_cpp", "*.cpp")) for path in
               (ROOT / folder).rglob(kind)]
    names = {name for text in sources for name in re.findall(r"\"(LLADA_[A-Z_]+|NO_COLOR)\"", text)}
    assert len(names) >= 4
    for name in names:
        assert f"`{name}`" in pages.text("docs/running.md"), name


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_translations_say_the_same(page):
    """The same code but for comments, the same names in tables, the same pictures, the same links to pages of code."""
    other = TRANSLATIONS[page]
    for kind in ("sh", "console", "python", "c"):
        one, two = ([pages.without_comments(block) for block in pages.blocks(each, kind)] for each in (page, other))
        assert one == two
    names = [[re.findall(r"`[^`]+`", row) for row in re.findall(r"^\| (.*?) \|", pages.text(each), re.M)] for each in (page, other)]
    assert names[0] == names[1] and any(names[0])
    links = [[target for target in re.findall(r"\]\(([^)\s]+)\)", pages.text(each)) if ".md" not in target or "#" in target]
             for each in (page, other)]
    assert sorted(links[0]) == sorted(links[1])


def test_contributors_install_what_the_tests_need():
    project = pages.text("pyproject.toml")
    tables = [project.partition(f"\n{name} = [")[2].partition("]\n")[0] for name in ("requires", "dependencies", "test", "lint")]
    needed = {name.replace("_", "-") for table in tables for name in re.findall(r'"([A-Za-z][\w-]*)', table)} - {"llada-native"}
    [given] = [command.line.split() for command in pages.commands("CONTRIBUTING.md") if command.line.startswith("pip install")]
    assert len(needed) > 15 and needed <= {re.match(r'"?([\w-]*)', word)[1].replace("_", "-") for word in given}


def test_the_table_of_the_demo_model_is_the_same_everywhere():
    rows = [re.findall(r"^\|.*( 0\.\d{3} \| 0\.\d{3} .*)$", pages.text(page), re.M)[0] for page in ("README.md", "README.zh-CN.md")]
    assert rows[0] == rows[1]


def test_figures_of_performance_are_those_of_other_pages():
    """Every number of a row stands in the page that the row names."""
    rows = re.findall(r"^\| (.*) \| \[[^\]]*\]\((\w+\.md)#[\w-]+\) \|$", pages.text("docs/performance.md"), re.M)
    assert len(rows) > 10
    for row, page in rows:
        what, *figures = row.split(" | ")
        there = set(re.findall(r"[\d.]+\d|\d", pages.text(f"docs/{page}")))
        numbers = re.findall(r"\d+\.\d+|\d+", " ".join(figures).replace("10^9", ""))
        assert numbers and set(numbers) <= there, (what, numbers)


# ---- code within lines

def options_of(parser):
    return {option for action in parser._actions for option in action.option_strings}


[SUBPARSERS] = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
OPTIONS = {name: options_of(parser) for name, parser in SUBPARSERS.choices.items()}


@pytest.mark.parametrize("page", PAGES)
def test_code_within_lines_names_what_there_is(page):
    for code in pages.inline(page):
        words = code.split()
        given = [word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word)]
        if words[0] == "llada-native" and len(words) > 1 and words[1] != "COMMAND":
            assert words[1] in OPTIONS, code
            assert set(given) <= OPTIONS[words[1]], code
        elif words[0] == "python" and words[1].endswith(".py"):
            source = (ROOT / words[1]).read_text("utf-8")
            assert all(f'"{option}"' in source for option in given), code
        elif words[0] == "make" and len(words) > 1:
            assert pages.is_target(words[1]), code
        elif code.startswith("pip install '.["):
            assert set(code.partition("[")[2].partition("]")[0].split(",")) <= pages.extras(), code


# ---- the command that checks an installation

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
