"""A frozen encoder's captions put on disk, in this process or another."""

import random
import time

import torch
from accelerate import Accelerator

from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.networks import cache
from mezzotint_training.networks.text import TextEncoding, new_text_encoder

TEXT_ENCODER = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def sentences(count: int) -> list[str]:
    """Different captions of 5 to 64 bytes."""
    rng = random.Random(0)
    return [f"{i:03d} " + "".join(rng.choices("abcdefgh ", k=rng.randrange(1, 60))) for i in range(count)]


def build(folder, pause: float = 0.0) -> int:
    """Encode 240 captions and the empty one into files of about 8, with a pause of so many seconds before each.
    Returns how many the encoder was given."""
    cache.SHARD = 8
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text_encoder, tokenizer = new_text_encoder(TrainConfig(dataset_name="digits", text_encoder=TEXT_ENCODER))
    text_encoder.eval()
    sizes = []
    text_encoder.register_forward_pre_hook(lambda module, args: time.sleep(pause) or sizes.append(len(args[0])))
    TextEncoding(text_encoder, tokenizer, Accelerator(cpu=True), trained=False).prepare(sentences(240), folder)
    return sum(sizes)
