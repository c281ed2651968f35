"""How good texts are: clinical F1 of what they say, and BLEU of the words they say it in, with intervals by patient."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lgekit.findings import WALLS, Findings
from lgekit.metrics import interval


def clinical_f1(
    truth: Sequence[Findings], read: Sequence[Findings], patients: Sequence[str], seed: int = 0
) -> dict[str, dict]:
    """Clinical F1 of texts against the truth: ``presence_f1`` over studies, ``walls_f1`` pooled over study × wall.

    A true scar in no known wall says nothing of walls: its study counts for presence alone.

    Args:
        truth: of each study.
        read: what its text says.
        patients: the patient of each study.
        seed: of the bootstrap.

    Returns:
        For each of the two ``{"value", "low", "high"}``; NaN where neither truth nor texts hold scar.
    """

    def f1(of_truth: list[list[bool]], of_texts: list[list[bool]], names: Sequence[str]) -> dict:
        """Of a label a column; 2 TP / (2 TP + FP + FN), van Rijsbergen 1979, ch. 7."""
        labels = len(of_truth[0]) if of_truth else 1
        expected, found = (np.array(rows, bool).reshape(-1, labels) for rows in (of_truth, of_texts))
        both, either = (expected & found).sum(1), expected.sum(1) + found.sum(1)  # (studies,)
        return interval(lambda weights: _ratio(2 * (weights @ both), weights @ either), names, seed)

    placed = [index for index, findings in enumerate(truth) if findings.walls or not findings.present]
    present = [[[findings.present] for findings in texts] for texts in (truth, read)]
    walls = [[[wall in texts[index].walls for wall in WALLS] for index in placed] for texts in (truth, read)]
    return {
        "presence_f1": f1(present[0], present[1], patients),
        "walls_f1": f1(walls[0], walls[1], [patients[index] for index in placed]),
    }


def bleu(written: Sequence[str], references: Sequence[str], patients: Sequence[str], seed: int = 0) -> dict:
    """BLEU-4 of texts against one reference each, 0 to 1, counted over all texts together (Papineni 2002, ACL,
    doi:10.3115/1073083.1073135); lower case, punctuation marks are words of their own. NaN without texts.

    It counts shared runs of words: "no scar" beside "scar" costs little, which is why the clinical F1 stands first.

    Args:
        written: the texts.
        references: one each.
        patients: the patient of each text.
        seed: of the bootstrap, in which a text drawn twice counts twice.

    Returns:
        ``{"value", "low", "high"}``.
    """
    from nltk.translate.bleu_score import modified_precision

    counts, lengths = [], []
    for text, reference in zip(map(_words, written), map(_words, references), strict=True):
        precisions = [modified_precision([reference], text, n) for n in range(1, 5)]
        counts.append([(precision.numerator, precision.denominator) for precision in precisions])
        lengths.append((len(text), len(reference)))
    # (texts, 4 lengths of runs, shared and all) and (texts, written and wanted)
    shared, runs = np.moveaxis(np.array(counts, float).reshape(-1, 4, 2), -1, 0)
    own, wanted = np.array(lengths, float).reshape(-1, 2).T

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):  # no run of four in common: the score is 0, and that is the answer
            mean = np.log(_ratio(weights @ shared, weights @ runs)).mean(1)  # (resamples, 4) → (resamples,)
        longer = _ratio(weights @ wanted, weights @ own)  # NaN where nothing was written at all: no run is shared then
        return np.exp(mean + np.minimum(0, 1 - np.nan_to_num(longer)))

    return interval(statistic, patients, seed)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
