"""A command under a pseudo terminal, and what a person sees there, as pyte has it."""
from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pyte

ELSEWHERE = Path(__file__).parent  # not the root, whose sources would hide the installed package


class Terminal:
    """`python -m llada_native` with these arguments; a context manager.

    `screen` is a pyte screen, `frames` its lines after everything that arrived at once, `written` all bytes.
    """

    def __init__(self, *arguments, columns=80, lines=24, **environment):
        self.screen, self.frames, self.written = pyte.Screen(columns, lines), [], b""
        self._stream, self._decoder = pyte.Stream(self.screen), codecs.getincrementaldecoder("utf-8")("replace")
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.chdir(ELSEWHERE)
            kept = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
            os.execvpe(sys.executable, [sys.executable, "-m", "llada_native", *arguments],
                       {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment})
        self.resize(columns, lines)

    def resize(self, columns, lines):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def read(self, seconds=0.05):
        """Take what arrives within so long; False at the end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # Linux says so when the other side is gone
            data = b""
        self.written += data
        self._stream.feed(self._decoder.decode(data))
        self.frames.append(self.text)
        return bool(data)

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait_for(self, what, seconds=100, since=0):
        """Until the bytes from `since` on hold a text."""
        end = time.monotonic() + seconds
        while what not in self.written[since:].decode("utf-8", "replace"):
            assert time.monotonic() < end and self.read(), f"no {what!r} in {self.written.decode('utf-8', 'replace')!r}"

    def type(self, text):
        os.write(self.fd, text.encode())

    def interrupt(self):
        os.write(self.fd, b"\x03")

    def finish(self):
        """Read to the end; returns the exit code."""
        end = time.monotonic() + 120
        while self.read(1):
            assert time.monotonic() < end, f"still running: {self.text!r}"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)
