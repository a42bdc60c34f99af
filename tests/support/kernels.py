"""Runs several kernels at once, each through its steps, as a Jupyter front end would.

Reads {"cwd", "kernels": [{"name", "steps": [...]}]}; prints "ANSWER [[result, ...], ...]", a result for each step.
A step is {"run": code} (result: {"out", "error", "mime"}), {"interrupt": code, "after": seconds} (the same, of a cell
that is interrupted while it runs), {"restart": true}, {"kill": true} (SIGKILL to the launcher alone; result: its process id
and what is left of it after a while) or {"folders": true} (result: the names in .lab/kernels).
"""

import json
import os
import signal
import sys
import threading
import time

from jupyter_client.manager import KernelManager

LONG = 1200


class Kernel:
    def __init__(self, name, cwd):
        self.cwd = cwd
        self.manager = KernelManager(kernel_name=name)
        self.manager.start_kernel(cwd=cwd)
        self.connect()

    def connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LONG)

    def run(self, code, then=lambda: None):
        message = self.client.execute(code)
        then()
        out, error, mime = "", None, {}
        while True:
            reply = self.client.get_iopub_msg(timeout=LONG)
            if reply["parent_header"].get("msg_id") != message:
                continue
            kind, content = reply["msg_type"], reply["content"]
            if kind == "stream":
                out += content["text"]
            elif kind == "error":
                error = (error or "") + content["evalue"]
            elif kind == "execute_result":
                mime = content["data"]
            elif kind == "status" and content["execution_state"] == "idle":
                return {"out": out, "error": error, "mime": mime}

    def step(self, step):
        if "run" in step:
            return self.run(step["run"])
        if "interrupt" in step:
            later = threading.Timer(step["after"], self.manager.interrupt_kernel)
            return self.run(step["interrupt"], later.start)
        if "restart" in step:
            self.client.stop_channels()
            self.manager.restart_kernel(now=True)
            self.connect()
            return None
        if "kill" in step:
            launcher = self.manager.provisioner.process.pid
            family = descendants(launcher)
            os.kill(launcher, signal.SIGKILL)
            self.manager.provisioner.process.wait()
            end = time.time() + 20
            while time.time() < end and any(map(alive, family)):
                time.sleep(0.1)
            return {"launcher": launcher, "family": len(family), "left": [p for p in family if alive(p)]}
        if "folders" in step:
            return sorted(os.listdir(os.path.join(self.cwd, "..", ".lab", "kernels")))
        raise ValueError(step)

    def end(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()


def status(pid):
    """The fields of a process after its name, or None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None


def alive(pid):
    fields = status(pid)
    return fields is not None and fields[0] != "Z"


def descendants(pid):
    parents = {int(p): int(fields[1]) for p in os.listdir("/proc") if p.isdigit() and (fields := status(p))}
    found, open_ = [], [pid]
    while open_:
        parent = open_.pop()
        children = [child for child, its in parents.items() if its == parent]
        found += children
        open_ += children
    return found


def main():
    order = json.load(sys.stdin)
    results = [None] * len(order["kernels"])
    failures = []

    def play(i, kernel):
        try:
            player = Kernel(kernel["name"], order["cwd"])
            try:
                results[i] = [player.step(step) for step in kernel["steps"]]
            finally:
                player.end()
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=play, args=pair) for pair in enumerate(order["kernels"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    print("ANSWER " + json.dumps(results), flush=True)


main()
