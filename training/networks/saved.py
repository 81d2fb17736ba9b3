# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Loads what was saved, for all programs: pipelines of ours and networks of transformers, whole, checked and on their
device, or refused in one line. Whatever a folder or a repository says of itself, none of its code runs unless it is
trusted in so many words, nothing in it is unpickled, and no missing weight is made up."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

import mezzotint
from mezzotint import MezzotintPipeline
from mezzotint.drawing import class_of, on_device
from mezzotint_training.config.errors import UserError, loading
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.tasks import trained_task
from mezzotint_training.data.augment import AUGMENT_DIM, TURN_DIM
from mezzotint_training.networks.widening import ready_for_task

POOLER = "pooler."  # which many encoders are published without


def find_device(name: str | None) -> torch.device:
    """The device of `--device`, which is by default cuda where there is one, or else cpu.

    Raises:
        UserError: for one that is not on this machine.
    """
    possible = ["cpu"]
    if torch.cuda.is_available():
        possible += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        possible.append("mps")
    if name is None:
        name = "cuda" if "cuda" in possible else "cpu"
    if name not in possible:
        raise UserError(f"device must be one of this machine's ({', '.join(possible)}): got {name!r}")
    return torch.device(name)


def load_pipeline(
    source: str | Path,
    name: str = "checkpoint",
    revision: str | None = None,
    device: str | None = "cpu",
    trust_remote_code: bool = False,
    **components: Any,
) -> MezzotintPipeline:
    """The pipeline of a folder or a Hub repository, of the class for the task that its weights are trained for, by the
    installed package's code, every weight accounted for and finite; on a CPU in float32 where it is saved in float16.

    Args:
        source: a folder or a Hub name.
        name: of the argument that named it, for the message.
        revision: branch, tag or commit on the Hub.
        device: where to, as `--device` names it.
        trust_remote_code: take components as the checkpoint's own code has them. The pipeline is the package's still.
        components: in place of those that are saved.

    Raises:
        UserError: for one that cannot be loaded, or a device that is not there.
    """
    place = find_device(device)
    diffusers.utils.logging.disable_progress_bar()  # of the loading, and they stay off
    transformers.utils.logging.disable_progress_bar()
    try:
        with loading(f"{name} {source}"):
            cls = class_of(source, revision)
            if trust_remote_code:
                own = DiffusionPipeline.from_pretrained(source, revision=revision, trust_remote_code=True, **components)
                pipe = cls(**own.components)
            else:
                pipe = cls.from_pretrained(source, revision=revision, **components)
            for part, model in pipe.components.items():
                check_finite(part, model)
            task = trained_task(pipe.unet.config)
    except UserError as error:
        if Path(source).exists():
            raise
        raise UserError(f"{error} (there is no folder of that name)") from None
    alike = cls is MezzotintPipeline or cls.modality != MezzotintPipeline.modality  # in their components
    if alike and task.pipeline != cls.__name__:
        pipe = getattr(mezzotint, task.pipeline)(**pipe.components)
    return on_device(pipe, place)


def check_finite(name: str, model: Any) -> None:
    """See that the weights of the component `name`, where it has any, are finite numbers.

    Raises:
        UserError: for weights that are not.
    """
    for key, weight in model.named_parameters() if isinstance(model, torch.nn.Module) else ():
        if not weight.isfinite().all():
            raise UserError(f"weights must be finite numbers: {key} of the {name} has others")


def sample_size(pipe: Any, name: str = "checkpoint") -> tuple[int, ...]:
    """The size that the pipeline was trained at: of pictures height and width in pixels.

    Raises:
        UserError: for a U-Net that does not say it.
    """
    size = tuple(side for side in pipe.default_size if isinstance(side, int) and side > 0)
    if len(size) != pipe.unet.config.get("spatial_dims", 2) or len(size) != len(pipe.default_size):
        raise UserError(
            f"the {name}'s U-Net must say its sample_size, height and width: got {pipe.unet.config.sample_size}"
        )
    return size


def drop_fitted_schedules(pipe: MezzotintPipeline) -> None:
    """Take away what was fitted to the network that was saved, or what it was distilled to, for one whose weights
    change."""
    own = {name: None for name in ("_fitted_schedules", "_consistency_steps") if pipe.scheduler.config.get(name)}
    if own:
        pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, **own})


def check_denoises(pipe: MezzotintPipeline, name: str = "checkpoint") -> None:
    """See that a network predicts what a sample is on average, and is not distilled to few steps.

    Raises:
        UserError: for one that is.
    """
    if (steps := pipe.distilled_steps) is not None:
        raise UserError(f"{name} must be a network that denoises: got one distilled to {steps} steps; take its teacher")


def pretrained_components(config: TrainConfig) -> dict:
    """The components of a saved pipeline, every weight accounted for.

    Raises:
        UserError: for one that cannot be loaded, or has missing or surplus weights.
    """
    source, name = config.pretrained_model_name_or_path, "pretrained_model_name_or_path"
    pipe = load_pipeline(source, name, revision=config.revision)
    if pipe.trained_for["task"] == "cascade":
        raise UserError(f"{name} must be a pipeline of one network: got a cascade, whose stages are trained one by one")
    if config.augment_probability > 0 and pipe.unet.config.augment_dim != AUGMENT_DIM:
        raise UserError("augment_probability needs a model that was trained with it: the saved one was not")
    if config.random_turn and pipe.unet.config.augment_dim != TURN_DIM:
        raise UserError("random_turn needs a model that was trained with it: the saved one was not")
    pipe.unet = ready_for_task(config, pipe.unet)
    if config.adapter is None:
        drop_fitted_schedules(pipe)
    else:
        check_denoises(pipe, name)
    return dict(pipe.components)


def load_whole(cls: Any, source: str) -> tuple[Any, bool]:
    """A network in evaluation mode, and whether it came with its pooler.

    Call it within `errors.loading`: what transformers raises is of many kinds.

    Args:
        cls: a model class of transformers, `AutoModel` among them.
        source: a folder or a Hub name.

    Raises:
        ValueError: for weights that are missing or of another shape, but for a pooler's.
    """
    model, report = cls.from_pretrained(
        source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    bad = [key for key in missing if not key.startswith(POOLER)]
    if bad:
        raise ValueError(f"{len(bad)} weights are missing or of another shape ({', '.join(bad[:3])})")
    return model, not missing
