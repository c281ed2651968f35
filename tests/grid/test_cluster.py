"""The README's recipe for SLURM, by the text of the job script that it sends."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_slurm_recipe_asks_for_one_gpu_and_one_run_a_job():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    (recipe,) = [block for block in blocks if "SLURMCluster(" in block]
    names: dict = {}
    exec(recipe[: recipe.index("cluster.adapt")], names)  # up to here nothing is sent to SLURM
    with names["cluster"] as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH -t 08:00:00",
        "#SBATCH --gres=gpu:1",
    ):
        assert line in script.splitlines(), script
    prologue, worker = script.splitlines()[-2:]
    assert prologue == "export OMP_NUM_THREADS=8"
    assert (
        re.search(r"distributed\.cli\.dask_worker tcp://", worker) and "--resources GPU=1" in worker
    )
    assert re.findall(r"--nthreads (\d+)", worker)[-1] == "1"  # the last one counts
    assert "--nworkers" not in worker
    assert "run_grid(" in recipe and "scheduler=cluster.scheduler_address" in recipe
