"""Measures on the built-in model what acceleration methods rely on, beside the same network with random weights.

python -m accel.pipelines.demo.training.statistics [--folder FOLDER] [--write FILE]

Attention mass in blocks of 64 tokens says what sparse attention may leave out; the change from step to step says
what a cache may reuse; a block's change against its error under quantization says which steps may run in few bits.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from torch import Tensor, nn
from torch.nn import functional

from accel.measure.timing import machine
from accel.pipelines import demo
from accel.pipelines.demo.held_out import held_out
from accel.pipelines.demo.training.attention import project
from accel.pipelines.loading import weights_hash

BLOCK, MASS = 64, 0.95
TILE = (4, 4, 4)
_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def tile_order(grid: tuple[int, int, int], tile: tuple[int, int, int] = TILE) -> Tensor:
    """The tokens of a (t, h, w) grid tile by tile: neighbours in space and time share a block."""
    index = torch.arange(math.prod(grid)).view(grid)
    parts = [
        index[t : t + tile[0], h : h + tile[1], w : w + tile[2]].flatten()
        for t in range(0, grid[0], tile[0])
        for h in range(0, grid[1], tile[1])
        for w in range(0, grid[2], tile[2])
    ]
    return torch.cat(parts)


def blocks_for_mass(probabilities: Tensor, order: Tensor) -> Tensor:
    """(heads,): the mean share of key blocks that hold `MASS` of a query block's attention, best blocks first.

    Args:
        probabilities: (heads, N, N), rows that sum to 1.
        order: (N,), the tokens in the order in which they are cut into blocks of `BLOCK`.
    """
    heads, count, _ = probabilities.shape
    blocks = -(-count // BLOCK)
    padding = blocks * BLOCK - count
    ordered = functional.pad(probabilities[:, order][:, :, order], (0, padding, 0, padding))
    mass = ordered.view(heads, blocks, BLOCK, blocks, BLOCK).sum((2, 4))
    mass = mass / mass.sum(-1, keepdim=True)
    best_first = mass.sort(-1, descending=True).values.cumsum(-1)
    return ((best_first < MASS).sum(-1) + 1).float().mean(-1) / blocks


def fake_int8(x: Tensor) -> Tensor:
    """Rounded to 8 bits symmetrically with one scale for each row: a token, or an output channel."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (x / scale).round() * scale


def fake_fp4(x: Tensor) -> Tensor:
    """Rounded to E2M1, four bits, with one scale for each 16 neighbours of a row."""
    groups = x.unflatten(-1, (-1, 16))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 6
    scaled = groups / scale
    nearest = (scaled.abs()[..., None] - _FP4).abs().argmin(-1)
    return (_FP4[nearest] * scaled.sign() * scale).flatten(-2)


@contextmanager
def quantized(block: nn.Module, rounding: Any) -> Iterator[None]:
    """Within it every linear layer of the block has rounded weights and rounds its inputs."""
    layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
    kept = [layer.weight.data for layer in layers]
    handles = [layer.register_forward_pre_hook(lambda _, args: (rounding(args[0]), *args[1:])) for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data = rounding(weight)
        yield
    finally:
        for layer, weight, handle in zip(layers, kept, handles, strict=True):
            layer.weight.data = weight
            handle.remove()


class Observer:
    """Follows one generation on the conditional branch and collects figures by name."""

    def __init__(self, grid: tuple[int, int, int], measured: set[int]) -> None:
        self.orders = {"raster": torch.arange(math.prod(grid)), "tiled": tile_order(grid)}
        self.measured = measured
        self.calls = -1
        self.figures: dict[str, list[float]] = defaultdict(list)
        self._before: dict[Any, Tensor] = {}
        self._quantizing = False

    @property
    def step(self) -> int:
        return self.calls // 2

    @property
    def looking(self) -> bool:
        """Whether this is the conditional call of a step: it comes first of the two."""
        return self.calls % 2 == 0 and not self._quantizing

    def _change(self, key: Any, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """The value and what it was one step ago, if it was."""
        before = self._before.get(key)
        self._before[key] = value
        return None if before is None else (value, before)

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention's output (1, heads, N, dim), noted."""
        scores = query[0] @ key[0].mT / math.sqrt(query.shape[-1])
        lse = scores.logsumexp(-1)
        probabilities = (scores - lse[..., None]).exp()
        out = probabilities @ value[0]
        if pair := self._change(("attention", layer), out):
            now, before = pair
            change = (now - before).norm(dim=(1, 2)) / now.norm(dim=(1, 2))
            self.figures["attention output, relative change a step"] += change.tolist()
        if pair := self._change(("lse", layer), lse):
            self.figures["LSE, mean absolute change a step"] += (pair[0] - pair[1]).abs().mean(-1).tolist()
        if self.step in self.measured:
            for name, order in self.orders.items():
                share = blocks_for_mass(probabilities, order)
                self.figures[f"share of blocks with {MASS:.0%} of the mass, {name}"] += share.tolist()
        return out[None]

    @torch.no_grad()
    def block(self, module: nn.Module, args: tuple[Any, ...], output: Tensor, layer: int) -> None:
        """A block's change of its input, and at measured steps its error under quantization."""
        if not self.looking:
            return
        delta = output - args[0]
        if pair := self._change(("block", layer), delta):
            now, before = pair
            self.figures["block delta, relative change a step"].append(((now - before).norm() / now.norm()).item())
            cosine = functional.cosine_similarity(now.flatten(), before.flatten(), 0)
            self.figures["block delta, cosine with the step before"].append(cosine.item())
        if self.step in self.measured:
            self.figures["block change (delta / input)"].append((delta.norm() / args[0].norm()).item())
            self._quantizing = True
            for name, rounding in (("INT8", fake_int8), ("FP4", fake_fp4)):
                with quantized(module, rounding):
                    error = (module(*args) - output).norm() / output.norm()
                self.figures[f"block output, relative error in {name}"].append(error.item())
            self._quantizing = False


class _Observed:
    """A processor of self-attention that lets the observer compute on the conditional branch."""

    def __init__(self, observer: Observer, layer: int, plain: Any) -> None:
        self.observer, self.layer, self.plain = observer, layer, plain

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.observer.looking:
            return self.plain(attn, hidden_states, *args, **kwargs)
        rotary = args[2] if len(args) > 2 else kwargs.get("rotary_emb")
        out = self.observer.attention(self.layer, *project(attn, hidden_states, hidden_states, rotary))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def correlation(a: list[float], b: list[float]) -> dict[str, float]:
    """Pearson's and Spearman's (of the ranks)."""
    values = torch.tensor([a, b], dtype=torch.float64)
    ranks = values.argsort(1).argsort(1).double()
    return {"pearson": torch.corrcoef(values)[0, 1].item(), "spearman": torch.corrcoef(ranks)[0, 1].item()}


def observe(pipe: WanPipeline, call: dict[str, Any], measure: int = 4) -> dict[str, Any]:
    """Generates one held-out scene with guidance and returns mean, least and most of every figure."""
    transformer: Any = pipe.transformer
    grid = ((call["num_frames"] - 1) // 2 + 1, call["height"] // 16, call["width"] // 16)
    steps = call["num_inference_steps"]
    observer = Observer(grid, {round(i * (steps - 1) / (measure - 1)) for i in range(measure)})

    def count(*_: Any) -> None:
        observer.calls += 1

    transformer.register_forward_pre_hook(count)
    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(_Observed(observer, layer, block.attn1.processor))
        block.register_forward_hook(lambda m, a, out, layer=layer: observer.block(m, a, out, layer))
    pipe(held_out()[0].caption(), generator=torch.Generator().manual_seed(0), output_type="latent", **call)
    figures = observer.figures
    report: dict[str, Any] = {
        name: {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}
        for name, values in figures.items()
    }
    for bits in ("INT8", "FP4"):
        pair = figures["block change (delta / input)"], figures[f"block output, relative error in {bits}"]
        report[f"correlation of block change and error in {bits}"] = correlation(*pair)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="the model; the built-in one when left out")
    parser.add_argument("--size", choices=demo.SIZES, default="standard")
    parser.add_argument("--steps", type=int, help="instead of the size's default")
    parser.add_argument("--write", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()

    torch.set_num_threads(1)
    folder = options.folder or demo.WEIGHTS
    call = {name: value for name, value in demo.defaults(options.size).items() if name != "fps"}
    call |= {} if options.steps is None else {"num_inference_steps": options.steps}
    report: dict[str, Any] = {"machine": machine("cpu"), "weights": weights_hash(folder), "call": call}
    for kind in ("trained", "random"):
        pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        if kind == "random":
            torch.manual_seed(0)
            pipe.transformer = WanTransformer3DModel.from_config(pipe.transformer.config).eval()
        report[kind] = observe(pipe, call)
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
