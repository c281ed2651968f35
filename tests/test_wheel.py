"""The wheel by itself: a fresh environment without notebook packages predicts with it."""

import os
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_files import write_dicom
from packaging.requirements import Requirement

import lgekit as lk
from lgekit.data.phantom import phantom_cohort

WHEEL = os.environ.get("WHEEL", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not WHEEL, reason="run by `make wheel`")]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    wanted = reached = {("lgekit", "")}  # names with an extra
    while wanted:
        wanted = {
            (need.name, more)
            for name, extra in wanted
            for need in map(Requirement, distribution(name).requires or [])
            if not need.marker or need.marker.evaluate({"extra": extra})
            for more in {"", *need.extras}
        } - reached
        reached = reached | wanted
    for name in {name for name, _ in reached} - {"lgekit"}:
        for top in {file.parts[0] for file in distribution(name).files} - {".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution(name).locate_file(top))
    pip = [sys.executable, "-I", "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", WHEEL], check=True)
    subprocess.run([*pip, "check"], check=True)
    return folder / "bin" / "lgekit"


def test_the_wheel_predicts_in_a_minute_and_names_the_extra_for_the_rest(program, tmp_path):
    def run(*arguments) -> subprocess.CompletedProcess:
        isolated = {"LGEKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "2"}
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | isolated
        command = [program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=own)

    cohort = phantom_cohort(2, seed=11, workers=1)
    lk.write_manifest(cohort, tmp_path / "nifti")
    study = cohort.studies[0]
    grey, (x, y, z) = study.pixels, study.spacing_mm
    grey = np.clip(1000 * grey / grey.max(), 0, None)
    heights = z * np.arange(grey.shape[2])
    write_dicom(tmp_path / "dicom" / "exam", grey, heights, PixelSpacing=[y, x], SliceThickness=z)
    started = time.monotonic()
    for spec, count in (("manifest:nifti/manifest.csv", 2), ("dicom:dicom", 1)):
        table = tmp_path / f"{spec[:5]}.csv"
        done = run("predict", "builtin", spec, table, "--pictures")
        assert done.returncode == 0, done.stderr
        found = pd.read_csv(table)
        assert len(found) == count and found["p_lge"].between(0, 1).all()
        assert found["anterior_rvip_deg"].notna().all()
        assert len(list(tmp_path.glob(f"{table.stem}_pictures/*.png"))) == count
    assert time.monotonic() - started < 60
    done = run("workbook", "--size", "smoke")
    assert done.returncode == 2 and "make setup" in done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
