"""What a grid costs beside its runs: start, scheduling and bookkeeping against bare Papermill, and its scaling."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

PARAMETERS = 'seed: int = 0\nout: str = ""'
WORK = "value = sum(number % 7 for number in range(200_000)) + seed"
SAVE = 'from lgekit.runs import save_run\nsave_run(out, {"value": value})'
BARE = """import sys, papermill
folder, name, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
kernel = {"kernel_name": "python3", "language": "python", "progress_bar": False}
for seed in range(runs):
    parameters = {"seed": seed, "out": f"{folder}/{name}/{seed}"}
    papermill.execute_notebook(f"{folder}/trivial.ipynb", f"{folder}/{name}-{seed}.ipynb", parameters, **kernel)"""
GRID = """import sys; from lgekit.grid import run_grid
assert (run_grid(sys.argv[1] + "/" + sys.argv[2], workers=int(sys.argv[3]), progress=False).state == "done").all()"""


def benchmark_grid(runs: int = 20) -> list[dict[str, object]]:
    """Time trivial runs through bare Papermill and as a grid on one and two workers, each in a process of its own.

    Returns:
        Rows ``name, value, unit, target``: the overhead (grid on one worker over bare Papermill, target at most 1.1)
        and the scaling (half of the time on one worker over that on two, target at least 0.85); two idle cores needed.
        Beside it what two processes of bare Papermill, which know nothing of one another, gain on the same machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, WORK, SAVE)]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), Path(folder) / "trivial.ipynb")
        for name in "one", "two":
            text = f"notebook: trivial.ipynb\nrows: {{full: {{}}}}\nseeds: {list(range(runs))}\n"
            (Path(folder) / f"{name}.yaml").write_text(text)
        bare = _seconds(BARE, [[folder, "bare", str(runs)]])
        halves = _seconds(BARE, [[folder, name, str(runs // 2)] for name in ("left", "right")])
        one = _seconds(GRID, [[folder, "one.yaml", "1"]])
        two = _seconds(GRID, [[folder, "two.yaml", "2"]])
    return [
        {"name": f"grid: {runs} trivial runs over bare Papermill", "value": one / bare, "unit": "×", "target": "≤ 1.1"},
        {"name": "grid: scaling to two workers", "value": one / two / 2, "unit": "×", "target": "≥ 0.85"},
        {"name": "bare Papermill: scaling to two processes", "value": bare / halves / 2, "unit": "×", "target": ""},
        {"name": f"grid: {runs} trivial runs on two workers", "value": two, "unit": "s", "target": ""},
    ]


def _seconds(code: str, each: list[list[str]]) -> float:
    """Until the last of some processes with these arguments, started together, has ended."""
    started = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", code, *one], stderr=subprocess.DEVNULL) for one in each]
    if any([process.wait() for process in running]):
        raise RuntimeError(f"a benchmarked process failed: {code}")
    return time.perf_counter() - started
