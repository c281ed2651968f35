"""RandomScar: where the scar lies, what stays untouched, what it says, and that it replays."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
import torchio as tio
from toys import ring_study

import lgekit.scars.transforms
from lgekit.anatomy.labels import lv_centre, voxel_angle, wall_depth
from lgekit.anatomy.segments import findings_from_labels, segment_map
from lgekit.errors import InputError
from lgekit.evaluation.realism import scar_realism, synthetic_twins
from lgekit.findings import DEPTHS, LEVELS, WALLS, Findings, Scar, draw_findings, draw_scar
from lgekit.reports.reader import read_report
from lgekit.scars.transforms import AddScar, RandomScar, ScarHost, prepare_canvas
from lgekit.study import (
    CAVITY,
    MYOCARDIUM,
    NO_REFLOW,
    RV,
    SCAR,
    WALL_CODES,
    Cohort,
    Landmarks,
    Study,
)

EMIDEC = Path(__file__).parents[3] / "shared" / "data" / "emidec"
INFERIOR = Scar(walls=("inferior",), levels=("mid",), depth="subendocardial", transmurality=50)


def mean_angle(mask: np.ndarray, spacing=(1.2, 1.2, 8.0)) -> float:
    x, y, _ = np.nonzero(mask)
    centre = (np.array(mask.shape[:2]) - 1) / 2
    angle = np.arctan2(-(y - centre[1]) * spacing[1], (x - centre[0]) * spacing[0])
    return float(np.degrees(np.angle(np.exp(1j * angle).mean())) % 360)


def new_scar(study: Study) -> np.ndarray:
    return np.isin(study.label_map, (SCAR, NO_REFLOW))


def test_an_inferior_scar_lies_at_the_middle_of_the_inferior_wall():
    painted = AddScar(INFERIOR, seed=1)(ring_study())
    assert mean_angle(new_scar(painted)) == pytest.approx(
        270, abs=12
    )  # the inferior wall is 240-300 degrees


@pytest.mark.parametrize(
    "anterior, inferior, expected",
    [
        (120, 240, 270),
        (30, 150, 180),
        (300, 60, 90),
        (60, 300, 270),
        (240, 120, 90),
    ],  # the last two are mirrored
)
def test_rotated_and_mirrored_storage_moves_the_scar_with_the_heart(anterior, inferior, expected):
    painted = AddScar(INFERIOR, seed=1)(ring_study(anterior, inferior))
    assert abs((mean_angle(new_scar(painted)) - expected + 180) % 360 - 180) < 12


@pytest.mark.parametrize("flip", [False, True])
def test_a_basal_scar_lies_in_the_wide_slices_whatever_their_order(flip):
    painted = AddScar(Scar(("anterior",), ("basal",), "subendocardial"), seed=2)(
        ring_study(flip_slices=flip)
    )
    slices = np.flatnonzero(new_scar(painted).any((0, 1)))
    assert set(slices) == ({6, 7, 8} if flip else {0, 1, 2})


def test_anisotropic_pixels_do_not_bend_the_walls():
    spacing = (0.8, 1.6, 8.0)
    painted = AddScar(INFERIOR, seed=1)(ring_study(spacing=spacing, size=128))
    assert mean_angle(new_scar(painted), spacing) == pytest.approx(270, abs=12)


@pytest.mark.parametrize(
    "depth, low, high",
    [("subendocardial", 0, 0.42), ("mid-wall", 0.42, 0.58), ("subepicardial", 0.58, 1)],
)
def test_each_layer_lies_at_its_depth(depth, low, high):
    painted = AddScar(Scar(("inferior", "inferolateral"), ("mid",), depth), seed=3)(ring_study())
    mask, study = new_scar(painted), ring_study()
    depths = [wall_depth(study.label_map[..., s], study.spacing_mm)[mask[..., s]] for s in range(9)]
    assert low < np.concatenate(depths).mean() < high


def test_transmurality_follows_the_number_asked_for():
    sizes = []
    for percent in (25, 50, 65, 95):
        depth = "transmural" if percent > 75 else "subendocardial"
        painted = AddScar(Scar(("inferior",), ("mid",), depth, percent), seed=3)(ring_study())
        measured = findings_from_labels(painted).scars[0].transmurality
        assert measured == pytest.approx(percent, abs=10)
        sizes.append(new_scar(painted).sum())
    assert sizes == sorted(sizes)


def test_circumference_follows_the_number_asked_for():
    for percent in (20, 30, 40):
        scar = Scar(
            ("anterior", "anteroseptal", "inferoseptal"),
            ("mid",),
            "transmural",
            circumference=percent,
        )
        painted = AddScar(scar, seed=3)(ring_study())
        mask = new_scar(painted)[..., 4]
        x, y = np.nonzero(mask)
        angle = np.degrees(np.arctan2(-(y - 55.5), x - 55.5)) % 360
        assert len(np.unique(angle // 3)) / 120 == pytest.approx(percent / 100, abs=0.07)


def test_the_image_changes_only_near_the_scar_and_only_wall_becomes_scar():
    study = ring_study()
    torch.manual_seed(0)
    for seed in range(8):
        painted = RandomScar(p=1)(study) if seed else AddScar(INFERIOR, seed=0)(study)
        mask = new_scar(painted)
        assert (study.label_map[painted.label_map != study.label_map] == MYOCARDIUM).all()
        assert np.array_equal(mask, painted.label_map != study.label_map)
        x, y, s = np.nonzero(painted.pixels != study.pixels)
        scar = np.argwhere(mask)
        for i, j, k in zip(x, y, s, strict=True):
            near = scar[scar[:, 2] == k]
            assert len(near) and np.hypot(*((near[:, :2] - [i, j]) * 1.2).T).min() < 8  # mm


def test_the_scar_is_as_bright_as_blood_and_keeps_the_noise():
    study = ring_study()
    painted = AddScar(Scar(("inferior", "inferolateral"), ("basal", "mid"), "transmural"), seed=1)(
        study
    )
    scar = painted.pixels[new_scar(painted)]
    assert 120 < np.median(scar) < 330  # wall 60, blood 200
    change = (painted.pixels - study.pixels)[new_scar(painted)]
    residual = study.pixels[new_scar(painted)] - 60
    assert (
        np.corrcoef(scar - change, residual)[0, 1] > 0.99
    )  # what was there is still there, under the change


def test_no_reflow_is_a_dark_core_inside_the_scar():
    wanted = Scar(("inferior", "inferolateral"), ("basal", "mid"), "transmural", no_reflow=True)
    dark, bright, touching = [], [], []
    for seed in range(6):
        painted = AddScar(wanted, seed=seed)(ring_study())
        core, scar = painted.label_map == NO_REFLOW, painted.label_map == SCAR
        assert 0.03 < core.sum() / scar.sum() < 0.8
        dark.append(painted.pixels[core].mean())
        bright.append(painted.pixels[scar].mean())
        neighbours = np.roll(core, 1, 0) | np.roll(core, -1, 0)
        touching.append((painted.label_map == CAVITY)[neighbours].mean())
    assert np.mean(dark) < np.mean(bright) - 15
    assert np.mean(touching) < 0.1  # a rim of scar remains towards the cavity


def test_words_labels_and_image_change_together():
    study = ring_study(
        report="No late gadolinium enhancement.", report_source="clinical", findings=Findings()
    )
    painted = AddScar(INFERIOR, seed=5)(study)
    assert painted["findings"] == Findings(INFERIOR)
    assert painted["report_source"] == "synthetic" and painted["report"] != study["report"]
    assert read_report(painted["report"]).walls == {"inferior"}
    assert findings_from_labels(painted).walls == {"inferior"}


def test_input_is_not_modified_and_dtypes_stay():
    study = ring_study(report="Normal.")
    before = study.pixels.copy(), study.label_map.copy(), study["report"]
    painted = RandomScar(p=1)(study)
    assert np.array_equal(before[0], study.pixels) and np.array_equal(before[1], study.label_map)
    assert study["report"] == before[2] and study["findings"] is None and not study.history
    assert (
        painted["image"].data.dtype == torch.float32 and painted["labels"].data.dtype == torch.uint8
    )
    assert isinstance(painted, Study) and isinstance(painted["labels"], tio.LabelMap)


def test_whole_numbers_stay_whole():
    study = ring_study()
    study["image"].set_data(study["image"].data.round())
    painted = AddScar(INFERIOR, seed=1)(study).pixels
    assert (painted == np.rint(painted)).all() and (painted != study.pixels).any()


def test_history_replays_the_scar_inside_a_pipeline():
    study = ring_study()
    torch.manual_seed(7)
    first = tio.Compose([RandomScar(p=1), tio.RandomNoise(std=1)])(study)
    again = first.get_composed_history()(study)
    assert torch.equal(first["image"].data, again["image"].data)
    assert torch.equal(first["labels"].data, again["labels"].data)
    assert first["report"] == again["report"] and first["findings"] == again["findings"]


def test_chance_is_torchs_own():
    def run(seed):
        torch.manual_seed(seed)
        return RandomScar(p=1)(ring_study())

    assert torch.equal(run(3)["image"].data, run(3)["image"].data)
    assert not torch.equal(run(3)["image"].data, run(4)["image"].data)


def test_probability():
    torch.manual_seed(0)
    study, transform = ring_study(), RandomScar(p=0.3)
    painted = sum(new_scar(transform(study)).any() for _ in range(60))
    assert 8 <= painted <= 29  # 18 expected, 3 standard deviations
    assert RandomScar(p=0)(study) is study


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_a_host_paints_what_random_scar_paints(seed, monkeypatch):
    """The quick way for many scars in one study gives image, labels and words of the transform, and shares the rest."""
    study = ring_study()
    monkeypatch.setattr(RandomScar, "_get_random_seed", lambda self: seed)
    slow = RandomScar(p=1)(study)
    quick = ScarHost(study).paint(seed)
    assert torch.equal(quick["image"].data, slow["image"].data) and not torch.equal(
        quick["image"].data, study["image"].data
    )
    assert torch.equal(quick["labels"].data, slow["labels"].data)
    for key in ("findings", "report", "report_source", "scar_note"):
        assert quick[key] == slow[key], key
    assert np.array_equal(quick["image"].affine, study["image"].affine)
    assert study.get("report") != quick["report"] and not new_scar(study).any()


def test_a_pool_is_of_single_scars_whatever_its_size():
    """A larger pool begins with the smaller one, and its views are those of the painted studies."""
    from lgekit.clip.data import make_view
    from lgekit.clip.fit import paint_pool
    from lgekit.config import size_settings

    settings = size_settings("smoke", seed=3)
    hosts = [ring_study(), ring_study(anterior=30.0, inferior=150.0)]
    hosts[1]["study_id"] = "turned"
    small, large = (paint_pool(Cohort(hosts, "rings"), count, settings) for count in (3, 8))
    assert [one.source for one in large] == ["ring", "turned"] * 4
    for one, same in zip(small, large, strict=False):
        assert one.report == same.report and torch.equal(one.view.images, same.view.images)
    seed = int(np.random.default_rng([3, 7]).integers(2**31))
    anew = ScarHost(hosts[1]).paint(seed)
    assert anew["report"] == large[7].report
    assert torch.equal(make_view(anew, settings).images, large[7].view.images)


def test_studies_with_scar_are_left_alone_unless_asked():
    torch.manual_seed(0)
    scarred = AddScar(INFERIOR, seed=1)(ring_study())
    again = RandomScar(p=1)(scarred)
    assert torch.equal(again["image"].data, scarred["image"].data)
    assert "has a scar" in again["scar_note"] and "has a scar" in again.history[-1].note
    by_report = ring_study(report="Subendocardial late enhancement of the basal inferior wall.")
    assert not new_scar(RandomScar(p=1)(by_report)).any()
    lateral = Scar(("anterolateral",), ("mid",), "subendocardial")
    more = RandomScar(p=1, only_scar_free=False, findings=Findings(lateral))(scarred)
    assert more["findings"].walls == {"inferior", "anterolateral"}
    assert read_report(more["report"]).walls == {"inferior", "anterolateral"}
    assert (new_scar(more) & new_scar(scarred)).sum() == new_scar(scarred).sum()
    scarred.update({"report": "", "findings": None})  # labels alone
    more = RandomScar(p=1, only_scar_free=False, findings=Findings(lateral))(scarred)
    assert (
        more["findings"].walls == read_report(more["report"]).walls == {"inferior", "anterolateral"}
    )


def test_the_report_not_the_hidden_truth_decides():
    """Text-supervised training may not look at the truth: a scar that the report misses does not come back."""
    study = ring_study(
        report="No late gadolinium enhancement.", findings=Findings(Scar(("anterior",), ("mid",)))
    )
    painted = RandomScar(p=1, findings=Findings(INFERIOR))(study)
    assert read_report(painted["report"]).walls == {"inferior"}
    assert painted["findings"].walls == {"inferior", "anterior"}


def broken(**change) -> Study:
    study = ring_study()
    labels = study.label_map
    if "labels" in change:
        labels[:] = change.pop("labels")(labels)
    study.update(change)
    return study


def two_voxels(labels):
    out = np.zeros_like(labels)
    out[50:52, 50, 3] = MYOCARDIUM
    return out


@pytest.mark.parametrize(
    "study, words",
    [
        (broken(labels=lambda a: a * (a == CAVITY)), "0 voxels of myocardium"),
        (broken(labels=two_voxels), "2 voxels of myocardium"),
        (broken(landmarks=None), "insertion points unknown"),
        (broken(landmarks=Landmarks(float("nan"), 240)), "landmarks"),
    ],
)
def test_a_study_that_cannot_be_painted(study, words):
    with pytest.raises(InputError, match=words):
        AddScar(INFERIOR)(study)
    left = RandomScar(p=1)(study)
    assert torch.equal(left["image"].data, study["image"].data)
    assert torch.equal(left["labels"].data, study["labels"].data)
    assert words in left["scar_note"] and words in left.history[-1].note
    assert torch.equal(left.get_composed_history()(study)["image"].data, study["image"].data)


def test_more_bad_input():
    for findings, words in (
        (Findings(Scar(("inferior",), ("apex",))), "no slice shows"),
        (Findings(Scar(depth="transmural")), "no wall and no level"),
        (Findings(Scar(("inferior",), ("mid",), "mid-wall", 95)), "75 % of the wall"),
        (Findings(Scar(("inferior",), ("mid",), "transmural", 30)), "75 % of the wall"),
        (Findings(Scar(WALLS, ("mid",), "subendocardial", 20, circumference=20)), "does not fit"),
    ):
        with pytest.raises(InputError, match=words):
            AddScar(findings)(ring_study())
    with pytest.raises(InputError, match="prevalence"):
        RandomScar(prevalence="often")
    with pytest.raises(InputError, match="findings"):
        RandomScar(findings=["inferior"])
    with pytest.raises(InputError, match="findings"):
        AddScar("inferior")
    no_labels = ring_study()
    no_labels.remove_image("labels")
    with pytest.raises(InputError, match="labels"):
        AddScar(INFERIOR)(no_labels)
    spoilt = ring_study()
    spoilt["image"].data[0, 50:60, 50:60, 4] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        AddScar(INFERIOR)(spoilt)


def test_a_slice_with_a_cavity_and_no_wall_gets_no_scar():
    study = ring_study()
    study.label_map[..., 4] *= study.label_map[..., 4] == CAVITY
    painted = AddScar(INFERIOR, seed=1)(study)
    assert list(np.flatnonzero(new_scar(painted).any((0, 1)))) == [3, 5]


def test_findings_that_cannot_be_placed_leave_the_study_with_the_reason():
    impossible = Findings(Scar(WALLS, ("mid",), "subendocardial", 20, circumference=20))
    study = ring_study()
    left = RandomScar(p=1, findings=impossible)(study)
    assert (
        torch.equal(left["image"].data, study["image"].data)
        and "does not fit" in left.history[-1].note
    )


def test_slices_without_wall_and_a_labelled_rv_instead_of_landmarks():
    study = ring_study(landmarks=None)
    labels = study.label_map
    labels[..., 5] = 0  # a slice that nobody labelled
    x, y = np.meshgrid(np.arange(112) - 55.5, np.arange(112) - 55.5, indexing="ij")
    angle = np.degrees(np.arctan2(-y, x)) % 360
    right = ((angle > 120) & (angle < 240))[..., None] & (labels == 0)
    reach = np.where(
        angle > 190, 56, 46
    )  # the RV's acute margin leans towards the inferior insertion point
    right &= (np.hypot(x, y) * 1.2 < reach)[..., None] & labels.any((0, 1))
    labels[right] = RV
    painted = AddScar(INFERIOR, seed=1)(study)
    assert mean_angle(new_scar(painted)) == pytest.approx(270, abs=20)
    assert not new_scar(painted)[..., 5].any() and (painted.label_map == RV).sum() == right.sum()


def test_a_plain_torchio_subject_works():
    study = ring_study()
    subject = tio.Subject(lge=study["image"], mask=study["labels"], landmarks=study["landmarks"])
    painted = AddScar(INFERIOR, seed=1, image_name="lge", label_name="mask")(subject)
    assert (painted["mask"].data == SCAR).any() and painted["report"]


@pytest.fixture
def depth_once(monkeypatch):
    """Painting moves neither border of the wall: solve the depth of each slice once, for thousands of draws."""
    kept: dict[tuple, np.ndarray] = {}

    def remembered(labels, spacing):
        key = (
            np.isin(labels, WALL_CODES).tobytes(),
            (labels == CAVITY).tobytes(),
            labels.shape,
            tuple(spacing),
        )
        return kept.setdefault(key, wall_depth(labels, spacing)) if key not in kept else kept[key]

    monkeypatch.setattr("lgekit.anatomy.labels.wall_depth", remembered)


def around(painted: Study) -> float:
    """Percent of the circumference that scar covers in the slices with scar, by other means than the painter's."""
    x, y = (np.arange(n, dtype=float) for n in painted.label_map.shape[:2])
    shares = []
    for s in np.flatnonzero(new_scar(painted).any((0, 1))):
        codes = painted.label_map[..., s]
        centre = lv_centre(codes[..., None])[0]
        sector = (voxel_angle(x[:, None], y[None], centre, painted.spacing_mm) // 6).astype(int)
        wall, scar = (
            np.bincount(sector[m], minlength=60)
            for m in (np.isin(codes, WALL_CODES), np.isin(codes, (SCAR, NO_REFLOW)))
        )
        shares.append((scar > 0.1 * wall).sum() / (wall > 0).sum())
    return 100 * float(np.mean(shares))


def described_as(found: Findings, painted: Study) -> bool:
    """Whether the mask, measured by `anatomy`, is what the findings say (transmurality within 10 points)."""
    measured = findings_from_labels(painted)
    if measured.present != found.present or len(found.scars) > 1:
        return measured.present == found.present and measured.walls == found.walls
    said, seen = found.scars[0], measured.scars
    return (
        (measured.walls == frozenset(said.walls) or said.levels == ("apex",))
        and frozenset().union(*(scar.levels for scar in seen)) == frozenset(said.levels)
        and all(scar.depth == said.depth for scar in seen)
        and (
            said.transmurality is None
            or all(abs(said.transmurality - scar.transmurality) <= 10 for scar in seen)
        )
        and any(scar.no_reflow for scar in seen) == said.no_reflow
    )


def agreement(studies: list[Study], draws: int) -> tuple[int, int]:
    """How many of the painted draws are as described, and how many were painted."""
    canvases, rng = [prepare_canvas(study) for study in studies], np.random.default_rng(1)
    agreed = painted = 0
    for number in range(draws):
        canvas, study = canvases[number % len(canvases)], studies[number % len(studies)]
        found = canvas.fit(Findings(draw_scar(rng, "clinical" if number % 2 else "uniform")))
        try:
            image, labels = canvas.paint(found, rng)
        except InputError:
            continue  # reported, not painted
        if not found.present:
            continue
        painted += 1
        scarred = Study.from_arrays(
            "x", image, study.spacing_mm, labels, landmarks=study["landmarks"]
        )
        stated = found.scars[0].circumference
        agreed += described_as(found, scarred) and (
            stated is None or abs(around(scarred) - stated) < 11
        )
    assert painted >= 0.95 * draws
    return agreed, painted


def test_masks_agree_with_their_words():
    agreed, painted = agreement([ring_study(), ring_study(30, 280, (0.9, 1.7, 10), slices=6)], 40)
    assert agreed >= 0.99 * painted


@pytest.mark.slow
def test_masks_agree_with_their_words_on_the_phantom(depth_once):
    from lgekit.data.phantom import phantom_study

    healthy = [
        s
        for s in (phantom_study(index, seed=0) for index in range(24))
        if not s["findings"].present
    ]
    agreed, painted = agreement(healthy, 2500)
    assert agreed >= 0.99 * painted


def emidec(kind: str) -> Cohort:
    if not EMIDEC.exists():
        pytest.skip("no EMIDEC data beside the repository (../shared/data/emidec)")
    from lgekit.data.readers import read_cohort

    cohort = read_cohort(f"emidec:{EMIDEC}")
    return Cohort([s for s in cohort.studies if s["study_id"].startswith(f"Case_{kind}")], kind)


@pytest.mark.slow
def test_masks_agree_with_their_words_on_emidec_normals(depth_once):
    agreed, painted = agreement(emidec("N").studies, 2500)
    assert agreed >= 0.99 * painted


@pytest.mark.slow
def test_synthetic_scars_are_hard_to_tell_from_real_ones():
    real, normal = emidec("P"), emidec("N")
    _, aucs = scar_realism(real, synthetic_twins(real, normal, seed=0))
    _, control = scar_realism(real, synthetic_twins(real, normal, seed=0, constant=True))
    assert aucs["texture"]["value"] <= 0.75 and aucs["both"]["value"] <= 0.85
    assert control["texture"]["value"] > 0.95


def test_the_examples_of_the_docstrings_run():
    result = doctest.testmod(lgekit.scars.transforms)
    assert result.failed == 0 and result.attempted > 5


def test_every_wall_level_and_depth_can_be_painted():
    canvas, failed = prepare_canvas(ring_study()), []
    rng = np.random.default_rng(0)
    for wall in WALLS:
        for level in LEVELS[:3]:
            for depth in DEPTHS:
                try:
                    canvas.paint(Findings(Scar((wall,), (level,), depth)), rng)
                except InputError as error:
                    failed.append(str(error))
    assert not failed


def test_scar_stays_in_its_segments_and_slices_continue_each_other():
    study, rng = ring_study(), np.random.default_rng(2)
    canvas = prepare_canvas(study)
    segments = segment_map(study.label_map, study.spacing_mm, study["landmarks"])
    for _ in range(20):
        found = canvas.fit(draw_findings(rng, "uniform"))
        if not found.present:
            continue
        _, labels = canvas.paint(found, rng)
        mask = np.isin(labels, (SCAR, NO_REFLOW))
        assert np.isin(segments[mask], list(found.segments)).all()
    _, labels = canvas.paint(
        Findings(Scar(("inferior",), ("basal", "mid", "apical"), "subendocardial")), rng
    )
    angles = [mean_angle(np.isin(labels[..., s : s + 1], (SCAR, NO_REFLOW))) for s in range(9)]
    assert np.abs(np.diff(angles)).max() < 20
