"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread per process: tests run side by side, and so do the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared-data",
        default=os.environ.get("RETAIN_TEST_DATA"),
        help="folder with cifar10-subset.zip and banking77/ (also: RETAIN_TEST_DATA)",
    )


@pytest.fixture
def shared_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real data given by --shared-data."""
    given = request.config.getoption("--shared-data")
    if not given:
        pytest.skip("real data not given: pass --shared-data FOLDER or set RETAIN_TEST_DATA")
    folder = Path(given)
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder} is not a folder")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
