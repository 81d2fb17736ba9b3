# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The text side of training: making or loading an encoder, and captions to hidden states."""

import logging
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError

from mezzotint_training.config import TrainConfig, UserError, known_arguments


def new_text_encoder(config: TrainConfig):
    """The small encoder that needs no download: T5 on bytes, whose tokenizer needs no vocabulary file (ByT5,
    <https://huggingface.co/papers/2105.13626>; 384 is the size of its table)."""
    arguments = known_arguments(config.text_encoder, transformers.T5Config)
    try:
        t5_config = transformers.T5Config(**{"vocab_size": 384, "dropout_rate": 0.0, **arguments})
    except StrictDataclassError as error:
        raise UserError(f"text_encoder: {' '.join(str(error).split())}") from None
    return transformers.T5EncoderModel(t5_config), transformers.ByT5Tokenizer(model_max_length=config.max_text_length)


def load_text_encoder(source: str):
    """Any transformers text encoder and its tokenizer; of an encoder-decoder or a two-tower model, the text encoder."""
    logging.disable(logging.CRITICAL)  # what is wrong is said once, below
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        kind = transformers.AutoConfig.from_pretrained(source).model_type
        cls = {"clip": transformers.CLIPTextModel, "clip_text_model": transformers.CLIPTextModel}.get(kind)
        if cls is None:
            known = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
            cls = transformers.AutoModelForTextEncoding if kind in known else transformers.AutoModel
        loaded: Any = cls.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
        model, report = loaded
        bad = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if bad := [key for key in bad if not key.startswith("pooler.")]:  # which we don't use, and many lack
            raise ValueError(f"{len(bad)} weights are missing or of another shape ({', '.join(bad[:3])})")
        return model, tokenizer
    except Exception as error:  # transformers, tokenizers and safetensors raise their own and plain ones
        message = " ".join(str(error).split())[:300]
        raise UserError(f"text_encoder_name_or_path {source} cannot be loaded: {message}") from None
    finally:
        logging.disable(logging.NOTSET)


class TextEncoding:
    """Captions to hidden states and mask. Each different caption of a batch is encoded once; by a frozen encoder, once
    in the whole run."""

    def __init__(self, text_encoder, tokenizer, accelerator: Accelerator, trained: bool):
        self.text_encoder, self.tokenizer, self.trained = text_encoder, tokenizer, trained
        self.device = accelerator.device
        self.autocast = accelerator.autocast
        self.tokens: dict[str, list[int]] = {}
        self.frozen: dict[str, torch.Tensor] = {}

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.text_encoder is None:
            return None, None
        different = sorted(set(captions))
        number = {caption: i for i, caption in enumerate(different)}
        rows = torch.tensor([number[caption] for caption in captions], device=self.device)
        if self.trained:
            hidden_states, mask = self.encode(different)
        else:
            new = [caption for caption in different if caption not in self.frozen]
            if new:
                with torch.no_grad():
                    hidden_states, mask = self.encode(new)
                for caption, states, keep in zip(new, hidden_states, mask, strict=True):
                    self.frozen[caption] = states[keep].cpu()
            states = [self.frozen[caption] for caption in different]
            hidden_states = torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(self.device)
            lengths = torch.tensor([len(s) for s in states], device=self.device)
            mask = torch.arange(hidden_states.shape[1], device=self.device)[None] < lengths[:, None]
        # (B, L, D), (B, L); the gradient of plain indexing is summed in no fixed order by several CPU threads
        return hidden_states.index_select(0, rows), mask[rows]

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.text_encoder.config if hasattr(self.text_encoder, "config") else self.text_encoder.module.config
        limit = min(self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 512)
        for caption in captions:
            if caption not in self.tokens:
                self.tokens[caption] = self.tokenizer(caption, truncation=True, max_length=limit).input_ids
        batch = self.tokenizer.pad({"input_ids": [self.tokens[c] for c in captions]}, return_tensors="pt").to(
            self.device
        )
        with self.autocast():
            output = self.text_encoder(batch.input_ids, attention_mask=batch.attention_mask)
        return output.last_hidden_state, batch.attention_mask.bool()
