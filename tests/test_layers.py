"""Each file imports only from its own layer or from an earlier one."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxqmix"

LAYERS = {
    0: ("documentation", "config", "presets", "types", "compilation", "distributed", "processes"),
    1: ("env", "maps", "planners"),
    2: ("rollout",),
    3: ("learner", "policies"),
    4: ("hyperparameters", "training", "memory", "evaluation"),
    5: ("background", "checkpoints", "locking", "metrics", "provenance", "render", "export"),
    6: (
        *(
            "cli",
            "demo",
            "validate",
            "api",
            "loading",
            "folders",
            "runner",
            "seeds",
            "sweeps",
            "console",
        ),
        *("comparison", "federated"),
        *("commands", "adapters"),
    ),
    7: ("__main__", ""),
}
"""First part of a module's name, by layer; the empty name is the package itself."""

STANDARD_LIBRARY_ONLY = {
    "documentation": (),
    "config": ("documentation",),
    "presets": ("config",),
}
"""Files without third-party imports, and what they may import from the package."""

WORLD = ("env", "rollout")
"""What the learner never sees."""


def layer_of(module: str) -> int:
    """Layer of a module named from inside the package, such as `env.sensing`."""
    head = module.split(".")[0]
    for layer, names in LAYERS.items():
        if head in names:
            return layer
    raise AssertionError(f"{module} has no layer: name it in LAYERS and in the design")


def module_name(path: Path, package: Path) -> str:
    """`env.sensing` for `env/sensing.py`, `env` for `env/__init__.py`, nothing for the package."""
    parts = list(path.relative_to(package).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str, package: Path) -> bool:
    """Whether a dotted name is a file or a folder of the package."""
    path = package.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path, package: Path) -> tuple[set[str], set[str]]:
    """Modules of the package that a file imports, wherever, and others' top-level names."""
    own, others = set(), set()
    folder = path.relative_to(package).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = folder[: len(folder) - node.level + 1]
                base = ".".join((package.name, *above, *filter(None, [base])))
            prefix = base.removeprefix(package.name).lstrip(".")
            inside = base.split(".")[0] == package.name
            names = []
            for alias in node.names:
                if inside and not prefix and alias.name == "__version__":
                    continue  # imports nothing further
                full = f"{prefix}.{alias.name}".lstrip(".")
                submodule = inside and is_module(full, package)
                names.append(f"{base}.{alias.name}" if submodule else base)
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == package.name:
                own.add(rest)
            else:
                others.add(head)
    return own, others


def offences(path: Path, package: Path) -> list[str]:
    """Imports of a file that break the layers."""
    module = module_name(path, package)
    own, others = imports(path, package)
    layer = layer_of(module)
    found = [f"{module} imports {name}" for name in sorted(own) if layer_of(name) > layer]
    if module in STANDARD_LIBRARY_ONLY:
        allowed = STANDARD_LIBRARY_ONLY[module]
        strangers = (own - set(allowed)) | (others - set(sys.stdlib_module_names))
        found += [f"{module} imports {name}" for name in sorted(strangers)]
    if module.split(".")[0] == "learner":
        seen = [name for name in own if name.split(".")[0] in WORLD]
        found += [f"{module} imports {name}" for name in sorted(seen)]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_package_is_found():
    """The files that the layers are about exist."""
    modules = {module_name(path, PACKAGE) for path in FILES}
    assert {"config", "env.city", "env.urban_grid", "env.sensing"} <= modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """No file imports from a later layer, nor what its layer must not know."""
    assert offences(path, PACKAGE) == []


OFFENDERS = {
    "types.py": ("from jaxqmix.env.sensing import look", "env.sensing"),
    "env/sensing.py": ("def late():\n    from jaxqmix.training import train", "training"),
    "env/state.py": ("from jaxqmix import rollout", "rollout"),
    "env/reward.py": ("from ..rollout import fly", "rollout"),
    "learner/update.py": ("import jaxqmix.env.sensing", "env.sensing"),
    "learner/replay.py": ("from ..env.city import City", "env.city"),
    "training.py": ("from jaxqmix import preset", ""),
    "config.py": ("import numpy as np", "numpy"),
    "presets.py": ("from jaxqmix.types import State", "types"),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_offences_are_found(name, tmp_path):
    """A file that breaks the layers, in any way of writing it, is caught."""
    package = tmp_path / "jaxqmix"
    for folder in ("env", "learner"):
        (package / folder).mkdir(parents=True)
    for path in ("env/city.py", "rollout.py", "training.py", "types.py", "env/sensing.py"):
        (package / path).write_text("")
    text, imported = OFFENDERS[name]
    (package / name).write_text("import math\nfrom jaxqmix.config import ConfigError\n" + text)
    module = module_name(package / name, package)
    expected = {f"{module} imports {imported}"}
    if name == "config.py":
        expected.add("config imports config")
    assert set(offences(package / name, package)) == expected


def test_permitted_imports_are_no_offences(tmp_path):
    """Own layer, lower layers and the standard library are fine."""
    package = tmp_path / "jaxqmix"
    (package / "env").mkdir(parents=True)
    (package / "env" / "reward.py").write_text("")
    path = package / "env" / "urban_grid.py"
    path.write_text(
        "import jax\nfrom jaxqmix.env import reward\nfrom jaxqmix.env.city import x\n"
        "from jaxqmix import __version__\n"
    )
    assert offences(path, package) == []


def test_new_files_need_a_layer():
    """A file that no layer names is an error."""
    with pytest.raises(AssertionError, match="has no layer"):
        layer_of("helpers")
