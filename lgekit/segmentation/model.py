"""The heart network: its architecture, settings, predictions and files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn

from lgekit.anatomy.segments import insertion_points
from lgekit.cache import predicting, replacing
from lgekit.errors import InputError
from lgekit.segmentation.polar_unet import build_border_network, refine_borders
from lgekit.segmentation.slices import (
    ANGLE_CHANNELS,
    CLASS_CODES,
    CLASSES,
    LV_CLASSES,
    SquareSlices,
    angle_votes,
    crop,
    directions,
    landmarks_from_votes,
    lv_centres,
    pixel_axis,
    square_slices,
    standardise,
)
from lgekit.study import CAVITY, MYOCARDIUM, Cohort, Landmarks, Study

NEAR_VOTE = 25.0  # degrees between a vote and a junction of RV and wall that replaces it [O]
BORDER_VOTES = 3.0  # weight of the border network's votes; the U-Net's have weight 1 [O]
WIDE_SLICES = 4  # slices in which the heart is first looked for
SURE = 0.88  # below this certainty, the heart is also looked for in the middle of the picture [O]
MIDDLE_DIAMETERS = (0.28, 0.4)  # LV diameters that are tried there, square coordinates [O]


@dataclass(frozen=True)
class HeartSettings:
    """Architecture and training of the heart network."""

    encoder: str = "regnetx_002"  # timm name
    decoder: tuple[int, ...] = (64, 48, 32, 24)  # channels of its four blocks, coarse to fine
    pixels: int = 64  # side of a crop
    heart_view: float = 2.5  # width of the crop around the heart, in LV diameters
    steps: int = 3000  # of the optimiser
    batch: int = 8  # crops per step
    wide_share: float = 0.25  # share of crops of the whole field of view
    learning_rate: float = 2e-3  # peak of the one-cycle schedule
    invented: float = 0.0  # share of training pictures that are generated from their labels
    border_channels: tuple[int, ...] = (16, 32, 64, 64)  # of the border network's levels
    border_steps: int = 700  # of its optimiser; 0: no border network


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


def build_encoder(name: str) -> nn.Module:
    """Build a timm encoder with one input channel and random weights, as the U-Net's.

    Its ``forward_features`` maps ``(B, 1, H, W)`` to the deepest features of the U-Net's decoder.

    Raises:
        InputError: timm does not know the name.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, global_pool="")
    except (RuntimeError, ValueError) as error:
        remedy = "Give a name from timm.list_models()"
        raise InputError("encoder", f"{name!r}: {error}", remedy) from error


def build_unet(settings: HeartSettings, seed: int) -> nn.Module:
    """Build a U-Net ``(B, 1, h, h)`` → ``(B, 8, h, h)``: class logits, then the angle field.

    Raises:
        InputError: timm does not know the encoder, or it fits no U-Net.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base import SegmentationHead

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
            remedy = "Give a convolutional network of timm.list_models(), e.g. regnetx_002"
            raise InputError("setting encoder", problem, remedy) from error
        # The last block works at full resolution and costs as much as all others together.
        unet.decoder.blocks = unet.decoder.blocks[:-1]
        unet.segmentation_head = SegmentationHead(
            settings.decoder[-1], CLASSES + ANGLE_CHANNELS, kernel_size=3, upsampling=2
        )
    return unet.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Candidate:
    """The heart of a study as drawn in one crop: maps, the crop, votes ``(5,)`` and certainty."""

    maps: Tensor
    centre: Tensor
    half_width: Tensor
    votes: Tensor
    certainty: float


class HeartNetwork(nn.Module):
    """U-Nets and border networks; the outputs of several networks of a kind are averaged.

    Attributes:
        settings: of the first network.
        networks: the U-Nets.
        borders: the border networks; without any, the U-Nets' drawing is the result.
        trained_on: names of the cohorts.
    """

    def __init__(
        self,
        settings: HeartSettings,
        networks: Iterable[nn.Module],
        trained_on: Iterable[str] = (),
        borders: Iterable[nn.Module] = (),
    ):
        super().__init__()
        self.settings, self.trained_on = settings, tuple(trained_on)
        self.networks, self.borders = nn.ModuleList(networks), nn.ModuleList(borders)
        self.eval()

    @classmethod
    def mean(cls, members: Sequence[HeartNetwork]) -> HeartNetwork:
        """Average heart networks, whose encoders may differ.

        Raises:
            InputError: their settings ``pixels`` or ``heart_view`` differ.
        """
        crops = {(member.settings.pixels, member.settings.heart_view) for member in members}
        if len(crops) != 1:
            remedy = "Average networks that were fitted with the same pixels and heart_view"
            raise InputError("heart networks", f"views differ: {sorted(crops)}", remedy)

        def everything(name: str) -> list:
            return [one for member in members for one in getattr(member, name)]

        names = dict.fromkeys(everything("trained_on"))
        return cls(members[0].settings, everything("networks"), names, everything("borders"))

    def encoder_state(self) -> dict[str, Tensor]:
        """Weights of the first U-Net's encoder, for ``build_encoder(settings.encoder)``."""
        state = self.networks[0].get_submodule("encoder").state_dict()
        return {name.removeprefix("model."): value for name, value in state.items()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks.parameters()).device

    @torch.inference_mode()
    def maps(self, crops: Tensor) -> Tensor:
        """Map crops ``(B, 1, h, h)`` in [0, 1] to ``(B, 8, h, h)``: class probabilities, angles."""
        output = []
        for part in standardise(crops).split(32):
            part = part.contiguous(memory_format=torch.channels_last)
            total = part.new_zeros(len(part), CLASSES + ANGLE_CHANNELS, *part.shape[2:])
            for network in self.networks:
                with predicting(part.device):
                    raw = network(part).float()
                total += torch.cat([raw[:, :CLASSES].softmax(1), raw[:, CLASSES:]], dim=1)
            output.append(total / len(self.networks))
        return torch.cat(output)

    def predict(self, study: Study) -> Study:
        """Copy a study with predicted labels and landmarks, from its image alone.

        Labels are BACKGROUND, CAVITY, MYOCARDIUM (scar included) and RV. Where no heart is found,
        labels are empty and landmarks are NaN with confidence 0.
        """
        return self.predict_cohort([study]).studies[0]

    def predict_cohort(self, studies: Cohort | Sequence[Study], group: int = 8) -> Cohort:
        """Predict all studies, ``group`` at a time; on a CPU one thread per group."""
        studies = studies.studies if isinstance(studies, Cohort) else list(studies)
        groups = [studies[start : start + group] for start in range(0, len(studies), group)]
        threads = torch.get_num_threads()
        workers = max(min(threads, len(groups)), 1) if self.device.type == "cpu" else 1
        inner = threads if workers == 1 else 1
        try:
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(inner,)
            ) as pool:
                parts = list(pool.map(self._predict_group, groups))
        finally:
            torch.set_num_threads(threads)  # of threads that are started from now on
        return Cohort([study for part in parts for study in part], "predicted")

    def _predict_group(self, studies: Sequence[Study]) -> list[Study]:
        """Look for each heart in some whole slices, draw it in a crop around that place."""
        squares = [square_slices(study) for study in studies]
        counts = [len(square.images) for square in squares]
        images = torch.cat([square.images for square in squares]).to(self.device)
        few = []
        for own, count in zip(images.split(counts), counts, strict=True):
            spread = torch.linspace(0, count - 1, min(WIDE_SLICES, count) + 2)[1:-1]  # not the ends
            few.append(own[spread.round().long()])
        whole = torch.zeros(len(studies), 2), torch.ones(len(studies))
        wide = self._crop_maps(torch.cat(few), *whole, [len(part) for part in few])
        found = [find_heart(part) for part in wide]
        centres, diameters = (torch.stack(values) for values in zip(*found, strict=True))
        drawn = self._draw(images, centres, diameters, counts)
        results = []
        for study, square, own, maps, candidate in zip(
            studies, squares, images.split(counts), wide, drawn, strict=True
        ):
            best, votes = candidate, candidate.votes + study_votes(maps)
            if candidate.certainty < SURE:
                best = max([candidate, *self._search(own)], key=lambda one: one.certainty)
                votes = votes if best is candidate else best.votes
            labels = draw_labels(square, best.maps, best.centre, float(best.half_width))
            if not ((labels == CAVITY) | (labels == MYOCARDIUM)).any():
                votes = torch.zeros_like(votes)
            voted = landmarks_from_votes(votes)
            landmarks = move_to_junctions(voted, labels.numpy(), study.spacing_mm)
            results.append(with_prediction(study, labels, landmarks))
        return results

    def _draw(
        self, images: Tensor, centres: Tensor, diameters: Tensor, counts: list[int]
    ) -> list[Candidate]:
        """Draw the hearts of ``n`` studies around ``centres (n, 2)``, ``diameters (n,)``."""
        widths, candidates = diameters * self.settings.heart_view / 2, []
        crops = self._crop_maps(images, centres, widths, counts)
        for maps, own, centre, width in zip(
            crops, images.split(counts), centres, widths, strict=True
        ):
            votes = study_votes(maps)
            if len(self.borders):
                maps, ring = refine_borders(self.borders, own, maps, centre, width)
                votes = votes + BORDER_VOTES * ring
            # certainty: the LV's probability averaged with itself as weight
            left = maps[:, LV_CLASSES].sum(1)
            certainty = float(left.square().sum() / left.sum().clamp(min=1e-6))
            candidates.append(Candidate(maps, centre, width, votes, certainty))
        return candidates

    def _search(self, images: Tensor) -> list[Candidate]:
        """Draw one study's heart in the middle of the picture, then around what was found there."""
        candidates = []
        for diameter in MIDDLE_DIAMETERS:
            centre, size = torch.zeros(2), torch.tensor(diameter)
            for _ in range(2):
                (last,) = self._draw(images, centre[None], size[None], [len(images)])
                candidates.append(last)
                moved, relative = find_heart(last.maps)
                centre, size = last.centre + last.half_width * moved, last.half_width * relative
        return candidates

    def _crop_maps(
        self, images: Tensor, centres: Tensor, widths: Tensor, counts: list[int]
    ) -> tuple[Tensor, ...]:
        """Maps of one upright crop per study, at ``centres (n, 2)`` with half ``widths (n,)``."""
        repeats, device = torch.tensor(counts), images.device
        half = widths.repeat_interleave(repeats, 0).to(device)
        axes = half[:, None, None] * torch.eye(2, device=device)
        centre = centres.repeat_interleave(repeats, 0).to(device)
        return self.maps(crop(images, axes, centre, self.settings.pixels)).cpu().split(counts)

    def save(self, folder: str | Path) -> Path:
        """Write ``heart.safetensors`` and ``heart.json`` into a folder (made if absent)."""
        folder = Path(folder)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replacing(folder / "heart.safetensors") as part:
            save_file(weights, part)
        about = {"settings": asdict(self.settings), "trained_on": self.trained_on}
        with replacing(folder / "heart.json") as part:
            part.write_text(json.dumps(about, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> HeartNetwork:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: a file is missing, cannot be read or does not fit.
        """
        folder = Path(folder)
        for file in (folder / "heart.json", folder / "heart.safetensors"):
            if not file.is_file():
                raise InputError(file, "no such file", "Give a folder written by HeartNetwork.save")
        try:
            about = json.loads((folder / "heart.json").read_text())
            about["settings"].pop("poses", None)  # of older files
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in about["settings"].items()
            }
            settings = HeartSettings(**values)
            weights = load_file(folder / "heart.safetensors")
            parts = [kind for kind, _ in {tuple(name.split(".")[:2]) for name in weights}]
            unets = [build_unet(settings, 0) for _ in range(parts.count("networks"))]
            channels = settings.border_channels
            borders = [build_border_network(channels, 0) for _ in range(parts.count("borders"))]
            network = cls(settings, unets, about["trained_on"], borders)
            network.load_state_dict(weights)
            return network
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            remedy = "Fit it again and save it"
            raise InputError(folder, f"not a heart network: {error}", remedy) from error


def find_heart(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Find the LV's centre ``(2,)`` and diameter ``()`` in crop coordinates, from ``(S, C, h, h)``.

    The LV probabilities of the slices are added up; the connected part with the largest sum is the
    heart. Without any, the result is the middle of the crop and half its width.
    """
    left = maps[:, LV_CLASSES].sum(1)  # (S, h, h)
    together, side = left.sum(0), left.shape[-1]
    if float(together.max()) < 0.5:
        return torch.zeros(2), torch.tensor(1.0)
    parts, count = ndimage.label((together > 0.35 * together.max()).numpy())
    largest = 1 + int(np.argmax(ndimage.sum(together.numpy(), parts, range(1, count + 1))))
    heart = torch.from_numpy(ndimage.binary_dilation(parts == largest, iterations=3))
    inside, axis = together * heart, pixel_axis(side)
    centre = torch.stack([inside.sum(0) @ axis, inside.sum(1) @ axis]) / inside.sum()
    area = (left * heart).sum((1, 2)).max()
    return centre, 2 * torch.sqrt(area / torch.pi) * 2 / side


def study_votes(maps: Tensor) -> Tensor:
    """Normalised votes ``(5,)`` of a study's upright crops ``(S, 8, h, h)``."""
    left = maps[:, LV_CLASSES].sum(1)
    unit, distance = directions(maps.shape[-1], lv_centres(left, smallest=1e-6)[0])
    weight = left * distance
    votes = angle_votes(maps[:, CLASSES:], weight, unit[:, 0], unit[:, 1]).sum(0)
    return votes / votes[4].real.clamp(min=1e-6)


def draw_labels(square: SquareSlices, maps: Tensor, centre: Tensor, half_width: float) -> Tensor:
    """Label map ``(X, Y, S)`` uint8 on the study's grid, from the maps of an upright crop.

    Of the left and of the right ventricle, the largest connected part is kept.
    """
    box, heart = square.to_study(maps[:, 1:CLASSES], centre, half_width)
    background = 1 - heart[:, 0] - heart[:, 1] - heart[:, 2]
    classes = torch.cat([background[:, None], heart], dim=1).max(1).indices.numpy()
    for ventricle in ((1, 2), (3,)):
        mask = np.isin(classes, ventricle)
        parts, count = ndimage.label(mask)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            classes[mask & (parts != largest)] = 0
    labels = torch.zeros(*square.shape, len(maps), dtype=torch.uint8)
    labels[box] = torch.from_numpy(np.array(CLASS_CODES, dtype=np.uint8)[classes]).permute(2, 1, 0)
    return labels


def move_to_junctions(
    voted: Landmarks, labels: np.ndarray, spacing: tuple[float, float, float]
) -> Landmarks:
    """Move voted insertion points to the junctions of RV and wall, where these are near.

    Votes are never far off. A junction is exact, or missing where the RV was drawn wrongly.

    Args:
        voted: NaN stays NaN.
        labels: ``(X, Y, slices)`` in the internal codes.
        spacing: mm.
    """
    if not np.isfinite(voted.anterior_rvip_deg):
        return voted
    drawn = insertion_points(labels, spacing, mirrored=voted.mirrored)

    def nearer(vote: float, junction: float) -> float:
        near = abs((junction - vote + 180) % 360 - 180) <= NEAR_VOTE  # False for NaN
        return junction if near else vote

    anterior = nearer(voted.anterior_rvip_deg, drawn.anterior_rvip_deg)
    inferior = nearer(voted.inferior_rvip_deg, drawn.inferior_rvip_deg)
    return Landmarks(anterior, inferior, voted.confidence)


def with_prediction(study: Study, labels: Tensor | np.ndarray, landmarks: Landmarks) -> Study:
    """Copy a study with labels ``(X, Y, S)`` and landmarks; the image tensor is shared."""
    replaced = ("study_id", "image", "labels", "landmarks")
    kept = {key: value for key, value in study.items() if key not in replaced}
    image, spacing = study["image"].data[0], study.spacing_mm
    name = study["study_id"]
    return Study.from_arrays(name, image, spacing, labels, landmarks=landmarks, **kept)
