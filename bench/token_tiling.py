"""Times the denoiser with tokens tiled per attention call, once per forward and not at all.

python -m bench.token_tiling [--device cuda] [--dtype bfloat16] [--pixels 256] [--repeats 7]

The built-in model without its decoder, PISA in every layer and step, so that nothing but the order of tokens differs.
`order alone` is what bringing query, key and value into order and the output back costs in one attention call.
"""

import argparse
from collections.abc import Callable

import torch

import accel
from accel.kernels.arrangement import arrange
from accel.measure.timing import interleaved, machine
from accel.measure.verdict import speed_up
from accel.methods.pisa import PISAConfig

STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--pixels", type=int, default=256, help="height and width")
    parser.add_argument("--density", type=float, default=0.125)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    pipe = accel.load_pipeline("demo").to(options.device, getattr(torch, options.dtype))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 1.0}
    call |= {"height": options.pixels, "width": options.pixels}

    def run(tiling: str) -> Callable[[], object]:
        def case() -> object:
            config = PISAConfig(density=options.density, dense_steps=0.0, dense_layers=0, tiling=tiling)
            with accel.enable(pipe, attention=config) as session:
                pipe("a red circle moving left on a plain black background", **call)
            runs.append(session.summary().to_dict()["runs"][0])
            return None

        return case

    runs: list[dict] = []
    times = interleaved(
        {f"tiling={tiling!r}": run(tiling) for tiling in ("call", "forward", "none")},
        warmup=1,
        repeats=options.repeats,
        device=options.device,
    )
    grid = runs[0]["grid"]
    config = pipe.transformer.config
    heads, size, layers = config.num_attention_heads, config.attention_head_dim, config.num_layers
    order = arrange(tuple(grid), device=options.device)
    x = torch.randn(1, order.length, heads, size, device=options.device, dtype=getattr(torch, options.dtype))
    alone = interleaved(
        {"order alone": lambda: [order.apply(x), order.apply(x), order.apply(x), order.restore(x)]},
        warmup=2,
        repeats=5 * options.repeats,
        device=options.device,
    )["order alone"]

    print(", ".join(f"{key}: {value}" for key, value in machine(options.device).items() if value is not None))
    print(
        f"{options.dtype}, {order.length} tokens {tuple(grid)}, {heads} heads of {size}, {layers} layers, "
        f"{STEPS} steps, density {options.density}; {options.repeats} repeats, "
        f"interleaved, after 1 of warm-up; the whole call"
    )
    base = times["tiling='call'"]
    for name, time in times.items():
        said = "the baseline" if time is base else str(speed_up(base.seconds, time.seconds))
        print(f"{name}: {time.median:.3f} s ({time.p20:.3f} to {time.p80:.3f}), {said}")
    share = alone.median * layers * STEPS / base.median
    print(f"order alone: {1e3 * alone.median:.2f} ms of an attention call, {share:.1%} of the whole in all layers")


if __name__ == "__main__":
    main()
