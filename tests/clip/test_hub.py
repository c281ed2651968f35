"""Push and pull against a hub that lives in a folder: what travels, and what is refused. No network."""

import importlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import lgekit, refused
from huggingface_hub.errors import HfHubHTTPError
from toys import settings, toy

from lgekit.clip import detector as hub
from lgekit.clip.detector import Detector
from lgekit.clip.train import fit
from lgekit.clip.zeroshot import Calibration
from lgekit.errors import InputError
from lgekit.segmentation.model import HeartNetwork, HeartSettings, build_unet

HEART = HeartSettings(decoder=(8, 8, 8, 8), steps=1)


class FolderHub:
    """The calls that lgekit makes of ``HfApi``, answered from a dict of repositories."""

    repositories: dict[str, dict[str, bytes]] = {}
    private: dict[str, bool] = {}

    def create_repo(self, repo, repo_type, private, exist_ok):
        assert repo_type == "model" and exist_ok
        self.repositories.setdefault(repo, {".gitattributes": b""})
        self.private.setdefault(repo, private)

    def create_commit(self, repo, operations, commit_message, repo_type):
        self.repositories[repo] |= {one.path_in_repo: one.path_or_fileobj for one in operations}

    def repo_info(self, repo, repo_type):
        if repo not in self.repositories:
            raise OSError(f"404: {repo} is not there\nRequest ID: 1")
        return SimpleNamespace(sha="abc")

    def list_repo_files(self, repo, revision, repo_type):
        assert revision == "abc"
        return list(self.repositories[repo])

    def snapshot_download(self, repo, revision, local_dir, allow_patterns):
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        for name in allow_patterns:
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_bytes(self.repositories[repo][name])


@pytest.fixture(autouse=True)
def api(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FolderHub)
    monkeypatch.setattr(FolderHub, "repositories", {})
    monkeypatch.setattr(FolderHub, "private", {})
    return FolderHub


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of every part: two networks, a heart network, predictions of held-out studies."""
    own = settings(epochs=1)
    networks = [fit(toy(4), own.override(seed=seed), progress=False) for seed in range(2)]
    heart = HeartNetwork(
        HEART, [build_unet(HEART, 0)], ["emidec:/home/somebody/emidec", "phantom:studies=3"]
    )
    held = pd.DataFrame({"study_id": ["P01"], "p_lge": [0.5]})
    pairs = [(one.model, one.tokenizer) for one in networks]
    folder = tmp_path_factory.mktemp("hub") / "model"
    return Detector(own, pairs, heart, Calibration(), [one.history for one in networks], held).save(
        folder
    )


@pytest.fixture
def model(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def test_what_is_sent(model, api):
    sent = hub.push(model, "me/scar")
    parts = ["config.json", "model.safetensors", "tokenizer.json"]
    wanted = ["README.md", "detector.json", "heart/heart.json", "heart/heart.safetensors"]
    assert sent == sorted(
        wanted + [f"clip_{number}/{part}" for number in range(2) for part in parts]
    )
    held = api.repositories["me/scar"]
    assert set(held) == {*sent, ".gitattributes"} and api.private["me/scar"]
    assert not any(b"P01" in content or b"somebody" in content for content in held.values())
    assert json.loads(held["heart/heart.json"])["trained_on"] == ["emidec", "phantom"]
    assert b"Not a medical device" in held["README.md"]
    assert not (model / "README.md").exists()  # the folder stays as it was


def test_a_card_of_the_users_own_is_sent(model, api):
    (model / "README.md").write_text("# ours")
    hub.push(model, "me/scar", public=True)
    assert api.repositories["me/scar"]["README.md"] == b"# ours" and not api.private["me/scar"]


def test_there_and_back_reads_the_same(model, tmp_path):
    hub.push(model, "me/scar")
    hub.pull("me/scar", tmp_path / "again")
    one, other = Detector.load(model), Detector.load(tmp_path / "again")
    batch = toy(3, seed=8).batch
    assert one.settings == other.settings and other.held_out is None
    np.testing.assert_array_equal(one.read(batch).presence, other.read(batch).presence)
    states = [each.heart.networks.state_dict() for each in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not (tmp_path / "again" / ".cache").exists()


@pytest.mark.parametrize(
    "name", ["manifest.csv", "clip_0/optimizer.bin", "heart/P01.nii.gz", "clip_x/config.json"]
)
def test_any_other_file_is_refused_before_anything_is_sent(model, api, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("x")
    with pytest.raises(InputError, match=name):
        hub.push(model, "me/scar")
    assert not api.repositories


def test_links_are_refused(model, tmp_path):
    (tmp_path / "secret").write_text("x")
    (model / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="link"):
        hub.push(model, "me/scar")


def test_a_text_encoder_in_a_local_folder_is_refused(tmp_path, api, monkeypatch):
    local = SimpleNamespace(settings=SimpleNamespace(text_encoder=str(tmp_path)))
    monkeypatch.setattr(Detector, "load", lambda folder: local)
    with pytest.raises(InputError, match="folder of this machine"):
        hub.push(tmp_path, "me/scar")
    assert not api.repositories


def test_a_folder_that_is_no_model_is_refused(tmp_path, api):
    with pytest.raises(InputError, match=r"detector\.json"):
        hub.push(tmp_path, "me/scar")
    assert not api.repositories


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.json", "run.py", "held_out.csv"])
def test_a_repository_with_anything_else_is_not_fetched(model, api, tmp_path, name):
    hub.push(model, "me/scar")
    api.repositories["me/scar"][name] = b"x"
    with pytest.raises(InputError, match="no part of a model"):
        hub.pull("me/scar", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("call", ["create_repo", "repo_info"])
def test_a_machine_without_network_is_told_so_in_one_line(model, api, tmp_path, monkeypatch, call):
    library = HfHubHTTPError.__mro__[1].__module__.partition(".")[
        0
    ]  # the HTTP library that the hub client uses

    def unreachable(*_, **__):
        raise importlib.import_module(library).ConnectError(
            "[Errno -3] Temporary failure in name resolution"
        )

    monkeypatch.setattr(api, call, unreachable)
    command = (
        ("push", model, "me/scar")
        if call == "create_repo"
        else ("pull", "me/scar", tmp_path / "again")
    )
    refused(
        *command,
        mentions="me/scar: [Errno -3] Temporary failure in name resolution. Check the name, the network",
    )
    assert not (tmp_path / "again").exists()


def test_the_command_line(model, api, tmp_path):
    assert "held_out.csv" in lgekit("push", "--help").stdout
    done = lgekit("push", model, "me/scar")
    assert done.returncode == 0 and "detector.json" in done.stdout, done.stderr
    done = lgekit("pull", "me/scar", tmp_path / "again")
    assert done.returncode == 0 and Detector.load(tmp_path / "again").heart is not None, done.stderr
    refused("pull", "me/scar", tmp_path / "again", mentions="not an empty folder")
    refused("pull", "me/nothing", tmp_path / "new", mentions="404")
    del api.repositories["me/scar"]["detector.json"]
    refused("pull", "me/scar", tmp_path / "new", mentions="detector.json")
    assert not (tmp_path / "new").exists()
