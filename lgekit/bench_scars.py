"""How fast scars are painted: alone, for training, and under the scar painter."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import torch

from lgekit.bench import ring_study, seconds
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


def benchmark_training(studies: int = 60, epochs: int = 6) -> list[dict[str, Any]]:
    """What synthetic scars cost beside the training with them, at laptop size: they are painted once, into a pool.

    Args:
        studies: of the phantom that is trained on.
        epochs: timed; those of the laptop size take in proportion.

    Returns:
        Seconds to paint the pool and make its views, over seconds of training, in %; and an epoch whose scars are
        painted anew (``synthetic_pool=0``), by one process beside that of the training, over one from the pool.
    """
    from lgekit.detection import batch_of
    from lgekit.fresh_scars import FreshScars
    from lgekit.pairs import Pairs
    from lgekit.phantom import phantom_cohort
    from lgekit.settings import size_settings
    from lgekit.stages import make_view, paint_pool
    from lgekit.supervision import report_texts
    from lgekit.training import fit

    settings = size_settings("laptop")
    cohort = phantom_cohort(studies, seed=0)
    wanted = round(settings.synthetic_per_real * studies * settings.synthetic_pool)
    paint_pool(phantom_cohort(8, seed=1), 4, settings)  # other studies: loads code and tables, keeps nothing of these
    start = time.perf_counter()
    painted = paint_pool(cohort, wanted, settings)
    painting = time.perf_counter() - start
    pool = Pairs(batch_of([one.view for one in painted]), [report_texts(one.report) for one in painted])
    views = [make_view(study, settings) for study in cohort.studies]
    own = Pairs(batch_of(views), [report_texts(study["report"]) for study in cohort.studies])
    brief, anew = settings.override(epochs=epochs), FreshScars(cohort, settings, painters=1)
    epoch, fresh = (
        # the first epoch builds what others reuse
        float(fit(own, brief, synthetic=pool, fresh=painter, progress=False).history["seconds"].iloc[1:].median())
        for painter in (None, anew)
    )
    row = {"name": "painting synthetic scars / training with them", "value": 100 * painting / (epoch * settings.epochs)}
    other = {"name": "epoch with scars painted anew / from the pool", "value": fresh / epoch}
    return [row | {"unit": "%", "target": "< 10"}, other | {"unit": "×", "target": ""}]


def benchmark_painter() -> list[dict[str, Any]]:
    """The scar painter of notebook 03 on a phantom study: from a changed control to new picture and report."""
    from lgekit.phantom import phantom_study
    from lgekit.widgets import scar_painter

    painter = scar_painter(phantom_study(0, seed=0, prevalence=0.0))
    depths = itertools.cycle(("mid-wall", "transmural", "subepicardial", "subendocardial"))

    def change() -> None:
        painter.controls["depth"].value = next(depths)

    return [{"name": "scar painter, response", "value": 1e3 * seconds(change, 8), "unit": "ms", "target": "< 200"}]
