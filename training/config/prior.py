# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every setting of `train_prior.py`: those of a training run that are of any use to it, and its own."""

from dataclasses import dataclass
from typing import Any, ClassVar

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import COUNT, GUIDANCE
from mezzotint_training.config.settings import OF_MODALITIES, TrainConfig, redefined, setting


@dataclass
class PriorConfig(TrainConfig):
    """The settings of `train_prior.py`."""

    program: ClassVar[str] = "train-prior"
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "size", "task", "scale", "num_classes", "two_towers", "pretrained_model_name_or_path", "unet", "vae",
            "latent_versions", "text_encoder_name_or_path", "text_encoder", "max_text_length", "train_text_encoder",
            "adapter", "rank", "lora_alpha", "lora_dropout", "lora_layers", "label_column", "attribute_columns",
            "mask_column", "random_flip", "augment_probability", "aspect_ratio_buckets", "streaming",
            "shuffle_buffer_size", "proportion_empty_conditions", "proportion_empty_attributes", "posthoc_ema_steps",
            "num_copy_samples", "gradient_checkpointing", "channels_last", "compile",
        }
    ) | OF_MODALITIES  # fmt: skip

    decoder: str | None = setting(
        None, "the pipeline that draws pictures of embeddings, of train.py --task unclip (folder or Hub name)"
    )
    prior: dict[str, Any] = setting({}, "arguments of diffusers' PriorTransformer, as YAML, over small ones")
    prior_num_inference_steps: int = setting(25, "steps of the prior in drawings while training", *COUNT,
                                             on_resume="free")  # fmt: skip
    prior_guidance_scale: float = setting(
        1.0, "guidance scale of the prior in those drawings", *GUIDANCE, on_resume="free"
    )
    channels_last: bool = redefined("channels_last", False)
    num_copy_samples: int = redefined("num_copy_samples", 0)
    output_dir: str = setting(
        "runs/prior", "folder for the finished pipeline, decoder and prior, its card and samples, checkpoints, logs",
        on_resume="free",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.decoder is None:
            raise UserError("decoder must name a pipeline of train.py --task unclip: got none")
