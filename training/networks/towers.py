# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Two-tower encoders, new or loaded, the prior that goes with one, and embeddings: those of a set's pictures and
captions are computed once and kept in files."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import Accelerator
from diffusers import PriorTransformer
from transformers.image_processing_base import ImageProcessingMixin

from mezzotint.pipelines.embeddings_mezzotint import embed_pictures, embed_texts
from mezzotint.pipelines.sampling_mezzotint import token_limit
from mezzotint_training.config.errors import UserError, loading, one_line
from mezzotint_training.config.prior import PriorConfig
from mezzotint_training.config.rules import known_arguments
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.config.towers import TwoTowersConfig
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks.cache import fingerprint
from mezzotint_training.networks.computed import Computed
from mezzotint_training.networks.latents import check_scale
from mezzotint_training.networks.saved import check_finite, load_whole
from mezzotint_training.networks.text import TextEncoding, load_text_encoder

CHANNELS = 3  # of the pictures that a tower reads
MEASURED = 2000  # pictures whose embeddings the scale is measured on, at the most


class Towers(NamedTuple):
    """A two-tower encoder with what goes with it.

    Attributes:
        model: of transformers, with `get_text_features` and `get_image_features`.
        tokenizer: of its text tower.
        image_mean, image_std: of each colour, of pixels in [0, 1], by which its pixels are normalised.
    """

    model: Any
    tokenizer: Any
    image_mean: list[float]
    image_std: list[float]

    @property
    def limit(self) -> int:
        """Tokens that the text tower reads."""
        return token_limit(self.model, self.tokenizer)

    @torch.no_grad()
    def width(self) -> int:
        """The width of the space that both towers embed in.

        Raises:
            ValueError: for towers of different widths.
        """
        tokens = self.tokenizer(["a"], padding="longest", return_tensors="pt")
        side, device = self.model.config.vision_config.image_size, next(self.model.parameters()).device
        text = embed_texts(self.model, tokens.to(device))
        picture = embed_pictures(self.model, torch.zeros(1, CHANNELS, side, side, device=device), *self[2:])
        if text.shape != picture.shape:
            raise ValueError(
                f"both towers must embed in one space: got texts {text.shape[1]} and pictures {picture.shape[1]} wide"
            )
        return text.shape[1]

    def save(self, folder: Path) -> None:
        """Write the encoder as transformers reads it: `CLIPModel`, or its like, tokenizer and image processor."""
        side = self.model.config.vision_config.image_size
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        transformers.CLIPImageProcessorPil(  # whose file any CLIPImageProcessor reads
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=self.image_mean,
            image_std=self.image_std,
        ).save_pretrained(folder)  # fmt: skip


def new_towers(config: TwoTowersConfig, size: tuple[int, int]) -> Towers:
    """An untrained `CLIPModel` on bytes, small enough for CPUs; with a text encoder that is given, a
    `VisionTextDualEncoderModel` around it.

    Raises:
        UserError: for arguments that the classes do not take, or an encoder that cannot be loaded.
    """
    side = min(size)
    vision: dict[str, Any] = {
        "image_size": side, "patch_size": 2 if side <= 16 else max(1, side // 8), "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    }  # fmt: skip
    vision |= known_arguments(config.vision_tower, transformers.CLIPVisionConfig)
    half = [0.5] * CHANNELS
    try:
        if side % vision["patch_size"]:
            raise ValueError(f"the vision_tower's patch_size must divide {side}: got {vision['patch_size']}")
        if config.text_encoder_name_or_path is None:
            tokenizer = transformers.ByT5Tokenizer(model_max_length=config.max_text_length)
            text = {
                "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": config.max_text_length,
            }  # fmt: skip
            text |= known_arguments(config.text_tower, transformers.CLIPTextConfig)
            # An embedding is the state at the end, which bytes have a token of their own for
            tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
            text |= tokens | {"bos_token_id": None}
            about = transformers.CLIPConfig(
                text_config=text, vision_config=vision, projection_dim=config.projection_dim
            )
            return Towers(transformers.CLIPModel(about), tokenizer, half, half)
        reader, tokenizer = load_text_encoder(config.text_encoder_name_or_path)
        seer = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
        about = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            seer.config, reader.config, projection_dim=config.projection_dim
        )
        model = transformers.VisionTextDualEncoderModel(about, vision_model=seer, text_model=reader)
        found = Towers(model, tokenizer, half, half)
        found.width()
    except (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError, AttributeError) as error:
        raise UserError(f"two towers cannot be made: {one_line(error)}") from None
    return found


def keeps_text(config: TwoTowersConfig) -> bool:
    """Whether the text encoder was loaded and stays as it is."""
    return config.text_encoder_name_or_path is not None and not config.train_text_encoder


def train_towers(config: TwoTowersConfig, towers: Towers) -> None:
    """Ask for gradients of all that is trained: everything, but of a text encoder that was loaded its pooler alone
    unless `train_text_encoder` says so."""
    towers.model.requires_grad_(True)
    if keeps_text(config):
        for name, weight in towers.model.text_model.named_parameters():
            weight.requires_grad_(name.startswith("pooler"))


def load_towers(source: str, name: str = "two_towers") -> Towers:
    """The two-tower encoder of a folder or a Hub repository with its tokenizer, in evaluation mode, every weight
    accounted for and finite.

    Raises:
        UserError: for one that cannot be loaded, or is none, or whose towers are of different widths.
    """
    with loading(f"{name} {source}"):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if not (hasattr(config, "text_config") and hasattr(config, "vision_config")):
            raise ValueError(f"it must be a two-tower encoder, as CLIPModel: got {config.model_type}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, _ = load_whole(transformers.AutoModel, source)
        if not (hasattr(model, "get_text_features") and hasattr(model, "get_image_features")):
            raise ValueError(f"it must embed texts and pictures, as CLIPModel: got {type(model).__name__}")
        about, _ = ImageProcessingMixin.get_image_processor_dict(source)
        scale = [[float(x) for x in about[key]] for key in ("image_mean", "image_std")]
        towers = Towers(model.eval().requires_grad_(False), tokenizer, *scale)
        check_finite(name, model)
        towers.width()
    return towers


def towers_for(config: TrainConfig, components: dict[str, Any] | None) -> Towers:
    """The two-tower encoder of a run of `--task unclip`: that of the saved pipeline's components, or of `two_towers`.

    Raises:
        UserError: as of `load_towers`.
    """
    return load_towers(str(config.two_towers)) if components is None else towers_of(components)


def towers_of(components: dict[str, Any]) -> Towers:
    """The two-tower encoder among the components of a pipeline that draws pictures of embeddings."""
    about, model = components["unet"].config.condition, components["two_towers"]
    scale = (list(about[name]) for name in ("image_mean", "image_std"))
    return Towers(model.eval().requires_grad_(False), components["tokenizer"], *scale)


class Embeddings(Computed):
    """Reads the embedding of each row's picture as it is, a unit vector as (1, D, 1, 1): what a prior learns to draw,
    and what a decoder reads.

    Args:
        towers: in evaluation mode; the encoder is moved to the accelerator.
        config: the run's settings.
        accelerator: of the run.
    """

    kind = "embeddings"

    def __init__(self, towers: Towers, config: TrainConfig, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.towers = towers
        towers.model.to(accelerator.device)

    def fingerprint(self) -> str:
        """A hash of the encoder: its class, settings and weights, and how pixels are normalised. Where it was loaded
        from makes no difference."""
        model = self.towers.model
        config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        settings = {"class": type(model).__name__, "config": config, "scale": self.towers[2:]}
        return fingerprint(settings, model).hexdigest()[:32]

    def changes(self) -> list[Any]:
        return [transformers.__version__]

    def versions(self, number: int, pixels: torch.Tensor) -> torch.Tensor:
        return unit(pixels)[None]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        towers = self.towers
        found = embed_pictures(towers.model, pixels.to(next(towers.model.parameters()).device), *towers[2:])
        return found[..., None, None].cpu()

    def scale(self, images: Any) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the embeddings of a set by their dimensions.

        Raises:
            UserError: for a dimension that is the same everywhere.
        """
        rows = (self.read(images, int(index)) for index in images.spread(MEASURED))
        found = torch.cat([row.flatten()[None] for row in rows if row is not None]).double()  # (N, D)
        mean, std = ([round(x, 7) for x in y.tolist()] for y in (found.mean(0), found.std(0, correction=0)))
        check_scale(mean, std, "embeddings of the two_towers")
        return mean, std


class TextEmbedding(TextEncoding):
    """Captions to the embeddings of a text tower, as texts of one token (B, 1, D) with a mask (B, 1); kept as the
    hidden states of a frozen encoder are.

    Args:
        towers: whose weights do not change.
        accelerator: for the device, the precision and the number of processes.
    """

    def __init__(self, towers: Towers, accelerator: Accelerator):
        super().__init__(towers.model, towers.tokenizer, accelerator, trained=False)
        self.towers = towers

    @property
    def limit(self) -> int:
        return self.towers.limit

    def _encode(self, tokens: list[list[int]], **padding) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt", **padding).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            found = embed_texts(self.text_encoder, batch)[:, None]  # (B, 1, D)
        return found, torch.ones(found.shape[:2], dtype=torch.bool, device=self.device)


def new_prior(config: PriorConfig, width: int) -> Any:
    """An untrained `PriorTransformer` for embeddings of this width, which reads a text's embedding and no other states.

    Raises:
        UserError: for arguments that the class does not take.
    """
    fixed = {"embedding_dim": width, "num_embeddings": 0, "encoder_hid_proj_type": None}
    arguments = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32}
    arguments |= known_arguments(config.prior, PriorTransformer)
    if odd := [name for name in fixed if name in arguments]:
        raise UserError(f"the prior's {odd[0]} follows from the two_towers: leave it out")
    try:
        return PriorTransformer(**arguments | fixed)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"prior cannot be made: {one_line(error)}") from None


def set_scale(prior: Any, mean: list[float], std: list[float]) -> None:
    """Give a prior the scale of the embeddings, by which what it draws is brought back; it is not trained."""
    for name, values in (("clip_mean", mean), ("clip_std", std)):
        setattr(prior, name, torch.nn.Parameter(torch.tensor([values]), requires_grad=False))
