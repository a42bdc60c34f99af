"""Opens a notebook in JupyterLab in a headless Chromium, runs it with the toolbar's button and moves a figure's slider.

Reads {"browser", "address", "notebook", "cells", "screenshot"} from standard input; prints {"errors", "figures", "plot",
"before", "after", "outside"}. Speaks the browser's own protocol (DevTools) over a web socket.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import websocket

PATIENCE = 600


class Page:
    def __init__(self, address):
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.count = 0
        self.requests = []

    def call(self, method, **parameters):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def js(self, code):
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{code}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, code, what):
        end = time.time() + PATIENCE
        while time.time() < end:
            value = self.js(code)
            if value:
                return value
            time.sleep(0.2)
        raise TimeoutError(f"waited in vain for {what}; the page says: {self.js('document.body.innerText')[:2000]}")

    def middle(self, element):
        box = self.js(f"(() => {{ const b = ({element}).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        return {"x": box[0], "y": box[1]}

    def mouse(self, kind, x, y):
        pressed = {"button": "left", "clickCount": 1, "buttons": 1 if kind != "mouseReleased" else 0}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def click(self, x, y):
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)


def start(browser, folder):
    process = subprocess.Popen(
        [
            browser,
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "--window-size=1500,1100",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            # Chromium's sandbox refuses root, which is who runs tests in a container.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    port = os.path.join(folder, "DevToolsActivePort")
    end = time.time() + 120
    while not (os.path.exists(port) and open(port).read().strip()):
        if process.poll() is not None or time.time() > end:
            raise RuntimeError("the browser did not start")
        time.sleep(0.1)
    number = open(port).read().split()[0]
    pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list"))
    return process, next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")


NOTEBOOK = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)')"
# The figure that has a slider, as Plotly keeps it.
FIGURE = "[...document.querySelectorAll('.js-plotly-plot')].find(d => d._fullLayout?.sliders?.length)"
STATE = f"""(() => {{
    const figure = {FIGURE};
    return {{
        active: figure._fullLayout.sliders[0].active,
        values: JSON.stringify(figure._fullData.filter(t => t.z).map(t => t.z)),
    }};
}})()"""


def run(page, order):
    page.call("Network.enable")
    page.call("Page.enable")
    address = urllib.parse.urlsplit(order["address"])
    path = "/lab/tree/" + urllib.parse.quote(order["notebook"])
    page.call("Page.navigate", url=urllib.parse.urlunsplit(address._replace(path=path)))
    run_button = f"{NOTEBOOK}?.querySelector('[data-command=\"notebook:run-cell-and-select-next\"]')"
    page.until(f"!!({run_button})", "the notebook's toolbar")
    # Asked of the server: before there is a kernel, the page calls it idle.
    page.until(
        "fetch('/api/kernels').then(r => r.json())"
        ".then(all => all.some(kernel => kernel.connections > 0 && kernel.execution_state === 'idle'))",
        "the kernel",
    )
    page.click(**page.middle(f"{NOTEBOOK}.querySelector('.jp-Cell')"))
    for cell in range(order["cells"]):
        page.until(f"{NOTEBOOK}.querySelector('.jp-Cell.jp-mod-active')?.dataset.windowedListIndex == {cell}", f"cell {cell}")
        page.click(**page.middle(run_button))
    # Cells run in their order: the last one has its number when all have run.
    prompts = f"[...{NOTEBOOK}.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]"
    page.until(f"/\\d/.test({prompts}.at(-1)?.textContent)", "the cells")
    # Only what is near the window is in the page: look through all of it.
    area = f"({NOTEBOOK}.querySelector('.jp-WindowedPanel-outer') ?? {NOTEBOOK}.querySelector('.jp-Notebook'))"
    seen, errors = set(), []
    height = page.js(f"{area}.scrollHeight")
    for top in range(0, int(height) + 1, 300):
        page.js(f"{area}.scrollTop = {top}")
        time.sleep(0.4)
        for title in page.js(
            "[...document.querySelectorAll('.js-plotly-plot')].filter(d => d.querySelector('.main-svg'))"
            ".map(d => d._fullLayout.annotations.map(a => a.text).join('|'))"
        ):
            seen.add(title)
        errors += page.js(f"[...{NOTEBOOK}.querySelectorAll('[data-mime-type*=\"stderr\"]')].map(e => e.innerText)")
    # Back to the figure with the slider.
    for top in range(int(height), -1, -300):
        page.js(f"{area}.scrollTop = {top}")
        time.sleep(0.4)
        if page.js(f"!!({FIGURE})"):
            break
    page.until(f"!!({FIGURE})", "a figure with a slider")
    page.js(f"({FIGURE}).scrollIntoView({{block: 'center'}})")
    time.sleep(1)
    plot = page.js(f"(() => {{ const b = ({FIGURE}).getBoundingClientRect(); return {{width: b.width, height: b.height}}; }})()")
    before = page.js(STATE)
    rail = page.js(
        f"(() => {{ const r = ({FIGURE}).querySelector('.slider-rail-touch-rect').getBoundingClientRect();"
        " return {left: r.left, right: r.right, y: r.top + r.height / 2}; })()"
    )
    page.click(rail["left"] + 3, rail["y"])
    page.until(f"({STATE}).active !== {json.dumps(before['active'])}", "the slider")
    time.sleep(1)
    after = page.js(STATE)
    picture = page.call("Page.captureScreenshot", format="png")["data"]
    with open(order["screenshot"], "wb") as file:
        file.write(base64.b64decode(picture))
    own = f"{address.scheme}://{address.netloc}/"
    outside = [url for url in page.requests if not url.startswith((own, "data:", "blob:", "about:", "ws://127.0.0.1"))]
    return {
        "errors": sorted(set(errors)),
        "figures": len(seen),
        "plot": plot,
        "before": before,
        "after": after,
        "outside": sorted(set(outside)),
    }


def main():
    order = json.load(sys.stdin)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process, address = start(order["browser"], folder)
        try:
            print(json.dumps(run(Page(address), order)))
        finally:
            process.terminate()
            process.wait()


main()
