"""The checks of exercises: right answers pass, wrong ones get a sentence, nothing is raised."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

import lgekit as lk
from lgekit import exercises

CHECKS = [name for name in vars(exercises) if name.startswith("check_") and name != "check_cohort"]
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Check → wrong answers, each with a word of the sentence that says what is wrong.
WRONG = {
    "check_balanced": [
        (lambda truth, called: (truth == called).mean(), "both classes"),
        (lambda truth, called: called[truth].mean(), "gives 1.0"),
    ],
    "check_size": [
        (lambda labels, spacing: (4, 2), "4 x 2 voxels"),
        (lambda labels, spacing: (4, 6) if len(labels) < 6 else (6, 9), "code 5"),
    ],
    "check_unsure": [
        ("Normal lungs.", "no sentence"),
        ("Transmural late enhancement of the lateral wall.", "counts it as scar"),
    ],
    "check_null": [
        (lambda t1, loss: t1 / 2, "log of 2"),
        (lambda t1, loss: 277.26, "235 ms"),
    ],
    "check_rule": [
        (lambda study: -study.pixels.max(), "score higher"),
        (lambda study: study.pixels[study.label_map == 2].max(), "gain"),
    ],
    "check_patients": [(lambda width, accuracy: 25 / width, "needs 256")],
    "check_mcnemar": [
        (lambda first, second: 2 * (first == second), "never more"),
        (lambda first, second: 1 if first == second else 2**-7, "8 against 0"),
    ],
    "check_area": [(lambda x, y: np.mean(y), "trapezoids")],
    "check_own_row": [
        ({"caption_weight": 1.0}, "the full method"),
        ({"caption_weight": 0}, "already"),
        ({"caption_wieght": 0}, "caption_wieght"),
    ],
    "check_row": [
        ({"study_id": "a", "image": "a.nii.gz"}, "'labels'"),
        (dict.fromkeys("study_id image labels report patient_id text".split(), "a"), "not a col"),
    ],
    "check_mended": [("manifest:absent.csv", "left|stops")],
    "check_clean": [(lambda text: text, "still in it"), (lambda text: "", "is gone")],
    "check_misread": [
        (("No scar.", "maybe"), "'yes', 'no' or 'unsaid'"),
        (("Transmural scar of the lateral wall.", "yes"), "as you do"),
    ],
    "check_angle": [
        (lambda x, y, centre, spacing: 1 / 0, "ZeroDivisionError"),
        (lambda x, y, centre, spacing: -90.0, "negative"),
    ],
    "check_mirror": [
        (lambda marks: marks, "handedness"),
        (lambda marks: lk.Landmarks(200.0, 70.0), "move to 110°"),
    ],
    "check_shares": [
        ({10: 1.0, 20: 0.8}, "40"),
        ({10: 80, 20: 60, 40: 50}, "from 0 to 1"),
        ({10: 0.5, 20: 0.6, 40: 0.7}, "more names"),
    ],
    "check_template": [
        (lambda scar: "Normal heart.", "No late gadolinium"),
        (lambda scar: f"Transmural scar of the basal {scar.walls[0]} wall.", "wall"),
    ],
    "check_edge": [
        (lambda distance, width: 0.5 - distance / 100, "inside"),
        (lambda distance, width: 0.7 + distance / 100, "border"),
        (lambda distance, width: 0.5 + distance / 100, "half a width"),
    ],
    "check_inferior": [(90, "anterior"), (0, "240°")],
    "check_dice": [(lambda true, drawn: (true & drawn).sum() / (true | drawn).sum(), "0.75")],
    "check_turn": [(lambda found, true: abs(found - true), "340°")],
    "check_mirrored_field": [(lambda field: -field[..., ::-1], "turns round")],
    "check_floor": [(lambda copies, others: np.log(copies), "a quarter")],
    "check_pool": [(np.mean, "plain mean"), (lambda x: np.log(np.exp(x).mean()), "overflow")],
    "check_attention": [(lambda scores, true: scores / scores.sum(), "padding")],
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_says_what_is_wrong(name):
    check = getattr(exercises, name)
    for mine, words in [(lambda *given: ..., "no answer|stops"), *WRONG[name]]:
        verdict = check(mine)
        assert not verdict and re.search(words, repr(verdict)), repr(verdict)


@pytest.mark.parametrize("name", CHECKS)
def test_a_notebook_asks_and_its_folded_solution_asserts(name):
    """The smoke run of the notebooks executes the assertion."""
    call = f"lk.exercises.{name}("
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if "outputs" in cell]
        asked = {"".join(c["source"]): c["metadata"] for c in cells if call in "".join(c["source"])}
        if asked:
            stub, solution = asked
            assert "..." in stub and ast.parse(stub)
            assert f"assert {call}" in solution and asked[solution]["tags"] == ["solution"]
            assert asked[solution]["jupyter"] == {"outputs_hidden": True, "source_hidden": True}
            return
    raise AssertionError(f"no notebook uses {name}")
