"""Every notebook runs with a reduced budget, and what is committed is clean."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
from conftest import quick_options

nbformat = pytest.importorskip("nbformat", reason="needs nbclient (pip install nbclient)")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient (pip install nbclient)")
pytest.importorskip("ipykernel", reason="needs ipykernel (pip install ipykernel)")

FOLDER = Path(__file__).parent.parent / "notebooks"
SMALL = {"env.horizon": 20, "training.swarms": 8, "evaluation.episodes": 4}
"""Settings that all notebooks share here: what one has compiled, the next finds in the cache."""
BUDGETS = {
    "01_quickstart": {"ENV_STEPS": 160, "EPISODES": 4, "SETTINGS": SMALL},
    # One planner twice: it compiles once.
    "02_environment": {
        "PLANNERS": ("lanes", "lanes"),
        "EPISODES": 1,
        "FLIGHTS": 1,
        "SETTINGS": {"env.horizon": 20},
    },
    "03_training": {
        "RUNS": {"online": {}},
        "SEEDS": 1,
        "ENV_STEPS": 160,
        "EPISODES": 4,
        "SETTINGS": SMALL,
    },
    "04_scaling": {
        "SWARMS": (4,),
        "DRONES": (5,),
        "STEPS": 5,
        "REPEATS": 2,
        "ENV_STEPS": 160,
        "SETTINGS": SMALL | {"evaluation.final_episodes": 4},
    },
    "05_federated": {
        "SITES": 2,
        "ROUNDS": 2,
        "LOCAL_ENV_STEPS": 80,
        "EPISODES": 2,
        "SETTINGS": SMALL,
    },
    "06_qmix_explained": {
        "UPDATES": 20,
        "FLOWN": ("qmix",),
        "ENV_STEPS": 160,
        "EPISODES": 4,
        "SETTINGS": SMALL | {"evaluation.final_episodes": 4},
    },
    "07_own_parts": {
        "RUNS": {"default": {}},
        "ENV_STEPS": 160,
        "EPISODES": 1,
        "SETTINGS": SMALL | {"evaluation.final_episodes": 4},
    },
}
"""What replaces the first code cell of each notebook."""


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_a_budget():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(BUDGETS)


@pytest.mark.parametrize("name", BUDGETS)
def test_a_notebook_runs_with_a_reduced_budget(name, monkeypatch, tmp_path):
    notebook = read(name)
    budget = code(notebook)[0]
    settings = {node.targets[0].id for node in ast.parse(budget.source).body}
    assert settings == set(BUDGETS[name])
    budget.source = "\n".join(f"{key} = {value}" for key, value in BUDGETS[name].items())
    # A network that answers nothing: notebooks must not need one.
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    # The command line sets it, and then no picture is shown.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    flags = [f"--{option}={str(value).lower()}" for option, value in quick_options().items()]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    # On one device, which spares the partitioner; and the same program once.
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ["JAXQMIX_CACHE"])
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=tmp_path)
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    pictures = [output["data"] for output in outputs if "data" in output]
    assert any("image/png" in data for data in pictures)
    assert not [data for data in pictures if set(data) == {"text/plain"} and "<" in str(data)]


@pytest.mark.parametrize("name", BUDGETS)
def test_committed_outputs_are_complete_small_and_clean(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1.5e6
    cells = code(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if output.output_type == "error"]
    # Pictures are base64, in which anything may look like a path.
    words = [output.get("text", "") + output.get("data", {}).get("text/plain", "")
             for output in outputs]  # fmt: skip
    assert not re.search(r"(?:^|[\s'\"])/(?:home|root|tmp|work|Users|var)/", "\n".join(words))
