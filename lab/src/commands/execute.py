"""Runs a notebook from top to bottom on a fresh kernel, and cleans what it printed.

Reads {"notebook", "kernel" (null: the notebook's own), "save", "root", "cell_seconds"} from standard input; writes a JSON
line for every event to standard output: {"cell", "of"} before a cell, {"error", "cell"} at the end of one that failed, and
{"seconds": [[cell, seconds], ...], "figures": n} at the end of a notebook that ran.

A committed notebook is the same wherever it was run: no execution times, no path of the machine, none of the lines by
which a training reports its speed.
"""

import json
import os
import re
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FIGURE = "application/vnd.plotly.v1+json"


def say(event):
    print(json.dumps(event), flush=True)


def clean(notebook, root):
    """Takes what differs from run to run out of the outputs."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                lines = output.text.replace(root, ".").splitlines(keepends=True)
                output.text = "".join(line for line in lines if " steps/s" not in line)
                if not output.text:
                    continue
                # The same stream in pieces, as the kernel happened to send it, is one text.
                if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                    kept[-1].text += output.text
                    continue
            kept.append(output)
        if "outputs" in cell:
            cell.outputs = kept


def save(notebook, path):
    """Replaces the file by a whole one."""
    handle, new = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".ipynb.new")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(new, 0o644)
    os.replace(new, path)


def main():
    order = json.load(sys.stdin)
    path = order["notebook"]
    notebook = nbformat.read(path, as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for i in code:
        notebook.cells[i].outputs = []
        notebook.cells[i].execution_count = None
    seconds, begun, panicked = [], {}, []

    def begin(cell, cell_index):
        begun[cell_index] = time.perf_counter()
        say({"cell": code.index(cell_index) + 1, "of": len(code)})

    def end(cell, cell_index, execute_reply):
        seconds.append([code.index(cell_index) + 1, time.perf_counter() - begun[cell_index]])

    client = NotebookClient(
        notebook,
        kernel_name=order["kernel"] or notebook.metadata.kernelspec.name,
        timeout=order["cell_seconds"],
        # A kernel whose crate has changed compiles it first.
        startup_timeout=order["cell_seconds"],
        record_timing=False,
        on_cell_start=lambda cell, cell_index: begin(cell, cell_index) if cell_index in code else None,
        on_cell_executed=end,
        resources={"metadata": {"path": os.path.dirname(path)}},
    )
    # The specification stays that of the file, whichever kernel ran it.
    specification = dict(notebook.metadata)
    try:
        client.execute()
        # evcxr reports a cell that panicked as one that printed something.
        for number, i in enumerate(code, 1):
            for output in notebook.cells[i].outputs:
                if output.output_type == "stream" and " panicked at " in output.text:
                    panicked.append(number)
                    raise CellExecutionError(output.text, "panic", output.text)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        outputs = [output for i in code for output in notebook.cells[i].outputs]
        told = ["\n".join(output.traceback) for output in outputs if output.output_type == "error"]
        say({"error": re.sub(r"\x1b\[[\d;]*m", "", "\n".join([str(error), *told])), "cell": (panicked or [len(seconds) + 1])[0]})
        return
    notebook.metadata.clear()
    notebook.metadata.update(specification)
    clean(notebook, order["root"])
    figures = sum(FIGURE in output.get("data", {}) for i in code for output in notebook.cells[i].outputs)
    if order["save"]:
        save(notebook, path)
    say({"seconds": seconds, "figures": figures})


main()
