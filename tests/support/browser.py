"""A headless Chromium, driven over its DevTools protocol: the requests, messages, measures and picture of a page."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-headless-shell", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, _NAMES)), None)
_ANSWERS_WITHIN_S = 60.0
_COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Network.loadingFailed")


@dataclass(frozen=True)
class Seen:
    """A page as it was shown: the URLs it requested, its console messages and errors, and the value of the expression."""

    requests: list[str]
    complaints: list[dict[str, Any]]
    value: Any


@contextmanager
def chromium(folder: Path) -> Iterator[str]:
    """Run a browser without a window; yield the address of its DevTools on loopback."""
    words = [str(PROGRAM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:  # the command may be a script that starts the browser
        try:
            assert process.stderr is not None
            address = next(
                (m[1] for line in process.stderr if (m := re.search(r"DevTools listening on ws://([^/]+)/", line))),
                None,
            )
            assert address, f"{PROGRAM} ended before it listened"
            yield f"http://{address}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


Act = tuple[str, str]
"""An act of a person: `("click", selector)`, `("key", name)`, `("type", text)` or `("print", "")`."""
_KEYS = {
    "Enter": ("\r", 13),
    "Escape": ("", 27),
    "Tab": ("\t", 9),
    "ArrowRight": ("", 39),
    "ArrowLeft": ("", 37),
    "End": ("", 35),
}
_MIDDLE = """(() => {
    const shown = document.querySelector(%s);
    shown.scrollIntoView({block: 'center'});
    const box = shown.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
})()"""
Call = Callable[..., Awaitable[dict[str, Any]]]


async def _act(call: Call, kind: str, what: str) -> None:
    if kind == "click":
        answer = await call("Runtime.evaluate", expression=_MIDDLE % json.dumps(what), returnByValue=True)
        x, y = answer["result"]["value"]
        for event in ("mousePressed", "mouseReleased"):
            await call("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", clickCount=1)
    elif kind == "key":
        text, code = _KEYS[what]
        given = {"key": what, "code": what, "windowsVirtualKeyCode": code}
        await call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **given)
        await call("Input.dispatchKeyEvent", type="keyUp", **given)
    elif kind == "type":
        await call("Input.insertText", text=what)
    else:
        await call("Emulation.setEmulatedMedia", media="print")


def look(
    devtools: str,
    page: Path,
    *,
    width: int,
    dark: bool,
    expression: str,
    picture: Path,
    acts: Sequence[Act] = (),
    scripts: bool = True,
    whole: bool = True,
) -> Seen:
    """Show a file in a tab of its own, do the acts, evaluate a JavaScript expression in it, and take a picture.

    Args:
        scripts: whether the page may run scripts; the expression is evaluated all the same.
        whole: take the picture of the whole page, not of what the window shows.
    """
    words = {
        "width": width,
        "dark": dark,
        "expression": expression,
        "picture": picture,
        "acts": acts,
        "scripts": scripts,
    }
    return asyncio.run(_look(devtools, page, **words, whole=whole))


async def _look(
    devtools: str,
    page: Path,
    *,
    width: int,
    dark: bool,
    expression: str,
    picture: Path,
    acts: Sequence[Act],
    scripts: bool,
    whole: bool,
) -> Seen:
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{devtools}/json/new?about:blank") as answer,
        session.ws_connect((await answer.json())["webSocketDebuggerUrl"], max_msg_size=0) as tab,
    ):
        numbers, events = count(1), []

        async def call(method: str, until: str | None = None, **given: Any) -> dict[str, Any]:
            number, result = next(numbers), None
            await tab.send_json({"id": number, "method": method, "params": given})
            while result is None or until:
                message = json.loads(await asyncio.wait_for(tab.receive_str(), _ANSWERS_WITHIN_S))
                if message.get("id") == number:
                    assert "error" not in message, message
                    result = message["result"]
                elif "method" in message:
                    events.append(message)
                    until = None if message["method"] == until else until
            return result

        for domain in ("Page", "Network", "Runtime", "Log"):
            await call(f"{domain}.enable")
        await call(
            "Emulation.setDeviceMetricsOverride", width=width, height=812, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await call("Emulation.setEmulatedMedia", features=[scheme])
        await call("Emulation.setScriptExecutionDisabled", value=not scripts)
        await call("Page.navigate", until="Page.loadEventFired", url=page.as_uri())
        for act in acts:
            await _act(call, *act)
        found = await call("Runtime.evaluate", expression=expression, returnByValue=True)
        shot = await call("Page.captureScreenshot", captureBeyondViewport=whole)
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(shot["data"]))
        await call("Page.close")
        requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return Seen(requests, [e for e in events if e["method"] in _COMPLAINTS], found["result"]["value"])
