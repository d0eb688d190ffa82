"""A headless Chromium on a leash: it reaches this machine only, and what it asks for, says and shows is written down.

It is led by the DevTools protocol through a pair of pipes: no driver, no port, no package.

    with Browser() as browser:
        browser.open("file:///page.html")
        browser.click("#play")
        browser.wait("document.querySelector('#done')")
        assert browser.complaints == [] and browser.outside() == []
"""
from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")
PATIENCE = 60  # seconds: machines are shared
HERE = ("file:", "data:", "blob:", "about:", "http://127.0.0.1", "ws://127.0.0.1", "chrome:")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Enter": 13, "Escape": 27, "Tab": 9}
PICTURES = os.environ.get("LLADA_PICTURES")  # a folder: pages leave their pictures there


class Browser:
    """One window.

    Attributes
    ----------
    messages : list of (str, str)
        What the page said: ("error", text) for console.error, exceptions, refused resources and breaches of its security policy, and
        likewise for "warning", "log" and so on.
    requests : list of str
        Addresses that it asked for.
    dialogs : list of str
        Texts of alert, confirm and prompt, which are dismissed.
    """

    def __init__(self, width: int = 1200, height: int = 900) -> None:
        self.messages: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._left, self._number = b"", 0
        (theirs, self._to), (self._from, back) = self._pipe(), self._pipe()
        arguments = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                     "--disable-extensions", "--disable-default-apps", "--no-proxy-server", "--hide-scrollbars", "--mute-audio",
                     "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={self._folder.name}",
                     "--lang=en", "about:blank"]
        assert CHROMIUM is not None
        quiet = os.open(os.devnull, os.O_RDWR)
        # The browser reads commands from descriptor 3 and answers on 4.
        self._process = os.posix_spawn(CHROMIUM, [CHROMIUM, *arguments], os.environ, setpgroup=0, file_actions=[
            *((os.POSIX_SPAWN_DUP2, quiet, d) for d in (0, 1, 2)), (os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, back, 4)])
        for descriptor in (theirs, back, quiet):
            os.close(descriptor)
        target = self.call("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        self._session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True}, None)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    @staticmethod
    def _pipe() -> tuple[int, int]:
        """Ends beyond the numbers that the browser is given, so that neither is overwritten on the way."""
        ends = os.pipe()
        moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
        for end in ends:
            os.close(end)
        return moved[0], moved[1]

    # ---- what a user does

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        self._loaded = False
        failure = self.call("Page.navigate", {"url": address}).get("errorText")
        assert not failure, f"{address}: {failure}"
        deadline = time.monotonic() + PATIENCE
        while not self._loaded:
            self._listen(deadline)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element, which is brought into view."""
        x, y = self.evaluate(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{block: "center"}});
            const box = found.getClientRects()[0];
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        self.click_at(x, y)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1})

    def press(self, key: str) -> None:
        """One of `KEYS`, or a character."""
        event = {"key": key, "windowsVirtualKeyCode": KEYS.get(key) or ord(key.upper()), "code": key if key in KEYS else ""}
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", **event, **text})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", {"text": text})

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})

    def prefer(self, scheme: str) -> None:
        """What the system wants: "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    # ---- what one sees

    def evaluate(self, code: str):
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.call("Runtime.evaluate", {"expression": code, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in found, found["exceptionDetails"]["exception"].get("description", found)
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = PATIENCE):
        """Until an expression is true; gives its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(condition)):
            assert time.monotonic() < deadline, f"{condition}: not within {seconds} s"
            time.sleep(0.02)
        return value

    def picture(self, name: str, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page; also into the folder of `PICTURES`, if one is wanted."""
        data = base64.b64decode(self.call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})["data"])
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            (Path(PICTURES) / f"{name}.png").write_bytes(data)
        return data

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings so far."""
        self.evaluate("0")  # what came before it has arrived
        return [text for kind, text in self.messages if kind in ("error", "warning", "assert")]

    def outside(self) -> list[str]:
        """Addresses asked for that are not on this machine."""
        self.evaluate("0")
        return [address for address in self.requests if not address.startswith(HERE)]

    # ---- the protocol

    def call(self, method: str, parameters: dict | None = None, session: str | None = "") -> dict:
        """One command, and its result; what happens meanwhile is written down."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session or self._session
        self._send(message)
        deadline, number = time.monotonic() + PATIENCE, self._number
        while (answer := self._listen(deadline)).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def _send(self, message: dict) -> None:
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data):]

    def _listen(self, deadline: float) -> dict:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no answer from {CHROMIUM} within {PATIENCE} s"
            data = os.read(self._from, 1 << 20)
            assert data, f"{CHROMIUM} has ended"
            self._left += data
        data, _, self._left = self._left.partition(b"\0")
        message = json.loads(data)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, found: dict) -> None:
        if event == "Runtime.consoleAPICalled":
            self.messages.append((found["type"], " ".join(str(a.get("value", a.get("description"))) for a in found["args"])))
        elif event == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            self.messages.append(("error", details.get("exception", {}).get("description", details["text"])))
        elif event == "Log.entryAdded":
            self.messages.append((found["entry"]["level"], f"{found['entry']['text']} {found['entry'].get('url', '')}"))
        elif event == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requests.append(found["url"])
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(found["message"])
            self._number += 1
            self._send({"id": self._number, "sessionId": self._session, "method": "Page.handleJavaScriptDialog",
                        "params": {"accept": False}})
        elif event == "Page.loadEventFired":
            self._loaded = True

    def close(self) -> None:
        os.close(self._to)
        os.close(self._from)
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        self._folder.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
