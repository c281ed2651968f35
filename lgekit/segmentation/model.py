"""The heart network: U-Net, border network, settings, predictions and files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from math import asinh
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from lgekit.anatomy.segments import insertion_points
from lgekit.config import PRESETS, TIMM_NAME
from lgekit.errors import InputError
from lgekit.segmentation import slices
from lgekit.segmentation.slices import ANGLE_CHANNELS, CLASSES, LV_CLASSES
from lgekit.study import CAVITY, MYOCARDIUM, Cohort, Landmarks, Study

# A detector and its heart network, trained on phantoms alone by tools/train_weights.py (float16)
WEIGHTS = Path(__file__).parents[1] / "data" / "weights"
NEAR_VOTE = 25.0  # degrees between a vote and a junction of RV and wall that replaces it [O]
BORDER_VOTES = 3.0  # weight of the border network's votes; the U-Net's have weight 1 [O]
WIDE_SLICES = 4  # slices in which the heart is first looked for
MIN_CERTAINTY = 0.88  # below it, the heart is also looked for in the middle of the picture [O]
MIDDLE_DIAMETERS = (0.28, 0.4)  # LV diameters that are tried there, square coordinates [O]
POLAR_DEPTHS, POLAR_ANGLES = 48, 64  # samples of a polar picture
OUTER = 3.4  # its outer end, in radii of a circle with the slice's epicardial area
STRETCH = asinh(OUTER) / POLAR_DEPTHS
_STEPS = (torch.arange(POLAR_DEPTHS)[:, None] + 0.5) * STRETCH
SAMPLE_DEPTHS = torch.sinh(_STEPS)  # (depth, 1) LV radii from the centre; dense in the wall
SAMPLE_AREAS = torch.sinh(_STEPS) * torch.cosh(_STEPS)  # (depth, 1), r dr
# radians, clockwise on the screen
COLUMN_ANGLES = torch.arange(POLAR_ANGLES) * (2 * torch.pi / POLAR_ANGLES)
DRAWN = 96  # side of the maps that are drawn
PRESENT = 0.15  # of a study's largest LV area: a slice with less stays as the U-Net drew it

Channels = Annotated[int, Field(ge=1, le=1024)]
Levels = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8)]
Share = Annotated[float, Field(ge=0, le=1)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # of what is read from a file
UNREADABLE = (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, config=STRICT)
class HeartSettings:
    """Architecture and training of the heart network."""

    encoder: Annotated[str, Field(pattern=TIMM_NAME)] = "regnetx_002"
    decoder: tuple[Channels, Channels, Channels, Channels] = (64, 48, 32, 24)  # coarse to fine
    pixels: Annotated[int, Field(ge=32, le=512)] = 64  # side of a crop
    heart_view: PositiveFloat = 2.5  # width of the crop around the heart, in LV diameters
    steps: PositiveInt = 3000  # of the optimiser
    batch: PositiveInt = 8  # crops per step
    wide_share: Share = 0.25  # share of crops of the whole field of view
    learning_rate: PositiveFloat = 2e-3  # peak of the one-cycle schedule
    invented: Share = 0.0  # share of training pictures that are generated from their labels
    border_channels: Levels = (16, 32, 64, 64)
    border_steps: NonNegativeInt = 700  # of the border network's optimiser; 0: no border network


HEART_SIZES = {size: HeartSettings(**changes) for size, changes in PRESETS["hearts"].items()}


class SavedHeart(NamedTuple):
    """What heart.json holds."""

    settings: HeartSettings
    trained_on: tuple[str, ...]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ValueError if a weight is not finite."""
    weights = load_file(path)
    for name, values in weights.items():
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} is not finite")
    return weights


def build_unet(settings: HeartSettings, seed: int) -> nn.Module:
    """Build a U-Net ``(B, 1, h, h)`` → ``(B, 8, h, h)``: class logits, then the angle field."""
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
            unet.eval()(torch.zeros(1, 1, 64, 96))  # a transformer for one image size fails here
        except (AssertionError, RuntimeError, ValueError) as error:
            problem = f"{settings.encoder!r}: {' '.join(str(error).split())[:200]}"
            remedy = "Give a convolutional network of timm.list_models(), e.g. regnetx_002"
            raise InputError("setting encoder", problem, remedy) from error
        # The last block works at full resolution and costs as much as all others together.
        unet.decoder.blocks = unet.decoder.blocks[:-1]
        channels = settings.decoder[-1], CLASSES + ANGLE_CHANNELS
        unet.segmentation_head = SegmentationHead(*channels, kernel_size=3, upsampling=2)
    return unet.train().to(memory_format=torch.channels_last)


def ring_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 × 3 convolutions on ``(B, C, depth, angle)``, where the two ends of the angle meet."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        convolution = nn.Conv2d(channels, channels_out, 3, bias=False)
        layers += [nn.CircularPad2d((1, 1, 0, 0)), nn.ZeroPad2d((0, 0, 1, 1)), convolution]
        layers += [nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


class BorderNetwork(nn.Module):
    """A U-Net on standardised polar pictures ``(B, 3, 48, 64)`` of a slice and its neighbours.

    The output ``(B, 8, 48, 64)`` holds the logits of the four classes, then the angle field.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.down = nn.ModuleList(map(ring_block, (4, *channels[:-1]), channels))
        self.up = nn.ModuleList(
            ring_block(deep + shallow, shallow)
            for deep, shallow in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(channels[0], CLASSES + ANGLE_CHANNELS, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        count, _, height, width = pictures.shape
        depth = torch.linspace(-1, 1, height, device=pictures.device)[:, None]
        depth = depth.expand(count, 1, height, width)
        x, skips = torch.cat([pictures, depth], dim=1), []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.head(x)


def ring_points(
    centre: Tensor, radius: Tensor, start: Tensor | float = 0.0, mirror: Tensor | float = 1.0
) -> Tensor:
    """Positions ``(B, depth, angle, 2)`` of the samples of polar pictures, x right and y down.

    The first column is at the angle ``start (B, 1)``, in radians; the columns run clockwise on the
    screen where ``mirror (B, 1)`` is 1, else the other way. ``radius (B,)`` is the LV's.
    """
    angle = COLUMN_ANGLES.to(centre.device) * mirror + start
    unit = torch.stack([angle.cos(), angle.sin()], dim=-1).view(-1, 1, POLAR_ANGLES, 2)
    depth = SAMPLE_DEPTHS.to(centre.device)[:, None]
    return centre[:, None, None] + unit * depth * radius[:, None, None, None]


@torch.inference_mode()
def refine_borders(
    network: nn.Module, images: Tensor, maps: Tensor, centre: Tensor, half_width: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw both ventricles of one study again, in polar pictures around what the U-Net drew.

    Returns class probabilities ``(S, 4, 96, 96)``, new where the polar pictures reach, and
    normalized votes ``(5,)``.
    """
    device, shape = images.device, (DRAWN, DRAWN)
    maps = maps[:, :CLASSES].to(device)
    centre, half_width = centre.to(device), half_width.to(device)
    maps = functional.interpolate(maps, shape, mode="bilinear", align_corners=False)
    padded = torch.cat([images[:1], images, images[-1:]])[:, 0]
    triples = padded.unfold(0, 3, 1).permute(0, 3, 1, 2)  # (S, 3, 256, 256): slice and neighbours
    middle, area = slices.lv_centres(maps[:, LV_CLASSES].sum(1), smallest=1)
    radius = (torch.sqrt(area / torch.pi) * 2 / DRAWN).clamp(min=2 / DRAWN)

    points = ring_points(centre + half_width * middle, half_width * radius)
    pictures = functional.grid_sample(triples, points, align_corners=False)
    pictures = slices.standardise(pictures).contiguous(memory_format=torch.channels_last)
    shares, field = network(pictures).split((CLASSES, ANGLE_CHANNELS), dim=1)
    shares = shares.softmax(1)
    present = radius.square() > PRESENT * radius.square().max()
    column = COLUMN_ANGLES.to(device)
    arms = (SAMPLE_AREAS * SAMPLE_DEPTHS).to(device)  # area times distance
    weight = shares[present][:, LV_CLASSES].sum(1) * arms * radius[present][:, None, None].pow(3)
    direction = torch.polar(torch.ones_like(column), -column)
    votes = slices.angle_votes(field[present], weight, direction)
    # back from the polar pictures to the crops
    offset = slices.screen_grid(shape, device) - middle[:, None, None]
    offset = offset / radius[:, None, None, None]
    distance = offset.norm(dim=-1)
    angle = torch.atan2(offset[..., 1], offset[..., 0]) % (2 * torch.pi)
    # asinh of the distance, five times as fast as torch.asinh
    row = torch.log(distance + torch.sqrt(distance.square() + 1)) / STRETCH - 0.5
    place = torch.stack([angle / torch.pi - 1, row / (POLAR_DEPTHS - 1) * 2 - 1], dim=-1)
    closed = torch.cat([shares, shares[..., :1]], dim=3)
    back = functional.grid_sample(closed, place, padding_mode="border", align_corners=True)
    inside = (distance < OUTER)[:, None] & present[:, None, None, None]
    return torch.where(inside, back, maps).cpu(), votes.cpu()


class HeartNetwork(nn.Module):
    """A U-Net and a border network, with random weights from the seed.

    With ``border_steps=0`` there is no border network: the U-Net's drawing is the result.
    ``trained_on`` names the cohort.
    """

    def __init__(self, settings: HeartSettings, seed: int = 0, trained_on: Iterable[str] = ()):
        super().__init__()
        self.settings, self.trained_on = settings, tuple(trained_on)
        # lists of one, after which the weights in files are named
        self.networks = nn.ModuleList([build_unet(settings, seed)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            borders = [BorderNetwork(settings.border_channels)] if settings.border_steps else []
        self.borders = nn.ModuleList(borders).to(memory_format=torch.channels_last)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @torch.inference_mode()
    def maps(self, crops: Tensor) -> Tensor:
        """Class probabilities and angle field ``(B, 8, h, h)`` of crops in [0, 1]."""
        crops = slices.standardise(crops).contiguous(memory_format=torch.channels_last)
        output = self.networks[0](crops)
        return torch.cat([output[:, :CLASSES].softmax(1), output[:, CLASSES:]], dim=1)

    def predict(self, study: Study) -> Study:
        """Copy a study with predicted labels and landmarks, from its image alone.

        Labels are BACKGROUND, CAVITY, MYOCARDIUM (scar included) and RV. Where no heart is found,
        labels are empty and landmarks are NaN with confidence 0.
        """
        frame, images = slices.square_slices(study)
        images = images.to(self.device)
        some = images[len(images) // 8 :: max(len(images) // WIDE_SLICES, 1)]
        whole = torch.zeros(2), torch.tensor(1.0)
        best = self._draw(images, *find_heart(self._crop_maps(some, *whole), *whole))
        if best[0] < MIN_CERTAINTY:  # look in the middle, then around what was found there
            for diameter in MIDDLE_DIAMETERS:
                middle = self._draw(images, torch.zeros(2), torch.tensor(diameter))
                around = self._draw(images, *find_heart(*middle[1:4]))
                best = max(best, middle, around, key=lambda drawing: drawing[0])
        _, maps, centre, half_width, votes = best
        labels = slices.draw_labels(frame, maps, centre, half_width)
        found = ((labels == CAVITY) | (labels == MYOCARDIUM)).any()
        voted = slices.landmarks_from_votes(votes * found)
        return with_labels(study, labels, move_to_junctions(voted, labels, study.spacing_mm))

    def predict_cohort(self, cohort: Cohort) -> Cohort:
        """Predict all studies; on a CPU one study per thread."""
        threads = torch.get_num_threads()
        workers = max(min(threads, len(cohort)), 1) if self.device.type == "cpu" else 1
        inner = threads if workers == 1 else 1
        try:
            with ThreadPoolExecutor(workers, "", torch.set_num_threads, (inner,)) as pool:
                found = pool.map(self.predict, cohort.studies)
                predicted = list(tqdm(found, "locating hearts", len(cohort), leave=False, delay=2))
        finally:
            torch.set_num_threads(threads)  # of threads that are started from now on
        return Cohort(predicted, "predicted")

    def _draw(self, images: Tensor, centre: Tensor, diameter: Tensor) -> tuple:
        """Draw the heart in a crop: certainty, maps, the crop's centre and half width, votes."""
        width = diameter * self.settings.heart_view / 2
        maps = self._crop_maps(images, centre, width)
        votes = study_votes(maps)
        for border in self.borders:
            maps, ring = refine_borders(border, images, maps, centre, width)
            votes = votes + BORDER_VOTES * ring
        left = maps[:, LV_CLASSES].sum(1)  # certainty: its mean, with itself as weight
        certainty = float(left.square().sum() / left.sum().clamp(min=1e-6))
        return certainty, maps, centre, width, votes

    def _crop_maps(self, images: Tensor, centre: Tensor, half_width: Tensor) -> Tensor:
        """Maps of one upright crop per slice, at ``centre (2,)``."""
        pixels = self.settings.pixels
        points = slices.screen_grid((pixels, pixels)) * half_width + centre
        points = points.to(images.device).expand(len(images), -1, -1, -1)
        return self.maps(functional.grid_sample(images, points, align_corners=False)).cpu()

    def save(self, folder: str | Path) -> Path:
        """Write ``heart.safetensors`` and ``heart.json`` into a folder (made if absent)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "heart.safetensors")
        about = {"settings": asdict(self.settings), "trained_on": self.trained_on}
        (folder / "heart.json").write_text(json.dumps(about, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> HeartNetwork:
        """Read what :meth:`save` wrote, a stranger's too; InputError if it is missing or unfit."""
        try:
            text = (Path(folder) / "heart.json").read_bytes()
            settings, names = TypeAdapter(SavedHeart).validate_json(text)
            network = cls(settings, trained_on=names)
            network.load_state_dict(read_weights(Path(folder) / "heart.safetensors"))
            return network
        except UNREADABLE as error:
            problem = f"not a heart network: {' '.join(str(error).split())[:200]}"
            remedy = "Give a folder written by HeartNetwork.save, or fit the network again"
            raise InputError(folder, problem, remedy) from error


def find_heart(maps: Tensor, centre: Tensor, half_width: Tensor) -> tuple[Tensor, Tensor]:
    """Find the LV's centre and diameter in maps ``(S, C, h, h)``; without any, the whole crop."""
    left = maps[:, LV_CLASSES].sum(1)  # (S, h, h)
    together, side = left.sum(0), left.shape[-1]
    if float(together.max()) < 0.5:
        return centre, half_width
    part = slices.largest_part((together > 0.35 * together.max()).numpy(), together.numpy())
    heart = torch.from_numpy(ndimage.binary_dilation(part, iterations=3))
    inside, axis = together * heart, slices.pixel_axis(side)
    middle = torch.stack([inside.sum(0) @ axis, inside.sum(1) @ axis]) / inside.sum()
    area = (left * heart).sum((1, 2)).max()
    return centre + half_width * middle, half_width * 2 * torch.sqrt(area / torch.pi) * 2 / side


def study_votes(maps: Tensor) -> Tensor:
    """Normalized votes ``(5,)`` of a study's upright crops ``(S, 8, h, h)``."""
    left = maps[:, LV_CLASSES].sum(1)
    centre, _ = slices.lv_centres(left, smallest=1e-6)
    place = slices.as_complex(slices.screen_grid(left.shape[1:]) - centre[:, None, None])
    return slices.angle_votes(maps[:, CLASSES:], left * place.abs(), place.sgn())


def move_to_junctions(voted: Landmarks, labels: np.ndarray, spacing: Sequence) -> Landmarks:
    """Move votes to near junctions of RV and wall: these are exact, or wrong where the RV is."""
    if not np.isfinite(voted.anterior_rvip_deg):
        return voted
    drawn = insertion_points(labels, spacing, mirrored=voted.mirrored)
    vote, junction = voted.angles, drawn.angles
    near = np.abs((junction - vote + 180) % 360 - 180) <= NEAR_VOTE  # False for NaN
    anterior, inferior = np.where(near, junction, vote).tolist()
    return Landmarks(anterior, inferior, voted.confidence)


def with_labels(study: Study, labels: Tensor | np.ndarray, landmarks: Landmarks) -> Study:
    """Copy a study with labels ``(X, Y, S)`` and landmarks; the image tensor is shared."""
    fields = {**study, "landmarks": landmarks}
    name, image = fields.pop("study_id"), fields.pop("image").data[0]
    fields.pop("labels", None)
    return Study.from_arrays(name, image, study.spacing_mm, labels, **fields)
