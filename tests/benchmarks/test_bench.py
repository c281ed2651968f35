"""The benchmarks compare like with like, and the table says where it was measured."""

import numpy as np
import pandas as pd
import pytest

from lgekit import bench
from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.bench import benchmark_phantom


def test_the_stock_chain_does_the_same_as_ours():
    study = bench.ring_study(pixels=160, slices=4)
    ours, stock = StandardizeShortAxis(96)(study), bench.stock_chain(study)(study)
    assert stock.spatial_shape == ours.spatial_shape
    assert (stock.label_map == ours.label_map).mean() > 0.97


def test_the_table_is_written_with_device_and_versions(tmp_path):
    table = bench.run(tmp_path, ["lgekit.bench:benchmark_standardize"])
    assert {"name", "value", "unit", "target", "cpu", "gpu", "torch", "torchio"} <= set(
        table.columns
    )
    assert np.isfinite(table["value"]).all() and table["target"].str.contains("1.5").any()
    values = table.set_index("name")["value"]
    assert (
        values["stock / StandardizeShortAxis"] > 5
    )  # the other target is too close to a busy machine's noise to test
    pd.testing.assert_index_equal(pd.read_csv(tmp_path / "bench.csv").columns, table.columns)


def test_open_clips_loop_trains_the_network_that_fit_trains():
    """What its loader gives, slices of a study one below the other, is read as the study itself."""
    import torch

    from lgekit.bench import _Strip
    from lgekit.clip.model import StudyBatch, StudyEncoder
    from lgekit.config import size_settings

    settings = size_settings("smoke", depths=12, angles=24, width=16)
    encoder = StudyEncoder(settings).eval()
    images = torch.randn(2, 5, 1, 12, 24)
    batch = StudyBatch(
        images, torch.linspace(0, 1, 5).expand(2, 5), torch.ones(2, 5, dtype=torch.bool)
    )
    strips = (
        images[:, :, 0].flatten(1, 2)[:, None].expand(-1, 3, -1, -1)
    )  # grey as red, green and blue
    with torch.no_grad():
        for ours, theirs in zip(encoder(batch), _Strip(encoder, 5)(strips), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_training_and_reading_are_timed(monkeypatch):
    from lgekit import bench as bench_training

    monkeypatch.setattr(bench_training, "ROUNDS", 1)
    rows = bench_training.benchmark_fit(32) + bench_training.benchmark_predict(4)
    assert all(np.isfinite(row["value"]) and row["value"] > 0 for row in rows)
    assert {"≤ 1.1", "≥ 3", "≥ 50"} <= {row["target"] for row in rows}


def test_the_papers_size_is_timed_on_a_gpu_alone_unless_asked(monkeypatch):
    import torch

    from lgekit import bench as bench_training
    from lgekit.config import size_settings

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_training.benchmark_paper() == []
    tiny = size_settings("smoke", masks="true", epochs=2, synthetic_per_real=2.0, synthetic_pool=0)
    (row,) = bench_training.benchmark_paper(8, tiny)
    assert (
        row["name"].endswith("8 studies, 2 synthetic for each, 2 epochs")
        and row["unit"] == "s"
        and row["value"] > 0
    )


def test_the_bare_step_learns_what_fit_learns():
    """The same network on the same batches: the ratio of their times compares like with like."""
    import torch

    from lgekit import bench as bench_training
    from lgekit.config import size_settings

    settings = size_settings(
        "smoke", masks="true", synthetic_per_real=0.0, augment=0.0, dropout=0.0, epochs=1
    )
    pairs = bench_training.phantom_pairs(8, settings)
    history = bench_training.fit(pairs, settings, progress=False).history.iloc[
        0
    ]  # one step, as all fit one batch
    torch.manual_seed(settings.seed)
    step = bench_training.bare_step(pairs, settings)
    losses = [float(step()) for _ in range(12)]
    assert losses[0] == pytest.approx(
        history["contrastive"] + settings.caption_weight * history["caption"], rel=1e-5
    )
    assert losses[-1] < losses[0]


def test_the_cohorts_rows_are_measured_in_a_process_of_their_own():
    rows = {row["unit"]: row["value"] for row in benchmark_phantom(studies=2)}
    assert set(rows) == {"s", "GB"} and rows["s"] > 0 and 0.05 < rows["GB"] < 4
