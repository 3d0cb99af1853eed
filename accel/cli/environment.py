"""`accel env`: what a bug report needs to say about a machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from accel.cli.printing import Format, FormatOption, columns, emit, say

DISTRIBUTION = "dit-accel"
# What the results depend on, and what users add beside it.
_PACKAGES = (
    *(
        "torch",
        "diffusers",
        "transformers",
        "triton",
        "accelerate",
        "safetensors",
        "huggingface-hub",
        "tokenizers",
    ),
    *(
        "numpy",
        "pillow",
        "imageio",
        "imageio-ffmpeg",
        "pydantic",
        "typer",
        "rich",
        "pyyaml",
        "pytorch-msssim",
        "ftfy",
    ),
    *("peft", "torchao", "xformers", "flash-attn", "torchvision"),
)
_VARIABLES = (
    "ACCEL_DEBUG",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "TRITON_INTERPRET",
)


def env(form: FormatOption = Format.HUMAN) -> None:
    """Prints versions, the machine and the GPU, for a bug report."""
    data = environment()
    if form is Format.JSON:
        emit(data)
        return
    rows = [("accel", data["accel"]), ("python", f"{data['python']} ({data['executable']})")]
    rows += [("platform", data["platform"]), ("processor", f"{data['processor']}, {data['cores']} cores")]
    rows += [("memory", f"{data['memory_gb']} GB")] if data["memory_gb"] else []
    rows += [("devices", "; ".join(describe_device(d) for d in data["devices"]) or data["no_devices"])]
    rows += [(name, value) for name, value in data["variables"].items()]
    for line in columns(rows, indent=""):
        say(line, form)
    say("", form)
    table = [("package", "version", "needed")]
    for name, entry in data["packages"].items():
        fits = "" if entry["fits"] in (True, None) else "  <- does not fit"
        table.append((name, entry["version"] or "missing", f"{entry['needed'] or ''}{fits}"))
    for line in columns(table, indent=""):
        say(line, form)
    if not data["installed"]:
        say(f"\n{DISTRIBUTION} is used from its source, not installed, so what it needs was not compared", form)


def environment() -> dict[str, Any]:
    """All that the command prints, as plain data."""
    import accel

    found, reason = devices()
    return {
        "accel": accel.__version__,
        "installed": _version(DISTRIBUTION) is not None,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "devices": found,
        "no_devices": reason,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "packages": _packages(),
    }


def devices() -> tuple[list[dict[str, Any]], str]:
    """The accelerators that torch can use, and why there is none when there is none."""
    if importlib.util.find_spec("torch") is None:
        return [], "none: torch is not installed"
    try:
        import torch
    except Exception as error:
        return [], f"unknown: torch does not load ({error})"
    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "device": f"cuda:{index}",
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gb": round(properties.total_memory / 1e9, 1),
                    "cuda": torch.version.cuda,
                }
            )
        return found, ""
    other = torch.accelerator.current_accelerator(check_available=True)
    if other is not None:
        return [{"device": other.type, "name": other.type, "capability": None, "memory_gb": None, "cuda": None}], ""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return [], f"none: this torch is {built}, and finds no GPU"


def describe_device(device: dict[str, Any]) -> str:
    """One device in words."""
    capability = f", compute capability {device['capability']}" if device["capability"] else ""
    memory = f", {device['memory_gb']:g} GB" if device["memory_gb"] else ""
    return f"{device['device']}: {device['name']}{capability}{memory}"


def _packages() -> dict[str, dict[str, Any]]:
    from packaging.requirements import Requirement

    needed: dict[str, Requirement] = {}
    try:
        for text in requires(DISTRIBUTION) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed[_canonical(requirement.name)] = requirement
    except PackageNotFoundError:
        pass
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*_PACKAGES, *needed)):
        installed = _version(name)
        wanted = needed.get(name)
        fits = (
            None if wanted is None else installed is not None and wanted.specifier.contains(installed, prereleases=True)
        )
        if installed is not None or wanted is not None:
            found[name] = {
                "version": installed,
                "needed": str(wanted.specifier) if wanted else None,
                "fits": fits,
            }
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (OSError, ValueError, AttributeError):
        return None
