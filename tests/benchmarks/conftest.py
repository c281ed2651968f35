"""Collect what the benchmarks measure into one table: `make bench` writes figures/bench.csv."""

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch

TABLE = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--bench-table", type=Path, help="CSV file for the table of the benchmarks")


def pytest_configure(config):
    config.stash[TABLE] = []


@pytest.fixture
def record(request):
    """Add a row to the table: ``record(name, value, unit, target)``."""

    def add(name: str, value: float, unit: str, target: str = "") -> None:
        row = {"benchmark": request.node.name.removeprefix("test_"), "name": name, "value": value}
        request.config.stash[TABLE].append(row | {"unit": unit, "target": target})

    return add


def pytest_terminal_summary(terminalreporter, config):
    if not (rows := config.stash[TABLE]):
        return
    table = pd.DataFrame(rows)
    terminalreporter.write_line(table.drop(columns="benchmark").to_string(index=False))
    if file := config.getoption("--bench-table"):
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        info = Path("/proc/cpuinfo")  # on Linux `platform` names only the architecture
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.split(":")[1].strip() for line in lines if "model name" in line]
        cpu = names[0] if names else platform.processor() or platform.machine()
        table = table.assign(cpu=cpu, gpu=gpu, python=platform.python_version())
        versions = {package: version(package) for package in ("torch", "torchio", "numpy")}
        table.assign(**versions).to_csv(file, index=False)
