"""One way to get a pipeline: the demo, a folder, or a model of the hub, from safetensors only."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from accel.errors import AccelError
from accel.pipelines import demo
from accel.pipelines.folders import (
    INDEX,
    PICKLES,
    check_components,
    pipeline_class,
    read_index,
    safetensors_files,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
OPTIONS = (
    *HUB_OPTIONS,
    *("device_map", "max_memory", "offload_folder", "offload_state_dict", "low_cpu_mem_usage"),
    *("variant", "quantization_config", "disable_mmap"),
)
REFUSED_OPTIONS = {
    "custom_pipeline": "code that comes with a model is not run; load it with diffusers yourself",
    "custom_revision": "code that comes with a model is not run; load it with diffusers yourself",
    "trust_remote_code": "code that comes with a model is not run; load it with diffusers yourself",
    "use_safetensors": "weights are always read from safetensors; leave it out",
    "dtype": "it is called torch_dtype here",
}


def load_pipeline(
    model: str | Path = "demo",
    *,
    size: str | None = None,
    torch_dtype: str | torch.dtype | Mapping[str, str | torch.dtype] | None = None,
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> DiffusionPipeline:
    """Load a diffusers pipeline of the right class, from safetensors only, running no code of the model's.

    Args:
        model: `"demo"`, the built-in model; or a folder that `save_pretrained` wrote; or a hub id such as
            `"org/name"`, downloaded unless it is in the cache. A folder that is called demo is `"./demo"`.
        size: of the demo only: `"standard"` (the default; 128x128 pixels, 65 frames) or `"quick"` (9 frames).
        torch_dtype: a torch dtype or its name, one of float32, bfloat16 and float16; or a table of them by
            component, with `"default"` for the rest, as in diffusers. Without it the demo is float32, and
            other models load as diffusers loads them.
        device: where to put the pipeline, such as `"cuda"`; without it, it stays where diffusers loads it.
        **kwargs: what `DiffusionPipeline.from_pretrained` takes: components as objects (`vae=...`),
            `revision`, `variant`, `token`, `cache_dir`, `local_files_only`, `device_map` and the like.

    Raises:
        AccelError: what is asked for cannot be loaded; one line, with diffusers' own error as its cause.
    """
    if not isinstance(model, (str, Path)):
        raise AccelError(f'model must be "demo", a folder or a hub id, not {type(model).__name__}')
    built_in = model == "demo"
    if size is not None and not built_in:
        raise AccelError(f"size belongs to the demo, and {str(model)!r} has one size only; leave size out")
    dtype = _dtype(torch_dtype)
    place = _device(device)
    if place is not None and kwargs.get("device_map") is not None:
        raise AccelError("device and device_map both say where the model goes; give one of the two")
    for name in kwargs.keys() & REFUSED_OPTIONS.keys():
        raise AccelError(f"{name} is not taken: {REFUSED_OPTIONS[name]}")

    if built_in:
        from accel.pipelines.demo.pipeline import CLASSES

        chosen = "standard" if size is None else size
        demo.check_size(chosen)
        pipe = _load(CLASSES[chosen], demo.WEIGHTS, torch.float32 if dtype is None else dtype, kwargs)
    elif (hub_id := _hub_id(model)) is not None:
        pipe = _load_from_hub(hub_id, dtype, kwargs)
    else:
        folder = Path(model).expanduser().absolute()
        pipe = _load(pipeline_class(read_index(folder), folder), folder, dtype, kwargs)
    return pipe if place is None else pipe.to(place)


def look_up(
    model: str | Path = "demo", *, configs: Collection[str] = (), **kwargs: Any
) -> tuple[type[DiffusionPipeline], Path]:
    """The class of a model's pipeline and the folder with its index, without any weights.

    `model` is as in `load_pipeline`, and so are the refusals. Of a hub id, the index is fetched unless it is in the
    cache, and so are the `config.json` of the components named in `configs`, where it has them; from where and in which
    state `kwargs` say, which are of those in `HUB_OPTIONS`.
    """
    if model == "demo":
        from accel.pipelines.demo.pipeline import CLASSES

        return CLASSES["standard"], demo.WEIGHTS
    hub_id = _hub_id(model)
    if hub_id is None:
        folder = Path(model).expanduser().absolute()
        return pipeline_class(read_index(folder), folder), folder
    try:
        folder = _fetched(hub_id, INDEX, kwargs).parent
        index = read_index(folder)
        for name in configs:
            if name in index:
                with suppress(EntryNotFoundError):
                    _fetched(hub_id, f"{name}/config.json", kwargs)
    except AccelError:
        raise
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        raise AccelError(_hub_refusal(hub_id, error)) from error
    return pipeline_class(index, hub_id), folder


def hub_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of `load_pipeline`, those that say from where a model of the hub comes, and in which state."""
    return {name: given[name] for name in HUB_OPTIONS if name in given}


def source(pipe: DiffusionPipeline) -> Path | str | None:
    """Where a pipeline was loaded from: its folder, its hub id, or None for one that was built in memory.

    For the demo it is the folder of its weights. A folder that is gone comes back as text.
    """
    name = pipe.config.get("_name_or_path")
    if not name:
        return None
    return Path(name) if Path(name).is_dir() else str(name)


def weights_folder(pipe: DiffusionPipeline) -> Path | None:
    """The folder that a pipeline's weights were read from, in the hub's cache too; None if there is none."""
    where = source(pipe)
    if isinstance(where, Path):
        return where
    for name, component in pipe.components.items():
        config = getattr(component, "config", None)
        loaded_from = Path(getattr(config, "_name_or_path", None) or "")
        if loaded_from.name == name and (loaded_from.parent / INDEX).is_file():
            return loaded_from.parent
    return None


def weights_hash(folder: Path) -> str:
    """The first 16 hex digits of a SHA-256 over the names and contents of a folder's safetensors files.

    The files of the folder itself and of the component folders in it count, in the order of their relative
    names; linked files count by their contents, so a copy of a folder has the same hash.
    """
    files = safetensors_files(Path(folder))
    if not files:
        raise AccelError(f"{folder} holds no safetensors files, so there are no weights to hash")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _hub_id(model: str | Path) -> str | None:
    """The hub id that `model` is, or None for a path; AccelError for what can be neither."""
    path = Path(model).expanduser()
    if path.is_file() or path.suffix in (".safetensors", ".gguf", *PICKLES):
        if not path.is_file():
            raise AccelError(f"there is no file {path}; give a folder with {INDEX}, a hub id such as org/name, or demo")
        raise AccelError(f"{path} is a single file, not a folder; load it with from_single_file of its diffusers class")
    if isinstance(model, Path) or (model and path.is_dir()):
        return None
    if HUB_ID.fullmatch(model) and not model.endswith((".git", "/")):
        return model
    if any(mark in model for mark in "/\\~"):
        return None
    beside = [folder.parent.name for folder in Path().glob(f"*/{INDEX}")]
    nearest = difflib.get_close_matches(model, ["demo", *beside], n=1)
    hint = f'did you mean "{nearest[0]}"?' if nearest else 'try "demo"'
    raise AccelError(f"{model!r} is neither a folder nor a hub id such as org/name; {hint}")


def _load_from_hub(
    hub_id: str, dtype: torch.dtype | dict[str, torch.dtype] | None, kwargs: dict[str, Any]
) -> DiffusionPipeline:
    """Read the index first, so that a refusal costs no download of weights; then load what was downloaded."""
    try:
        found = pipeline_class(read_index(_fetched(hub_id, INDEX, hub_options(kwargs)).parent), hub_id)
        _check_options(found, kwargs)
        folder = DiffusionPipeline.download(hub_id, use_safetensors=True, **kwargs)
    except AccelError:
        raise
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        raise AccelError(_hub_refusal(hub_id, error)) from error
    rest = {name: value for name, value in kwargs.items() if name not in HUB_OPTIONS}
    pipe = _load(found, Path(folder), dtype, rest)
    pipe.register_to_config(_name_or_path=hub_id)
    return pipe


def _fetched(hub_id: str, name: str, options: Mapping[str, Any]) -> Path:
    """A file of a hub model, in the cache."""
    # Proxies are for diffusers; the hub's own client takes them from the environment.
    return Path(hf_hub_download(hub_id, name, **{n: value for n, value in options.items() if n != "proxies"}))


def _hub_refusal(hub_id: str, error: Exception) -> str:
    """The one line for a hub model that cannot be had."""
    if isinstance(error, GatedRepoError):
        return f"{hub_id} must be asked for: accept its terms on its page, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id} has no such revision; leave revision out for the newest"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no folder {hub_id}, and the hub has no such model (for a private one: `hf auth login`)"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{hub_id} has no {INDEX}, so it is not a diffusers pipeline; look for its -Diffusers version"
    if "`safetensors` weights" in str(error):
        return (
            f"{hub_id} has weights that are not safetensors; if you trust it, convert it once with diffusers'"
            " pipe.save_pretrained(folder, safe_serialization=True) and load that folder"
        )
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return (
        f"there is no folder {hub_id}, it is not (whole) in the cache, and it cannot be fetched from the hub "
        f'({_first_line(reason)}); "demo" needs no download'
    )


def _load(
    found: type[DiffusionPipeline],
    folder: Path,
    dtype: torch.dtype | dict[str, torch.dtype] | None,
    kwargs: dict[str, Any],
) -> DiffusionPipeline:
    """Load a folder with the class that was found for it, after looking at what is in it."""
    _check_options(found, kwargs)
    check_components(folder, read_index(folder), given=kwargs.keys())
    try:
        return found.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **kwargs)
    except (OSError, ValueError, RuntimeError, ImportError, AttributeError, KeyError) as error:
        raise AccelError(f"{folder} cannot be loaded as {found.__name__}: {_first_line(error)}") from error


def _check_options(found: type[DiffusionPipeline], kwargs: Mapping[str, Any]) -> None:
    """Refuse names that diffusers would ignore with a log line."""
    components = [name for name in inspect.signature(found.__init__).parameters if name != "self"]
    # The last three are load_pipeline's own: what a misspelt name may have meant.
    known = [*OPTIONS, *components, "size", "torch_dtype", "device"]
    for name in kwargs:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"its components are {', '.join(components)}"
            raise AccelError(f"{found.__name__} takes no {name!r}; {hint}")


def _dtype(
    wanted: str | torch.dtype | Mapping[str, str | torch.dtype] | None,
) -> torch.dtype | dict[str, torch.dtype] | None:
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        return {name: _one_dtype(value) for name, value in wanted.items()}
    return _one_dtype(wanted)


def _one_dtype(wanted: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(wanted) if isinstance(wanted, str) else wanted
    if found is None or found not in DTYPES.values():
        raise AccelError(f"torch_dtype must be float32, bfloat16 or float16, not {wanted!r}")
    return found


def _device(wanted: str | torch.device | None) -> torch.device | None:
    """The device, if this machine has it; AccelError before anything is loaded otherwise."""
    if wanted is None:
        return None
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise AccelError(f"there is no kind of device called {wanted!r}; the nearest that works is cpu") from error
    if device.type == "cpu":
        return device
    module = getattr(torch, device.type, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if count == 0:
        raise AccelError(f"this machine has no {device.type} device that torch can use; use device='cpu'")
    if device.index is not None and device.index >= count:
        raise AccelError(f"{device} does not exist: the last {device.type} device here is {device.type}:{count - 1}")
    return device


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
