"""What the tests of this folder share; what all tests share is experiments/fixtures.py."""

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Where every test runs."""
    monkeypatch.chdir(tmp_path)
