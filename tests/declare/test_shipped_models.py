"""The shipped models are found however the library was installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ppl_gen.declare import files

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("layout", ["wheel", "checkout"])
def test_shipped_models_are_found_in_a_wheel_and_in_a_checkout(layout, tmp_path):
    package = tmp_path / "ppl_gen"
    shutil.copytree(Path(files.__file__).parent, package / "declare")
    shutil.copy(ROOT / "ppl_gen" / "errors.py", package)
    (package / "__init__.py").touch()
    if layout == "wheel":
        shutil.copytree(ROOT / "models", package / "models")
        (tmp_path / "models").mkdir()  # somebody else's, beside us in site-packages
        (tmp_path / "models" / "stray.yaml").touch()
    else:
        shutil.copytree(ROOT / "models", tmp_path / "models")
        (tmp_path / "pyproject.toml").touch()
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ppl_gen.declare.files import read_spec, shipped_models\n"
        "print(*sorted(shipped_models()), read_spec('vae').leaves)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.split() == [*sorted(files.shipped_models()), "('x',)"], done.stderr
