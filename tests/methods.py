"""Methods of decoding as options, and the loop of loops.py that describes each."""
import loops

from llada_native.editors import Remask, TokenEdit, Wino
from llada_native.selectors import Credit, Klass, Threshold
from llada_native.windows import Grow, LookAhead, SuffixWindow

CASES = {
    "credit": ({"selector": Credit(0.6, alpha=1.5)}, loops.credit, (0.6, 0.8, 0.2, 1.5)),
    "credit, slow": ({"selector": Credit(0.8, 0.5, 0.7, 3.0)}, loops.credit, (0.8, 0.5, 0.7, 3.0)),
    "klass": ({"selector": Klass(0.4, 0.05)}, loops.klass, (0.4, 0.05, 2)),
    "klass, short": ({"selector": Klass(0.3, 0.1, 1)}, loops.klass, (0.3, 0.1, 1)),
    "suffix window": ({"selector": Threshold(0.5), "canvas": SuffixWindow(9)}, loops.suffix_window, (0.5, 9, 4.0, 2.0, 0)),
    "suffix window, wide": ({"selector": Threshold(0.3), "canvas": SuffixWindow(64, 1.0, 1.5, 3)}, loops.suffix_window,
                            (0.3, 64, 1.0, 1.5, 3)),
    "look ahead": ({"selector": Threshold(0.6), "canvas": LookAhead()}, loops.look_ahead, (0.6, 2, 0.1)),
    "look ahead, far": ({"selector": Threshold(0.4), "canvas": LookAhead(3, 0.5)}, loops.look_ahead, (0.4, 3, 0.5)),
    "token edit": ({"selector": Threshold(0.4), "editor": TokenEdit(0.5)}, loops.token_edit, (0.4, 0.5, 16)),
    "token edit, brief": ({"selector": Threshold(0.3), "editor": TokenEdit(0.0, 3)}, loops.token_edit, (0.3, 0.0, 3)),
    "remask": ({"editor": Remask(0.75, 2)}, loops.remask, (24, 0.75, 2)),
    "remask, fewer steps": ({"editor": Remask(0.5, 1), "max_steps": 12}, loops.remask, (12, 0.5, 1)),
    "remask, more steps": ({"editor": Remask(0.5, 3), "max_steps": 36}, loops.remask, (36, 0.5, 3)),
    "wino": ({"editor": Wino(0.3, 0.4)}, loops.wino, (0.3, 0.4)),
    "wino, strict": ({"editor": Wino(0.2, 0.9)}, loops.wino, (0.2, 0.9)),
}
PARTS = [options for options, _, _ in CASES.values()] + [
    {"canvas": Grow(start=6, step=3, most=24, check=4, enough=0.2, sure=0.5, doubt=0.5), "selector": Threshold(0.5), "eos_id": 3}]


def lengths(options):
    return options if "canvas" in options and options["canvas"].grows else {"gen_length": 24, **options}
