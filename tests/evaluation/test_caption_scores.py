"""Clinical F1 and BLEU of captions, by hand and against NLTK, and their intervals by patient."""

import numpy as np
import pytest

from lgekit.evaluation.scores import bleu, clinical_f1
from lgekit.findings import Findings, Scar

REFERENCE, WRITTEN = "the scar is in the wall", "the scar is in a wall"


def scar(*walls):
    return Findings((Scar(walls=walls, levels=("mid",), depth="subendocardial"),))


def test_clinical_f1_by_hand():
    inferior, both = scar("inferior"), scar("inferior", "inferolateral")
    scores = clinical_f1([inferior, both, Findings()], [both, Findings(), Findings()], list("abc"))
    assert scores["presence_f1"]["value"] == pytest.approx(2 / 3)  # one hit, one miss
    assert scores["walls_f1"]["value"] == pytest.approx(2 * 1 / (3 + 2))
    more = clinical_f1(
        [inferior, both, Findings(), scar()], [both, Findings(), Findings(), both], list("abcd")
    )
    assert more["walls_f1"] == scores["walls_f1"]  # a scar of no known wall says nothing of walls
    assert more["presence_f1"]["value"] == pytest.approx(4 / 5)
    assert np.isnan(clinical_f1([], [], [])["walls_f1"]["value"])
    assert np.isnan(clinical_f1([Findings()], [Findings()], ["a"])["presence_f1"]["value"])


def test_the_interval_is_over_patients():
    """Two patients, one all right and one all wrong: the resamples' F1 is 0, 2/3 or 1, whatever the number of studies;
    perfect captions leave no width."""
    truth = [scar("inferior")] * 20
    read = [scar("inferior")] * 10 + [Findings()] * 10
    by_patient = clinical_f1(truth, read, ["a"] * 10 + ["b"] * 10)["presence_f1"]
    assert by_patient == {"value": pytest.approx(2 / 3), "low": 0, "high": 1}
    by_study = clinical_f1(truth, read, [str(n) for n in range(20)])["presence_f1"]
    assert 0.3 < by_study["low"] < by_study["value"] < by_study["high"] < 0.95
    assert clinical_f1(truth, truth, list("abcdefghijklmnopqrst"))["walls_f1"] == {
        "value": 1,
        "low": 1,
        "high": 1,
    }
    assert clinical_f1(truth, read, ["a"] * 10 + ["b"] * 10, seed=3) == clinical_f1(
        truth[::-1], read[::-1], ["b"] * 10 + ["a"] * 10, seed=3
    )


def test_bleu_by_hand():
    """Papineni's brevity penalty and clipped counts: 5/6 words, 3/5 pairs, 2/4 triples, 1/3 runs of four; as long."""
    assert bleu([WRITTEN], [REFERENCE], ["a"])["value"] == pytest.approx(
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )
    assert bleu([REFERENCE], [REFERENCE], ["a"]) == {"value": 1, "low": 1, "high": 1}
    short = "the scar is in"  # all runs right, but four words where six are wanted
    assert bleu([short], [REFERENCE], ["a"])["value"] == pytest.approx(np.exp(1 - 6 / 4))
    # counts of both together: 9/10, 6/8, 4/6, 2/4; ten words for twelve
    expected = np.exp(1 - 12 / 10) * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25
    both = bleu([WRITTEN, short], [REFERENCE] * 2, ["a", "b"])
    assert both["value"] == pytest.approx(expected)
    assert both["low"] == pytest.approx(
        bleu([WRITTEN], [REFERENCE], ["a"])["value"]
    )  # one patient drawn twice
    assert both["high"] == pytest.approx(np.exp(1 - 6 / 4))
    assert bleu(["scar"], [REFERENCE], ["a"])["value"] == 0
    assert bleu([""], [REFERENCE], ["a"])["value"] == bleu([""], [""], ["a"])["value"] == 0
    assert np.isnan(bleu([], [], [])["value"])


def test_bleu_is_nltks():
    from nltk.translate.bleu_score import corpus_bleu

    generator = np.random.default_rng(0)
    words = np.array("no scar in the wall of inferior septum is seen".split())
    texts = [" ".join(generator.choice(words, size=generator.integers(4, 14))) for _ in range(60)]
    written, references = (
        texts[:30],
        [f"{a} {b}" for a, b in zip(texts[:30], texts[30:], strict=True)],
    )
    theirs = corpus_bleu(
        [[reference.split()] for reference in references], [text.split() for text in written]
    )
    assert bleu(written, references, [str(n) for n in range(30)])["value"] == pytest.approx(theirs)
