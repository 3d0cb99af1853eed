"""What a figure must be read with: the device, the versions, the state of the code."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

from accel.measure.timing import machine

_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("kernels", "pipelines", "accel", "bench/gpu_suite", "bench/kernels")
# By the names and versions of pyproject.toml.
_NEEDS = {
    "pipelines": (
        *("diffusers>=0.42", "transformers>=5.0", "accelerate>=1.10", "safetensors>=0.5", "imageio>=2.37"),
        *("pydantic>=2.10", "pyyaml>=6.0", "ftfy>=6.2", "pytorch-msssim>=1.0"),
    )
}
_PIPELINES = (
    "from diffusers import FluxPipeline, HunyuanVideoPipeline, WanPipeline; "
    "import accelerate, ftfy, imageio, pytorch_msssim, yaml; import accel.session, accel.measure.quality"
)
# What runs already, whatever it says that it needs: its libraries need not have come as packages.
_GIVEN = ("torch", "triton")
# Results that differ in one of these do not belong into one folder.
_ONE = ("device", "torch", "triton", "source")
_ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def environment(device: str, commit: str | None = None) -> dict[str, Any]:
    """The machine, the GPU, the versions and the code that is measured; `commit` where git does not know it."""
    found: dict[str, Any] = {**machine(device), "device_kind": device, "source": source()}
    if commit:
        found["commit"] = commit
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        found |= {
            "compute_capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "memory_gb": round(facts.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **_asked_of_the_driver(),
        }
    return found


def results_folder(device: str) -> Path:
    """Where the results of a device are kept."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return _ROOT / "bench" / "results" / "_".join(name.lower().replace("-", " ").split())


def difference(kept: dict[str, Any], here: dict[str, Any]) -> str | None:
    """In what two environments differ so that their results must not stand together."""
    apart = [f"{name} ({kept.get(name)}, here {here.get(name)})" for name in _ONE if kept.get(name) != here.get(name)]
    return " and ".join(apart) or None


def missing(part: str) -> list[str]:
    """The packages that a part needs, and those need in turn, that are not here in a version that does.

    What is only needed in turn, or of another version, is not missing where all can be imported: packages ask for more
    than every use of them takes.
    """
    needs = list(_NEEDS.get(part, ()))
    if not needs:
        return []
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return ["packaging"]
    own = {Requirement(need).name for need in needs}
    seen: set[str] = set()
    lacking: list[str] = []
    while needs:
        need = Requirement(needs.pop(0))
        if str(need) in seen or (need.marker is not None and not need.marker.evaluate({"extra": ""})):
            continue
        seen.add(str(need))
        try:
            found = distribution(need.name)
        except PackageNotFoundError:
            lacking.append(need.name)
            continue
        if not need.specifier.contains(found.version, prereleases=True):
            lacking.append(f"{need.name}{need.specifier} ({found.version} is here)")
        if need.name not in _GIVEN:
            needs += found.requires or ()
    return list(dict.fromkeys(lacking)) if own & set(lacking) or (lacking and not _imports()) else []


def _imports() -> bool:
    """Whether a new Python can import what the pipelines are made of."""
    return subprocess.run([sys.executable, "-c", _PIPELINES], cwd=_ROOT, capture_output=True).returncode == 0


def source() -> str:
    """A hash of the Python that is measured, which is there also where git is not."""
    digest = hashlib.sha256()
    # accel/ links to two of the folders, which count once.
    paths = {path.resolve() for folder in _SOURCES for path in (_ROOT / folder).rglob("*.py")}
    for path in sorted(paths):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _asked_of_the_driver() -> dict[str, str]:
    """Driver and clocks as nvidia-smi reads them, idle; nothing where it does not answer."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(_ASKED, (value.strip() for value in line.split(",")), strict=False))
