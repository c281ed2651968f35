"""How fast scars are painted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from lgekit.bench import ring_study
from lgekit.errors import InputError
from lgekit.findings import Findings, draw_scar
from lgekit.polar import polar_grid
from lgekit.scar_canvas import prepare_canvas
from lgekit.studies import MYOCARDIUM, WALL_CODES


def benchmark_scars(scars: int = 400) -> list[dict[str, Any]]:
    """Scars painted on one core into a stack of 10 slices of 128 x 128, findings and region drawn anew for each.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``.
    """
    study, threads, rng = ring_study(128, 10), torch.get_num_threads(), np.random.default_rng(0)
    labels = study.get_image("labels").data[0].numpy()
    labels[np.isin(labels, WALL_CODES)] = MYOCARDIUM
    canvas, grid = prepare_canvas(study), polar_grid(study)
    torch.set_num_threads(1)
    try:
        rates, together = [], []
        for _ in range(scars):
            findings = canvas.fit(Findings((draw_scar(rng),)))
            start = time.perf_counter()
            try:
                image, _ = canvas.paint(findings, rng)
            except InputError:
                continue
            painted = time.perf_counter()
            grid.view(torch.from_numpy(image)[None])
            rates.append(painted - start)
            together.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return [  # medians: another job on the machine disturbs a mean
        {"name": "scars painted", "value": 1 / float(np.median(rates)), "unit": "1/s", "target": ">= 300"},
        {
            "name": "scar in a polar view, per study",
            "value": 1000 * float(np.median(together)),
            "unit": "ms",
            "target": "<= 10",
        },
    ]
