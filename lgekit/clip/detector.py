"""The detector."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import nn

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.labels import Ventricle
from lgekit.anatomy.polar import INSIDE, OUTSIDE
from lgekit.anatomy.segments import (
    ANTERIOR_RVIP_DEG,
    known_landmarks,
    segment_map,
    segment_number,
)
from lgekit.clip.data import REACH, View, batch_of, chunks, make_view
from lgekit.clip.model import CoCaModel, StudyBatch, load_coca, save_coca
from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.clip.zeroshot import (
    Calibration,
    Reading,
    heat_map,
    probability,
    read_studies,
    write_captions,
)
from lgekit.config import FitSettings, make_settings
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, segment_of
from lgekit.reports.training_texts import prompt_sets
from lgekit.segmentation.model import HeartNetwork
from lgekit.segmentation.train import locate
from lgekit.study import Cohort, Study


def segment_means(
    heat: np.ndarray, view: View, study: Study, settings: FitSettings
) -> dict[int, float]:
    """Mean of a heat map over the wall of each AHA segment.

    Args:
        heat: `(slices, height, width)` on the view, as `lgekit.clip.zeroshot.heat_map` gives.
        view: what `lgekit.clip.fit.make_view` made of the study.
        study: located: its labels and landmarks say where the wall and its segments are.
        settings: of the view.

    Returns:
        Segment 1–17 → mean; segments that no slice of the view shows are missing, all of them where no heart was found,
        or no insertion points sure enough to turn it by.
    """
    if not segments_known(study, settings):
        return {}
    of_view = _polar_segments if settings.frame == "polar" else _image_segments
    segments = of_view(view, study, settings)
    return {int(n): float(heat[segments == n].mean()) for n in np.unique(segments[segments > 0])}


def segments_known(study: Study, settings: FitSettings) -> bool:
    """Whether a located study shows a heart, and insertion points sure enough to tell its segments by."""
    return _turned(study, settings) and bool(Ventricle.of(study.label_map).area.any())


def _turned(study: Study, settings: FitSettings) -> bool:
    landmarks = known_landmarks(study)
    return (
        landmarks is not None
        and landmarks.confidence >= settings.min_confidence
        and study.label_map is not None
    )


def segment_maxima(
    walls: np.ndarray, present: np.ndarray, view: View, study: Study, settings: FitSettings
) -> dict[int, float]:
    """What slices that were asked one by one say of each AHA segment: the most that a slice of its ring says of its
    wall. An apical segment of two walls takes the larger; the apex (17) has no wall and takes presence.

    Segments as in Cerqueira 2002, doi:10.1161/hc0402.102975. A scar in one slice of a ring is in the segment, hence
    the maximum [O].

    Args:
        walls: `(slices, 6)` probability of scar in each wall, for each slice of the view.
        present: `(slices,)` probability of scar anywhere, likewise.
        view: what `lgekit.clip.fit.make_view` made of the study.
        study: located: its labels say which ring each slice lies in.
        settings: of the view.

    Returns:
        Segment 1–17 → probability; segments that no slice of the view shows are missing, all of them where
        `segments_known` is False or the view is not turned by the insertion points.
    """
    if settings.orientation != "rvip" or not _turned(study, settings):
        return {}
    rings = Ventricle.of(study.label_map).thirds[view.own_slices]  # -1 where there is no heart
    values: dict[int, float] = {}
    for third, level in enumerate(LEVELS[:3]):
        for wall, name in enumerate(WALLS):
            segment, told = segment_of(name, level), walls[rings == third, wall]
            if len(told):
                values[segment] = max(float(told.max()), values.get(segment, 0.0))
    return values | ({17: float(present[rings == 3].max())} if (rings == 3).any() else {})


def _polar_segments(view: View, study: Study, settings: FitSettings) -> np.ndarray:
    """Segment of each sample of the polar view `(slices, depths, angles)`, 0 beside the wall.

    The first column is the anterior insertion point (where it is not, no segment is known); the apex (17) is a slice
    with a wall and no cavity.
    """
    if settings.orientation != "rvip":
        return np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)), np.uint8)
    inside, outside = REACH if settings.masks == "predicted" else (INSIDE, OUTSIDE)
    depth = -inside + (1 + inside + outside) * (np.arange(settings.depths) + 0.5) / settings.depths
    wall = (depth >= 0) & (depth <= 1)
    frame_deg = ANTERIOR_RVIP_DEG + 360 * np.arange(settings.angles) / settings.angles
    segments = np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)), np.uint8)
    for number, third in enumerate(Ventricle.of(study.label_map).thirds[view.own_slices]):
        if third >= 0:
            segments[number, wall] = 17 if third == 3 else segment_number(frame_deg, third)
    return segments


def _image_segments(view: View, study: Study, settings: FitSettings) -> np.ndarray:
    """Segment of each pixel of the image view `(slices, pixels, pixels)`, 0 outside the wall."""
    landmarks = known_landmarks(study)
    if landmarks is None or study.label_map is None:
        return np.zeros(tuple(view.images.shape[i] for i in (0, 2, 3)), np.uint8)
    stored = segment_map(study.label_map, study.spacing_mm, landmarks)
    transform = StandardizeShortAxis(
        settings.pixels, orientation=settings.orientation, min_confidence=settings.min_confidence
    )
    frame = transform.find_frame(study)
    drawn = frame.to_frame(torch.from_numpy(stored)[None], nearest=True)[
        0
    ].numpy()  # (X, Y, slices)
    own = stored.shape[2] - 1 - view.own_slices if frame.reversed_slices else view.own_slices
    return np.moveaxis(drawn, 2, 0)[own]


@dataclass
class Embedded:
    """Studies in the joint space, for prompts typed later.

    Attributes:
        studies: `(studies, embed_dim)`, length 1.
        slices: `(studies, slices, embed_dim)`, likewise, each slice on its own; NaN where padding.
        views: their views.
        own_slices: how many slices each study has.
    """

    studies: torch.Tensor
    slices: torch.Tensor
    views: list[View]
    own_slices: list[int]


@dataclass
class Detector:
    """Scar detection from images alone.

    Attributes:
        settings: how it was trained.
        networks: CoCa models with their tokenizers; their scores are averaged.
        heart: the heart network; None where ``orientation="none"`` or the true masks are used.
        calibration: scores → probabilities; the decision is ``p_lge > 0.5``.
        histories: one training history a network.
        held_out: predictions of studies by networks that were not trained on them, calibrated without their reports,
            where there are any. Without ``all_studies`` these are the validation split, whose texts chose the epoch:
            a little too good.
    """

    settings: FitSettings
    networks: list[tuple[CoCaModel, ReportTokenizer]]
    heart: HeartNetwork | None
    calibration: Calibration
    histories: list[pd.DataFrame] = field(default_factory=list)
    held_out: pd.DataFrame | None = None

    def locate(self, cohort: Cohort) -> Cohort:
        """The cohort with the heart network's contours and insertion points."""
        return cohort if self.heart is None else locate(cohort, self.heart)

    @torch.no_grad()
    def predict(self, cohort: Cohort, beams: int = 1) -> pd.DataFrame:
        """Read every study from its image alone.

        Args:
            cohort: the studies; nothing but their images is looked at.
            beams: width of the captions' beam search; 1 is greedy decoding.

        Returns:
            a row a study: ``study_id, p_lge``, one ``p_`` column a wall, ``slice_weights`` (JSON list, one number from
            0 to 1 for each of the study's own slices, 0 where no heart was found), ``attention`` (likewise: the share
            of each slice in the study's embedding; sums to 1), ``segments`` (JSON list, AHA segments 1-17: the largest
            probability of the segment's wall that a slice of its ring has when asked on its own, 0 to 1; null where no
            slice shows it, see `lgekit.clip.detector.segment_maxima`), ``caption``,
            ``anterior_rvip_deg, inferior_rvip_deg`` (NaN where the heart network is not used).
        """
        located = self.locate(cohort)
        views = [make_view(study, self.settings) for study in located.studies]
        batch = batch_of(views)
        encoded = [
            self.networks[0][0].visual.slice_features(part) for part in chunks(batch)
        ]  # once, for both
        reading = self.mean_reading(batch, torch.cat([features for features, _ in encoded]))
        captions = []
        for part, known in zip(chunks(batch), encoded, strict=True):
            captions += write_captions(*self.networks[0], part, beams, encoded=known)
        return self.table(located, views, reading, captions)

    def levels_and_depths(self, cohort: Cohort) -> pd.DataFrame:
        """What the prompts of each level and each depth of the wall say, from the images alone.

        Returns:
            a row a study: ``study_id``; ``level_<level>``: log-odds of its prompt against "no enhancement", for several
            levels may hold scar; ``depth_<depth>``: share of its prompt among the depths, 0 to 1, for a scar has one.
        """
        batch = batch_of([make_view(study, self.settings) for study in self.locate(cohort).studies])
        reading = self.mean_reading(batch)
        shares = np.exp(reading.depths - reading.depths.max(1, keepdims=True))
        table = pd.DataFrame({"study_id": [study["study_id"] for study in cohort.studies]})
        table[[f"level_{level}" for level in LEVELS]] = reading.levels
        table[[f"depth_{depth}" for depth in DEPTHS]] = shares / shares.sum(1, keepdims=True)
        return table

    def mean_reading(self, batch: StudyBatch, features: torch.Tensor | None = None) -> Reading:
        """Uncalibrated reading, the mean of all networks; ``features`` as the first network's slice encoder gives."""
        further = [self.read(batch, number) for number in range(1, len(self.networks))]
        return Reading.mean([self.read(batch, 0, features), *further])

    def read(
        self, batch: StudyBatch, number: int = 0, features: torch.Tensor | None = None
    ) -> Reading:
        """Uncalibrated reading by one of the networks."""
        return read_studies(
            *self.networks[number], batch, prompt_sets(self.settings.text), features=features
        )

    def table(
        self, located: Cohort, views: Sequence[View], reading: Reading, captions: Sequence[str]
    ) -> pd.DataFrame:
        """The columns of `predict` from a reading."""
        rows = []
        for number, (study, view) in enumerate(zip(located.studies, views, strict=True)):
            count = len(view.levels)
            present = probability(reading.slices[number, :count], self.calibration.slices)
            each_wall = zip(
                reading.slice_walls[number, :count].T, self.calibration.walls, strict=True
            )
            walls = np.stack([probability(scores, pair) for scores, pair in each_wall], axis=1)
            segments = segment_maxima(walls, present, view, study, self.settings)
            marks = study["landmarks"] if self.heart is not None else None
            row = {"study_id": study["study_id"]}
            row["p_lge"] = float(probability(reading.presence[number], self.calibration.presence))
            for wall, score, pair in zip(
                WALLS, reading.walls[number], self.calibration.walls, strict=True
            ):
                row[f"p_{wall}"] = float(probability(score, pair))
            for name, values in (
                ("slice_weights", present),
                ("attention", reading.attention[number, :count]),
            ):
                stored = np.zeros(study.spatial_shape[2])
                stored[view.own_slices] = values
                row[name] = json.dumps([round(float(value), 4) for value in stored])
            told = [round(segments[n], 4) if n in segments else None for n in range(1, 18)]
            row["segments"] = json.dumps(told)
            row["caption"] = captions[number]
            for name in ("anterior_rvip_deg", "inferior_rvip_deg"):
                row[name] = getattr(marks, name) if marks is not None else np.nan
            rows.append(row)
        return pd.DataFrame(rows)

    @torch.no_grad()
    def embed(self, cohort: Cohort, number: int = 0) -> Embedded:
        """Studies and their slices in the joint space of one network."""
        views = [make_view(study, self.settings) for study in self.locate(cohort).studies]
        model = self.networks[number][0]
        batch = batch_of(views).to(model.logit_scale.device)
        features, _ = model.visual.slice_features(batch)
        whole, _ = model.visual.pool(features, batch.mask)
        slices = nn.functional.normalize(model.visual.each_slice(features), dim=-1)
        slices = slices.masked_fill(~batch.mask[..., None], float("nan"))
        counts = [study.spatial_shape[2] for study in cohort.studies]
        return Embedded(nn.functional.normalize(whole, dim=-1).cpu(), slices.cpu(), views, counts)

    @torch.no_grad()
    def similarity(
        self, embedded: Embedded, sentence: str, number: int = 0
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Cosine similarity of a sentence with each study, and with each of its own slices (NaN: no heart there)."""
        model, tokenizer = self.networks[number]
        text = model.encode_text(tokenizer(sentence).to(model.logit_scale.device))[0].cpu()
        each = (embedded.slices @ text).numpy()
        slices = []
        for view, count, values in zip(embedded.views, embedded.own_slices, each, strict=True):
            slices.append(np.full(count, np.nan))
            slices[-1][view.own_slices] = values[: len(view.levels)]
        return (embedded.studies @ text).numpy(), slices

    @property
    def denials(self) -> list[str]:
        """The sentences that deny scar, in the words that were learned: what a sentence about scar is held against."""
        return prompt_sets(self.settings.text)["presence"]["negative"]

    def speaks_for(
        self, embedded: Embedded, sentence: str, number: int = 0
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """As `similarity`, minus the (mean) similarity to the sentences that deny scar.

        So studies can be ranked: a cosine alone says as much of how a study lies in the joint space as of the sentence,
        and may be highest for hearts without scar.
        """
        studies, slices = self.similarity(embedded, sentence, number)
        denied = [self.similarity(embedded, words, number) for words in self.denials]
        each = zip(slices, *(own for _, own in denied), strict=True)
        return studies - np.mean([whole for whole, _ in denied], axis=0), [
            s - np.mean(d, axis=0) for s, *d in each
        ]

    def seen(
        self, view: View, own_slice: int, sentence: str, number: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """One of a study's own slices as the network sees it, and what in it speaks for a sentence, against `denials`.

        Returns:
            Picture and heat map (`lgekit.clip.zeroshot.heat_map`, logits), each `(height, width)` of the view.
        """
        place = list(view.own_slices).index(own_slice)
        heat = heat_map(
            *self.networks[number], batch_of([view]), [sentence], self.denials, only=place
        )
        return view.images[place, 0].numpy(), heat[place]

    def save(self, folder: str | Path) -> Path:
        """Write safetensors and JSON files into a folder (made if absent)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (model, tokenizer) in enumerate(self.networks):
            save_coca(folder / f"clip_{number}", model, tokenizer, self.settings)
        if self.heart is not None:
            self.heart.save(folder / "heart")
        about = {
            "settings": self.settings.model_dump(),
            "networks": len(self.networks),
            "calibration": asdict(self.calibration),
            "histories": [history.to_dict("list") for history in self.histories],
        }
        (folder / "detector.json").write_text(json.dumps(about, indent=1) + "\n")
        if self.held_out is not None:
            self.held_out.to_csv(folder / "held_out.csv", index=False)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Detector:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, cannot be read, does not fit the others or is of another version of lgekit.
        """
        from lgekit.evaluation.scores import read_predictions

        folder = Path(folder)
        file = folder / "detector.json"
        if not file.is_file():
            raise InputError(file, "no such file", "Give a folder written by `lgekit fit`.")
        place = file
        try:
            about: dict[str, Any] = json.loads(file.read_text())
            settings = make_settings(**about["settings"])
            kept = about["calibration"]
            walls = tuple((slope, offset) for slope, offset in kept["walls"])
            calibration = Calibration(tuple(kept["presence"]), walls, tuple(kept["slices"]))
            histories = [pd.DataFrame(history) for history in about["histories"]]
            networks = []
            for number in range(max(1, about["networks"])):
                place = folder / f"clip_{number}"
                networks.append(load_coca(place)[:2])
            place = folder / "held_out.csv"
            held_out = read_predictions(place) if place.is_file() else None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            remedy = "Copy the whole model again, or fit it again"
            raise InputError(place, f"not a detector: {_reason(error)}", remedy) from error
        heart = HeartNetwork.load(folder / "heart") if (folder / "heart").is_dir() else None
        if heart is None and settings.needs_heart:
            problem = "is not there, and without the heart network the model reads nothing right"
            raise InputError(
                folder / "heart", problem, "Copy the whole model again, or fit it again"
            )
        return cls(settings, networks, heart, calibration, histories, held_out)


def _reason(error: Exception) -> str:
    """What a part of a model lacks, in one line."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, InputError) and error.where.startswith("setting "):
        return f"it was fitted by another version of lgekit ({error.where}: {error.problem})"
    if isinstance(error, KeyError):
        return f"{said} is missing"
    if isinstance(error, RuntimeError):
        return (
            f"its weights do not fit, perhaps it was fitted by another version of lgekit ({said})"
        )
    return said


CARD = "README.md"
SENT = re.compile(
    r"detector\.json|clip_\d+/(config\.json|model\.safetensors|text\.json|tokenizer\.json)|heart/heart\.(json|safetensors)|"
    + re.escape(CARD)
)
STAYS = {"held_out.csv"}  # a row a study: written by `lgekit fit`, never sent
OF_THE_HUB = {".gitattributes"}

CARD_TEXT = """---
library_name: lgekit
tags: [cardiac-mri, late-gadolinium-enhancement, clip]
---
# Scar detection in cardiac LGE MRI, trained from the text of reports

For research and teaching only. **Not a medical device.**

{networks} CLIP + captioning network(s), {heart}; view `{view}`, text `{text}`, {epochs} epochs, seed {seed}.
All settings are in `detector.json`. What it was trained on, and how well it reads, is for its authors to add here.

```
lgekit pull THIS_REPOSITORY my_model
lgekit predict my_model manifest:studies/manifest.csv out.csv
```
"""


def push(model_dir: str | Path, repo: str, public: bool = False, api: Any = None) -> list[str]:
    """Send a fitted model to a hub repository, made if absent, in one commit.

    Args:
        model_dir: folder that `lgekit fit` wrote.
        repo: ``owner/name``.
        public: a new repository may be read by everybody; else only by its owner.
        api: a ``huggingface_hub.HfApi``; one with the user's own login if None.

    Returns:
        Names of the files sent.

    Raises:
        InputError: not a whole model, any other file in the folder, or what the hub answers.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder, api = Path(model_dir), api or HfApi()
    detector = Detector.load(folder)
    if Path(detector.settings.text_encoder).exists():
        problem = f"the text encoder {detector.settings.text_encoder!r} is a folder of this machine"
        raise InputError(folder, problem, "Fit with a hub name, or with text_encoder='scratch'.")
    content = {
        name: _content(folder, name)
        for name in _checked(_files(folder), folder, STAYS)
        if name not in STAYS
    }
    content.setdefault(CARD, _card(detector).encode())
    adds = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=part)
        for name, part in sorted(content.items())
    ]
    _ask(repo, lambda: api.create_repo(repo, repo_type="model", private=not public, exist_ok=True))
    _ask(
        repo,
        lambda: api.create_commit(repo, adds, commit_message="lgekit model", repo_type="model"),
    )
    return sorted(content)


def pull(repo: str, model_dir: str | Path, api: Any = None) -> list[str]:
    """Fetch a model from a hub repository into a folder (made if absent).

    Args:
        repo: ``owner/name``.
        model_dir: a new or empty folder.
        api: a ``huggingface_hub.HfApi``; one with the user's own login, if any, where None.

    Returns:
        Names of the files fetched.

    Raises:
        InputError: the repository holds any other file, what it holds is not a model, or what the hub answers.
    """
    from huggingface_hub import HfApi

    folder, api = Path(model_dir), api or HfApi()
    revision = _ask(repo, lambda: api.repo_info(repo, repo_type="model").sha)
    listed = _ask(repo, lambda: api.list_repo_files(repo, revision=revision, repo_type="model"))
    names = [name for name in _checked(listed, repo, OF_THE_HUB) if name not in OF_THE_HUB]
    _ask(
        repo,
        lambda: api.snapshot_download(
            repo, revision=revision, local_dir=folder, allow_patterns=names
        ),
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own notes
    Detector.load(folder)
    return sorted(names)


def _files(folder: Path) -> list[str]:
    """Names of all files under a folder; links are refused, for they may point anywhere."""
    paths = sorted(folder.rglob("*"))
    if links := [path for path in paths if path.is_symlink()]:
        raise InputError(links[0], "is a link", "Put the file itself there.")
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _checked(names: Sequence[str], where: object, allowed: set[str]) -> list[str]:
    """The names, all of which belong to a model."""
    if other := [name for name in names if not SENT.fullmatch(name) and name not in allowed]:
        remedy = "Only safetensors, JSON and a model card travel: take the others out."
        raise InputError(
            where, f"holds {', '.join(other[:5])}, which is no part of a model", remedy
        )
    return list(names)


def _content(folder: Path, name: str) -> bytes:
    """A file's bytes; of the heart network's cohorts only the kind, for a SPEC names a folder."""
    content = (folder / name).read_bytes()
    if name == "heart/heart.json":
        about = json.loads(content)
        about["trained_on"] = sorted({spec.split(":")[0] for spec in about["trained_on"]})
        content = (json.dumps(about, indent=2) + "\n").encode()
    return content


def _card(detector: Detector) -> str:
    settings = detector.settings
    about = {name: getattr(settings, name) for name in ("text", "epochs", "seed")}
    heart = "with a heart network" if detector.heart is not None else "without a heart network"
    return CARD_TEXT.format(
        networks=len(detector.networks), heart=heart, view=settings.frame, **about
    )


def _ask(repo: str, call: Callable[[], Any]) -> Any:
    """A call to the hub; what goes wrong there becomes one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # its bases too: what the hub client's HTTP library, whichever it is, raises on a machine without network
    failures = cast(
        tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    )
    try:
        return call()
    except failures as error:
        remedy = "Check the name, the network and your login (`hf auth login`)."
        raise InputError(
            repo, str(error).splitlines()[0] if str(error) else type(error).__name__, remedy
        ) from error
