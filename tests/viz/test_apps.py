"""The apps without code: short notebooks, and a detector that is fitted once."""

import ast
import json
from pathlib import Path

import pytest
from cohort_files import write_own

from lgekit.config import PLAIN_CLIP, size_settings
from lgekit.errors import InputError
from lgekit.viz import widgets as apps

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks" / "apps").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_app_is_a_short_notebook_without_outputs(path):
    words, code = json.loads(path.read_text("utf-8"))["cells"]
    assert "Not a medical device" in "".join(words["source"])
    assert not code["outputs"] and code["execution_count"] is None
    assert len(ast.parse("".join(code["source"])).body) <= 5


def test_there_is_an_app_for_painter_and_playground():
    assert [path.stem for path in NOTEBOOKS] == ["prompt_playground", "scar_painter"]


def test_the_small_detector_is_fitted_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(apps, "STUDIES", 14)
    monkeypatch.setattr(
        apps, "size_settings", lambda size: size_settings(size, **PLAIN_CLIP, epochs=1, width=16)
    )
    first = apps.playground_detector()
    monkeypatch.setattr(apps, "fit_detector", None)  # a second fit would fail
    again = apps.playground_detector()
    cohort = apps.phantom_cohort(2, seed=1)
    assert again.predict(cohort).equals(first.predict(cohort))


def test_a_model_of_ones_own_is_read_and_a_wrong_folder_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        apps.playground_detector(str(tmp_path))


def test_the_playground_shows_phantoms_or_the_first_of_ones_own_images(tmp_path, monkeypatch):
    assert len(apps.playground_cohort()) == apps.SHOWN
    monkeypatch.setattr(apps, "SHOWN", 2)
    monkeypatch.setattr(
        apps, "project_root", lambda: tmp_path
    )  # from where relative paths are meant
    write_own(tmp_path / "mine")
    shown = apps.playground_cohort("manifest:mine/manifest.csv")
    assert shown.manifest["study_id"].tolist() == ["s0", "s1"]
    assert all(study.label_map is None and not study["report"] for study in shown.studies)
    with pytest.raises(InputError, match="no kind of cohort"):
        apps.playground_cohort("mine")
