"""Image and text towers."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgekit.clip.tokenizer import ReportTokenizer
from lgekit.config import FitSettings, make_settings
from lgekit.errors import InputError


@functools.cache
def report_text_tower() -> type:
    """The class of the text tower that is trained from scratch; made when first needed, for it brings open_clip."""
    from open_clip.transformer import TextTransformer

    class ReportTextTransformer(TextTransformer):
        """open_clip's text tower, but the class token has one place, the last, whatever the padding before it.

        In open_clip every text is padded to the context, which comes to the same; here only to the longest of a call,
        and a text's embedding would depend on the texts beside it.
        """

        def _embeds(self, text: Tensor) -> tuple[Tensor, Tensor]:
            embedded, mask = super()._embeds(text)
            places = self.positional_embedding
            own = embedded[:, -1:] - places[text.shape[1]] + places[-1]
            return torch.cat([embedded[:, :-1], own], 1), mask

    return ReportTextTransformer


class HuggingFaceText(nn.Module):
    """Text tower from any Hugging Face encoder: `(texts, length)` ids → embedding, tokens for the decoder.

    An encoder sees the whole text, so its states would tell the caption decoder the word it has to guess; the
    decoder's tokens therefore come from an embedding of their own.

    Attributes:
        shape: the encoder's configuration, JSON, without the name or folder that it came from.
    """

    def __init__(
        self, name: str, settings: FitSettings, tokenizer: ReportTokenizer, shape: str | None = None
    ):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        kept = {
            "dtype": torch.float32
        }  # many are stored in half precision, which a CPU does not train in
        try:
            if shape is None:
                config = AutoConfig.from_pretrained(name)
                self.net = AutoModel.from_pretrained(name, **kept)
            else:
                config = AutoConfig.for_model(**json.loads(shape))
                self.net = AutoModel.from_config(config, **kept)
        except (OSError, ValueError) as error:
            raise InputError(
                "setting text_encoder", f"{name!r}: {error}", "Give a hub name or a folder."
            ) from error
        about = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
        self.shape = json.dumps(about, default=str)
        self.pad_id = tokenizer.pad_id
        self.out = nn.Linear(config.hidden_size, settings.embed_dim, bias=False)
        self.words = nn.Embedding(tokenizer.vocab_size, settings.text_width)
        self.place = nn.Parameter(torch.randn(tokenizer.context_length, settings.text_width) * 0.01)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        mask = (text != self.pad_id).long()
        states = self.net(input_ids=text, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.out(mean), self.words(text) + self.place[: text.shape[1]]


CoCaModel = Any  # an open_clip CoCa with a StudyEncoder; open_clip has no types

# Slices [O]. At the paper's size a training step takes 4.8 s for all 1,280 at once, 2.8 for 32 or 64 at a time and 3.2
# for 128 (bfloat16, two cores of an AMD EPYC); at the laptop's 0.12 and 0.10 s.
PART = 64


class StudyBatch(NamedTuple):
    """Studies of any number of slices, padded to the longest.

    Attributes:
        images: `(studies, slices, 1, height, width)` float32; polar view: height = depth, width = angle.
        levels: `(studies, slices)` float32, 0 base … 1 apex.
        mask: `(studies, slices)` bool, False where padding.
    """

    images: Tensor
    levels: Tensor
    mask: Tensor

    def to(self, *args, **kwargs) -> StudyBatch:
        """The batch on another device."""
        return StudyBatch(*(part.to(*args, **kwargs) for part in self))

    def rows(self, index) -> StudyBatch:
        """The studies with these indices."""
        return StudyBatch(self.images[index], self.levels[index], self.mask[index])


class CircularConv(nn.Module):
    """Convolution on `(N, C, depth, angle)`: zeros beyond the depths, circular in angle."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, size: int = 3):
        super().__init__()
        self.margin = size // 2
        self.conv = nn.Conv2d(
            channels_in, channels_out, size, stride=stride, padding=(self.margin, 0), bias=False
        )
        self.norm = nn.GroupNorm(math.gcd(8, channels_out), channels_out)

    def forward(self, image: Tensor) -> Tensor:
        return F.gelu(
            self.norm(self.conv(F.pad(image, (self.margin, self.margin, 0, 0), mode="circular")))
        )


def in_parts(encode: Callable[[Tensor], Tensor], slices: Tensor) -> Tensor:
    """Encode slices, on a CPU `PART` at a time; the encoder must treat each slice on its own.

    What is then between its layers stays in the caches, and blocks are small enough for the C library to keep: one of
    32 MiB or more it gives back to the kernel, to get it page by page anew in the next step.
    """
    if slices.device.type != "cpu":
        return encode(slices)
    return torch.cat([encode(part) for part in slices.split(PART)])


class PolarEncoder(nn.Module):
    """Slice encoder of the polar view: `(N, 1, depth, angle)` → `(N, C, 2, 12)`, circular in angle.

    The two rows are the inner and the outer half of the wall, the twelve columns sectors of 30° from the anterior
    insertion point.
    """

    grid = (2, 12)

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = 2 * channels
        self.body = nn.Sequential(
            CircularConv(1, channels, stride=2, size=5),
            CircularConv(channels, 2 * channels),
            CircularConv(2 * channels, 2 * channels, stride=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        return in_parts(lambda part: F.adaptive_avg_pool2d(self.body(part), self.grid), image)


class ImageEncoder(nn.Module):
    """Slice encoder of the image view: a convolutional timm network with one input channel → `(N, C, 3, 3)`."""

    grid = (3, 3)

    def __init__(self, name: str):
        super().__init__()
        import timm

        try:
            self.net: Any = timm.create_model(
                name, pretrained=False, in_chans=1, num_classes=0, global_pool=""
            )
        except RuntimeError as error:
            raise InputError(
                "setting encoder", f"{name!r}: {error}", "Give a name from timm.list_models()."
            ) from error
        self.net = self.net.to(
            memory_format=torch.channels_last
        )  # a third faster on a CPU, and what a GPU wants
        self.out_channels = cast(int, self.net.num_features)
        try:
            with torch.no_grad():
                shape = tuple(self.net.eval().forward_features(torch.zeros(1, 1, 64, 96)).shape)
        except (
            AssertionError,
            RuntimeError,
            ValueError,
        ):  # a transformer, made for pictures of one size
            shape = ()
        if len(shape) != 4 or shape[1] != self.out_channels:
            problem = f"{name!r} gives no feature map (channels first) of a picture of any size"
            raise InputError(
                "setting encoder",
                problem,
                "Give a convolutional network, e.g. regnetx_002 or resnet34.",
            )
        self.net.train()

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        return F.adaptive_avg_pool2d(self.net.forward_features(image), self.grid)


class StudyEncoder(nn.Module):
    """A study → its embedding and the tokens the caption decoder reads.

    Slice features with their place kept (the grid of the slice encoder is flattened, not averaged) + level embedding
    → attention over the slices (padding masked) beside their maximum → the joint space. The decoder's tokens are
    learned queries over all grid cells of all slices, and one that holds the pooled slices.

    Source of the pooling: attention-based multiple-instance learning, Ilse 2018 (arXiv 1802.04712).
    """

    def __init__(self, settings: FitSettings):
        super().__init__()
        width = settings.width
        self.encoder: Any
        if settings.frame == "polar":
            self.encoder = PolarEncoder(settings.polar_channels)
        else:
            self.encoder = ImageEncoder(settings.encoder)
        rows, columns = self.encoder.grid
        self.cell = nn.Linear(self.encoder.out_channels, width)
        self.flatten = nn.Linear(width * rows * columns, width)
        self.level = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.slice_norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(settings.dropout))
        self.attend = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4))
        self.project = nn.Sequential(nn.LayerNorm(2 * width), nn.Dropout(settings.dropout))
        self.out = nn.Linear(2 * width, settings.embed_dim)
        self.place = nn.Parameter(torch.randn(rows * columns, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(settings.caption_queries, width) * width**-0.5)
        self.cell_norm = nn.LayerNorm(width)
        self.read = nn.MultiheadAttention(width, 4, batch_first=True)
        self.token = nn.Linear(width, settings.text_width)
        self.whole = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, settings.text_width)
        )

    def slice_features(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Slice features `(studies, slices, width)` and grid cells `(studies, slices, cells, width)`; padding is 0."""
        studies, slices = batch.mask.shape
        valid = batch.mask.flatten().nonzero()[:, 0]  # once: a GPU is waited for to count them
        images, levels = batch.images.flatten(0, 1)[valid], batch.levels.flatten()[valid]
        cells = self.cell(self.encoder(images).flatten(2).transpose(1, 2))  # (valid, cells, width)
        level = self.level(
            torch.stack([levels, (math.pi * levels).sin(), (math.pi * levels).cos()], -1)
        )
        features = self.mix(self.slice_norm(self.flatten(F.gelu(cells).flatten(1)) + level))
        cells = self.cell_norm(cells + level[:, None] + self.place)
        # each of its own dtype: under autocast they differ
        padded, padded_cells = (
            part.new_zeros(studies * slices, *part.shape[1:])
            .index_copy(0, valid, part)
            .unflatten(0, (studies, slices))
            for part in (features, cells)
        )
        return padded, padded_cells

    def gather(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Slices pooled `(studies, 2 · width)`: their mean by attention beside their maximum; the attention."""
        scores = self.attend(features).masked_fill(
            ~mask[..., None], float("-inf")
        )  # (studies, slices, heads)
        weights = scores.softmax(1)
        heads = features.unflatten(
            -1, (weights.shape[-1], -1)
        )  # (studies, slices, heads, width / heads)
        mean = torch.einsum("bsh,bshw->bhw", weights, heads).flatten(1)
        largest = features.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return torch.cat([mean, largest], -1), weights.mean(-1)

    def pool(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Study embedding `(studies, embed_dim)` and attention `(studies, slices)`, which sums to 1 over slices."""
        gathered, weights = self.gather(features, mask)
        return self.out(self.project(gathered)), weights

    def forward(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Embedding `(studies, embed_dim)`, not normalised, and decoder tokens `(studies, queries + 1, text_width)`."""
        return self.embed(*self.slice_features(batch), batch.mask)

    def embed(self, features: Tensor, cells: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, from what `slice_features` gave."""
        gathered, _ = self.gather(features, mask)
        keys = cells.flatten(1, 2)
        padding = (~mask)[..., None].expand(*mask.shape, cells.shape[2]).flatten(1)
        queries = self.queries.expand(len(keys), -1, -1)
        tokens, _ = self.read(queries, keys, keys, key_padding_mask=padding, need_weights=False)
        tokens = torch.cat([self.whole(gathered)[:, None], self.token(tokens)], 1)
        return self.out(self.project(gathered)), tokens

    def each_slice(self, features: Tensor) -> Tensor:
        """Embedding of each slice as if it were the whole study, `(studies, slices, embed_dim)`, from its features."""
        alone = features.flatten(0, 1)[:, None]
        embedded, _ = self.pool(
            alone, torch.ones(len(alone), 1, dtype=torch.bool, device=alone.device)
        )
        return embedded.unflatten(0, features.shape[:2])

    def load_segmentation(self, state: Mapping[str, Tensor]) -> None:
        """Start the slice encoder from a segmentation network's encoder (same architecture).

        Args:
            state: names as in timm, or behind segmentation_models_pytorch's ``model.`` prefix.
        """
        target = self.encoder.net if isinstance(self.encoder, ImageEncoder) else self.encoder
        own = target.state_dict()
        found = {
            _plain(name.removeprefix("encoder.").removeprefix("model.")): value
            for name, value in state.items()
        }
        taken = {name: found[_plain(name)] for name in own if _plain(name) in found}
        taken = {name: value for name, value in taken.items() if value.shape == own[name].shape}
        if len(taken) < 0.9 * len(own):
            raise InputError(
                "segmentation weights",
                f"{len(taken)} of {len(own)} tensors fit the slice encoder",
                "Fit the heart network with the same encoder, choose another (regnetx_002, resnet18, convnext_atto: "
                "not all of timm's give a U-Net their stages), or set encoder_init='random'.",
            )
        target.load_state_dict(own | taken)


def _plain(name: str) -> str:
    """A weight's name, whether timm has nested its stages (``stages.0``) or laid them side by side (``stages_0``)."""
    return name.replace(".", "_")


def build_coca(
    settings: FitSettings, tokenizer: ReportTokenizer, text_shape: str | None = None
) -> CoCaModel:
    """An open_clip ``CoCa`` (Yu 2022, arXiv 2205.01917) whose vision tower is a `StudyEncoder`.

    ``encode_image`` takes a `StudyBatch`, ``encode_text`` token ids; the state dict without ``visual.`` loads into
    open_clip's own class, which embeds texts as this one does if it is built with ``correct_cls_mask=True`` in its
    ``text_cfg`` (open_clip's default is False). Two faults of open_clip 3.3 are put right here: the decoder is
    initialised (its ``text_projection`` is left empty otherwise) and the class token may see itself
    (``correct_cls_mask``). Texts may be padded to any length.

    Args:
        settings: widths and views.
        tokenizer: its vocabulary and special tokens shape the text tower.
        text_shape: of a Hugging Face text encoder, as `lgekit.clip.model.HuggingFaceText.shape` gives it: it is built
            with random weights, for ours to follow, and nothing is read by its name. None: its own weights are read.
    """
    from open_clip.coca_model import CoCa

    shape = {"width": settings.text_width, "heads": settings.text_heads}
    length = tokenizer.context_length
    model = CoCa(
        embed_dim=settings.embed_dim,
        vision_cfg={"image_size": 32, "patch_size": 32, "layers": 1, "width": 32, "head_width": 32}
        | {
            "attentional_pool": True,
            "attn_pooler_heads": 1,
            "output_tokens": True,
        },  # a place-holder
        text_cfg=shape
        | {
            "layers": settings.text_layers,
            "context_length": length,
            "vocab_size": tokenizer.vocab_size,
        }
        | {"embed_cls": True, "output_tokens": True, "pad_id": tokenizer.pad_id},
        multimodal_cfg=shape
        | {
            "layers": settings.decoder_layers,
            "context_length": length,
            "vocab_size": tokenizer.vocab_size,
        },
        pad_id=tokenizer.pad_id,
    )
    model.visual = StudyEncoder(settings)
    if settings.text_encoder == "scratch":
        model.text.correct_cls_mask = True
        model.text.__class__ = (
            report_text_tower()
        )  # CoCa builds it, and lets nobody choose its class
    else:
        model.text = HuggingFaceText(settings.text_encoder, settings, tokenizer, text_shape)
    initialise_decoder(model.text_decoder)
    return model


def initialise_decoder(decoder: Any) -> None:
    """The initialisation that open_clip's ``MultimodalTransformer`` defines for itself and never runs."""
    width = decoder.text_projection.shape[0]
    layers = len(decoder.resblocks)
    for block in [*decoder.resblocks, *decoder.cross_attn]:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
    nn.init.normal_(decoder.text_projection, std=width**-0.5)


def save_coca(
    folder: Path, model: CoCaModel, tokenizer: ReportTokenizer, settings: FitSettings
) -> None:
    """Write ``model.safetensors``, ``tokenizer.json``, ``config.json``; ``text.json`` of a Hugging Face encoder."""
    from shutil import copymode

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous().clone() for name, value in model.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    if isinstance(model.text, HuggingFaceText):
        (folder / "text.json").write_text(model.text.shape)
    config = {"settings": settings.model_dump(), "context_length": tokenizer.context_length}
    (folder / "config.json").write_text(
        json.dumps(config | {"special": tokenizer.special}, indent=1)
    )
    copymode(
        folder / "config.json", folder / "model.safetensors"
    )  # safetensors lets nobody but its owner read it


def load_coca(folder: Path) -> tuple[CoCaModel, ReportTokenizer, FitSettings]:
    """Read what `save_coca` wrote; the model is in eval mode on the CPU."""
    from safetensors.torch import load_file

    if not (folder / "config.json").exists():
        raise InputError(folder, "holds no config.json", "Give a folder that `lgekit fit` wrote.")
    config = json.loads((folder / "config.json").read_text())
    settings = make_settings(**config["settings"])
    tokenizer = ReportTokenizer.from_json(
        (folder / "tokenizer.json").read_text(), config["context_length"], config["special"]
    )
    shape = (folder / "text.json").read_text() if settings.text_encoder != "scratch" else None
    model = build_coca(settings, tokenizer, shape)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), tokenizer, settings


def pad_studies(tensors: list[tuple[Tensor, Tensor]]) -> StudyBatch:
    """Stack `(slices, 1, H, W)` images and `(slices,)` levels of any number of slices into one padded batch."""
    longest = max(len(images) for images, _ in tensors)
    batch = StudyBatch(
        torch.zeros(len(tensors), longest, *tensors[0][0].shape[1:]),
        torch.zeros(len(tensors), longest),
        torch.zeros(len(tensors), longest, dtype=torch.bool),
    )
    for number, (images, levels) in enumerate(tensors):
        batch.images[number, : len(images)] = images
        batch.levels[number, : len(images)] = levels
        batch.mask[number, : len(images)] = True
    return batch


def count_weights(model: CoCaModel) -> int:
    """Number of trainable weights."""
    return int(np.sum([weight.numel() for weight in model.parameters() if weight.requires_grad]))


def join(first: StudyBatch, second: StudyBatch) -> StudyBatch:
    """Two batches as one, padded to the longer."""
    slices = max(first.mask.shape[1], second.mask.shape[1])

    def longer(part: Tensor) -> Tensor:
        return F.pad(part, [0, 0] * (part.ndim - 2) + [0, slices - part.shape[1]])

    return StudyBatch(
        *(torch.cat([longer(a), longer(b)]) for a, b in zip(first, second, strict=True))
    )
