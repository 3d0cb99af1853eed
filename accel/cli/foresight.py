"""What acceleration comes to on one model, found out before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.cli.documented import about, meanings
from accel.cli.libraries import quiet_libraries
from accel.cli.methods import MethodOptions, resolve
from accel.cli.printing import columns, folded
from accel.errors import AccelError

if TYPE_CHECKING:
    from accel.config import AccelConfig
    from accel.methods.rules import Place
    from accel.pipelines.facts import Family


def foresee(model: str, preset: str | None) -> dict[str, Any]:
    """The model's pipeline and family, and all that the preset turns on there; without a preset, what `accel.enable`
    would by itself.

    Reads no weights. Raises `AccelError` where `accel.enable` would, as far as the files tell.
    """
    from accel.pipelines.families import families
    from accel.pipelines.loading import look_up

    quiet_libraries()
    parts = {name for family in families().values() for name in family.denoisers}
    pipeline, folder = look_up(model, configs=sorted(parts))
    family, place = _place(pipeline, folder)
    # A file beside a model of the hub is not used: whoever loads a model by its name has not chosen it.
    beside = folder if model == "demo" or Path(model).expanduser().is_dir() else None
    config, origin = resolve(MethodOptions(preset=preset), beside)
    return {
        "model": {
            "name": model,
            "pipeline": pipeline.__name__,
            "family": family.name,
            "title": family.title,
            "guidance": place.guidance.form if place.guidance is not None else None,
        },
        "turned_on": {"by": origin, "asked_for": preset is not None, **_methods(config, place)},
    }


def lines(data: dict[str, Any], width: int | None) -> list[str]:
    """The same for a person, in lines of a width."""
    model, turned_on = data["model"], data["turned_on"]
    by = turned_on["by"] if turned_on["by"].endswith(".json") else f"the preset {turned_on['by']}"
    heading = f"What {by} turns on here" + ("" if turned_on["asked_for"] else ", as long as nothing else is asked for")
    found = [
        f"{model['name']}: {model['pipeline']}, of the family {model['family']} ({model['title']})",
        "",
        heading if turned_on["methods"] else "No method is on: the pipeline runs plainly",
    ]
    for name, method in turned_on["methods"].items():
        rows = [(f"{setting}={entry['value']}", entry["meaning"]) for setting, entry in method["settings"].items()]
        found += method_lines(method, name, rows, width)
    for remark in turned_on["left_out"]:
        found += folded(f"  {remark}", 6, width)
    return found


def method_lines(method: dict[str, Any], name: str, settings: list[tuple[str, str]], width: int | None) -> list[str]:
    """How a method is turned on, its settings with their meanings, and what it needs."""
    found = folded(f"  --{method['keyword']} {name}: {method['summary']}", 6, width)
    found += columns(settings, indent="      ", width=width)
    if method["needs"]:
        found += folded(f"      needs {'; '.join(method['needs'])}", 12, width)
    return found


def _place(pipeline: type, folder: Path) -> tuple[Family, Place]:
    from accel.methods.rules import Place
    from accel.pipelines.sites import family_of

    family, guidance = family_of(pipeline)
    sizes: list[tuple[str, int]] = []
    for name in family.denoisers:
        file = folder / name / "config.json"
        if not file.is_file():
            continue
        try:
            size = json.loads(file.read_text(encoding="utf-8")).get("attention_head_dim")
        except (OSError, ValueError, AttributeError) as error:
            raise AccelError(f"{file} is not a component's configuration; save or download the model again") from error
        if isinstance(size, int):
            sizes.append((name, size))
    return family, Place(family, guidance, heads=lambda: sizes or None)


def _methods(config: AccelConfig, place: Place) -> dict[str, Any]:
    from accel.methods.base import registered
    from accel.methods.rules import standing

    found = {}
    configs, left_out = standing(config.methods, config.optional, place)
    for settled in configs:
        explained = meanings(type(settled))
        settings = {n: {"value": v, "meaning": explained[n]} for n, v in settled.model_dump().items()}
        found[settled.method] = {**about(registered()[settled.method]), "settings": settings}
    return {"methods": found, "left_out": list(left_out)}
