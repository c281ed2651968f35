"""Things to drag and click: orientation explorer, scar painter, which-is-real quiz, prompt playground.

Each is an ipywidgets box around one picture that is drawn again at every change; where widgets cannot run (a file
viewer, a printed page) the same cell shows the picture as it first was.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lgekit import anatomy, plots
from lgekit.findings import DEPTHS, LEVELS, WALLS, Scar
from lgekit.reports import canonical_text
from lgekit.standardize import StandardizeShortAxis
from lgekit.studies import Cohort, Study


class Explorable:
    """A widget with a still: front ends that know widgets show the widget, all others the picture.

    Attributes:
        box: the ipywidgets box; its controls are in ``controls``.
        controls: name → widget, for tests and for the keyboard.
        picture: the image widget.
        text: the HTML widget under it.
    """

    def __init__(self, controls: dict[str, ipywidgets.Widget], draw: Callable[..., tuple[Figure, str]]):
        self.controls = controls
        self.picture, self.text = ipywidgets.Image(format="png"), ipywidgets.HTML()
        self._draw = draw
        for control in controls.values():
            control.observe(self._update, names="value")
        self._update()
        self.box = ipywidgets.VBox([*controls.values(), self.picture, self.text])

    def _update(self, change=None) -> None:
        figure, text = self._draw(**{name: control.value for name, control in self.controls.items()})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        plt.close(figure)
        self.picture.value, self.text.value = buffer.getvalue(), text

    def _repr_mimebundle_(self, **options):
        from base64 import b64encode

        bundle = self.box._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return dict(data or {}) | {"image/png": b64encode(self.picture.value).decode()}


def orientation_explorer(study: Study) -> Explorable:
    """Turn the anterior insertion point of a study and watch frame and words change.

    Args:
        study: with labels and both insertion points.
    """
    marks, frame = study["landmarks"], StandardizeShortAxis(pixels=96)

    def draw(error: float, mirrored: bool) -> tuple[Figure, str]:
        moved = copy.copy(study)
        anterior = (marks.anterior_rvip_deg + error) % 360
        to_inferior = (marks.inferior_rvip_deg - marks.anterior_rvip_deg) % 360
        inferior = (anterior + (-to_inferior if mirrored else to_inferior)) % 360
        moved["landmarks"] = replace(marks, anterior_rvip_deg=anterior, inferior_rvip_deg=inferior)
        shown = frame(moved)
        index = plots.most_telling_slice(shown)
        segments = anatomy.segment_map(shown.label_map, shown.spacing_mm, shown["landmarks"])[:, :, index]
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2))
        plots.draw_slice(axes[0], shown, index)
        axes[1].imshow(np.ma.masked_equal(segments.T, 0), cmap="tab20", vmin=1, vmax=20)
        axes[0].set_title("standard frame")
        axes[1].set_title("AHA segments")
        axes[1].axis("off")
        return figure, f"Words: {canonical_text(anatomy.findings_from_labels(moved))}"

    controls = {
        "error": ipywidgets.IntSlider(0, -180, 180, 5, description="turn (deg)", continuous_update=False),
        "mirrored": ipywidgets.Checkbox(False, description="take it for mirrored"),
    }
    return Explorable(controls, draw)


def scar_painter(study: Study) -> Explorable:
    """Choose walls, levels, depth, transmurality and no-reflow: image, mask and report follow.

    Args:
        study: with labels and both insertion points, best without scar.
    """
    from lgekit.scars import AddScar

    frame = StandardizeShortAxis(pixels=96)

    def draw(walls: Sequence[str], levels: Sequence[str], depth: str, transmurality: int, no_reflow: bool):
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
        if not walls or not levels:
            return figure, "Choose at least one wall and one level."
        whole = 100 if depth == "transmural" else transmurality
        scar = Scar(walls=tuple(walls), levels=tuple(levels), depth=depth, transmurality=whole, no_reflow=no_reflow)
        try:
            painted = AddScar(scar, seed=0)(study)
        except ValueError as error:
            return figure, f"This scar cannot be placed: {error}"
        before, after = frame(study), frame(Study(**painted))
        for axis, shown, contours in zip(axes, (before, after, after), (False, False, True), strict=True):
            plots.draw_slice(axis, shown, plots.most_telling_slice(after), contours)
        for axis, title in zip(axes, ("before", "after", "mask"), strict=True):
            axis.set_title(title)
        return figure, painted["report"]

    controls = {
        "walls": ipywidgets.SelectMultiple(options=WALLS, value=("inferior",), description="walls", rows=6),
        "levels": ipywidgets.SelectMultiple(options=LEVELS[:3], value=("mid",), description="levels", rows=3),
        "depth": ipywidgets.Dropdown(options=DEPTHS, value="subendocardial", description="depth"),
        "transmurality": ipywidgets.IntSlider(50, 20, 75, 5, description="% of wall", continuous_update=False),
        "no_reflow": ipywidgets.Checkbox(False, description="no-reflow"),
    }
    return Explorable(controls, draw)


def which_is_real(cohort: Cohort, random_scar, pairs: int = 4, seed: int = 0) -> Explorable:
    """Scars of the cohort beside painted ones, in random order, the answer hidden until it is asked for.

    Args:
        cohort: studies with and without scar.
        random_scar: a ``RandomScar`` with ``p=1``.
        pairs: how many of each.
        seed: of order and choice.
    """
    generator, frame = np.random.default_rng(seed), StandardizeShortAxis(pixels=96)
    known = [study for study in cohort.studies if study["findings"] is not None and study.get("landmarks") is not None]
    real = [study for study in known if study["findings"].present][:pairs]
    painted = [random_scar(study) for study in known if not study["findings"].present][:pairs]
    shown = [(study, True) for study in real] + [(study, False) for study in painted]
    order = [shown[index] for index in generator.permutation(len(shown))]

    def draw(answer: bool) -> tuple[Figure, str]:
        figure, axes = plt.subplots(2, -(-len(order) // 2), figsize=(9, 4.6), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for number, (axis, (study, is_real)) in enumerate(zip(axes.flat, order, strict=False), 1):
            plots.draw_slice(axis, frame(study), plots.most_telling_slice(frame(study)), contours=answer)
            axis.set_title((f"{number}: cohort" if is_real else f"{number}: painted") if answer else str(number))
        return figure, "" if answer else "Which are painted? Tick the box for the answer."

    return Explorable({"answer": ipywidgets.Checkbox(False, description="show the answer")}, draw)


def prompt_playground(detector, cohort: Cohort) -> Explorable:
    """Type a sentence: its similarity with every study of a small cohort, and with each slice of the chosen one.

    Args:
        detector: a fitted ``Detector``.
        cohort: a few studies.
    """
    names = cohort.manifest["study_id"].tolist()
    embedded = detector.embed(cohort)

    def draw(sentence: str, study: str) -> tuple[Figure, str]:
        studies, slices = detector.similarity(embedded, sentence)
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=(2, 1.2, 2))
        index = names.index(study)
        axes[0].barh(names, studies, color=["#E69F00" if name == study else "#0072B2" for name in names])
        axes[0].set(xlabel="cosine similarity")
        axes[0].tick_params(axis="y", labelsize=7)
        best = int(np.nanargmax(slices[index]))
        plots.draw_slice(axes[1], cohort.studies[index], best, contours=False)
        axes[1].set_title(f"slice {best + 1}")
        axes[2].bar(np.arange(1, len(slices[index]) + 1), slices[index], color="#009E73")
        axes[2].set(xlabel="slice", ylabel="cosine similarity")
        return figure, f"“{sentence}” and {study}: {studies[index]:.2f}"

    controls = {
        "sentence": ipywidgets.Text("Subendocardial scar of the inferior wall.", description="sentence"),
        "study": ipywidgets.Dropdown(options=names, description="study"),
    }
    return Explorable(controls, draw)
