"""A fitted model to a Hugging Face hub repository and back, only when the user names one.

What travels is a closed list: weights as safetensors, settings as JSON, a model card. Nothing that a study could be
known by: ``held_out.csv``, which has a row a study, stays, and of the cohorts that trained the heart network only their
kind is told, not their folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from lgekit.detection import Detector
from lgekit.errors import InputError

CARD = "README.md"
SENT = re.compile(
    r"detector\.json|clip_\d+/(config\.json|model\.safetensors|text\.json|tokenizer\.json)|heart/heart\.(json|safetensors)|"
    + re.escape(CARD)
)
STAYS = {"held_out.csv"}  # a row a study: written by `lgekit fit`, never sent
OF_THE_HUB = {".gitattributes"}

CARD_TEXT = """---
library_name: lgekit
tags: [cardiac-mri, late-gadolinium-enhancement, clip]
---
# Scar detection in cardiac LGE MRI, trained from the text of reports

For research and teaching only. **Not a medical device.**

{networks} CLIP + captioning network(s), {heart}; view `{view}`, text `{text}`, {epochs} epochs, seed {seed}.
All settings are in `detector.json`. What it was trained on, and how well it reads, is for its authors to add here.

```
lgekit pull THIS_REPOSITORY my_model
lgekit predict my_model manifest:studies/manifest.csv out.csv
```
"""


def push(model_dir: str | Path, repo: str, public: bool = False, api: Any = None) -> list[str]:
    """Send a fitted model to a hub repository, made if absent, in one commit.

    Args:
        model_dir: folder that `lgekit fit` wrote.
        repo: ``owner/name``.
        public: a new repository may be read by everybody; else only by its owner.
        api: a ``huggingface_hub.HfApi``; one with the user's own login if None.

    Returns:
        Names of the files sent.

    Raises:
        InputError: not a whole model, any other file in the folder, or what the hub answers.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder, api = Path(model_dir), api or HfApi()
    detector = Detector.load(folder)
    if Path(detector.settings.text_encoder).exists():
        problem = f"the text encoder {detector.settings.text_encoder!r} is a folder of this machine"
        raise InputError(folder, problem, "Fit with a hub name, or with text_encoder='scratch'.")
    content = {name: _content(folder, name) for name in _checked(_files(folder), folder, STAYS) if name not in STAYS}
    content.setdefault(CARD, _card(detector).encode())
    adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=part) for name, part in sorted(content.items())]
    _ask(repo, lambda: api.create_repo(repo, repo_type="model", private=not public, exist_ok=True))
    _ask(repo, lambda: api.create_commit(repo, adds, commit_message="lgekit model", repo_type="model"))
    return sorted(content)


def pull(repo: str, model_dir: str | Path, api: Any = None) -> list[str]:
    """Fetch a model from a hub repository into a folder (made if absent).

    Args:
        repo: ``owner/name``.
        model_dir: a new or empty folder.
        api: a ``huggingface_hub.HfApi``; one with the user's own login, if any, where None.

    Returns:
        Names of the files fetched.

    Raises:
        InputError: the repository holds any other file, what it holds is not a model, or what the hub answers.
    """
    from huggingface_hub import HfApi

    folder, api = Path(model_dir), api or HfApi()
    revision = _ask(repo, lambda: api.repo_info(repo, repo_type="model").sha)
    listed = _ask(repo, lambda: api.list_repo_files(repo, revision=revision, repo_type="model"))
    names = [name for name in _checked(listed, repo, OF_THE_HUB) if name not in OF_THE_HUB]
    _ask(
        repo,
        lambda: api.snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=names),
    )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own notes
    Detector.load(folder)
    return sorted(names)


def _files(folder: Path) -> list[str]:
    """Names of all files under a folder; links are refused, for they may point anywhere."""
    paths = sorted(folder.rglob("*"))
    if links := [path for path in paths if path.is_symlink()]:
        raise InputError(links[0], "is a link", "Put the file itself there.")
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _checked(names: Sequence[str], where: object, allowed: set[str]) -> list[str]:
    """The names, all of which belong to a model."""
    if other := [name for name in names if not SENT.fullmatch(name) and name not in allowed]:
        remedy = "Only safetensors, JSON and a model card travel: take the others out."
        raise InputError(where, f"holds {', '.join(other[:5])}, which is no part of a model", remedy)
    return list(names)


def _content(folder: Path, name: str) -> bytes:
    """A file's bytes; of the heart network's cohorts only the kind, for a SPEC names a folder."""
    content = (folder / name).read_bytes()
    if name == "heart/heart.json":
        about = json.loads(content)
        about["trained_on"] = sorted({spec.split(":")[0] for spec in about["trained_on"]})
        content = (json.dumps(about, indent=2) + "\n").encode()
    return content


def _card(detector: Detector) -> str:
    settings = detector.settings
    about = {name: getattr(settings, name) for name in ("text", "epochs", "seed")}
    heart = "with a heart network" if detector.heart is not None else "without a heart network"
    return CARD_TEXT.format(networks=len(detector.networks), heart=heart, view=settings.frame, **about)


def _ask(repo: str, call: Callable[[], Any]) -> Any:
    """A call to the hub; what goes wrong there becomes one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # its bases too: what the hub client's HTTP library, whichever it is, raises on a machine without network
    failures = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, HFValidationError, OSError))
    try:
        return call()
    except failures as error:
        remedy = "Check the name, the network and your login (`hf auth login`)."
        raise InputError(repo, str(error).splitlines()[0] if str(error) else type(error).__name__, remedy) from error
