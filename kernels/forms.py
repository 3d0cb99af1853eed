"""Which form of an operation runs: Triton on a GPU, the fast form on a CPU, the reference anywhere else."""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import torch

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
Form = Literal["triton", "cpu", "reference"]
FORMS: tuple[Form, ...] = get_args(Form)

_TRITON_DEVICES = ("cuda", "xpu")
_forced: ContextVar[Form | None] = ContextVar("accel_forced_form", default=None)


@contextmanager
def use(form: Form) -> Iterator[None]:
    """Make every operation called inside the block run in `form`, in this thread or task alone.

    Raises:
        ValueError: there is no such form. A form that cannot run on a tensor is refused by the operation.
    """
    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}: choose one of {', '.join(FORMS)}")
    token = _forced.set(form)
    try:
        yield
    finally:
        _forced.reset(token)


def made_for(device: torch.device) -> Form:
    """The form that runs on a device where none is forced."""
    return "triton" if device.type in _TRITON_DEVICES else "cpu" if device.type == "cpu" else "reference"


def select(tensor: torch.Tensor) -> Form:
    """The form that runs on `tensor`: the forced one if there is one, else the one made for its device.

    Raises:
        ValueError: the forced form cannot run on the tensor's device.
    """
    device = tensor.device.type
    usual = made_for(tensor.device)
    forced = _forced.get()
    if forced is None:
        return usual
    if forced in (usual, "reference"):
        return forced
    if forced == "cpu":
        raise ValueError(f"the cpu form cannot run on a {device} tensor: move it to the CPU or use({usual!r})")
    if device != "cpu":
        raise ValueError(f"the triton form cannot run on a {device} tensor: use({usual!r})")
    if not _interpreting():
        raise ValueError(
            "the triton form cannot run on a cpu tensor: use('cpu') or set TRITON_INTERPRET=1 before the program starts"
        )
    return forced


def implementation(package: str, tensor: torch.Tensor) -> ModuleType:
    """The module of `package` that holds the form for `tensor`, imported when it is first needed.

    Raises:
        ValueError: the form cannot run on the tensor's device, or needs Triton where it is not installed.
    """
    form = select(tensor)
    try:
        return importlib.import_module(f"{package}.{form}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ValueError("the triton form needs the triton package: install it or use('reference')") from error


def without_autocast(body: Callable[P, R]) -> Callable[P, R]:
    """The body of an operation, in which torch.autocast shortens no product; its first argument is a tensor."""

    @functools.wraps(body)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor: Any = args[0]
        with torch.autocast(tensor.device.type, enabled=False):
            return body(*args, **kwargs)

    return plain


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one, since Triton launches on the current one."""
    if tensor.device.type not in _TRITON_DEVICES:
        return nullcontext()
    return torch.accelerator.device_index(tensor.device.index)


def by_architecture(table: Mapping[int, V]) -> V:
    """The entry for the GPU that Triton compiles for: that of the largest compute capability that is not above its own.

    Where there is none, as in the interpreter and on GPUs that have no such number, that of the smallest.
    """
    capability = 0
    if not _interpreting():
        from triton.runtime.driver import driver

        found = driver.active.get_current_target().arch
        capability = found if isinstance(found, int) else 0
    return table[max((known for known in table if known <= capability), default=min(table))]


def _interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter, which takes CPU tensors."""
    try:
        from triton import knobs
    except ModuleNotFoundError:
        return False
    return bool(knobs.runtime.interpret)
