"""Widgets for notebooks and the apps: each shows a picture and a text that follow its controls."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.cache import FIT_ROOMS, code_version, compute_once, memory
from lgekit.clip.data import batch_of
from lgekit.clip.detector import Detector
from lgekit.clip.fit import fit_detector
from lgekit.clip.zeroshot import occlusion_map
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import read_cohort
from lgekit.evaluation.metrics import PRESENCE_STATISTICS, title_of
from lgekit.findings import DEPTHS, LEVELS, WALLS, Scar
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
    return compute_once(memory().cache(_small_detector), TRAIN_STUDIES, code_version(*FIT_ROOMS))


def _small_detector(studies: int, version: str) -> Detector:
    return fit_detector(phantom_cohort(studies, seed=0), size_settings("smoke"), progress=False)


def playground_cohort(spec: str = "") -> Cohort:
    """Read the images of a cohort's first twelve studies, or make twelve new phantoms."""
    if not spec:
        return phantom_cohort(SHOWN_STUDIES, seed=1)
    return Cohort(read_cohort(spec, images_only=True).studies[:SHOWN_STUDIES], spec)


class Picture(ipywidgets.Image):
    """An image with a title; JupyterLab sets none on a widget without a description."""

    description = traitlets.Unicode("").tag(sync=True)


def _buttons(names: Sequence[str], pressed: str) -> dict[str, ipywidgets.ToggleButton]:
    """A button for each name; any number may be pressed, with the keyboard, too."""
    narrow = ipywidgets.Layout(width="auto")
    return {
        name: ipywidgets.ToggleButton(name == pressed, description=name, layout=narrow)
        for name in names
    }


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
        in_rows = ipywidgets.Layout(flex_flow="row wrap")
        panel = ipywidgets.Box([*controls.values()], layout=in_rows)
        self.box = ipywidgets.VBox([panel, self.picture, self.text])

    def _update(self, change=None) -> None:
        figure, text = self._draw(**{name: c.value for name, c in self.controls.items()})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        self.text.value, self.picture.value = text, buffer.getvalue()

    def _repr_mimebundle_(self, **options) -> dict[str, Any]:
        still = {"image/png": base64.b64encode(self.picture.value).decode()}
        return self.box._repr_mimebundle_(**options) | still


def scar_painter(study: Study) -> Explorer:
    """Choose walls, levels, depth, transmurality and no-reflow; image, mask and report follow."""
    before = FRAME(study)

    def draw(depth: str, transmurality: int, no_reflow: bool, **pressed: bool) -> Drawing:
        walls, levels = (tuple(filter(pressed.get, names)) for names in (WALLS, LEVELS))
        if not walls or not levels:
            return plt.figure(), "Choose at least one wall and one level."
        extent = 100 if depth == "transmural" else transmurality
        scar = Scar(walls, levels, depth, transmurality=extent, no_reflow=no_reflow)
        try:
            painted = AddScar(scar, seed=0)(study)
        except ValueError as error:
            return plt.figure(), f"This scar cannot be placed: {error}"
        after = FRAME(Study(**painted))
        index = plots.slice_with_most_scar(after)
        panels = {"before": before, "after": after, "mask": after}
        figure, axes = plots.captioned(panels, columns=3)
        for axis, (title, shown) in zip(axes, panels.items(), strict=True):
            plots.draw_slice(axis, shown, index, contours=title == "mask")
        report = html.escape(str(painted["report"]))
        return figure, f'<div style="white-space: pre-line">{report}</div>'

    controls = {
        **_buttons(WALLS, "inferior"),
        **_buttons(LEVELS[:3], "mid"),
        "depth": ipywidgets.ToggleButtons(options=DEPTHS, description="depth"),
        "transmurality": _number(50, 20, 75, 5, "% of wall"),
        "no_reflow": ipywidgets.Checkbox(False, description="no-reflow"),
    }
    alt = "A slice before and after the scar is painted, and the scar's outline"
    return Explorer(controls, draw, alt)


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
        studies, slices = detector.similarity(embedded, sentence, detector.denials)
        best = int(np.nanargmax(slices[index]))
        layout = [["studies", "slices", "picture"], ["studies", "slices", "heat"]]
        figure, axes = plt.subplot_mosaic(layout, figsize=(10, 3.2), width_ratios=[5, 5, 4])  # type: ignore
        colours = [plots.ORANGE if other == name else plots.BLUE for other in names]
        axes["studies"].barh(numbered, studies, color=colours)
        axes["studies"].invert_yaxis()
        axes["studies"].set_xlabel("similarity − that to “no enhancement”")
        axes["slices"].bar(np.arange(len(slices[index])) + 1, slices[index], color=plots.GREEN)
        axes["slices"].set(xlabel=f"slice of study {study}", ylabel="the same, slice by slice")
        plots.draw_slice(axes["picture"], cohort.studies[index], best, contours=False)
        axes["picture"].set_title(f"study {study}, slice {best + 1}")
        view, sentences = embedded.views[index], ([sentence], detector.denials)
        heat = occlusion_map(*detector.networks[0], batch_of([view]), *sentences)
        place = list(view.own_slices).index(best)
        plots.draw_heat(axes["heat"], view.images[place, 0].numpy(), heat[place])
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

    def done(point: tuple) -> bool:
        return (folders[point] / "metrics.json").is_file()

    def draw(**point) -> Drawing:
        folder = folders[tuple(point.values())]
        if not done(tuple(point.values())):
            words = f"This run is not done. Start it: lgekit grid run {grid.file.name}"
            return plt.figure(figsize=(3, 1)), words
        found = json.loads((folder / "metrics.json").read_text("utf-8"))
        names, ends = [name for name in RUN_SCORES if name in found], ("", "_low", "_high")
        rows = {title_of(name): [found.get(name + end) for end in ends] for name in names}
        scores = pd.DataFrame.from_dict(rows, "index", columns=["score", "low", "high"])
        known = pd.read_csv(folder / "predictions.csv").dropna(subset=["scar"])
        error = (known["p_lge"] - known["scar"].astype(float)).abs()
        worst = known.loc[error.nlargest(WORST).index, ["study_id", "p_lge"]]
        captions = pd.read_csv(folder / "captions.csv")[["study_id", "caption", "truth"]]
        cases = worst.merge(captions, on="study_id", how="left").set_index("study_id")
        style = {"float_format": "{:.2f}".format, "na_rep": "", "border": 0, "justify": "left"}
        with pd.option_context("display.max_colwidth", 160):  # an untrained decoder writes on
            words = f"{scores.to_html(**style)} Worst cases: {cases.to_html(**style)}"
        return plots.training_curves(pd.read_csv(folder / "history.csv")), words

    first, controls = [*filter(done, folders), *folders][0], {}
    for place, name in enumerate(("row", *grid.runs[0].axes)):
        options = list(dict.fromkeys(point[place] for point in folders))
        button = ipywidgets.ToggleButtons(options=options, value=first[place], description=name)
        controls[name] = button
    return Explorer(controls, draw, "Training curves of one run")
