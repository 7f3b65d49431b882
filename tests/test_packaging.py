"""What a user installs: the shipped models are found from a checkout, an editable and a plain install."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from sysconfig import get_path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path.stem for path in (ROOT / "models").glob("*.yaml"))
FILES = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "Makefile")

# Site packages come second, behind the install under test, whatever else is installed in this environment.
PROBE = """
import json, site, sys
for folder in sys.argv[1:]:
    site.addsitedir(folder)
import ppl_gen
from ppl_gen.declare.files import read_spec, shipped_models
found = shipped_models()
print(json.dumps({
    "package": ppl_gen.__file__,
    "models": {name: str(path) for name, path in found.items()},
    "read": [str(read_spec(name)) for name in found],
}))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree, so that nothing of the real one can be found by accident."""
    copy = tmp_path_factory.mktemp("checkout") / "ppl_gen"
    for name in ("ppl_gen", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, words)]
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    done = subprocess.run([*command, *offline], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", checkout, "--wheel-dir", folder)
    (found,) = folder.glob("*.whl")
    return found


def probe(first: Sequence[Path], elsewhere: Path) -> dict[str, dict[str, str]]:
    """What a Python sees that has `first` before the site packages, started in a folder of no meaning."""
    folders = [str(folder) for folder in (*first, Path(get_path("purelib")))]
    command = [sys.executable, "-S", "-c", PROBE, *folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_checkout_finds_its_own_models(checkout: Path, tmp_path: Path) -> None:
    found = probe([checkout], tmp_path)
    assert Path(found["package"]).is_relative_to(checkout)  # type: ignore[arg-type]
    assert sorted(found["models"]) == SHIPPED
    assert all(Path(path).is_relative_to(checkout / "models") for path in found["models"].values())


def test_an_editable_install_finds_the_models_of_its_checkout(checkout: Path, tmp_path: Path) -> None:
    pip("install", "--editable", checkout, "--target", tmp_path / "site")
    assert not (tmp_path / "site" / "ppl_gen").exists()  # it is a pointer, no copy
    found = probe([tmp_path / "site"], tmp_path)
    assert Path(found["package"]).is_relative_to(checkout)  # type: ignore[arg-type]
    assert sorted(found["models"]) == SHIPPED
    assert len(found["read"]) == len(SHIPPED)


def test_a_plain_install_finds_the_models_it_brought(wheel: Path, tmp_path: Path) -> None:
    pip("install", wheel, "--target", tmp_path / "site")
    found = probe([tmp_path / "site"], tmp_path)
    assert Path(found["package"]).is_relative_to(tmp_path / "site")  # type: ignore[arg-type]
    assert sorted(found["models"]) == SHIPPED
    assert all(Path(path).is_relative_to(tmp_path / "site") for path in found["models"].values())
    assert len(found["read"]) == len(SHIPPED)


def test_the_wheel_holds_the_package_its_models_and_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    metadata = [name for name in names if ".dist-info/" in name]
    package = [name for name in names if name not in metadata]
    modules = {f"ppl_gen/{p.relative_to(ROOT / 'ppl_gen')}" for p in (ROOT / "ppl_gen").rglob("*.py")}
    assert set(package) == modules | {f"ppl_gen/models/{name}.yaml" for name in SHIPPED}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert any(name.endswith("entry_points.txt") for name in metadata)


def test_the_source_archive_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    build = "import sys, hatchling.build as b; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=checkout, check=True, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    pip("wheel", tmp_path / archive.name.removesuffix(".tar.gz"), "--wheel-dir", tmp_path)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_every_requirement_has_an_exact_tested_version() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    asked = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    seen: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        name = plain(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name != "torch":  # what a build of torch needs is that build's own matter
            asked += distribution(name).requires or []
    assert seen - pinned == set()


def plain(name: str) -> str:
    return name.lower().replace("_", "-")
