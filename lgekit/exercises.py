"""Check the notebooks' exercises: a check says in a sentence what is wrong, and raises nothing."""

from collections.abc import Callable, Iterator
from functools import wraps

import numpy as np

from lgekit.study import Landmarks


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
            if "ellipsis" in str(error) or "NoneType" in str(error):
                return Verdict("there is no answer in place of `...`")
            return Verdict(f"your answer stops the check with {type(error).__name__}: {error}")

    return checked


@check
def check_angle(mine):
    """Notebook 02: ``mine(x, y, centre, spacing)`` is in degrees, and measured in mm."""
    oblique, down = mine(3, 2, (1, 4), (1, 2)), mine(1, 6, (1, 4), (1, 2))
    yield down < 0, "angles run from 0 to 360°, and yours can be negative"
    yield abs(down - 90) < 1, "a larger y is further down on the screen, not further up"
    yield abs(oblique - 45) < 1, "it measures in pixels; multiply by the spacing first"
    words = f"a pixel 2 mm to the right and 4 mm up is at 63.4°, not {oblique:.1f}°"
    yield not np.allclose((oblique, down), (63.435, 270), atol=0.01), words


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
