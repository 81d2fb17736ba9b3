"""Tiny pipelines of sounds, videos, solids and molecules, with no parameter left at zero. `text` is an encoder with its
tokenizer, `config` the differences of the U-Net's."""

from typing import Any

import torch

from mezzotint import (
    MezzotintAudioPipeline,
    MezzotintMoleculePipeline,
    MezzotintScheduler,
    MezzotintUNetModel,
    MezzotintVideoPipeline,
    MezzotintVoxelPipeline,
)

RATE, LENGTH = 100, 64
VOCABULARY = {"": 0, "[C]": 0xFFFF, "[O]": 0x00FF, "[=C]": 0x0F0F, "[Branch1]": 0x3333}
FREQUENCIES = {"": 0.5, "[C]": 0.3, "[O]": 0.15, "[=C]": 0.0499, "[Branch1]": 0.0001}


def sound(channels: int = 2, n_fft: int | None = None, rate: int = RATE, **config) -> MezzotintAudioPipeline:
    about = {"name": "audio", "sampling_rate": rate} | ({"n_fft": n_fft} if n_fft else {})
    scale = {"sample_mean": (0.0,) * (channels - 1) + (0.2,), "sample_std": (0.1,) * (channels - 1) + (0.9,)}
    return _make(MezzotintAudioPipeline, channels, (LENGTH,), **scale, patch_size=4, modality=about, **config)


def video(**config) -> MezzotintVideoPipeline:
    about = {"name": "video", "frame_rate": 8.0}
    return _make(MezzotintVideoPipeline, 3, (3, 8, 12), modality=about, downsample_axes=(1, 2), **config)


def solid(**config) -> MezzotintVoxelPipeline:
    return _make(MezzotintVoxelPipeline, 4, (8, 8, 8), modality={"name": "voxels"}, **config)


def molecules(notation: str = "selfies", **config) -> MezzotintMoleculePipeline:
    about = {"name": "molecules", "notation": notation, "vocabulary": VOCABULARY, "frequencies": FREQUENCIES}
    scale = {"sample_mean": (-0.2,) * 16, "sample_std": (0.9,) * 16}
    return _make(MezzotintMoleculePipeline, 16, (8,), **scale, modality=about, **config)


def _make(cls, channels: int, size: tuple[int, ...], text: tuple[Any, Any] = (None, None), **config) -> Any:
    torch.manual_seed(0)
    shape = {
        "sample_size": size if len(size) > 1 else size[0], "in_channels": channels, "out_channels": channels,
        "spatial_dims": len(size), "block_out_channels": (8, 16), "layers_per_block": 1,
        "transformer_layers_per_block": (0, 1), "attention_head_dim": 8, "norm_num_groups": 4,
        "sample_mean": (0.1,) * channels, "sample_std": (0.6,) * channels,
    }  # fmt: skip
    unet = MezzotintUNetModel(**shape | config)
    for parameter in unet.parameters():  # no layer is zero any more
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = cls(unet, MezzotintScheduler(), *text)
    pipe.set_progress_bar_config(disable=True)
    return pipe
