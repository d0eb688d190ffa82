"""`llada-native serve`: a model on a port, until it is told to end."""
from __future__ import annotations

from typing import Any

from ..method import BLOCK_CAUSAL_PRESETS, PRESETS
from ..server.command import KEY_VARIABLE, run
from . import arguments


def add(commands: Any) -> None:
    parser = arguments.add_command(
        commands, "serve", run, "answer on a port: OpenAI's interface and a web page",
        "llada-native serve",
        "llada-native serve --model path/to/LLaDA-8B-Instruct --dtype int4 --preset fast --port 8080",
        f"{KEY_VARIABLE}=secret llada-native serve --host 0.0.0.0 --allow-host llada.example.org",
        more="Then, for instance:\n"
             '  curl -s http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\\n'
             '    -d \'{"model": "demo", "messages": [{"role": "user", "content": "What is 17 plus 25?"}]}\'\n\n'
             "Ctrl-C or SIGTERM ends it, with exit code 0: running requests get --grace seconds.\n")
    arguments.add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0 takes a free one")
    parser.add_argument("--model-name", metavar="NAME", help="what clients call the model (default: its folder's name, or demo)")
    parser.add_argument("--preset", choices=list(PRESETS | BLOCK_CAUSAL_PRESETS), help="for requests that name none (default: reference)")
    parser.add_argument("--max-requests", type=int, default=16, metavar="N", help="answers in one forward pass (default: 16)")
    parser.add_argument("--max-waiting", type=int, default=64, metavar="N", help="requests in the queue; more are refused (default: 64)")
    parser.add_argument("--deadline", type=float, default=300.0, metavar="S", help="seconds that a request may take (default: 300)")
    parser.add_argument("--grace", type=float, default=10.0, metavar="S", help="seconds for running requests at the end (default: 10)")
    parser.add_argument("--api-key-file", metavar="FILE", help=f"clients must show this key (default: that of {KEY_VARIABLE}, or none)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a name that clients may call this server by; may be repeated (default on this machine: localhost)")
    parser.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN",
                        help="an origin whose pages may ask; may be repeated")
