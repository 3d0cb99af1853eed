"""What is looked at in a pipeline's folder before diffusers loads it: its class, its weights, its code.

A folder is what `save_pretrained` writes: `model_index.json` beside one folder for each component.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from accel.errors import AccelError

INDEX = "model_index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def safetensors_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder and of the folders in it (links too), by their relative names."""
    found = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`; AccelError if the folder is missing, or is not a whole pipeline."""
    if not folder.is_dir():
        raise AccelError(f"there is no folder {folder}; give an existing one, a hub id such as org/name, or demo")
    path = folder / INDEX
    if not path.is_file():
        inner = sorted(folder.glob(f"*/{INDEX}"))
        hint = f"did you mean {inner[0].parent}?" if inner else "give the folder that save_pretrained wrote"
        raise AccelError(f"{folder} has no {INDEX}, so it is not a whole pipeline; {hint}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AccelError(f"{path} is not valid JSON; save or download the pipeline again") from error
    if not isinstance(index, dict):
        raise AccelError(f"{path} is not a table of components; save or download the pipeline again")
    return index


def pipeline_class(index: dict[str, Any], where: object) -> type[DiffusionPipeline]:
    """The diffusers class that an index names; AccelError for none, an unknown one, or code of its own."""
    name = index.get("_class_name")
    if isinstance(name, list):
        raise AccelError(f"{where} brings pipeline code of its own, which is not run; load it with diffusers yourself")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, DiffusionPipeline):
        raise AccelError(
            f"{where} names the pipeline class {name!r}, which diffusers {diffusers.__version__} lacks; a newer one may"
        )
    return found


def check_components(folder: Path, index: dict[str, Any], given: Collection[str]) -> None:
    """Refuse a folder in which a component is missing, brings its own code, is pickled, or is damaged.

    `given`: names of components that the caller passes as objects; they are not read from the folder.
    """
    for name, entry in index.items():
        if name in given or not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
            continue
        part = folder / name
        if not part.is_dir() and not (folder / "config.json").is_file():
            raise AccelError(f"{folder} has no {name}, which its {INDEX} names; save or download the pipeline again")
        if (part / f"{entry[0]}.py").is_file():
            raise AccelError(f"{part} brings code of its own, which is not run; pass {name}= as an object instead")
        files = sorted(part.iterdir()) if part.is_dir() else []
        pickles = [file for file in files if file.suffix in PICKLES]
        if pickles and not any(file.suffix == ".safetensors" for file in files):
            raise AccelError(
                f"{pickles[0]} is a pickle, which can run code when it is read; if you trust it, convert it"
                " once with diffusers: pipe.save_pretrained(new_folder, safe_serialization=True)"
            )
    for file in safetensors_files(folder):
        if file.parent == folder or file.parent.name not in given:
            _check_readable(file)


def _check_readable(file: Path) -> None:
    """Read the header only: it says how long the file must be."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise AccelError(f"{file} is damaged or incomplete ({reason}); copy or download it again") from error
