"""Which linears of a transformer a quantization takes, and why it leaves the others alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from accel.errors import AccelError
from accel.kernels.int8 import MOST_CHANNELS
from accel.kernels.nvfp4 import GROUP
from accel.methods.base import nearest
from accel.pipelines.sites import Denoiser

# What a weight may be in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """One linear that is taken.

    `index` counts through those of its denoiser; `block` is the index of the block that it stands in, None outside.
    """

    denoiser: str
    index: int
    path: str
    module: nn.Linear
    block: int | None
    modulation: bool

    @property
    def name(self) -> str:
        """As the user finds it."""
        return f"{self.denoiser}.{self.path}"


def matches(path: str, entry: str) -> bool:
    """Whether an entry of a list stands for the module at a path: it is the path, one above it, or a pattern for it.

    The whole path counts, so that "proj_out" is the model's last layer and not one of that name in a block.
    """
    return fnmatchcase(path, entry) or fnmatchcase(path, f"{entry}.*")


def choose_layers(
    denoiser: Denoiser,
    *,
    left: Sequence[str],
    modulation: Sequence[str],
    take_modulation: bool,
    taken: Sequence[str],
) -> tuple[list[Layer], Counter[str]]:
    """The linears to take, and the number of others by the reason for leaving them.

    Those outside the blocks are left, whatever they are called. `left` and `modulation` are patterns of paths (see
    `matches`); what `taken` matches is taken whatever they say.
    """
    layers: list[Layer] = []
    others: Counter[str] = Counter()
    for path, module in linears(denoiser.module):
        wanted = any(matches(path, entry) for entry in taken)
        modulates = any(matches(path, entry) for entry in modulation)
        block = block_of(denoiser, path)
        if not wanted and any(matches(path, entry) for entry in left):
            others["named in modules_to_not_convert"] += 1
        elif block is None and not wanted:
            others["outside the blocks (modules_to_convert takes them)"] += 1
        elif modulates and not (wanted or take_modulation):
            others["modulation (quantize_modulation=True takes them)"] += 1
        elif type(module) is not nn.Linear:
            others[f"of the class {type(module).__name__}"] += 1
        elif module.in_features % GROUP or module.in_features > MOST_CHANNELS:
            others[f"channels are no multiple of {GROUP}, or more than {MOST_CHANNELS}"] += 1
        else:
            layers.append(Layer(denoiser.name, len(layers), path, module, block, modulates))
    return layers, others


def block_of(denoiser: Denoiser, path: str) -> int | None:
    """Index of the block that a module stands in, None outside."""
    sites = (*denoiser.blocks, *denoiser.beside)
    return next((site.index for site in sites if path.startswith(f"{site.path}.")), None)


def linears(module: nn.Module) -> Iterable[tuple[str, nn.Linear]]:
    """All linears with their paths; those of adapters are left out, and what an adapter stands around has its path."""
    adapters = [
        path for path, part in module.named_modules() if isinstance(getattr(part, "base_layer", None), nn.Module)
    ]
    for path, part in module.named_modules():
        if not isinstance(part, nn.Linear):
            continue
        around = next((adapter for adapter in adapters if path.startswith(f"{adapter}.")), None)
        if around is None:
            yield path, part
        elif path == f"{around}.base_layer":
            yield around, part


def check_names(method: str, setting: str, entries: Sequence[str], denoisers: Iterable[Denoiser]) -> None:
    """Raises `AccelError` where an entry stands for no linear of any denoiser: a typing error would protect nothing."""
    paths = {path for denoiser in denoisers for path, _ in linears(denoiser.module)}
    for entry in entries:
        if not any(matches(path, entry) for path in paths):
            raise AccelError(
                f"{method}: {setting} names {entry!r}, and no linear is there: write its path, the path of a module "
                f"around it, or a pattern such as '*.to_q'{nearest(entry, _some(entry, paths))}"
            )


def _some(entry: str, paths: set[str]) -> list[str]:
    # All paths of a large model would be a long line.
    last = entry.rsplit(".", 1)[-1]
    return sorted(path for path in paths if last in path)[:3] or sorted(paths)[:3]
