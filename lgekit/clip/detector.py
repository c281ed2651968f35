"""The detector: predictions from images alone, explanations, files, and the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional

from lgekit.anatomy import segments as aha
from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.segments import Ventricle
from lgekit.cache import replacing
from lgekit.clip import zeroshot
from lgekit.clip.data import View, batch_of, make_view, view_grid
from lgekit.clip.model import CoCa, ReportTokenizer, StudyBatch
from lgekit.clip.zeroshot import Calibration, Reading, probability
from lgekit.config import FitSettings
from lgekit.errors import InputError
from lgekit.findings import DEPTHS, LEVELS, WALLS, segment_of
from lgekit.reports.writer import prompt_sets
from lgekit.segmentation.model import STRICT, WEIGHTS, HeartNetwork, read_weights
from lgekit.segmentation.train import locate
from lgekit.study import Cohort, Landmarks, Study

STUDIES_AT_ONCE = 64  # studies that are read at a time: more need no more memory


def confident_landmarks(study: Study, settings: FitSettings) -> Landmarks | None:
    """The insertion points of a located study, if they are confident enough to turn it."""
    marks = aha.known_landmarks(study)
    if marks is None or study.label_map is None or marks.confidence < settings.min_confidence:
        return None
    return marks


def segment_means(
    heat: np.ndarray, view: View, study: Study, settings: FitSettings
) -> dict[int, float]:
    """Average an occlusion map `(slices, height, width)` over the wall of each AHA segment 1–17.

    The labels and landmarks of the located study define the segments. Those that no slice shows are
    missing; without a heart or confident insertion points, all are.
    """
    marks = confident_landmarks(study, settings)
    if marks is None or not Ventricle.of(study.label_map).area.any():
        return {}
    segments = view_segments(view, study, marks, settings)
    return {int(n): float(heat[segments == n].mean()) for n in np.unique(segments[segments > 0])}


def view_segments(view: View, study: Study, marks: Landmarks, settings: FitSettings) -> np.ndarray:
    """AHA segment of each pixel of a view, `(slices, height, width)`; 0 outside the wall."""
    if settings.frame == "image":
        stored = torch.from_numpy(aha.segment_map(study.label_map, study.spacing_mm, marks))
        turn, least = settings.orientation, settings.min_confidence
        transform = StandardizeShortAxis(settings.pixels, orientation=turn, min_confidence=least)
        frame = transform.find_frame(study)
        framed = frame.to_frame(stored[None], nearest=True)[0].numpy()
        framed = framed[..., ::-1] if frame.reversed_slices else framed  # (X, Y, stored slices)
        return np.moveaxis(framed, 2, 0)[view.own_slices]
    segments = np.zeros(view.images[:, 0].shape, np.uint8)
    if settings.orientation != "rvip":  # the first column is not the insertion point
        return segments
    grid = view_grid(study, settings)
    wall = (grid.row_depths >= 0) & (grid.row_depths <= 1)
    frame_deg = aha.ANTERIOR_RVIP_DEG + 360 * np.arange(settings.angles) / settings.angles
    for number, third in enumerate(Ventricle.of(study.label_map).thirds[view.own_slices]):
        if third >= 0:
            segments[number, wall] = 17 if third == 3 else aha.segment_number(frame_deg, third)
    return segments


def segment_maxima(
    walls: np.ndarray, present: np.ndarray, view: View, study: Study, settings: FitSettings
) -> dict[int, float]:
    """Probability of scar in each AHA segment 1–17, from slices that were read alone.

    A segment takes the largest probability of its wall (`walls`, `(slices, 6)`) among the slices of
    its ring, because a scar in one slice is in the segment [O]. An apical segment of two walls
    takes the larger; the apex (17) has no wall and takes presence (`present`, `(slices,)`).
    Segments: Cerqueira 2002, doi:10.1161/hc0402.102975. Missing as in `segment_means`.
    """
    if settings.orientation != "rvip" or confident_landmarks(study, settings) is None:
        return {}
    rings = Ventricle.of(study.label_map).thirds[view.own_slices]  # -1 where there is no heart
    values: dict[int, float] = {17: float(present[rings == 3].max())} if 3 in rings else {}
    for third in np.intersect1d(rings, range(3)):
        for wall, largest in zip(WALLS, walls[rings == third].max(0), strict=True):
            segment = segment_of(wall, LEVELS[third])
            values[segment] = max(float(largest), values.get(segment, 0.0))
    return values


class StudyEmbeddings(NamedTuple):
    """Studies in the joint space: embeddings of length 1, to compare with any sentence."""

    studies: Tensor  # (studies, embed_dim)
    slices: list[Tensor]  # of each study, (stored slices, embed_dim); NaN where there is no heart
    views: list[View]


class SavedDetector(BaseModel):
    """What detector.json holds."""

    model_config = STRICT
    settings: FitSettings
    networks: int = Field(ge=1, le=128)
    platt: Calibration
    histories: list[dict[str, list[float]]]
    sha256: dict[str, str]  # see `digests`


def digests(folder: Path, about: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files of a model, and of what its detector.json says (``about``)."""
    said = json.dumps({key: about[key] for key in about if key != "sha256"}, sort_keys=True)
    found = {"detector.json": hashlib.sha256(said.encode()).hexdigest()}
    for name in _hub_files(folder):
        if name not in ("README.md", "detector.json"):
            with open(folder / name, "rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def seal(folder: Path) -> None:
    """Write the `digests` of a model into its detector.json."""
    about = json.loads((folder / "detector.json").read_text())
    about["sha256"] = digests(folder, about)
    (folder / "detector.json").write_text(json.dumps(about, indent=1) + "\n")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a table of predictions; study ids such as ``NA`` or ``007`` stay text."""
    table, text = pd.read_csv(path), pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.assign(study_id=text["study_id"]) if "study_id" in table else table


def rows_so_far(table: Path) -> list[str]:
    """Study ids in a table of a stopped prediction, from which a row that was cut is removed."""
    if table.is_symlink():  # planted: nothing here makes links
        table.unlink()
    lines = table.read_bytes().splitlines(keepends=True) if table.exists() else []
    while lines and (not lines[-1].endswith(b"\n") or b"".join(lines).count(b'"') % 2):
        lines.pop()
    if not lines:
        table.unlink(missing_ok=True)
        return []
    with replacing(table) as part:
        part.write_bytes(b"".join(lines))
    return read_predictions(table)["study_id"].tolist()


@dataclass
class Detector:
    """Scar detection from images alone.

    ``held_out`` has predictions by networks that were not trained on these studies, calibrated
    without their reports. On a validation split, whose texts selected the epoch, they are slightly
    optimistic.
    """

    settings: FitSettings
    networks: list[tuple[CoCa, ReportTokenizer]]  # their scores are averaged
    heart: HeartNetwork | None  # None if orientation="none" or true masks are used
    calibration: Calibration  # scores → probabilities; the decision is p_lge > 0.5
    histories: list[pd.DataFrame] = field(default_factory=list)  # one per network
    held_out: pd.DataFrame | None = None

    def locate(self, cohort: Cohort) -> Cohort:
        """The cohort with the heart network's contours and insertion points."""
        return cohort if self.heart is None else locate(cohort, self.heart)

    def views(self, located: Cohort) -> list[View]:
        """The network input of each located study."""
        return [make_view(study, self.settings) for study in located.studies]

    def predict(self, cohort: Cohort) -> pd.DataFrame:
        """Read every study from its image alone.

        Returns:
            One row per study: ``study_id, p_lge``; one ``p_`` column per wall; ``slice_weights``
            (JSON list, probability of scar in each stored slice, 0 without a heart); ``attention``
            (likewise, the share of each slice in the embedding; sums to 1); ``segments`` (JSON list
            of 17 AHA segments, `segment_maxima`, null where no slice shows it); ``caption``;
            ``anterior_rvip_deg, inferior_rvip_deg`` (NaN without a heart network).
        """
        tables = [table for _, table in self.predict_groups(cohort.studies)]
        return pd.concat(tables, ignore_index=True)

    @torch.no_grad()
    def predict_groups(self, studies: Iterable[Study]) -> Iterator[tuple[list[Study], Any]]:
        """Located studies and their table of `predict`, a few at a time, read when needed."""
        stream = iter(studies)
        while group := list(islice(stream, STUDIES_AT_ONCE)):
            located = self.locate(Cohort(group))
            views = self.views(located)
            batch = batch_of(views)
            encoded = self.networks[0][0].visual.slice_features(batch)  # for scores and captions
            captions = zeroshot.write_captions(*self.networks[0], batch, encoded)
            table = self.table(located.studies, views, self.read(batch, encoded[0]), captions)
            yield located.studies, table

    def evidence(self, located: Study, weights: Sequence[float]) -> tuple[int, Any, Any]:
        """The stored slice of largest weight, its view and its mean `occlusion_map` for scar, both
        arrays `(height, width)`; the slice is read alone."""
        view = make_view(located, self.settings)
        place = int(np.argmax(np.asarray(weights)[view.own_slices]))
        alone = StudyBatch(*(part[:, [place]] for part in batch_of([view])))
        sides = prompt_sets(self.settings.prompts)["presence"]["positive"], self.denials
        drops = [zeroshot.occlusion_map(*each, alone, *sides)[0] for each in self.networks]
        return int(view.own_slices[place]), view.images[place, 0].numpy(), np.mean(drops, axis=0)

    def levels_and_depths(self, cohort: Cohort) -> pd.DataFrame:
        """Read level and depth of scar from images alone, one row per study: ``level_<level>`` is
        log-odds against "no enhancement", ``depth_<depth>`` a share; the shares sum to 1."""
        reading = self.read(batch_of(self.views(self.locate(cohort))))
        table = pd.DataFrame({"study_id": [study["study_id"] for study in cohort.studies]})
        table[[f"level_{level}" for level in LEVELS]] = reading.levels
        table[[f"depth_{depth}" for depth in DEPTHS]] = softmax(reading.depths, axis=1)
        return table

    def read(self, batch: StudyBatch, features: Tensor | None = None) -> Reading:
        """The mean reading of all networks; ``features`` are the first one's, if known."""
        prompts = prompt_sets(self.settings.prompts)
        readings = [zeroshot.read_studies(*self.networks[0], batch, prompts, features)]
        readings += [zeroshot.read_studies(*each, batch, prompts) for each in self.networks[1:]]
        mean = Reading.merge(lambda parts: np.mean(parts, axis=0), readings)
        return mean.by_slices() if self.settings.scored == "slices" else mean

    def table(
        self, located: Sequence[Study], views: Sequence[View], reading: Reading, captions: list[str]
    ) -> pd.DataFrame:
        """The columns of `predict`, from a reading."""
        known = self.calibration
        present = probability(reading.slices, known.slices)
        by_wall = probability(reading.walls, np.array(known.walls).T)
        each = probability(reading.slice_walls, np.array(known.slice_walls).T)
        table = pd.DataFrame({"study_id": [study["study_id"] for study in located]})
        table["p_lge"] = probability(reading.presence, known.presence)
        table[[f"p_{wall}" for wall in WALLS]] = by_wall
        rows = []
        for number, (study, view) in enumerate(zip(located, views, strict=True)):
            place, row = np.s_[number, : len(view.levels)], dict[str, Any]()
            for name, values in (("slice_weights", present), ("attention", reading.attention)):
                stored = np.zeros(study.spatial_shape[2])
                stored[view.own_slices] = values[place]
                row[name] = json.dumps([round(value, 4) for value in stored.tolist()])
                if not np.isfinite([*stored, table["p_lge"][number], *by_wall[number]]).all():
                    remedy = "Fit the model again: its weights do not fit this image"
                    raise InputError(study["study_id"], "a probability is not a number", remedy)
            found = segment_maxima(each[place], present[place], view, study, self.settings)
            segments = [round(found[n], 4) if n in found else None for n in range(1, 18)]
            row |= {"segments": json.dumps(segments), "caption": captions[number]}
            marks = study["landmarks"] if self.heart is not None else None
            for name in ("anterior_rvip_deg", "inferior_rvip_deg"):
                row[name] = getattr(marks, name, np.nan)
            rows.append(row)
        return table.join(pd.DataFrame(rows))

    @torch.no_grad()
    def embed(self, cohort: Cohort) -> StudyEmbeddings:
        """Embed studies and their slices in the joint space of the first network."""
        visual = self.networks[0][0].visual
        views = self.views(self.locate(cohort))
        batch = batch_of(views)
        features, _ = visual.slice_features(batch)
        studies = functional.normalize(visual.pool(features, batch.mask)[0], dim=-1)
        slices = []
        each = functional.normalize(visual.each_slice(features), dim=-1)
        for study, view, own in zip(cohort.studies, views, each, strict=True):
            slices.append(torch.full((study.spatial_shape[2], own.shape[1]), torch.nan))
            slices[-1][torch.as_tensor(view.own_slices)] = own[: len(view.levels)]
        return StudyEmbeddings(studies, slices, views)

    @torch.no_grad()
    def similarity(
        self, embedded: StudyEmbeddings, sentence: str, against: Sequence[str] = ()
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Cosine similarity of a sentence to each study, and to each of its stored slices.

        The mean similarity to the sentences ``against`` is subtracted: give `denials` to rank
        studies, because the cosine also depends on the study.
        """
        model, tokenizer = self.networks[0]
        text = model.encode_text(tokenizer(sentence))[0]
        if against:
            text = text - model.encode_text(tokenizer(against)).mean(0)
        return (embedded.studies @ text).numpy(), [(own @ text).numpy() for own in embedded.slices]

    @property
    def denials(self) -> list[str]:
        """The training texts that deny scar."""
        return prompt_sets(self.settings.prompts)["presence"]["negative"]

    def save(self, folder: str | Path) -> Path:
        """Write safetensors, JSON and CSV files into a folder (made if absent)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (model, tokenizer) in enumerate(self.networks):
            part = folder / f"clip_{number}"
            part.mkdir(exist_ok=True)
            state = {name: one.contiguous().clone() for name, one in model.state_dict().items()}
            save_file(state, part / "model.safetensors")
            (part / "tokenizer.json").write_text(tokenizer.core.to_str())
            # safetensors files are private to their owner; share them like the other files
            shutil.copymode(part / "tokenizer.json", part / "model.safetensors")
        if self.heart is not None:
            self.heart.save(folder / "heart")
        about = {
            "settings": self.settings.model_dump(),
            "networks": len(self.networks),
            "platt": asdict(self.calibration),
            "histories": [history.to_dict("list") for history in self.histories],
        }
        (folder / "detector.json").write_text(json.dumps(about, indent=1) + "\n")
        seal(folder)
        (folder / "README.md").write_text(CARD.format(settings=self.settings))
        if self.held_out is not None:
            self.held_out.to_csv(folder / "held_out.csv", index=False)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Detector:
        """Read what `save` wrote, a stranger's too, or ``"builtin"``, the detector in the package;
        InputError if a file is missing, changed or damaged."""
        folder = WEIGHTS if str(folder) == "builtin" else Path(folder)
        part = folder / "detector.json"
        if not part.is_file():
            raise InputError(part, "no such file", "Give a folder of `lgekit fit`, or builtin.")
        try:
            about: dict[str, Any] = json.loads(part.read_text())
            saved = SavedDetector.model_validate(about)
            found, settings, networks = digests(folder, about), saved.settings, []
            for name in sorted(found.keys() | saved.sha256.keys()):
                part = folder / name
                if found.get(name) != saved.sha256.get(name):
                    raise ValueError("it is not as it was when the model was saved")
            for number in range(saved.networks):
                part = folder / f"clip_{number}"
                tokenizer = ReportTokenizer.load(part / "tokenizer.json", settings.longest_text)
                model = CoCa(settings, tokenizer)
                model.load_state_dict(read_weights(part / "model.safetensors"))
                networks.append((model.eval(), tokenizer))
            part = folder / "held_out.csv"
            held_out = read_predictions(part) if part.is_file() else None
            if held_out is not None and "study_id" not in held_out:
                raise ValueError("there is no column study_id")
        except Exception as error:  # tokenizers raises nothing narrower
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            remedy = "It may be damaged, or of another version of lgekit. Copy or fit it again"
            raise InputError(part, f"not a detector: {problem}", remedy) from error
        heart = HeartNetwork.load(folder / "heart") if settings.needs_heart else None
        histories = [pd.DataFrame(history) for history in saved.histories]
        return cls(settings, networks, heart, saved.platt, histories, held_out)


CARD = Path(__file__).with_name("model_card.md").read_text("utf-8")
# what a model consists of on the hub; held_out.csv, one row per study, is never sent or fetched
HUB_FILES = ["README.md", "detector.json", "heart/heart.json", "heart/heart.safetensors"]
HUB_FILES += ["clip_*/tokenizer.json", "clip_*/model.safetensors"]


def push(model_dir: str | Path, repo: str, public: bool = False) -> list[str]:
    """Send a fitted model to the Hugging Face hub, and return the names of its files.

    Other files of the folder, and held_out.csv, are not sent. A new repository can be read by its
    owner only, unless it is ``public``.
    """
    from huggingface_hub import HfApi

    Detector.load(model_dir)
    with _hub_errors(repo):
        HfApi().create_repo(repo, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=model_dir, allow_patterns=HUB_FILES)
    return _hub_files(model_dir)


def pull(repo: str, model_dir: str | Path) -> list[str]:
    """Fetch a model from a hub repository into a new folder. Returns the names of its files."""
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        HfApi().snapshot_download(repo, local_dir=model_dir, allow_patterns=HUB_FILES)
    shutil.rmtree(Path(model_dir) / ".cache", ignore_errors=True)  # notes of the hub client
    Detector.load(model_dir)
    return _hub_files(model_dir)


def _hub_files(folder: str | Path) -> list[str]:
    found = [path for pattern in HUB_FILES for path in Path(folder).glob(pattern)]
    return sorted(str(path.relative_to(folder)) for path in found)


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn the errors of the hub client, and of its HTTP library, into one line."""
    try:
        yield
    except Exception as error:
        problem = (str(error) or type(error).__name__).splitlines()[0]
        remedy = "Check the name, the network and your login (`hf auth login`)."
        raise InputError(repo, problem, remedy) from error
