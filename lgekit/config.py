"""Settings of a fit, and the presets for each size."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lgekit.errors import InputError

# Longest text of each kind in tokens, including start and end. With a vocabulary of 600, 99.9% of
# phantom reports have at most 440, their statements on enhancement 142, and findings 33 [O].
CONTEXT = {"findings": 64, "lge_statement": 192, "report": 512}

TIMM_NAME = r"^\w+(\.\w+)?$"


class FitSettings(BaseModel):
    """Define what `lgekit fit` trains, and how. Unknown names and wrong types are refused.

    Marks: [P] from the paper, [S] from a summary of it, [O] our own choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # What the ablation tables change
    # [P] rvip: standard short-axis frame. centre: not rotated or mirrored, but the heart is found.
    # none: raw crop about the centre of the picture, in the image view.
    orientation: Literal["rvip", "centre", "none"] = "rvip"
    view: Literal["polar", "image"] = "polar"  # [O] polar: the myocardium unrolled
    synthetic_per_real: float = Field(default=1.0, ge=0, le=16)  # [P] per real study and epoch
    caption_weight: float = Field(default=1.0, ge=0)  # [P] captioning loss; 0: contrastive only
    # [S] slice encoder's start; [O] builtin: the whole image tower of the detector in the package,
    # and with text=findings its text tower too
    encoder_init: Literal["segmentation", "random", "builtin"] = "segmentation"
    targets: Literal["same_text", "identity"] = "same_text"  # [O] same text: positive pair
    text: Literal["report", "lge_statement", "findings"] = "findings"  # [O] see `report_texts`
    # [O] taught: reports and sentences are read by a text tower that has learned their language
    # from the report writer (`lgekit.clip.train`). random: it learns from image-text pairs alone
    text_init: Literal["taught", "random"] = "taught"
    shuffle_text: bool = False  # control: reports of other studies; must fall to chance
    # Presence and walls: from the study's embedding, or the mean log-odds of slices read alone
    scored: Literal["study", "slices"] = "study"
    masks: Literal["predicted", "true"] = "predicted"  # heart contours; true: reference only
    # Least confidence of landmarks to rotate by: a poor guess is better than none
    min_confidence: float = Field(default=0.01, ge=0, le=1)

    # Heart network: contours and insertion points
    heart_size: Literal["laptop", "paper"] = "laptop"  # of `HeartSettings`
    heart_phantom: int = Field(default=64, ge=1)  # phantom studies that it learns from
    heart_base_steps: int = Field(default=1200, ge=1)  # on phantoms
    heart_seed: int = Field(default=-1, ge=-1)  # -1: `seed`; fix it to share one across seeds

    # Slice encoder
    # timm name, for the image view and the segmentation network; no hub repository (hf-hub:…)
    encoder: str = Field(default="regnetx_002", pattern=TIMM_NAME)
    pixels: int = Field(default=96, ge=32, le=256)  # image view: side of the square frame
    depths: int = Field(default=24, ge=8, le=96, multiple_of=4)  # polar view: samples outwards
    angles: int = Field(default=72, ge=24, le=288, multiple_of=4)  # polar view: samples around
    polar_channels: int = Field(default=16, ge=8, le=256)  # polar view: channels of the first layer
    polar_pretraining: int = Field(default=12, ge=1)  # polar view: epochs of its pretraining
    width: int = Field(default=64, ge=16, le=1024, multiple_of=4)  # slice features

    # Text tower and caption decoder (open_clip's CoCa)
    embed_dim: int = Field(default=64, ge=8, le=1024)  # joint space
    text_width: int = Field(default=64, ge=16, le=1024, multiple_of=4)  # of both
    text_layers: int = Field(default=2, ge=1, le=24)
    decoder_layers: int = Field(default=1, ge=1, le=24)
    context_length: int | None = Field(default=None, ge=8, le=4096)  # None: see `CONTEXT`
    text_steps: int = Field(default=1500, ge=2)  # of teaching language to the text tower

    # Training
    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=32, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)  # peak; linear warm-up, then cosine to zero
    dropout: float = Field(default=0.1, ge=0, lt=1)
    augment: float = Field(default=1.0, ge=0)  # strength of the image augmentation; 0: none
    models: int = Field(default=1, ge=1)  # networks from different seeds; their scores are averaged
    folds: int = Field(default=5, ge=2)  # inner folds of a fit on all studies, by patient
    workers: int = Field(default=0, ge=0)  # processes for the folds; 0: one per core
    seed: int = Field(default=0, ge=0)

    @property
    def frame(self) -> Literal["polar", "image"]:
        """The view in effect: without orientation there is no polar view."""
        return "image" if self.orientation == "none" else self.view

    @property
    def needs_heart(self) -> bool:
        """Whether a detector with these settings needs a heart network."""
        oriented = self.orientation != "none"
        pretrained = self.encoder_init == "segmentation"
        return self.masks != "true" and (oriented or pretrained or self.synthetic_per_real > 0)

    @property
    def taught(self) -> bool:
        """Whether the text tower is taught language before it sees an image."""
        return self.text_init == "taught" and self.text != "findings"

    @property
    def prompts(self) -> str:
        """The words that a detector with these settings is asked in: a mode of `prompt_sets`."""
        return "findings" if self.taught else self.text

    @property
    def longest_text(self) -> int:
        """Tokens after which a text is cut, including start and end."""
        return self.context_length or CONTEXT[self.text]

    def override(self, **changes: Any) -> FitSettings:
        """Return a copy with changes. Raises InputError with setting, value and what is allowed."""
        try:
            return FitSettings(**(self.model_dump() | changes))
        except ValidationError as error:
            first = error.errors()[0]
        known = f"Known settings: {', '.join(FitSettings.model_fields)}."
        remedy = known if first["type"] == "extra_forbidden" else "See lgekit/config.py."
        problem = f"{first['msg']} (found {first['input']!r})"
        raise InputError(f"setting {first['loc'][0]}", problem, remedy)


def read_changes(words: Sequence[str]) -> dict[str, str]:
    """Read ``["epochs=10"]`` as ``{"epochs": "10"}``; settings convert texts to their types."""
    named = {}
    for word in words:
        name, equals, named[name] = word.partition("=")
        if not equals:
            raise InputError("--set", f"{word!r} is not NAME=VALUE", "Write e.g. --set epochs=10.")
    return named


PRESETS = tomllib.loads(Path(__file__).with_name("presets.toml").read_text("utf-8"))
SIZES = {size: FitSettings(**changes) for size, changes in PRESETS["sizes"].items()}
PLAIN_CLIP: dict[str, Any] = PRESETS["plain_clip"]  # CLIP without any domain knowledge
FROM_BUILTIN: dict[str, Any] = PRESETS["from_builtin"]  # start from the detector in the package


def size_settings(size: str, /, **changes: Any) -> FitSettings:
    """Return the preset of a size (smoke, laptop, paper; see ``presets.toml``) with changes."""
    if size not in SIZES:
        raise InputError("size", f"unknown size {size!r}", f"Use one of {', '.join(SIZES)}.")
    return SIZES[size].override(**changes)
