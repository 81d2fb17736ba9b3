# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""A classifier of noisy samples, whose gradient steers a diffusion model.

Shapes: B batch, C channels, *S the spatial axes, E time-embedding channels.
"""

import operator
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput

from mezzotint.models.blocks_mezzotint import space_to_depth
from mezzotint.models.encoder_mezzotint import MezzotintEncoderMixin

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()


@dataclass
class MezzotintClassifierOutput(BaseOutput):
    """
    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes)`): log-probabilities up to a constant.
    """

    logits: torch.Tensor


class MezzotintClassifier(MezzotintEncoderMixin, ModelMixin, ConfigMixin):
    """
    A classifier of samples at any noise level: the U-Net's encoder, the mean over positions and a linear layer
    (<https://huggingface.co/papers/2105.05233>, section 4). Its gradient steers a diffusion model.

    Args:
        num_classes (`int`): how many there are.
        id2label (`dict` of `int` to `str`, *optional*): the name of each, from 0 to `num_classes - 1`.
        sample_size, in_channels, spatial_dims, block_out_channels, layers_per_block, transformer_layers_per_block,
            attention_head_dim, time_embed_dim, norm_num_groups, norm_eps, dropout, sample_mean, sample_std, patch_size,
            downsample_axes: as of `MezzotintUNetModel`, whose noisy samples it reads.

    Raises:
        ValueError: for settings that do not fit together; the message names the rule.
    """

    _skip_layerwise_casting_patterns = [*MezzotintEncoderMixin._skip_layerwise_casting_patterns, "head"]

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        id2label: dict[int, str] | None = None,
        sample_size: int | tuple[int, ...] | None = None,
        in_channels: int = 3,
        spatial_dims: int = 2,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        transformer_layers_per_block: tuple[int, ...] = (0, 1, 1),
        attention_head_dim: int = 32,
        time_embed_dim: int | None = None,
        norm_num_groups: int = 16,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        sample_mean: tuple[float, ...] = (0.0,),
        sample_std: tuple[float, ...] = (1.0,),
        patch_size: int = 1,
        downsample_axes: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self._add_encoder()
        if id2label is not None:
            names = id2label if isinstance(id2label, dict) else {}
            names = {int(key): name for key, name in names.items() if str(key).isdecimal()}  # JSON's keys are texts
            told_apart = {name for name in names.values() if isinstance(name, str)}
            if sorted(names) != list(range(num_classes)) or len(told_apart) != num_classes:
                raise ValueError(
                    f"id2label must have a name of its own for 0 to {num_classes - 1}: got {reprlib.repr(id2label)}"
                )
            self.register_to_config(id2label=names)
        last = block_out_channels[-1]
        self.norm_out = nn.GroupNorm(norm_num_groups, last, eps=norm_eps)
        self.head = nn.Linear(last, num_classes)  # from zero it would learn several times more slowly

    def get_label_ids(self, labels: int | str | Iterable[int | str]) -> torch.Tensor:
        """The numbers of one or more classes, given by number or by name, as `torch.Tensor` of shape `(labels,)`.

        Raises:
            ValueError: for one that isn't there.
        """
        count, label2id = self.config.num_classes, {v: k for k, v in (self.config.id2label or {}).items()}
        labels = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
        numbers = []
        for label in labels:
            try:
                numbers.append(label2id.get(label, -1) if isinstance(label, str) else operator.index(label))
            except TypeError:  # neither a name nor a whole number
                numbers.append(-1)
        for label, number in zip(labels, numbers, strict=True):
            if not 0 <= number < count:
                names = f", or one of {', '.join(map(repr, label2id))}" if label2id else ""
                raise ValueError(f"a class must be a number from 0 to {count - 1}{names}: got {label!r}")
        return torch.tensor(numbers)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> MezzotintClassifierOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, *spatial)`): noisy, as the U-Net takes it: x_t of
                the variance-preserving process on normalised data.
            timestep (number, or `torch.Tensor` of shape `()` or `(batch_size,)`): may be fractional.
            return_dict (`bool`): whether a `MezzotintClassifierOutput` or a tuple comes back.

        Raises:
            ValueError: for a shape that the network cannot take.
        """
        self._check_sample(sample)
        timestep = torch.as_tensor(timestep, device=sample.device)
        embedding = self.time_embedding(self.time_proj(timestep.expand(sample.shape[0])).to(sample.dtype))  # (B, E)
        hidden_states = self.conv_in(space_to_depth(sample, self.patch_sizes))  # (B, C, *S)
        for block in self.down_blocks:
            hidden_states = self._run(block, hidden_states, embedding)
        hidden_states = self._run(self.mid_block, hidden_states, embedding)
        pooled = F.silu(self.norm_out(hidden_states)).flatten(2).mean(dim=2)  # (B, C)
        logits = self.head(pooled)  # (B, num_classes)
        if not return_dict:
            return (logits,)
        return MezzotintClassifierOutput(logits=logits)

    def score(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | Iterable | int | str,
    ) -> torch.Tensor:
        """The gradient of log p(class_labels | sample) with respect to the sample: what is added to the score of p_t(x)
        to make it that of p_t(x | y) (<https://huggingface.co/papers/2011.13456>, eq. 14). Also under `torch.no_grad`
        and `torch.inference_mode`.

        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, *spatial)`): as of `forward`.
            timestep (number, or `torch.Tensor` of shape `()` or `(batch_size,)`): may be fractional.
            class_labels (`torch.Tensor` of shape `(1,)` or `(batch_size,)`): numbers of classes, on the device of
                `sample`, or what `get_label_ids` takes.

        Returns:
            `torch.Tensor` of the shape and the dtype of `sample`.
        """
        if not isinstance(class_labels, torch.Tensor):
            class_labels = self.get_label_ids(class_labels).to(sample.device)
        with torch.inference_mode(False), torch.enable_grad():
            # no gradient can be had of what was made in inference mode, but of copies of it
            sample, timestep, labels = (torch.as_tensor(x).detach().clone() for x in (sample, timestep, class_labels))
            logits = self(sample.requires_grad_().to(self.dtype), timestep, return_dict=False)[0]
            log_p = F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
            chosen = log_p.gather(1, labels.expand(len(log_p))[:, None])  # (B, 1)
            return torch.autograd.grad(chosen.sum(), sample)[0]
