"""Settings of a fit, and the presets for each size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from lgekit.errors import InputError


class FitSettings(BaseModel):
    """What `lgekit fit` trains, and how. Unknown names and wrong types are refused.

    Marks as in the notebooks: [P] the paper says so, [S] a summary of it says so, [O] our own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # What the ablation tables change
    orientation: Literal["rvip", "centre", "none"] = (
        "rvip"  # [P] standard short-axis frame; centre = neither turned
    )
    # nor mirrored, the heart found all the same; none = raw crop about the picture's centre, of the image view
    view: Literal["polar", "image"] = (
        "polar"  # [O] polar = the wall unrolled; none-orientation forces image
    )
    synthetic_per_real: float = Field(
        default=1.0, ge=0, le=16
    )  # [P] synthetic scars per real study and epoch
    synthetic_pool: int = Field(
        default=4, ge=1, le=1000
    )  # [O] size of the pool that every epoch draws from, in epochs' worth of synthetic scars
    caption_weight: float = Field(
        default=1.0, ge=0
    )  # [P] weight of the captioning loss; 0 = contrastive alone
    encoder_init: Literal["segmentation", "random"] = (
        "segmentation"  # [S] slice encoder starts from segmentation
    )
    targets: Literal["same_text", "identity"] = (
        "same_text"  # [O] studies with one text are each other's positives
    )
    text: Literal["report", "lge_statement", "findings"] = (
        "findings"  # [O] whole report, its LGE part, or re-worded
    )
    shuffle_text: bool = False  # control: texts dealt to the wrong studies; must fall to chance
    masks: Literal["predicted", "true"] = (
        "predicted"  # heart contours: the network's own, or the cohort's (reference)
    )
    min_confidence: float = Field(
        default=0.01, ge=0, le=1
    )  # of insertion points to turn by; a poor guess beats none

    # Heart network: contours and insertion points
    heart_size: Literal["smoke", "laptop", "paper"] = (
        "laptop"  # see lgekit.segmentation.model.SIZES
    )
    heart_phantom: int = Field(
        default=64, ge=0
    )  # phantom studies that its training sees beside the cohort's
    heart_base_steps: int = Field(
        default=1200, ge=1
    )  # on phantoms and other cohorts, shared by all folds and rows
    heart_steps: int = Field(default=900, ge=1)  # on the cohort
    heart_folds: int = Field(
        default=4, ge=2
    )  # of a fit on all studies: contours come from a fold not trained on

    heart_seed: int = Field(
        default=-1, ge=-1
    )  # -1: `seed`; a fixed one lets runs of many seeds share the network

    # Slice encoder
    encoder: str = "regnetx_002"  # timm name, image view and segmentation network
    pixels: int = Field(default=96, ge=32, le=256)  # image view: side of the square frame
    depths: int = Field(default=24, ge=8, le=96)  # polar view: samples from inside to outside
    angles: int = Field(default=72, ge=24, le=288)  # polar view: samples around
    polar_channels: int = Field(default=16, ge=8)  # polar view: channels of the first layer
    polar_pretraining: int = Field(
        default=12, ge=1
    )  # polar view: rounds over all slices that its first weights take
    width: int = Field(default=64, ge=16, multiple_of=4)  # slice features

    # Text tower and caption decoder (open_clip's CoCa)
    text_encoder: str = (
        "scratch"  # scratch, or a Hugging Face name or folder (its tokenizer comes with it)
    )
    text_encoder_rate: float = Field(
        default=0.01, gt=0
    )  # of the learning rate, for a Hugging Face encoder: 2e-5, the
    # least of those that BERT was adapted with (Devlin 2019, arXiv 1810.04805, appendix A.3)
    embed_dim: int = Field(default=64, ge=8)  # joint space
    text_width: int = Field(default=64, ge=16)  # of text tower and decoder
    text_layers: int = Field(default=2, ge=1)
    text_heads: int = Field(default=4, ge=1)
    decoder_layers: int = Field(default=1, ge=1)
    context_length: int | None = Field(
        default=None, ge=8
    )  # longest text in tokens; None = what texts need (`CONTEXT`)
    vocabulary: int = Field(default=600, ge=100)  # most tokens the tokenizer may learn
    caption_queries: int = Field(default=8, ge=1)  # image tokens the decoder reads

    # Training
    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=32, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)  # peak; linear warm-up, then cosine to zero
    warmup: float = Field(default=0.1, ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(default=0.05, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    augment: float = Field(default=1.0, ge=0)  # strength of the image augmentation; 0 = none
    average: float = Field(
        default=0.0, ge=0, lt=1
    )  # decay of the running average of weights; 0 = the last weights
    patience: int = Field(
        default=0, ge=0
    )  # epochs without a better validation loss; 0 = never stop early
    models: int = Field(default=1, ge=1)  # networks from different seeds whose scores are averaged
    folds: int = Field(default=5, ge=2)  # inner folds of a fit on all studies
    bfloat16: bool = False  # multiply in it on a CPU that does so fast (a GPU always does): at the paper's size a step
    # takes three fifths of the time, at the laptop's just as long
    workers: int = Field(
        default=0, ge=0
    )  # processes that the folds run in; 0 = one a core. Changes no result
    seed: int = Field(default=0, ge=0)

    @field_validator("text_heads")
    @classmethod
    def _heads_share_the_width(cls, heads: int, others: ValidationInfo) -> int:
        if others.data.get("text_width", 0) % heads:
            raise ValueError(f"text_width, {others.data['text_width']}, is no multiple of it")
        return heads

    @property
    def frame(self) -> Literal["polar", "image"]:
        """The view in effect; without orientation there is no polar view."""
        return "image" if self.orientation == "none" else self.view

    @property
    def needs_heart(self) -> bool:
        """Whether a detector fitted so has a heart network, and cannot read without it."""
        uses = (
            self.orientation != "none"
            or self.encoder_init == "segmentation"
            or self.synthetic_per_real > 0
        )
        return uses and self.masks != "true"

    @property
    def longest_text(self) -> int:
        """Tokens of a text, start and end included, beyond which it is cut."""
        return self.context_length or CONTEXT[self.text]

    def override(self, **changes: Any) -> FitSettings:
        """A copy with changes, checked like the original."""
        return make_settings(**(self.model_dump() | changes))


def make_settings(**values: Any) -> FitSettings:
    """Settings from keywords; raises InputError naming the setting, the value and what is allowed."""
    try:
        return FitSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = ", ".join(FitSettings.model_fields)
        remedy = (
            f"Known settings: {known}."
            if first["type"] == "extra_forbidden"
            else "See lgekit/settings.py."
        )
        problem = f"{first['msg'].removeprefix('Value error, ')} (found {first.get('input')!r})"
        raise InputError(f"setting {name}", problem, remedy) from None


def read_changes(words: Sequence[str]) -> dict[str, Any]:
    """``["patience=10"]`` → ``{"patience": 10}``, each value as YAML reads it; where text is wanted, as it stands.

    Raises:
        InputError: not ``NAME=VALUE``, or a name given twice.
    """
    named: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()) or name in named:
            raise InputError(
                "--set",
                f"{word!r} is not NAME=VALUE, or is given twice",
                "Write e.g. --set patience=10.",
            )
        try:
            named[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            named[name] = value
        if _is_text(name) and not isinstance(named[name], str):  # masks=true
            named[name] = value.strip()
    return named


def _is_text(name: str) -> bool:
    """Whether a setting is one of some words, or any."""
    kind = FitSettings.model_fields[name].annotation if name in FitSettings.model_fields else None
    return kind is str or get_origin(kind) is Literal


# Longest text of each kind in tokens, start and end included. Of the reports of 300 phantom studies the longest has 228
# (median 114), its statement on enhancement 115, the findings said plainly 33, with a vocabulary of 600 [O].
CONTEXT = {"findings": 64, "lge_statement": 128, "report": 256}

# The lower reference: no domain knowledge at all.
PLAIN_CLIP: dict[str, Any] = {
    "orientation": "none",
    "synthetic_per_real": 0.0,
    "caption_weight": 0.0,
    "encoder_init": "random",
    "targets": "identity",
    "text": "report",
}

SIZES: dict[str, FitSettings] = {
    "smoke": FitSettings(
        epochs=8,
        width=48,
        folds=2,
        pixels=64,
        depths=16,
        angles=48,
        polar_pretraining=2,
        heart_size="smoke",
        heart_phantom=16,
        heart_base_steps=20,
        heart_steps=15,
        heart_folds=2,
        workers=1,
    ),
    "laptop": FitSettings(),
    "paper": FitSettings(
        epochs=50,
        batch_size=128,
        width=256,
        embed_dim=256,
        text_width=256,
        text_layers=4,
        decoder_layers=3,
        polar_channels=64,
        depths=32,
        angles=96,
        pixels=128,
        encoder="resnet34",
        synthetic_per_real=2.0,
        learning_rate=1e-3,
        bfloat16=True,
        models=3,
        heart_size="paper",
        heart_phantom=400,
        heart_base_steps=8000,
        heart_steps=4000,
    ),
}


def size_settings(size: str, **changes: Any) -> FitSettings:
    """The preset of a size (smoke, laptop, paper) with overrides."""
    if size not in SIZES:
        raise InputError("size", f"unknown size {size!r}", f"Use one of {', '.join(SIZES)}.")
    return SIZES[size].override(**changes)
