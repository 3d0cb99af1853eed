"""The wheel built from the tree works alone: it holds every module and the weights, and generates."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, SOURCES, modules

pytestmark = pytest.mark.slow

BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "accel", "kernels", "pipelines")
WEIGHTS = "pipelines/demo/weights"

GENERATE = """
import accel
pipe = accel.load_pipeline("demo", size="quick")
prompt = "a red circle moving left on a black background"
frames = pipe(prompt, num_inference_steps=2, output_type="np").frames[0]
finite = bool((abs(frames) < 2).all())
print(accel.__file__, type(pipe).__name__, frames.shape, finite, sep="\\n")
"""

IMPORT_ALL = """
import importlib, sys, accel
for name in sys.argv[1:]:
    assert importlib.import_module(name).__file__.startswith(accel.__path__[0]), name
"""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """A command's output; without network, and with `path` as the only place that PYTHONPATH names."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(wheel: Path) -> dict[str, str]:
    """Path in the wheel -> sha256, the wheel's own metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, so that building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `pip install .` builds it."""
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out, tree, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=target,
    )
    return target


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    expected = {
        f"{SOURCES[folder].replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in modules().values()
        if (folder := path.relative_to(ROOT).parts[0]) != "bench"
    }
    held = contents(wheel)
    assert expected == {name for name in held if name.endswith(".py")}
    assert "accel/py.typed" in held
    assert {name.partition("/")[0] for name in held} == {"accel"}


def test_the_wheel_holds_the_weights(wheel: Path) -> None:
    expected = {
        f"accel/{WEIGHTS}/{path.relative_to(ROOT / WEIGHTS).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / WEIGHTS).rglob("*")
        if path.is_file()
    }
    assert sum(name.endswith(".safetensors") for name in expected) == 4
    held = contents(wheel)
    assert {name: held.get(name) for name in expected} == expected


def test_the_source_distribution_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path, tree, cwd=tmp_path)
    (rebuilt,) = tmp_path.glob("*.whl")
    assert contents(rebuilt) == contents(wheel)


def test_the_wheel_generates(installed: Path, tmp_path: Path) -> None:
    where, *facts = run(sys.executable, "-c", GENERATE, cwd=tmp_path, path=installed).splitlines()[-4:]
    assert Path(where).is_relative_to(installed)
    assert facts == ["WanPipeline", "(9, 128, 128, 3)", "True"]


def test_every_module_of_the_wheel_imports(installed: Path, tmp_path: Path) -> None:
    names = [name for name in modules() if name.startswith("accel.") and not name.endswith("__main__")]
    assert any(name.startswith("accel.kernels.") for name in names)
    run(sys.executable, "-c", IMPORT_ALL, *names, cwd=tmp_path, path=installed)


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    assert "generate" in run(sys.executable, installed / "bin" / "accel", "--help", cwd=tmp_path, path=installed)
