"""Check the notebooks' exercises: a check says in a sentence what is wrong, and raises nothing."""

import tomllib
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from lgekit.config import size_settings
from lgekit.data.manifest import COLUMNS, LANDMARK_COLUMNS
from lgekit.data.readers import check_cohort
from lgekit.evaluation.metrics import ROWS
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


def examples(answer: str, cases: list[tuple[list, Any, str]]) -> Callable[..., Verdict]:
    """Make a check of a function by its arguments, the right value and what to say otherwise."""

    def faults(mine):
        for given, wanted, words in cases:
            found = mine(*(np.array(one) if isinstance(one, list) else one for one in given))
            wrong = not np.allclose(found, wanted, atol=1e-3)
            yield wrong, f"{words}; yours gives {np.round(found, 2).tolist()}"

    faults.__doc__ = f"Notebook {answer}."
    return check(faults)


EXAMPLES = tomllib.loads(Path(__file__).with_name("exercises.toml").read_text("utf-8"))
globals().update((name, examples(**one)) for name, one in EXAMPLES.items())


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
def check_own_row(mine):
    """Notebook 06: settings that are no row of the ablations yet."""
    yield size_settings("laptop", **mine) == size_settings("laptop"), "that is the full method"
    yield mine in ROWS.values(), "the grid has this row already"


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
