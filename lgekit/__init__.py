"""lgekit: text-supervised scar detection in cardiac LGE MRI, a teaching and ablation workbook.

Use it as ``import lgekit as lk``. For research and teaching only; not a medical device.
"""

import os
from importlib import import_module

# Threads of torch that wait do not spin: on a busy machine that made training several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
__version__ = "0.1.0"

# Module → public names, imported at first use, so that `import lgekit` stays fast.
_NAMES = {
    "errors": "InputError",
    "study": "Study Cohort Landmarks",
    "findings": "Scar Findings WALLS DEPTHS draw_scar",
    "config": "size_settings read_changes FROM_BUILTIN",
    "anatomy.frame": "StandardizeShortAxis",
    "anatomy.segments": "segment_map findings_from_labels wall_depth",
    "reports.reader": "read_report lge_statement",
    "reports.writer": "write_report canonical_text prompt_sets report_texts STYLES",
    "reports.text": "find_identifiers without_identifiers",
    "data.readers": "read_cohort check_cohort",
    "data.manifest": "write_manifest",
    "data.phantom": "phantom_cohort",
    "scars.transforms": "AddScar RandomScar",
    "segmentation.model": "HeartNetwork",
    "segmentation.train": """heart_network locate_hearts evaluate_heart_network
        crop_points draw_examples heart_loss""",
    "clip.model": "CoCa ReportTokenizer",
    "clip.data": "make_view view_grid batch_of",
    "clip.train": "contrastive_loss",
    "clip.detector": "Detector push pull segment_means",
    "clip.fit": "fit_detector pretrain_polar",
    "evaluation.scores": "score_table",
    "evaluation.metrics": "compare_rows",
    "grid.run": "run_grid grid_status collect collect_predictions load_grid",
    "workbook": "start run_workbook project_root",
}
# Modules that notebooks use whole: `lk.plots.bulls_eye`.
_MODULES = """viz.plots viz.widgets viz.figures evaluation.metrics evaluation.scores
    evaluation.baselines evaluation.realism clip.zeroshot grid.report
    data.phantom reports.tables reports.reader exercises"""
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_HOME |= {module.rpartition(".")[2]: module for module in _MODULES.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'lgekit' has no attribute {name!r}")
    module = import_module(f"lgekit.{_HOME[name]}")
    return module if _HOME[name].rpartition(".")[2] == name else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
