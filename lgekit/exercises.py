"""Check the notebooks' exercises: a check says in a sentence what is wrong, and raises nothing."""

from collections.abc import Callable, Iterator
from functools import wraps

import numpy as np

from lgekit.data.manifest import COLUMNS, LANDMARK_COLUMNS
from lgekit.data.readers import check_cohort
from lgekit.findings import Findings, Scar
from lgekit.reports.reader import lge_statement, read, read_report
from lgekit.reports.text import find_identifiers
from lgekit.reports.writer import canonical_text
from lgekit.study import Landmarks, Study


class Verdict(str):
    """What is wrong with an answer; true if nothing is."""

    def __bool__(self) -> bool:
        return not len(self)

    def __repr__(self) -> str:
        return "Right." if self else f"Not yet: {self:s}."


def check(faults: Callable[..., Iterator[tuple[bool, str]]]) -> Callable[..., Verdict]:
    """Make a check of a function that yields possible faults of an answer: present?, sentence."""

    @wraps(faults)
    def checked(mine) -> Verdict:
        try:
            return Verdict(next((words for wrong, words in faults(mine) if wrong), ""))
        except Exception as error:
            if "ellipsis" in str(error).lower():
                return Verdict("there is no answer in place of `...`")
            return Verdict(f"your answer stops the check with {type(error).__name__}: {error}")

    return checked


def examples(*cases) -> Callable[..., Verdict]:
    """Make a check of a function: its arguments, the right value and what to say otherwise."""

    def faults(mine):
        for arguments, wanted, words in cases:
            found = mine(*arguments)
            wrong = not np.allclose(found, wanted, atol=1e-3)
            yield wrong, f"{words}; yours gives {np.round(found, 2).tolist()}"

    return check(faults)


# Notebook 00: ``mine(truth, called)``; ``mine(labels, spacing)``, width and height in mm.
_LABELS = np.zeros((9, 9), int)
_LABELS[2:6, 3:5], _LABELS[8, 8] = 2, 5
_TRUTH, _CALLED = np.arange(10) < 8, np.arange(10) < 9
check_balanced = examples(((_TRUTH, _CALLED), 0.75, "the mean of 1 and 0.5: both classes alike"))
check_size = examples(
    ((_LABELS[:, :6], (1.0, 3.0)), (4, 6), "4 x 2 voxels of 1 x 3 mm measure 4 x 6 mm"),
    ((_LABELS, (1.0, 3.0)), (4, 6), "code 5, the right ventricle, is not part of the LV"),
)
# Notebook 01: ``mine(t1, loss)``, the time (ms) at which the signal is 0.
check_null = examples(
    ((400.0, 0.0), 400 * np.log(2), "without loss, the answer is T1 times the log of 2"),
    ((400.0, 0.2), 400 * np.log(1.8), "with a loss of 0.2, T1 = 400 ms is nulled at 235 ms"),
)
# Notebook 02: ``mine(x, y, centre, spacing)``, degrees measured in mm.
check_angle = examples(
    ((1, 6, (1, 4), (1, 2)), 270, "a larger y is further down, at 270° and never negative"),
    ((3, 2, (1, 4), (1, 2)), 63.435, "a pixel 2 mm to the right and 4 mm up is at 63.4°"),
)
# Notebook 03: ``mine(distance, width)`` falls from 75 % to 25 % within ``width`` mm.
check_edge = examples(
    ((0.0, 3.0), 0.5, "the share at the border is 0.5"),
    ((1.5, 3.0), 0.75, "half a width inside, where distances are positive, the share is 0.75"),
    ((-1.5, 3.0), 0.25, "half a width outside, the share is 0.25"),
)
_RING = np.indices((3, 8))[1] < 4
_SCORES, _TRUE = np.array([[1.0, 1.0, 9.0]]), np.array([[True, True, False]])
# Notebook 04: ``mine(true, drawn)``, ``mine(found, true)`` in degrees, ``mine(angle field)``.
check_dice = examples(
    ((_RING, _RING), 1, "the Dice of a mask with itself is 1"),
    ((_RING, ~_RING), 0, "the Dice of two masks without a common pixel is 0"),
    ((_RING, np.roll(_RING, 1, axis=1)), 0.75, "of 12 pixels each, 9 in common, it is 0.75"),
)
check_turn = examples(
    ((10, 30), 20, "from 30° to 10° it is 20°; an error has no sign"),
    ((350, 10), 20, "from 350° to 10° it is 20°, not 340°"),
)
_FIELD, _TURNED = np.arange(8.0).reshape(2, 1, 4), [[[3, 2, 1, 0]], [[7, 6, 5, 4]]]
check_mirrored_field = examples(((_FIELD,), _TURNED, "each row of pixels turns round, and only so"))
# Notebook 05: ``mine(copies, others)`` in nats, ``mine(prompt logits)``, ``mine(scores, true)``.
check_floor = examples(
    ((1, 31), 0, "if all texts differ, a perfect encoder reaches 0"),
    ((8, 0), np.log(8), "with 8 copies and nothing else, it can only guess: log 8"),
    ((8, 24), np.log(8) / 4, "only the studies with copied texts pay, here a quarter of them"),
)
check_pool = examples(
    ((np.array([2.0, 2.0]),), 2, "two prompts with the same score have that score together"),
    ((np.array([0.0, 4.0]),), np.log((1 + np.exp(4)) / 2), "it is no plain mean or maximum"),
    ((np.array([900.0, 900.0]),), 900, "the exponential overflows; subtract the largest first"),
)
check_attention = examples(
    ((_SCORES[:, :2], _TRUE[:, :2]), 0.5, "equal scores get equal shares that sum to 1"),
    ((_SCORES, _TRUE), [[0.5, 0.5, 0]], "padding gets attention 0, whatever its score"),
)


@check
def check_unsure(mine):
    """Notebook 00: a sentence on scar of the left ventricle that is not counted as scar."""
    yield not lge_statement(mine.strip()), "the reader finds no sentence on late enhancement in it"
    yield read(mine).states == "yes", "the reader counts it as scar"


@check
def check_rule(mine):
    """Notebook 01: ``mine(study)`` is larger with scar, and the same at any gain of the scanner."""
    labels = np.zeros((24, 24, 2), int)
    labels[4:20, 4:20], labels[8:16, 8:16] = 2, 1
    none = np.random.default_rng(0).normal(100, 5, labels.shape) + 200 * (labels == 1)
    scar = none + 150 * ((labels == 2) & (np.arange(24)[:, None, None] < 7))
    without, present, louder = (
        mine(Study.from_arrays("toy", image, spacing=(1.5, 1.5, 8), labels=labels))
        for image in (none, scar, 3 * scar)
    )
    yield not present > without, "a heart with scar must score higher than the same heart without"
    words = "three times the gain changes the score; scale by blood and healthy wall first"
    yield not np.isclose(present, louder, rtol=0.01), words


@check
def check_misread(mine):
    """Notebook 01: ``(report, yes|no|unsaid)``; the reader takes something else from the report."""
    report, says = mine
    yield says not in ("yes", "no", "unsaid"), "a report says 'yes', 'no' or 'unsaid'"
    yield read(report).states == says, f"the reader reads {says!r} as you do"


@check
def check_mirror(mine):
    """Notebook 02: ``mine(landmarks)`` are those of the picture mirrored left to right."""
    after = mine(Landmarks(70, 200))
    yield not after.mirrored, "a mirror image changes the handedness, and yours keeps it"
    found = np.round((after.anterior_rvip_deg, after.inferior_rvip_deg)) % 360
    yield (found != (110, 340)).any(), f"70° and 200° move to 110° and 340°, not to {found} degrees"


@check
def check_shares(mine):
    """Notebook 02: the share of studies whose walls keep their names, by error in degrees."""
    yield set(mine) != {10, 20, 40}, "it needs the errors 10, 20 and 40"
    yield not all(0 <= share <= 1 for share in mine.values()), "a share is a number from 0 to 1"
    yield mine[40] > mine[10], "a larger error cannot keep more names right than a smaller one"


@check
def check_template(mine):
    """Notebook 03: ``mine(scar)`` is a sentence that the library's reader reads back."""
    for wall, level, depth in (("anterior", "basal", "transmural"), ("septal", "mid", "mid-wall")):
        asked = Findings((Scar((wall,), (level,), depth),))
        found = read_report(mine(asked.scars[0]).strip())
        words = f"of {canonical_text(asked)!r} the reader understands {canonical_text(found)!r}"
        yield found != asked, words


@check
def check_inferior(mine):
    """Notebook 03: the angle of the mean inferior scar, in degrees."""
    yield 60 < mine < 120, "that is the anterior wall; y runs down the picture"
    yield not 240 < mine < 300, f"the inferior wall is at 240° to 300°, and {mine:.0f}° is not"


@check
def check_row(mine):
    """Notebook 08: a row of a manifest with image, mask, report and patient."""
    for name in ("study_id", "image", "labels", "report", "patient_id"):
        yield not mine.get(name), f"the column {name!r} is missing or empty"
    for name in set(mine) - {*COLUMNS, *LANDMARK_COLUMNS}:
        yield True, f"{name!r} is not a column that is read"


@check
def check_mended(mine):
    """Notebook 08: the SPEC of a cohort without faults."""
    for fault in (faults := check_cohort(mine)):
        yield True, f"{len(faults)} left; the first: {fault}"


@check
def check_clean(mine):
    """Notebook 08: ``mine(text)`` is the text without identifiers, with its findings."""
    cleaned = mine("Name: Joan Poe, MRN 5550123\nLate enhancement: scar of the lateral wall.")
    for *_, kind in find_identifiers(cleaned):
        yield True, f"a {kind} is still in it"
    yield read(cleaned).states != "yes", "the scar of the lateral wall is gone"
