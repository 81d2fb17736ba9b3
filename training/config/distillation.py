# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every setting of `distill.py`: those by which a student learns, as of `train.py`, and those of its teacher."""

from dataclasses import dataclass
from typing import ClassVar

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import ABOVE_0, COUNT, GUIDANCE, at_least, at_most
from mezzotint_training.config.settings import TrainConfig, redefined, setting

# Of the teacher's recipe: what it says of the data, and of how a run goes and what it shows
DATA = (
    "dataset_config_name", "dataset_split", "image_column", "caption_column", "caption_weights", "label_column",
    "attribute_columns", "balance_column", "balance_power", "resolution", "random_flip", "max_train_samples",
    "validation_split", "num_validation_samples", "on_bad_row", "dataset_license", "modality", "sample_column",
    "sampling_rate", "audio_length_in_s", "n_fft", "num_frames", "frame_rate", "molecule_length_in_tokens",
)  # fmt: skip
COURSE = (
    "proportion_empty_prompts", "proportion_empty_attributes", "train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "mixed_precision", "channels_last", "validation_prompts", "num_validation_images", "license",
)  # fmt: skip
# How the help says the defaults that follow from the teacher
FOLLOWS = dict.fromkeys((*DATA, *COURSE, "teacher_guidance_scale"), "the teacher's") | {
    "train_batch_size": "the teacher's, divided among the times at which a student predicts",
    "learning_rate": "the teacher's, at most 0.02 x sqrt(samples x times) / channels of the widest level",
    "max_train_steps": "what costs a fifth of the teacher's training, or 1000 where that is not known",
    "output_dir": "CHECKPOINT-distilled",
}


@dataclass
class DistillConfig(TrainConfig):
    """The settings of `distill.py`."""

    program: ClassVar[str] = "distill"
    without: ClassVar[frozenset[str]] = frozenset(
        {
            "two_towers",
            "size", "task", "scale", "num_classes", "pretrained_model_name_or_path", "revision", "unet", "vae",
            "latent_versions", "scheduler", "text_encoder_name_or_path", "text_encoder", "max_text_length",
            "train_text_encoder", "adapter", "rank", "lora_alpha", "lora_dropout", "lora_layers", "mask_column",
            "aspect_ratio_buckets", "augment_probability", "weighting_scheme", "logit_mean", "logit_std",
            "proportion_empty_conditions", "posthoc_ema_steps", "num_copy_samples", "num_inference_steps",
            "guidance_scale", "validation_split", "num_validation_samples", "random_turn",
        }
    )  # fmt: skip

    steps: list[int] = setting(
        [1, 2, 4],
        "numbers of sampling steps to distil to; a pipeline draws in 2 by default, or in the most where 2 is not among "
        "them",
        at_least(1),
        at_most(64),
    )
    teacher_guidance_scale: float = setting(
        2.0, "guidance scale of the teacher, which the student then has in it; by default that of its recipe", *GUIDANCE
    )
    teacher_steps: int = setting(
        8, "steps in which the teacher goes from noise to data, or as many as the student has times", *COUNT
    )
    consistency_shift: float | None = setting(
        None,
        "noise level, sigma_t / alpha_t, of the second of two steps when it draws, about which others lie; by default "
        "a sixteenth of the square root of a sample's places, at least 1",
        ABOVE_0,
    )
    max_train_steps: int = redefined("max_train_steps", 1000)
    lr_warmup_steps: int = redefined("lr_warmup_steps", 20)
    ema_decay: float = redefined("ema_decay", 0.95)
    validation_steps: int = redefined("validation_steps", 100)
    checkpointing_steps: int = redefined("checkpointing_steps", 100)

    def __post_init__(self):
        super().__post_init__()
        if not self.steps:
            raise UserError("steps must be at least one number: got none")
        self.steps = sorted(set(self.steps))
