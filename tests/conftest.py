"""Tiny components for all tests: seeded, in evaluation mode, and with no parameter left at zero, where a freshly made
network would hide whatever stands behind it."""

from __future__ import annotations

import functools
import gc
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mezzotint_training  # noqa: F401 (before torch: threads that wait do not spin on cores that other tests need)

# isort: split
import pytest

if TYPE_CHECKING:  # the process that deals tests out to others reads this file too, and needs neither torch nor us
    from mezzotint import MezzotintPipeline, MezzotintUNetModel

TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}


# The files that take longest, the longest first: dealt out last they would keep one process busy and the other waiting
LONGEST = (
    "test_hub_roundtrip.py", "test_browser.py", "test_engine.py", "test_train.py", "test_pipeline_mezzotint.py",
    "test_attacks.py", "test_distributed.py", "test_tasks.py", "test_course.py", "test_pipeline_files.py",
    "test_time_to_quality.py", "test_faults.py", "test_publish.py", "test_scheduling_mezzotint.py", "test_resume.py",
    "test_evaluate.py", "test_unet_mezzotint.py", "test_train_cascade.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish(session):
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the networks are too small to share
    gc.freeze()  # what all tests share is looked through no more


@pytest.fixture
def log(caplog, monkeypatch):
    """The records that diffusers' logger gets, from diffusers and from our own files."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., MezzotintUNetModel]:
    """`make_unet(**config)`: the differences from `TINY`."""
    import torch

    from mezzotint import MezzotintUNetModel

    def make(**config) -> MezzotintUNetModel:
        torch.manual_seed(0)
        unet = MezzotintUNetModel(**TINY | config).eval()
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return unet

    return make


@pytest.fixture(scope="session")
def make_pipe(make_unet) -> Callable[..., MezzotintPipeline]:
    """`make_pipe(**unet_config)`: with a byte-level T5, whatever else it takes by name replaces a component."""
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    from mezzotint import MezzotintPipeline, MezzotintScheduler

    def make(unet=None, scheduler=None, text_encoder=None, tokenizer=None, **config) -> MezzotintPipeline:
        unet = unet or make_unet(**config)
        if text_encoder is None and unet.config.cross_attention_dim is not None:
            torch.manual_seed(0)
            t5 = T5Config(vocab_size=384, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
            text_encoder = T5EncoderModel(t5).eval()
            tokenizer = ByT5Tokenizer(model_max_length=48)
        pipe = MezzotintPipeline(unet, scheduler or MezzotintScheduler(), text_encoder, tokenizer)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def save_pipe(make_pipe, tmp_path_factory) -> Callable[..., Path]:
    """`save_pipe(folder, **unet_config)`: the folder, with `make_pipe(**unet_config)` in it as saved once for all."""

    @functools.cache
    def saved(**unet_config) -> Path:
        folder = tmp_path_factory.mktemp("pipe") / "pipe"
        make_pipe(**unet_config).save_pretrained(folder)
        return folder

    return lambda folder, **unet_config: shutil.copytree(saved(**unet_config), folder)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="of the fault campaign")
    parser.addoption("--faults-seed", type=int, default=0, help="of the moments to kill at")
    parser.addoption("--attacks", type=int, default=16, help="of the campaign of attacks")
    parser.addoption("--attacks-seed", type=int, default=0, help="that draws them")
    parser.addoption("--attacks-only", type=int, help="the number of the one to make, with all that it prints")
    parser.addoption("--screenshot", help="file to write the README's picture of the page to")
    parser.addoption("--screenshot-checkpoint", default="model_cards/emoji-64", help="pipeline that it shows")
