"""Who tells where scar is: the masks where scar was drawn, the reports where only the heart was outlined."""

import pandas as pd
import pytest
from cohort_files import ring, save, write_own, write_table
from command_line import lgekit

from lgekit.data.readers import iterate_studies, read_cohort
from lgekit.findings import WALLS

ILL, WELL = "Subendocardial late enhancement of the inferior wall.", "No late enhancement."


def outlined(root, reports, scar=()):
    """A cohort whose masks have codes 1, 2 and 5, but for those of the studies with these numbers."""
    rows = write_own(root, len(reports))
    for number, (row, report) in enumerate(zip(rows, reports, strict=True)):
        save(root / row["labels"], ring(scar=number in scar))
        row |= {"report": report, "split": "", "report_source": "" if report else "none"}
    return f"manifest:{write_table(root, rows)}"


def test_masks_that_only_outline_the_heart_do_not_overrule_the_reports(tmp_path):
    spec = outlined(tmp_path, [ILL, WELL, ILL, WELL, "LVEF 60 %.", ""])
    cohort = read_cohort(spec)
    assert cohort.manifest["scar"].tolist()[:4] == [True, False, True, False]
    assert cohort.manifest["scar"].isna().tolist()[4:] == [
        True,
        True,
    ]  # silence is not a report of none
    assert cohort.studies[0]["findings"].walls == {"inferior"}
    assert all(study.label_map is not None for study in cohort.studies)
    one_by_one = list(iterate_studies(spec))
    assert [study["findings"] for study in one_by_one] == [
        study["findings"] for study in cohort.studies
    ]
    done = lgekit("check", spec)
    assert (
        done.returncode == 0
        and "scar in 2, none in 2; masks of 6, in none of which scar is drawn" in done.stdout
    )


def test_no_report_is_written_from_an_outline(tmp_path):
    spec = outlined(tmp_path, [ILL, WELL, ""])
    table = tmp_path / "manifest.csv"
    table.write_text(table.read_text().replace(",none", ",masks"))
    cohort = read_cohort(spec)
    assert cohort.studies[2]["report"] == "" and cohort.studies[2]["findings"] is None


@pytest.mark.parametrize(
    ("reports", "scar", "found"),
    [
        ([ILL, WELL, ILL], {1}, [False, True, False]),  # scar was drawn somewhere: the masks tell
        (
            ["Kein LGE.", WELL, WELL],
            set(),
            [False, False, False],
        ),  # no report speaks of scar in English
        (
            [WELL, WELL, WELL],
            set(),
            [False, False, False],
        ),  # nothing contradicts masks without scar
        (["", "", ""], set(), [None, None, None]),
    ],
)
def test_elsewhere_the_masks_tell(tmp_path, reports, scar, found):
    spec = outlined(tmp_path, reports, scar)
    for studies in (read_cohort(spec).studies, list(iterate_studies(spec))):
        assert [
            study["findings"].present if study["findings"] else None for study in studies
        ] == found
    assert "in none of which" not in lgekit("check", spec).stdout


def test_a_score_against_reports_says_nothing_of_slices(tmp_path):
    spec = outlined(tmp_path, [ILL, WELL, ILL, WELL])
    names = [study["study_id"] for study in read_cohort(spec).studies]
    table = pd.DataFrame(
        {"study_id": names, "p_lge": [0.7, 0.2, 0.7, 0.2], "slice_weights": "[0.1, 0.2, 0.3, 0.4]"}
    )
    table.assign(**{f"p_{wall}": 0.5 for wall in WALLS}, caption="").to_csv(
        tmp_path / "out.csv", index=False
    )
    done = lgekit("score", tmp_path / "out.csv", spec)
    assert done.returncode == 0, done.stderr
    shown = {
        line.split()[0]: line.split()[1]
        for line in done.stdout.splitlines()
        if line.split()[0].startswith("auc")
    }
    assert float(shown["auc"]) == 1 and "auc_slices" not in shown
