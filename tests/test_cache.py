"""The cache: atomic files, locks that end with their process, and shared computations."""

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from command_line import lgekit

from lgekit import cache
from lgekit.cache import compute_once, is_locked, locked, replacing
from lgekit.errors import InputError

ROOT = Path(__file__).parents[1]


def start(code: str, *arguments: object, cwd: Path = ROOT) -> subprocess.Popen:
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, '.']\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    with replacing(path) as part:
        assert part.name.endswith(".nii.gz") and not path.exists()
        part.write_text("one")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("tw")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_a_lock_is_free_after_its_process_is_killed(tmp_path):
    path = tmp_path / "locks" / "a"
    code = "import time; from lgekit.cache import locked\n"
    code += "with locked(sys.argv[1]): print('locked', flush=True); time.sleep(60)"
    holder = start(code, path)
    assert holder.stdout.readline() == "locked\n" and is_locked(path)
    holder.kill()
    holder.wait()
    assert path.exists() and not is_locked(path)
    with locked(path):
        assert is_locked(path)
    assert not path.exists() and not is_locked(path)


def test_processes_that_start_together_compute_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "cache"))
    stage = "def slow(x): print('computed', flush=True); time.sleep(1); return x + 1"
    (tmp_path / "stage.py").write_text(f"import time\n{stage}")
    code = "import stage; from lgekit.cache import compute_once\n"
    code += "assert compute_once('key', stage.slow, 41) == 42"
    started = [start(code, cwd=tmp_path) for _ in range(3)]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert "".join(printed) == "computed\n"


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """The file of a stored result."""
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "cache"))
    compute_once("key", np.zeros, 5)[:] = 1
    (file,) = (tmp_path / "cache" / "private").iterdir()
    assert file.stat().st_size and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    return file


def test_a_stored_result_is_read_and_changes_do_not_reach_it(entry, monkeypatch):
    opened = len(os.listdir("/dev/fd"))
    arrays = [compute_once("key", np.zeros, 5) for _ in range(20)]
    arrays[0][:] = 1
    assert not arrays[1].any() and len(os.listdir("/dev/fd")) == opened
    assert compute_once("other", np.ones, 5).all() and not compute_once("other", np.zeros, 5).any()
    monkeypatch.setenv("LGEKIT_CACHE", "")
    assert compute_once("key", len, "four") == 4


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "attack",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-10]),
        lambda file: file.write_bytes(pickle.dumps("a stranger's")),
        lambda file: (file.unlink(), file.mkdir()),
        flip,
    ],
)
def test_a_damaged_entry_is_computed_again_with_one_warning(entry, attack):
    attack(entry)
    with pytest.warns(UserWarning, match="cache not used") as caught:
        assert compute_once("key", np.zeros, 5).tolist() == [0] * 5
    assert len({str(one.message) for one in caught}) <= 2
    if entry.is_file():
        assert cache.load(entry).tolist() == [0] * 5


def test_a_full_disk_stops_nothing(entry, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert compute_once("new", np.zeros, 5).tolist() == [0] * 5
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.warns(UserWarning, match="no cache"):
        assert compute_once("new", np.zeros, 5).tolist() == [0] * 5


def test_only_a_folder_of_ones_own_is_used_and_cleared(entry, monkeypatch):
    folder = entry.parent
    (folder.parent / "thesis.txt").write_text("mine")
    assert lgekit("cache", "clear").stdout == f"removed {folder}\n"
    assert [path.name for path in folder.parent.iterdir()] == ["thesis.txt"]
    compute_once("key", np.zeros, 5)
    folder.chmod(0o777)
    with pytest.raises(InputError, match="other users can write"):
        compute_once("key", np.zeros, 5)
    folder.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(InputError, match="other users can write"):
        compute_once("key", np.zeros, 5)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LGEKIT_CACHE", "~/mine")
    assert cache.cache_folder() == folder / "mine" / "private"


def test_workers_end_with_their_parent():
    code = "import os, time; from joblib import Parallel, delayed\n"
    code += "from lgekit.cache import end_with_parent\n"
    code += "def work(_): print(os.getpid(), flush=True); time.sleep(60)\n"
    code += "Parallel(2, initializer=end_with_parent)(delayed(work)(n) for n in range(2))"
    parent = start(code)
    workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert all(worker.status() == psutil.STATUS_ZOMBIE for worker in alive)


def test_importing_the_cache_loads_nothing_heavy():
    code = "import lgekit.cache; print(sorted({'torch', 'pandas', 'joblib'} & set(sys.modules)))"
    assert start(code).communicate()[0] == "[]\n"
