"""Widgets for notebooks and the apps: each shows a picture and a text that follow its controls."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.anatomy.segments import findings_from_labels, segment_map
from lgekit.cache import FIT_ROOMS, code_version, locked, memory
from lgekit.clip.detector import Detector
from lgekit.clip.fit import fit_detector
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import read_cohort
from lgekit.evaluation.metrics import PRESENCE_STATISTICS, title_of
from lgekit.findings import DEPTHS, LEVELS, WALLS, Scar
from lgekit.reports.writer import canonical_text
from lgekit.scars.transforms import AddScar
from lgekit.study import Cohort, Study
from lgekit.viz import plots

TRAIN_STUDIES, SHOWN_STUDIES = 40, 12  # of the prompt playground
RUN_SCORES = (*PRESENCE_STATISTICS, "auc_walls", "auc_segments", "auc_slices")
WORST = 5  # studies that the run browser lists
FRAME = StandardizeShortAxis(pixels=96)
Drawing = tuple[Figure, str]


def playground_detector(model_dir: str = "") -> Detector:
    """Load a detector that `lgekit fit` wrote, or fit a small one and keep it in the cache.

    The small one is fitted to phantoms at smoke size: it shows how the method works, not how well.
    """
    if model_dir:
        return Detector.load(model_dir)
    cache = memory().location
    version = code_version(*FIT_ROOMS)
    folder = Path(cache or tempfile.mkdtemp(), "playground", version)
    with locked(folder.with_name(f"{version}.lock")):  # two visitors may come at once
        if not (folder / "detector.json").is_file():  # written last
            phantoms = phantom_cohort(TRAIN_STUDIES, seed=0)
            fit_detector(phantoms, size_settings("smoke"), progress=False).save(folder)
    return Detector.load(folder)


def playground_cohort(spec: str = "") -> Cohort:
    """Read the images of a cohort's first twelve studies, or make twelve new phantoms."""
    if not spec:
        return phantom_cohort(SHOWN_STUDIES, seed=1)
    return Cohort(read_cohort(spec, images_only=True).studies[:SHOWN_STUDIES], spec)


class Picture(ipywidgets.Image):
    """An image with a title; JupyterLab sets none on a widget without a description."""

    description = traitlets.Unicode("").tag(sync=True)


class Choices(ipywidgets.HBox):
    """Buttons for any number of options; JupyterLab takes the arrow keys of a list box."""

    value = traitlets.Tuple()

    def __init__(self, options: Sequence[str], pressed: Sequence[str], description: str):
        narrow = ipywidgets.Layout(width="auto")
        buttons = [ipywidgets.ToggleButton(name in pressed, description=name) for name in options]
        for button in buttons:
            button.layout = narrow
            button.observe(self._read, names="value")
        super().__init__([ipywidgets.Label(description), *buttons])
        self._read()

    def _read(self, change=None) -> None:
        self.value = tuple(button.description for button in self.children[1:] if button.value)


def _number(value: int, low: int, high: int, step: int, name: str) -> ipywidgets.BoundedIntText:
    """A number that the arrow keys change; the slider of ipywidgets has no accessible name."""
    narrow = ipywidgets.Layout(width="12em")
    return ipywidgets.BoundedIntText(value, low, high, step, description=name, layout=narrow)


class Explorer:
    """Controls with a picture and a text; front ends without widgets show the picture alone.

    ``draw`` makes figure and text of the values of the controls; ``alt`` is the picture's title.
    """

    def __init__(
        self, controls: dict[str, ipywidgets.Widget], draw: Callable[..., Drawing], alt: str
    ):
        self.controls, self._draw = controls, draw
        layout = ipywidgets.Layout(align_self="flex-start", max_width="100%")
        self.picture = Picture(format="png", tooltip=alt, layout=layout)
        self.text = ipywidgets.HTML()
        for control in controls.values():
            control.observe(self._update, names="value")
        self._update()
        self.box = ipywidgets.VBox([*controls.values(), self.picture, self.text])

    def _update(self, change=None) -> None:
        with plt.rc_context({"axes.titley": 1.0}):  # automatic placement of titles is slow
            figure, text = self._draw(**{name: c.value for name, c in self.controls.items()})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        plt.close(figure)
        self.text.value, self.picture.value = text, buffer.getvalue()

    def _repr_mimebundle_(self, **options) -> dict[str, Any]:
        still = {"image/png": base64.b64encode(self.picture.value).decode()}
        return self.box._repr_mimebundle_(**options) | still


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Make axes for images at fixed places; automatic placement is as slow as drawing."""
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.9, wspace=0.03, hspace=0.15)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])  # even invisible ticks take time
        axis.axis("off")
    return figure, axes


def orientation_explorer(study: Study) -> Explorer:
    """Turn the anterior insertion point of a labelled study and watch frame and findings change."""
    marks = study["landmarks"]
    between = marks.inferior_rvip_deg - marks.anterior_rvip_deg

    def draw(error: float, mirrored: bool) -> Drawing:
        anterior = (marks.anterior_rvip_deg + error) % 360
        inferior = (anterior + (-between if mirrored else between)) % 360
        moved = copy.copy(study)
        moved["landmarks"] = replace(marks, anterior_rvip_deg=anterior, inferior_rvip_deg=inferior)
        turned = FRAME(moved)
        index = plots.slice_with_most_scar(turned)
        segments = segment_map(turned.label_map, turned.spacing_mm, turned["landmarks"])
        figure, axes = _panels(1, 2, (6.4, 3.2))
        plots.draw_slice(axes[0], turned, index)
        plots.draw_segments(axes[1], segments[:, :, index])
        axes[0].set_title("standard frame")
        axes[1].set_title("AHA segments")
        return figure, f"Words: {canonical_text(findings_from_labels(moved))}"

    controls = {
        "error": _number(0, -180, 180, 5, "turn (deg)"),
        "mirrored": ipywidgets.Checkbox(False, description="treat as mirrored"),
    }
    return Explorer(controls, draw, "A slice in the standard frame, and its AHA segments")


def scar_painter(study: Study) -> Explorer:
    """Choose walls, levels, depth, transmurality and no-reflow; image, mask and report follow."""
    before = FRAME(study)

    def draw(walls, levels, depth: str, transmurality: int, no_reflow: bool) -> Drawing:
        figure, axes = _panels(1, 3, (9, 3.2))
        if not walls or not levels:
            return figure, "Choose at least one wall and one level."
        extent = 100 if depth == "transmural" else transmurality
        scar = Scar(walls, levels, depth, transmurality=extent, no_reflow=no_reflow)
        try:
            painted = AddScar(scar, seed=0)(study)
        except ValueError as error:
            return figure, f"This scar cannot be placed: {error}"
        after = FRAME(Study(**painted))
        index = plots.slice_with_most_scar(after)
        panels = {"before": before, "after": after, "mask": after}
        for axis, (title, shown) in zip(axes, panels.items(), strict=True):
            plots.draw_slice(axis, shown, index, contours=title == "mask")
            axis.set_title(title)
        report = html.escape(str(painted["report"]))
        return figure, f'<div style="white-space: pre-line">{report}</div>'

    controls = {
        "walls": Choices(WALLS, ["inferior"], "walls"),
        "levels": Choices(LEVELS[:3], ["mid"], "levels"),
        "depth": ipywidgets.ToggleButtons(options=DEPTHS, description="depth"),
        "transmurality": _number(50, 20, 75, 5, "% of wall"),
        "no_reflow": ipywidgets.Checkbox(False, description="no-reflow"),
    }
    alt = "A slice before and after the scar is painted, and the scar's outline"
    return Explorer(controls, draw, alt)


def which_is_real(cohort: Cohort, random_scar: Callable[[Study], Study], seed: int = 0) -> Explorer:
    """Show real scars and those of a ``RandomScar(p=1)`` in random order, with a hidden answer."""
    known = [study for study in cohort.studies if study["findings"] and study.get("landmarks")]
    real = [study for study in known if study["findings"].present][:4]
    painted = [random_scar(study) for study in known if not study["findings"].present][:4]
    scars = [(FRAME(study), "cohort") for study in real]
    scars += [(FRAME(study), "painted") for study in painted]
    order = np.random.default_rng(seed).permutation(len(scars))

    def draw(answer: bool) -> Drawing:
        figure, axes = _panels(2, -(-len(order) // 2), (9, 4.6))
        for number, (axis, index) in enumerate(zip(axes.flat, order, strict=False), 1):
            study, origin = scars[index]
            plots.draw_slice(axis, study, plots.slice_with_most_scar(study), contours=answer)
            axis.set_title(f"{number}: {origin}" if answer else str(number))
        return figure, "" if answer else "Which are painted? Tick the box for the answer."

    controls = {"answer": ipywidgets.Checkbox(False, description="show the answer")}
    return Explorer(controls, draw, "Slices with scar, some of the cohort and some painted")


def prompt_playground(detector: Detector, cohort: Cohort) -> Explorer:
    """Type a sentence about scar and see how well it fits each study and slice of a small cohort.

    The picture shows the similarity minus that to "no enhancement", and the occlusion map of the
    chosen study's best slice.
    """
    names = cohort.manifest["study_id"].tolist()
    numbered = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    embedded = detector.embed(cohort)

    def draw(sentence: str, study: int) -> Drawing:
        index, name = study - 1, names[study - 1]
        studies, slices = detector.evidence_for(embedded, sentence)
        best = int(np.nanargmax(slices[index]))
        layout, widths = (
            [["studies", "slices", "picture"], ["studies", "slices", "heat"]],
            [5, 5, 4],
        )
        figure, axes = plt.subplot_mosaic(layout, width_ratios=widths)  # type: ignore
        figure.set_size_inches(10, 3.2)
        colours = [plots.ORANGE if other == name else plots.BLUE for other in names]
        axes["studies"].barh(numbered, studies, color=colours)
        axes["studies"].invert_yaxis()
        axes["studies"].locator_params(axis="x", nbins=4)
        axes["studies"].set_xlabel("similarity − that to “no enhancement”")
        axes["slices"].bar(np.arange(len(slices[index])) + 1, slices[index], color=plots.GREEN)
        axes["slices"].locator_params(axis="x", integer=True)
        axes["slices"].set(xlabel=f"slice of study {study}", ylabel="the same, slice by slice")
        plots.draw_slice(axes["picture"], cohort.studies[index], best, contours=False)
        axes["picture"].set_title(f"study {study}, slice {best + 1}")
        plots.draw_heat(
            axes["heat"], *detector.occlusion_map(embedded.views[index], best, sentence)
        )
        axes["heat"].set_title("evidence for the sentence")
        return figure, f"“{html.escape(sentence)}” and {html.escape(name)}: {studies[index]:+.2f}"

    wide = ipywidgets.Layout(width="36em", max_width="100%")
    sentence = "Late gadolinium enhancement in the inferior wall."
    controls = {
        "sentence": ipywidgets.Text(sentence, description="sentence", layout=wide),
        "study": _number(1, 1, len(names), 1, "study"),
    }
    return Explorer(controls, draw, "How far studies and slices lean towards the sentence")


def run_browser(grid: Any) -> Explorer:
    """Choose a run of a grid (`lgekit.grid.run.load_grid`): scores, training and worst cases."""
    folders = {(run.row, *run.axes.values()): grid.folder / run.id for run in grid.runs}

    def draw(**point) -> Drawing:
        folder = folders[tuple(point.values())]
        if not (folder / "metrics.json").is_file():
            words = f"This run is not done. Start the grid: lgekit grid run {grid.file.name}"
            return plt.figure(figsize=(10, 3.2)), words
        known = pd.read_csv(folder / "predictions.csv").dropna(subset=["scar"])
        error = (known["p_lge"] - known["scar"].astype(float)).abs()
        worst = known.loc[error.nlargest(WORST).index]
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
        _draw_scores(axes[0], json.loads((folder / "metrics.json").read_text("utf-8")))
        history = pd.read_csv(folder / "history.csv").set_index("epoch")
        curves = history.columns.intersection(["contrastive", "validation_contrastive", "caption"])
        history[curves].rename(columns=title_of).plot(ax=axes[1], title="training", ylabel="loss")
        _draw_predictions(axes[2], known, worst)
        captions = pd.read_csv(folder / "captions.csv")[["study_id", "caption", "truth"]]
        cases = worst[["study_id", "p_lge"]].merge(captions, on="study_id", how="left").fillna("")
        cases.insert(0, "", range(1, len(cases) + 1))
        style = {"index": False, "float_format": "{:.2f}".format, "border": 0, "justify": "left"}
        with pd.option_context("display.max_colwidth", 160):  # an untrained decoder writes on
            return figure, f"Worst cases (numbered in the picture):{cases.to_html(**style)}"

    done = [point for point, folder in folders.items() if (folder / "metrics.json").is_file()]
    first = [*done, *folders][0]
    controls = {}
    for place, name in enumerate(("row", *grid.runs[0].axes)):
        options = list(dict.fromkeys(point[place] for point in folders))
        button = ipywidgets.ToggleButtons(options=options, value=first[place], description=name)
        controls[name] = button
    return Explorer(controls, draw, "Scores, training curves and predictions of one run")


def _draw_scores(axis: Axes, scores: dict[str, float | None]) -> None:
    names = [name for name in RUN_SCORES if name in scores]
    rows = [[scores.get(name + end) for end in ("", "_low", "_high")] for name in names]
    values, low, high = np.array(rows, float).T
    axis.plot(values, names, "o", color=plots.BLUE)
    axis.hlines(names, low, high, color=plots.BLUE)
    axis.set_yticks(range(len(names)), map(title_of, names))
    axis.set(xlim=(0, 1.03), xlabel="95 % interval over patients", title="scores")
    axis.invert_yaxis()


def _draw_predictions(axis: Axes, known: pd.DataFrame, worst: pd.DataFrame) -> None:
    """Plot probability of scar by ground truth; the worst cases are orange and numbered."""
    places = known["scar"].astype(bool) + np.linspace(-0.3, 0.3, len(known))
    axis.scatter(places, known["p_lge"], s=12, color=plots.BLUE)
    axis.scatter(places[worst.index], worst["p_lge"], s=20, color=plots.ORANGE)
    for number, index in enumerate(worst.index, 1):
        axis.annotate(str(number), (places[index], worst["p_lge"][index]))
    axis.axhline(0.5, color="gray", linestyle=":")
    axis.set_xticks([0, 1], ["no scar", "scar"])
    axis.set(ylim=(-0.03, 1.03), ylabel="probability of scar", title="predictions")
