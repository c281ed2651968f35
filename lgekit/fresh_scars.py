"""Synthetic scars painted anew for every epoch, by other processes while the epoch before is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lgekit.detection import batch_of
from lgekit.errors import InputError
from lgekit.model import StudyBatch
from lgekit.pairs import Pairs
from lgekit.settings import FitSettings
from lgekit.stages import Painted, ViewHost, without_scar
from lgekit.studies import Cohort
from lgekit.supervision import report_texts

# Processes [O]: an epoch of the paper's size takes 1,160 scars, 12 s of a core at 10 ms each (phantom, laptop size); 50
# epochs in 3 minutes leave 3.6 s to each.
MOST_PAINTERS = 8


class FreshScars(Dataset):
    """Synthetic pairs of every epoch: item ``epoch`` is that epoch's own `Pairs`, whoever paints them.

    Args:
        located: the training studies, with contours and landmarks; those without scar by their reports are painted.
        settings: view, texts, ``synthetic_per_real`` and the seed.
        painters: processes beside this one; None: as many as torch has threads here, less one. None at all (a run of a
            grid that has one core) paints between the epochs. Changes no result.

    Raises:
        InputError: no study can take a scar.
    """

    def __init__(self, located: Cohort, settings: FitSettings, painters: int | None = None):
        self.settings, self.count = settings, round(settings.synthetic_per_real * len(located))
        self.painters = min(MOST_PAINTERS, torch.get_num_threads() - 1) if painters is None else painters
        self.hosts: list[ViewHost] = []
        problem = "all have scar by their reports"
        for study in without_scar(located):
            try:
                self.hosts.append(ViewHost.of(study, settings))
            except InputError as error:
                problem = str(error)
        if self.count and not self.hosts:
            remedy = "Give studies without scar, or set synthetic_per_real to 0."
            raise InputError(located.name, f"no study can take a synthetic scar: {problem}", remedy)

    def of_seed(self, seed: int) -> FreshScars:
        """Other scars in the same studies, which are not measured again."""
        other = copy(self)
        other.settings = self.settings.override(seed=seed)
        return other

    def __getitem__(self, epoch: int) -> Pairs:
        """The pairs of an epoch: hosts take turns in its own order. Fewer where most scars drawn do not fit."""
        rng = np.random.default_rng([self.settings.seed, 4242, epoch])
        turns, made = rng.permutation(len(self.hosts)), list[Painted]()
        seeds = rng.integers(2**31, size=2 * self.count)  # twice as many: some do not fit
        for number, seed in enumerate(seeds.tolist()):
            if len(made) == self.count:
                break
            try:
                made.append(self.hosts[turns[number % len(turns)]].paint(seed))
            except InputError:
                continue
        if not made:
            raise InputError(f"synthetic scars of epoch {epoch + 1}", "none fits", "Set synthetic_pool higher than 0.")
        texts = [report_texts(one.report, self.settings.text) for one in made]
        return Pairs(batch_of([one.view for one in made]), texts)

    def __call__(self, epochs: range) -> Iterable[Pairs]:
        """The pairs of these epochs in turn, painted ahead: one epoch a painter waits at most."""
        painted = DataLoader(
            self,
            batch_size=None,
            sampler=epochs,
            num_workers=self.painters,
            prefetch_factor=1 if self.painters else None,
            collate_fn=_as_arrays,
            generator=torch.Generator(),  # its own, so that the training's chance is not touched
        )
        return (Pairs(StudyBatch(*map(torch.from_numpy, arrays)), texts) for arrays, texts in painted)


def _as_arrays(pairs: Any) -> tuple[list[np.ndarray], Sequence[tuple[str, ...]]]:
    """Arrays go through a pipe; tensors would through shared memory, of which a container has 64 MB by default."""
    return [part.numpy() for part in pairs.batch], pairs.texts
