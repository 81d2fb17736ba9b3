# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every setting of `train_two_towers.py`: those of a training run that are of any use to it, and its own."""

from dataclasses import dataclass
from typing import Any, ClassVar

from mezzotint_training.config.rules import BELOW_1, at_least, at_most
from mezzotint_training.config.settings import OF_MODALITIES, TrainConfig, redefined, setting


@dataclass
class TwoTowersConfig(TrainConfig):
    """The settings of `train_two_towers.py`."""

    program: ClassVar[str] = "train-two-towers"
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "size", "task", "scale", "num_classes", "two_towers", "vae", "latent_versions", "unet", "scheduler",
            "revision", "pretrained_model_name_or_path", "text_encoder", "adapter", "rank", "lora_alpha",
            "lora_dropout", "lora_layers", "label_column", "attribute_columns", "mask_column", "cache_dir",
            "augment_probability", "aspect_ratio_buckets", "weighting_scheme", "logit_mean", "logit_std",
            "proportion_empty_conditions", "proportion_empty_attributes", "posthoc_ema_steps", "validation_prompts",
            "num_validation_images", "num_copy_samples", "num_inference_steps", "guidance_scale", "load_back",
            "gradient_checkpointing", "channels_last", "compile", "push_to_hub", "hub_model_id", "hub_private_repo",
        }
    ) | OF_MODALITIES  # fmt: skip

    text_encoder_name_or_path: str | None = setting(
        None,
        "a transformers encoder with its tokenizer (folder or Hub name) as the text tower; without one a small tower "
        "on bytes is made, and the two are a CLIPModel",
    )
    train_text_encoder: bool | None = setting(
        None, "train a text tower that was loaded too; by default what is put on top of it alone"
    )
    text_tower: dict[str, Any] = setting({}, "arguments of transformers' CLIPTextConfig, as YAML, over small ones")
    vision_tower: dict[str, Any] = setting({}, "arguments of transformers' CLIPVisionConfig, as YAML, over small ones")
    projection_dim: int = setting(64, "width of the space that both towers embed in", at_least(2), at_most(4096))
    shift: float = setting(
        0.125, "share of a side by which the pictures of a batch are moved at most, for small sets",
        BELOW_1, on_resume="branch",
    )  # fmt: skip

    proportion_empty_prompts: float = setting(
        0.05, "share of captions that are dropped, so that the empty text is near to any picture", BELOW_1,
        on_resume="branch",
    )  # fmt: skip
    train_batch_size: int = setting(
        128, "pairs of a process in each micro-step, among which each is to be found", at_least(2), at_most(65_536),
        on_resume="free",
    )  # fmt: skip
    max_train_steps: int = redefined("max_train_steps", 1000)
    adam_weight_decay: float = redefined("adam_weight_decay", 0.05)
    output_dir: str = setting(
        "runs/two-towers", "folder for the finished two-tower encoder, its card, checkpoints, logs", on_resume="free"
    )
