"""The heart network: its architecture, settings, predictions and files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn

from lgekit.anatomy.segments import insertion_points
from lgekit.cache import predicting, replacing
from lgekit.errors import InputError
from lgekit.segmentation import slices
from lgekit.segmentation.polar_unet import build_border_network, refine_borders
from lgekit.segmentation.slices import ANGLE_CHANNELS, CLASSES, LV_CLASSES
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
    """
    import timm

    return timm.create_model(name, pretrained=False, in_chans=1, num_classes=0, global_pool="")


def build_unet(settings: HeartSettings, seed: int) -> nn.Module:
    """Build a U-Net ``(B, 1, h, h)`` → ``(B, 8, h, h)``: class logits, then the angle field.

    Raises InputError if timm does not know the encoder, or if it fits no U-Net.
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
        outputs = CLASSES + ANGLE_CHANNELS
        head = SegmentationHead(settings.decoder[-1], outputs, kernel_size=3, upsampling=2)
        unet.segmentation_head = head
    return unet.to(memory_format=torch.channels_last)


class Candidate(NamedTuple):
    """The heart of a study as drawn in one crop."""

    maps: Tensor  # (S, 4 or 8, h, h)
    centre: Tensor  # (2,) of the crop
    half_width: Tensor  # () of the crop
    votes: Tensor  # (5,)
    certainty: float  # the LV's probability, averaged with itself as weight


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
        """Average heart networks, which may differ in all settings but ``pixels, heart_view``."""
        crops = {(member.settings.pixels, member.settings.heart_view) for member in members}
        if len(crops) != 1:
            remedy = "Average networks that were fitted with the same pixels and heart_view"
            raise InputError("heart networks", f"views differ: {sorted(crops)}", remedy)
        names = dict.fromkeys(name for member in members for name in member.trained_on)
        networks = [one for member in members for one in member.networks]
        borders = [one for member in members for one in member.borders]
        return cls(members[0].settings, networks, names, borders)

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
        for part in slices.standardise(crops).split(32):
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
        square = slices.square_slices(study)
        images = square.images.to(self.device)
        spread = torch.linspace(0, len(images) - 1, min(WIDE_SLICES, len(images)) + 2)
        some = images[spread[1:-1].round().long()]  # not the first and the last
        wide = self._crop_maps(some, torch.zeros(2), torch.tensor(1.0))
        first = self._draw(images, *find_heart(wide))
        candidates = [first._replace(votes=first.votes + study_votes(wide))]
        if first.certainty < SURE:  # look in the middle, then around what was found there
            for diameter in MIDDLE_DIAMETERS:
                centre, size = torch.zeros(2), torch.tensor(diameter)
                for _ in range(2):
                    last = self._draw(images, centre, size)
                    candidates.append(last)
                    moved, relative = find_heart(last.maps)
                    centre, size = last.centre + last.half_width * moved, last.half_width * relative
        best = max(candidates, key=lambda candidate: candidate.certainty)
        labels = square.draw_labels(best.maps, best.centre, best.half_width)
        found = ((labels == CAVITY) | (labels == MYOCARDIUM)).any()
        landmarks = slices.landmarks_from_votes(best.votes * found)
        landmarks = move_to_junctions(landmarks, labels.numpy(), study.spacing_mm)
        return with_labels(study, labels, landmarks)

    def predict_cohort(self, studies: Cohort | Sequence[Study]) -> Cohort:
        """Predict all studies; on a CPU one study per thread."""
        studies = studies.studies if isinstance(studies, Cohort) else studies
        threads = torch.get_num_threads()
        workers = max(min(threads, len(studies)), 1) if self.device.type == "cpu" else 1
        inner = threads if workers == 1 else 1
        try:
            with ThreadPoolExecutor(workers, "", torch.set_num_threads, (inner,)) as pool:
                predicted = list(pool.map(self.predict, studies))
        finally:
            torch.set_num_threads(threads)  # of threads that are started from now on
        return Cohort(predicted, "predicted")

    def _draw(self, images: Tensor, centre: Tensor, diameter: Tensor) -> Candidate:
        """Draw the heart of a study in a crop around ``centre (2,)``."""
        width = diameter * self.settings.heart_view / 2
        maps = self._crop_maps(images, centre, width)
        votes = study_votes(maps)
        if len(self.borders):
            maps, ring = refine_borders(self.borders, images, maps, centre, width)
            votes = votes + BORDER_VOTES * ring
        left = maps[:, LV_CLASSES].sum(1)
        certainty = float(left.square().sum() / left.sum().clamp(min=1e-6))
        return Candidate(maps, centre, width, votes, certainty)

    def _crop_maps(self, images: Tensor, centre: Tensor, half_width: Tensor) -> Tensor:
        """Maps of one upright crop per slice, at ``centre (2,)``."""
        count, shape = len(images), (self.settings.pixels, self.settings.pixels)
        axes = (half_width * torch.eye(2)).to(images.device).expand(count, 2, 2)
        centres = centre.to(images.device).expand(count, 2)
        return self.maps(slices.crop(images, axes, centres, shape)).cpu()

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
        """Read what :meth:`save` wrote; InputError if that is missing or does not fit."""
        try:
            about = json.loads((Path(folder) / "heart.json").read_text())
            weights = load_file(Path(folder) / "heart.safetensors")
            about["settings"].pop("poses", None)  # of older files
            for name in ("decoder", "border_channels"):
                about["settings"][name] = tuple(about["settings"][name])
            settings = HeartSettings(**about["settings"])
            kinds = [kind for kind, _ in {tuple(name.split(".")[:2]) for name in weights}]
            unets = [build_unet(settings, 0) for _ in range(kinds.count("networks"))]
            channels = settings.border_channels
            borders = [build_border_network(channels, 0) for _ in range(kinds.count("borders"))]
            network = cls(settings, unets, about["trained_on"], borders)
            network.load_state_dict(weights)
            return network
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            remedy = "Give a folder written by HeartNetwork.save, or fit the network again"
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
    part = slices.largest_part((together > 0.35 * together.max()).numpy(), together.numpy())
    heart = torch.from_numpy(ndimage.binary_dilation(part, iterations=3))
    inside, axis = together * heart, slices.pixel_axis(side)
    centre = torch.stack([inside.sum(0) @ axis, inside.sum(1) @ axis]) / inside.sum()
    area = (left * heart).sum((1, 2)).max()
    return centre, 2 * torch.sqrt(area / torch.pi) * 2 / side


def study_votes(maps: Tensor) -> Tensor:
    """Normalised votes ``(5,)`` of a study's upright crops ``(S, 8, h, h)``."""
    left = maps[:, LV_CLASSES].sum(1)
    unit, distance = slices.directions(maps.shape[-1], slices.lv_centres(left, smallest=1e-6)[0])
    votes = slices.angle_votes(maps[:, CLASSES:], left * distance, unit[:, 0], unit[:, 1]).sum(0)
    return votes / votes[4].real.clamp(min=1e-6)


def move_to_junctions(
    voted: Landmarks, labels: np.ndarray, spacing: tuple[float, float, float]
) -> Landmarks:
    """Move voted insertion points to the junctions of RV and wall, where these are near.

    Votes are never far off. A junction is exact, or missing where the RV was drawn wrongly.
    """
    if not np.isfinite(voted.anterior_rvip_deg):
        return voted
    drawn = insertion_points(labels, spacing, mirrored=voted.mirrored)
    pairs = [
        (voted.anterior_rvip_deg, drawn.anterior_rvip_deg),
        (voted.inferior_rvip_deg, drawn.inferior_rvip_deg),
    ]
    anterior, inferior = (
        junction if abs((junction - vote + 180) % 360 - 180) <= NEAR_VOTE else vote  # NaN: vote
        for vote, junction in pairs
    )
    return Landmarks(anterior, inferior, voted.confidence)


def with_labels(study: Study, labels: Tensor | np.ndarray, landmarks: Landmarks) -> Study:
    """Copy a study with labels ``(X, Y, S)`` and landmarks; the image tensor is shared."""
    fields = {**study, "landmarks": landmarks}
    name, image = fields.pop("study_id"), fields.pop("image").data[0]
    fields.pop("labels", None)
    return Study.from_arrays(name, image, study.spacing_mm, labels, **fields)
