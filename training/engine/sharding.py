# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Models on several processes: copies whose gradients are averaged (DDP), or one that is cut into shards (FSDP2).

Which of the two, and how, is what accelerate was configured to (`training/launch/*.yaml`). `Accelerator.prepare` is
not used for FSDP2: it takes one model only, does so on GPUs only, and casts a network's inputs, the noise level among
them, to half precision. Nothing here knows what the models are for.
"""

import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mezzotint_training.config.errors import UserError


def sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate's configuration asks for FSDP2, on several processes.

    Raises:
        UserError: for DeepSpeed, FSDP's first version, weights loaded in one process only, or float16, whose gradient
            scaler knows nothing of shards.
    """

    def asked(name: str) -> bool:
        return os.environ.get(name, "false").lower() == "true"

    where = "in accelerate's configuration"
    if asked("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(f"distributed_type must be NO, MULTI_GPU or FSDP {where}: got DEEPSPEED; see zero2.yaml")
    if not asked("ACCELERATE_USE_FSDP") or accelerator.num_processes == 1:
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(f"fsdp_version must be 2 {where}: got {os.environ.get('FSDP_VERSION', '1')}")
    if asked("FSDP_CPU_RAM_EFFICIENT_LOADING"):  # accelerate's default
        raise UserError(f"fsdp_cpu_ram_efficient_loading must be false {where}: got true")
    if accelerator.mixed_precision == "fp16":
        raise UserError("mixed_precision fp16 needs whole models: got FSDP; possible are bf16 and no")
    return True


def prepare(accelerator: Accelerator, model: torch.nn.Module) -> Any:
    """The model to call in training. The parameters of a sharded model are new objects (`DTensor`s), so optimizer and
    averages must be made after this call."""
    if not sharded(accelerator):
        return accelerator.prepare_model(model)
    plugin = FullyShardedDataParallelPlugin()  # as the launcher set it in the environment
    # Gathered in half precision, reduced in full; autocast, not this, casts activations: it leaves norms and time alone
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    how = {"offload_policy": plugin.cpu_offload, "mp_policy": policy}
    # Every block's; nothing changes their outputs in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        if type(module).__name__ in (getattr(model, "_no_split_modules", None) or ()):
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **how)
    fully_shard(model, **how)

    def free_gathered_weights(module: torch.nn.Module, *_) -> None:
        """FSDP frees gathered weights after a backward pass; where there is none, they would hide a change of the
        shards."""
        if not torch.is_grad_enabled():
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    model.register_forward_hook(free_gathered_weights)
    return model


def local(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The part of each tensor that this process holds: its shard, which shares memory, or the tensor itself. Averages
    are kept of these parts."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def like(shard: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The whole tensor of which `shard` is this process's part, cut as `parameter` is."""
    if not isinstance(parameter, DTensor) or isinstance(shard, DTensor):
        return shard
    cut = (parameter.device_mesh, parameter.placements)
    return DTensor.from_local(shard, *cut, run_check=False, shape=parameter.shape, stride=parameter.stride())


def gather(tensor: torch.Tensor, keep: bool) -> torch.Tensor | None:
    """The whole tensor on the CPU if `keep`, else `None`. Where the tensor is sharded, every process must call this."""
    whole = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
    return whole.cpu() if keep else None


def scatter(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The inverse of `gather`: a whole tensor of the parameter's shape, cut as the parameter is without communication;
    any other tensor comes back as it is."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    cut = distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    return like(cut.to_local().clone(), parameter)  # not a view that keeps the whole in memory
