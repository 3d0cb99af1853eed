"""`accel list`: the families, the methods, the presets, and what this machine can run."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accel.cli.environment import describe_device, devices
from accel.cli.printing import Format, FormatOption, columns, emit, say
from accel.errors import AccelError

if TYPE_CHECKING:
    from accel.methods.base import MethodConfig
    from accel.pipelines.facts import Family

_INDEX = "model_index.json"


def list_everything(
    preset: Annotated[str | None, typer.Option("--preset", help="Only this preset, with all its settings.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Only what concerns this model: demo, or a folder.", metavar="MODEL"),
    ] = None,
    form: FormatOption = Format.HUMAN,
) -> None:
    """Lists families, methods with their settings, presets, and what this machine can run."""
    data: dict[str, Any] = {}
    if model is not None:
        data["model"] = _model(model)
    if preset is not None:
        data["presets"] = {preset: _presets()[preset]} if preset in _presets() else _no_preset(preset)
    if not data:
        data = {"families": _families(), "methods": _methods(), "presets": _presets(), "machine": _machine()}
    if form is Format.JSON:
        emit(data)
        return
    for line in _lines(data):
        say(line, form)


def _families() -> dict[str, Any]:
    from accel.pipelines.families import families

    return {name: _family(family) for name, family in families().items()}


def _family(family: Family) -> dict[str, Any]:
    return {
        "title": family.title,
        "pipelines": sorted(family.pipelines),
        "transformers": list(family.transformers),
    }


def _methods() -> dict[str, Any]:
    import accel.methods  # noqa: F401
    from accel.methods.base import registered

    return {
        name: {
            "keyword": entry.config.keyword,
            "summary": _first_line(inspect.getdoc(inspect.getmodule(entry.method)) or ""),
            "settings": _settings(entry.config),
        }
        for name, entry in sorted(registered().items())
    }


def _settings(config: type[MethodConfig]) -> dict[str, Any]:
    """Per field its default and the first sentence of its line in the docstring of the class or of a base."""
    documented: dict[str, str] = {}
    for base in reversed(config.__mro__):
        documented |= _attributes(inspect.cleandoc(base.__doc__ or ""))
    return {
        name: {"default": field.default, "meaning": _sentence(documented.get(name, ""))}
        for name, field in config.model_fields.items()
    }


def _attributes(doc: str) -> dict[str, str]:
    """The entries of a docstring's section "Attributes:", each on one line."""
    _, _, section = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


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


def _model(model: str) -> dict[str, Any]:
    """What is known of a model without loading it."""
    from accel.config import CONFIG_NAME, AccelConfig
    from accel.pipelines import demo
    from accel.pipelines.families import families
    from accel.pipelines.folders import pipeline_class, read_index

    if model != "demo" and not Path(model).is_dir():
        raise AccelError(f"there is no folder {model}; accel list --model takes demo or a folder that has {_INDEX}")
    folder = demo.weights_folder() if model == "demo" else Path(model)
    pipeline = pipeline_class(read_index(folder), folder)
    names = {base.__name__ for base in pipeline.__mro__}
    family = next((f for f in families().values() if names & set(f.pipelines)), None)
    if family is None:
        raise AccelError(
            f"{pipeline.__name__} is of no family that Accel knows ({', '.join(families())}); "
            "--preset none runs it plainly"
        )
    beside = AccelConfig.from_pretrained(folder).to_dict() if (folder / CONFIG_NAME).is_file() else None
    return {
        "name": model,
        "pipeline": pipeline.__name__,
        "family": family.name,
        **_family(family),
        "config": beside,
    }


def _lines(data: dict[str, Any]) -> list[str]:
    blocks: list[list[str]] = []
    if "model" in data:
        blocks.append(_model_lines(data["model"]))
    if "families" in data:
        families = [(n, f["title"], ", ".join(f["pipelines"])) for n, f in data["families"].items()]
        blocks.append(["Families", *columns(families)])
    if "methods" in data:
        lines = ["Methods"]
        for name, method in data["methods"].items():
            lines.append(f"  --{method['keyword']} {name}: {method['summary']}")
            settings = [(f"{n}={s['default']}", s["meaning"]) for n, s in method["settings"].items()]
            lines += columns(settings, indent="      ")
        blocks.append(lines)
    if "presets" in data:
        blocks.append(["Presets", *columns([(name, p["in_words"]) for name, p in data["presets"].items()])])
    if "machine" in data:
        machine = data["machine"]
        gpus = "; ".join(describe_device(d) for d in machine["devices"]) or machine["no_devices"]
        blocks.append(["This machine", *columns([("cpu", "yes"), ("gpu", gpus), ("triton", machine["kernels"])])])
    return [line for block in blocks for line in [*block, ""]][:-1]


def _model_lines(model: dict[str, Any]) -> list[str]:
    own = "accel_config.json beside the model" if model["config"] else "the preset balanced"
    return [
        f"{model['name']}: {model['pipeline']}",
        *columns([("family", f"{model['family']}, {model['title']}"), ("used when nothing is asked for", own)]),
    ]


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def _sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]
