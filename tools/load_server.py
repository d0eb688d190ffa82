"""Load for a server of the demo model: one client, many, and many beside connections that never ask anything.

    python tools/load_server.py --clients 64 --seconds 60 --idle 1000

It starts `llada-native serve` itself, compares every answer with the one that the same request gets alone, and prints a table: requests and
tokens per second, the median and the 99th percentile of a request's time, refusals, wrong answers, and the server's resident memory.
"""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np

from llada_native import LLaDAForCausalLM

PROMPTS = ("Sort these numbers: 31, 7, 52, 12.", "What is 17 plus 25?", "Sort these numbers: 9, 4, 88.", "What is 63 minus 14?")
OPTIONS = ({}, {"temperature": 0.8, "seed": 3}, {"preset": "balanced"}, {"preset": "fast"})
HALF = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Filler: " + b"x" * 4000
DRIP = 1.0  # seconds between two bytes of a slow connection


class Load:
    """What clients have seen."""

    def __init__(self, port: int, expected: dict[str, str], bodies: list[bytes]) -> None:
        self.port, self.expected, self.bodies = port, expected, bodies
        self.seconds: list[float] = []
        self.tokens = self.refused = self.wrong = self.failed = 0

    async def client(self, number: int, until: float) -> None:
        """One request after the other over one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        i = number
        while time.monotonic() < until:
            body = self.bodies[i % len(self.bodies)]
            i += 1
            began = time.monotonic()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d"
                         b"\r\n\r\n%s" % (len(body), body))
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            answer = await reader.readexactly(int(fields["content-length"]))
            status = int(head.split()[1])
            if status == 200:
                said = json.loads(answer)
                self.seconds.append(time.monotonic() - began)
                self.tokens += said["usage"]["completion_tokens"]
                self.wrong += said["choices"][0]["message"]["content"] != self.expected[body.decode()]
            elif status == 429:
                self.refused += 1
                await asyncio.sleep(min(1.0, float(fields["retry-after"])))
            else:
                self.failed += 1
        writer.close()

    async def slow(self, number: int) -> None:
        """A request's head, byte by byte, or nothing; again when the server has lost its patience."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    for byte in HALF:
                        if number % 2:
                            writer.write(bytes([byte]))
                        with contextlib.suppress(asyncio.TimeoutError):
                            await asyncio.wait_for(reader.read(1), DRIP)
                            break  # closed
                finally:
                    writer.close()

    async def run(self, clients: int, idle: int, seconds: float) -> None:
        crowd = [asyncio.ensure_future(self.slow(i)) for i in range(idle)]
        await asyncio.sleep(2 if idle else 0)
        until = time.monotonic() + seconds
        await asyncio.gather(*(self.client(i, until) for i in range(clients)))
        for each in crowd:
            each.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)


def resident(pid: int) -> float:
    """MiB; of Linux only."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the run with all clients; others take a fourth")
    parser.add_argument("--idle", type=int, default=1000, help="slow and silent connections")
    parser.add_argument("--healthy", type=int, default=8, help="clients beside them")
    parser.add_argument("--max-requests", type=int, default=16)
    a = parser.parse_args()
    expected, bodies = {}, []
    with LLaDAForCausalLM.from_pretrained() as model:
        for prompt, options in product(PROMPTS, OPTIONS):
            body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": prompt}], **options})
            expected[body] = model.generate(prompt, **{"seed": 0, **options}).text[0]
            bodies.append(body.encode())
    server = subprocess.Popen([sys.executable, "-m", "llada_native", "serve", "--port", "0", "--max-requests", str(a.max_requests)],
                              stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        print(f"{'clients':>8}{'idle':>6}{'req/s':>8}{'tok/s':>8}{'p50 ms':>8}{'p99 ms':>8}{'429':>6}{'failed':>8}{'wrong':>7}{'MiB':>8}")
        for clients, idle, seconds in ((1, 0, a.seconds / 4), (a.clients, 0, a.seconds / 4), (a.clients, 0, a.seconds),
                                       (a.healthy, 0, a.seconds / 4), (a.healthy, a.idle, a.seconds / 4)):
            load = Load(port, expected, bodies)
            began = time.monotonic()
            asyncio.run(load.run(clients, idle, seconds))
            taken = time.monotonic() - began - (2 if idle else 0)
            if not load.seconds:
                raise SystemExit(f"{clients} clients got no answer: {load.refused} refused, {load.failed} failed")
            middle, late = np.percentile(load.seconds, [50, 99]) * 1000
            print(f"{clients:8}{idle:6}{len(load.seconds) / taken:8.1f}{load.tokens / taken:8.0f}{middle:8.0f}{late:8.0f}{load.refused:6}"
                  f"{load.failed:8}{load.wrong:7}{resident(server.pid):8.1f}", flush=True)
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
