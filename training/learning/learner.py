# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Holds what a run learns: the trained parameters by name, their optimizer, learning rate and averages, with one step
and one state for all of them. It knows no data, no loss and no loop."""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import sharding
from mezzotint_training.engine.checkpoint import Tensors
from mezzotint_training.learning.averages import PowerFunctionAverages, save_snapshot
from mezzotint_training.learning.optimizers import (
    evaluation_weights,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
)


class Learner:
    """The models of a run with all that changes them.

    Attributes:
        trained: the models by name. Sharding replaces their parameters.
        models: the same, to be called in training: wrapped as the accelerator needs it.
        parameters: those that ask for gradients, sharded or not, by `{model}.{name}`.
        optimizer, lr_scheduler: of these.
        ema (`diffusers.training_utils.EMAModel`, *optional*): their moving average, which is published.
        power_averages (`PowerFunctionAverages`, *optional*): from which `mezzotint ema` makes others.

    Args:
        config: the run's settings.
        trained: the models to train by name, on their device, with `requires_grad` set.
        accelerator: of the run.

    Raises:
        UserError: for settings that do not go together, or a library that is missing; see `make_optimizer`.
    """

    def __init__(self, config: TrainConfig, trained: dict[str, Any], accelerator: Accelerator):
        self.accelerator, self.trained, self.max_grad_norm = accelerator, trained, config.max_grad_norm
        self.sharded = sharding.sharded(accelerator)
        if self.sharded and config.optimizer not in ("adamw", "schedule_free"):
            raise UserError(
                f"optimizer {config.optimizer} needs whole matrices: got FSDP; possible are adamw and schedule_free"
            )
        self._whole = copy.deepcopy(trained) if self.sharded and accelerator.is_main_process else trained
        self.models = {name: sharding.prepare(accelerator, model) for name, model in trained.items()}
        self.parameters: dict[str, torch.nn.Parameter] = {
            f"{name}.{key}": p for name, m in trained.items() for key, p in m.named_parameters() if p.requires_grad
        }
        optimizer = make_optimizer(config, self.parameters, accelerator.device)
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=min(config.lr_warmup_steps, config.max_train_steps),
            num_training_steps=config.max_train_steps,
        )
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.ema = self.power_averages = None
        if config.use_ema:
            self.ema = EMAModel(self._local(), decay=config.ema_decay, foreach=True)
        if config.posthoc_ema_steps is not None:
            self.power_averages = PowerFunctionAverages(self._local_by_name())

    @property
    def learning_rate(self) -> float:
        """That of the next update."""
        return float(self.lr_scheduler.get_last_lr()[0])

    def step(self, update: int) -> float:
        """After a micro-step's backward pass, within `Accelerator.accumulate`: at the last micro-step of an update clip
        the gradients and change weights, learning rate and averages; else only let the gradients gather.

        An update without a finite gradient leaves weights, moments and moving average as they are.

        Args:
            update: its number, 1, 2, ...

        Returns:
            the norm of the gradient before clipping, the same in all processes; before the last micro-step NaN.
        """
        if not self.accelerator.sync_gradients:
            return math.nan
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        norm = float(sharding.gather(norm, keep=True))
        if math.isfinite(norm) or self.accelerator.scaler is not None:  # a scaler skips by itself
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        if self.ema is not None and math.isfinite(norm):
            self.ema.step(self._local())
        if self.power_averages is not None:
            self.power_averages.update(self._local_by_name(), update)
        return norm

    # --------------------------------------------------------------------------------------------- other weights

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it the models are in evaluation mode, with the weights of the last update."""
        for model in self.trained.values():
            model.eval()
        try:
            yield
        finally:
            for model in self.trained.values():
                model.train()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the models are in evaluation mode, with the weights that are published: the moving average where
        there is one, or the optimizer's own. Afterwards they are as before, bit for bit."""
        with self.evaluated(), evaluation_weights(self.optimizer):
            if self.ema is not None:
                self.ema.store(self._local())
                self.ema.copy_to(self._local())
            try:
                yield
            finally:
                if self.ema is not None:
                    self.ema.restore(self._local())

    def whole_models(self) -> dict[str, Any]:
        """The trained models with their weights of now, gathered in the main process. All processes call this."""
        if self.sharded:
            for name, model in self.trained.items():
                keep = self.accelerator.is_main_process
                weights = {key: sharding.gather(x, keep) for key, x in model.state_dict().items()}
                if keep:
                    self._whole[name].load_state_dict(weights)
        return self._whole

    def save_snapshot(self, output_dir: Path, step: int) -> None:
        """Write the power-function averages of update `step`, for `mezzotint ema`. All processes call this."""
        keep, tensors = self.accelerator.is_main_process, {}
        for key, x in self._power_averages().items():
            x = sharding.gather(x, keep)
            tensors |= {key: x} if keep else {}
        if keep:
            save_snapshot(output_dir, step, tensors)

    # -------------------------------------------------------------------------------------------------- its state

    def state(self) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
        """Tensors, sharded or not and no copies, and plain numbers: what `checkpoint.save` takes."""
        moments, numbers = optimizer_state(self.optimizer)
        tensors: dict[str, Mapping[str, torch.Tensor]] = {"weights": self.parameters, "optimizer": moments}
        scaler = self.accelerator.scaler
        state = {
            "optimizer": numbers,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        if self.ema is not None:
            shadows = zip(self.parameters.items(), self.ema.shadow_params, strict=True)
            tensors["ema"] = {name: sharding.like(shadow, p) for (name, p), shadow in shadows}
            state["ema"] = {k: v for k, v in self.ema.state_dict().items() if k != "shadow_params"}
        if self.power_averages is not None:
            tensors["averages"] = self._power_averages()
        return tensors, state

    def restore(self, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> None:
        """The inverse of `state`, of a run with the same settings, however many processes share the tensors now and
        then.

        Args:
            tensors, state: as `checkpoint.load` returns them.

        Raises:
            UserError: for the weights of another model.
        """
        named = self.parameters
        if tensors["weights"].shapes() != {name: list(p.shape) for name, p in named.items()}:
            raise UserError("the checkpoint to resume from holds other weights than this run trains")
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(sharding.scatter(tensors["weights"][name], p))
        moments = {
            key: sharding.scatter(moment, named[owner]) if (owner := key.rpartition(".")[0]) in named else moment
            for key, moment in tensors["optimizer"].items()
        }
        load_optimizer_state(self.optimizer, moments, state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate  # torch sets it in the next step of the schedule only
        if self.ema is not None:
            shadows = sharding.local(sharding.scatter(tensors["ema"][name], p) for name, p in named.items())
            self.ema.load_state_dict({**state["ema"], "shadow_params": shadows})
            self.ema.to(next(iter(named.values())).device)
        if self.power_averages is not None:
            kept = tensors["averages"]
            cut = (sharding.scatter(x, named[key.partition("/")[2]]) for key, x in kept.items())
            self.power_averages.load(dict(zip(kept, sharding.local(cut), strict=True)))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _local(self) -> list[torch.Tensor]:
        """What this process holds of each parameter; averages are kept of these."""
        return sharding.local(self.parameters.values())

    def _local_by_name(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.parameters, self._local(), strict=True))

    def _power_averages(self) -> dict[str, torch.Tensor]:
        """The averages by `{length}/{name}`, each cut as its parameter is."""
        kept = self.power_averages.tensors() if self.power_averages is not None else {}
        return {key: sharding.like(x, self.parameters[key.partition("/")[2]]) for key, x in kept.items()}
