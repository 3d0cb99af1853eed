"""Where a quantized layer's original weight is meanwhile: in host memory, or in the files that it was loaded from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from accel.errors import AccelError
from accel.pipelines.sites import Denoiser


class Original:
    """The original weight of one layer, as the very parameter that the layer had."""

    def __init__(self, weight: nn.Parameter, file: WeightFile | None = None) -> None:
        self._weight = weight
        self._file = file
        # A file may have more digits than the model did.
        self._dtype = weight.dtype
        self.requires_grad = weight.requires_grad
        if file is None:
            weight.data = weight.data.to("cpu")
        else:
            weight.data = weight.data.new_empty(0)

    @property
    def kept(self) -> bool:
        """Whether it is in host memory."""
        return self._file is None

    def numbers(self) -> Tensor:
        """The weight on the CPU; read from its file where it is not kept."""
        return self._weight.data if self._file is None else self._file.read().to(self._dtype)

    def give_back(self, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
        """The parameter with its bits, on a device and in the dtype that it would have by now."""
        numbers = self.numbers()
        if (numbers.device, numbers.dtype) != (device, dtype):
            numbers = numbers.to(device, dtype)
        if numbers is not self._weight.data:
            self._weight.data = numbers
        return self._weight


@dataclass(frozen=True)
class WeightFile:
    """A tensor in a safetensors file; `state` tells whether it is still the file that it was."""

    path: Path
    name: str
    state: tuple[int, int]

    @classmethod
    def at(cls, path: Path, name: str) -> WeightFile:
        """A tensor in a file as the file is now."""
        return cls(path, name, _state(path))

    def read(self) -> Tensor:
        """The tensor, on the CPU."""
        try:
            if _state(self.path) != self.state:
                raise OSError("the file was written anew since")
            with safe_open(self.path, framework="pt") as file:
                return file.get_tensor(self.name)
        except (OSError, ValueError, RuntimeError) as error:
            raise AccelError(
                f"the original weight {self.name} cannot be read from {self.path} again: {error}"
            ) from error


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def weight_files(method: str, denoiser: Denoiser) -> dict[str, WeightFile]:
    """The tensors in the folder that a denoiser was loaded from, by name.

    Raises:
        AccelError: it was loaded from no local folder with safetensors.
    """
    named = getattr(getattr(denoiser.module, "config", None), "_name_or_path", None)
    for folder in (Path(named), Path(named) / denoiser.name) if named else ():
        found: dict[str, WeightFile] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found.update({name: WeightFile.at(path, name) for name in file.keys()})  # noqa: SIM118 - no mapping
        if found:
            return found
    raise AccelError(
        f"{method}: keep_original=False gives the weights back from the folder they came from, and "
        f"pipe.{denoiser.name} was loaded from none with safetensors: leave keep_original=True"
    )


def require_same(method: str, layer: str, weight: Tensor, file: WeightFile | None) -> WeightFile:
    """The file, if what it holds has the bits of the weight; raises `AccelError` otherwise."""
    if file is not None:
        stored = file.read().to(weight.dtype)
        if stored.shape == weight.shape and torch.equal(stored, weight.detach().cpu()):
            return file
    raise AccelError(
        f"{method}: keep_original=False gives the weights back from the folder they came from, which does not have "
        f"those of {layer}: leave keep_original=True"
    )
