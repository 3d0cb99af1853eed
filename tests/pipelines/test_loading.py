"""`load_pipeline`: the demo, folders and hub ids, safetensors only; one line for what cannot be loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import constants, errors

from accel.errors import AccelError
from accel.pipelines import demo, loading
from accel.pipelines.demo.pipeline import CLASSES
from accel.pipelines.loading import load_pipeline, look_up, source, weights_folder, weights_hash
from tests.tiny_pipelines import TINY

WHOLE = "vae/diffusion_pytorch_model.safetensors"
SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes a folder of the demo's quick size, whose files can be changed without touching the demo."""

    def make(name: str = "model") -> Path:
        return Path(shutil.copytree(demo.WEIGHTS, tmp_path / name))

    return make


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refusal(*args: Any, **kwargs: Any) -> AccelError:
    """The refusal of a call to load_pipeline, which is one line."""
    with pytest.raises(AccelError) as refused:
        load_pipeline(*args, **kwargs)
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("something was loaded")

    monkeypatch.setattr(loading, "_load", fail)
    monkeypatch.setattr(loading, "hf_hub_download", fail)


def test_the_demo_has_two_sizes() -> None:
    standard, quick = load_pipeline(), load_pipeline("demo", size="quick")
    assert source(standard) == source(quick) == demo.WEIGHTS
    assert type(standard) is CLASSES["standard"] and type(quick) is CLASSES["quick"]
    for pipe in (standard, quick):
        assert {part.dtype for part in (pipe.text_encoder, pipe.transformer, pipe.vae)} == {torch.float32}
        assert not pipe.transformer.training and not pipe.text_encoder.training


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_a_folder_loads_as_the_class_it_names(name: str, tmp_path: Path) -> None:
    built = TINY[name].build()
    built.save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path)
    assert type(pipe) is type(built)
    assert source(pipe) == tmp_path == weights_folder(pipe)
    assert source(built) is None and weights_folder(built) is None
    for ours, theirs in zip(
        pipe.transformer.state_dict().values(), built.transformer.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_folder_by_a_relative_name(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder("demo")
    folder("org")
    monkeypatch.chdir(tmp_path)
    for name in ("org", "./demo", Path("demo")):
        pipe = load_pipeline(name)
        assert type(pipe) is diffusers.WanPipeline
        assert source(pipe) == tmp_path / Path(name).name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source(load_pipeline("~/org")) == tmp_path / "org"


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtypes(dtype: Any) -> None:
    pipe = load_pipeline("demo", size="quick", torch_dtype=dtype)
    assert {part.dtype for part in (pipe.text_encoder, pipe.transformer, pipe.vae)} == {torch.bfloat16}


def test_a_dtype_for_each_component() -> None:
    pipe = load_pipeline("demo", size="quick", torch_dtype={"vae": "float32", "default": torch.bfloat16})
    assert (pipe.vae.dtype, pipe.transformer.dtype) == (torch.float32, torch.bfloat16)


def test_a_component_given_as_an_object_is_used(folder: Folder) -> None:
    vae = load_pipeline("demo", size="quick").vae
    path = folder()
    shutil.rmtree(path / "vae")
    assert load_pipeline(path, vae=vae).vae is vae


def test_device() -> None:
    assert load_pipeline("demo", size="quick", device="cpu").device == torch.device("cpu")


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("model", "arguments", "line"),
    [
        ("dmeo", {}, "'dmeo' is neither a folder nor a hub id such as org/name; did you mean \"demo\"?"),
        ("xyzzy", {}, "'xyzzy' is neither a folder nor a hub id such as org/name; try \"demo\""),
        ("", {}, "'' is neither a folder nor a hub id"),
        (3, {}, 'model must be "demo", a folder or a hub id, not int'),
        ("a/b/c", {}, "there is no folder .*a/b/c; give an existing one, a hub id such as org/name, or demo"),
        (Path("org/name"), {}, "there is no folder .*org/name"),
        ("./nothing", {}, "there is no folder .*nothing"),
        ("org/model.safetensors", {}, "there is no file org/model.safetensors"),
        ("demo", {"size": "quik"}, "the demo has no size 'quik': .* did you mean \"quick\"?"),
        ("demo", {"size": 3}, "the demo has no size 3"),
        ("org/name", {"size": "quick"}, "size belongs to the demo, and 'org/name' has one size only"),
        (Path("demo"), {"size": "quick"}, "size belongs to the demo"),
        ("demo", {"torch_dtype": "auto"}, "torch_dtype must be float32, bfloat16 or float16, not 'auto'"),
        ("demo", {"torch_dtype": torch.int8}, "must be float32, bfloat16 or float16, not torch.int8"),
        ("demo", {"torch_dtype": {"vae": "half"}}, "must be float32, bfloat16 or float16, not 'half'"),
        ("demo", {"device": "gpu"}, "there is no kind of device called 'gpu'; the nearest that works is cpu"),
        ("demo", {"device": "meta"}, "this machine has no meta device"),
        ("demo", {"device": "cpu", "device_map": "balanced"}, "device and device_map both say"),
        ("demo", {"trust_remote_code": True}, "trust_remote_code is not taken: code that comes with a model"),
        ("demo", {"custom_pipeline": "x"}, "custom_pipeline is not taken"),
        ("demo", {"use_safetensors": False}, "use_safetensors is not taken: weights are always"),
        ("demo", {"dtype": "float32"}, "dtype is not taken: it is called torch_dtype here"),
    ],
)
def test_refused_before_anything_is_loaded(
    model: Any, arguments: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(line, str(refusal(model, **arguments)))


@pytest.mark.usefixtures("nothing_loads")
def test_a_device_that_is_not_there_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this machine has no cuda device that torch can use; use device='cpu'" in str(refusal("demo", device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "cuda:1 does not exist: the last cuda device here is cuda:0" in str(refusal("demo", device="cuda:1"))


def test_the_name_of_a_folder_nearby_is_named(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder("my-model")
    monkeypatch.chdir(tmp_path)
    assert 'did you mean "my-model"?' in str(refusal("my-modle"))
    assert f"it is not a whole pipeline; did you mean {tmp_path}/my-model?" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"tranformer": None}, "WanPipeline takes no 'tranformer'; did you mean transformer?"),
        ({"torch_dytpe": "bfloat16"}, "WanPipeline takes no 'torch_dytpe'; did you mean torch_dtype?"),
        ({"zzz": 1}, "WanPipeline takes no 'zzz'; its components are tokenizer, "),
    ],
)
@pytest.mark.parametrize("model", ["demo", "folder"])
def test_unknown_options_are_refused(model: str, arguments: dict[str, Any], line: str, folder: Folder) -> None:
    assert line in str(refusal("demo" if model == "demo" else folder(), **arguments))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "model_index.json is not valid JSON"),
        ("[]", "model_index.json is not a table of components"),
        ("{}", "names the pipeline class None, which diffusers"),
        ('{"_class_name": "WanPipelne"}', "names the pipeline class 'WanPipelne', which diffusers"),
        ('{"_class_name": "AutoencoderKLWan"}', "names the pipeline class 'AutoencoderKLWan'"),
        ('{"_class_name": ["pipeline", "Mine"]}', "brings pipeline code of its own, which is not run"),
    ],
)
def test_an_index_that_cannot_be_used(content: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(content)
    assert line in str(refusal(tmp_path))


def test_a_folder_without_an_index(folder: Folder) -> None:
    path = folder() / "transformer"
    assert f"{path} has no model_index.json, so it is not a whole pipeline" in str(refusal(path))


def test_a_missing_component(folder: Folder) -> None:
    path = folder()
    shutil.rmtree(path / "vae")
    assert f"{path} has no vae, which its model_index.json names" in str(refusal(path))


class Intruder:
    """A pickle that leaves a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.pt", "model-1-of-2.ckpt"])
def test_a_pickle_is_refused_and_not_read(name: str, folder: Folder, tmp_path: Path) -> None:
    path = folder()
    (path / WHOLE).unlink()
    trace = tmp_path / "trace"
    torch.save(Intruder(trace), path / "vae" / name)
    line = str(refusal(path))
    assert f"{path / 'vae' / name} is a pickle" in line
    assert "pipe.save_pretrained(new_folder, safe_serialization=True)" in line
    assert not trace.exists()


def test_a_pickle_beside_safetensors_is_left_alone(folder: Folder, tmp_path: Path) -> None:
    path = folder()
    torch.save(Intruder(tmp_path / "trace"), path / "transformer" / "diffusion_pytorch_model.bin")
    assert type(load_pipeline(path)) is diffusers.WanPipeline
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("keep", [0, 5, 1000, 1_000_000])
@pytest.mark.parametrize("name", [WHOLE, SHARD])
def test_a_truncated_file_is_named(name: str, keep: int, folder: Folder) -> None:
    path = folder()
    content = (path / name).read_bytes()
    assert len(content) > keep
    (path / name).write_bytes(content[:keep])
    error = refusal(path)
    assert f"{path / name} is damaged or incomplete (" in str(error)
    assert error.__cause__ is not None


def test_what_diffusers_refuses_is_one_line_with_its_cause(folder: Folder) -> None:
    path = folder()
    config = json.loads((path / "transformer/config.json").read_text())
    (path / "transformer/config.json").write_text(json.dumps({**config, "ffn_dim": 320}))
    error = refusal(path)
    assert f"{path} cannot be loaded as WanPipeline: " in str(error)
    assert error.__cause__ is not None

    (path / WHOLE).unlink()
    assert f"{path} cannot be loaded as WanPipeline: " in str(refusal(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".ckpt", ".txt"])
def test_a_single_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"wan{suffix}"
    path.write_bytes(b"x")
    for model in (path, str(path)):
        assert f"{path} is a single file, not a folder; load it with from_single_file" in str(refusal(model))


@pytest.mark.parametrize("where", ["component", "folder"])
def test_code_in_a_folder_is_not_run(where: str, folder: Folder, tmp_path: Path) -> None:
    path = folder()
    code = f"from pathlib import Path\nPath({str(tmp_path / 'trace')!r}).touch()\n"
    if where == "component":
        index = json.loads((path / "model_index.json").read_text())
        index["transformer"] = ["mine", "WanTransformer3DModel"]
        (path / "model_index.json").write_text(json.dumps(index))
        (path / "transformer/mine.py").write_text(code)
        line = f"{path / 'transformer'} brings code of its own, which is not run; pass transformer= as an object"
        assert line in str(refusal(path))
    else:
        for name in ("pipeline.py", "None.py"):
            (path / name).write_text(code)
        refusal(path)
    assert not (tmp_path / "trace").exists()


def hub_cache(folder: Path, cache: Path, revision: str = "main", commit: str = COMMIT) -> str:
    """Put a folder into a hub cache as a revision of org/name, as a download would have; returns the cache."""
    model = cache / "models--org--name"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / revision).write_text(commit)
    shutil.copytree(folder, model / "snapshots" / commit)
    return str(cache)


def test_a_hub_model_that_is_in_the_cache(folder: Folder, tmp_path: Path) -> None:
    cache = hub_cache(folder(), tmp_path / "cache")
    pipe = load_pipeline("org/name", cache_dir=cache, torch_dtype="bfloat16")
    assert type(pipe) is diffusers.WanPipeline
    assert pipe.transformer.dtype == torch.bfloat16
    assert source(pipe) == "org/name"
    assert weights_folder(pipe) == Path(cache, "models--org--name/snapshots", COMMIT)
    assert weights_hash(weights_folder(pipe)) == weights_hash(demo.WEIGHTS)
    assert "takes no 'zzz'" in str(refusal("org/name", cache_dir=cache, zzz=1))


def test_a_look_at_a_hub_model_reads_no_weights(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder()
    for weights in whole.rglob("*.safetensors"):
        weights.unlink()
    (whole / "vae" / "config.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", hub_cache(whole, tmp_path / "cache"))
    found, where = look_up("org/name", configs=("transformer", "transformer_2", "vae", "scheduler"))
    assert found is diffusers.WanPipeline
    assert where == tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT
    assert look_up(whole) == (diffusers.WanPipeline, whole)
    with pytest.raises(AccelError, match="there is no folder org/other"):
        look_up("org/other")
    other = hub_cache(whole, tmp_path / "other", revision="v2", commit="f" * 40)
    _, where = look_up("org/name", configs=("transformer",), cache_dir=other, revision="v2", local_files_only=True)
    assert where == tmp_path / "other" / "models--org--name" / "snapshots" / ("f" * 40)


def test_a_pickle_in_the_cache_is_refused(folder: Folder, tmp_path: Path) -> None:
    path = folder()
    (path / WHOLE).rename(path / "vae/diffusion_pytorch_model.bin")
    cache = hub_cache(path, tmp_path / "cache")
    assert "vae/diffusion_pytorch_model.bin is a pickle" in str(refusal("org/name", cache_dir=cache))


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    error = refusal("org/name", cache_dir=str(tmp_path))
    assert str(error).startswith("there is no folder org/name, it is not (whole) in the cache, and it cannot be")
    assert str(error).endswith('"demo" needs no download')
    assert error.__cause__ is not None


def of_the_hub(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    answer: Any = SimpleNamespace(headers={}, request=None)
    return kind("first line\nsecond line", response=answer)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (of_the_hub(errors.GatedRepoError), "org/name must be asked for: accept its terms"),
        (of_the_hub(errors.RevisionNotFoundError), "org/name has no such revision"),
        (of_the_hub(errors.RepositoryNotFoundError), "there is no folder org/name, and the hub has no such"),
        (of_the_hub(errors.RemoteEntryNotFoundError), "org/name has no model_index.json, so it is not a"),
        (of_the_hub(errors.HfHubHTTPError), r"cannot be fetched from the hub \(first line\)"),
        (errors.OfflineModeIsEnabled("offline mode"), r"cannot be fetched from the hub \(offline mode\)"),
        (
            OSError("Could not find the necessary `safetensors` weights in {'a.bin'}"),
            "are not safetensors; if",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_answers_is_one_line(answer: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_it(*_: Any, **__: Any) -> None:
        raise answer

    monkeypatch.setattr(loading, "hf_hub_download", raise_it)
    error = refusal("org/name")
    assert re.search(line, str(error))
    assert error.__cause__ is answer


def test_the_hash_is_of_names_and_contents(folder: Folder) -> None:
    linked, copied = demo.WEIGHTS, folder()
    value = weights_hash(copied)
    assert re.fullmatch("[0-9a-f]{16}", value)
    assert weights_hash(linked) == value

    (copied / "notes.txt").write_text("x")
    assert weights_hash(copied) == value
    file = copied / WHOLE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    changed = weights_hash(copied)
    assert changed != value
    file.rename(file.with_name("model.safetensors"))
    assert weights_hash(copied) not in (value, changed)


def test_a_folder_without_weights_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(AccelError, match="holds no safetensors files"):
        weights_hash(tmp_path)
