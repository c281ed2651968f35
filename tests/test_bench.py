"""The benchmarks compare like with like, and the table says where it was measured."""

import numpy as np
import pandas as pd

from lgekit import bench
from lgekit.standardize import StandardizeShortAxis


def test_the_stock_chain_does_the_same_as_ours():
    study = bench.ring_study(pixels=160, slices=4)
    ours, stock = StandardizeShortAxis(96)(study), bench.stock_chain(study)(study)
    assert stock.spatial_shape == ours.spatial_shape
    assert (stock.label_map == ours.label_map).mean() > 0.97


def test_the_table_is_written_with_device_and_versions(tmp_path):
    table = bench.run(tmp_path, ["lgekit.bench:benchmark_standardize"])
    assert {"name", "value", "unit", "target", "cpu", "gpu", "torch", "torchio"} <= set(table.columns)
    assert np.isfinite(table["value"]).all() and table["target"].str.contains("1.5").any()
    values = table.set_index("name")["value"]
    assert values["stock / StandardizeShortAxis"] > 5  # the other target is too close to a busy machine's noise to test
    pd.testing.assert_index_equal(pd.read_csv(tmp_path / "bench.csv").columns, table.columns)
