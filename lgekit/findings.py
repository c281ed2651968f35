"""The vocabulary of scar: what a report says of it, in the terms of the AHA 17-segment model.

Sources: segments and coronary territories, Cerqueira et al., Circulation 2002, doi:10.1161/hc0402.102975; patterns of
enhancement by disease, Mahrholdt et al., European Heart Journal 2005, doi:10.1093/eurheartj/ehi258. How often each
pattern is drawn is our own choice [O]: no published cohort reports all of them together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
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

# Words that name a wall in reports. "Septal" and "lateral" are two walls each at the basal and mid level. "Posterior"
# is read as inferolateral: the wall that older echo and CMR reports call so lies opposite the anterior septum.
WALL_WORDS: dict[str, tuple[str, ...]] = {
    **{wall: (wall,) for wall in WALLS},
    "septal": ("anteroseptal", "inferoseptal"),
    "lateral": ("inferolateral", "anterolateral"),
    "posterior": ("inferolateral",),
    "posterolateral": ("inferolateral",),
    "posteroseptal": ("inferoseptal",),
    "inferoposterior": ("inferior", "inferolateral"),
}
# Apical walls: segments 13-16 are anterior, septal, inferior, lateral.
_APICAL = dict(zip(WALLS, (13, 14, 14, 15, 16, 16), strict=True))
# Coronary territories (Cerqueira 2002).
TERRITORIES: dict[str, frozenset[int]] = {
    "LAD": frozenset({1, 2, 7, 8, 13, 14, 17}),
    "RCA": frozenset({3, 4, 9, 10, 15}),
    "LCx": frozenset({5, 6, 11, 12, 16}),
}


def segment_of(wall: str, level: str) -> int:
    """AHA segment (1-17) of a wall at a level; the apex is 17 whatever the wall."""
    if level == "apex":
        return 17
    if level == "apical":
        return _APICAL[wall]
    return WALLS.index(wall) + (1 if level == "basal" else 7)


def _segment_parts(segment: int) -> tuple[str, tuple[str, ...]]:
    """Level of a segment, and the walls that lie in it."""
    if segment == 17:
        return "apex", ()
    if segment >= 13:
        return "apical", tuple(wall for wall in WALLS if _APICAL[wall] == segment)
    return ("basal", "mid")[(segment - 1) // 6], (WALLS[(segment - 1) % 6],)


def _ordered(values: Iterable[str] | str, allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The values as a tuple in the order of ``allowed``, each once; "septal" and the like become their walls."""
    if not isinstance(values, Iterable):
        raise InputError(
            f"Scar.{what}",
            f"{values!r} is not a list",
            f"give a list of some of {', '.join(allowed)}",
        )
    given = [values] if isinstance(values, str) else list(values)
    for value in given:
        if not isinstance(value, str) or not (
            value in allowed or (what == "walls" and value in WALL_WORDS)
        ):
            raise InputError(
                f"Scar.{what}", f"unknown value {value!r}", f"use some of {', '.join(allowed)}"
            )
    wanted = {part for value in given for part in WALL_WORDS.get(value, (value,))}
    return tuple(value for value in allowed if value in wanted)


def _percentage(value: Any, what: str) -> int | None:
    if value is None:
        return None
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    if not number or not 1 <= value <= 100 or value != int(value):
        raise InputError(
            f"Scar.{what}", f"{value!r} is not a percentage", "use a whole number, 1-100, or None"
        )
    return int(value)


@dataclass(frozen=True)
class Scar:
    """One region of hyperenhancement: walls × levels, with a depth in the wall.

    Values come in one canonical form, so that equal regions are equal objects: walls and levels in the order of `WALLS`
    and `LEVELS`; a scar at the apical level alone holds both walls of its segments (14 is anteroseptal and
    inferoseptal); a scar of the apex (17) alone has no wall; a transmurality without a depth gives the depth.

    Attributes:
        walls: some of `WALLS`, or a word of `WALL_WORDS`; empty where the report does not say (or for the apex alone).
        levels: some of `LEVELS`; empty where not stated.
        depth: one of `DEPTHS`, or None.
        transmurality: percent of the wall's thickness, 1-100, or None.
        aetiology: one of `AETIOLOGIES` (a coronary territory means an infarct there), or None.
        no_reflow: microvascular obstruction inside the scar.
        pattern: one of `PATTERNS`; None is an ordinary confluent scar.
        circumference: percent of the LV circumference that the scar covers, 1-100, or None.

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
        levels, walls = (
            _ordered(self.levels, LEVELS, "levels"),
            _ordered(self.walls, WALLS, "walls"),
        )
        if levels == ("apex",):
            walls = ()
        elif levels and not {"basal", "mid"} & set(
            levels
        ):  # no finer walls than segments 13-16 tell
            touched = {_APICAL[wall] for wall in walls}
            walls = tuple(wall for wall in WALLS if _APICAL[wall] in touched)
        for name, allowed in (("depth", DEPTHS), ("aetiology", AETIOLOGIES), ("pattern", PATTERNS)):
            value, options = getattr(self, name), ", ".join(allowed)
            if value is not None and value not in allowed:
                raise InputError(
                    f"Scar.{name}", f"unknown value {value!r}", f"use one of {options}, or None"
                )
        if self.no_reflow not in (True, False):
            raise InputError(
                "Scar.no_reflow", f"{self.no_reflow!r} is not true or false", "use true or false"
            )
        percent, depth = _percentage(self.transmurality, "transmurality"), self.depth
        if depth is None and percent is not None:
            depth = "transmural" if percent > 75 else "subendocardial"
        around = _percentage(self.circumference, "circumference")
        canonical = {
            "walls": walls,
            "levels": levels,
            "depth": depth,
            "no_reflow": bool(self.no_reflow),
        }
        for name, value in {**canonical, "transmurality": percent, "circumference": around}.items():
            object.__setattr__(self, name, value)

    @property
    def segments(self) -> frozenset[int]:
        """AHA segments 1-17. An unstated level means all three rings, an unstated wall all walls; neither, none."""
        if not self.walls and not self.levels:
            return frozenset()
        levels = self.levels or LEVELS[:3]
        return frozenset(
            segment_of(wall, level) for wall, level in product(self.walls or WALLS, levels)
        )

    @property
    def ischaemic(self) -> bool:
        """Whether the stated aetiology is an infarct."""
        return self.aetiology in ISCHAEMIC

    @classmethod
    def from_segments(cls, segments: Iterable[int], **details) -> Scar:
        """The smallest walls × levels that holds these AHA segments (1-17); ``details`` are the other fields.

        It can hold more than given (basal inferior + mid inferolateral → both walls at both levels);
        `Findings.from_segments` splits instead.
        """
        levels: set[str] = set()
        walls: set[str] = set()
        segments = {int(segment) for segment in segments}
        if not segments or min(segments) < 1 or max(segments) > 17:
            raise InputError(
                "segments",
                f"{sorted(segments)} given",
                "give at least one AHA segment from 1 to 17",
            )
        for segment in sorted(
            segments
        ):  # apical segments name a wall only where basal and mid ones have not
            level, own = _segment_parts(segment)
            levels.add(level)
            if not walls & set(own):
                walls |= set(own)
        return cls(tuple(walls), tuple(levels), **details)

    def to_dict(self) -> dict[str, Any]:
        """The stated fields only, JSON-ready."""
        stated = {
            name: value for name, value in asdict(self).items() if value not in (None, (), False)
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in stated.items()
        }


scar_from_segments = Scar.from_segments


@dataclass(frozen=True)
class Findings:
    """All scars of a study, in canonical order, each once; none means that there is no hyperenhancement."""

    scars: tuple[Scar, ...] = ()

    def __post_init__(self):
        scars = (self.scars,) if isinstance(self.scars, Scar) else tuple(self.scars)
        for scar in scars:
            if not isinstance(scar, Scar):
                raise InputError(
                    "Findings.scars", f"{type(scar).__name__} {scar!r} given", "give Scar objects"
                )
        object.__setattr__(self, "scars", tuple(sorted(set(scars), key=_sort_key)))

    @property
    def present(self) -> bool:
        """Whether there is any scar."""
        return bool(self.scars)

    @property
    def walls(self) -> frozenset[str]:
        """The AHA walls (of `WALLS`) that any scar touches."""
        return frozenset(wall for scar in self.scars for wall in scar.walls)

    @property
    def segments(self) -> frozenset[int]:
        """AHA segments (1-17) that any scar touches."""
        return frozenset().union(*(scar.segments for scar in self.scars))

    @classmethod
    def from_segments(cls, segments: Iterable[int], **details) -> Findings:
        """Scars that cover exactly these AHA segments: one if they are walls × levels, else one per group of levels."""
        segments = frozenset(int(segment) for segment in segments)
        if not segments:
            return cls()
        whole = Scar.from_segments(segments, **details)
        if whole.segments == segments:
            return cls((whole,))
        by_level = {
            level: {s for s in segments if _segment_parts(s)[0] == level} for level in LEVELS
        }
        scars: list[Scar] = []
        for own in filter(
            None, by_level.values()
        ):  # join a level to the scar before it where that stays exact
            joined = Scar.from_segments(scars[-1].segments | own, **details) if scars else None
            if joined and joined.segments == scars[-1].segments | own:
                scars[-1] = joined
            else:
                scars.append(Scar.from_segments(own, **details))
        return cls(tuple(scars))

    def to_json(self) -> str:
        """One line of JSON, for a manifest column: a list of scars with their stated fields."""
        return json.dumps([scar.to_dict() for scar in self.scars])

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """The inverse of `to_json`. Raises InputError on anything else."""
        known, example = (
            {field.name for field in fields(Scar)},
            'write e.g. [{"walls": ["inferior"]}]',
        )
        try:
            entries = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InputError(
                "findings", f"not JSON: {str(text)[:60]!r} ({error})", example
            ) from None
        if not isinstance(entries, list) or not all(
            isinstance(entry, Mapping) for entry in entries
        ):
            raise InputError("findings", f"{str(text)[:60]!r} is not a list of scars", example)
        for entry in entries:
            if unknown := set(entry) - known:
                raise InputError(
                    "findings",
                    f"unknown field {sorted(unknown)}",
                    f"use {', '.join(sorted(known))}",
                )
        return cls(tuple(Scar(**entry) for entry in entries))


def _sort_key(scar: Scar) -> tuple:
    return (tuple(map(WALLS.index, scar.walls)), tuple(map(LEVELS.index, scar.levels)), repr(scar))


def _pick(rng: np.random.Generator, choices: str) -> tuple[str, ...]:
    """One of "a+b 3, c 1", by weight, as a tuple of words; "-" is the empty one."""
    names, weights = zip(*(choice.rsplit(" ", 1) for choice in choices.split(", ")), strict=True)
    edges = np.cumsum([float(weight) for weight in weights])
    chosen = names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
    return () if chosen == "-" else tuple(chosen.split("+"))


# Clinical prevalence [O]. Per disease: weight; then walls, levels, depths and patterns, each choice with its weight.
_INFARCT = ("subendocardial 3, transmural 2", "- 1")
_RINGS = "basal 2, mid 2, basal+mid 4, mid+apical 1, basal+mid+apical 1"
_TOWARDS_APEX = (
    "mid+apical 4, mid+apical+apex 3, apical+apex 2, apical 2, mid 2, basal+mid+apical 2, apex 1"
)
_DISEASES: dict[str, tuple[float, str, str, str, str]] = {
    "LAD": (
        24,
        "anterior+anteroseptal 5, anterior 2, anteroseptal 2, anterior+septal 2",
        _TOWARDS_APEX,
        *_INFARCT,
    ),
    "RCA": (20, "inferior 5, inferior+inferoseptal 4, inferior+inferolateral 2", _RINGS, *_INFARCT),
    "LCx": (16, "inferolateral 4, lateral 4, anterolateral 1", _RINGS, *_INFARCT),
    "myocarditis": (
        *(14, "inferolateral 6, lateral 4, inferior+inferolateral 2, anteroseptal 1", _RINGS),
        *("subepicardial 5, mid-wall 2", "- 3, patchy 2, linear 1"),
    ),
    "dilated": (
        9,
        "septal 6, anteroseptal 2, inferoseptal 1",
        _RINGS,
        "mid-wall 1",
        "linear 3, - 2",
    ),
    # at the insertion points (both ends of the septum), or patchy in the thickest wall
    "hypertrophic": (
        8,
        "septal 3, anterior+anteroseptal 2, anteroseptal 1",
        _RINGS,
        "mid-wall 1",
        "patchy 3, - 2",
    ),
    "sarcoid": (
        *(5, "septal 3, anteroseptal 2, inferolateral 2, lateral 1", _RINGS),
        *("subepicardial 3, mid-wall 3, transmural 1", "patchy 3, - 1"),
    ),
    "amyloid": (
        *(4, "anterior+septal+inferior+lateral 1", "basal+mid+apical 3, basal+mid 1"),
        *("subendocardial 3, transmural 1", "diffuse 1"),
    ),
}
_TRANSMURALITY = {"subendocardial": tuple(range(15, 80, 5)), "transmural": tuple(range(80, 105, 5))}


def _draw_details(rng: np.random.Generator, scar: Scar) -> Scar:
    """Percentages and no-reflow that fit the depth: no-reflow only in large subendocardial or transmural scars."""
    steps = _TRANSMURALITY.get(scar.depth or "")
    percent = (
        int(rng.choice(steps)) if steps and scar.pattern is None and rng.random() < 0.6 else None
    )
    deep = scar.depth == "transmural" or (percent or 0) >= 50
    no_reflow = (
        deep
        and scar.pattern is None
        and (scar.ischaemic or scar.aetiology is None)
        and rng.random() < 0.25
    )
    share = len(scar.walls) / 6
    around = rng.random() < 0.2 and scar.levels != ("apex",) and scar.pattern is None
    circumference = max(5, 5 * round(20 * share * rng.uniform(0.6, 1.0))) if around else None
    return replace(
        scar, transmurality=percent, no_reflow=bool(no_reflow), circumference=circumference
    )


def draw_scar(
    rng: np.random.Generator, prevalence: str = "clinical", aetiology: str | None = None
) -> Scar:
    """Draw one scar.

    Args:
        rng: the only source of chance.
        prevalence: ``"clinical"`` draws a disease and a pattern typical of it (an infarct in a coronary territory,
            lateral subepicardial myocarditis, septal mid-wall fibrosis, …); ``"uniform"`` draws one to three
            neighbouring walls, neighbouring levels and a depth with equal chance, without an aetiology, like the
            paper's controller of wall, depth and slice [P]; its distribution is our choice [O].
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
        aetiology = _pick(
            rng, ", ".join(f"{name} {disease[0]}" for name, disease in _DISEASES.items())
        )[0]
    elif aetiology not in _DISEASES:
        raise InputError(
            "aetiology", f"cannot draw {aetiology!r}", f"use one of {', '.join(_DISEASES)}, or None"
        )
    walls, levels, depth, pattern = (_pick(rng, choices) for choices in _DISEASES[aetiology][1:])
    scar = Scar(
        walls, levels, depth[0], aetiology=aetiology, pattern=pattern[0] if pattern else None
    )
    stated = (
        scar
        if rng.random() < 0.7
        else replace(scar, aetiology="ischaemic" if scar.ischaemic else "non-ischaemic")
    )
    return _draw_details(rng, stated)


def draw_findings(
    rng: np.random.Generator, prevalence: str = "clinical", positive: float = 1.0
) -> Findings:
    """Draw the findings of a study: one scar in most, two or three in some, none with chance ``1 - positive``.

    Scars of one study share no segment; in the clinical setting they are all infarcts or all not.
    """
    if rng.random() >= positive:
        return Findings()
    scars = [draw_scar(rng, prevalence)]
    wanted = 1 + int(rng.random() < 0.2) + int(rng.random() < 0.05)
    for _ in range(20):
        if len(scars) == wanted:
            break
        other = draw_scar(rng, prevalence)
        taken = frozenset().union(*(scar.segments for scar in scars))
        if not taken & other.segments and other.ischaemic == scars[0].ischaemic:
            scars.append(other)
    return Findings(tuple(scars))
