"""Benchmarks, run by `make bench`, and tests that they compare like with like."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from long_texts import long_texts
from tiny_notebook import write_notebook
from toys import ring_study

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.cache import accelerator
from lgekit.clip.data import ImageTextPairs, batch_of, make_view
from lgekit.clip.detector import Detector
from lgekit.clip.model import CoCa, ReportTokenizer
from lgekit.clip.train import both_losses, fit
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.findings import Findings, draw_scar
from lgekit.reports.reader import read
from lgekit.reports.writer import report_texts
from lgekit.scars.transforms import ScarPainter
from lgekit.study import Cohort


def seconds(call) -> float:
    """Time one call; wait for the GPU where there is one."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@pytest.mark.bench
def test_standardize(record):
    """Compare the standard frame with a bare ``grid_sample`` to the same size."""
    study = ring_study(size=256, slices=10)
    frame, image = StandardizeShortAxis(96).find_frame(study), study.get_image("image").data
    pictures = image.permute(3, 0, 1, 2).contiguous()  # (slices, 1, X, Y)
    turn = 0.4 * torch.eye(2, 3).repeat(len(pictures), 1, 1)
    grid = F.affine_grid(turn, [len(pictures), 1, 96, 96], align_corners=True)
    calls = lambda: F.grid_sample(pictures, grid, align_corners=True), lambda: frame.to_frame(image)
    bare, ours = (min(seconds(call) for _ in range(30)) for call in calls)
    record("bare grid_sample", 1e3 * bare, "ms")
    record("into the frame", 1e3 * ours, "ms")
    record("into the frame / bare grid_sample", ours / bare, "×", "≤ 1.5")


def distinct_pairs(studies: int, settings):
    """Phantom studies with one text each, all different, so that both loops encode equally many."""
    cohort = phantom_cohort(studies, seed=0).studies
    texts = [
        (f"{report_texts(study.report, settings.text)[0]} {number}",)
        for number, study in enumerate(cohort)
    ]
    return ImageTextPairs(batch_of([make_view(study, settings) for study in cohort]), texts)


def bare_step(pairs, settings):
    """Forward, backward and optimiser step of the network of `fit`, on prepared batches."""
    texts, device = [options[0] for options in pairs.texts], accelerator()
    tokenizer = ReportTokenizer.train(texts, settings.longest_text)
    network = CoCa(settings, tokenizer).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, fused=True)
    tokens = tokenizer(texts).to(device)
    batch = pairs.batch.to(device)
    parts = torch.arange(len(tokens), device=device).split(settings.batch_size)
    ready = [(batch.rows(part), tokens[part], part) for part in parts]

    def step(number: int = 0) -> torch.Tensor:
        studies, texts, own = ready[number % len(ready)]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            rows = torch.arange(len(own), device=device)
            out = network(studies, texts, rows, rows)
        contrast, caption = both_losses(out, own, settings, tokenizer.pad_id)
        loss = contrast + settings.caption_weight * caption
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def scar_seconds() -> float:
    """Paint random scars into 10 slices of 128 x 128; return the median time of one."""
    canvas, rng = ScarPainter(ring_study(size=128, slices=10)), np.random.default_rng(0)
    times = []
    for _ in range(100):
        findings = canvas.within_stack(Findings((draw_scar(rng),)))
        try:
            times.append(seconds(lambda found=findings: canvas.paint(found, rng)))
        except InputError:  # no room for this scar
            continue
    return float(np.median(times))


@pytest.mark.bench
def test_fit(record, monkeypatch):
    """Compare a training step with the bare network, and painting a scar with a training step."""
    settings = size_settings("laptop", synthetic_per_real=0.0, epochs=3, masks="true")
    pairs, count = distinct_pairs(96, settings), 96 // settings.batch_size
    step, bare, ours = bare_step(pairs, settings), [], []
    monkeypatch.setenv("LGEKIT_CACHE", "")  # a fit is cached
    for seed in range(4):
        bare.append(seconds(lambda: [step(number) for number in range(2 * count)]) / (2 * count))
        history = fit(pairs, settings.override(seed=seed), progress=False).history
        # The first epoch of a fit builds what the others reuse.
        ours.append(float(history["seconds"].iloc[1:].mean()) / count)
    ours, bare, scar = float(np.median(ours[1:])), float(np.median(bare[1:])), scar_seconds()
    record("training step of fit", 1e3 * ours, "ms")
    record("forward + backward + optimiser on a ready batch", 1e3 * bare, "ms")
    record("fit / bare step", ours / bare, "×", "≤ 1.1")
    record("fit", settings.batch_size / ours, "studies/s")
    record("scars painted", 1 / scar, "1/s", "≥ 300")
    record("painting a scar / training step per study", scar * settings.batch_size / ours, "×")


@pytest.mark.bench
def test_predict(record):
    """`Detector.predict` on all cores with one network, with and without finding the heart."""
    cohort, packaged = phantom_cohort(48, seed=0), Detector.load("builtin")
    without = replace(packaged, networks=packaged.networks[:1], heart=None)

    def locate():  # `Detector.predict` would cache the contours
        return Cohort(packaged.heart.predict_cohort(cohort).studies)

    located = locate()
    calls = lambda: without.predict(locate()), lambda: without.predict(located)
    whole, rest = (float(np.median([seconds(call) for _ in range(3)])) for call in calls)
    record("predict, polar view", len(cohort) / whole, "studies/s", "≥ 50")
    record("predict without the heart network", len(cohort) / rest, "studies/s")


PAPERMILL = """import sys, papermill
folder, name, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
for seed in range(runs):
    papermill.execute_notebook(f"{folder}/tiny.ipynb", f"{folder}/{name}-{seed}.ipynb",
        {"seed": seed, "out": f"{folder}/{name}/{seed}"}, kernel_name="python3", progress_bar=False)
"""
GRID = """import sys, lgekit
runs = lgekit.run_grid(f"{sys.argv[1]}/{sys.argv[2]}", workers=int(sys.argv[3]), progress=False)
assert (runs["state"] == "done").all()
"""


@pytest.mark.bench
def test_grid(record, tmp_path):
    """Compare trivial runs in a grid (one and two workers) with bare Papermill; needs two cores."""
    runs = 20
    write_notebook(tmp_path / "tiny.ipynb")
    text = f"notebook: tiny.ipynb\nrows: {{full: {{}}}}\nseeds: {list(range(runs))}\n"
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(text)

    def process(code, *arguments):
        command = [sys.executable, "-c", code, str(tmp_path), *map(str, arguments)]
        return seconds(lambda: subprocess.run(command, stderr=subprocess.DEVNULL, check=True))

    bare, one = process(PAPERMILL, "bare", runs), process(GRID, "one.yaml", 1)
    two = process(GRID, "two.yaml", 2)
    record(f"grid: {runs} trivial runs over bare Papermill", one / bare, "×", "≤ 1.1")
    record("grid: scaling to two workers", one / two / 2, "×", "≥ 0.85")


def test_bare_step_trains_as_fit_does(monkeypatch):
    changes = dict(synthetic_per_real=0.0, augment=0.0, dropout=0.0, epochs=1)
    settings = size_settings("smoke", masks="true", **changes)
    pairs = distinct_pairs(8, settings)  # one batch
    monkeypatch.setenv("LGEKIT_CACHE", "")
    (history,) = fit(pairs, settings, progress=False).history.to_dict("records")
    torch.manual_seed(settings.seed)
    step = bare_step(pairs, settings)
    losses = [float(step()) for _ in range(12)]
    expected = history["contrastive"] + settings.caption_weight * history["caption"]
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[-1] < losses[0]


@pytest.mark.bench
def test_report_reader(record):
    """Read texts of a million characters; a real report has fewer than twenty thousand."""
    taken = {kind: seconds(partial(read, text)) for kind, text in long_texts(10**6).items()}
    slowest = max(taken, key=taken.get)
    record(f"slowest of {len(taken)} kinds of 1 MB: {slowest}", taken[slowest], "s", "≤ 1")
