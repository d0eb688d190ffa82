"""Pages of the documentation: their blocks, the commands in them, the code within their lines."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
CHINESE = ".zh-CN.md"
TRANSLATIONS = {page: page.replace(CHINESE, ".md") for page in PAGES if page.endswith(CHINESE)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Command:
    """A command as the page has it, without its comment; what it prints, if the page says so."""

    line: str
    output: str | None = None


def text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """Those of some languages, or all."""
    return [block for language, block in FENCE.findall(text(page)) if not languages or language in languages]


def languages(page: str) -> set[str]:
    return {language for language, _ in FENCE.findall(text(page))}


def without_comments(code: str) -> str:
    """No comment here holds a double quotation mark, and no other text a # behind a space."""
    return re.sub(r"(^|[ \t]+)#[^\"\n]*$", "", code, flags=re.M)


def commands(page: str) -> list[Command]:
    """Every one of blocks of a shell, in order. In a console's they follow a $, and what they print follows them."""
    found = []
    for language, block in FENCE.findall(text(page)):
        if language == "sh":
            lines = without_comments(block.replace("\\\n", " ")).splitlines()
            found += [Command(line.strip()) for line in lines if line.strip()]
        elif language == "console":
            for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
                line, _, output = part.partition("\n")
                found.append(Command(line, output))
    return found


def inline(page: str) -> list[str]:
    """Code within lines, and from one to the next."""
    paragraphs = FENCE.sub("", text(page)).split("\n\n")
    return [" ".join(code.split()) for paragraph in paragraphs for code in re.findall(r"`([^`]+)`", paragraph)]


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_target(name: str) -> bool:
    """Whether `make` knows it."""
    return re.search(rf"^{name}:", text("Makefile"), re.M) is not None


def extras() -> set[str]:
    """Of the package."""
    table = text("pyproject.toml").partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = ", table, re.M))
