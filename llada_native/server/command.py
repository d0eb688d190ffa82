"""`llada-native serve`: a model on a port, until it is told to end."""
from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import math
import os
import re
import signal
import socket
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks
from ..errors import MissingPackageError
from ..model import LLaDAForCausalLM
from ..scheduler import Scheduler
from .settings import LOCAL_HOSTS, Settings, host_name

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger("llada_native")

KEY_VARIABLE = "LLADA_API_KEY"
ORIGIN = re.compile(r"https?://[^/?#\s]+")  # as browsers state it
SPARE_FILES = 64  # descriptors beside connections
BACKLOG = 2048  # connections that nobody has looked at yet
SECONDS = 0.001, 1e6  # the least and the most that an operator may allow
FAREWELL = 5  # seconds to tell late requests that the server ends


def run(a: argparse.Namespace) -> int:
    from ..cli import output  # which is there once the command line is
    from ..cli.arguments import open_model

    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingPackageError(f"serve needs the package {package}: pip install 'llada-native[server]'")
    settings, listener = _settings(a), _listener(a.host, a.port)
    _allow_files(settings.connections + SPARE_FILES)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    with listener, open_model(a) as model:
        model.options(**settings.defaults)  # a preset is of some models
        scheduler = Scheduler(model, a.max_requests, max_waiting=a.max_waiting)
        if not _local(a.host) and settings.api_key is None:
            logger.warning("listening on %s without a key: whoever reaches this machine may ask", a.host)
        listener.listen(BACKLOG)  # who reads the address can connect
        output.answer(f"llada-native: {settings.name} on http://{_shown(listener)}")
        serve(model, scheduler, settings, listener)
    return 0


def serve(model: LLaDAForCausalLM, scheduler: Scheduler, settings: Settings, listener: socket.socket) -> None:
    """Answer on a bound socket until SIGINT or SIGTERM; the scheduler is closed afterwards."""
    server = make_server(model, scheduler, settings)
    # uvicorn raises the signal that ended it again, when it is done. It was an order, and it has been carried out.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        scheduler.close()


def make_server(model: LLaDAForCausalLM, scheduler: Scheduler, settings: Settings) -> uvicorn.Server:
    """uvicorn with this server's application, clocks and limits."""
    import uvicorn

    from .app import create_app
    from .connections import Crowd, TimedConnection

    class Server(uvicorn.Server):
        """Tells the scheduler first that it ends, so that late requests get an answer that says so."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            closing = asyncio.create_task(asyncio.to_thread(scheduler.close, settings.grace))
            await super().shutdown(sockets)
            await closing

    protocol: Any = partial(TimedConnection, Crowd(settings))
    return Server(uvicorn.Config(
        create_app(model, scheduler, settings), http=protocol, ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, backlog=BACKLOG, timeout_keep_alive=max(1, round(settings.idle_seconds)),
        h11_max_incomplete_event_size=settings.head_bytes, timeout_graceful_shutdown=math.ceil(settings.grace) + FAREWELL))


def _settings(a: argparse.Namespace) -> Settings:
    checks.whole_number("--port", a.port, 0, 65535)
    checks.whole_number("--max-requests", a.max_requests, 1, 1024)
    checks.whole_number("--max-waiting", a.max_waiting, 1, 1 << 16)
    checks.within("--deadline", a.deadline, *SECONDS)
    checks.within("--grace", a.grace, *SECONDS)
    for name in a.allow_host:
        if not name or host_name(name) != name.lower():
            raise ValueError(f"--allow-host: expected a name without a port, an IPv6 address in brackets, found {name!r}")
    for origin in a.cors_origin:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError(f"--cors-origin: expected one like https://app.example.org, or *, found {origin!r}")
    hosts = frozenset(name.lower() for name in a.allow_host)
    if _local(a.host):
        hosts |= LOCAL_HOSTS | {f"[{a.host}]" if ":" in a.host else a.host.lower()}
    name = a.model_name or ("demo" if a.model is None else Path(a.model).resolve().name)
    return Settings(name, _key(a.api_key_file), hosts, tuple(a.cors_origin), {} if a.preset is None else {"preset": a.preset},
                    deadline=a.deadline, grace=a.grace)


def _key(path: str | None) -> str | None:
    """Of a file or the environment: an argument would show it to everyone on this machine."""
    if path is None:
        name, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
    else:
        name, key = path, Path(path).read_bytes().decode("ascii", "replace").strip()
    if key is not None and (not key.isascii() or not key.isprintable() or not key or " " in key):
        raise ValueError(f"{name}: expected a key of visible ASCII characters, found {len(key)} other or none")
    return key


def _listener(host: str, port: int) -> socket.socket:
    """A bound socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if os.name == "posix":  # elsewhere it would let a second server take the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from error
    return listener


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _allow_files(wanted: int) -> None:
    """Let this process open as many files as it has connections, as far as it may."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
