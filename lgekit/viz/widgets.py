"""Widgets."""

from __future__ import annotations

import contextlib
import copy
import html
import io
import os
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lgekit.anatomy import segments as anatomy
from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.cache import code_version, locked, memory
from lgekit.clip.detector import Detector
from lgekit.clip.fit import fit_detector
from lgekit.config import size_settings
from lgekit.data.phantom import phantom_cohort
from lgekit.data.readers import read_cohort
from lgekit.findings import DEPTHS, LEVELS, WALLS, Scar
from lgekit.reports.writer import canonical_text
from lgekit.study import Cohort, Study
from lgekit.viz import plots
from lgekit.viz import plots as pictures
from lgekit.workbook import project_root

STUDIES = 40
SHOWN = 12


def playground_detector(model_dir: str = "") -> Detector:
    """The detector behind the prompt playground.

    Args:
        model_dir: what `lgekit fit` wrote; empty: a small one, trained on a small phantom cohort at smoke size and kept
            beside the caches. It shows how the method answers, not what it can do.

    Raises:
        InputError: ``model_dir`` holds no detector.
    """
    if model_dir:
        return Detector.load(model_dir)
    cache = memory().location
    if cache is None:
        return _small()
    folder = (
        Path(cache)
        / "playground"
        / code_version("anatomy", "reports", "data", "segmentation", "scars", "clip")
    )
    with locked(folder.with_name(f"{folder.name}.lock")):  # two visitors at the first start
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            os.replace(_small().save(part), folder)
    return Detector.load(folder)


def playground_cohort(spec: str = "") -> Cohort:
    """The hearts that the prompt playground asks about: a dozen phantoms that its own detector has not seen, or yours.

    Args:
        spec: of a cohort; its first twelve studies are taken, images alone. Relative paths: from the project's folder.

    Raises:
        InputError: as `lgekit.data.readers.read_cohort`.
    """
    if not spec:
        return phantom_cohort(SHOWN, seed=1)
    with contextlib.chdir(project_root()):
        return Cohort(read_cohort(spec, images_only=True).studies[:SHOWN], spec)


def _small() -> Detector:
    return fit_detector(phantom_cohort(STUDIES, seed=0), size_settings("smoke"), progress=False)


RUN_SCORES = (
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "auc",
    "auc_walls",
    "auc_segments",
    "auc_slices",
)
WORST = 5  # studies that the run browser lists
LONGEST = 160  # characters of a text in its table; a decoder that learned nothing repeats itself to its limit


class Picture(ipywidgets.Image):
    """An image with a title; the front end reads a description before it sets one, and images have none."""

    description = traitlets.Unicode("").tag(sync=True)


class Choices(ipywidgets.HBox):
    """Any number of options, each a button. A list box would lose its arrow keys to JupyterLab's own shortcuts.

    Attributes:
        value: the chosen options, in their order.
    """

    value = traitlets.Tuple()

    def __init__(self, options: Sequence[str], value: Sequence[str], description: str):
        width = ipywidgets.Layout(width="auto")
        self._buttons = [
            ipywidgets.ToggleButton(description=option, layout=width) for option in options
        ]
        super().__init__([ipywidgets.Label(description), *self._buttons])
        self.observe(self._press, names="value")
        self.value = tuple(value)
        for button in self._buttons:
            button.observe(self._read, names="value")

    def _press(self, change) -> None:
        for button in self._buttons:
            button.value = button.description in change["new"]

    def _read(self, change) -> None:
        self.value = tuple(button.description for button in self._buttons if button.value)


def _number(
    value: int, low: int, high: int, step: int, description: str
) -> ipywidgets.BoundedIntText:
    """A field for a number, stepped by the arrow keys. The handle of a slider of ipywidgets has no accessible name."""
    narrow = ipywidgets.Layout(width="12em")
    return ipywidgets.BoundedIntText(value, low, high, step, description=description, layout=narrow)


class Explorable:
    """A widget with a still: front ends that know widgets show the widget, all others the picture.

    Attributes:
        box: the ipywidgets box; its controls are in ``controls``.
        controls: name → widget, for tests and for the keyboard.
        picture: the image widget; ``alt``, what it shows, is its title for those who cannot see it.
        text: the HTML widget under it.
    """

    def __init__(
        self,
        controls: dict[str, ipywidgets.Widget],
        draw: Callable[..., tuple[Figure, str]],
        alt: str,
        ahead: Sequence[Mapping[str, object]] = (),
    ):
        """``ahead``: values of the controls whose pictures are drawn now, so that nobody has to wait for them."""
        self.controls = controls
        as_drawn = ipywidgets.Layout(align_self="flex-start", max_width="100%")
        self.picture, self.text = (
            Picture(format="png", tooltip=alt, layout=as_drawn),
            ipywidgets.HTML(),
        )
        self._draw = draw
        self._drawn = {tuple(values.values()): self._render(**values) for values in ahead}
        for control in controls.values():
            control.observe(self._update, names="value")
        self._update()
        self.box = ipywidgets.VBox([*controls.values(), self.picture, self.text])

    def _render(self, **values) -> tuple[str, bytes]:
        """Words and picture (PNG) for values of the controls."""
        with plt.rc_context(
            {"axes.titley": 1.0}
        ):  # else a title's place is found by laying out every tick once more
            figure, text = self._draw(**values)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        plt.close(figure)
        return text, buffer.getvalue()

    def _update(self, change=None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        ready = self._drawn.get(tuple(values.values()))
        self.text.value, self.picture.value = ready or self._render(**values)

    def _repr_mimebundle_(self, **options):
        from base64 import b64encode

        bundle = self.box._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        return dict(data or {}) | {"image/png": b64encode(self.picture.value).decode()}


def _pictures(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Axes for pictures alone at fixed places: finding the places anew would take as long as the drawing."""
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.9, wspace=0.03, hspace=0.15)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])  # even unseen ones take time
        axis.axis("off")
    return figure, axes


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
        segments = anatomy.segment_map(shown.label_map, shown.spacing_mm, shown["landmarks"])[
            :, :, index
        ]
        figure, axes = _pictures(1, 2, (6.4, 3.2))
        plots.draw_slice(axes[0], shown, index)
        plots.draw_segments(axes[1], segments)
        axes[0].set_title("standard frame")
        axes[1].set_title("AHA segments")
        return figure, f"Words: {canonical_text(anatomy.findings_from_labels(moved))}"

    controls = {
        "error": _number(0, -180, 180, 5, "turn (deg)"),
        "mirrored": ipywidgets.Checkbox(False, description="take it for mirrored"),
    }
    return Explorable(controls, draw, "A slice in the standard frame, and its AHA segments")


def scar_painter(study: Study) -> Explorable:
    """Choose walls, levels, depth, transmurality and no-reflow: image, mask and report follow.

    Args:
        study: with labels and both insertion points, best without scar.
    """
    from lgekit.scars.transforms import AddScar

    frame = StandardizeShortAxis(pixels=96)

    def draw(
        walls: Sequence[str], levels: Sequence[str], depth: str, transmurality: int, no_reflow: bool
    ):
        figure, axes = _pictures(1, 3, (9, 3.2))
        if not walls or not levels:
            return figure, "Choose at least one wall and one level."
        whole = 100 if depth == "transmural" else transmurality
        scar = Scar(
            walls=tuple(walls),
            levels=tuple(levels),
            depth=depth,
            transmurality=whole,
            no_reflow=no_reflow,
        )
        try:
            painted = AddScar(scar, seed=0)(study)
        except ValueError as error:
            return figure, f"This scar cannot be placed: {error}"
        before, after = frame(study), frame(Study(**painted))
        for axis, shown, contours in zip(
            axes, (before, after, after), (False, False, True), strict=True
        ):
            plots.draw_slice(axis, shown, plots.most_telling_slice(after), contours)
        for axis, title in zip(axes, ("before", "after", "mask"), strict=True):
            axis.set_title(title)
        return (
            figure,
            f'<div style="white-space: pre-line">{html.escape(str(painted["report"]))}</div>',
        )

    controls = {
        "walls": Choices(WALLS, ("inferior",), "walls"),
        "levels": Choices(LEVELS[:3], ("mid",), "levels"),
        "depth": ipywidgets.ToggleButtons(
            options=DEPTHS, value="subendocardial", description="depth"
        ),
        "transmurality": _number(50, 20, 75, 5, "% of wall"),
        "no_reflow": ipywidgets.Checkbox(False, description="no-reflow"),
    }
    return Explorable(
        controls, draw, "A slice before and after the scar is painted, and the scar's outline"
    )


def which_is_real(cohort: Cohort, random_scar, pairs: int = 4, seed: int = 0) -> Explorable:
    """Scars of the cohort beside painted ones, in random order, the answer hidden until it is asked for.

    Args:
        cohort: studies with and without scar.
        random_scar: a ``RandomScar`` with ``p=1``.
        pairs: how many of each.
        seed: of order and choice.
    """
    generator, frame = np.random.default_rng(seed), StandardizeShortAxis(pixels=96)
    known = [
        study
        for study in cohort.studies
        if study["findings"] is not None and study.get("landmarks") is not None
    ]
    real = [study for study in known if study["findings"].present][:pairs]
    painted = [random_scar(study) for study in known if not study["findings"].present][:pairs]
    shown = [(frame(study), True) for study in real] + [(frame(study), False) for study in painted]
    order = [shown[index] for index in generator.permutation(len(shown))]

    def draw(answer: bool) -> tuple[Figure, str]:
        figure, axes = _pictures(2, -(-len(order) // 2), (9, 4.6))
        for number, (axis, (study, is_real)) in enumerate(zip(axes.flat, order, strict=False), 1):
            plots.draw_slice(axis, study, plots.most_telling_slice(study), contours=answer)
            axis.set_title(
                (f"{number}: cohort" if is_real else f"{number}: painted")
                if answer
                else str(number)
            )
        return figure, "" if answer else "Which are painted? Tick the box for the answer."

    controls = {"answer": ipywidgets.Checkbox(False, description="show the answer")}
    both = [{"answer": False}, {"answer": True}]
    return Explorable(
        controls, draw, "Slices with scar, some of the cohort and some painted", ahead=both
    )


def prompt_playground(detector, cohort: Cohort) -> Explorable:
    """Type a sentence about scar: its similarity, minus that to "no enhancement", with every study of a small cohort
    and each slice of the chosen one, and what in the slice where it is highest speaks for it.

    Args:
        detector: a fitted ``Detector``.
        cohort: a few studies.
    """
    names = cohort.manifest["study_id"].tolist()
    numbered = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    embedded = detector.embed(cohort)

    def draw(sentence: str, study: int) -> tuple[Figure, str]:
        index, name = study - 1, names[study - 1]
        studies, slices = detector.speaks_for(embedded, sentence)
        unit = "similarity − that to “no enhancement”"
        # left to right: where each panel begins leaves room for the labels of its own axis
        figure = plt.figure(figsize=(10, 3.2), layout="none")
        places = (
            (0.16, 0.17, 0.25, 0.73),
            (0.52, 0.17, 0.23, 0.73),
            (0.8, 0.51, 0.19, 0.4),
            (0.8, 0.13, 0.19, 0.26),
        )
        bars, slice_bars, picture, seen = map(figure.add_axes, places)
        bars.barh(
            numbered,
            studies,
            color=["#E69F00" if other == index else "#0072B2" for other in range(len(names))],
        )
        bars.invert_yaxis()
        bars.set_xlabel(unit, fontsize=8)
        bars.tick_params(axis="y", labelsize=7)
        bars.locator_params(axis="x", nbins=4)
        slice_bars.bar(np.arange(1, len(slices[index]) + 1), slices[index], color="#009E73")
        slice_bars.locator_params(axis="x", integer=True)
        slice_bars.set_xlabel(f"slice of study {study}", fontsize=8)
        slice_bars.set_ylabel(unit, fontsize=8)
        best = int(np.nanargmax(slices[index]))
        plots.draw_slice(picture, cohort.studies[index], best, contours=False)
        picture.set_title(f"study {study}, slice {best + 1}", fontsize=8)
        pictures.draw_heat(seen, *detector.seen(embedded.views[index], best, sentence))
        seen.set_title("what speaks for the sentence", fontsize=8)
        return figure, f"“{html.escape(sentence)}” and {html.escape(name)}: {studies[index]:+.2f}"

    wide = ipywidgets.Layout(width="36em", max_width="100%")
    sentence = "Late gadolinium enhancement in the inferior wall."
    controls = {
        "sentence": ipywidgets.Text(sentence, description="sentence", layout=wide),
        "study": _number(1, 1, len(names), 1, "study"),
    }
    return Explorable(controls, draw, "How far studies and slices lean towards the sentence")


def run_browser(file: str | Path) -> Explorable:
    """Pick a row and a seed of a grid: scores, training, predictions and worst cases of that run.

    Args:
        file: the grid's YAML file, a grid of notebook 05. Runs that end later are found when they are chosen.

    Raises:
        InputError: as `lgekit.grid.file.load_grid`.
    """
    from lgekit.grid.file import load_grid
    from lgekit.workbook import load_metrics

    grid = load_grid(file)
    runs = {(run.row, *run.axes.values()): grid.folder / run.id for run in grid.runs}

    def draw(**choice) -> tuple[Figure, str]:
        folder = runs[tuple(choice.values())]
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="none")
        figure.subplots_adjust(left=0.13, right=0.98, bottom=0.17, top=0.9, wspace=0.4)
        scores = load_metrics(folder)
        if scores is None:
            for axis in axes:
                axis.axis("off")
            return (
                figure,
                f"This run is not done. Start the grid: lgekit grid run {Path(file).name}",
            )
        _draw_scores(axes[0], scores)
        _draw_training(axes[1], pd.read_csv(folder / "history.csv"))
        known = pd.read_csv(folder / "predictions.csv").dropna(subset=["scar"])
        worst = (known["p_lge"] - known["scar"].astype(float)).abs().nlargest(WORST).index
        _draw_predictions(axes[2], known, worst)
        texts = pd.read_csv(folder / "captions.csv")[["study_id", "caption", "truth"]]
        cases = (
            known.loc[worst, ["study_id", "p_lge"]]
            .merge(texts, on="study_id", how="left")
            .fillna("")
        )
        cases.insert(0, "", range(1, len(cases) + 1))
        for words in ("caption", "truth"):
            cases[words] = [
                textwrap.shorten(str(text), LONGEST, placeholder=" …") for text in cases[words]
            ]
        table = cases.to_html(index=False, float_format="{:.2f}".format, border=0, justify="left")
        return (
            figure,
            f"Worst cases, those farthest from the truth (numbered in the picture):{table}",
        )

    first = next(
        (choice for choice, folder in runs.items() if load_metrics(folder) is not None),
        next(iter(runs)),
    )
    controls = {
        name: ipywidgets.ToggleButtons(
            options=list(dict.fromkeys(values)), value=start, description=name
        )
        for name, values, start in zip(
            ("row", *grid.runs[0].axes), zip(*runs, strict=True), first, strict=True
        )
    }
    return Explorable(controls, draw, "Scores, training curves and predictions of one run")


def _draw_scores(axis: Axes, scores: Mapping[str, float]) -> None:
    """Scores from 0 to 1 with their intervals, where they have one."""
    names = [name for name in RUN_SCORES if name in scores]
    for place, name in enumerate(names):
        axis.plot(scores[name], place, "o", color="#0072B2")
        axis.plot(
            [scores.get(f"{name}_{end}", np.nan) for end in ("low", "high")],
            [place, place],
            color="#0072B2",
        )
    axis.set_yticks(
        range(len(names)),
        [name.replace("_", " ").replace("auc", "AUC") for name in names],
        fontsize=8,
    )
    axis.set(xlim=(0, 1.03), xlabel="95 % interval over patients", title="scores")
    axis.invert_yaxis()


def _draw_training(axis: Axes, history: pd.DataFrame) -> None:
    for name, style in (("contrastive", "-"), ("validation_contrastive", "--"), ("caption", ":")):
        if name in history:
            axis.plot(history["epoch"], history[name], style, label=name.replace("_", " "))
    axis.set(xlabel="epoch", ylabel="loss (nats)", title="training")
    axis.legend(fontsize=7, frameon=False)


def _draw_predictions(axis: Axes, known: pd.DataFrame, worst: pd.Index) -> None:
    """Every study's probability of scar beside the truth; the worst ones numbered in orange."""
    truth = known["scar"].astype(bool)
    spread = pd.Series(np.linspace(-0.3, 0.3, len(known)), known.index) + truth
    axis.scatter(spread, known["p_lge"], s=12, color="#0072B2")
    axis.scatter(spread[worst], known.loc[worst, "p_lge"], s=20, color="#E69F00")
    for number, index in enumerate(worst, 1):
        axis.annotate(str(number), (spread[index], known["p_lge"][index]), fontsize=8)
    axis.axhline(0.5, color="gray", linestyle=":")
    axis.set_xticks([0, 1], ["no scar", "scar"])
    axis.set(ylim=(-0.03, 1.03), ylabel="probability of scar", title="predictions")
