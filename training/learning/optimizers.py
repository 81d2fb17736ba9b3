# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The optimizers by name, and the state of any of them as named tensors and plain numbers. This file knows nothing of
the loop and writes nothing: `checkpoint.py` does. Optional libraries are imported when one is chosen.

All have one dial, `learning_rate`, and take it from a scheduler in their parameter groups. A group carries the names of
its parameters, by which their state is kept.
"""

import contextlib
import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig

# What steps change in a parameter group; everything else there is a setting, and stays as the optimizer was made
MOVING = ("k", "weight_sum", "lr_max", "scheduled_lr", "d", "d_max", "d_numerator", "d_denom", "d_hat")
# Embeddings, first and last layers: tables and feature maps, not maps from hidden to hidden
NOT_HIDDEN = re.compile(
    r"(^|\.)(conv_in|conv_out|linear_skip|shared|relative_attention_bias|\w*embeddings?|embed_tokens|wte|wpe)\."
)


def make_optimizer(
    config: TrainConfig, named_parameters: dict[str, torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that `config` asks for, ready for its first step.

    - `adamw` (Loshchilov and Hutter, arXiv 1711.05101), fused where torch can.
    - `adamw_8bit` (Dettmers et al., arXiv 2110.02861): its moments in 8 bits; parameters below 4096 numbers keep 32.
    - `muon`: see `MuonWithAdamW`.
    - `schedule_free` (Defazio et al., arXiv 2405.15682): averages instead of a decaying rate, so to be used with a
      constant one after warm-up; see `evaluation_weights`.
    - `prodigy` (Mishchenko and Defazio, arXiv 2306.06101): finds the rate, which `learning_rate` (1) then multiplies;
      with the bias correction and the guard against warm-up that its authors advise for diffusion.

    Raises:
        UserError: where its library is missing or too old, or does not go with other settings.
    """
    if config.optimizer == "schedule_free" and (config.use_ema or config.posthoc_ema_steps):
        raise UserError("optimizer schedule_free averages by itself: it needs --no-use_ema and no posthoc_ema_steps")
    if config.optimizer == "prodigy" and config.learning_rate < 0.1:
        raise UserError(f"optimizer prodigy finds its rate and needs learning_rate 1: got {config.learning_rate}")
    groups: list[dict[str, Any]] = [{"params": list(named_parameters.values()), "names": list(named_parameters)}]
    adam: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adamw_8bit":
        return _library("bitsandbytes", config).optim.AdamW8bit(groups, **adam)
    if config.optimizer == "muon":
        return MuonWithAdamW(named_parameters, **adam, fused=fused)
    if config.optimizer == "schedule_free":
        optimizer = _library("schedulefree", config).AdamWScheduleFree(groups, **adam)
        optimizer.train()
        return optimizer
    if config.optimizer == "prodigy":
        groups[0]["weight_decay"] = adam.pop("weight_decay")  # as an argument Prodigy prints a line about it
        prodigy = _library("prodigyopt", config).Prodigy
        return prodigy(groups, **adam, use_bias_correction=True, safeguard_warmup=True)
    return torch.optim.AdamW(groups, **adam, fused=fused)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices between hidden layers, AdamW for embeddings, norms, biases, first and last layers.

    Muon (Jordan et al., https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix; a
    convolution's kernel is one of (out, in * height * width). Its update is scaled by 0.2 sqrt(max(rows, columns)),
    which makes its root mean square that of AdamW's (Liu et al., arXiv 2502.16982, Eq. 4), so both share one learning
    rate and weight decay. The steps are torch's own; here is only what joins them.

    Args:
        named_parameters: by name, which says what is an embedding or a first or last layer.
        lr, betas, weight_decay, eps, fused: as in `torch.optim.AdamW`.

    Raises:
        UserError: where torch is older than 2.9; in `step`, for matrices that a sharding has flattened.
    """

    def __init__(self, named_parameters: dict[str, torch.nn.Parameter], *, lr, betas, weight_decay, eps, fused):
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"optimizer muon needs torch 2.9 or later: got {torch.__version__}")
        unused = [torch.nn.Parameter(torch.zeros(1, 1))]  # the inner ones get their parameters anew at each step
        adamw = torch.optim.AdamW(unused, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, fused=fused)
        muon = torch.optim.Muon(unused, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.inner, groups = [], []
        matrices = [
            name
            for name, p in named_parameters.items()
            if p.ndim > 1 and 1 < len(p) < p.numel() and not NOT_HIDDEN.search(name)
        ]
        for inner, names in ((muon, matrices), (adamw, [x for x in named_parameters if x not in set(matrices)])):
            if names:
                self.inner.append(inner)
                groups.append({**inner.defaults, "params": [named_parameters[x] for x in names], "names": names})
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner, group in zip(self.inner, self.param_groups, strict=True):
            if isinstance(inner, torch.optim.AdamW):
                inner.param_groups, inner.state = [group], self.state
            else:
                matrices, state = [], {}
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    if p.ndim < 2:
                        raise UserError("optimizer muon needs whole matrices: got parameters that a sharding flattened")
                    # (out, in, height, width) to (out, in * height * width), the latter as it lies in memory: a view
                    order = sorted(range(1, p.ndim), key=p.stride, reverse=True)
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p, requires_grad=False))
                    matrix, momentum = (x.permute(0, *order).view(len(p), -1) for x in (p.detach(), buffer))
                    matrix.grad = p.grad.permute(0, *order).reshape(len(p), -1)
                    matrices.append(matrix)
                    state[matrix] = {"momentum_buffer": momentum}
                inner.param_groups, inner.state = [{**group, "params": matrices}], state
            inner.step()
        return loss


@contextlib.contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A context in which the parameters are those to validate and to publish: schedule-free's average x. With other
    optimizers nothing changes.

    Afterwards they are the training point y again, bit for bit, so that a run does not depend on how often it was
    looked at. Checkpoints are written outside it: y and the state make a resumed run equal to an uninterrupted one.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has `eval` for all
    if not hasattr(inner, "eval"):
        yield
        return
    parameters = [p for group in inner.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    inner.eval()
    try:
        yield
    finally:
        inner.train()
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state that an optimizer of `make_optimizer`, wrapped by accelerate or not, has gathered in its steps.

    Returns:
        tensors and numbers, both by `{parameter name}.{entry}`, or `group.{index}.{entry}`. Under a parameter's name
        a tensor of its shape belongs to it element by element (and is sharded as it is); others do not. The tensors
        are the optimizer's own, as in torch's `state_dict`.
    """
    tensors, numbers, seen = {}, {}, set()
    for index, group in enumerate(optimizer.param_groups):
        owners = {name: optimizer.state.get(p, {}) for name, p in zip(group["names"], group["params"], strict=True)}
        owners[f"group.{index}"] = {entry: group[entry] for entry in MOVING if entry in group}
        for owner, entries in owners.items():
            for entry, value in entries.items():
                if not isinstance(value, torch.Tensor):
                    numbers[f"{owner}.{entry}"] = value
                    continue
                # 8-bit moments share their code book; a file of safetensors holds no tensor twice
                tensors[f"{owner}.{entry}"] = value.clone() if id(value) in seen else value
                seen.add(id(value))
    return tensors, numbers


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]
) -> None:
    """The inverse of `optimizer_state`, into an optimizer made alike; its settings, learning rate included, stay as
    they are.

    Raises:
        UserError: for the state of other parameters.
    """
    entries: dict[str, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        owner, entry = key.rsplit(".", 1)
        entries.setdefault(owner, {})[entry] = value
    state, groups = {}, optimizer.state_dict()["param_groups"]
    for number, (group, live) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        group.update(entries.pop(f"group.{number}", {}))
        for index, name, p in zip(group["params"], group["names"], live["params"], strict=True):
            if name in entries:
                state[index] = {entry: _laid_out_as(p, value) for entry, value in entries.pop(name).items()}
    if entries:
        raise UserError(f"the checkpoint to resume from is of another optimizer or model: it has {next(iter(entries))}")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _laid_out_as(p: torch.Tensor, value: Any) -> Any:
    """`value` with the strides of `p` if it has its shape: files forget them, and fused kernels walk both by memory."""
    if not isinstance(value, torch.Tensor) or value.shape != p.shape or value.stride() == p.stride():
        return value
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def _library(name: str, config: TrainConfig) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"optimizer {config.optimizer} needs {name}: pip install {name}") from None
