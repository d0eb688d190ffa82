"""`llada-native selftest`: does this installation work on this machine?"""
from __future__ import annotations

import argparse
import json
from typing import Any

from . import arguments, output
from .arguments import EXIT_FAILURE, EXIT_OK


def add(commands: Any) -> None:
    parser = arguments.add_command(commands, "selftest", run, "check this installation: exit code 0 when all is well",
                                   "llada-native selftest", "llada-native selftest --dtype int4 --json")
    arguments.add_model(parser)
    arguments.add_json(parser)


def run(a: argparse.Namespace) -> int:
    from .. import selftest

    seen: list[dict[str, Any]] = []

    def report(section: str, name: str, good: bool, text: str, seconds: float) -> None:
        if not a.json:
            if not seen or seen[-1]["section"] != section:
                print(section)
            output.answer(f"  {'ok  ' if good else 'FAIL'} {name}: {text} ({seconds:.2f} s)")
        seen.append({"section": section, "name": name, "passed": good, "seen": text, "seconds": round(seconds, 3)})

    with arguments.open_model(a) as model:
        passed = selftest.run(model, a.model is None and a.backend != "placeholder", report)
    failures = sum(not check["passed"] for check in seen)
    print(json.dumps({"passed": passed, "checks": seen}) if a.json else
          f"{len(seen)} checks, all passed" if passed else f"{failures} of {len(seen)} checks failed")
    return EXIT_OK if passed else EXIT_FAILURE
