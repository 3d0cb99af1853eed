"""Puts the trained parts together: a folder that `diffusers.WanPipeline.from_pretrained` loads, in bfloat16."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from accel.pipelines.demo.training.text import build_tokenizer
from accel.pipelines.demo.training.transformer import Trainee, build, load_average

#: No file of the repository is larger than 15 MB.
LARGEST_FILE = "14MB"
#: What transformers 5 adds to a tokenizer's settings and transformers 4 does not know.
_ONLY_IN_5 = (
    *("backend", "is_local", "local_files_only", "max_length", "stride"),
    *("truncation_side", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id"),
)


def _edit(path: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    values = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in drop}
    path.write_text(json.dumps(values | change, indent=2) + "\n", encoding="utf-8")


def assemble(work: Path, stage: str, shift: float, folder: Path) -> int:
    """Writes the folder anew; returns its size in bytes.

    Args:
        work: the folder with `vae/` and the checkpoint of the stage.
        stage: whose averaged weights are taken.
        shift: of the scheduler's sigmas.
    """
    vae = AutoencoderKLWan.from_pretrained(work / "vae", torch_dtype=torch.bfloat16)
    trained = Trainee(vae.config.z_dim, build_tokenizer())
    load_average(trained, work / f"{stage}.pt", torch.device("cpu"))
    transformer = build(vae.config.z_dim)  # without the training's attention
    transformer.load_state_dict(trained.transformer.state_dict())
    parts: dict[str, Any] = {
        "tokenizer": trained.tokenizer,
        "text_encoder": trained.text_encoder,
        "vae": vae,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift),
    }
    pipe = WanPipeline(**parts).to(torch.bfloat16)
    if folder.exists():
        shutil.rmtree(folder)
    pipe.save_pretrained(folder, max_shard_size=LARGEST_FILE)
    # transformers 5 calls the class TokenizersBackend, which version 4 does not know; both know this name.
    name = "PreTrainedTokenizerFast"
    _edit(folder / "vae" / "config.json", {}, ("_name_or_path",))  # a path of the machine that trained it
    _edit(folder / "model_index.json", {"tokenizer": ["transformers", name]})
    _edit(folder / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": name}, _ONLY_IN_5)
    WanPipeline.from_pretrained(folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", help="name of the stage of accel.pipelines.demo.training.transformer")
    parser.add_argument("folder", type=Path, help="where to write; what is there is replaced")
    parser.add_argument("--work", type=Path, default=Path("outputs/training"))
    parser.add_argument("--shift", type=float, default=2.0, help="of the scheduler's sigmas")
    options = parser.parse_args()
    size = assemble(options.work, options.stage, options.shift, options.folder)
    print(f"{options.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
