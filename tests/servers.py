"""Servers on the loopback interface, each on a thread of its own, and raw connections to them."""
from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

from llada_native.scheduler import Scheduler
from llada_native.server.command import make_server
from llada_native.server.settings import Settings

NAME = "demo"
PATIENCE = 900  # seconds: a machine that is shared may stand still for minutes


class Running:
    """A server that answers."""

    def __init__(self, model, settings, scheduler, send_buffer=None):
        self.scheduler, self.settings = scheduler, settings
        self.listener = socket.create_server(("127.0.0.1", 0))
        if send_buffer:  # connections inherit it
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._server = make_server(model, scheduler, settings)
        self._thread = threading.Thread(target=self._server.run, args=([self.listener],))

    def __enter__(self):
        self._thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.scheduler.close()

    @property
    def connections(self):
        return len(self._server.server_state.connections)

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Status, headers (lower case) and body of one request over a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.settimeout(timeout)
            connection.sendall(raw(method, path, body, headers))
            return answer(connection)


def raw(method, path, body=None, headers=None):
    """A request as bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = {"Host": "127.0.0.1", "Connection": "close", "Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}
    return "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in lines.items()), "\r\n"]).encode() + data


def answer(connection):
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def running(model, *, max_requests=16, max_waiting=64, send_buffer=None, **settings):
    """A server of a model; settings as `Settings` has them."""
    return Running(model, Settings(NAME, **settings), Scheduler(model, max_requests, max_waiting=max_waiting), send_buffer)
