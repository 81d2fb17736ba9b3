# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""What pictures look like to a network: the features that `distances.py` measures in.

Every kind here is for judging only. No generator, scheduler or setting is ever fitted to what any of them says, or its
figures would mean nothing; and those that are trained see the real training split and nothing that was drawn.

Pictures are bytes (N, C, H, W); features (N, D) in float64 on the CPU.
"""

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from mezzotint_training.config.errors import UserError, loading, one_line
from mezzotint_training.metrics.judges import train_caption_judge, train_class_judge
from mezzotint_training.metrics.pictures import Real, shuffled
from mezzotint_training.modalities.contents import unit
from mezzotint_training.networks.saved import load_whole

Features = Callable[[torch.Tensor], torch.Tensor]
# Names for what transformers loads; any other is a folder's or the Hub's
PRETRAINED = {"clip": "openai/clip-vit-base-patch32", "dinov2": "facebook/dinov2-small"}

TRAINED = ("classifier", "two-tower")  # features of networks that are made here


class RandomFeatures:
    """What pictures look like to a convolution network with fixed random weights: means over each quarter of the
    picture of 64 channels at half the size, on the first `count` principal directions of the real pictures', scaled to
    unit average variance. Pictures (N, C, H, W) are numbers in any units, always the same."""

    def __init__(self, pictures: torch.Tensor, count: int = 32):
        channels, generator = pictures.shape[1], torch.Generator().manual_seed(0)
        self.kernels = [
            torch.randn(out, inner, 3, 3, generator=generator) * (2 / (9 * inner)) ** 0.5
            for out, inner in ((32, channels), (64, 32), (64, 64))
        ]
        raw = self._raw(pictures)
        self.centre = raw.mean(0)
        _, values, axes = torch.linalg.svd(raw - self.centre, full_matrices=False)
        variances = values[:count] ** 2 / (len(raw) - 1)
        self.axes = axes[:count].T / variances.mean().sqrt()  # (F, count)

    def _raw(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.float().cpu()
        for stride, kernel in zip((1, 2, 1), self.kernels, strict=True):
            x = F.leaky_relu(F.conv2d(x, kernel, stride=stride, padding=1), 0.2)
        return F.adaptive_avg_pool2d(x, 2).flatten(1).double()  # (N, F)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, count) in float64 of (N, C, H, W)."""
        return (self._raw(pictures) - self.centre) @ self.axes


# ------------------------------------------------------------------------------------------------- published networks


class InceptionFeatures:
    """The 2048 features that published KID and FID figures are of, through torch-fidelity, which fetches the weights.
    They are as they are published, not scaled.

    Raises:
        UserError: where torch-fidelity is not installed, or the weights are not to be had.
    """

    def __init__(self, device: torch.device):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

            # torch-fidelity would unpickle whatever it is sent; tensors are all that is in there
            with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}):
                self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
        except ImportError as error:
            raise UserError(
                f"features 'inception' need {error.name}; pip install 'mezzotint[evaluate]' brings it"
            ) from None
        except Exception as error:  # of the network, the disk and the file's format
            raise UserError(f"features 'inception' cannot be loaded: {one_line(error)}") from None
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        colour = pictures.expand(-1, 3, -1, -1)  # grey is all three alike
        parts = [self.model(some.contiguous().to(self.device))[0] for some in colour.split(64)]
        return torch.cat(parts).double().cpu()


class PretrainedFeatures:
    """What a picture encoder of transformers (CLIP, SigLIP, DINOv2, ViT, ...) makes of pictures, which it gets as its
    own image processor prepares them: a two-tower model's image features, else the pooled output if it has learned one,
    else the first token's.

    Args:
        name: of a folder or on the Hub, or one of `PRETRAINED`.

    Raises:
        UserError: for one that cannot be loaded, or makes nothing of a picture.
    """

    def __init__(self, name: str, device: torch.device):
        import transformers

        source = PRETRAINED.get(name, name)
        with loading(f"features {name!r}"):
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(
                source, trust_remote_code=False, backend="pil"
            )
            loaded, self.pools = load_whole(transformers.AutoModel, source)
            self.model, self.device = loaded.to(device).eval(), device
            self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        found, see = [], getattr(self.model, "get_image_features", self.model)
        for some in pictures.expand(-1, 3, -1, -1).split(64):  # grey is all three alike
            prepared = self.processor(
                images=list(some.cpu().numpy()), return_tensors="pt", input_data_format="channels_first"
            )
            output = see(pixel_values=prepared.pixel_values.to(self.device))
            pooled = getattr(output, "pooler_output", None) if self.pools else None
            found.append(output.last_hidden_state[:, 0] if pooled is None else pooled)
        return torch.cat(found).double().cpu().flatten(1)


def make_features(
    kind: str, train: Real, classes: list[str], device: torch.device, judge_steps: int, seed: int
) -> Features:
    """What `--features` names; where it is to be trained, on the real training pictures and nothing else.

    Raises:
        UserError: for a network that cannot be loaded, or is not of what it would see; or a classifier without labels.
    """
    if kind not in ("random", *TRAINED) and (channels := train.pixels.shape[1]) not in (1, 3):
        possible = ", ".join(("random", *TRAINED))
        raise UserError(f"features {kind} are of pictures of 1 or 3 channels: got {channels}, possible are {possible}")
    if kind == "random":
        network = RandomFeatures(unit(train.pixels[shuffled(len(train.pixels), seed)[:10_000]]))
        return lambda pictures: network(unit(pictures))
    if kind == "inception":
        return InceptionFeatures(device)
    if kind not in TRAINED:
        return PretrainedFeatures(kind, device)
    if kind == "classifier":
        train = train.rows((train.labels >= 0).nonzero()[:, 0])
        if len(train.pixels) == 0:
            raise UserError("features 'classifier' need labels: --label_column names them; possible is 'two-tower'")
    print(f"training the {kind} on {len(train.pixels)} real pictures", file=sys.stderr, flush=True)
    if kind == "classifier":
        return train_class_judge(train.pixels, train.labels, len(classes), judge_steps, seed, device)
    return train_caption_judge(train.pixels, train.captions, judge_steps, seed, device)
