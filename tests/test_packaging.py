"""What is shipped is what is in the tree, and works where it is installed, beside another package named `datasets`."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from statezoo import __version__
from statezoo.leaderboards import board
from statezoo.zoo import api
from statezoo.zoo.recipe import recipe_files
from statezoo.zoo.registry import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # what pytest itself brings there

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def tree():
    """The files of the working tree that git does not ignore, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, which tells what belongs to the tree")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    names = listed.stdout.decode().split("\0")
    return sorted(Path(name) for name in names if name and (ROOT / name).is_file())


# the tree -----------------------------------------------------------------------------------------------------------


def test_packages_are_the_folders_of_the_tree():
    stated = tomllib.loads(PYPROJECT)["tool"]["setuptools"]["packages"]
    folders = {file.parent for file in tree() if file.suffix == ".py" and file.parts[0] != "tests"}
    # a folder that only holds folders is a package, too
    folders |= {parent for folder in folders for parent in folder.parents}
    assert sorted(stated) == sorted(".".join(("statezoo", *folder.parts)) for folder in folders)
    assert len(set(stated)) == len(stated)


def test_only_our_own_folders_are_regular_packages():
    """`datasets` and `tasks` would otherwise win against packages of that name when Python runs in the root."""
    python = [file for file in tree() if file.suffix == ".py"]
    assert [file for file in python if len(file.parts) == 1] == [Path("__init__.py")]
    without = {file.parent for file in python if file.parts[0] in ("datasets", "tasks", "tests")}
    assert without and not [folder for folder in without if (ROOT / folder / "__init__.py").exists()]
    others = {file.parent for file in python} - without
    assert not [folder for folder in others if not (ROOT / folder / "__init__.py").exists()]


def test_root_module_is_short_and_imports_nothing():
    text = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert not [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_every_bound_says_why():
    """On its own line or on the one above."""
    lines = PYPROJECT.splitlines()
    bounds = [i for i, line in enumerate(lines) if re.search(r'"[^"#]*[<>=~]=?\s*\d[^"]*"', line)]
    assert len(bounds) >= 25
    silent = [lines[i] for i in bounds if "#" not in lines[i] and not lines[i - 1].lstrip().startswith("#")]
    assert not silent


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_uploads_that_stole_credentials_are_excluded(name):
    """GHSA-w37p-236h-pfx3; neither may come in, by its own name or through the other."""
    (bound,) = re.findall(rf'^    "{name}([^"]*)"', PYPROJECT, re.M)
    allowed = SpecifierSet(bound)
    assert not [version for version in ("2.6.2", "2.6.3") if version in allowed]
    assert all(version in allowed for version in ("2.5.1", "2.6.1", "2.6.4", "2.6.6"))


# installed ----------------------------------------------------------------------------------------------------------


def run(*command, cwd, **environment):
    """The output of a command that knows nothing of this process's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STATEZOO", "PIP_"))}
    clean |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tree: what a clean clone holds."""
    folder = tmp_path_factory.mktemp("source") / "statezoo-clone"
    for file in tree():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture
def environment(tmp_path):
    """A fresh environment that sees the packages of this one, and a package named as Hugging Face's `datasets`."""
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # a path in a .pth is not searched for further .pth files, so that an editable install here is not seen there
    (site / "parent.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    (site / "datasets").mkdir()
    (site / "datasets/__init__.py").write_text("def load_dataset(): ...\n")

    def install(*arguments):
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed")
        run(*pip, *arguments, cwd=tmp_path)
        return python

    return install


def check_installed(python, package, empty):
    """The four promises of an installation whose package folder is `package`."""
    names = api.list_models()
    code = (
        "import statezoo; from statezoo.leaderboards.board import find_records; from importlib.metadata import version;"
        f"assert statezoo.list_models() == {names}, statezoo.list_models();"
        f"assert len(find_records()) == {len(board.find_records())};"
        "assert version('statezoo') == statezoo.__version__;"
        "print(statezoo.__file__)"
    )
    empty.mkdir()
    assert Path(run(python, "-c", code, cwd=empty).strip()) == package / "__init__.py"
    listed = run(python.with_name("zoo"), "list", "recipes", cwd=empty)
    assert re.findall(r"^  (\S+) ", listed, re.M) == list(recipe_files())
    assert (package / "py.typed").is_file()
    assert not list(empty.iterdir())


def check_beside_datasets(python, folder):
    """`import datasets` is the other package, whatever folder Python runs in; ours is reached through `statezoo`."""
    code = (
        "import datasets; datasets.load_dataset;"
        "from statezoo.datasets.images.digits import Digits; print(Digits.__module__)"
    )
    assert run(python, "-c", code, cwd=folder) == "statezoo.datasets.images.digits\n"


def test_wheel_holds_what_is_needed_and_no_more(wheel):
    assert wheel.name == f"statezoo-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"statezoo-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"statezoo", info}, "`datasets` and `tasks` are not top-level"
    shipped = {Path(name).relative_to("statezoo") for name in names if name.startswith("statezoo/")}
    suffixes = {".py": None, ".yaml": "configs", ".json": "leaderboards", ".typed": None}
    wanted = {
        file
        for file in tree()
        if file.suffix in suffixes and file.parts[0] != "tests" and suffixes[file.suffix] in (None, file.parts[0])
    } | {Path("py.typed"), Path("zoo/backbones/parameters.json")}
    assert shipped == wanted, "all code, recipes, records and counts; no tests, no predictions"
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_works_in_an_empty_folder(wheel, environment, source, tmp_path):
    python = environment(wheel)
    (package,) = (tmp_path / "venv").glob("**/site-packages/statezoo")
    check_installed(python, package, tmp_path / "empty")
    for folder in (tmp_path / "empty", source):
        check_beside_datasets(python, folder)


def test_editable_install_works_in_an_empty_folder(environment, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "clone")
    python = environment("--no-build-isolation", "--editable", copy)
    check_installed(python, copy, tmp_path / "empty")
    for folder in (tmp_path / "empty", copy):
        check_beside_datasets(python, folder)
