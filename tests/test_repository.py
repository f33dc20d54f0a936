"""What keeps the house in order: one version, workflows, documents whose links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import SLOW, TRAIN

import jaxqmix

FOLDER = Path(__file__).parents[1]
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
SETTINGS = sorted(
    path for path in (FOLDER / ".github").rglob("*") if path.suffix in (".yml", ".cff")
)
DOCUMENTS = sorted((FOLDER / ".github").glob("*.md"))


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "jaxqmix.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxqmix.__version__)
    changes = (FOLDER / ".github" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE).group(1) == jaxqmix.__version__


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.name)
def test_settings_of_the_repository_can_be_read(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_workflows_test_the_oldest_and_newest_python():
    jobs = yaml.safe_load((FOLDER / ".github/workflows/tests.yml").read_text())["jobs"]
    versions = {job["python"] for job in jobs["linux"]["strategy"]["matrix"]["include"]}
    assert versions == {PROJECT["project"]["requires-python"].removeprefix(">="), "3.13"}
    steps = [step for job in jobs.values() for step in job["steps"]]
    extras = {name for step in steps for name in re.findall(r"\[([\w,]+)\]", step.get("run", ""))}
    known = set(PROJECT["project"]["optional-dependencies"])
    assert extras and {name for each in extras for name in each.split(",")} <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
    # Files are named from the top, from the package, or by a name that is found once.
    for name in re.findall(r"`([\w./]+\.(?:py|md|toml))`", text):
        places = [FOLDER / name, FOLDER / "jaxqmix" / name, *(FOLDER / "jaxqmix").rglob(name)]
        assert any(place.exists() for place in places), name


def test_marked_files_exist():
    assert not set(SLOW) & set(TRAIN)
    for name in (*SLOW, *TRAIN):
        assert (FOLDER / "tests" / f"{name}.py").exists(), name
