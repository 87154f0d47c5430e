"""The notebook as it lies in the repository reads well unexecuted; .ci/run executes it."""

import json
from pathlib import Path

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
