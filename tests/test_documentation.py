"""What the documents tell a reader to type exists: commands and options of lgekit, targets and settings of make."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import typer.main
import yaml

from lgekit.cli import app

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "notebooks" / "site" / "results.md"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "notebooks" / "site").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ISSUE_FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
SETTINGS = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")  # of files, not of pages elsewhere
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code_lines(text: str) -> list[str]:
    """Lines of code blocks and words in code marks, without comments."""
    pieces = [piece.strip("`") for piece in CODE.findall(text)]
    return [line.split("#")[0].strip() for piece in pieces for line in piece.splitlines()]


def unknown_to_lgekit(line: str) -> list[str]:
    """Commands and options in a line ``lgekit …`` that the command line does not have."""
    words = re.match(r"(?:\S*/)?lgekit (.*)", line)
    if not words:
        return []
    command, unknown = typer.main.get_command(app), []
    for word in words[1].split():
        if hasattr(command, "commands"):
            if word in command.commands:
                command = command.commands[word]
                continue
            if re.fullmatch(r"[a-z]+", word):
                return [word]
        if re.fullmatch(r"--[a-z-]+", word) and word not in {
            option for p in command.params for option in p.opts
        }:
            unknown.append(word)
    return unknown


def unknown_to_make(line: str) -> list[str]:
    """Targets and settings in a line ``make …`` that the Makefile does not have."""
    if not line.startswith("make "):
        return []
    words = [word for word in line.split()[1:] if not word.startswith("-")]
    named = [word.partition("=")[0] for word in words if re.fullmatch(r"[A-Z_]+=.*|[a-z-]+", word)]
    return [name for name in named if name not in TARGETS | SETTINGS]


@pytest.mark.parametrize("path", [*DOCUMENTS, *NOTEBOOKS], ids=lambda path: path.name)
def test_every_command_that_a_document_names_exists(path):
    lines = code_lines(text_of(path))
    assert not [
        (line, name) for line in lines for name in unknown_to_lgekit(line) + unknown_to_make(line)
    ]


@pytest.mark.parametrize("path", [*DOCUMENTS, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    assert not [name for name in LINK.findall(text_of(path)) if not (path.parent / name).exists()]


def test_the_readme_names_every_command_and_nearly_every_target():
    lines = "\n".join(code_lines(text_of(ROOT / "README.md")))
    for command in typer.main.get_command(app).commands:
        assert re.search(rf"lgekit {command}\b|make {command}\b", lines), command
    for target in TARGETS - {"help", "lint"}:
        assert f"make {target}" in lines, target


def test_what_does_not_exist_is_found():
    block = (
        "lgekit grid sing FILE  # a comment\nlgekit fit SPEC model --fast\nmake workbook SPEED=9"
    )
    lines = code_lines(f"`lgekit dance`, `make tea`\n```\n{block}\n```")
    found = [name for line in lines for name in unknown_to_lgekit(line) + unknown_to_make(line)]
    assert sorted(found) == ["--fast", "SPEED", "dance", "sing", "tea"]
    assert unknown_to_lgekit("lgekit grid run FILE --only full --dry-run") == []
    assert unknown_to_make("make workbook SIZE=smoke") == []


@pytest.mark.parametrize(
    "path", [p for p in ISSUE_FORMS if p.stem != "config"], ids=lambda path: path.stem
)
def test_issue_forms_are_whole(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    assert form["name"] and form["description"]
    kinds = [field["type"] for field in form["body"]]
    assert (
        set(kinds) <= {"markdown", "input", "textarea", "checkboxes", "dropdown"}
        and len(kinds) >= 4
    )
    labels = [field["attributes"]["label"] for field in form["body"] if field["type"] != "markdown"]
    assert len(labels) == len(set(labels))


def test_the_lesson_plan_knows_every_notebook_and_its_exercises():
    plan = text_of(ROOT / "notebooks" / "site" / "lesson_plan.md")
    for path in NOTEBOOKS:
        section = re.search(rf"^### {path.stem[:2]} · .+?(?=^##)", plan, re.MULTILINE | re.DOTALL)
        assert section, path.stem
        for part in ("Goals", "You should see", "Exercises"):
            assert f"\n{part}\n:" in section[0], (path.stem, part)
        named = re.findall(r"\*\*Exercise \d\*\* \((★+)", text_of(path))
        assert re.findall(r"\d \((★+)\)", section[0]) == named, (
            f"{path.stem}: difficulty of the exercises"
        )


def test_what_the_lesson_plan_promises_is_what_the_kept_tables_hold():
    plan, figures = text_of(ROOT / "notebooks" / "site" / "lesson_plan.md"), ROOT / "figures"
    hearts = pd.read_csv(figures / "insertion_point_error.csv")
    assert f"median Dice of the myocardium of {hearts['dice_myocardium'].median():.2f};" in plan
    assert f"anterior insertion point of {hearts['anterior_error_deg'].median():.1f}°" in plan
    known = hearts.dropna(subset=["anterior_error_deg"])
    assert (
        known["confidence"].idxmin() == known["anterior_error_deg"].idxmax()
    )  # as it says of confidence
    others = known.drop(known["confidence"].idxmin())[["confidence", "anterior_error_deg"]]
    assert (
        abs(others.corr("spearman").iloc[0, 1]) < 0.2
        and (others["anterior_error_deg"] < 5).mean() > 0.9
    )
    of = "{:.2f} ({:.2f}–{:.2f})"
    scores = pd.read_csv(figures / "tables" / "workbook_scores.csv").set_index("score")
    assert f"an AUC of {of.format(*scores.loc['auc'])} on 65 test studies" in plan
    rows = pd.read_csv(figures / "ablation_forest.csv").set_index(["row", "statistic"])[
        ["value", "low", "high"]
    ]
    full, plain = (
        of.format(*rows.loc[(row, "balanced_accuracy")]) for row in ("full", "plain_clip")
    )
    assert f"balanced accuracy of {full} for the full method and of {plain}, chance" in plan
    assert "AUC {:.2f}, {:.2f}–{:.2f}".format(*rows.loc[("plain_clip", "auc")]) in plan


@pytest.mark.parametrize("name", ["emidec", "laptop", "orientation"])
def test_the_ablations_shown_are_those_of_the_tables(name):
    page = ROOT / "README.md" if name == "emidec" else RESULTS
    shown_there, tables = text_of(page).replace("**", ""), ROOT / "figures" / "tables"
    rows, beside = (
        pd.read_csv(tables / f"{name}_{which}.csv") for which in ("comparison", "references")
    )
    if name == "emidec":  # the references stand below the rows
        rows = pd.concat([rows, beside[beside["row"] != beside["row"].iloc[0]]])
    for row, of_row in rows.groupby("row", sort=False):
        found = of_row.set_index("statistic")[["value", "low", "high"]]
        shown = [one for one in ("balanced_accuracy", "auc", "auc_walls") if one in found.index]
        line = " | ".join("{:.2f} ({:.2f}–{:.2f})".format(*found.loc[one]) for one in shown)
        assert f"| {line} |" in shown_there, row


def test_the_phantom_in_the_readme_is_that_of_the_tables():
    readme, tables = text_of(ROOT / "README.md"), ROOT / "figures" / "tables"
    rows = pd.read_csv(tables / "laptop_comparison.csv").set_index(["row", "statistic"])[
        ["value", "low", "high"]
    ]
    sizes = [
        pd.read_csv(tables / f"{name}_scores.csv", index_col="score")
        for name in ("workbook", "paper_size")
    ]
    table = readme.split("**The built-in phantom**")[1].split("\n\n")[1].splitlines()[2:]
    for line, found in zip(
        table, [sizes[0], rows.loc["full"], rows.loc["plain_clip"], sizes[1]], strict=True
    ):
        shown = found.loc[["balanced_accuracy", "auc", "auc_walls"]].to_numpy()
        assert line.endswith(
            "| " + " | ".join("{:.2f} ({:.2f}–{:.2f})".format(*one) for one in shown) + " |"
        ), line


def test_the_workbook_s_scores_in_the_results_are_those_of_its_tables():
    results, tables = text_of(RESULTS), ROOT / "figures" / "tables"
    scores = pd.read_csv(tables / "workbook_scores.csv").set_index("score")
    places = pd.read_csv(tables / "workbook_places.csv").set_index("place")
    shown = ["balanced_accuracy", "auc", "auc_walls", "auc_segments", "auc_slices", "auc_attention"]
    found = [*scores.loc[[*shown, "caption_presence_f1", "caption_walls_f1"]].to_numpy()]
    found += [
        *places.loc[
            ["level_basal", "depth_subendocardial", "depth_transmural"], scores.columns
        ].to_numpy()
    ]
    table = results.split("## Phantom, the workbook")[1].split("\n\n")[2].splitlines()[2:]
    assert len(table) == len(found) + 2  # and two references below
    for line, values in zip(table, found, strict=False):
        assert line.endswith("| {:.2f} | {:.2f}–{:.2f} |".format(*values)), line


def test_the_paper_s_size_in_the_results_is_that_of_its_table():
    scores = pd.read_csv(ROOT / "figures" / "tables" / "paper_size_scores.csv").set_index("score")
    shown = (
        "{:.2f} ({:.2f}–{:.2f})".format(*scores.loc[name]) for name in ("balanced_accuracy", "auc")
    )
    assert "balanced accuracy {}, AUC {} on the same 186 patients".format(*shown) in text_of(
        RESULTS
    )


def test_where_scar_is_in_the_readme_is_that_of_the_table():
    readme, places = (
        text_of(ROOT / "README.md"),
        pd.read_csv(ROOT / "figures" / "tables" / "emidec_places.csv"),
    )
    means = places[places["score"] == "auc_segments"].groupby("row")["value"].apply(list)
    said = " ".join(readme.split()).replace("**", "")
    assert "mean AUC {:.2f} and {:.2f} (two seeds of `full`)".format(*means["full"]) in said


def test_the_claims_in_the_readme_are_those_of_the_table():
    said = (
        text_of(ROOT / "README.md")
        .split("**Do the paper's four claims hold here?**")[1]
        .split("\n\n")[0]
    )
    said = " ".join(said.split())
    claims = pd.read_csv(ROOT / "figures" / "tables" / "emidec_claims.csv")
    assert ("**none is shown**" in said) is bool((claims["answer"] == "not shown").all())
    for claim in claims[claims["statistic"] == "balanced_accuracy"].itertuples():
        shown = f"{claim.difference:+.2f}, {claim.low:+.2f} to {claim.high:+.2f}".replace("-", "−")
        assert shown in said, claim.row


@pytest.mark.parametrize("statistic", ["balanced_accuracy", "auc"])
def test_the_label_efficiency_in_the_results_is_that_of_the_figure(statistic):
    results, curve = (
        text_of(RESULTS).replace("**", ""),
        pd.read_csv(ROOT / "figures/label_efficiency.csv"),
    )
    for row, of_row in curve[curve["statistic"] == statistic].groupby("row", sort=False):
        found = of_row.sort_values("train_studies")[["value", "low", "high"]].to_numpy()
        line = " | ".join("{:.2f} ({:.2f}–{:.2f})".format(*one) for one in found)
        assert f"| {line} |" in results, row


def test_the_speed_in_the_readme_is_that_of_the_table():
    said, rows = (
        " ".join(text_of(ROOT / "README.md").split()),
        pd.read_csv(ROOT / "figures" / "bench.csv"),
    )
    value = rows.set_index("name")["value"]
    alone, located = value["predict, polar view"], value["predict without the heart network"]
    assert (
        f"`predict` with {alone:.0f} studies a second on two cores (wanted 50; {located:.0f} where"
        in said
    )
