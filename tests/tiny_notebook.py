"""A notebook that is small enough for tests of runs and grids."""

from pathlib import Path

import nbformat

PARAMETERS = """seed: int = 0  # random seed
width: float = 1.0  # a number
mode: str = "ok"  # what the notebook does: ok, raise, exit, sleep, forget
shift: bool = False  # adds ten
fold: int = -1  # held-out fold
folds: int = 5  # number of folds
cohort: str = ""  # a SPEC
out: str = ""  # folder of the results"""

WORK = """import os, random, time
if mode == "raise" and not os.path.exists("mended"): raise ValueError(f"no luck with seed {seed}")
if mode == "exit": os._exit(9)
if mode == "sleep": time.sleep(60)
value = random.Random(f"{seed} {width} {shift} {fold}").random() + 10 * shift"""

SAVE = """if mode != "forget":
    from lgekit.workbook import save_run
    rows = [{"study_id": f"{i:03}", "scar": i % 2, "p_lge": value + i} for i in range(3)]
    save_run(out, {"auc": value, "seed_seen": seed, "nan": float("nan")}, predictions=rows)"""

KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}


def write_notebook(
    path: Path, work: str = WORK, save: str = SAVE, parameters: str = PARAMETERS
) -> Path:
    """Write the notebook to ``path``."""
    cells = [nbformat.v4.new_markdown_cell("# Tiny")]
    if parameters:
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(work), nbformat.v4.new_code_cell(save)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), path)
    return path
