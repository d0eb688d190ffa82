"""What an operator may choose."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::\d*)?")
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class Settings:
    """Limits and permissions of a server.

    Attributes
    ----------
    name : str
        Of the model, as clients have to call it.
    api_key : str or None
        What clients have to show; None: nothing.
    hosts : set of str
        Names in Host headers, without ports; empty for any. Those of this machine keep other sites' pages from rebinding their name to it.
    origins : sequence of str
        Other origins whose pages may ask (CORS).
    defaults : dict
        Options of generation for requests that state none.
    deadline : float
        Seconds that a request may take, waiting included. A request may ask for less.
    grace : float
        Seconds that running requests get when the server is told to end.
    head_bytes, body_bytes, bodies_bytes : int
        Of one request's head and body, and of all bodies that are being read.
    body_seconds, head_seconds, idle_seconds, stall_seconds : float
        For a request's body, for its head, between two requests of a connection, and for a reader who does not read.
    connections : int
        Beyond them, the connection that has waited longest without a whole request is closed.
    prompts, choices, messages, stops, stop_length : int
        Prompts of a request, answers to each, messages of a chat, stop strings, and characters of one.
    replays, replayed_predictions : int
        Requests that are kept for their replay, and what passes predicted that is kept of all of them, 12 bytes each.
    """

    name: str = "llada"
    api_key: str | None = None
    hosts: frozenset[str] = LOCAL_HOSTS
    origins: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    deadline: float = 300.0
    grace: float = 10.0
    head_bytes: int = 1 << 14
    body_bytes: int = 1 << 20
    bodies_bytes: int = 1 << 26
    body_seconds: float = 10.0
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    stall_seconds: float = 30.0
    connections: int = 4096
    prompts: int = 16
    choices: int = 8
    messages: int = 256
    stops: int = 4
    stop_length: int = 256
    replays: int = 16
    replayed_predictions: int = 1 << 24


def host_name(host: str) -> str:
    """A Host header without its port; empty where it is none."""
    found = HOST.fullmatch(host.lower())
    return found[1] if found else ""
