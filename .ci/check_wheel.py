"""Checks that a wheel holds every file of the package, and that what is installed is that wheel.

The second half runs outside of the checkout, where only the installed package can be found.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

INSTALLED = """
from importlib import metadata, resources
import sys
import jaxqmix
assert "jax" not in sys.modules, "import jaxqmix imports jax"
assert jaxqmix.__version__ == metadata.version("jaxqmix"), metadata.version("jaxqmix")
for name in {files!r}:
    assert resources.files("jaxqmix").joinpath(*name.split("/")[1:]).is_file(), name
from jaxqmix.render.replay import asset
assert "{{" in asset("replay.html")
for name in jaxqmix.__all__:
    getattr(jaxqmix, name)
print(jaxqmix.__version__)
"""

wheel = Path(sys.argv[1])
command = ["git", "ls-files", "jaxqmix"]
listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
assert "jaxqmix/py.typed" in listed, listed
with zipfile.ZipFile(wheel) as file:
    missing = set(listed) - set(file.namelist())
if missing:
    sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing))}")
script = INSTALLED.replace("{files!r}", repr(listed))
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
if run.returncode:
    sys.exit(run.stderr)
print(f"{wheel.name}: {len(listed)} files, version {run.stdout.strip()}")
