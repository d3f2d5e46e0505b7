"""A headless Chromium without a network, driven through a pipe by its DevTools protocol; nothing to install for it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from programs import Program

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 120.0  # seconds until an answer that does not come is an error
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--proxy-server=127.0.0.1:9",  # nobody listens there
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


class Browser:
    """One page. ``problems`` collects what its console says and what it tried to load beside itself."""

    def __init__(self, profile: Path, size: Tuple[int, int] = (1400, 900), flags: Sequence[str] = ()) -> None:
        assert CHROMIUM is not None
        self.problems: List[str] = []
        self._count = 0
        self._rest = b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        words = [CHROMIUM, *_FLAGS, *flags, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        # The browser reads commands from its descriptor 3 and answers on 4; a shell puts ours there.
        line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = Program(["bash", "-c", line, "bash", *words, "about:blank"], pass_fds=(theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        targets = self.send("Target.getTargets", session=None)["targetInfos"]
        page = next(one for one in targets if one["type"] == "page")
        attached = self.send("Target.attachToTarget", session=None, targetId=page["targetId"], flatten=True)
        self._session: Optional[str] = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.send("Network.emulateNetworkConditions", **offline)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, session: Optional[str] = "ours", **params: Any) -> Dict[str, Any]:
        self._count += 1
        message: Dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> Dict[str, Any]:
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready = select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, f"the browser has ended or does not answer{self._process.said()}"
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: Dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"])[:600])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            if "GPU stall due to ReadPixels" not in params["entry"]["text"]:  # by the pictures taken here
                self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
            ("file:", "data:", "blob:")
        ):
            self.problems.append(f"asked for {params['request']['url'][:200]}")

    def open(self, page: Path) -> None:
        """Opens a file and waits until the viewer says that its first frame is there."""
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === '1'")
        self.settle()

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not self.run(condition):
            assert time.monotonic() < until, f"never came true: {condition}; {self.problems}"
            time.sleep(0.05)

    def settle(self) -> None:
        """Waits until what was asked for is drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def key(self, key: str, code: str = "", shift: bool = False) -> None:
        text = {"text": key} if len(key) == 1 else {}
        common = {"key": key, "code": code or key, "modifiers": 8 if shift else 0}
        if key == "Tab":
            common["windowsVirtualKeyCode"] = 9
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)
        self.settle()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def picture(self, selector: str = "") -> np.ndarray:
        """(H, W, 3) uint8 RGB of what is seen: the window, or the part of it that an element fills."""
        if selector:
            self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
            self.settle()
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        if selector:
            left, top, right, bottom = self.box(selector)
            image = image[round(top) : round(bottom), round(left) : round(right)]
        return image[..., ::-1]

    def box(self, selector: str) -> Tuple[float, float, float, float]:
        """Left, top, right and bottom of an element in the window."""
        box = self.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        return box["left"], box["top"], box["right"], box["bottom"]
