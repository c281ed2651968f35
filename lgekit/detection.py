"""The whole method as one object, behind `lgekit predict`: image → heart → standard view → zero-shot reading."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import nn

from lgekit.bulls_eye import segment_maxima
from lgekit.captions import write_captions
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS
from lgekit.heartnet import HeartNetwork
from lgekit.model import CoCaModel, StudyBatch, load_coca, pad_studies, save_coca
from lgekit.permissions import refuse_unreadable
from lgekit.predictions import read_predictions
from lgekit.settings import FitSettings, make_settings
from lgekit.stages import View, locate, make_view
from lgekit.studies import Cohort
from lgekit.supervision import prompt_sets
from lgekit.tokenizer import ReportTokenizer
from lgekit.zeroshot import Calibration, Reading, heat_map, probability, read_studies


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
            slice shows it, see `lgekit.bulls_eye.segment_maxima`), ``caption``,
            ``anterior_rvip_deg, inferior_rvip_deg`` (NaN where the heart network is not used).
        """
        located = self.locate(cohort)
        views = [make_view(study, self.settings) for study in located.studies]
        batch = batch_of(views)
        encoded = [self.networks[0][0].visual.slice_features(part) for part in chunks(batch)]  # once, for both
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

    def read(self, batch: StudyBatch, number: int = 0, features: torch.Tensor | None = None) -> Reading:
        """Uncalibrated reading by one of the networks."""
        return read_studies(*self.networks[number], batch, prompt_sets(self.settings.text), features=features)

    def table(self, located: Cohort, views: Sequence[View], reading: Reading, captions: Sequence[str]) -> pd.DataFrame:
        """The columns of `predict` from a reading."""
        rows = []
        for number, (study, view) in enumerate(zip(located.studies, views, strict=True)):
            count = len(view.levels)
            present = probability(reading.slices[number, :count], self.calibration.slices)
            each_wall = zip(reading.slice_walls[number, :count].T, self.calibration.walls, strict=True)
            walls = np.stack([probability(scores, pair) for scores, pair in each_wall], axis=1)
            segments = segment_maxima(walls, present, view, study, self.settings)
            marks = study["landmarks"] if self.heart is not None else None
            row = {"study_id": study["study_id"]}
            row["p_lge"] = float(probability(reading.presence[number], self.calibration.presence))
            for wall, score, pair in zip(WALLS, reading.walls[number], self.calibration.walls, strict=True):
                row[f"p_{wall}"] = float(probability(score, pair))
            for name, values in (("slice_weights", present), ("attention", reading.attention[number, :count])):
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
    def similarity(self, embedded: Embedded, sentence: str, number: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
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

    def speaks_for(self, embedded: Embedded, sentence: str, number: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
        """As `similarity`, minus the (mean) similarity to the sentences that deny scar.

        So studies can be ranked: a cosine alone says as much of how a study lies in the joint space as of the sentence,
        and may be highest for hearts without scar.
        """
        studies, slices = self.similarity(embedded, sentence, number)
        denied = [self.similarity(embedded, words, number) for words in self.denials]
        each = zip(slices, *(own for _, own in denied), strict=True)
        return studies - np.mean([whole for whole, _ in denied], axis=0), [s - np.mean(d, axis=0) for s, *d in each]

    def seen(self, view: View, own_slice: int, sentence: str, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """One of a study's own slices as the network sees it, and what in it speaks for a sentence, against `denials`.

        Returns:
            Picture and heat map (`lgekit.zeroshot.heat_map`, logits), each `(height, width)` of the view.
        """
        place = list(view.own_slices).index(own_slice)
        heat = heat_map(*self.networks[number], batch_of([view]), [sentence], self.denials, only=place)
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
        folder = Path(folder)
        file = folder / "detector.json"
        refuse_unreadable(folder, "detector.json")
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
            raise InputError(folder / "heart", problem, "Copy the whole model again, or fit it again")
        return cls(settings, networks, heart, calibration, histories, held_out)


def _reason(error: Exception) -> str:
    """What a part of a model lacks, in one line."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, InputError) and error.where.startswith("setting "):
        return f"it was fitted by another version of lgekit ({error.where}: {error.problem})"
    if isinstance(error, KeyError):
        return f"{said} is missing"
    if isinstance(error, RuntimeError):
        return f"its weights do not fit, perhaps it was fitted by another version of lgekit ({said})"
    return said


def batch_of(views: Sequence[View]) -> StudyBatch:
    """Views as one padded batch."""
    return pad_studies([(view.images, view.levels) for view in views])


def chunks(batch: StudyBatch, size: int = 64) -> list[StudyBatch]:
    """A batch in parts."""
    return [batch.rows(slice(start, start + size)) for start in range(0, len(batch.mask), size)]
