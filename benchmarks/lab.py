"""A live page of JupyterLab in Chromium: its cells are run, and a picture is taken.

Nothing leaves the machine.  Needs ``jupyterlab`` and ``ipykernel`` (with them comes tornado), and a ``chromium``.
"""
import asyncio
import base64
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
BROWSER = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
           "--disable-background-networking", "--remote-debugging-port=0",
           "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"]
SECONDS = 120  # before a page is given up
READY = ("!!window.jupyterapp && Array.from(jupyterapp.shell.widgets('main'))"
         ".some(page => page.sessionContext?.session?.kernel?.status === 'idle')")


def look(folder, source, theme, script, picture):
    """What a script gives in the live page of a notebook of these cells, once it gives anything; and a picture.

    The picture, a path of a PNG file, is of the notebook's cells.  ``folder``: an empty directory for all files.
    """
    folder = Path(folder)
    cells = [{"cell_type": "code", "id": str(n), "metadata": {}, "outputs": [], "execution_count": None,
              "source": cell} for n, cell in enumerate(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "page.ipynb").write_text(json.dumps(
        {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": THEMES[theme]}))
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    token = secrets.token_hex()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                   "IPYTHONDIR": str(folder / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
                   "JUPYTER_DATA_DIR": str(folder / "data"), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0",
              f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
              f"--ServerApp.root_dir={folder}"]
    browser = [*BROWSER, f"--user-data-dir={folder / 'profile'}"]
    with started(server, folder, environment, r"(http://localhost:\d+/)") as address, \
            started(browser, folder, environment, r"DevTools listening on ws://([\d.:]+)/") as control:
        page = in_page(control, f"{address}doc/tree/page.ipynb?token={token}", script, picture)
        return asyncio.run(asyncio.wait_for(page, SECONDS))


@contextmanager
def started(command, folder, environment, sign):
    """A process of its own group, and what it says of its address on standard error."""
    told = folder / f"{Path(command[0]).name}.log"
    with open(told, "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=log, start_new_session=True)
    try:
        end = time.monotonic() + SECONDS
        while not (found := re.search(sign, told.read_text())):
            assert process.poll() is None and time.monotonic() < end, told.read_text()
            time.sleep(0.1)
        yield found[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


async def in_page(control, address, script, picture):
    """Open a page, run the notebook's cells, and ask the script until it gives something."""
    from tornado.websocket import websocket_connect

    with urllib.request.urlopen(f"http://{control}/json/list") as answer:
        target = next(one for one in json.load(answer) if one["type"] == "page")
    connection = await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=1 << 28)
    try:
        return await ask(connection, address, script, picture)
    finally:
        connection.close()
        while await connection.read_message() is not None:
            pass


async def ask(connection, address, script, picture):
    """The same over a connection to the page."""
    async def call(method, **parameters):
        call.count += 1
        await connection.write_message(json.dumps({"id": call.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(await connection.read_message())
            if answer.get("id") == call.count:
                return answer["result"]

    async def evaluate(expression):
        found = await call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    call.count = 0
    await call("Emulation.setDeviceMetricsOverride", width=840, height=900, deviceScaleFactor=1, mobile=False)
    await call("Page.navigate", url=address)
    while not await evaluate(READY):
        await asyncio.sleep(0.2)
    await evaluate("{ jupyterapp.commands.execute('notebook:run-all-cells') }")
    while not (found := await evaluate(script)):
        await asyncio.sleep(0.2)
    if picture:
        box = await evaluate("(() => { const cells = document.querySelectorAll('.jp-Notebook .jp-Cell');"
                             "const [first, last] = [cells[0], cells[cells.length - 1]]"
                             ".map(c => c.getBoundingClientRect());"
                             "return {x: first.x, y: first.y, width: first.width, height: last.bottom - first.y, "
                             "scale: 1}})()")
        shot = await call("Page.captureScreenshot", clip=box)
        Path(picture).write_bytes(base64.b64decode(shot["data"]))
    return found
