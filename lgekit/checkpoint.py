"""What a training run needs to go on after a kill, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lgekit.cache import memory
from lgekit.errors import InputError
from lgekit.fingerprints import code_version
from lgekit.runs import is_locked, locked
from lgekit.settings import FitSettings
from lgekit.studies import Cohort

KEPT_DAYS = 30  # that a fit which was cut off can be gone on with from the cache


def begin_fit(folder: Path, **about: Any) -> None:
    """Note what a fit is of, whose checkpoints a folder keeps; or see, before the long work, that it is the same one.

    Args:
        folder: of the checkpoints; made where it is not there.
        about: name → value, as JSON writes it.

    Raises:
        InputError: the folder keeps checkpoints of a fit that was of another value.
    """
    file, now = Path(folder) / "fit.json", json.loads(json.dumps(about))
    if file.exists() and any(file.parent.glob("*.safetensors")):  # else nothing has been trained yet
        before = json.loads(file.read_text("utf-8"))
        for name in (name for name in now if before.get(name) != now[name]):
            was = f"{name} was {before.get(name)!r} and is now {now[name]!r}"
            remedy = "Give the former value to go on with it, or remove that folder to begin anew"
            raise InputError(folder, f"keeps a fit that was cut off: {was}", remedy)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(".fit.json.part")
    part.write_text(json.dumps(now, indent=1), "utf-8")
    part.replace(file)


@contextmanager
def resumable(cohort: Cohort, settings: FitSettings, *about: Any) -> Iterator[Path | None]:
    """A folder in the cache for the checkpoints of one fit: there again after a kill, removed once the fit is done.

    Args:
        cohort, settings: of the fit.
        about: what else it depends on: further cohorts, words and numbers; the code that trains counts by itself.

    Yields:
        The folder; None where caching is switched off (`lgekit.cache`), or another run of the same fit goes on.
    """
    root = memory().location
    parts = [_known_by(one) for one in (cohort, *about)] + [settings.model_dump_json(exclude={"workers"})]
    parts.append(code_version(["import lgekit.detector"]))
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    lock = Path(root or "") / "training" / f"{name}.lock"
    if not root or is_locked(lock):
        yield None
        return
    with locked(lock):
        folder = lock.with_suffix("")
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
        _forget_old(folder.parent)


def _known_by(part: Any) -> str:
    """What a fit depends on in a cohort (its fingerprint leaves out landmarks, patients and folds), or in a word."""
    if not isinstance(part, Cohort):
        return repr(part)
    marks = [(repr(study["landmarks"]), study["patient_id"], study.get("fold")) for study in part.studies]
    return repr((part.fingerprint, marks))


def _forget_old(root: Path) -> None:
    """Remove what cut-off fits left behind that nobody went on with, as after a change of the code."""
    for folder in root.iterdir():
        with suppress(FileNotFoundError):  # another run's, which has just ended
            if time.time() - folder.stat().st_mtime > KEPT_DAYS * 86_400:
                shutil.rmtree(folder, ignore_errors=True)


class TrainingState:
    """What a resumed run needs beside the weights: of which run it is, history, best and averaged weights."""

    def __init__(self, fingerprint: str = "") -> None:
        self.fingerprint = fingerprint
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}

    def average_in(self, model: nn.Module, decay: float) -> None:
        """Running mean of the weights (Polyak averaging), once an epoch."""
        if decay:
            now = {name: value.detach().clone() for name, value in model.state_dict().items()}
            old = self.average or now
            self.average = {
                name: torch.lerp(value, old[name], decay) if value.is_floating_point() else value
                for name, value in now.items()
            }

    def add(self, row: dict[str, float], model: nn.Module) -> None:
        """Note an epoch, and keep its weights where its validation loss is the best so far."""
        losses = [old["validation_contrastive"] for old in self.history if "validation_contrastive" in old]
        self.history.append(row)
        if "validation_contrastive" in row and row["validation_contrastive"] < min(losses, default=math.inf):
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def stale(self, patience: int) -> bool:
        """Whether the validation loss has not become better for ``patience`` epochs (0: never)."""
        losses = [row["validation_contrastive"] for row in self.history if "validation_contrastive" in row]
        return bool(patience and losses and len(losses) - 1 - int(np.argmin(losses)) >= patience)

    def final(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights to keep: the average, if one was asked for, else the best on validation, else the last."""
        return self.average or self.best or model.state_dict()

    def save(self, path: Path, module: nn.Module, optimizer: Any) -> None:
        """One safetensors file, its JSON metadata the history; replaced whole or not at all."""
        from safetensors.torch import save_file

        tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(tensors, partial, {"history": json.dumps(self.history), "run": self.fingerprint})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path, module: nn.Module, optimizer: Any, fingerprint: str = "") -> TrainingState:
        """Read what `save` wrote into module and optimizer; a fresh state where there is no file.

        Raises:
            InputError: the file is of another run, or no checkpoint.
        """
        from safetensors import SafetensorError, safe_open

        state = cls(fingerprint)
        if not path.exists():
            return state
        try:
            opened = safe_open(str(path), "pt")
        except (SafetensorError, OSError) as error:
            raise InputError(path, f"is no checkpoint: {error}", "Remove it: training begins anew.") from error
        with opened as file:
            if file.metadata().get("run") != fingerprint:
                remedy = "Remove it, or give another file: one for each training"
                raise InputError(path, "is the checkpoint of other settings, texts or images", remedy)
            state.history = json.loads(file.metadata()["history"])
            parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "average": {}, "optimizer": {}}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                part, name = key.split("/", 1)
                parts[part][name] = file.get_tensor(key)
        module.load_state_dict(parts["module"])
        device = next(module.parameters()).device
        state.best, state.average = ({n: v.to(device) for n, v in parts[part].items()} for part in ("best", "average"))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            number, name = key.split("/")
            moments.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        for group in optimizer.param_groups:  # a file knows no memory format, and a fused step reads memory as it lies
            for weight in group["params"]:
                kept = optimizer.state.get(weight, {})
                for name in {"exp_avg", "exp_avg_sq"} & kept.keys():
                    kept[name] = torch.empty_like(weight, requires_grad=False).copy_(kept[name])
        return state
