"""The notebooks as they lie in the repository: one with its outputs, one to be filled in."""

import json
import re
from pathlib import Path

import pytest

from exercises import start

NOTEBOOK = Path(__file__).parent / "walkthrough.ipynb"


def test_the_walkthrough_holds_its_outputs_and_no_error():
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 9
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_the_walkthrough_repeats_no_function_of_the_project():
    """It draws, and asks for what it draws; the method stands in the method's files."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "code")
    assert [line.split("(")[0] for line in code.splitlines() if line.startswith("def ")] == [
        "def show",
        "def bars",
        "def after",
    ]
    assert "logsumexp" not in code and ".sign()" not in code


def printed(cells: list[dict]) -> list[str]:
    """The text under each code cell, its numbers and names of folders apart."""
    texts = []
    for cell in cells:
        outputs = cell.get("outputs", ())
        told = "".join("".join(out["text"]) for out in outputs if out.get("name") == "stdout")
        told += "".join("".join(out.get("data", {}).get("text/plain", "")) for out in outputs)
        texts.append(re.sub(r"walkthrough-\w+|[-+]?\d[\d.e]*|\s+", " ", told).split())
    return texts


@pytest.mark.slow
def test_the_walkthrough_prints_today_what_it_holds(monkeypatch):
    client, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    stored = json.loads(NOTEBOOK.read_text())["cells"]
    notebook = nbformat.read(NOTEBOOK, 4)
    client.NotebookClient(notebook, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    assert printed(notebook.cells) == printed(stored)


def test_the_exercises_notebook_is_what_start_writes_today():
    """If not: remove it, then python -m exercises.start --notebook notebooks/exercises.ipynb."""
    stored = json.loads(NOTEBOOK.with_name("exercises.ipynb").read_text(encoding="utf-8"))
    assert stored == start.notebook()
    pytest.importorskip("nbformat").validate(stored)
