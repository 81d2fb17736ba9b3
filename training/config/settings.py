# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every setting of a run that trains or distils, with its default and its help: the one place where a training default
is written.

Settings come in layers, each over the one before: these defaults, a named recipe (`recipes/*.yaml`), a YAML file
(`--config`), flags. All four are checked alike. A model's own defaults stand in its `__init__`, not here.
"""

import functools
import math
import types
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.rules import (
    ABOVE_0,
    BELOW_1,
    COUNT,
    FINITE,
    FROM_0,
    GUIDANCE,
    SEED,
    SHARE,
    SIDE,
    Rule,
    at_least,
    at_most,
    number,
    shown,
)

EMBEDDED = ("digits", "tones", "squares", "blocks", "chains")  # names of sets that need no download


def setting(default: Any, help: str, *rules: Rule, on_resume: Literal["same", "branch", "free"] = "same") -> Any:
    """A field of `TrainConfig`: its default, its help, the rules that its numbers keep, and what it may be when a run
    goes on.

    Args:
        on_resume: "same" as before; "free" for what says when to stop, what to show and how the work is dealt out, not
            what to learn, and where the data are, which are compared themselves; "branch" for what may differ too where
            a run branches off from a named checkpoint into a new folder: the cure of a bad course.
    """
    metadata = {"help": help, "rules": rules, "on_resume": on_resume}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def redefined(name: str, default: Any) -> Any:
    """A setting of `train.py` with another default, for a program that shares it."""
    return field(default=default, metadata=TrainConfig.__dataclass_fields__[name].metadata)


# Settings that say what a sample is: programs that know pictures alone are without them
OF_MODALITIES = frozenset(
    {
        "modality",
        "sample_column",
        "sampling_rate",
        "audio_length_in_s",
        "n_fft",
        "num_frames",
        "frame_rate",
        "random_turn",
        "molecule_length_in_tokens",
    }
)


@dataclass
class TrainConfig:
    """The settings of `train.py`; names are those of diffusers' own training scripts wherever there is a habit.

    Those of a program that shares its loop are a subclass, which says what else there is and what is not.
    """

    program: ClassVar[str] = "train"
    without: ClassVar[frozenset[str]] = frozenset()  # settings here that the program does not have
    captioned: ClassVar[bool] = True  # whether it reads captions

    size: Literal["tiny", "small", "base", "large"] | None = setting(
        None,
        "one dial, from which and the data model, batch, learning rate and length follow (--plan shows them)",
        on_resume="free",
    )
    plan: bool = setting(
        False, "print what the run would do and cost, measured over its first steps, and stop", on_resume="free"
    )

    # What is learned
    modality: Literal["image", "audio", "video", "voxels", "molecules"] | None = setting(
        None,
        "what a sample is; by default told from the types of the set's columns, but for molecules, which are strings",
    )
    task: Literal["text_to_image", "inpaint", "upscale", "segment", "layout", "unclip"] = setting(
        "text_to_image",
        "what the network learns: to draw from text alone, to fill in holes, to enlarge, to divide into classes, to "
        "draw what a map of classes lays out, or what the embedding of a picture says",
    )
    two_towers: str | None = setting(
        None,
        "the two-tower encoder (folder or Hub name; CLIPModel, or what train-two-towers made) whose embeddings of "
        "pictures --task unclip reads",
        on_resume="free",
    )
    scale: int = setting(2, "how many times larger --task upscale draws a picture", at_least(2), at_most(8))
    num_classes: int = setting(
        2, "classes in mask_column, for --task segment and layout, the first being 0", at_least(2), at_most(256)
    )

    # Where to start from
    pretrained_model_name_or_path: str | None = setting(
        None, "fine-tune this saved pipeline (folder or Hub name); its text encoder, scheduler and data scale are kept"
    )
    revision: str | None = setting(None, "branch, tag or commit of the saved pipeline")
    unet: dict[str, Any] = setting({}, "arguments of MezzotintUNetModel, as YAML; for a model from scratch")
    vae: str | None = setting(
        None,
        "draw in the latents of this autoencoder (folder or Hub name) instead of pixels: AutoencoderKL, "
        "AutoencoderTiny or AutoencoderDC of diffusers, or what train-autoencoder made",
        on_resume="free",
    )
    latent_versions: int | None = setting(
        None,
        "versions of each picture whose latents are computed before training, of which one is drawn each time; by "
        "default 2 with random_flip, 8 with augment_probability, else the picture as it is",
        at_least(1),
        at_most(1000),
    )
    scheduler: dict[str, Any] = setting({}, "arguments of MezzotintScheduler, as YAML; for a model from scratch")
    text_encoder_name_or_path: str | None = setting(
        None,
        "a transformers encoder with its tokenizer (folder or Hub name), or a pipeline's folder, whose encoder it is; "
        "without one a small T5 on bytes is made",
    )
    text_encoder: dict[str, Any] = setting(
        {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4},
        "arguments of transformers' T5Config for the small T5, as YAML",
    )
    max_text_length: int = setting(128, "tokens (bytes) that the small T5 reads; longer captions are cut", *COUNT)
    train_text_encoder: bool | None = setting(
        None, "train the text encoder too; by default yes for one made here and no for one that was loaded"
    )
    adapter: Literal["lora", "dora"] | None = setting(
        None, "train low-rank adapters of a saved pipeline instead of its weights"
    )
    rank: int = setting(4, "rank of the low-rank adapters", at_least(1), at_most(4096))
    lora_alpha: float | None = setting(
        None, "scale of the adapters, times rank; by default rank, a scale of 1", ABOVE_0
    )
    lora_dropout: float = setting(0.0, "share of an adapter's inputs dropped in training", BELOW_1)
    lora_layers: list[str] = setting(
        ["to_q", "to_k", "to_v", "to_out.0"],
        "names of the U-Net's layers that get an adapter; in a text encoder that is trained, all of its attention",
    )

    # Data
    dataset_name: str | None = setting(
        None,
        "name of a Hub dataset, or 'digits', the handwriting that scikit-learn carries, or 'tones', 'squares' "
        "(videos), 'blocks' (solids) or 'chains' (molecules), made here",
    )
    dataset_config_name: str | None = setting(None, "configuration of the Hub dataset")
    train_data_dir: str | None = setting(
        None, "a folder of parquet files, tars (WebDataset), or pictures with a metadata.jsonl", on_resume="free"
    )
    dataset_split: str = setting("train", "the split to train on")
    image_column: str = setting("image", "the column of pictures")
    sample_column: str | None = setting(
        None,
        "the column of samples that are no pictures; by default audio, video, voxels or selfies, or the only one of "
        "their type",
    )
    sampling_rate: int | None = setting(
        None, "samples of a sound a second; by default the first sound's", at_least(100), at_most(384_000)
    )
    audio_length_in_s: float | None = setting(
        None, "seconds of sound to train at, of longer ones the beginning; by default the longest one's", ABOVE_0
    )
    n_fft: int | None = setting(
        None,
        "window, in samples, of the spectrogram that is drawn in place of a waveform: it is learned sooner, and its "
        "phases are guessed; by default the waveform itself is drawn",
        Rule("a power of 2", lambda x: x > 0 and math.log2(x).is_integer()),
        at_least(4),
        at_most(2**16),
    )
    num_frames: int | None = setting(
        None, "frames of a video to train at, its first ones; by default the shortest one's", at_least(2), at_most(4096)
    )
    frame_rate: float | None = setting(
        None, "frames a second of a video; by default the first file's, and 8 of lists of frames", ABOVE_0
    )
    molecule_length_in_tokens: int | None = setting(
        None, "tokens of a molecule at the most; by default the longest one's, and longer ones are bad rows", *COUNT
    )
    caption_column: list[str] = setting(
        ["text"],
        "columns of captions, or templates ('{text}, {keywords}'); where a picture has several, one is drawn each time",
    )
    label_column: str | None = setting(
        None, "a column of classes that the network reads beside the caption: names, or whole numbers"
    )
    attribute_columns: list[str] = setting([], "columns of numbers that the network reads beside the caption")
    mask_column: str = setting(
        "mask",
        "the column of class maps for --task segment and layout: pictures of class numbers; of two classes, 255 is "
        "the second too",
    )
    caption_weights: list[float] | None = setting(
        None,
        "how often each entry of caption_column is drawn from, relative to the others; by default all alike",
        ABOVE_0,
        on_resume="branch",
    )
    balance_column: str | None = setting(
        None, "column whose values are to be drawn equally often, whatever the number of pictures of each"
    )
    balance_power: float = setting(
        1.0, "how far to balance: 0 draws all pictures alike, 1 all values of balance_column", SHARE, on_resume="branch"
    )
    resolution: list[int] | None = setting(
        None, "height and width to train at, or one number for both; by default the first picture's size", *SIDE
    )
    aspect_ratio_buckets: str | None = setting(
        None, "sizes to choose from for each picture: 'height,width;height,width;...', or 'auto', of resolution's area"
    )
    random_flip: bool = setting(False, "mirror half of the pictures (not where left and right matter)")
    random_turn: bool = setting(
        False, "turn solids by quarters about the vertical axis; the network is told, so samples stand as in the set"
    )
    augment_probability: float = setting(
        0.0,
        "probability of each geometric change to a picture, for small sets; the network is told, so samples show none",
        SHARE,
    )
    max_train_samples: int | None = setting(
        None, "number of rows to use, from the start of the set; by default all", at_least(1), at_most(10**12)
    )
    validation_split: str | None = setting(
        None,
        "the split of the held-out loss; by default 'validation' where there is one, else rows kept out of training",
    )
    num_validation_samples: int = setting(
        256, "most rows to hold out for the held-out loss; 0 turns it off", at_least(0), at_most(10**9)
    )
    on_bad_row: Literal["stop", "skip"] = setting(
        "stop",
        "what to do at a picture that cannot be read or a missing caption: stop, or skip and count",
        on_resume="free",
    )
    streaming: bool = setting(
        False, "read rows as they come and keep none: for sets larger than the memory or the disk"
    )
    shuffle_buffer_size: int = setting(2000, "rows of a streamed set that are shuffled among themselves", *COUNT)
    cache_dir: str | None = setting(
        None,
        "folder for what is computed once: texts of a frozen encoder, latents of a vae; by default output_dir/cache",
        on_resume="free",
    )
    dataloader_num_workers: int = setting(
        0,
        "processes (for a stream: threads) that load data beside the training",
        at_least(0),
        at_most(1024),
        on_resume="free",
    )
    weighting_scheme: Literal["none", "logit_normal", "laplace"] = setting(
        "logit_normal",
        "distribution of noise levels: 'none' is any timestep alike, else log sigma around logit_mean",
        on_resume="branch",
    )
    logit_mean: float = setting(
        0.5, "mean of log sigma, sigma being the noise relative to the data", FINITE, on_resume="branch"
    )
    logit_std: float = setting(1.2, "standard deviation of log sigma", ABOVE_0, on_resume="branch")
    proportion_empty_prompts: float = setting(
        0.1, "share of captions that are dropped, from which guidance learns", SHARE, on_resume="branch"
    )

    proportion_empty_conditions: float = setting(
        0.1,
        "share of what is read beside the sample (--task) that is dropped, so that nothing is known",
        SHARE,
        on_resume="branch",
    )

    proportion_empty_attributes: float = setting(
        0.1,
        "share of each attribute (label_column, attribute_columns) that is dropped, from which guidance learns",
        SHARE,
        on_resume="branch",
    )

    # Optimisation
    num_cpu_threads_per_process: int | None = setting(
        None,
        "number of CPU threads; by default OMP_NUM_THREADS or what accelerate was told, else a share of the cores",
        at_least(1),
        at_most(1024),
        on_resume="free",
    )
    seed: int = setting(0, "seed of all that is random in the run (held-out rows are the same for all)", *SEED)
    train_batch_size: int = setting(
        64, "pictures of a process in each micro-step", at_least(1), at_most(65_536), on_resume="free"
    )
    gradient_accumulation_steps: int = setting(
        1, "micro-steps in each update", at_least(1), at_most(65_536), on_resume="free"
    )
    max_train_steps: int = setting(10_000, "number of updates", *COUNT, on_resume="free")
    max_train_minutes: float | None = setting(
        None, "minutes after which to stop and save, if they come before max_train_steps", FROM_0, on_resume="free"
    )
    learning_rate: float = setting(1e-3, "peak learning rate, reached after warm-up", ABOVE_0, on_resume="branch")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = setting("cosine", "how the learning rate changes after warm-up", on_resume="branch")
    lr_warmup_steps: int = setting(
        100, "updates over which the learning rate rises to its peak", at_least(0), at_most(10**9), on_resume="branch"
    )
    optimizer: Literal["adamw", "adamw_8bit", "muon", "schedule_free", "prodigy"] = setting(
        "adamw",
        "optimizer; muon takes AdamW for what is no matrix; prodigy finds its rate itself (learning_rate 1); "
        "schedule_free needs --no-use_ema",
    )
    adam_beta1: float = setting(0.9, "AdamW's decay of the first moment", BELOW_1, on_resume="branch")
    adam_beta2: float = setting(0.99, "AdamW's decay of the second moment", BELOW_1, on_resume="branch")
    adam_weight_decay: float = setting(0.01, "AdamW's weight decay", FROM_0, on_resume="branch")
    adam_epsilon: float = setting(1e-8, "AdamW's term that keeps it from dividing by zero", FROM_0, on_resume="branch")
    max_grad_norm: float = setting(1.0, "norm to which larger gradients are scaled down", ABOVE_0, on_resume="branch")
    use_ema: bool = setting(True, "keep a moving average of the weights, and publish that")
    ema_decay: float = setting(
        0.999, "decay of the moving average, approached as (1 + step) / (10 + step)", SHARE, on_resume="branch"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None,
        "precision of the arithmetic (weights stay in float32); by default as accelerate is configured",
        on_resume="branch",
    )
    posthoc_ema_steps: int | None = setting(
        None, "updates between snapshots of two power-function averages, for `mezzotint ema` after the run", *COUNT
    )
    max_nonfinite_steps: int = setting(
        10,
        "updates in a row without a finite gradient, each skipped, after which the run stops",
        *COUNT,
        on_resume="free",
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, a third more time", on_resume="free"
    )
    channels_last: bool = setting(
        True, "keep pictures in memory by pixel, not by channel: often faster", on_resume="free"
    )
    compile: bool = setting(
        False, "compile the U-Net: takes minutes at the start, for faster steps on a GPU", on_resume="free"
    )

    # What is kept
    output_dir: str = setting(
        "runs/mezzotint", "folder for the finished pipeline, its card and samples, checkpoints, logs", on_resume="free"
    )
    checkpointing_steps: int = setting(1000, "updates between checkpoints", *COUNT, on_resume="free")
    checkpoints_total_limit: int | None = setting(
        2, "number of checkpoints to keep; older ones are removed", *COUNT, on_resume="free"
    )
    resume_from_checkpoint: str | None = setting(
        None,
        "checkpoint folder to go on from, or 'latest'; the same command run again goes on by itself",
        on_resume="free",
    )
    validation_prompts: list[str] = setting(
        [], "prompts to draw while training, always from the same noise", on_resume="free"
    )
    num_validation_images: int = setting(
        4, "pictures of each validation prompt", at_least(1), at_most(1000), on_resume="free"
    )
    validation_steps: int = setting(
        1000,
        "updates between drawings of the validation prompts, and between held-out losses",
        *COUNT,
        on_resume="free",
    )
    num_copy_samples: int = setting(
        64,
        "pictures to draw every validation_steps, to see whether the run has begun to copy its training pictures; "
        "0 is none",
        at_least(0),
        at_most(10_000),
        on_resume="free",
    )
    num_inference_steps: int = setting(
        20, "sampling steps of the validation prompts' drawings and of the card's example", *COUNT, on_resume="free"
    )
    guidance_scale: float = setting(
        2.0, "guidance scale of the validation prompts' drawings and of the card's example", *GUIDANCE, on_resume="free"
    )
    logging_steps: int = setting(25, "updates between lines of metrics.jsonl", *COUNT, on_resume="free")
    report_to: str = setting(
        "auto",
        "a tracker of accelerate (tensorboard, wandb, trackio, ...), 'all', 'none'; auto: tensorboard if there",
        on_resume="free",
    )

    # Publishing
    load_back: bool = setting(
        True,
        "before the finished pipeline is put in place, load it in a process of its own, where mezzotint cannot be "
        "imported, and compare a picture with what was trained",
        on_resume="free",
    )
    push_to_hub: bool = setting(False, "upload the finished pipeline", on_resume="free")
    hub_model_id: str | None = setting(
        None, "user/name of the repository to upload to; by default output_dir's name", on_resume="free"
    )
    hub_private_repo: bool = setting(False, "upload to a private repository", on_resume="free")
    license: str | None = setting(
        None, "licence of the weights, for the card (a Hub licence identifier)", on_resume="free"
    )
    dataset_license: str | None = setting(None, "licence of the pictures, for the card", on_resume="free")

    def __post_init__(self):
        for f in fields(self):
            setattr(self, f.name, checked(f.name, getattr(self, f.name), type(self)))
        if (self.dataset_name is None) == (self.train_data_dir is None):
            got = "neither" if self.dataset_name is None else "both"
            raise UserError(f"exactly one of dataset_name and train_data_dir must be given: got {got}")
        if self.resolution is not None and len(self.resolution) not in (1, 2):
            raise UserError(f"resolution must be one or two positive numbers (height, width): got {self.resolution}")
        if not self.caption_column and self.captioned:
            raise UserError("caption_column must name one column or more: got none")
        if self.caption_weights is not None and len(self.caption_weights) != len(self.caption_column):
            raise UserError(
                f"caption_weights must be one for each of the {len(self.caption_column)} entries of caption_column: "
                f"got {len(self.caption_weights)}"
            )

        if self.adapter is not None and self.pretrained_model_name_or_path is None:
            raise UserError(f"adapter {self.adapter} needs pretrained_model_name_or_path: got none")
        if self.vae is not None and self.pretrained_model_name_or_path is not None:
            raise UserError("vae is for a model from scratch, a saved pipeline's stays: got both")
        if self.vae is not None and self.streaming:
            raise UserError("vae needs a set that is at hand, whose latents are computed once: got streaming")
        if self.vae is not None and self.task != "text_to_image":
            raise UserError(f"vae goes with task text_to_image, the others are trained in pixels: got {self.task}")
        if self.latent_versions is not None and not (self.random_flip or self.augment_probability > 0):
            raise UserError("latent_versions needs random_flip or augment_probability, which make them: got neither")
        if self.task == "unclip":
            if (self.two_towers is None) == (self.pretrained_model_name_or_path is None):
                got = "neither" if self.two_towers is None else "both"
                raise UserError(
                    "task unclip needs two_towers, or pretrained_model_name_or_path, a pipeline that has some: got "
                    f"{got}"
                )
            if self.streaming:
                raise UserError("task unclip needs a set at hand, whose embeddings are computed once: got streaming")
            if self.random_flip:
                raise UserError("random_flip would mirror pictures after they are embedded: leave it or unclip out")
            if self.text_encoder_name_or_path is not None or self.adapter is not None:
                raise UserError("task unclip reads embeddings, no text, and has no adapters: got settings of such")
        elif self.two_towers is not None:
            raise UserError(f"two_towers is for task unclip, which reads embeddings: got task {self.task}")
        if self.streaming and self.balance_column is not None:
            raise UserError("balance_column needs a set at hand, whose values can be counted: got streaming")
        if self.streaming and self.aspect_ratio_buckets:
            raise UserError("aspect_ratio_buckets need a set that is not streamed: got both")
        # what was asked for, as `sizes.py` must know: it derives the rest. `parse_args` knows better and says so.
        self.given = {name: value for name, value in asdict(self).items() if value != default(name, type(self))}
        self.argv: list[str] = []  # the command line that it is of, for the card

    def to_yaml(self) -> str:
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


@functools.cache
def hints(kind: type[TrainConfig]) -> dict[str, Any]:
    """The settings of a program by name, each with its type."""
    return {name: hint for name, hint in get_type_hints(kind).items() if name in kind.__dataclass_fields__}


HINTS = hints(TrainConfig)
HELP = {f.name: f.metadata["help"] for f in fields(TrainConfig)}


def default(name: str, kind: type[TrainConfig] = TrainConfig) -> Any:
    """The default of a program's setting."""
    field = kind.__dataclass_fields__[name]
    return field.default if field.default_factory is MISSING else field.default_factory()


def checked(name: str, value: Any, kind: type[TrainConfig] = TrainConfig) -> Any:
    """The value of a program's setting in the type and within the rules that it has.

    Raises:
        UserError: for one that has another type or breaks a rule.
    """
    return _checked(name, hints(kind)[name], value, kind.__dataclass_fields__[name].metadata["rules"])


def _checked(name: str, hint: Any, value: Any, rules: tuple[Rule, ...]) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = [arg for arg in get_args(hint) if arg is not type(None)]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{name} must be one of {', '.join(get_args(hint))}: got {shown(value)}")
        return value
    if get_origin(hint) is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [_checked(name, get_args(hint)[0], item, rules) for item in items]
    if get_origin(hint) is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{name} must be a mapping of names to values: got {shown(value)}")
        return dict(value)
    if hint in (int, float):
        return number(name, hint, value, *rules)
    if not isinstance(value, hint):
        raise UserError(f"{name} must be {'text' if hint is str else 'of type bool'}: got {shown(value)}")
    if value == "" and name != "validation_prompts":
        raise UserError(f"{name} must not be empty: got ''")
    return value
