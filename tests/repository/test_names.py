"""Names that would collide, with HuggingFace's `kernels` or with our own functions; and file lengths."""

import inspect
import subprocess
import sys
from pathlib import Path

import accel
from tests.repository.tree import ROOT, files, modules

LONGEST_FILE = 500


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Python code in a fresh interpreter, with the repository's root first on its path."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[1:1] = {[str(p) for p in path]}\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_kernels_and_tests_are_not_packages() -> None:
    # A script that is run by its path has its folder, bench/, first on the path.
    folders = ("kernels", "pipelines", "bench/kernels")
    inits = [path for folder in folders if (path := ROOT / folder / "__init__.py").exists()]
    inits += [path for path in files(ROOT / "tests") if path.name == "__init__.py"]
    assert not inits, f"these would take names from other packages: {inits}"


def test_the_links_stand() -> None:
    for name in ("kernels", "pipelines"):
        link = ROOT / "accel" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


def test_transformers_imports_beside_our_folders() -> None:
    done = run("import transformers; from transformers import T5EncoderModel; print(T5EncoderModel.__name__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "T5EncoderModel"


def test_the_kernels_package_of_huggingface_is_found(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("MARK = 'theirs'\n")
    done = run("import kernels; print(kernels.MARK)", tmp_path)
    assert done.stdout.strip() == "theirs", done.stderr


def test_no_module_is_named_like_a_public_function() -> None:
    public = {name for name in accel.__all__ if inspect.isfunction(getattr(accel, name))}
    assert {"enable", "disable", "summary"} <= public
    taken = public & {path.stem if path.suffix else path.name for path in (ROOT / "accel").iterdir()}
    assert not taken, f"importing accel.{taken} would replace the function of that name"


def test_files_are_short() -> None:
    assert len(modules()) > 20
    sources = [path for folder in ("accel", "kernels", "pipelines", "bench", "tests") for path in files(ROOT / folder)]
    lengths = {path: len(path.read_text().splitlines()) for path in sources if path.suffix == ".py"}
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > LONGEST_FILE}
    assert not long, f"more than {LONGEST_FILE} lines, split by idea: {long}"
