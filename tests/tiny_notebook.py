"""A notebook small enough for tests of runs and grids: it imports nothing heavy."""

from pathlib import Path

import nbformat

PARAMETERS = """seed: int = 0  # random seed
width: float = 1.0  # a number
mode: str = "ok"  # what the notebook does: ok, raise, exit, sleep, fill, forget
shift: bool = False  # adds ten
fold: int = -1  # fold held out
folds: int = 5  # number of folds
cohort: str = ""  # a SPEC
out: str = ""  # where results go"""

WORK = """import os, random, time
if mode == "raise" and not os.path.exists("mended"): raise ValueError(f"no luck with seed {seed}")
if mode == "exit": open(os.path.join(out, "metrics.json"), "w").write("{}"); os._exit(9)
if mode == "sleep": time.sleep(60)
if mode == "fill": open(os.path.join(out, "big.bin"), "wb").write(os.urandom(4_000_000))
value = random.Random(f"{seed} {width} {shift} {fold}").random() + 10 * shift"""

SAVE = """if mode != "forget":
    from lgekit.runs import save_run
    rows = "".join(f"P{i},{i % 2},{value + i:.6g}\\n" for i in range(3))
    class Table:  # what save_run needs of a DataFrame, without the half second of importing pandas
        def to_csv(self, **_): return "study_id,scar,p_lge\\n" + rows
    save_run(out, {"auc": value, "seed_seen": seed, "nan": float("nan")}, predictions=Table())"""


def write_notebook(
    path: Path, work: str = WORK, save: str = SAVE, parameters: str = PARAMETERS
) -> Path:
    """Write the notebook to ``path``."""
    cells = [nbformat.v4.new_markdown_cell("# Tiny")]
    if parameters:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(work), nbformat.v4.new_code_cell(save)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path
