"""Storing weights while they load takes memory for what is stored, and for what is being read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import WanTransformer3DModel

from tests.repository.tree import ROOT

LOADING = """
import sys
from pathlib import Path
import torch
from diffusers import WanTransformer3DModel
from accel.integrations import StoredWeightsConfig
from accel.methods.quantized_linear import store

def status(name):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(name))

store(torch.randn(128, 256), "nvfp4", True)  # What is loaded once for all calls is none of the model's memory.
Path("/proc/self/clear_refs").write_text("5")  # The highest mark is now.
before = status("VmRSS:")
config = StoredWeightsConfig("nvfp4", rotate=True)
model = WanTransformer3DModel.from_pretrained(sys.argv[1], quantization_config=config)
print(status("VmHWM:") - before, sum(t.nbytes for t in [*model.parameters(), *model.buffers()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the highest mark of memory from /proc")
def test_the_peak_is_the_stored_size_and_one_file(tmp_path: Path) -> None:
    shape = {"num_attention_heads": 4, "attention_head_dim": 128, "ffn_dim": 2048, "num_layers": 6}
    small = {"in_channels": 16, "out_channels": 16, "text_dim": 32, "freq_dim": 64, "rope_max_seq_len": 32}
    model = WanTransformer3DModel(**shape, **small)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    model.save_pretrained(tmp_path, max_shard_size="8MB")
    largest_file = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    # Freed memory goes back at once, so that what is counted is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Storing weights in NVFP4: 100%" in done.stderr
    peak, held = map(int, done.stdout.split())
    limit = held + largest_file + 3 * max(sizes)
    assert peak < limit < 0.5 * sum(sizes), (peak, limit, sum(sizes))
