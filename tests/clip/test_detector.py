"""The whole method: fit, predict from images alone, save, load, and share on the hub."""

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import lgekit, refused
from safetensors.torch import load_file, save_file

from lgekit.anatomy.frame import View
from lgekit.clip import detector as hub
from lgekit.clip import fit as module
from lgekit.clip.data import batch_of, make_view
from lgekit.clip.detector import Detector
from lgekit.clip.fit import calibrate, fit_detector, pretrain_polar, warp
from lgekit.clip.model import StudyEncoder
from lgekit.clip.zeroshot import write_captions
from lgekit.config import PLAIN_CLIP, FitSettings, size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS
from lgekit.study import Cohort, Study

EMIDEC = Path(__file__).parents[3] / "shared" / "data" / "emidec"
QUICK = {"epochs": 1, "width": 16, "synthetic_per_real": 0.5}
SCAR, NONE = "Scar of the inferior wall.", "No late gadolinium enhancement."
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def cohort():
    studies = phantom_cohort(14, seed=1, pixels=72, workers=1).studies
    return Cohort(studies, "phantom:/home/somebody")


@pytest.fixture(scope="module")
def fitted(cohort):
    return fit_detector(cohort, size_settings("smoke", **QUICK), progress=False)


def images_only(cohort):
    studies = [Study(study_id=study["study_id"], image=study["image"]) for study in cohort.studies]
    return Cohort(studies, "images")


def with_reports(cohort, reports):
    pairs = zip(cohort.studies, reports, strict=True)
    return Cohort([Study(**{**study, "report": text}) for study, text in pairs], cohort.name)


def test_predicts_from_images_alone_and_encodes_each_slice_once(fitted, cohort, monkeypatch):
    cohort = Cohort(cohort.studies[:4], "few")
    (model, tokenizer), slices = fitted.networks[0], []
    hook = model.visual.encoder.register_forward_pre_hook(lambda _, x: slices.append(len(x[0])))
    table = fitted.predict(images_only(cohort))
    hook.remove()
    lists = ["slice_weights", "attention", "segments"]
    columns = ["study_id", "p_lge", *(f"p_{wall}" for wall in WALLS), *lists, "caption"]
    assert list(table) == [*columns, "anterior_rvip_deg", "inferior_rvip_deg"]
    assert table.filter(regex="^p_").apply(lambda column: column.between(0, 1)).all(axis=None)
    for study, row in zip(cohort.studies, table[lists].map(json.loads).itertuples(), strict=True):
        for values in (row.slice_weights, row.attention):
            assert len(values) == study.spatial_shape[2] and 0 <= min(values) <= max(values) <= 1
        assert sum(row.attention) == pytest.approx(1, abs=0.001) and len(row.segments) == 17
    batch = batch_of(fitted.views(fitted.locate(cohort)))
    assert sum(slices) == int(batch.mask.sum())
    assert table["caption"].tolist() == write_captions(model, tokenizer, batch)
    monkeypatch.setattr("lgekit.clip.detector.STUDIES_AT_ONCE", 3)
    pd.testing.assert_frame_equal(table, fitted.predict(cohort), atol=1e-4)


def test_compares_studies_and_slices_with_any_sentence(fitted, cohort):
    some = Cohort(cohort.studies[:3], "some")
    table = fitted.levels_and_depths(images_only(some))
    levels, depths = [f"level_{name}" for name in LEVELS], [f"depth_{name}" for name in DEPTHS]
    assert list(table.columns) == ["study_id", *levels, *depths] and len(table) == 3
    np.testing.assert_allclose(table[depths].sum(axis=1), 1)
    assert (table[levels].std() > 0).all()
    embedded = fitted.embed(some)
    studies, slices = fitted.similarity(embedded, SCAR)
    assert studies.shape == (3,) and (np.abs(studies) <= 1 + 1e-6).all()
    assert [len(values) for values in slices] == [study.spatial_shape[2] for study in some.studies]
    denied = fitted.similarity(embedded, NONE)
    evidence, slice_evidence = fitted.similarity(embedded, SCAR, fitted.denials)
    np.testing.assert_allclose(evidence, studies - denied[0], atol=1e-6)
    np.testing.assert_allclose(slice_evidence[2], slices[2] - denied[1][2], atol=1e-6)


ROWS = [PLAIN_CLIP, {"view": "image"}, {"orientation": "centre"}, {"masks": "true"}]


@pytest.mark.parametrize("row", [*ROWS, {"models": 2, "text": "report"}])
def test_every_ablation_row_can_be_fitted(cohort, row):
    fitted = fit_detector(cohort, size_settings("smoke", **(QUICK | row)), progress=False)
    few = Cohort(cohort.studies[:2], "few")
    table = fitted.predict(few if row.get("masks") == "true" else images_only(few))
    assert len(table) == 2 and np.isfinite(table["p_lge"]).all()
    assert len(fitted.networks) == row.get("models", 1)
    needs_heart = row is not PLAIN_CLIP and row.get("masks") != "true"
    assert (fitted.heart is not None) is fitted.settings.needs_heart is needs_heart


def test_a_held_out_prediction_does_not_depend_on_its_own_report(fitted, cohort):
    located = fitted.locate(cohort)
    views = [make_view(study, fitted.settings) for study in located.studies]
    reading, tables = fitted.read(batch_of(views)), []
    reports = cohort.manifest["report"].tolist()
    present = cohort.studies[0]["findings"].present
    other = "No late enhancement." if present else "Transmural scar of the inferior wall."
    for texts in (reports, [other, *reports[1:]]):
        detector, group = replace(fitted), np.arange(len(cohort))
        calibrate(detector, with_reports(located, texts), views, reading, group)
        tables.append(detector.held_out["p_lge"])
    same = tables[0] == tables[1]
    assert same.iloc[0] and not same.iloc[1:].any()


def test_the_shuffled_control_is_calibrated_on_the_wrong_reports(cohort):
    own = size_settings("smoke", shuffle_text=True)
    reports = cohort.manifest["report"].tolist()
    shuffled = module.calibration_reports(cohort, own).tolist()
    assert sorted(shuffled) == sorted(reports)
    unique = with_reports(cohort, [f"report {number}" for number in range(len(cohort))])
    pairs = zip(module.calibration_reports(unique, own), unique.studies, strict=True)
    assert all(text != study["report"] for text, study in pairs)


def test_reports_without_a_statement_on_enhancement_are_left_out(cohort):
    silent, own = {s["study_id"] for s in cohort.split("train").studies[:3]}, {"masks": "true"}
    reports = ["LVEF 60%." if s["study_id"] in silent else s["report"] for s in cohort.studies]
    mute, own = with_reports(cohort, reports), size_settings("smoke", **QUICK, **own)
    without = Cohort([s for s in cohort.studies if s["study_id"] not in silent], cohort.name)
    with pytest.warns(UserWarning, match="3 reports do not say"):
        fitted = fit_detector(mute, own, progress=False)
    assert fitted.calibration == fit_detector(without, own, progress=False).calibration
    with pytest.raises(InputError, match="0 training reports mention"):
        fit_detector(with_reports(cohort, [""] * len(cohort)), own, progress=False)


@pytest.mark.parametrize("all_studies", [False, True])
def test_reports_of_one_kind_are_refused_before_the_long_run(cohort, monkeypatch, all_studies):
    monkeypatch.setattr(module, "base_network", lambda *_: 1 / 0)
    scarred, healthy = (with_reports(cohort, [text] * len(cohort)) for text in (SCAR, NONE))
    painted, options = size_settings("smoke", **QUICK), {"all_studies": all_studies}
    bare = painted.override(synthetic_per_real=0.0)
    for own in (painted, bare):
        with pytest.raises(InputError, match=", 0 of them deny it"):
            fit_detector(scarred, own, **options)
    with pytest.raises(InputError, match=r"(\d+) training reports .* \1 of them deny it"):
        fit_detector(healthy, bare, **options)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ZeroDivisionError):
        warnings.simplefilter("always")
        fit_detector(cohort, painted, **options)
    one_kind = any("2 of 2 studies for calibration" in str(one.message) for one in caught)
    assert one_kind is not all_studies


def test_a_row_without_pretrained_weights_is_refused(cohort):
    own = size_settings("smoke", **QUICK, view="image", masks="true")
    with pytest.raises(InputError, match="encoder_init.*heart network"):
        fit_detector(cohort, own, progress=False)


def test_polar_pretraining_finds_the_wall_and_starts_the_slice_encoder():
    depth = -0.6 + 2.0 * (torch.arange(16) + 0.5) / 16
    row = torch.where(depth < 0, 1.0, torch.where(depth < 1, 0.0, 0.5))
    images = row[:, None].expand(24, 1, 16, 24).contiguous()
    warped, classes = warp(images, (0.6, 0.4), torch.Generator().manual_seed(0))
    value = torch.tensor([1.0, 0.0, 0.5])[classes]
    assert ((warped[:, 0] - value).abs() < 0.3).float().mean() > 0.9  # all but blurred borders
    own = FitSettings(width=16, polar_channels=8, depths=16, angles=24, polar_pretraining=2)
    batch = batch_of([View(images[:4], torch.linspace(0, 1, 4), np.arange(4))] * 4)
    one, other = (pretrain_polar(batch, own, False) for _ in range(2))
    encoder = StudyEncoder(own)
    encoder.load_segmentation(one)
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, one[name]) and torch.equal(value, other[name])


@pytest.fixture
def saved(fitted, tmp_path):
    ids = ["NA", *(f"{number:03d}" for number in range(1, len(fitted.held_out)))]
    return replace(fitted, held_out=fitted.held_out.assign(study_id=ids)).save(tmp_path / "model")


def test_a_saved_detector_is_the_same_after_loading(saved, fitted, cohort):
    again = Detector.load(saved)
    assert again.settings == fitted.settings and again.calibration == fitted.calibration
    assert again.held_out["study_id"].tolist()[:2] == ["NA", "001"]
    cohort = Cohort(cohort.studies[:3], "few")
    pd.testing.assert_frame_equal(again.predict(cohort), fitted.predict(cohort))


def not_finite(file: Path) -> None:
    weights = load_file(file)
    name = next(name for name in weights if weights[name].is_floating_point())
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, file)


def change_calibration(file: Path, pair: list[float]) -> None:
    about = json.loads(file.read_text())
    about["platt"]["presence"] = pair
    file.write_text(json.dumps(about))


def edit(name: str, old: str, new: str):
    return lambda model: (model / name).write_text((model / name).read_text().replace(old, new, 1))


DAMAGED = [
    ("detector.json: not", edit("detector.json", '"settings"', '"changes"')),
    ("detector.json: not", edit("detector.json", '"epochs"', '"wings"')),
    ("detector.json: not", edit("detector.json", '"view": "polar"', '"view": "image"')),
    ("clip_0/tokenizer.json: not", edit("clip_0/tokenizer.json", "{", " {")),
    ("held_out.csv: not", edit("held_out.csv", "study_id", "study")),
    ("heart/heart.json: not", edit("heart/heart.json", "{", "")),
    ("heart/heart.json: not", lambda model: shutil.rmtree(model / "heart")),
]
HOSTILE = {
    "networks": edit("detector.json", '"networks": 1', '"networks": -5'),
    "finite number": lambda model: change_calibration(model / "detector.json", [math.nan, 0.0]),
    "settings.width": edit("detector.json", '"width": 16', '"width": 99999996'),
    "settings.encoder": edit("detector.json", "regnetx_002", "hf-hub:stranger/net"),
    "settings.text_layers": edit("detector.json", '"text_layers": 2', '"text_layers": 1000'),
    "SavedHeart settings.encoder": edit("heart/heart.json", "regnetx_002", "hf-hub:stranger/net"),
    "not a tokenizer": edit("clip_0/tokenizer.json", "[ \\\\t]+", "(a+)+$"),
    "is not finite": lambda model: not_finite(model / "clip_0/model.safetensors"),
    "heart: not a heart network": lambda model: not_finite(model / "heart/heart.safetensors"),
    "clip_0: not": lambda model: (model / "clip_0/model.safetensors").write_bytes(b"short"),
}


@pytest.mark.parametrize(("problem", "change"), [*DAMAGED, *HOSTILE.items()])
def test_a_damaged_or_hostile_model_is_refused_in_one_line(saved, monkeypatch, problem, change):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))
    change(saved)
    if problem in HOSTILE:
        hub.seal(saved)
    with pytest.raises(InputError) as caught:
        Detector.load(saved)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_probability_that_is_not_a_number_is_an_error(fitted, cohort):
    broken = replace(fitted, calibration=replace(fitted.calibration, presence=(math.nan, 0.0)))
    with pytest.raises(InputError, match="not a number"):
        broken.predict(Cohort(cohort.studies[:2], "few"))


@pytest.fixture
def api(monkeypatch, tmp_path):
    """A hub in a folder, instead of huggingface_hub's client."""
    from fnmatch import fnmatch

    class FolderHub:
        folder = tmp_path / "hub"

        def create_repo(self, repo, private, exist_ok):
            (self.folder / repo).mkdir(parents=True, exist_ok=exist_ok)

        def copy(self, source, target, patterns):
            for file in Path(source).rglob("*"):
                name = file.relative_to(source)
                if file.is_file() and any(fnmatch(str(name), one) for one in patterns):
                    (target / name).parent.mkdir(exist_ok=True)
                    shutil.copy(file, target / name)

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            self.copy(folder_path, self.folder / repo_id, allow_patterns)

        def snapshot_download(self, repo, local_dir, allow_patterns):
            if not (self.folder / repo).is_dir():
                raise OSError(f"404: {repo} does not exist\nRequest ID: 1")
            (Path(local_dir) / ".cache").mkdir(parents=True)
            self.copy(self.folder / repo, Path(local_dir), allow_patterns)

    monkeypatch.setattr("huggingface_hub.HfApi", FolderHub)
    return FolderHub


def test_only_the_model_travels_to_the_hub_and_back(saved, api, tmp_path):
    (saved / "manifest.csv").write_text("study_id\nP01")
    sent = hub.push(saved, "me/scar")
    parts = ["model.safetensors", "tokenizer.json"]
    wanted = ["README.md", "detector.json", "heart/heart.json", "heart/heart.safetensors"]
    assert sent == sorted(wanted + [f"clip_0/{part}" for part in parts])
    remote = api.folder / "me/scar"
    assert not any(b"somebody" in file.read_bytes() for file in remote.rglob("*.*"))
    assert "Not a medical device" in (remote / "README.md").read_text()
    for name in ("held_out.csv", "run.py", "clip_0/weights.bin", "heart/P01.nii.gz"):
        (remote / name).write_text("a stranger's")
    done = lgekit("pull", "me/scar", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    fetched = (tmp_path / "again").rglob("*.*")
    assert sorted(str(file.relative_to(tmp_path / "again")) for file in fetched) == sent
    assert Detector.load(tmp_path / "again").held_out is None
    (saved / "README.md").write_text("# ours")
    assert lgekit("push", saved, "me/scar", "--public").returncode == 0
    assert (remote / "README.md").read_text() == "# ours"


def test_what_the_hub_cannot_take_or_give_is_refused_in_one_line(saved, api, tmp_path):
    refused("pull", "me/nothing", tmp_path / "new", mentions="me/nothing: 404")
    refused("push", tmp_path, "me/scar", mentions="detector.json")
    (api.folder / "me/broken").mkdir(parents=True)
    refused("pull", "me/broken", tmp_path / "new", mentions="detector.json")
    assert not (api.folder / "me/scar").exists() and not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(not EMIDEC.is_dir(), reason="EMIDEC is not available")
def test_text_supervision_with_true_contours_finds_scar_in_emidec():
    from sklearn.metrics import balanced_accuracy_score

    from lgekit.data.readers import read_cohort

    emidec = read_cohort(f"emidec:{EMIDEC}")
    own = size_settings("laptop", masks="true", epochs=30, synthetic_per_real=0, caption_weight=0.0)
    fitted = fit_detector(emidec, own, all_studies=True, progress=False)
    truth = emidec.manifest["scar"].astype(bool)
    assert balanced_accuracy_score(truth, fitted.held_out["p_lge"] > 0.5) > 0.85
