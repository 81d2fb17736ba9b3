# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Makes a network that draws from text alone ready to learn a task: it gets the channels of a condition, and draws as
before whatever they hold."""

from mezzotint import MezzotintUNetModel
from mezzotint_training.config import tasks
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig


def ready_for_task(config: TrainConfig, unet: MezzotintUNetModel) -> MezzotintUNetModel:
    """The network itself where it is trained for the task of `config`, or a widened one.

    Raises:
        UserError: for a network that is trained for another task, or that cannot be widened.
    """
    found = tasks.trained_for(unet.config)
    if found == config.task:
        for name, asked in (tasks.condition(config) or {}).items():
            if unet.config.condition.get(name) != asked:
                raise UserError(
                    f"{name} must be that of the saved pipeline, {unet.config.condition.get(name)}: got {asked}"
                )
        return unet
    from_scratch = tasks.TASKS[config.task].masks or config.task == "unclip"  # what is read is of another kind
    if found != "text_to_image" or from_scratch:
        raise UserError(
            f"task must be {found}, which the saved pipeline is trained for: got {config.task}"
            + ("; train one from scratch" if from_scratch else "")
        )
    if config.adapter is not None:
        raise UserError(f"adapter cannot give a network the inputs of {config.task}: fine-tune the weights, without it")
    return widened(unet, config)


def widened(unet: MezzotintUNetModel, config: TrainConfig) -> MezzotintUNetModel:
    """The same network with the input channels of the task, whose weights are zero (as Stable Diffusion's inpainting
    began), and where there is a linear skip with gains of zero."""
    shape = tasks.channels(config, unet.config.out_channels) | {"condition": tasks.condition(config)}
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}  # which ones are defaults
    new = type(unet)(**config | shape).to(unet.dtype)
    old, weights = unet.state_dict(), new.state_dict()
    for name, weight in weights.items():
        if name == "conv_in.weight":
            weight.zero_()
        elif name == "linear_skip.analysis.weight":
            weight[: len(old[name]), old[name].shape[1] :] = 0  # the sample's coefficients are of the sample alone
        weight[tuple(slice(size) for size in old[name].shape)] = old[name]
    new.load_state_dict(weights)
    return new.train(unet.training)
