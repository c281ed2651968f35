"""Tokenizer, image and text encoders, the caption decoder, and the files they are saved in."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lgekit.config import FitSettings
from lgekit.segmentation.model import HEART_SIZES, build_unet

PAD, START, END, UNKNOWN_WORD = "[PAD]", "[SOT]", "[EOT]", "[UNK]"
VOCABULARY = 600  # most tokens that the tokenizer may learn
MOST_WORDS = 20_000  # of a saved tokenizer, which may know many signs
HEADS, QUERIES = 4, 8  # attention heads; image tokens that the decoder reads
SLICES_AT_ONCE = 64  # on a CPU: intermediate results stay in its caches [O]


class StudyBatch(NamedTuple):
    """Studies with any number of slices, padded to the longest."""

    images: Tensor  # (studies, slices, 1, height, width) float32; polar view: (…, depth, angle)
    levels: Tensor  # (studies, slices) float32, 0 base … 1 apex
    mask: Tensor  # (studies, slices) bool, False for padding

    def to(self, device: torch.device | str) -> StudyBatch:
        """The batch on another device."""
        return StudyBatch(*(part.to(device) for part in self))

    def rows(self, index: Tensor | slice) -> StudyBatch:
        """The studies with these indices."""
        return StudyBatch(*(part[index] for part in self))


def circular_conv(
    channels_in: int, channels_out: int, stride: int = 1, size: int = 3
) -> nn.Sequential:
    """Convolution on `(N, C, depth, angle)`: zero padding in depth, circular in angle."""
    margin, norm = size // 2, nn.GroupNorm(math.gcd(8, channels_out), channels_out)
    pad = nn.CircularPad2d((margin, margin, 0, 0))
    conv = nn.Conv2d(channels_in, channels_out, size, stride, padding=(margin, 0), bias=False)
    return nn.Sequential(OrderedDict(pad=pad, conv=conv, norm=norm, gelu=nn.GELU()))


def in_parts(encode: Callable[[Tensor], Tensor], slices: Tensor) -> Tensor:
    """Encode slices, on a CPU `SLICES_AT_ONCE` at a time; slices must not influence each other."""
    if slices.device.type != "cpu":
        return encode(slices)
    return torch.cat([encode(part) for part in slices.split(SLICES_AT_ONCE)])


class PolarEncoder(nn.Module):
    """Slice encoder of the polar view: `(N, 1, depth, angle)` → `(N, C, 2, 12)`, which are the
    inner and outer half of the wall, and sectors of 30° from the anterior insertion point."""

    grid = (2, 12)

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = 2 * channels
        self.body = nn.Sequential(
            circular_conv(1, channels, stride=2, size=5),
            circular_conv(channels, 2 * channels),
            circular_conv(2 * channels, 2 * channels, stride=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        return in_parts(lambda part: F.adaptive_avg_pool2d(self.body(part), self.grid), image)


class ImageEncoder(nn.Module):
    """Encoder of the heart network's U-Net → `(N, C, 3, 3)`; InputError if timm has none such."""

    grid = (3, 3)

    def __init__(self, settings: FitSettings):
        super().__init__()
        heart = replace(HEART_SIZES[settings.heart_size], encoder=settings.encoder)
        net: Any = build_unet(heart, settings.seed).get_submodule("encoder")
        self.net, self.out_channels = net, int(net.out_channels[-1])

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)  # faster on CPUs and GPUs
        return F.adaptive_avg_pool2d(self.net(image)[-1], self.grid)


class StudyEncoder(nn.Module):
    """A study → its embedding, and the tokens that the caption decoder reads.

    The level of each slice is added to its features. Slices are pooled by attention (Ilse 2018,
    arXiv 1802.04712) and by their maximum. The decoder's tokens are learned queries over all grid
    cells of all slices, and one token of the pooled slices.
    """

    def __init__(self, settings: FitSettings):
        super().__init__()
        width = settings.width
        polar = settings.frame == "polar"
        encoder = PolarEncoder(settings.polar_channels) if polar else ImageEncoder(settings)
        self.encoder: PolarEncoder | ImageEncoder = encoder
        rows, columns = self.encoder.grid
        self.cell = nn.Linear(self.encoder.out_channels, width)
        self.flatten = nn.Linear(width * rows * columns, width)
        self.level = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.slice_norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(settings.dropout))
        self.attend = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, HEADS))
        self.project = nn.Sequential(nn.LayerNorm(2 * width), nn.Dropout(settings.dropout))
        self.out = nn.Linear(2 * width, settings.embed_dim)
        self.place = nn.Parameter(torch.randn(rows * columns, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(QUERIES, width) * width**-0.5)
        self.cell_norm = nn.LayerNorm(width)
        self.read = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.token = nn.Linear(width, settings.text_width)
        self.whole = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, settings.text_width)
        )

    def forward(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Embeddings, not normalized, and decoder tokens `(studies, queries + 1, text_width)`."""
        return self.embed(*self.slice_features(batch), batch.mask)

    def slice_features(self, batch: StudyBatch) -> tuple[Tensor, Tensor]:
        """Features `(studies, slices, width)` and cells `(studies, slices, cells, width)`."""
        studies, slices = batch.mask.shape
        valid = batch.mask.flatten().nonzero()[:, 0]  # once: counting them waits for a GPU
        images, levels = batch.images.flatten(0, 1)[valid], batch.levels.flatten()[valid]
        cells = self.cell(self.encoder(images).flatten(2).transpose(1, 2))  # (valid, cells, width)
        angle = math.pi * levels
        level = self.level(torch.stack([levels, angle.sin(), angle.cos()], -1))
        features = self.mix(self.slice_norm(self.flatten(F.gelu(cells).flatten(1)) + level))
        cells = self.cell_norm(cells + level[:, None] + self.place)

        def pad(part: Tensor) -> Tensor:
            empty = part.new_zeros(studies * slices, *part.shape[1:])
            return empty.index_copy(0, valid, part).unflatten(0, (studies, slices))

        return pad(features), pad(cells)

    def pool(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Study embeddings, attention `(studies, slices)`, which sums to 1 over slices, and the
        attention mean and maximum of the features `(studies, 2 · width)`."""
        padding = ~mask[..., None]
        weights = self.attend(features).masked_fill(padding, -math.inf).softmax(1)
        heads = features.unflatten(-1, (weights.shape[-1], -1))
        mean = torch.einsum("bsh,bshw->bhw", weights, heads).flatten(1)
        largest = features.masked_fill(padding, -math.inf).amax(1)
        gathered = torch.cat([mean, largest], -1)
        return self.out(self.project(gathered)), weights.mean(-1), gathered

    def embed(self, features: Tensor, cells: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The result of `forward` from that of `slice_features`."""
        embedded, _, gathered = self.pool(features, mask)
        padding = (~mask).repeat_interleave(cells.shape[2], 1)
        keys, queries = cells.flatten(1, 2), self.queries.expand(len(cells), -1, -1)
        tokens, _ = self.read(queries, keys, keys, key_padding_mask=padding, need_weights=False)
        return embedded, torch.cat([self.whole(gathered)[:, None], self.token(tokens)], 1)

    def each_slice(self, features: Tensor) -> Tensor:
        """Embed each slice as if it were a whole study: `(studies, slices, embed_dim)`."""
        alone = features.flatten(0, 1)[:, None]
        embedded, *_ = self.pool(alone, alone.new_ones(len(alone), 1, dtype=torch.bool))
        return embedded.unflatten(0, features.shape[:2])

    def load_segmentation(self, state: Mapping[str, Tensor]) -> None:
        """Start the slice encoder from that of a segmentation network."""
        getattr(self.encoder, "net", self.encoder).load_state_dict(state)


class ReportTokenizer:
    """Texts → token ids `(texts, longest)` int64: start, the text, end, padding.

    Texts longer than ``context_length`` (in tokens, start and end included) are cut; the end token
    is kept. ``core`` is a ``tokenizers.Tokenizer``.
    """

    def __init__(self, core: Any, context_length: int):
        self.core, self.context_length = core, context_length
        self.pad_id, self.start_id, self.end_id = map(core.token_to_id, (PAD, START, END))

    @classmethod
    def train(
        cls, texts: Iterable[str], context_length: int = 64, vocabulary: int = VOCABULARY
    ) -> ReportTokenizer:
        """Learn byte-pair merges (Sennrich 2016) in lower case; each digit is a token of its own.

        The vocabulary holds all printable ASCII characters, so that any typed sentence has tokens.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from tokenizers.trainers import BpeTrainer

        core, split = Tokenizer(models.BPE(unk_token=UNKNOWN_WORD)), pre_tokenizers
        one_space = normalizers.Replace(Regex("[ \\t]+"), " ")
        core.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), one_space]
        )
        steps = [split.Metaspace(prepend_scheme="first"), split.Split("\n", "isolated")]
        steps += [split.Punctuation("isolated"), split.Digits(individual_digits=True)]
        core.pre_tokenizer = split.Sequence(steps)
        core.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END, UNKNOWN_WORD],
            initial_alphabet=["\n", "\u2581", *map(chr, range(33, 127))],
            show_progress=False,
        )
        core.train_from_iterator(sorted(set(texts)), trainer)
        return cls(core, context_length)

    @classmethod
    def load(cls, path: str | Path, context_length: int) -> ReportTokenizer:
        """Read a saved tokenizer. ValueError if more than its words and merges is not `train`'s."""
        from tokenizers import Tokenizer

        loaded, rules = cls(Tokenizer.from_file(str(path)), context_length), []
        for one in (loaded, cls.train([])):
            rules.append(json.loads(one.core.to_str()))
            del rules[-1]["model"]["vocab"], rules[-1]["model"]["merges"]
        if rules[0] != rules[1] or loaded.core.get_vocab_size() > MOST_WORDS:
            raise ValueError("it is not a tokenizer of lgekit")
        return loaded

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Token ids of one text or several, padded to the longest of them."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [
            torch.tensor([self.start_id, *encoded.ids[: self.context_length - 2], self.end_id])
            for encoded in self.core.encode_batch(texts, add_special_tokens=False)
        ]
        return pad_sequence(rows, batch_first=True, padding_value=self.pad_id)

    def decode(self, ids: Tensor) -> str:
        """The text of one row of ids, without special tokens."""
        return self.core.decode(ids.tolist(), skip_special_tokens=True).strip()


class CoCa(nn.Module):
    """Contrastive captioner (Yu 2022, arXiv 2205.01917) with a `StudyEncoder` for images.

    The text tower and the decoder are open_clip's, with the names of its ``CoCa``.
    """

    def __init__(self, settings: FitSettings, tokenizer: ReportTokenizer):
        super().__init__()
        from open_clip.transformer import MultimodalTransformer, TextTransformer, VisionTransformer

        width, out = settings.text_width, {"output_dim": settings.embed_dim}
        shape = {"width": width, "heads": HEADS}
        shape["context_length"] = tokenizer.context_length
        options = {"embed_cls": True, "output_tokens": True, "pad_id": tokenizer.pad_id, **out}
        options["correct_cls_mask"] = True  # otherwise the class token cannot see itself
        size, layers = tokenizer.core.get_vocab_size(), settings.text_layers
        self.text: Any = TextTransformer(vocab_size=size, layers=layers, **shape, **options)
        # Discarded. open_clip's CoCa draws its weights here, so seeds keep giving the same models.
        pooling = {"attentional_pool": True, "attn_pooler_heads": 1}
        VisionTransformer(32, 32, 32, 1, 1, 4.0, **pooling, **out)
        decoder = MultimodalTransformer(layers=settings.decoder_layers, output_dim=size, **shape)
        self.visual = StudyEncoder(settings)
        self.text_decoder: Any = decoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # open_clip 3.3 defines this initialization of its decoder and never runs it.
        deep = width**-0.5 * (2 * settings.decoder_layers) ** -0.5
        for block in [*decoder.resblocks, *decoder.cross_attn]:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=deep)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=deep)
        nn.init.normal_(decoder.text_projection, std=width**-0.5)

    def text_and_tokens(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text embeddings `(texts, embed_dim)` of length 1, and tokens for the decoder."""
        # open_clip pads every text to the full context. Here texts are padded to the longest of a
        # call, and the class token keeps its position, the last, so that both give the same.
        words, mask = self.text._embeds(text)
        positions = self.text.positional_embedding
        class_token = words[:, -1:] - positions[text.shape[1]] + positions[-1]
        states = self.text.transformer(torch.cat([words[:, :-1], class_token], 1), attn_mask=mask)
        embedded = self.text.ln_final(states[:, -1]) @ self.text.text_projection
        return F.normalize(embedded, dim=-1), states[:, :-1]

    def encode_text(self, text: Tensor) -> Tensor:
        """Text embeddings `(texts, embed_dim)` of length 1."""
        return self.text_and_tokens(text)[0]

    def forward(
        self, studies: StudyBatch, text: Tensor, text_of: Tensor, caption_of: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The outputs of open_clip's ``CoCa``; ``text_of`` and ``caption_of`` are the rows of each
        study's text and caption in the token ids ``text``."""
        embedded, image_tokens = self.visual(studies)
        text_features, text_tokens = self.text_and_tokens(text)
        out = {"image_features": F.normalize(embedded, dim=-1)}
        out |= {"text_features": text_features[text_of], "logit_scale": self.logit_scale.exp()}
        if caption_of is not None:
            out["logits"] = self.text_decoder(image_tokens, text_tokens[caption_of][:, :-1])
            out["labels"] = text[caption_of][:, 1:]
        return out
