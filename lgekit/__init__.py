"""lgekit: text-supervised scar detection in cardiac LGE MRI, a teaching and ablation workbook.

For research and teaching only; not a medical device.
"""

from importlib import import_module

__version__ = "0.1.0"

# Where each public name lives. Names are imported at first use, so that `import lgekit` stays fast.
_HOME = {
    "study": ("Study", "Cohort", "Landmarks"),
    "findings": ("Findings", "Scar", "WALLS", "LEVELS", "DEPTHS", "draw_scar"),
    "errors": ("InputError",),
    "config": ("FitSettings", "size_settings", "PLAIN_CLIP"),
    "data.readers": ("read_cohort", "check_cohort"),
    "data.manifest": ("write_manifest",),
    "data.phantom": ("phantom_cohort",),
    "reports.reader": ("read_report", "lge_statement"),
    "reports.writer": ("write_report", "canonical_text"),
    "reports.training_texts": ("prompt_sets",),
    "anatomy.frame": ("StandardizeShortAxis",),
    "anatomy.labels": ("wall_depth",),
    "anatomy.segments": ("segment_map", "findings_from_labels"),
    "anatomy.polar": ("study_tensor",),
    "scars.transforms": ("AddScar", "RandomScar"),
    "segmentation.model": ("HeartNetwork",),
    "clip.fit": ("heart_network", "fit_detector", "make_view"),
    "clip.detector": ("Detector",),
    "clip.model": ("build_coca",),
    "clip.train": ("contrastive_loss",),
    "evaluation.scores": ("score_table",),
    "evaluation.metrics": ("compare_rows",),
    "grid.run": ("run_grid", "collect"),
    "workbook": ("start", "project_root"),
}
_MODULES = {"plots": "viz.plots", "describe": "viz.describe", "widgets": "viz.widgets"}
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"lgekit.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(import_module(f"lgekit.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'lgekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
