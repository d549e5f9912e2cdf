"""A headless Chromium, driven over its DevTools protocol through two pipes.

The standard library is enough for what these tests ask, so the test extra needs neither a driver nor a browser of its
own: where no chromium is installed the tests are skipped. Keys, clicks and texts are real input events.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE_S = 60.0  # a busy machine may stop a browser for long; nothing waits so long by itself
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}
SHIFT = 8


class Browser:
    """One process."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Away from 3 and 4, where chromium looks for its ends.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        switches = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--no-proxy-server"]
        switches += [
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            f"--user-data-dir={self._profile.name}",
        ]
        if os.getuid() == 0:
            switches.append("--no-sandbox")  # chromium refuses to sandbox for root
        self._pid = os.posix_spawn(
            PROGRAM,
            [PROGRAM, *switches],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs[0], 3),
                (os.POSIX_SPAWN_DUP2, theirs[1], 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for end in (theirs_in, theirs_out, *theirs):
            os.close(end)
        self._in, self._out = ours_in, ours_out
        self._buffer = b""
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of one command. Events that come meanwhile are kept in `events`."""
        command: dict[str, Any] = {"id": next(self._ids), "method": method, "params": params}
        if session is not None:
            command["sessionId"] = session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            message = self._receive()
            if message.get("id") == command["id"]:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def wait(self, method: str, **params: Any) -> dict[str, Any]:
        """The next event of this kind that has these parameters."""
        while True:
            for place, event in enumerate(self.events):
                if event["method"] == method and params.items() <= event["params"].items():
                    return self.events.pop(place)["params"]
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser says nothing"
            piece = os.read(self._in, 1 << 16)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self.send("Browser.close")
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()


class Page:
    """One tab."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self._target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # as if its window were in front

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self._session, **params)

    def emulate(self, *, scheme: str, width: int, height: int) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        self.until("document.querySelector('#log')?.children.length > 0")  # drawn: the scripts have run

    def reload(self) -> None:
        self.js("window.old = true")
        self.send("Page.reload")
        self.until(
            "!window.old && document.readyState === 'complete' && document.querySelector('#log')?.children.length > 0"
        )

    def js(self, expression: str) -> Any:
        """Its value; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Returns in the first frame in which `condition` holds; navigations in between are survived."""
        deadline = time.monotonic() + PATIENCE_S
        watch = f"""new Promise((done) => {{
            const began = performance.now();
            const look = () => {{
              if ({condition}) done(true);
              else if (performance.now() - began > 2000) done(false);
              else setTimeout(look, 15);
            }};
            look();
        }})"""
        while time.monotonic() < deadline:
            try:
                if self.js(watch):
                    return
            except AssertionError as error:
                if not any(
                    words in str(error) for words in ("navigat", "context was destroyed", "Cannot find context")
                ):
                    raise
        raise AssertionError(f"never true: {condition}\n{self.text('body')}")

    def text(self, selector: str) -> str:
        """What a reader sees of the first match."""
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def count(self, selector: str) -> int:
        return self.js(f"document.querySelectorAll({json.dumps(selector)}).length")

    def click(self, selector: str) -> None:
        """The middle of the first match, which must be what lies there."""
        self.until(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
        x, y = self.js(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{ block: "nearest", behavior: "instant" }});
            const box = found.getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            return found.contains(document.elementFromPoint(x, y)) ? [x, y] : [null, null];
        }})()""")
        assert x is not None, f"something covers {selector}"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.send("Input.insertText", text=text)

    def fill(self, selector: str, text: str) -> None:
        self.click(selector)
        self.js("document.activeElement.select?.()")
        self.type(text)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": SHIFT if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def download(self, selector: str, folder: Path) -> Path:
        """Click, and wait for the file that comes of it."""
        self.browser.send(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            eventsEnabled=True,
        )
        self.click(selector)
        name = self.browser.wait("Browser.downloadWillBegin")["suggestedFilename"]
        self.browser.wait("Browser.downloadProgress", state="completed")
        return folder / name

    def clipboard(self) -> str:
        self.browser.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        return self.js("navigator.clipboard.readText()")

    def names(self) -> list[tuple[str, str]]:
        """Role and name of everything that can be operated, as assistive technology hears it, in order."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "combobox", "checkbox", "spinbutton", "link"}
        found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
        return [(role, name) for role, name in found if role in roles]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _own(self, *methods: str) -> list[dict[str, Any]]:
        self.js("0")  # what is under way arrives before this answer
        events = self.browser.events
        return [e["params"] for e in events if e.get("sessionId") == self._session and e["method"] in methods]

    def complaints(self) -> list[str]:
        """What the console says: errors, warnings, and violations of the content security policy."""
        lines = [e["entry"] for e in self._own("Log.entryAdded") if e["entry"]["level"] in ("error", "warning")]
        return [
            *(str(e) for e in self._own("Runtime.exceptionThrown")),
            *(str(e["args"]) for e in self._own("Runtime.consoleAPICalled")),
            # Not the icon that a browser looks for by itself where a document names none, as the one between two tests.
            *(line["text"] for line in lines if not line.get("url", "").endswith("/favicon.ico")),
        ]

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self._target)

    def requests(self) -> list[dict[str, Any]]:
        """All that left the page so far: `url`, `method`, `headers`, `postData`."""
        return [event["request"] for event in self._own("Network.requestWillBeSent")]
