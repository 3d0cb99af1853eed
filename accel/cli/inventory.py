"""`accel list`: the families, the methods, the presets, and what this machine can run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accel.cli import foresight
from accel.cli.documented import about, meanings
from accel.cli.environment import describe_device, devices
from accel.cli.printing import Format, FormatOption, columns, emit, say, terminal_width

if TYPE_CHECKING:
    from accel.pipelines.facts import Family


def list_everything(
    preset: Annotated[
        str | None, typer.Option("--preset", help="Only this preset, with all its settings.", metavar="NAME")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Only this model (demo, a folder or a hub id) and all that the preset turns on there.",
            metavar="MODEL",
        ),
    ] = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Lists families, methods with their settings, presets, and what this machine can run."""
    if model is not None:
        data = foresight.foresee(model, preset)
    elif preset is not None:
        data = {"presets": {preset: _presets()[preset]} if preset in _presets() else _no_preset(preset)}
    else:
        data = {
            "families": _families(),
            "methods": _methods(),
            "together": _together(),
            "presets": _presets(),
            "machine": _machine(),
        }
    if form is Format.JSON:
        emit(data)
        return
    width = terminal_width()
    for line in _lines(data, width) if model is None else foresight.lines(data, width):
        say(line, form)


def _families() -> dict[str, Any]:
    from accel.pipelines.families import families

    return {name: _family(family) for name, family in families().items()}


def _family(family: Family) -> dict[str, Any]:
    import accel.methods  # noqa: F401
    from accel.methods.base import registered
    from accel.methods.rules import refusal

    refused = {name: why for name in sorted(registered()) if (why := refusal([name], family)) is not None}
    return {
        "title": family.title,
        "pipelines": sorted(family.pipelines),
        "transformers": list(family.transformers),
        "tested": list(family.tested),
        "refused_methods": refused,
    }


def _methods() -> dict[str, Any]:
    import accel.methods  # noqa: F401
    from accel.methods.base import registered

    return {
        name: {
            **about(entry),
            "settings": {
                setting: {"default": entry.config.model_fields[setting].default, "meaning": meaning}
                for setting, meaning in meanings(entry.config).items()
            },
        }
        for name, entry in sorted(registered().items())
    }


def _presets() -> dict[str, Any]:
    from accel.cli.methods import describe
    from accel.presets import PRESETS, preset

    configs = {name: preset(name) for name in PRESETS}
    return {name: {"config": config.to_dict(), "in_words": describe(config)} for name, config in configs.items()}


def _no_preset(name: str) -> Any:
    from accel.presets import preset

    return preset(name)


def _machine() -> dict[str, Any]:
    found, reason = devices()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    if triton is None:
        kernels = "not installed: the CPU forms run everywhere"
    elif any(device["cuda"] for device in found):
        kernels = f"{triton}: the Triton forms run on the GPU"
    else:
        kernels = f"{triton}: installed; without a GPU the CPU forms run"
    return {"cpu": True, "devices": found, "no_devices": reason, "triton": triton, "kernels": kernels}


def _together() -> list[dict[str, Any]]:
    """Every two methods, the families that take both, and those that take each, but not both together, and why."""
    from accel.methods.rules import pairs
    from accel.pipelines.families import families

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, family in families().items():
        for one, other, why in pairs(family):
            pair = found.setdefault((one, other), {"methods": [one, other], "on": [], "refused": {}})
            if why is None:
                pair["on"].append(name)
            else:
                pair["refused"][name] = why
    return [found[pair] for pair in sorted(found)]


def _lines(data: dict[str, Any], width: int | None) -> list[str]:
    blocks: list[list[str]] = []
    if "families" in data:
        rows = [
            (
                name,
                family["title"],
                f"{_who(family['refused_methods'])}, {_tested(family['tested'])}: {', '.join(family['pipelines'])}",
            )
            for name, family in data["families"].items()
        ]
        blocks.append(["Families", *columns(rows, width=width)])
    if "methods" in data:
        lines = ["Methods"]
        for name, method in data["methods"].items():
            settings = [(f"{n}={s['default']}", s["meaning"]) for n, s in method["settings"].items()]
            lines += foresight.method_lines(method, name, settings, width)
        blocks.append(lines)
    if "together" in data:
        pairs = [(" and ".join(two["methods"]), _pair(two)) for two in data["together"]]
        blocks.append(["Two methods, with their defaults", *columns(pairs, width=width)])
    if "presets" in data:
        presets = [(name, p["in_words"]) for name, p in data["presets"].items()]
        blocks.append(["Presets", *columns(presets, width=width)])
    if "machine" in data:
        machine = data["machine"]
        gpus = "; ".join(describe_device(d) for d in machine["devices"]) or machine["no_devices"]
        known = [("cpu", "yes"), ("gpu", gpus), ("triton", machine["kernels"])]
        blocks.append(["This machine", *columns(known, width=width)])
    return [line for block in blocks for line in [*block, ""]][:-1]


def _who(refused: dict[str, str]) -> str:
    return f"not {', '.join(refused)}" if refused else "all methods"


def _tested(on: list[str]) -> str:
    return f"tested on {' and '.join(on)}{'' if 'real weights' in on else ', on no real ones'}"


def _pair(pair: dict[str, Any]) -> str:
    """What is said of two methods: the families are named where they differ."""
    refused = pair["refused"]
    if not refused:
        return "stand together"
    if not pair["on"] and len(set(refused.values())) == 1:
        return next(iter(refused.values()))
    return "stand together, but not on " + ", nor on ".join(f"{name} ({why})" for name, why in refused.items())
