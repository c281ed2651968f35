"""Texts of many kinds that are far longer than reports."""

import random
from functools import lru_cache

WALLS = "anterior anteroseptal inferoseptal inferior inferolateral anterolateral".split()
DEPTHS = "subendocardial mid-wall subepicardial transmural".split()
REPEATED = {
    "findings": "transmural late enhancement of the basal septum and apex. ",
    "one sentence": "no oedema, no effusion, no scar of the anterior wall, ",
    "one clause": "likely scar in the inferior wall artefact ",
    "nots": "not ",
    "fields": "LGE: present ",
    "field and history": "LGE: none. Mid-wall scar of the septum in 2019. ",
    "short lines": "septum\n",
    "shortest lines": "a\n",
    "wrapped words": "late\nenhancement\nof the\n",
    "ranges": "LGE in segments 1-5 and 7-11, ",
    "percentages": "basal inferior 50 %, ",
    "table": "anterior | none | 50 %\n",
    "row": "anterior | none | ",
    "semicolons": "1;1;0\n",
    "columns": "anterior    none    50 %\n",
    "boxes": "Late enhancement: [ ] no [x] yes\n",
    "unicode boxes": "☐ septum ☒ apex ",
    "drawn table": "│ septum │ yes │\n├────┼────┤\n",
    "encoded": "scar of the apex\\.br\\",
    "letters": "a",
    "spaces": " ",
    "lines": "\n",
    "dashes": "- ",
    "brackets": "(LGE ",
    "questions": "scar of the apex? ",
}


@lru_cache(maxsize=1)
def long_texts(size: int) -> dict[str, str]:
    """Return texts of a size by kind; the sentences of those called "different" hardly repeat."""
    rnd = random.Random(0)
    vocabulary = ["".join(rnd.choices("abcdefghiklmnoprstuvw", k=7)) for _ in range(9000)]
    ends = [", ", "\n", "; ", ". ", " with ", " except ", " (", ") ", ": ", " | ", " 1-9 ", " no "]

    def words() -> str:
        return " ".join(rnd.choices(vocabulary, k=5))

    def finding() -> str:
        place = f"{rnd.choice(DEPTHS)} scar of the {rnd.choice(WALLS)} wall"
        return f"{words()}: {place}, {rnd.randint(1, 100)} %"

    different = {
        "different words": lambda: f"{words()} {words()}. ",
        "different findings": lambda: f"{finding()}. ",
        "different lines": lambda: f"{finding()}\n",
        "different denials": lambda: f"no {finding()} and ",
        "different cells": lambda: f"{finding()} | ",
        "mixture": lambda: "".join(f"{rnd.choice(WALLS)}{rnd.choice(ends)}" for _ in range(5)),
    }
    texts = {kind: piece * (size // len(piece)) for kind, piece in REPEATED.items()}
    for kind, piece in different.items():
        texts[kind] = "".join(piece() for _ in range(size // 50))[:size]
    return texts
