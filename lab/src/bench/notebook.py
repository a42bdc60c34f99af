"""Runs a notebook's cells in a real kernel and times what a user waits: from sending a cell to the kernel's being idle.

Reads {"kernel", "cwd", "timeout", "cells": [[name, code], ...]} from standard input; writes
{"start": seconds, "cells": [{"name", "seconds", "error", "mime"}, ...]} to standard output.
"""

import json
import sys
import time

from jupyter_client.manager import KernelManager


def wait(client, code, timeout):
    start = time.perf_counter()
    message = client.execute(code)
    error, mime = None, []
    while True:
        reply = client.get_iopub_msg(timeout=timeout)
        if reply["parent_header"].get("msg_id") != message:
            continue
        kind, content = reply["msg_type"], reply["content"]
        if kind == "error":
            error = error or content["evalue"]
        elif kind == "execute_result":
            mime = sorted(content["data"])
        elif kind == "status" and content["execution_state"] == "idle":
            return {"seconds": time.perf_counter() - start, "error": error, "mime": mime}


def main():
    order = json.load(sys.stdin)
    manager = KernelManager(kernel_name=order["kernel"])
    start = time.perf_counter()
    manager.start_kernel(cwd=order["cwd"])
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=order["timeout"])
        ready = time.perf_counter() - start
        cells = [{"name": name, **wait(client, code, order["timeout"])} for name, code in order["cells"]]
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    print("\n" + json.dumps({"start": ready, "cells": cells}), flush=True)


main()
