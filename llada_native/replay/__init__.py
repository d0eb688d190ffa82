"""A run as a web page: one file that needs nothing else, neither a network nor this package."""
from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from .. import checks
from ..result import GenerationResult
from ..trace import Trace
from . import record

MOST_RUNS = 2  # side by side
LARGEST_IN_A_NOTEBOOK = 1 << 19  # characters
HEIGHT_IN_A_NOTEBOOK = 720  # pixels

Run = GenerationResult | Trace


def save_html(runs: Run | Sequence[Run], path: str | PathLike[str], *, names: Sequence[str] | None = None,
              requests: Sequence[int] | None = None, drafts: bool = True) -> None:
    """Write a page on which a run can be watched again, or two side by side.

    Parameters
    ----------
    runs : GenerationResult or Trace, or one or two of them
    path : path
        Of the page. It shows tokens as text when the trace has `pieces`, else by their numbers.
    names : sequence of str, optional
        Of the runs, one each; their methods are on the page anyway.
    requests : sequence of int, optional
        Which prompts of each run; default all.
    drafts : bool
        Give what was predicted and not written as well, where `generate(..., drafts=True)` has kept it.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or names what there is not.
    """
    text = page(runs, names=names, requests=requests, drafts=drafts)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def page(runs: Run | Sequence[Run], *, names: Sequence[str] | None = None, requests: Sequence[int] | None = None,
         drafts: bool = True) -> str:
    """The page of `save_html` as text."""
    traces = _traces(runs)
    checks.boolean("drafts", drafts)
    if names is None:
        names = [""] * len(traces)
    if isinstance(names, str) or len(names) != len(traces) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names: expected {len(traces)}, one for each run, found {names!r}")
    return _assembled({"runs": [record.run(trace, name, _requests(requests, trace), drafts)
                                for trace, name in zip(traces, names, strict=True)]})


def in_notebook(result: GenerationResult) -> str:
    """The page in a frame of its own, which may run its script and nothing else; the text alone if it would be too large."""
    whole = page(result)
    if len(whole) > LARGEST_IN_A_NOTEBOOK:
        whole = page(result, requests=[0], drafts=False)
    if len(whole) > LARGEST_IN_A_NOTEBOOK:
        return f"<pre>{html.escape(str(result))}</pre>"
    return (f'<iframe sandbox="allow-scripts" title="replay" width="100%" height="{HEIGHT_IN_A_NOTEBOOK}" style="border: 0" '
            f'srcdoc="{html.escape(whole)}"></iframe>')


def _traces(runs: Any) -> list[Trace]:
    many = [runs] if isinstance(runs, Run) else list(runs) if isinstance(runs, list | tuple) else []
    if not 1 <= len(many) <= MOST_RUNS or not all(isinstance(run, Run) for run in many):
        raise TypeError(f"runs: expected a GenerationResult or a Trace, or a list of 1 to {MOST_RUNS}, found {runs!r}")
    return [run.trace if isinstance(run, GenerationResult) else run for run in many]


def _requests(wanted: Sequence[int] | None, trace: Trace) -> list[int]:
    count = len(trace.canvases)
    if wanted is None:
        return list(range(count))
    found = [checks.whole_number(f"requests[{i}]", request, 0) for i, request in enumerate(wanted)]
    if not found or max(found) >= count:
        raise ValueError(f"requests: expected some of 0 to {count - 1}, found {wanted!r}")
    return found


def _assembled(data: dict[str, Any]) -> str:
    """Script, style and data in one file. The policy names the script and the style by their hashes and allows nothing else."""
    shell, style, *scripts = ((Path(__file__).parent / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "story.js", "js"))
    script = "".join(scripts)
    # In a data block only "<" could end it or begin a comment; escaped it is the same text to JSON.
    told = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    parts = {"policy": policy, "style": style, "script": script, "data": told}
    before, *rest = shell.split("{{")
    return before + "".join(parts[name] + after for name, _, after in (part.partition("}}") for part in rest))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
