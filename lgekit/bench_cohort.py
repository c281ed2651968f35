"""What the built-in cohort costs: time and memory of the paper's number of phantom studies, first and second call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

RENDER = """import json, resource, sys, time
from joblib.externals.loky import get_reusable_executor
from lgekit.phantom import phantom_cohort
studies, seconds = int(sys.argv[1]), []
for _ in range(2):
    started = time.perf_counter()
    cohort = phantom_cohort(studies, seed=0, pixels=128, slices=10)
    seconds.append(time.perf_counter() - started)
assert len(cohort) == studies
get_reusable_executor().shutdown(wait=True)  # only processes that have ended are counted
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
cpu = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": max(own.ru_maxrss, workers.ru_maxrss)}))"""


def benchmark_phantom(studies: int = 965) -> list[dict[str, object]]:
    """Render phantom studies of 128 x 128 x 10 into an empty cache and read them back, in a process of its own.

    Returns:
        Rows ``name, value, unit, target``. The memory is that of the largest process, its libraries included.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LGEKIT_CACHE": folder}
        command = [sys.executable, "-c", RENDER, str(studies)]
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    first, second = told["seconds"]
    name = f"phantom: {studies} studies of 128 x 128 x 10"
    return [
        {"name": name, "value": first, "unit": "s", "target": "≤ 60 on two idle cores"},
        {"name": f"{name}, CPU time with imports", "value": told["cpu"], "unit": "s", "target": ""},
        {"name": f"{name}, from the cache", "value": second, "unit": "s", "target": "≤ 2"},
        {"name": f"{name}, memory", "value": told["peak"] / 1e6, "unit": "GB", "target": "≤ 1"},
    ]
