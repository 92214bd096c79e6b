"""The first study in a notebook: it runs as committed, says what it promises, and is committed without outputs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import ablora
from ablora.spec import BadInput

NOTEBOOK = Path(__file__).parents[1] / "docs/first_study.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run in a kernel of its own, with this Python and in an empty folder."""
    place = tmp_path_factory.mktemp("notebook")
    kernel = place / "kernels/python3"
    kernel.mkdir(parents=True)
    command = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    kernel.joinpath("kernel.json").write_text(f'{{"argv": {command}, "display_name": "this", "language": "python"}}')
    (place / "work").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": place / "work"}}
    )
    before = {name: os.environ.get(name) for name in ("JUPYTER_PATH", "IPYTHONDIR", "TMPDIR")}
    os.environ.update(JUPYTER_PATH=str(place), IPYTHONDIR=str(place / "ipython"), TMPDIR=str(place))
    try:
        client.execute()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert not list((place / "work").iterdir()), "it leaves nothing behind"
    assert not list(place.glob("ablora-first-*"))
    return notebook


def said(notebook: Any, source: str) -> str:
    """All outputs, as text, of the one cell that contains `source`."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(texts)


def test_it_is_committed_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


def test_it_plans_runs_and_tabulates(executed):
    assert "to run: 4 runs in 1 pack" in said(executed, "ablora.plan")
    assert "Warning" not in said(executed, "ablora.plan") + said(executed, "ablora.run")
    assert "all 4 runs are done" in said(executed, "ablora.run")
    table = said(executed, "runs[columns]")
    assert table.count("done") == 4
    assert table.count("lora") == table.count("pissa") == 2
    assert "NaN" not in table


def test_it_draws_and_measures(executed):
    (cell,) = [cell for cell in executed.cells if "ablora.figures" in cell.source and cell.cell_type == "code"]
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    lines = said(executed, "ablora.measures").splitlines()
    phi = {words[0]: [float(word) for word in words[1:]] for words in map(str.split, lines) if words[0] in "lora pissa"}
    assert phi["pissa"][0] > 3 * phi["pissa"][1], "PiSSA's update lies along the top directions it started in"
    assert phi["lora"][0] < 3 * phi["lora"][1], "and LoRA's does not"


def test_importing_ablora_imports_nothing_heavy():
    code = "import ablora, sys; print({'torch', 'pandas', 'hydra', 'rich'} & set(sys.modules), ablora.collect.__name__)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set() collect\n"


@pytest.mark.parametrize("name", ["collect", "figures", "measures"])
def test_a_study_that_is_not_there_is_a_users_mistake(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ABLORA_RUNS", str(tmp_path / "runs"))
    with pytest.raises(BadInput, match="STUDY='nope'"):
        getattr(ablora, name)("nope")
