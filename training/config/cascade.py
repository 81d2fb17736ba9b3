# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every setting of `train_cascade.py`: those of a training run that its stages share, and what each stage has of its
own; and from them the settings of each stage, which is a run of `train.py`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import layers_of, settled
from mezzotint_training.config.rules import nearest, shown
from mezzotint_training.config.settings import OF_MODALITIES, TrainConfig, setting

# What a stage may have of its own: its network, how that learns, and what is shown of it
OF_A_STAGE = frozenset(
    {
        "size", "scale", "resolution", "unet", "scheduler", "augment_probability", "weighting_scheme", "logit_mean",
        "logit_std", "proportion_empty_prompts", "proportion_empty_conditions", "proportion_empty_attributes", "seed",
        "train_batch_size", "gradient_accumulation_steps", "max_train_steps", "max_train_minutes", "learning_rate",
        "lr_scheduler", "lr_warmup_steps", "optimizer", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon",
        "max_grad_norm", "use_ema", "ema_decay", "mixed_precision", "posthoc_ema_steps", "max_nonfinite_steps",
        "gradient_checkpointing", "channels_last", "compile", "checkpointing_steps", "checkpoints_total_limit",
        "validation_steps", "num_copy_samples", "num_inference_steps", "guidance_scale", "logging_steps",
    }
)  # fmt: skip
# What the cascade has that none of its stages is told
OF_THE_CASCADE = ("task", "stages", "launch", "plan", "resolution", "output_dir", "push_to_hub", "validation_prompts")


@dataclass
class CascadeConfig(TrainConfig):
    """The settings of `train_cascade.py`: what all stages share, but for the last ones."""

    program: ClassVar[str] = "train-cascade"
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "two_towers",
            "scale", "num_classes", "mask_column", "pretrained_model_name_or_path", "revision", "vae",
            "latent_versions", "adapter", "rank", "lora_alpha", "lora_dropout", "lora_layers", "aspect_ratio_buckets",
            "resume_from_checkpoint",
        }
    ) | OF_MODALITIES  # fmt: skip

    task: Literal["cascade"] = setting("cascade", "what its networks draw together")
    stages: list[dict[str, Any]] = setting(
        [{}, {}],
        "what each stage has of its own, as YAML, the base first: scale (of an upscaler), unet, max_train_steps, ...",
        on_resume="free",
    )
    launch: str | None = setting(
        None,
        "what to launch each stage by, say 'accelerate launch --config_file training/launch/ddp.yaml'; by default one "
        "process",
        on_resume="free",
    )
    output_dir: str = setting(
        "runs/cascade", "folder for the finished cascade and its card; each stage's run is in stage-1, ...",
        on_resume="free",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= len(self.stages) <= 3:
            raise UserError(f"stages must be a base, and one or two upscalers: got {len(self.stages)}")
        for number, own in enumerate(self.stages, 1):
            for name in own:
                if name not in OF_A_STAGE:
                    kind = "all stages have alike" if name in type(self).__dataclass_fields__ else "there is not"
                    hint = nearest(name, sorted(OF_A_STAGE)) if kind == "there is not" else ""
                    raise UserError(
                        f"stage {number} must have settings of its own alone: got {name}, which {kind}{hint}"
                    )
        if "scale" in self.stages[0]:
            raise UserError("stage 1 must be the base, which enlarges nothing: got a scale")


class Stages:
    """The settings of a cascade, layer by layer: defaults, recipe, YAML file and flags. Within a layer what a stage has
    of its own stands over what all share; each layer stands over those before.

    Attributes:
        config: what all stages share.

    Args:
        layers: of settings, as `flags.layers_of` reads them; those for `stages` are brought together one by one.

    Raises:
        UserError: for settings that break a rule, or stages that are not as many as in the layer before.
    """

    def __init__(self, layers: list[dict[str, Any]]):
        own: list[dict[str, Any]] = []
        for layer in layers:
            given = layer.get("stages")
            if given is None:
                continue
            if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
                raise UserError(f"stages must be mappings of names to values, one for each stage: got {shown(given)}")
            if own and len(given) != len(own):
                raise UserError(f"stages must be {len(own)}, as many as there are before: got {len(given)}")
            own = [{**before, **one} for before, one in zip(own or [{}] * len(given), given, strict=True)]
        self.layers = layers
        self.config: CascadeConfig = settled(CascadeConfig, [*layers, {"stages": own} if own else {}])

    @classmethod
    def parsed(cls, argv: list[str] | None, description: str) -> "Stages":
        """The settings that a command line says."""
        layers, words = layers_of(argv, description, CascadeConfig)
        found = cls(layers)
        found.config.argv = words
        return found

    @property
    def scales(self) -> list[int]:
        """How many times larger than the stage before each stage draws; 1 is the base's."""
        return [1, *(self._settled(number, {}).scale for number in range(1, len(self.config.stages)))]

    def folder(self, number: int) -> Path:
        """The folder of the stage's run; the first has the number 0."""
        return Path(self.config.output_dir) / f"stage-{number + 1}"

    def sizes(self, height: int, width: int) -> list[list[int]]:
        """Height and width that each stage draws.

        Args:
            height, width: that the last is to draw.

        Raises:
            UserError: for a size that is no multiple of what the stages enlarge by, or another that a stage asks for.
        """
        scales, found = self.scales, []
        whole = math.prod(scales)
        if height % whole or width % whole:
            raise UserError(
                f"resolution must be a multiple of {whole}, which the stages enlarge by in all: got {height}x{width}"
            )
        for number, scale in enumerate(scales):
            found.append([scale * side for side in found[-1]] if found else [height // whole, width // whole])
            asked = self._settled(number, {}).resolution
            if "resolution" in self.config.stages[number] and asked is not None and [asked[0], asked[-1]] != found[-1]:
                said = f"{scale} times what stage {number} draws" if number else f"a {whole}th of {height}x{width}"
                raise UserError(
                    f"stage {number + 1} must draw {found[-1][0]}x{found[-1][1]}, {said}: got a resolution of "
                    f"{asked[0]}x{asked[-1]}"
                )
        return found

    def settings(self, number: int, size: list[int], text_encoder: str | None) -> TrainConfig:
        """The settings of the run that trains a stage.

        Args:
            number: of the stage; the first has 0.
            size: height and width that it draws.
            text_encoder: where an upscaler finds the encoder of the base; `None` is that of the settings, frozen.

        Raises:
            UserError: for settings that break a rule, with the number of the stage.
        """
        fixed: dict[str, Any] = {
            "output_dir": str(self.folder(number)),
            "resolution": size,
            "cache_dir": self.config.cache_dir or str(Path(self.config.output_dir) / "cache"),
            "load_back": False,  # the whole is
        }
        if number == 0:
            return self._settled(0, fixed | {"validation_prompts": self.config.validation_prompts})
        fixed |= {"task": "upscale", "train_text_encoder": False}
        if text_encoder is not None:
            fixed["text_encoder_name_or_path"] = text_encoder
        return self._settled(number, fixed)

    def _settled(self, number: int, fixed: dict[str, Any]) -> TrainConfig:
        layers = []
        for layer in self.layers:
            layers.append({name: value for name, value in layer.items() if name not in OF_THE_CASCADE})
            layers.append((layer.get("stages") or [{}] * (number + 1))[number])
        try:
            return settled(TrainConfig, [*layers, fixed])
        except UserError as error:
            raise UserError(f"stage {number + 1}: {error}") from None
