"""Which form runs, what is refused, and that Triton is left alone until it is needed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from accel.kernels import forms
from accel.kernels.forms import select, use

ROOT = Path(__file__).parents[2]
CPU = torch.zeros(2)


def on(device: str) -> torch.Tensor:
    """A tensor that says it is on `device`, whether or not this machine has one."""
    with FakeTensorMode():
        return torch.empty(2, device=device)


@pytest.fixture(autouse=True)
def compiled_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_each_device_has_its_form():
    chosen = {device: select(on(device)) for device in ("cuda", "xpu", "cpu", "meta")}
    assert chosen == {"cuda": "triton", "xpu": "triton", "cpu": "cpu", "meta": "reference"}


def test_a_forced_form_ends_with_its_block():
    with use("reference"):
        assert select(CPU) == "reference"
        with pytest.raises(RuntimeError, match="inside"), use("cpu"):
            assert select(CPU) == "cpu"
            raise RuntimeError("inside")
        assert select(CPU) == "reference"
    assert select(CPU) == "cpu"


def test_another_thread_is_not_forced():
    seen = []
    with use("reference"):
        thread = threading.Thread(target=lambda: seen.append(select(CPU)))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"no form 'gpu': choose one of triton, cpu, reference$"), use("gpu"):
        pass


@pytest.mark.parametrize(
    ("form", "device", "message"),
    [
        ("triton", "cpu", r"run on a cpu tensor: use\('cpu'\) or set TRITON_INTERPRET=1 before .* starts$"),
        ("triton", "meta", r"cannot run on a meta tensor: use\('reference'\)$"),
        ("cpu", "cuda", r"cannot run on a cuda tensor: move it to the CPU or use\('triton'\)$"),
        ("cpu", "meta", r"cannot run on a meta tensor: move it to the CPU or use\('reference'\)$"),
    ],
)
def test_a_form_that_cannot_run_is_refused(form, device, message):
    with use(form), pytest.raises(ValueError, match=message):
        select(on(device))


def test_the_interpreter_takes_cpu_tensors_and_the_reference_takes_all(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use("triton"):
        assert select(CPU) == "triton"
    with use("reference"):
        assert [select(on(device)) for device in ("cuda", "cpu", "meta")] == ["reference"] * 3


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "accel.kernels.delta.triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match=r"needs the triton package: install it or use\('reference'\)$"):
        forms.implementation("accel.kernels.delta", on("cuda"))
    with use("triton"), pytest.raises(ValueError, match="cannot run on a cpu tensor"):
        select(CPU)


def test_the_triton_form_is_loaded_only_where_it_runs():
    code = (
        "import sys, torch; from accel.kernels.delta import compute_delta; compute_delta(*torch.ones(2, 3));"
        "print(sorted(name for name in sys.modules if name.startswith('accel.kernels.delta.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['accel.kernels.delta.cpu']"
