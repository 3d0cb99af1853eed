"""LPIPS: the distance between two clips in the features of AlexNet, from weights that lie on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from accel.errors import AccelError
from accel.measure.frames import as_pair, in_parts

# AlexNet's convolutions as torchvision numbers them, and where its activations are read.
_CHANNELS = (64, 192, 384, 256, 256)
_READ_AFTER = (1, 4, 7, 9, 11)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
LEAST_SIDE = 31
_BACKBONE = "alexnet-owt-*.pth"
_HEADS = "alex.pth"
_PIXELS_AT_ONCE = 2**19


class Lpips:
    """LPIPS (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018,
    equation 1), version 0.1 on AlexNet: 0 for equal clips, larger the less alike.

    It takes two files: AlexNet's weights as torchvision publishes them (`alexnet-owt-7be5be79.pth`), and the five
    heads of LPIPS (`alex.pth`), which torchmetrics has in its package. Nothing is downloaded.

    Args:
        folder: where the files are. None looks where torch keeps what it has downloaded (`torch.hub.get_dir()`).
            Heads that are not in the folder are taken from torchmetrics.

    Raises:
        AccelError: a file is missing, or is not what its name says.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        place = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)
        self._features = _features()
        self._heads = [nn.Conv2d(channels, 1, 1, bias=False) for channels in _CHANNELS]
        _fill(_backbone_file(place), {f"features.{name}": value for name, value in _parameters(self._features)})
        heads = {f"lin{index}.model.1.weight": head.weight for index, head in enumerate(self._heads)}
        _fill(_heads_file(place), heads)

    def __call__(self, clip: Any, reference: Any) -> float:
        """The distance, mean over frames, in float32.

        Args:
            clip, reference: clips (T, H, W, 3) or pictures (H, W, 3), tensors or arrays, in [0, 1].

        Raises:
            ValueError: as for :func:`accel.measure.frames.as_pair`.
            AccelError: frames of fewer than 31 pixels a side.
        """
        first, second = as_pair(clip, reference)
        height, width = first.shape[1:3]
        if min(height, width) < LEAST_SIDE:
            raise AccelError(f"LPIPS needs {LEAST_SIDE} pixels a side, the frames have {height}x{width}")
        with torch.inference_mode():
            parts = in_parts(first, second, _PIXELS_AT_ONCE)
            return torch.cat([self._distance(*part) for part in parts]).mean().item()

    def _distance(self, first: Tensor, second: Tensor) -> Tensor:
        """(T,) for two parts (T, H, W, 3)."""
        features = self._activations(torch.cat([first, second]))
        total = torch.zeros(len(first))
        for head, layer in zip(self._heads, features, strict=True):
            ours, theirs = normalize(layer, dim=1, eps=1e-10).chunk(2)
            total += head((ours - theirs).square()).mean((1, 2, 3))
        return total

    def _activations(self, frames: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        values = (2 * frames.permute(0, 3, 1, 2).float() - 1 - shift) / scale
        found = []
        for index, layer in enumerate(self._features):
            values = layer(values)
            if index in _READ_AFTER:
                found.append(values)
        return found


def _features() -> nn.Sequential:
    """AlexNet ("One weird trick for parallelizing convolutional neural networks", 2014) up to its last activation."""
    one, two, three, four, five = _CHANNELS
    return nn.Sequential(
        *(nn.Conv2d(3, one, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(one, two, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(two, three, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(three, four, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(four, five, 3, padding=1), nn.ReLU()),
    ).eval()


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.named_parameters())


def _backbone_file(folder: Path) -> Path:
    found = sorted(folder.glob(_BACKBONE))
    if not found:
        raise AccelError(
            f"LPIPS needs AlexNet's weights, {_BACKBONE} as torchvision publishes them, and {folder} has none: "
            "put them there or name the folder that has them"
        )
    return found[-1]


def _heads_file(folder: Path) -> Path:
    places = [folder / _HEADS]
    torchmetrics = find_spec("torchmetrics")
    if torchmetrics is not None and torchmetrics.origin is not None:
        places.append(Path(torchmetrics.origin).parent / "functional" / "image" / "lpips_models" / _HEADS)
    for place in places:
        if place.is_file():
            return place
    raise AccelError(
        f'LPIPS needs its heads, {_HEADS}: pip install "dit-accel[bench]", whose torchmetrics has them, '
        f"or put the file into {folder}"
    )


def _fill(file: Path, wanted: dict[str, Tensor]) -> None:
    """Copies a file's tensors into parameters of the same names."""
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in wanted.items():
                if stored[name].shape != parameter.shape:
                    raise ValueError(f"{name} has shape {tuple(stored[name].shape)}, not {tuple(parameter.shape)}")
                parameter.copy_(stored[name])
    except Exception as error:
        what = str(error).strip().splitlines()[:1]
        raise AccelError(
            f"{file} is not the weights that LPIPS needs ({type(error).__name__}: {''.join(what)})"
        ) from error
