"""Where the repository's own files are: the root, its Python modules and its tracked text."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Folder at the top level -> the name its modules are imported under. accel/kernels and accel/pipelines are
# links to two of them, so the walk does not follow links.
SOURCES = {
    "kernels": "accel.kernels",
    "pipelines": "accel.pipelines",
    "accel": "accel",
    "bench": "bench",
}
PASSED_OVER = {"__pycache__", ".git", ".venv", "build", "dist", "outputs"}


def files(folder: Path) -> Iterator[Path]:
    """Every real file under a folder, links, caches, build products and hidden folders left out."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(
            name
            for name in folders
            if name not in PASSED_OVER and not name.endswith(("_cache", ".egg-info")) and name != ".hypothesis"
        )
        for name in sorted(names):
            path = Path(parent, name)
            if not path.is_symlink():
                yield path


def modules() -> dict[str, Path]:
    """Module name -> file, for the library and the benchmarks."""
    found = {}
    for folder, name in SOURCES.items():
        for path in files(ROOT / folder):
            if path.suffix == ".py":
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                found[".".join((name, *parts))] = path
    return found


def tracked() -> list[Path]:
    """The repository's files: git's list and what is about to be added, or a walk where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        return list(files(ROOT))
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]
