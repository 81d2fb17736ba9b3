# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every setting of `train_autoencoder.py`: those of a training run that are of any use to it, and its own."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import FROM_0, at_least, at_most
from mezzotint_training.config.settings import OF_MODALITIES, TrainConfig, setting


@dataclass
class AutoencoderConfig(TrainConfig):
    """The settings of `train_autoencoder.py`. A picture is all that it reads of a row."""

    program: ClassVar[str] = "train-autoencoder"
    captioned: ClassVar[bool] = False
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "two_towers",
            "size", "task", "scale", "num_classes", "vae", "latent_versions", "unet", "scheduler", "revision",
            "text_encoder_name_or_path", "text_encoder", "max_text_length", "train_text_encoder", "adapter", "rank",
            "lora_alpha", "lora_dropout", "lora_layers", "caption_column", "caption_weights", "label_column",
            "attribute_columns", "mask_column", "cache_dir", "weighting_scheme", "logit_mean", "logit_std",
            "proportion_empty_prompts", "proportion_empty_conditions", "proportion_empty_attributes",
            "posthoc_ema_steps", "validation_prompts", "num_validation_images", "num_copy_samples",
            "num_inference_steps", "guidance_scale", "gradient_checkpointing", "compile", "push_to_hub",
            "hub_model_id", "hub_private_repo",
        }
    ) | OF_MODALITIES  # fmt: skip

    autoencoder: Literal["AutoencoderDC", "AutoencoderKL", "AutoencoderTiny"] = setting(
        "AutoencoderDC", "the class of diffusers"
    )
    network: dict[str, Any] = setting({}, "arguments of that class, as YAML, over those that are made for this size")
    pretrained_model_name_or_path: str | None = setting(
        None, "go on from this saved autoencoder (folder or Hub name) with other data; its class and arguments stay"
    )
    vae_scale_factor: int | None = setting(
        None,
        "pixels along each axis that make one latent, a power of 2; by default 2 up to 16 px, 4 below 128 px, then 8",
        at_least(2),
        at_most(32),
    )
    latent_channels: int = setting(4, "channels of the latents", at_least(1), at_most(64))

    # What a reconstruction costs
    structure_weight: float = setting(0.5, "weight of 1 - SSIM at several scales, beside L1's of 1", FROM_0)
    bands_weight: float = setting(0.0, "weight of L1 in the bands of a Laplacian pyramid, beside L1's of 1", FROM_0)
    equivariance_weight: float = setting(
        0.25, "weight of the loss of smaller pictures, drawn from smaller latents (scale equivariance)", FROM_0
    )
    latent_noise: float = setting(
        0.1, "most noise in the latents that the decoder is trained on, in their standard deviations", FROM_0
    )
    adversary_weight: float = setting(
        0.0,
        "gradient from a network that learns to tell reconstructions from pictures, as a share of that of L1 and "
        "structure; 0 trains none",
        FROM_0,
    )
    adversary_from: float = setting(
        0.5,
        "share of the updates after which the autoencoder follows that network, which learns from the first",
        FROM_0,
        at_most(1),
    )
    kl_weight: float = setting(
        1e-6, "weight of an AutoencoderKL's divergence from a standard normal, in nats a latent", FROM_0
    )

    caption_column: list[str] = setting([], "none: captions are not read")
    train_batch_size: int = setting(
        16, "pictures of a process in each micro-step", at_least(1), at_most(65_536), on_resume="free"
    )
    learning_rate: float = setting(2e-3, "peak learning rate, reached after warm-up", FROM_0, on_resume="branch")
    adam_weight_decay: float = setting(1e-4, "AdamW's weight decay", FROM_0, on_resume="branch")
    ema_decay: float = setting(
        0.995, "decay of the moving average, approached as (1 + step) / (10 + step)", FROM_0, on_resume="branch"
    )
    output_dir: str = setting(
        "runs/autoencoder", "folder for the finished autoencoder, its card, checkpoints, logs", on_resume="free"
    )

    def __post_init__(self):
        super().__post_init__()
        factor = self.vae_scale_factor
        if factor is not None and factor & (factor - 1):
            raise UserError(f"vae_scale_factor must be a power of 2: got {factor}")
