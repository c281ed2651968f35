"""The cache: atomic files, locks that end with their process, and shared computations."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lgekit.cache import compute_once, is_locked, locked, replacing

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
    code = "import time; from lgekit.cache import compute_once\n"
    code += "def slow(): print('computed', flush=True); time.sleep(1); return 42\n"
    code += "assert compute_once(('slow', 41), slow) == 42"
    started = [start(code) for _ in range(3)]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert "".join(printed) == "computed\n"


def test_a_loaded_array_does_not_change_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LGEKIT_CACHE", str(tmp_path / "cache"))
    compute_once("zeros", lambda: np.zeros(5))[:] = 1
    assert not compute_once("zeros", lambda: np.ones(5)).any()
    monkeypatch.setenv("LGEKIT_CACHE", "")
    assert compute_once("zeros", lambda: np.ones(5)).all()


def test_importing_the_cache_loads_nothing_heavy():
    code = "import lgekit.cache; print(sorted({'torch', 'pandas', 'joblib'} & set(sys.modules)))"
    assert start(code).communicate()[0] == "[]\n"
