"""The built-in cohort: a digital LGE phantom with reports and full ground truth.

A patient cohort cannot ship, so the default is simulated from anatomy and physics: ``phantom_heart`` (shapes),
``phantom_scar`` (scars), ``acquisition`` (signal and scanner), ``phantom_render`` (one study as arrays) and
``phantom_truth`` (what a reader would say of it). This module turns them into studies. Every range stands with its
source where it is drawn. Parameters were set from the literature and from two threshold rules (``realism``), before
any model was trained, and are frozen since.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import replace

from joblib import Parallel, delayed

from lgekit.cache import memory
from lgekit.errors import InputError
from lgekit.findings import Findings, Scar
from lgekit.phantom_render import PhantomOptions, Rendered, render_chunk, render_study, study_rng, unpack
from lgekit.studies import Cohort, Landmarks, Study, split_of

CHUNK = 48  # studies a cache entry
_SOURCES = ("phantom_heart", "phantom_scar", "acquisition", "phantom_render", "phantom_truth")


def phantom_study(index: int, seed: int, *, report_noise: float = 0.0, **options) -> Study:
    """One study of a phantom cohort.

    Args:
        index: number of the study in its cohort, from 0.
        seed: seed of the cohort.
        report_noise: share of reports with an omission or an error.
        options: see :class:`lgekit.phantom_render.PhantomOptions`.

    Returns:
        Image ``(1, X, Y, slices)`` float32 (phase-sensitive images have an offset, as scanners store them), labels in
        the internal codes (RV too), true ``landmarks`` in the stored orientation, ``findings`` (the truth, by the
        conventions of ``anatomy.findings_from_labels``), ``report``, ``split``.

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    checked = check_options(options)
    return _study(render_study(index, seed, checked), index, seed, report_noise)


def check_options(options: dict) -> PhantomOptions:
    """Options of the phantom, checked.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    unknown = set(options) - set(PhantomOptions.__dataclass_fields__)
    if unknown:
        known = ", ".join(PhantomOptions.__dataclass_fields__)
        raise InputError("phantom", f"unknown option {sorted(unknown)[0]!r}", f"Use one of {known}.")
    checked = replace(PhantomOptions(), **options)
    for name in ("prevalence", "ischaemic_share", "magnitude_share"):
        value = getattr(checked, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"phantom option {name}", f"{value!r} is not a share", "Give a number from 0 to 1.")
    for name, low, high in (("pixels", 48, 512), ("slices", 3, 40)):
        value = getattr(checked, name)
        if name == "slices" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"phantom option {name}", f"{value!r}", f"Give a whole number from {low} to {high}.")
    return checked


def phantom_cohort(
    studies: int = 200, seed: int = 0, *, report_noise: float = 0.1, workers: int | None = None, **options
) -> Cohort:
    """The phantom as a cohort; rendered once, then read from the cache (:func:`lgekit.cache.memory`).

    Study ``i`` of a seed is the same in a cohort of any size, made by any number of workers. Images are memory-mapped
    from the cache, so a cohort takes memory only for what is looked at.

    Args:
        studies: number of studies.
        seed: another seed, other hearts.
        report_noise: share of reports with an omission or an error.
        workers: processes; None is one for each core, and none for small cohorts.
        options: ``prevalence``, ``pixels``, ``slices``, … (:class:`lgekit.phantom_render.PhantomOptions`).

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    checked = check_options(options)
    if isinstance(studies, bool) or not isinstance(studies, int) or studies < 1:
        raise InputError("phantom option studies", f"{studies!r}", "Give a whole number of at least 1.")
    if not 0 <= report_noise <= 1:
        raise InputError("phantom option report_noise", f"{report_noise!r}", "Give a share from 0 to 1.")
    version = _source_version()
    jobs = [(start, min(start + CHUNK, studies), seed, checked, version) for start in range(0, studies, CHUNK)]
    cached = memory().cache(render_chunk)
    workers = workers or (1 if len(jobs) == 1 else -1)
    kept = Parallel(n_jobs=workers, inner_max_num_threads=1 if workers != 1 else None)(
        delayed(cached.call_and_shelve)(*job) for job in jobs
    )
    made: list[Study] = []
    for result in kept:
        made += [_study(one, len(made) + n, seed, report_noise) for n, one in enumerate(unpack(result.get()))]
    return Cohort(made, f"phantom:studies={studies},seed={seed}")


def _study(rendered: Rendered, index: int, seed: int, report_noise: float) -> Study:
    """A study from its arrays; its report is written here, so that new wording needs no new images."""
    from lgekit.reports import corrupt_findings, write_report

    rng = study_rng(seed, index, stream=1)
    findings = Findings(tuple(Scar(**scar) for scar in rendered.scars))
    study_id = f"Phantom_{seed}_{index:05d}"
    told = corrupt_findings(findings, rng, report_noise) if report_noise else findings
    return Study.from_arrays(
        study_id,
        rendered.image,
        rendered.spacing,
        rendered.labels,
        report=write_report(told, rng, whole=True),
        report_source="phantom",
        findings=findings,
        landmarks=Landmarks(*rendered.rvip_deg),
        split=split_of(study_id, findings.present),
    )


def _source_version() -> str:
    """A digest of the source that makes the images: a changed phantom never reads an old cache."""
    modules = [importlib.import_module(f"lgekit.{name}") for name in _SOURCES]
    return hashlib.sha256("".join(inspect.getsource(module) for module in modules).encode()).hexdigest()[:16]
