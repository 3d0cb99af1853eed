"""A machine without an NVIDIA GPU holds the CPU build of torch, not gigabytes of CUDA."""

import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def test_no_cuda_without_a_gpu() -> None:
    if has_nvidia_gpu():
        pytest.skip("this machine has an NVIDIA GPU")
    # The Makefile leaves this note when the package index had no CPU build to offer.
    note = Path(sys.prefix, "default-torch")
    if note.exists():
        pytest.skip(note.read_text().strip())
    names = {(found.metadata["Name"] or "").lower() for found in distributions()}
    assert {name for name in names if name.startswith(("nvidia-", "cuda-"))} == set()
    assert torch.version.cuda is None
