"""The heart network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copymode
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn

from lgekit.anatomy.segments import insertion_points
from lgekit.cache import predicting
from lgekit.errors import InputError
from lgekit.segmentation.polar_unet import build_border_network, redraw
from lgekit.segmentation.slices import (
    CLASS_CODES,
    CLASSES,
    LV_CLASSES,
    Canvas,
    Views,
    angle_votes,
    landmarks_from_votes,
    make_canvas,
    plain_views,
    standardise,
)
from lgekit.study import CAVITY, MYOCARDIUM, Cohort, Landmarks, Study

FIELD = 4  # channels of the angle field


def build_encoder(name: str) -> nn.Module:
    """A timm encoder with one input channel and random weights: the U-Net's, and the CLIP vision tower's.

    Its ``forward_features`` of ``(B, 1, H, W)`` are the deepest features that the U-Net's decoder gets.

    Raises:
        InputError: timm knows no such network.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, global_pool="")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "encoder", f"{name!r}: {error}", "Give a name from timm.list_models()"
        ) from error


def build_unet(settings: HeartSettings, seed: int) -> nn.Module:
    """U-Net ``(B, 1, h, h)`` → ``(B, 8, h, h)``: class logits, angle field. Random weights from the seed.

    Raises:
        InputError: timm knows no such encoder, or a U-Net cannot be built on it.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base import SegmentationHead

    channels = CLASSES + FIELD
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet = smp.Unet(
                encoder_name=f"tu-{settings.encoder}",
                encoder_weights=None,  # the default would download
                in_channels=1,
                decoder_channels=(*settings.decoder, 8),
            )
        except (RuntimeError, ValueError) as error:
            problem = f"{settings.encoder!r}: {' '.join(str(error).split())[:200]}"
            remedy = (
                "Give a convolutional network of timm.list_models(), e.g. regnetx_002 or resnet34"
            )
            raise InputError("setting encoder", problem, remedy) from error
        # the last block, at full resolution and without a skip connection, costs as much as all others together
        unet.decoder.blocks = unet.decoder.blocks[:-1]
        unet.segmentation_head = SegmentationHead(
            settings.decoder[-1], channels, kernel_size=3, upsampling=2
        )
    return unet.to(memory_format=torch.channels_last)


NEAR_VOTE = 25.0  # degrees from the voted point within which a drawn junction is believed [O]


@dataclass(frozen=True)
class Drawing:
    """What the heart network makes of one place of a study.

    Attributes:
        maps: ``(S, 4 or 8, h, h)`` of plain views: shares of the classes; the U-Net's angle field if it drew last.
        centre, half_width: ``(2,)`` and ``()`` of these views, canvas coordinates.
        votes: ``(5,)`` for the insertion points, see :func:`study_votes`.
        certainty: see :func:`certainty`.
    """

    maps: Tensor
    centre: Tensor
    half_width: Tensor
    votes: Tensor
    certainty: float


def find_heart(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ``(2,)`` and LV diameter ``()`` in view coordinates, from a study's maps ``(S, 4 or 8, h, h)``.

    The slices' LV probabilities are added up (a heart lies at nearly the same place in all), and the heaviest connected
    part is the heart. Without any, the middle of the view and half its width.
    """
    left = maps[:, LV_CLASSES].sum(1)  # (S, h, h)
    together = left.sum(0)
    if float(together.max()) < 0.5:
        return torch.zeros(2), torch.tensor(1.0)
    parts, count = ndimage.label((together > 0.35 * together.max()).numpy())
    weights = ndimage.sum(together.numpy(), parts, range(1, count + 1))
    heart = torch.from_numpy(
        ndimage.binary_dilation(parts == 1 + int(np.argmax(weights)), iterations=3)
    )
    side = left.shape[-1]
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    inside = together * heart
    centre = torch.stack([inside.sum(0) @ axis, inside.sum(1) @ axis]) / inside.sum()
    area = (left * heart).sum((1, 2)).max()
    return centre, 2 * torch.sqrt(area / torch.pi) * 2 / side


def certainty(maps: Tensor) -> float:
    """How sure the left ventricle is, 0 to 1: its probability in maps, averaged with itself as weight.

    What is drawn beside the heart is drawn with doubt. A network trained on phantoms alone, in ten places of each of 15
    EMIDEC studies: 0.85 to 0.94 (5th to 95th percentile) where the Dice of the wall was above 0.5, 0.65 to 0.80 where
    it was below 0.2 [O].
    """
    left = maps[:, LV_CLASSES].sum(1)
    return float(left.square().sum() / left.sum().clamp(min=1e-6))


def study_votes(maps: Tensor) -> Tensor:
    """Votes ``(5,)`` of all slices of a study from the maps ``(S, 8, h, h)`` of plain views, normalised to N = 1."""
    probabilities, field = maps[:, :CLASSES], maps[:, CLASSES:]
    left = probabilities[:, LV_CLASSES].sum(1)
    side = left.shape[-1]
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    mass = left.sum((1, 2)).clamp(min=1e-6)
    centre = torch.stack([left.sum(1) @ axis, left.sum(2) @ axis], dim=1) / mass[:, None]
    votes = angle_votes(probabilities, field, centre).sum(0)
    return votes / votes[4].real.clamp(min=1e-6)


def draw_labels(canvas: Canvas, maps: Tensor, centre: Tensor, half_width: float) -> Tensor:
    """Label map ``(X, Y, S)`` uint8 on the study's grid, from the maps of the heart view."""
    box = canvas.view_box(centre, half_width)
    heart = canvas.to_study(
        maps[:, 1:CLASSES], centre, half_width, box
    )  # (S, 3, y, x), zero outside the view
    best, drawn = (
        1 - heart[:, 0] - heart[:, 1] - heart[:, 2],
        torch.zeros(heart[:, 0].shape, dtype=torch.uint8),
    )
    for code in range(
        1, CLASSES
    ):  # argmax over the classes, twenty times faster than torch's over a short axis
        better = heart[:, code - 1] > best
        best, drawn = torch.where(better, heart[:, code - 1], best), drawn.masked_fill(better, code)
    classes = drawn.numpy()
    for part in ((1, 2), (3,)):  # one left and one right ventricle, connected through the stack
        mask = np.isin(classes, part)
        parts, count = ndimage.label(mask)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            classes[mask & (parts != largest)] = 0
    labels = torch.zeros(*canvas.shape, len(maps), dtype=torch.uint8)
    labels[box] = torch.from_numpy(np.array(CLASS_CODES, dtype=np.uint8)[classes]).permute(2, 1, 0)
    return labels


def move_to_junctions(
    voted: Landmarks, labels: np.ndarray, spacing: tuple[float, float, float]
) -> Landmarks:
    """Voted insertion points, moved to where the drawn RV meets the drawn myocardium, if that lies near the vote.

    The votes are never far off, a junction is exact or, where the RV was drawn too long or too short, not at all.
    Median and 95th percentile of the anterior point's error, 24 ACDC pictures in three random turns each: votes 10.2°
    and 21°, moved 2.2° and 8°; 11 EMIDEC studies, whose labels have no RV: 9.4° and 27°, moved 9.5° and 23° [O].

    Args:
        voted: of `lgekit.segmentation.slices.landmarks_from_votes`; NaN stays NaN.
        labels: ``(X, Y, slices)`` in the internal codes.
        spacing: mm.
    """
    if not np.isfinite(voted.anterior_rvip_deg):
        return voted
    drawn = insertion_points(labels, spacing, mirrored=voted.mirrored)

    def nearer(vote: float, junction: float) -> float:
        return (
            junction if abs((junction - vote + 180) % 360 - 180) <= NEAR_VOTE else vote
        )  # never true of NaN

    anterior = nearer(voted.anterior_rvip_deg, drawn.anterior_rvip_deg)
    return Landmarks(
        anterior, nearer(voted.inferior_rvip_deg, drawn.inferior_rvip_deg), voted.confidence
    )


KINDS = ("networks", "borders")
BORDER_VOTES = 3.0  # weight of the border network's votes beside those of the U-Net's two looks [O]
WIDE_SLICES = 4  # slices in which the heart is sought; it lies at nearly the same place in all
SURE = 0.88  # certainty of a drawing below which the heart is also sought in the middle of the picture [O]
SEARCHED = (
    0.28,
    0.4,
)  # LV diameters that are tried there, canvas coordinates (the picture is 2 wide) [O]


@dataclass(frozen=True)
class HeartSettings:
    """What the network is and how it is trained.

    Attributes:
        encoder: timm name.
        decoder: channels of the decoder's four blocks, coarse to fine; the finest works at half the view's resolution.
        pixels: side of a view; the border network draws on finer ones (`lgekit.segmentation.polar_unet.DRAWN`). With 128 a step
            takes twice as long and the heart is drawn no better: 24 ACDC pictures, Dice of the wall 0.887, with 64
            0.892 [O].
        heart_view: width of the second view in LV diameters.
        poses: in how many poses (turned, mirrored) the heart is drawn; their mean is the prediction.
        steps: optimiser steps.
        batch: views a step.
        wide_share: share of views of the whole field of view.
        learning_rate: peak of the one-cycle schedule.
        invented: share of training pictures that are drawn anew from their labels (:mod:`lgekit.segmentation.slices`).
        border_channels: of the border network's levels.
        border_steps: optimiser steps of the border network; 0: none is trained.
    """

    encoder: str = "regnetx_002"
    decoder: tuple[int, ...] = (64, 48, 32, 24)
    pixels: int = 64
    heart_view: float = 2.5
    poses: int = 1
    steps: int = 3000
    batch: int = 8
    wide_share: float = 0.25
    learning_rate: float = 2e-3
    invented: float = 0.0
    border_channels: tuple[int, ...] = (16, 32, 64, 64)
    border_steps: int = 700


SIZES = {
    "smoke": HeartSettings(steps=30, learning_rate=3e-3, border_steps=8),
    "laptop": HeartSettings(),
    "paper": HeartSettings(
        encoder="resnet34",
        decoder=(256, 128, 96, 64),
        pixels=128,
        steps=12000,
        batch=64,
        learning_rate=1e-3,
        border_channels=(32, 64, 96, 128),
        border_steps=6000,
    ),
}


def read_settings(values: Mapping[str, Any]) -> HeartSettings:
    """Settings from what JSON kept of them, which knows no tuples."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return HeartSettings(**known)


class HeartNetwork:
    """One U-Net or the mean of several (their maps are averaged), and as many border networks.

    Attributes:
        settings: of the (first) network.
        networks: the U-Nets.
        trained_on: names of the cohorts.
        borders: the border networks; none: what the U-Nets draw is the result.
    """

    def __init__(
        self,
        settings: HeartSettings,
        networks: Iterable[nn.Module],
        trained_on: Sequence[str] = (),
        borders: Iterable[nn.Module] = (),
    ):
        self.settings = settings
        self.networks = nn.ModuleList(networks).eval()
        self.borders = nn.ModuleList(borders).eval()
        self.trained_on = tuple(trained_on)

    @classmethod
    def from_weights(
        cls, settings: HeartSettings, weights: Mapping[str, Tensor], trained_on: Sequence[str] = ()
    ) -> HeartNetwork:
        """What :attr:`weights` was taken from. Raises RuntimeError where they do not fit the settings."""
        unets, borders = (
            len({name.split(".")[1] for name in weights if name.startswith(kind)}) for kind in KINDS
        )
        networks = [build_unet(settings, 0) for _ in range(unets)]
        drawing = [build_border_network(settings.border_channels, 0) for _ in range(borders)]
        made = cls(settings, networks, trained_on, drawing)
        made._parts().load_state_dict(dict(weights))
        return made

    @property
    def weights(self) -> dict[str, Tensor]:
        """All weights: ``networks.<number>.…`` and ``borders.<number>.…``."""
        return self._parts().state_dict()

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"networks": self.networks, "borders": self.borders})

    @classmethod
    def mean(cls, members: Sequence[HeartNetwork]) -> HeartNetwork:
        """The ensemble of some heart networks; they may differ in their encoders but not in their views."""
        views = {(member.settings.pixels, member.settings.heart_view) for member in members}
        if len(views) != 1:
            remedy = "Average networks that were fitted with the same pixels and heart_view"
            raise InputError("heart networks", f"views differ: {sorted(views)}", remedy)
        networks = [network for member in members for network in member.networks]
        names = dict.fromkeys(name for member in members for name in member.trained_on)
        borders = [network for member in members for network in member.borders]
        return cls(members[0].settings, networks, tuple(names), borders)

    def encoder_state(self) -> dict[str, Tensor]:
        """Weights of the (first) network's encoder, by timm's names: for ``build_encoder(settings.encoder)``."""
        state = self.networks[0].get_submodule("encoder").state_dict()
        return {name.removeprefix("model."): value for name, value in state.items()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks.parameters()).device

    def to(self, device: str | torch.device) -> HeartNetwork:
        """Move the weights, in place."""
        self.networks.to(device)
        self.borders.to(device)
        return self

    @torch.inference_mode()
    def maps(self, views: Tensor, poses: int = 1, chunk: int = 32) -> Tensor:
        """``(B, 1, h, h)`` views in [0, 1] → ``(B, 8, h, h)`` float32: probabilities of the classes, angle field.

        Averaged over the networks and over ``poses`` (1 to 8) of the view: quarter turns, every other one mirrored. The
        maps of a pose are only laid back, for an anatomical angle is the same however the picture is held.
        """
        output = []
        for part in standardise(views).split(chunk):
            total = torch.zeros(len(part), CLASSES + FIELD, *part.shape[2:], device=part.device)
            for pose in range(poses):
                mirrored = (pose + pose // 4) % 2 == 1
                posed = torch.rot90(part.flip(3) if mirrored else part, pose, (2, 3))
                posed = posed.contiguous(memory_format=torch.channels_last)
                for network in self.networks:
                    with predicting(posed.device):
                        raw = network(posed).float()
                    both = torch.rot90(
                        torch.cat([raw[:, :CLASSES].softmax(1), raw[:, CLASSES:]], 1), -pose, (2, 3)
                    )
                    total += both.flip(3) if mirrored else both
            output.append(total / (poses * len(self.networks)))
        return torch.cat(output)

    def predict(self, study: Study) -> Study:
        """A copy of a study with predicted labels and landmarks; its own are neither used nor kept.

        Labels are on the study's grid: BACKGROUND, CAVITY, MYOCARDIUM (scar is not told apart) and RV. Landmarks carry
        a confidence from 0 to 1; where no heart is found, labels are empty and landmarks NaN with confidence 0.
        """
        return self.predict_cohort([study]).studies[0]

    def predict_cohort(
        self, studies: Cohort | Sequence[Study], name: str | None = None, group: int = 8
    ) -> Cohort:
        """:meth:`predict` for all studies, ``group`` of them at a time through the network.

        On a CPU each of torch's threads takes a group: the networks are too small to share an operation.
        """
        studies = studies.studies if isinstance(studies, Cohort) else list(studies)
        groups = [studies[start : start + group] for start in range(0, len(studies), group)]
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and min(threads, len(groups)) > 1:
            try:
                with ThreadPoolExecutor(
                    threads, initializer=torch.set_num_threads, initargs=(1,)
                ) as pool:
                    parts = list(pool.map(self._predict_group, groups))
            finally:
                torch.set_num_threads(threads)  # of threads that are started from now on
        else:
            parts = [self._predict_group(one) for one in groups]
        return Cohort(
            [study for part in parts for study in part], name if name is not None else "predicted"
        )

    def _predict_group(self, studies: Sequence[Study]) -> list[Study]:
        canvases = [make_canvas(study) for study in studies]
        counts = [len(canvas.images) for canvas in canvases]
        images = torch.cat([canvas.images for canvas in canvases]).to(self.device)
        few = [
            canvas.images[_spread(count)] for canvas, count in zip(canvases, counts, strict=True)
        ]
        whole = torch.zeros(len(studies), 2), torch.ones(len(studies))
        wide = self._look(torch.cat(few).to(self.device), *whole, [len(part) for part in few], 1)
        found = [find_heart(part) for part in wide]
        centres = torch.stack([centre for centre, _ in found])
        drawings = self._draw(
            images, centres, torch.stack([diameter for _, diameter in found]), counts
        )
        results, own = [], images.split(counts)
        for study, canvas, picture, maps, drawn in zip(
            studies, canvases, own, wide, drawings, strict=True
        ):
            best, votes = drawn, drawn.votes + study_votes(maps)
            if drawn.certainty < SURE:
                best = max([drawn, *self._search(picture)], key=lambda one: one.certainty)
                votes = votes if best is drawn else best.votes
            labels = draw_labels(canvas, best.maps, best.centre, float(best.half_width))
            heart = bool(((labels == CAVITY) | (labels == MYOCARDIUM)).any())
            voted = landmarks_from_votes(votes if heart else torch.zeros_like(votes))
            landmarks = move_to_junctions(voted, labels.numpy(), study.spacing_mm)
            results.append(with_prediction(study, labels, landmarks))
        return results

    def _draw(
        self, images: Tensor, centres: Tensor, diameters: Tensor, counts: list[int]
    ) -> list[Drawing]:
        """The hearts of some studies, whose left ventricles are thought to lie at ``centres (n, 2)`` with ``diameters
        (n,)``, canvas coordinates."""
        widths, drawings = diameters * self.settings.heart_view / 2, []
        looks = self._look(images, centres, widths, counts, self.settings.poses)
        for maps, own, centre, width in zip(
            looks, images.split(counts), centres, widths, strict=True
        ):
            votes = study_votes(maps)
            if len(self.borders):
                maps, ring = redraw(self.borders, own, maps, centre, width)
                votes = votes + BORDER_VOTES * ring
            drawings.append(Drawing(maps, centre, width, votes, certainty(maps)))
        return drawings

    def _search(self, images: Tensor) -> list[Drawing]:
        """The heart of one study, sought in the middle of the picture: drawings from several sizes, each drawn once
        more around what it found."""
        drawings, counts = [], [len(images)]
        for diameter in SEARCHED:
            centre, size = torch.zeros(1, 2), torch.tensor([diameter])
            for _ in range(2):
                drawings += self._draw(images, centre, size, counts)
                last = drawings[-1]
                moved, relative = find_heart(last.maps)
                centre, size = (
                    (last.centre + last.half_width * moved)[None],
                    (last.half_width * relative)[None],
                )
        return drawings

    def _look(
        self, images: Tensor, centres: Tensor, widths: Tensor, counts: list[int], poses: int
    ) -> tuple[Tensor, ...]:
        """Maps of the plain views of each study, which lie at ``centres (n, 2)`` with half widths ``widths (n,)``."""
        repeats = torch.tensor(counts)
        views = plain_views(
            centres.repeat_interleave(repeats, 0), widths.repeat_interleave(repeats, 0)
        )
        moved = Views(views.axes.to(images.device), views.centre.to(images.device))
        return self.maps(moved.sample(images, self.settings.pixels), poses).cpu().split(counts)

    def save(self, folder: str | Path) -> Path:
        """Write ``heart.safetensors`` and ``heart.json`` into a folder (made if absent)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.weights.items()},
            folder / "heart.safetensors",
        )
        about = {"settings": asdict(self.settings), "trained_on": self.trained_on}
        (folder / "heart.json").write_text(json.dumps(about, indent=2) + "\n")
        copymode(
            folder / "heart.json", folder / "heart.safetensors"
        )  # safetensors lets nobody but its owner read it
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> HeartNetwork:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: a file is missing, may not be read or does not fit.
        """
        folder = Path(folder)
        for file in ("heart.json", "heart.safetensors"):
            if not (folder / file).is_file():
                raise InputError(
                    folder / file, "no such file", "Give a folder written by HeartNetwork.save"
                )
        try:
            about = json.loads((folder / "heart.json").read_text())
            settings = read_settings(about["settings"])
            network = cls.from_weights(
                settings, load_file(folder / "heart.safetensors"), about["trained_on"]
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(
                folder, f"not a heart network: {error}", "Fit it again and save it"
            ) from error
        return network


def _spread(slices: int) -> Tensor:
    """Numbers of the slices in which the heart is sought in the whole picture: some, evenly spread, not the ends."""
    return torch.linspace(0, slices - 1, min(WIDE_SLICES, slices) + 2)[1:-1].round().long()


def with_prediction(study: Study, labels: Tensor, landmarks: Landmarks) -> Study:
    """A copy of a study with these labels ``(X, Y, S)`` and landmarks; image tensor and other fields are shared."""
    image = study["image"]
    kept: dict = {
        key: value for key, value in study.items() if key not in ("image", "labels", "landmarks")
    }
    return Study.from_arrays(
        kept.pop("study_id"), image.data[0], study.spacing_mm, labels, landmarks=landmarks, **kept
    )
