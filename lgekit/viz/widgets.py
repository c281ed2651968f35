"""Widgets for notebooks and the apps: each shows a picture and a text that follow its controls."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lgekit.anatomy.frame import StandardizeShortAxis
from lgekit.clip.data import batch_of
from lgekit.clip.detector import Detector
from lgekit.clip.zeroshot import occlusion_map
from lgekit.findings import DEPTHS, LEVELS, WALLS, Scar
from lgekit.scars.transforms import AddScar
from lgekit.study import Cohort, Study
from lgekit.viz import plots

FRAME = StandardizeShortAxis(pixels=96)
Drawing = tuple[Figure, str]


def _number(value: int, low: int, high: int, step: int, name: str) -> ipywidgets.BoundedIntText:
    """A number that the arrow keys change; the slider of ipywidgets has no accessible name."""
    narrow = {"width": "12em"}
    return ipywidgets.BoundedIntText(value, low, high, step, description=name, layout=narrow)


class Explorer(ipywidgets.VBox):
    """Controls above a picture and a text; front ends without widgets show the picture alone.

    ``draw`` makes figure and text of the values of the controls; ``alt`` is the picture's title.
    """

    def __init__(
        self, controls: dict[str, ipywidgets.Widget], draw: Callable[..., Drawing], alt: str
    ):
        self.controls, self.draw, self.alt = controls, draw, alt
        self.shown = ipywidgets.HTML()
        for control in controls.values():
            control.observe(self.update, names="value")
        self.update()
        panel = ipywidgets.Box([*controls.values()], layout={"flex_flow": "row wrap"})
        super().__init__([panel, self.shown])

    def update(self, change=None) -> None:
        """Draw again with the present values of the controls."""
        figure, text = self.draw(**{name: c.value for name, c in self.controls.items()})
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        self.picture = base64.b64encode(buffer.getvalue()).decode()
        source = f"data:image/png;base64,{self.picture}"
        self.shown.value = f'<img alt="{self.alt}" src="{source}" style="max-width: 100%">{text}'

    def _repr_mimebundle_(self, **options) -> dict[str, Any]:
        return super()._repr_mimebundle_(**options) | {"image/png": self.picture}


def scar_painter(study: Study) -> Explorer:
    """Choose walls, levels, depth, transmurality and no-reflow; image, mask and report follow."""
    before: Any = FRAME(study)  # a study, TorchIO's types say a subject

    def draw(depth: str, transmurality: int, no_reflow: bool, **pressed: bool) -> Drawing:
        walls, levels = (tuple(filter(pressed.get, names)) for names in (WALLS, LEVELS))
        if not walls or not levels:
            return plt.figure(figsize=(3, 1)), "Choose at least one wall and one level."
        extent = 100 if depth == "transmural" else transmurality
        scar = Scar(walls, levels, depth, transmurality=extent, no_reflow=no_reflow)
        try:
            painted = AddScar(scar, seed=0)(study)
        except ValueError as error:
            return plt.figure(figsize=(3, 1)), f"This scar cannot be placed: {error}"
        after: Any = FRAME(Study(**painted))
        index = plots.slice_with_most_scar(after)
        panels = {"before": before, "after": after, "mask": after}
        figure, axes = plots.captioned(panels, columns=3)
        for axis, (title, shown) in zip(axes, panels.items(), strict=True):
            plots.draw_slice(axis, shown, index, contours=title == "mask")
        report = html.escape(str(painted["report"]))
        return figure, f'<div style="white-space: pre-line">{report}</div>'

    button, narrow = ipywidgets.ToggleButton, {"width": "auto"}
    places = (*WALLS, *LEVELS[:3])  # any number may be pressed, with the keyboard, too
    pressed = ("inferior", "mid")
    controls = {
        **{name: button(name in pressed, description=name, layout=narrow) for name in places},
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
        place = list(view.own_slices).index(best)
        heat = occlusion_map(*detector.networks[0], batch_of([view]), *sentences)[place]
        plots.show_pixels(axes["heat"], view.images[place, 0].numpy().T)
        plots.show_pixels(axes["heat"], heat.T, plots.EVIDENCE, (0, max(heat.max(), 1e-3)))
        axes["heat"].set_title("evidence for the sentence")
        words = f"“{html.escape(sentence)}” and {html.escape(name)}: {studies[index]:+.2f}"
        return figure, f"<div>{words}</div>"

    wide = {"width": "36em", "max_width": "100%"}
    sentence = "Late gadolinium enhancement in the inferior wall."
    controls = {
        "sentence": ipywidgets.Text(sentence, description="sentence", layout=wide),
        "study": _number(1, 1, len(names), 1, "study"),
    }
    return Explorer(controls, draw, "How far studies and slices lean towards the sentence")
