"""The vocabulary of scar: what a report says, in the terms of the AHA 17-segment model.

Sources: segments, Cerqueira et al., Circulation 2002, doi:10.1161/hc0402.102975; patterns of
enhancement by disease, Mahrholdt et al., European Heart Journal 2005, doi:10.1093/eurheartj/ehi258.
How often each pattern is drawn is our own choice [O]: no published cohort reports all of them.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
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
_VALUES: dict[str, Collection] = {"depth": DEPTHS, "aetiology": AETIOLOGIES, "pattern": PATTERNS}
_VALUES |= {"no_reflow": (True, False), "transmurality": range(1, 101)}
_VALUES["circumference"] = range(1, 101)
_DISEASES = tomllib.loads(Path(__file__).with_name("diseases.toml").read_text(encoding="utf-8"))

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
_RINGS = {"basal": range(1, 7), "mid": range(7, 13), "apical": (13, 14, 14, 15, 16, 16)}
_SEGMENTS = {
    (wall, level): segment
    for level, segments in _RINGS.items()
    for wall, segment in zip(WALLS, segments, strict=True)
}


def segment_of(wall: str, level: str) -> int:
    """Return the AHA segment (1-17) of a wall at a level; the apex is 17 for every wall."""
    return 17 if level == "apex" else _SEGMENTS[wall, level]


def neighbouring_walls(hit: np.ndarray) -> list[list[int]]:
    """Group affected walls, ``(6,)`` bool, into runs of neighbours around the circle."""
    walls = np.roll(np.arange(6), -hit.argmin())  # from an unaffected wall
    run = np.cumsum(~hit[walls])
    return [sorted(walls[hit[walls] & (run == n)].tolist()) for n in np.unique(run[hit[walls]])]


def _bad_value(field: str, value: object, allowed: Collection) -> InputError:
    named = "1 to 100" if isinstance(allowed, range) else ", ".join(map(str, allowed))
    return InputError(f"Scar.{field}", f"unknown value {value!r}", f"use {named}")


def _ordered(field: str, given: Any, order: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given words in canonical order, each once; "septal" becomes its walls."""
    words = WALL_WORDS if field == "walls" else {level: (level,) for level in LEVELS}
    try:
        wanted = [words[word] for word in ([given] if isinstance(given, str) else given)]
    except (TypeError, KeyError):
        raise _bad_value(field, given, words) from None
    return tuple(value for value in order if any(value in parts for parts in wanted))


@dataclass(frozen=True)
class Scar:
    """One region of hyperenhancement: walls × levels, with a depth in the myocardium.

    Values have one canonical form, so that equal regions are equal objects. Walls and levels follow
    the order of `WALLS` and `LEVELS`. A scar of the apical level alone holds both walls of its
    segments (14 is anteroseptal and inferoseptal), and a scar of the apex (17) alone no wall.
    A transmurality without a depth sets the depth. Raises InputError for an unknown value.
    """

    walls: tuple[str, ...] = ()  # some of `WALLS`, or words of `WALL_WORDS`; empty if not stated
    levels: tuple[str, ...] = ()  # some of `LEVELS`; empty if not stated
    depth: str | None = None  # one of `DEPTHS`
    transmurality: int | None = None  # percent of the wall thickness, 1-100
    aetiology: str | None = None  # one of `AETIOLOGIES`; a territory means an infarct there
    no_reflow: bool = False  # microvascular obstruction inside the scar
    pattern: str | None = None  # one of `PATTERNS`; None is an ordinary confluent scar
    circumference: int | None = None  # percent of the LV circumference, 1-100

    def __post_init__(self):
        walls = _ordered("walls", self.walls, WALLS)
        levels = _ordered("levels", self.levels, LEVELS)
        if levels == ("apex",):
            walls = ()
        elif levels and not {"basal", "mid"} & set(levels):
            touched = {_SEGMENTS[wall, "apical"] for wall in walls}
            walls = tuple(wall for wall in WALLS if _SEGMENTS[wall, "apical"] in touched)
        for name, allowed in _VALUES.items():
            if (value := getattr(self, name)) not in (None, *allowed):
                raise _bad_value(name, value, allowed)
        canonical = {"walls": walls, "levels": levels, "no_reflow": bool(self.no_reflow)}
        if self.depth is None and self.transmurality is not None:
            canonical["depth"] = "transmural" if self.transmurality > 75 else "subendocardial"
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


@dataclass(frozen=True)
class Findings:
    """All scars of a study, in canonical order, each once. No scars: no hyperenhancement."""

    scars: tuple[Scar, ...] = ()

    def __post_init__(self):
        scars = (self.scars,) if isinstance(self.scars, Scar) else tuple(self.scars)
        if not all(isinstance(scar, Scar) for scar in scars):
            raise InputError("Findings.scars", f"{self.scars!r} given", "give Scar objects")

        def place(scar: Scar) -> tuple:
            walls, levels = map(WALLS.index, scar.walls), map(LEVELS.index, scar.levels)
            return tuple(walls), tuple(levels), repr(scar)

        object.__setattr__(self, "scars", tuple(sorted(set(scars), key=place)))

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
        """Return scars that cover exactly these AHA segments (1-17); ``details``: other fields."""
        wanted = {int(segment) for segment in segments}
        if not wanted <= set(range(1, 18)):
            raise InputError("segments", f"{sorted(wanted)} given", "give AHA segments, 1 to 17")
        scars: list[Scar] = []
        for level in LEVELS:
            walls = tuple(wall for wall in WALLS if segment_of(wall, level) in wanted)
            if not walls:
                continue
            scar = Scar(walls, (level,), **details)
            if scars:  # levels are joined while the scar remains walls × levels
                joined = replace(scars[-1], levels=(*scars[-1].levels, level))
                if joined.segments == scars[-1].segments | scar.segments:
                    scar = joined
                    scars.pop()
            scars.append(scar)
        return cls(tuple(scars))

    def to_json(self) -> str:
        """Return one line of JSON for a manifest column: a list of scars, with stated fields."""
        stated = [{name: value for name, value in vars(one).items() if value} for one in self.scars]
        return json.dumps(stated)

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """Read what `to_json` wrote. Raises InputError on anything else."""
        try:
            entries = json.loads(text)
            if isinstance(entries, list):
                return cls(tuple(Scar(**entry) for entry in entries))
            raise TypeError("not a list")
        except (TypeError, ValueError) as error:
            problem = f"{str(text)[:60]!r} is not JSON for a list of scars ({error})"
            remedy = f'write e.g. [{{"walls": ["inferior"]}}]; fields: {", ".join(vars(Scar()))}'
            raise InputError("findings", problem, remedy) from None


def _pick(rng: np.random.Generator, aspect: str, disease: str = "default") -> tuple[str, ...]:
    """Draw one of "a+b 3, c 1" by weight, as a tuple of words; "-" is the empty tuple."""
    choices = (_DISEASES[aspect].get(disease) or _DISEASES[aspect]["default"]).split(", ")
    names, weights = zip(*(choice.rsplit(" ", 1) for choice in choices), strict=True)
    edges = np.cumsum([float(weight) for weight in weights])
    chosen = names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
    return () if chosen == "-" else tuple(chosen.split("+"))


_TRANSMURALITY = {"subendocardial": range(15, 80, 5), "transmural": range(80, 105, 5)}


def draw_scar(rng: np.random.Generator, prevalence: str = "clinical") -> Scar:
    """Draw one scar, as ``diseases.toml`` says.

    ``clinical`` draws a disease and its typical pattern; ``uniform`` one to three neighbouring
    walls, neighbouring levels and a depth, like the paper's controller of wall, depth and slice
    [P]; its distribution is our choice [O].
    """
    if prevalence not in ("clinical", "uniform"):
        raise InputError("prevalence", f"unknown value {prevalence!r}", "use clinical or uniform")
    (kind,) = _pick(rng, "disease", prevalence)
    walls, levels, depth, pattern = (
        _pick(rng, aspect, kind) for aspect in ("walls", "levels", "depth", "pattern")
    )
    aetiology = None if kind == "uniform" else kind
    if aetiology and rng.random() >= 0.7:  # some reports do not name the disease
        aetiology = "ischaemic" if aetiology in ISCHAEMIC else "non-ischaemic"
    scar = Scar(walls, levels, depth[0], aetiology=aetiology, pattern="".join(pattern) or None)
    if scar.pattern:  # percentages and no-reflow are of confluent scars
        rng.random()
        return scar
    transmurality = circumference = None
    if scar.depth in _TRANSMURALITY and rng.random() < 0.6:
        transmurality = int(rng.choice(_TRANSMURALITY[scar.depth]))
    deep = scar.depth == "transmural" or (transmurality or 0) >= 50
    no_reflow = deep and aetiology in (None, *ISCHAEMIC) and rng.random() < 0.25
    if rng.random() < 0.2 and scar.levels != ("apex",):
        circumference = max(5, 5 * round(20 * (len(scar.walls) / 6) * rng.uniform(0.6, 1.0)))
    scar = replace(scar, transmurality=transmurality, circumference=circumference)
    return replace(scar, no_reflow=no_reflow)


def draw_findings(
    rng: np.random.Generator, prevalence: str = "clinical", positive: float = 1.0
) -> Findings:
    """Draw the findings of a study: no scar with chance ``1 - positive``, else one to three.

    Scars of one study share no segment. All of them are infarcts, or none is.
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
