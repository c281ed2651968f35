"""bench"""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchio as tio
from joblib import cpu_count
from torch import Tensor, nn

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.polar import polar_grid, study_tensor
from lgekit.anatomy.segments import findings_from_labels
from lgekit.cache import accelerator, trains_in_bfloat16
from lgekit.clip.data import Pairs, Store, augment
from lgekit.clip.detector import Detector
from lgekit.clip.fit import MOST_PAINTERS, FreshScars, cohort_pairs, pretrain_polar
from lgekit.clip.model import CoCaModel, StudyBatch, build_coca
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.train import ContrastiveCaptioner, adamw, all_losses, fit
from lgekit.clip.zeroshot import Calibration
from lgekit.config import FitSettings, size_settings
from lgekit.errors import InputError
from lgekit.findings import Findings, draw_scar
from lgekit.reports.training_texts import report_texts
from lgekit.scars.transforms import prepare_canvas
from lgekit.study import (
    CAVITY,
    MYOCARDIUM,
    RV,
    SCAR,
    WALL_CODES,
    Cohort,
    Landmarks,
    Study,
)

# Where the benchmarks are: "module:function", each returning rows with name, value, unit, target ("" where none).
BENCHMARKS = [
    "lgekit.bench:benchmark_standardize",
    "lgekit.bench:benchmark_phantom",
    "lgekit.bench:benchmark_scars",
    "lgekit.bench:benchmark_training",
    "lgekit.bench:benchmark_painter",
    "lgekit.bench:benchmark_fit",
    "lgekit.bench:benchmark_paper",
    "lgekit.bench:benchmark_predict",
    "lgekit.bench:benchmark_grid",
]


def seconds(call: Callable[[], Any], repeats: int = 30) -> float:
    """Fastest of ``repeats`` calls, after three to warm up: what the call costs when nothing else disturbs it."""
    for _ in range(3):
        call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def ring_study(pixels: int = 256, slices: int = 10) -> Study:
    """A turned, mirrored, anisotropic study of rings with a scar, of the size of a clinical stack."""
    spacing = (1.2, 1.5, 10.0)
    x, y = (
        (np.arange(pixels) - pixels / 2 - shift) * h
        for shift, h in zip((9, -14), spacing, strict=False)
    )
    radius, angle = (
        np.hypot(x[:, None], y[None]),
        np.degrees(np.arctan2(-y[None], x[:, None])) % 360,
    )
    labels = np.zeros((pixels, pixels, slices), np.uint8)
    for s in range(slices):
        labels[..., s][(radius < 50 - 2 * s) & (angle > 190) & (angle < 300)] = RV
        labels[..., s][radius < 33 - 2 * s] = MYOCARDIUM
        labels[..., s][(radius < 33 - 2 * s) & (angle < 60)] = SCAR
        labels[..., s][radius < 23 - 2 * s] = CAVITY
    image = np.random.default_rng(0).normal(100, 10, labels.shape) + 60.0 * np.isin(
        labels, (CAVITY, RV, SCAR)
    )
    return Study.from_arrays("bench", image, spacing, labels, landmarks=Landmarks(300, 190))


def stock_chain(study: Study, pixels: int = 96) -> tio.Compose:
    """The stock TorchIO transforms that do what StandardizeShortAxis does, with the same geometry."""
    frame, mm = StandardizeShortAxis(pixels).find_frame(study), np.array(study.spacing_mm)
    flip = np.diag([1, np.sign(np.linalg.det(frame.matrix))])
    turn = (
        flip @ np.diag(mm[:2]) @ frame.matrix / frame.mm_per_pixel
    )  # a rotation, once mirrored storage is undone
    shift = turn.T @ flip @ ((frame.centre - (np.array(frame.shape[:2]) - 1) / 2) * mm[:2])
    degrees = -float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
    return tio.Compose(
        [
            tio.Resample((frame.mm_per_pixel, frame.mm_per_pixel, mm[2])),
            tio.Flip(axes=(1,) if flip[1, 1] < 0 else ()),
            tio.Affine(
                scales=(1, 1, 1),
                degrees=(0, 0, degrees),
                translation=(-float(shift[0]), float(shift[1]), 0.0),
            ),
            tio.CropOrPad((pixels, pixels, frame.shape[2])),
        ]
    )


def benchmark_standardize(pixels: int = 96) -> list[dict[str, Any]]:
    """The standard frame against a bare ``grid_sample`` and against stock TorchIO, on one core; and on a GPU, if any.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``.
    """
    study, threads = ring_study(), torch.get_num_threads()
    torch.set_num_threads(1)
    transform, chain = StandardizeShortAxis(pixels), stock_chain(study, pixels)
    frame, image = transform.find_frame(study), study.get_image("image").data
    pictures = image.permute(3, 0, 1, 2).contiguous()  # (slices, 1, X, Y)
    count = len(pictures)
    grid = F.affine_grid(
        0.4 * torch.eye(2, 3).repeat(count, 1, 1), [count, 1, pixels, pixels], align_corners=True
    )
    bare = seconds(lambda: F.grid_sample(pictures, grid, align_corners=True))
    rows = [
        ("bare grid_sample", 1e3 * bare, "ms", ""),
        ("into the frame", 1e3 * (ours := seconds(lambda: frame.to_frame(image))), "ms", ""),
        ("into the frame / bare grid_sample", ours / bare, "×", "≤ 1.5"),
        (
            "StandardizeShortAxis, image and labels",
            1e3 * (whole := seconds(lambda: transform(study))),
            "ms",
            "",
        ),
        (
            "stock Resample, Flip, Affine, CropOrPad",
            1e3 * (stock := seconds(lambda: chain(study), 5)),
            "ms",
            "",
        ),
        ("stock / StandardizeShortAxis", stock / whole, "×", "≥ 5"),
        ("study_tensor, polar", 1e3 * seconds(lambda: study_tensor(study)), "ms", ""),
        ("study_tensor, image", 1e3 * seconds(lambda: study_tensor(study, "image")), "ms", ""),
        ("findings_from_labels", 1e3 * seconds(lambda: findings_from_labels(study), 5), "ms", ""),
    ]
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        batch = image.cuda().repeat(32, 1, 1, 1)  # 32 studies as channels

        def on_gpu() -> None:
            frame.to_frame(batch)
            torch.cuda.synchronize()

        rows.append(
            (
                "into the frame, a study of a batch of 32 on the GPU",
                1e3 * seconds(on_gpu) / 32,
                "ms",
                "",
            )
        )
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True)) for row in rows]


def run(folder: Path, benchmarks: Sequence[str] = BENCHMARKS) -> pd.DataFrame:
    """Run benchmarks (by default all) and write ``bench.csv``, each row with the device and versions it comes from."""
    rows = []
    for place in benchmarks:
        module, function = place.split(":")
        rows += [
            {"benchmark": function.removeprefix("benchmark_"), **row}
            for row in getattr(import_module(module), function)()
        ]
    table = pd.DataFrame(rows)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    table = table.assign(cpu=_cpu(), gpu=gpu, python=platform.python_version())
    for package in ("torch", "torchio", "numpy"):
        table[package] = metadata.version(package)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "bench.csv", index=False)
    return table


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if "model name" in line
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(
        run(Path(sys.argv[1] if len(sys.argv) > 1 else "figures"))[
            ["name", "value", "unit", "target"]
        ].to_string(index=False)
    )


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
        done = subprocess.run(
            command, check=True, env=environment, stdout=subprocess.PIPE, text=True
        )
    told = json.loads(done.stdout.splitlines()[-1])
    first, second = told["seconds"]
    name = f"phantom: {studies} studies of 128 x 128 x 10"
    return [
        {"name": name, "value": first, "unit": "s", "target": "≤ 60 on two idle cores"},
        {"name": f"{name}, CPU time with imports", "value": told["cpu"], "unit": "s", "target": ""},
        {"name": f"{name}, from the cache", "value": second, "unit": "s", "target": "≤ 2"},
        {"name": f"{name}, memory", "value": told["peak"] / 1e6, "unit": "GB", "target": "≤ 1"},
    ]


PARAMETERS = 'seed: int = 0\nout: str = ""'
WORK = "value = sum(number % 7 for number in range(200_000)) + seed"
SAVE = 'from lgekit.workbook import save_run\nsave_run(out, {"value": value})'
BARE = """import sys, papermill
folder, name, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
kernel = {"kernel_name": "python3", "language": "python", "progress_bar": False}
for seed in range(runs):
    parameters = {"seed": seed, "out": f"{folder}/{name}/{seed}"}
    papermill.execute_notebook(f"{folder}/trivial.ipynb", f"{folder}/{name}-{seed}.ipynb", parameters, **kernel)"""
GRID = """import sys; from lgekit.grid.run import run_grid
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
        {
            "name": f"grid: {runs} trivial runs over bare Papermill",
            "value": one / bare,
            "unit": "×",
            "target": "≤ 1.1",
        },
        {
            "name": "grid: scaling to two workers",
            "value": one / two / 2,
            "unit": "×",
            "target": "≥ 0.85",
        },
        {
            "name": "bare Papermill: scaling to two processes",
            "value": bare / halves / 2,
            "unit": "×",
            "target": "",
        },
        {
            "name": f"grid: {runs} trivial runs on two workers",
            "value": two,
            "unit": "s",
            "target": "",
        },
    ]


def _seconds(code: str, each: list[list[str]]) -> float:
    """Until the last of some processes with these arguments, started together, has ended."""
    started = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, "-c", code, *one], stderr=subprocess.DEVNULL)
        for one in each
    ]
    if any([process.wait() for process in running]):
        raise RuntimeError(f"a benchmarked process failed: {code}")
    return time.perf_counter() - started


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
        {
            "name": "scars painted",
            "value": 1 / float(np.median(rates)),
            "unit": "1/s",
            "target": ">= 300",
        },
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
    from lgekit.clip.data import Pairs, batch_of, make_view
    from lgekit.clip.fit import FreshScars, paint_pool
    from lgekit.clip.train import fit
    from lgekit.config import size_settings
    from lgekit.data.phantom import phantom_cohort
    from lgekit.reports.training_texts import report_texts

    settings = size_settings("laptop")
    cohort = phantom_cohort(studies, seed=0)
    wanted = round(settings.synthetic_per_real * studies * settings.synthetic_pool)
    paint_pool(
        phantom_cohort(8, seed=1), 4, settings
    )  # other studies: loads code and tables, keeps nothing of these
    start = time.perf_counter()
    painted = paint_pool(cohort, wanted, settings)
    painting = time.perf_counter() - start
    pool = Pairs(
        batch_of([one.view for one in painted]), [report_texts(one.report) for one in painted]
    )
    views = [make_view(study, settings) for study in cohort.studies]
    own = Pairs(batch_of(views), [report_texts(study["report"]) for study in cohort.studies])
    brief, anew = settings.override(epochs=epochs), FreshScars(cohort, settings, painters=1)
    epoch, fresh = (
        # the first epoch builds what others reuse
        float(
            fit(own, brief, synthetic=pool, fresh=painter, progress=False)
            .history["seconds"]
            .iloc[1:]
            .median()
        )
        for painter in (None, anew)
    )
    row = {
        "name": "painting synthetic scars / training with them",
        "value": 100 * painting / (epoch * settings.epochs),
    }
    other = {"name": "epoch with scars painted anew / from the pool", "value": fresh / epoch}
    return [row | {"unit": "%", "target": "< 10"}, other | {"unit": "×", "target": ""}]


def benchmark_painter() -> list[dict[str, Any]]:
    """The scar painter of notebook 03 on a phantom study: from a changed control to new picture and report."""
    from lgekit.data.phantom import phantom_study
    from lgekit.viz.widgets import scar_painter

    painter = scar_painter(phantom_study(0, seed=0, prevalence=0.0))
    depths = itertools.cycle(("mid-wall", "transmural", "subepicardial", "subendocardial"))

    def change() -> None:
        painter.controls["depth"].value = next(depths)

    return [
        {
            "name": "scar painter, response",
            "value": 1e3 * seconds(change, 8),
            "unit": "ms",
            "target": "< 200",
        }
    ]


ROUNDS = 5


def benchmark_fit(studies: int = 96) -> list[dict[str, Any]]:
    """A step of `fit` against the bare step on a ready batch, and studies/s against open_clip's own loop and loader;
    all on the GPU and in bfloat16 where there is one.

    A fit's first epoch builds and fills what later ones reuse (the optimiser's moments, the allocator's blocks), as the
    bare step's warm-up does: it is left out.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``.
    """
    settings = size_settings("laptop", synthetic_per_real=0.0, epochs=3, masks="true")
    pairs = phantom_pairs(studies, settings)
    ours, bare, theirs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        step, epoch = bare_step(pairs, settings), open_clip_epoch(pairs, settings, Path(folder))
        count = -(-studies // settings.batch_size)
        for number in range(ROUNDS + 1):
            result = fit(pairs, settings.override(seed=number), progress=False)
            ours.append(float(result.history["seconds"].iloc[1:].mean()) / count)
            bare.append(
                _bench_training_seconds(lambda: [step() for _ in range(2 * count)]) / (2 * count)
            )
            theirs.append(_bench_training_seconds(epoch) / studies)
    mine, least, other = (
        float(np.median(part[1:])) for part in (ours, bare, theirs)
    )  # the first round warms up
    rows = [
        ("training step of fit", 1e3 * mine, "ms", ""),
        ("forward + backward + optimiser on a ready batch", 1e3 * least, "ms", ""),
        ("fit / bare step", mine / least, "×", "≤ 1.1"),
        ("fit", studies / (mine * count), "studies/s", ""),
        ("open_clip's loop and default loader, studies as PNG files", 1 / other, "studies/s", ""),
        ("fit / open_clip", other * studies / (mine * count), "×", "≥ 3"),
    ]
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True)) for row in rows]


def benchmark_paper(
    studies: int = 965, settings: FitSettings | None = None
) -> list[dict[str, Any]]:
    """Training of one network at the paper's size on a GPU, from views to the last epoch: all studies learned from, two
    synthetic scars for each, painted anew in every epoch. Along the true contours, so that no heart network is timed.

    Args:
        studies: of the phantom.
        settings: others than the paper's, which are also timed where there is no GPU.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``; none without a GPU, where it takes an hour.
    """
    if settings is None and not torch.cuda.is_available():
        return []
    settings = settings or size_settings("paper", masks="true", models=1)
    from lgekit.data.phantom import phantom_cohort

    cohort = phantom_cohort(studies, seed=0)
    pairs, scars = (
        cohort_pairs(cohort, settings),
        FreshScars(cohort, settings, min(MOST_PAINTERS, cpu_count() - 1)),
    )
    first = scars[settings.epochs]  # no epoch's own: for the tokenizer alone

    def train() -> None:
        state = pretrain_polar(pairs.batch.to(accelerator()), settings, progress=False)
        fit(pairs, settings, synthetic=first, fresh=scars, encoder_state=state, progress=False)

    about = f"{studies} studies, {settings.synthetic_per_real:g} synthetic for each, {settings.epochs} epochs"
    row = (f"training, paper size: {about}", _bench_training_seconds(train), "s", "≤ 180")
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True))]


def phantom_pairs(studies: int, settings: FitSettings) -> Pairs:
    """Views and texts of phantom studies, along their true contours."""
    from lgekit.data.phantom import phantom_cohort

    return cohort_pairs(phantom_cohort(studies, seed=0), settings)


def bare_step(pairs: Pairs, settings: FitSettings) -> Callable[[], Tensor]:
    """Forward, backward and optimiser of the network that `fit` trains, on the batches of an epoch of it, made ready
    before: their pictures already varied, their texts already drawn and gathered."""
    device = accelerator()
    tokenizer = ReportTokenizer.train(
        _words(pairs), settings.vocabulary, settings.longest_text
    )  # as `fit` does
    module = ContrastiveCaptioner(build_coca(settings, tokenizer)).to(device).train()
    optimizer, generator = adamw(module, settings), torch.Generator().manual_seed(0)
    store = Store.of(tokenizer, device, pairs)
    halved = trains_in_bfloat16(device, settings.bfloat16)
    ready: list[tuple[Any, ...]] = []
    for index, chosen in store.batches(0, settings):
        studies, *words = store.step_inputs(index, chosen, captions=True)
        ready.append((augment(studies, settings, generator), *words))
    batches = itertools.cycle(ready)

    def step() -> Tensor:
        *inputs, ids = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=halved):
            out = module(*inputs)
        out = {
            name: value.float() if value.is_floating_point() else value
            for name, value in out.items()
        }
        contrast, caption = all_losses(out, ids, settings, tokenizer.pad_id)
        optimizer.zero_grad()
        (loss := contrast + settings.caption_weight * caption).backward()
        optimizer.step()
        return loss.detach()

    return step


class _Files(torch.utils.data.Dataset):
    """open_clip's ``CsvDataset`` (open_clip_train/data.py, whose module needs packages that we do not)."""

    def __init__(self, table: pd.DataFrame, transforms: Callable, tokenize: Callable):
        self.images, self.captions = table["filepath"].tolist(), table["title"].tolist()
        self.transforms, self.tokenize = transforms, tokenize

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        return self.transforms(Image.open(self.images[index])), self.tokenize(
            [self.captions[index]]
        )[0]


class _Strip(nn.Module):
    """A vision tower that takes what open_clip's loader gives: the slices of a study one below the other."""

    def __init__(self, visual: nn.Module, slices: int):
        super().__init__()
        self.visual, self.slices = visual, slices

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        images = pictures[:, 0].unflatten(1, (self.slices, -1))[:, :, None]
        levels = torch.linspace(0, 1, self.slices, device=images.device).expand(len(images), -1)
        return self.visual(StudyBatch(images, levels, torch.ones_like(levels, dtype=torch.bool)))


def open_clip_epoch(pairs: Pairs, settings: FitSettings, folder: Path) -> Callable[[], None]:
    """An epoch of open_clip's ``train_one_epoch`` with its default loader and transforms on the same pictures.

    Each study is a PNG file, its slices one below the other; the network is the one that `fit` trains.
    """
    from open_clip.loss import CoCaLoss
    from open_clip.transform import image_transform
    from open_clip_train.train import train_one_epoch
    from PIL import Image

    tokenizer, device = ReportTokenizer.train(_words(pairs), settings.vocabulary), accelerator()
    coca: CoCaModel = build_coca(settings, tokenizer)
    slices, height, width = (pairs.batch.images.shape[i] for i in (1, 3, 4))
    coca.visual = _Strip(coca.visual, slices)
    coca.to(device)
    rows = []
    for number, (images, texts) in enumerate(zip(pairs.batch.images, pairs.texts, strict=True)):
        picture = ((images.flatten(0, 2).numpy() + 4) * 31.875).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.png")
        rows.append({"filepath": str(folder / f"{number}.png"), "title": texts[0]})

    def tokenize(
        texts: list[str],
    ) -> Tensor:  # as open_clip's own tokenizers: padded to the context
        ids = tokenizer(texts)
        return nn.functional.pad(
            ids, (0, tokenizer.context_length - ids.shape[1]), value=tokenizer.pad_id
        )

    transforms = image_transform((slices * height, width), is_train=True)
    data = _Files(pd.DataFrame(rows), transforms, tokenize)
    loader: Any = torch.utils.data.DataLoader(
        data, batch_size=settings.batch_size, shuffle=True, num_workers=4, drop_last=True
    )
    loader.num_samples, loader.num_batches = len(data), len(loader)
    info = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    loss = CoCaLoss(
        caption_loss_weight=settings.caption_weight, clip_loss_weight=1.0, pad_id=tokenizer.pad_id
    )
    precision = "amp_bf16" if device.type == "cuda" else "fp32"
    about = {
        "device": str(device),
        "precision": precision,
        "distill": False,
        "accum_freq": 1,
        "skip_scheduler": True,
    }
    about |= {
        "horovod": False,
        "grad_clip_norm": 1.0,
        "rank": 0,
        "local_rank": 0,
        "world_size": 1,
        "wandb": False,
    }
    args = SimpleNamespace(
        **about, log_every_n_steps=100, batch_size=settings.batch_size, log_local=False
    )
    optimizer = adamw(coca, settings)
    return lambda: train_one_epoch(coca, info, loss, 0, optimizer, None, None, None, args)


def benchmark_predict(studies: int = 48) -> list[dict[str, Any]]:
    """`Detector.predict` on all cores with one heart network and one CLIP network, nothing taken from the cache.

    The heart network is trained for a few steps only and would be unsure of every heart and search it twice; a trained
    one does so for one of 30 EMIDEC pictures, and here none is searched. The CLIP network is not trained at all: its
    captions never end by themselves, and are cut at the length of long ones.

    Returns:
        Rows of the table: ``name``, ``value``, ``unit``, ``target``.
    """
    from lgekit.data.phantom import phantom_cohort
    from lgekit.segmentation.train import fit_heart_network

    settings = size_settings("laptop", context_length=24)
    cohort = phantom_cohort(studies, seed=0)
    words = [
        text for study in cohort.studies for text in report_texts(study["report"], settings.text)
    ]
    tokenizer = ReportTokenizer.train(words, settings.vocabulary, settings.longest_text)
    heart = fit_heart_network([cohort], steps=60, progress=False)
    detector = Detector(
        settings, [(build_coca(settings, tokenizer).eval(), tokenizer)], heart, Calibration()
    )
    located = Cohort(heart.predict_cohort(cohort).studies)
    without = Detector(settings, detector.networks, None, Calibration())
    with mock.patch("lgekit.segmentation.model.SURE", 0.0):
        whole = [_bench_training_seconds(lambda: _fresh(detector, cohort)) for _ in range(3)]
    rest = [_bench_training_seconds(lambda: without.predict(located)) for _ in range(3)]
    rows = [
        ("predict, polar view", studies / float(np.median(whole)), "studies/s", "≥ 50"),
        ("predict without the heart network", studies / float(np.median(rest)), "studies/s", ""),
    ]
    return [dict(zip(("name", "value", "unit", "target"), row, strict=True)) for row in rows]


def _fresh(detector: Detector, cohort: Cohort) -> None:
    """Predict with contours found anew: the cache would give them back."""
    located = Cohort(detector.heart.predict_cohort(cohort).studies) if detector.heart else cohort
    Detector(detector.settings, detector.networks, None, detector.calibration).predict(located)


def _words(pairs: Pairs) -> list[str]:
    return [text for texts in pairs.texts for text in texts]


def _bench_training_seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
