"""Context parallelism of diffusers over processes on a CPU, and the jobs that a test has them do.

`ModelMixin.enable_parallelism` counts accelerators, of which there are none here; `spread` does all else that it does,
with diffusers' own functions.
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import apply_context_parallel
from diffusers.models._modeling_parallel import ParallelConfig


def spread(model: Any, **degrees: Any) -> None:
    """Spreads the tokens of a model over all processes."""
    config = ContextParallelConfig(**degrees)
    mesh = dist.init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
    model._parallel_config = parallel
    for module in model.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = parallel
    apply_context_parallel(model, config, model._cp_plan)
