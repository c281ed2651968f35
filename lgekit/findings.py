"""The vocabulary of scar: what a report says, in the terms of the AHA 17-segment model.

Sources: segments and coronary territories, Cerqueira et al., Circulation 2002,
doi:10.1161/hc0402.102975; patterns of enhancement by disease, Mahrholdt et al., European Heart
Journal 2005, doi:10.1093/eurheartj/ehi258. How often each pattern is drawn is our own choice [O]:
no published cohort reports all of them together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from numbers import Real
from typing import Any

import numpy as np

from lgekit.errors import InputError

WALLS = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral")
LEVELS = ("basal", "mid", "apical", "apex")
DEPTHS = ("subendocardial", "mid-wall", "subepicardial", "transmural")
PATTERNS = ("patchy", "linear", "diffuse")
ISCHAEMIC = ("LAD", "RCA", "LCx", "ischaemic")
NON_ISCHAEMIC = ("myocarditis", "dilated", "hypertrophic", "sarcoid", "amyloid", "non-ischaemic")
AETIOLOGIES = ISCHAEMIC + NON_ISCHAEMIC

# Words that name walls in reports. "Posterior" means inferolateral: older echo and CMR reports use
# it for the wall opposite the anterior septum.
WALL_WORDS: dict[str, tuple[str, ...]] = {
    **{wall: (wall,) for wall in WALLS},
    "septal": ("anteroseptal", "inferoseptal"),
    "lateral": ("inferolateral", "anterolateral"),
    "posterior": ("inferolateral",),
    "posterolateral": ("inferolateral",),
    "posteroseptal": ("inferoseptal",),
    "inferoposterior": ("inferior", "inferolateral"),
}
_RING_SEGMENTS = {"basal": range(1, 7), "mid": range(7, 13), "apical": (13, 14, 14, 15, 16, 16)}
_SEGMENTS = {
    (wall, level): segment
    for level, segments in _RING_SEGMENTS.items()
    for wall, segment in zip(WALLS, segments, strict=True)
}
# Coronary territories (Cerqueira 2002)
TERRITORIES: dict[str, frozenset[int]] = {
    "LAD": frozenset({1, 2, 7, 8, 13, 14, 17}),
    "RCA": frozenset({3, 4, 9, 10, 15}),
    "LCx": frozenset({5, 6, 11, 12, 16}),
}


def segment_of(wall: str, level: str) -> int:
    """Return the AHA segment (1-17) of a wall at a level; the apex is 17 for every wall."""
    return 17 if level == "apex" else _SEGMENTS[wall, level]


def _level_of(segment: int) -> str:
    return LEVELS[int(np.searchsorted((6, 12, 16), segment))]


def _ordered(values: Iterable[str] | str, allowed: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Return the values in the order of ``allowed``, each once; "septal" becomes its walls."""
    given = values if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    words = WALL_WORDS if field == "walls" else {value: (value,) for value in allowed}
    wanted: set[str] = set()
    for value in given:
        if not isinstance(value, str) or value not in words:
            raise _unknown(field, value, f"use some of {', '.join(allowed)}")
        wanted.update(words[value])
    return tuple(value for value in allowed if value in wanted)


def _unknown(field: str, value: object, remedy: str) -> InputError:
    return InputError(f"Scar.{field}", f"unknown value {value!r}", remedy)


def _percentage(value: Any, field: str) -> int | None:
    if value is None:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 1 <= value <= 100 or value != int(value):
        problem = f"{value!r} is not a percentage"
        raise InputError(f"Scar.{field}", problem, "use a whole number, 1-100, or None")
    return int(value)


@dataclass(frozen=True)
class Scar:
    """One region of hyperenhancement: walls × levels, with a depth in the myocardium.

    Values have one canonical form, so that equal regions are equal objects. Walls and levels follow
    the order of `WALLS` and `LEVELS`. A scar of the apical level alone holds both walls of its
    segments (14 is anteroseptal and inferoseptal), a scar of the apex (17) alone holds no wall.
    A transmurality without a depth gives the depth.

    Attributes:
        walls: some of `WALLS`, or words of `WALL_WORDS`; empty if not stated.
        levels: some of `LEVELS`; empty if not stated.
        depth: one of `DEPTHS`, or None.
        transmurality: percent of the wall thickness, 1-100, or None.
        aetiology: one of `AETIOLOGIES` (a coronary territory is an infarct there), or None.
        no_reflow: microvascular obstruction inside the scar.
        pattern: one of `PATTERNS`; None is an ordinary confluent scar.
        circumference: percent of the LV circumference, 1-100, or None.

    Raises:
        InputError: unknown word, or a percentage outside 1-100.
    """

    walls: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    depth: str | None = None
    transmurality: int | None = None
    aetiology: str | None = None
    no_reflow: bool = False
    pattern: str | None = None
    circumference: int | None = None

    def __post_init__(self):
        walls = _ordered(self.walls, WALLS, "walls")
        levels = _ordered(self.levels, LEVELS, "levels")
        if levels == ("apex",):
            walls = ()
        elif levels and not {"basal", "mid"} & set(levels):
            touched = {_SEGMENTS[wall, "apical"] for wall in walls}
            walls = tuple(wall for wall in WALLS if _SEGMENTS[wall, "apical"] in touched)
        for name, allowed in (("depth", DEPTHS), ("aetiology", AETIOLOGIES), ("pattern", PATTERNS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise _unknown(name, value, f"use one of {', '.join(allowed)}, or None")
        if self.no_reflow not in (True, False):
            raise _unknown("no_reflow", self.no_reflow, "use true or false")
        transmurality = _percentage(self.transmurality, "transmurality")
        depth = self.depth
        if depth is None and transmurality is not None:
            depth = "transmural" if transmurality > 75 else "subendocardial"
        canonical = {
            "walls": walls,
            "levels": levels,
            "depth": depth,
            "transmurality": transmurality,
            "no_reflow": bool(self.no_reflow),
            "circumference": _percentage(self.circumference, "circumference"),
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    @property
    def segments(self) -> frozenset[int]:
        """AHA segments 1-17.

        Unstated levels mean basal to apical; unstated walls mean all; if both are, no segment.
        """
        if not self.walls and not self.levels:
            return frozenset()
        places = product(self.walls or WALLS, self.levels or LEVELS[:3])
        return frozenset(segment_of(wall, level) for wall, level in places)

    @property
    def ischaemic(self) -> bool:
        """Whether the stated aetiology is an infarct."""
        return self.aetiology in ISCHAEMIC

    @classmethod
    def from_segments(cls, segments: Iterable[int], **details) -> Scar:
        """Return the smallest walls × levels that hold these AHA segments (1-17).

        It may hold more (basal inferior + mid inferolateral → both walls at both levels);
        `Findings.from_segments` is exact. ``details`` are the other fields.
        """
        segments = sorted({int(segment) for segment in segments})
        if not segments or segments[0] < 1 or segments[-1] > 17:
            remedy = "give at least one AHA segment from 1 to 17"
            raise InputError("segments", f"{segments} given", remedy)
        walls: set[str] = set()
        for segment in segments:  # an apical segment adds walls only if no other level named one
            own = {wall for (wall, _), number in _SEGMENTS.items() if number == segment}
            if not walls & own:
                walls |= own
        return cls(tuple(walls), tuple(map(_level_of, segments)), **details)

    def to_dict(self) -> dict[str, Any]:
        """Return the stated fields, ready for JSON."""
        stated = {name: value for name, value in asdict(self).items() if value}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in stated.items()
        }


@dataclass(frozen=True)
class Findings:
    """All scars of a study, in canonical order, each once. No scars: no hyperenhancement."""

    scars: tuple[Scar, ...] = ()

    def __post_init__(self):
        scars = (self.scars,) if isinstance(self.scars, Scar) else tuple(self.scars)
        for scar in scars:
            if not isinstance(scar, Scar):
                problem = f"{type(scar).__name__} {scar!r} given"
                raise InputError("Findings.scars", problem, "give Scar objects")
        object.__setattr__(self, "scars", tuple(sorted(set(scars), key=_sort_key)))

    @property
    def present(self) -> bool:
        """Whether there is any scar."""
        return bool(self.scars)

    @property
    def walls(self) -> frozenset[str]:
        """The walls (of `WALLS`) that any scar touches."""
        return frozenset(wall for scar in self.scars for wall in scar.walls)

    @property
    def segments(self) -> frozenset[int]:
        """The AHA segments (1-17) that any scar touches."""
        return frozenset().union(*(scar.segments for scar in self.scars))

    @classmethod
    def from_segments(cls, segments: Iterable[int], **details) -> Findings:
        """Return scars that cover exactly these AHA segments.

        One scar if they are walls × levels, else one per group of levels.
        """
        wanted = frozenset(int(segment) for segment in segments)
        if not wanted:
            return cls()
        whole = Scar.from_segments(wanted, **details)
        if whole.segments == wanted:
            return cls((whole,))
        scars: list[Scar] = []
        for level in LEVELS:
            own = {segment for segment in wanted if _level_of(segment) == level}
            if not own:
                continue
            joined = own | scars[-1].segments if scars else own
            merged = Scar.from_segments(joined, **details)
            if scars and merged.segments == joined:  # still exact: one scar for both levels
                scars[-1] = merged
            else:
                scars.append(Scar.from_segments(own, **details))
        return cls(tuple(scars))

    def to_json(self) -> str:
        """Return one line of JSON for a manifest column: a list of scars."""
        return json.dumps([scar.to_dict() for scar in self.scars])

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """Read what `to_json` wrote. Raises InputError on anything else."""
        known = sorted(field.name for field in fields(Scar))
        example = 'write e.g. [{"walls": ["inferior"]}]'
        try:
            entries = json.loads(text)
        except (TypeError, ValueError) as error:
            problem = f"not JSON: {str(text)[:60]!r} ({error})"
            raise InputError("findings", problem, example) from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError("findings", f"{str(text)[:60]!r} is not a list of scars", example)
        unknown = sorted({name for entry in entries for name in entry} - set(known))
        if unknown:
            raise InputError("findings", f"unknown field {unknown}", f"use {', '.join(known)}")
        return cls(tuple(Scar(**entry) for entry in entries))


def _sort_key(scar: Scar) -> tuple:
    return (tuple(map(WALLS.index, scar.walls)), tuple(map(LEVELS.index, scar.levels)), repr(scar))


def _pick(rng: np.random.Generator, choices: str) -> tuple[str, ...]:
    """Draw one of "a+b 3, c 1" by weight, as a tuple of words; "-" is the empty one."""
    names, weights = zip(*(choice.rsplit(" ", 1) for choice in choices.split(", ")), strict=True)
    edges = np.cumsum([float(weight) for weight in weights])
    chosen = names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
    return () if chosen == "-" else tuple(chosen.split("+"))


# Clinical prevalence [O]: choices with their weights. Hypertrophic scars lie at the insertion
# points (both ends of the septum) or, patchy, in the thickest wall.
_DISEASES = (
    "LAD 24, RCA 20, LCx 16, myocarditis 14, dilated 9, hypertrophic 8, sarcoid 5, amyloid 4"
)
_DISEASE_WALLS = {
    "LAD": "anterior+anteroseptal 5, anterior 2, anteroseptal 2, anterior+septal 2",
    "RCA": "inferior 5, inferior+inferoseptal 4, inferior+inferolateral 2",
    "LCx": "inferolateral 4, lateral 4, anterolateral 1",
    "myocarditis": "inferolateral 6, lateral 4, inferior+inferolateral 2, anteroseptal 1",
    "dilated": "septal 6, anteroseptal 2, inferoseptal 1",
    "hypertrophic": "septal 3, anterior+anteroseptal 2, anteroseptal 1",
    "sarcoid": "septal 3, anteroseptal 2, inferolateral 2, lateral 1",
    "amyloid": "anterior+septal+inferior+lateral 1",
}
_LEVELS_BY_DEFAULT = "basal 2, mid 2, basal+mid 4, mid+apical 1, basal+mid+apical 1"
_DISEASE_LEVELS = {
    "LAD": "mid+apical 4, mid+apical+apex 3, apical+apex 2, apical 2, mid 2, basal+mid+apical 2, "
    "apex 1",
    "amyloid": "basal+mid+apical 3, basal+mid 1",
}
_DEPTHS_OF_INFARCTS = "subendocardial 3, transmural 2"
_DISEASE_DEPTHS = {
    "myocarditis": "subepicardial 5, mid-wall 2",
    "dilated": "mid-wall 1",
    "hypertrophic": "mid-wall 1",
    "sarcoid": "subepicardial 3, mid-wall 3, transmural 1",
    "amyloid": "subendocardial 3, transmural 1",
}
_DISEASE_PATTERNS = {
    "myocarditis": "- 3, patchy 2, linear 1",
    "dilated": "linear 3, - 2",
    "hypertrophic": "patchy 3, - 2",
    "sarcoid": "patchy 3, - 1",
    "amyloid": "diffuse 1",
}
_TRANSMURALITY = {"subendocardial": tuple(range(15, 80, 5)), "transmural": tuple(range(80, 105, 5))}


def _draw_details(rng: np.random.Generator, scar: Scar) -> Scar:
    """Draw percentages and no-reflow that fit the depth."""
    confluent = scar.pattern is None
    transmurality = circumference = None
    steps = _TRANSMURALITY.get(scar.depth or "")
    if steps and confluent and rng.random() < 0.6:
        transmurality = int(rng.choice(steps))
    deep = scar.depth == "transmural" or (transmurality or 0) >= 50
    infarct = scar.ischaemic or scar.aetiology is None
    no_reflow = deep and confluent and infarct and rng.random() < 0.25
    if rng.random() < 0.2 and scar.levels != ("apex",) and confluent:
        share = len(scar.walls) / 6
        circumference = max(5, 5 * round(20 * share * rng.uniform(0.6, 1.0)))
    return replace(
        scar, transmurality=transmurality, no_reflow=no_reflow, circumference=circumference
    )


def draw_scar(
    rng: np.random.Generator, prevalence: str = "clinical", aetiology: str | None = None
) -> Scar:
    """Draw one scar.

    Args:
        rng: the only source of randomness.
        prevalence: ``"clinical"`` draws a disease and its typical pattern (an infarct in a coronary
            territory, lateral subepicardial myocarditis, septal mid-wall fibrosis, …).
            ``"uniform"`` draws one to three neighbouring walls, neighbouring levels and a depth
            with equal chance and no aetiology, like the paper's controller of wall, depth and
            slice [P]; its distribution is our choice [O].
        aetiology: with ``"clinical"``, the disease to draw (``LAD`` … ``amyloid``).

    Raises:
        InputError: unknown ``prevalence`` or ``aetiology``.
    """
    if prevalence == "uniform":
        first, count = int(rng.integers(6)), int(rng.integers(1, 4))
        walls = tuple(WALLS[(first + step) % 6] for step in range(count))
        low, high = sorted(rng.integers(0, 3, size=2))
        levels = LEVELS[low : high + 1] + (("apex",) if high == 2 and rng.random() < 0.3 else ())
        return _draw_details(rng, Scar(walls, levels, str(rng.choice(DEPTHS))))
    if prevalence != "clinical":
        raise InputError("prevalence", f"unknown value {prevalence!r}", "use clinical or uniform")
    if aetiology is None:
        aetiology = _pick(rng, _DISEASES)[0]
    elif aetiology not in _DISEASE_WALLS:
        remedy = f"use one of {', '.join(_DISEASE_WALLS)}, or None"
        raise InputError("aetiology", f"cannot draw {aetiology!r}", remedy)
    walls = _pick(rng, _DISEASE_WALLS[aetiology])
    levels = _pick(rng, _DISEASE_LEVELS.get(aetiology, _LEVELS_BY_DEFAULT))
    depth = _pick(rng, _DISEASE_DEPTHS.get(aetiology, _DEPTHS_OF_INFARCTS))[0]
    pattern = _pick(rng, _DISEASE_PATTERNS.get(aetiology, "- 1"))
    if rng.random() >= 0.7:  # some reports do not name the disease
        aetiology = "ischaemic" if aetiology in ISCHAEMIC else "non-ischaemic"
    scar = Scar(walls, levels, depth, aetiology=aetiology, pattern=pattern[0] if pattern else None)
    return _draw_details(rng, scar)


def draw_findings(
    rng: np.random.Generator, prevalence: str = "clinical", positive: float = 1.0
) -> Findings:
    """Draw the findings of a study: usually one scar, sometimes two or three.

    There is none with chance ``1 - positive``. Scars of one study share no segment. In the clinical
    setting all of them are infarcts or none is.
    """
    if rng.random() >= positive:
        return Findings()
    scars = [draw_scar(rng, prevalence)]
    wanted = 1 + int(rng.random() < 0.2) + int(rng.random() < 0.05)
    for _ in range(20):
        if len(scars) == wanted:
            break
        other = draw_scar(rng, prevalence)
        overlap = Findings(tuple(scars)).segments & other.segments
        if not overlap and other.ischaemic == scars[0].ischaemic:
            scars.append(other)
    return Findings(tuple(scars))
