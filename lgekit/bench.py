"""The benchmark table: ``python -m lgekit.bench`` times what the workbook promises and writes ``figures/bench.csv``."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchio as tio

from lgekit.anatomy import findings_from_labels
from lgekit.polar import study_tensor
from lgekit.standardize import StandardizeShortAxis
from lgekit.studies import CAVITY, MYOCARDIUM, RV, SCAR, Landmarks, Study

# Where the benchmarks are: "module:function", each returning rows with name, value, unit, target ("" where none).
BENCHMARKS = [
    "lgekit.bench:benchmark_standardize",
    "lgekit.bench_cohort:benchmark_phantom",
    "lgekit.bench_scars:benchmark_scars",
    "lgekit.bench_scars:benchmark_training",
    "lgekit.bench_scars:benchmark_painter",
    "lgekit.bench_training:benchmark_fit",
    "lgekit.bench_training:benchmark_paper",
    "lgekit.bench_training:benchmark_predict",
    "lgekit.bench_grid:benchmark_grid",
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
    x, y = ((np.arange(pixels) - pixels / 2 - shift) * h for shift, h in zip((9, -14), spacing, strict=False))
    radius, angle = np.hypot(x[:, None], y[None]), np.degrees(np.arctan2(-y[None], x[:, None])) % 360
    labels = np.zeros((pixels, pixels, slices), np.uint8)
    for s in range(slices):
        labels[..., s][(radius < 50 - 2 * s) & (angle > 190) & (angle < 300)] = RV
        labels[..., s][radius < 33 - 2 * s] = MYOCARDIUM
        labels[..., s][(radius < 33 - 2 * s) & (angle < 60)] = SCAR
        labels[..., s][radius < 23 - 2 * s] = CAVITY
    image = np.random.default_rng(0).normal(100, 10, labels.shape) + 60.0 * np.isin(labels, (CAVITY, RV, SCAR))
    return Study.from_arrays("bench", image, spacing, labels, landmarks=Landmarks(300, 190))


def stock_chain(study: Study, pixels: int = 96) -> tio.Compose:
    """The stock TorchIO transforms that do what StandardizeShortAxis does, with the same geometry."""
    frame, mm = StandardizeShortAxis(pixels).find_frame(study), np.array(study.spacing_mm)
    flip = np.diag([1, np.sign(np.linalg.det(frame.matrix))])
    turn = flip @ np.diag(mm[:2]) @ frame.matrix / frame.mm_per_pixel  # a rotation, once mirrored storage is undone
    shift = turn.T @ flip @ ((frame.centre - (np.array(frame.shape[:2]) - 1) / 2) * mm[:2])
    degrees = -float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
    return tio.Compose(
        [
            tio.Resample((frame.mm_per_pixel, frame.mm_per_pixel, mm[2])),
            tio.Flip(axes=(1,) if flip[1, 1] < 0 else ()),
            tio.Affine(scales=(1, 1, 1), degrees=(0, 0, degrees), translation=(-float(shift[0]), float(shift[1]), 0.0)),
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
    grid = F.affine_grid(0.4 * torch.eye(2, 3).repeat(count, 1, 1), [count, 1, pixels, pixels], align_corners=True)
    bare = seconds(lambda: F.grid_sample(pictures, grid, align_corners=True))
    rows = [
        ("bare grid_sample", 1e3 * bare, "ms", ""),
        ("into the frame", 1e3 * (ours := seconds(lambda: frame.to_frame(image))), "ms", ""),
        ("into the frame / bare grid_sample", ours / bare, "×", "≤ 1.5"),
        ("StandardizeShortAxis, image and labels", 1e3 * (whole := seconds(lambda: transform(study))), "ms", ""),
        ("stock Resample, Flip, Affine, CropOrPad", 1e3 * (stock := seconds(lambda: chain(study), 5)), "ms", ""),
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

        rows.append(("into the frame, a study of a batch of 32 on the GPU", 1e3 * seconds(on_gpu) / 32, "ms", ""))
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
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(
        run(Path(sys.argv[1] if len(sys.argv) > 1 else "figures"))[["name", "value", "unit", "target"]].to_string(
            index=False
        )
    )
