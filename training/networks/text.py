# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The text side of training: making or loading an encoder, and captions to hidden states."""

import hashlib
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError

from mezzotint.pipelines.sampling_mezzotint import token_limit
from mezzotint_training.config.errors import UserError, loading, one_line
from mezzotint_training.config.rules import at_least, at_most, known_arguments, number
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.engine import threads
from mezzotint_training.networks.cache import Cache, Recent, fingerprint
from mezzotint_training.networks.saved import load_whole

# Bytes of hidden states (of a frozen encoder) or tokens (of a trained one) that are kept in memory
RECENT_BYTES = 2**28
# Rows of a frozen encoder's batches on an accelerator
ROWS = 32


def new_text_encoder(config: TrainConfig):
    """The small encoder that needs no download: T5 on bytes, whose tokenizer needs no vocabulary file (ByT5,
    <https://huggingface.co/papers/2105.13626>; 384 is the size of its table)."""
    arguments = {"vocab_size": 384, "dropout_rate": 0.0, **known_arguments(config.text_encoder, transformers.T5Config)}
    most = {
        "vocab_size": 2**20,
        "d_model": 2**16,
        "d_kv": 2**16,
        "d_ff": 2**18,
        "num_layers": 2**10,
        "num_heads": 2**10,
    }
    for name in arguments.keys() & most.keys():
        number(f"the text_encoder's {name}", int, arguments[name], at_least(1), at_most(most[name]))
    try:
        text_encoder = transformers.T5EncoderModel(transformers.T5Config(**arguments))
        tokenizer = transformers.ByT5Tokenizer(model_max_length=config.max_text_length)
        _check_tokens(text_encoder, tokenizer)
    except (StrictDataclassError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"text_encoder cannot be made: {one_line(error)}") from None
    return text_encoder, tokenizer


def load_text_encoder(source: str):
    """Any transformers text encoder and its tokenizer; of an encoder-decoder or a two-tower model, the text encoder; of
    a pipeline's folder, the one that it reads by."""
    tokens = source
    if (Path(source) / "model_index.json").is_file():
        source, tokens = (str(Path(source) / part) for part in ("text_encoder", "tokenizer"))
    with loading(f"text_encoder_name_or_path {source}"):
        for path in Path(source).glob("*"):  # a pipe would be waited for, a lost link passed over
            if not (path.is_file() or path.is_dir() and path.suffix != ".json"):
                raise ValueError(f"{path.name} is no plain file")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokens, trust_remote_code=False)
        if "architectures" in tokenizer.init_kwargs:
            raise ValueError("tokenizer_config.json must hold a tokenizer's settings: got a model's")
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        for name, value in config.to_dict().items():
            if "layers" in name and isinstance(value, int) and value > 10_000:  # which would be made one by one
                raise ValueError(f"{name} must be at most 10,000: got {value}")
        kind = config.model_type
        cls = {"clip": transformers.CLIPTextModel, "clip_text_model": transformers.CLIPTextModel}.get(kind)
        if cls is None:
            known = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
            cls = transformers.AutoModelForTextEncoding if kind in known else transformers.AutoModel
        text_encoder, _ = load_whole(cls, source)
        _check_tokens(text_encoder, tokenizer)
        ids = torch.tensor([tokenizer("a").input_ids])
        with torch.no_grad():
            states = text_encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        if states.shape[-1] != text_encoder.config.hidden_size:
            raise ValueError(f"hidden states must be {text_encoder.config.hidden_size} wide: got {states.shape[-1]}")
        return text_encoder, tokenizer


def _check_tokens(text_encoder: Any, tokenizer: Any) -> None:
    """Check that the tokenizer and the encoder belong together.

    Raises:
        ValueError: for a tokenizer that has no padding, or tokens that the encoder does not know.
    """
    highest, rows = max(tokenizer.get_vocab().values()), text_encoder.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise ValueError(f"the tokenizer has tokens up to {highest}, the encoder knows {rows}: they do not fit")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer must have a padding token: it has none")


def train_what_is_read(text_encoder) -> None:
    """Ask for the gradients of all weights that the last hidden state depends on. Others (BERT's pooler) stay as they
    are, and in the model that is saved: nothing trains them, and DDP waits for a gradient of all that ask for one."""
    training = text_encoder.training
    text_encoder.eval().requires_grad_(True)
    ids = torch.ones(1, 2, dtype=torch.long, device=text_encoder.device)
    with torch.enable_grad():
        states = text_encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    weights = list(text_encoder.parameters())
    for weight, gradient in zip(weights, torch.autograd.grad(states.sum(), weights, allow_unused=True), strict=True):
        weight.requires_grad_(gradient is not None)
    text_encoder.train(training)


class TextEncoding:
    """Captions to hidden states and mask. Each different caption of a batch is encoded once.

    A frozen encoder's hidden states of a caption depend on the caption alone, to the last bit: not on the batch that it
    comes in, nor on what was encoded before, which a resumed run doesn't know. So they may be kept and forgotten at
    will: on disk after `prepare`, and the ones used last in memory.

    Args:
        text_encoder: of transformers, wrapped or not; `None` for a pipeline without text.
        tokenizer: its tokenizer.
        accelerator: for the device, the precision and the number of processes.
        trained: whether its weights change.
    """

    def __init__(self, text_encoder, tokenizer, accelerator: Accelerator, trained: bool):
        self.text_encoder, self.tokenizer, self.trained = text_encoder, tokenizer, trained
        self.accelerator, self.device = accelerator, accelerator.device
        self.one_caption_at_a_time = self.device.type == "cpu"  # see `_frozen_states`
        self.recent = Recent(RECENT_BYTES)
        self.cache: Cache | None = None

    def prepare(self, captions: Iterable[str], folder: Path | str, progress: bool = True) -> None:
        """Encode all captions now, and the empty one, into files below `folder`; what is there already stays.

        The files are in a folder named by a hash of all that the hidden states depend on. All processes call this; the
        encoder then leaves the accelerator (see `release`). Does nothing for an encoder that is trained.

        Raises:
            UserError: for a folder that cannot be written to, or has no room left.
        """
        if self.trained or self.text_encoder is None:
            return
        self.cache = Cache(Path(folder) / f"text-{self.fingerprint()}", "cache of encoded captions")
        self.cache.build(
            (caption.encode() for caption in {"", *captions}),
            lambda keys: self._frozen_states([key.decode() for key in keys]),
            self.accelerator.process_index,
            self.accelerator.num_processes,
            progress,
        )
        self.release()

    def release(self) -> None:
        """Move a frozen encoder off the accelerator if its hidden states are on disk. A caption that is not there
        brings it back; a pipeline that is to draw pictures must be moved as a whole before, and this called after."""
        if self.cache is not None:
            self.text_encoder.to("cpu")

    def fingerprint(self) -> str:
        """A hash of all that a frozen encoder's hidden states of a caption depend on: its configuration and weights,
        the tokenizer's files (the greatest length is in these two), the precision, the kind of device, transformers'
        version and the format of the files. Where things were loaded from makes no difference."""
        config = self.text_encoder.config.to_dict()
        settings = {
            "config": {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")},
            "class": type(self.text_encoder).__name__,
            "attention": self.text_encoder.config._attn_implementation,
            "precision": "no" if self.one_caption_at_a_time else self.accelerator.mixed_precision,
            "device": self.device.type,
            "transformers": transformers.__version__,
        }
        digest = fingerprint(settings, self.text_encoder)
        with tempfile.TemporaryDirectory() as folder:
            for path in sorted(map(Path, self.tokenizer.save_pretrained(folder))):
                if path.is_file():
                    digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:32]

    def __call__(self, captions: list[str]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Hidden states (B, L, D) of the captions and mask (B, L), both `None` without an encoder."""
        if self.text_encoder is None:
            return None, None
        different = sorted(set(captions))
        number = {caption: i for i, caption in enumerate(different)}
        rows = torch.tensor([number[caption] for caption in captions], device=self.device)
        if self.trained:
            hidden_states, mask = self._encode([self._tokens(caption).tolist() for caption in different])
        else:
            known = {caption: self.recent.get(caption) for caption in different}
            new = [caption for caption, states in known.items() if states is None]
            if new and self.cache is not None:
                known |= {key.decode(): states for key, states in self.cache.read(c.encode() for c in new).items()}
            if unseen := [caption for caption in new if known[caption] is None]:
                known |= dict(zip(unseen, self._frozen_states(unseen), strict=True))
            for caption in new:
                self.recent.put(caption, known[caption])
            hidden_states = torch.nn.utils.rnn.pad_sequence(list(known.values()), batch_first=True).to(self.device)
            lengths = torch.tensor([len(states) for states in known.values()], device=self.device)
            mask = torch.arange(hidden_states.shape[1], device=self.device)[None] < lengths[:, None]
        # (B, L, D), (B, L); the gradient of plain indexing is summed in no fixed order by several CPU threads
        return hidden_states.index_select(0, rows), mask[rows]

    @property
    def limit(self) -> int:
        """The greatest number of tokens; what is longer is cut."""
        return token_limit(getattr(self.text_encoder, "module", self.text_encoder), self.tokenizer)

    def _tokens(self, caption: str) -> torch.Tensor:
        tokens = self.recent.get(caption)
        if tokens is None:
            tokens = torch.tensor(self.tokenizer(caption, truncation=True, max_length=self.limit).input_ids)
            self.recent.put(caption, tokens)
        return tokens

    def _encode(self, tokens: list[list[int]], **padding) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt", **padding).to(self.device)
        # A CPU's autocast would cast the weights of a frozen encoder anew for every caption
        whole = self.one_caption_at_a_time and not self.trained
        with torch.autocast(self.device.type, enabled=False) if whole else self.accelerator.autocast():
            output = self.text_encoder(batch.input_ids, attention_mask=batch.attention_mask)
        return output.last_hidden_state, batch.attention_mask.bool()

    @torch.no_grad()  # which is a thread's own
    def _alone(self, tokens: list[int]) -> torch.Tensor:
        """The hidden states (L, D) of one caption."""
        return self._encode([tokens])[0][0]

    @torch.no_grad()
    def _frozen_states(self, captions: list[str]) -> list[torch.Tensor]:
        """Hidden states (L, D) of each caption, which depend on nothing but the caption.

        How a matrix product is rounded depends on its size. So the CPU takes each caption by itself, without padding,
        which costs it little, while an accelerator, which needs batches, gets them in few fixed shapes: `ROWS` rows
        padded to the next power of two of tokens, of which the last is always blank, since without any padding in a
        batch transformers takes another path through the attention.
        """
        self.text_encoder.to(self.device)
        tokens = [self.tokenizer(caption, truncation=True, max_length=self.limit).input_ids for caption in captions]
        if self.one_caption_at_a_time:
            at_once = torch.get_num_threads()  # captions, where one takes one thread
            with threads.alone(), ThreadPoolExecutor(at_once) as pool:
                return list(pool.map(self._alone, tokens))
        lengths: dict[int, list[int]] = {}
        for i, ids in enumerate(tokens):
            lengths.setdefault(min(max(16, 1 << (len(ids) - 1).bit_length()), self.limit), []).append(i)
        result: dict[int, torch.Tensor] = {}
        for length, members in lengths.items():
            for start in range(0, len(members), ROWS - 1):
                some = members[start : start + ROWS - 1]
                blank = [[self.tokenizer.pad_token_id]] * (ROWS - len(some))
                hidden_states, mask = self._encode(
                    [tokens[i] for i in some] + blank, padding="max_length", max_length=length
                )
                for i, states, keep in zip(some, hidden_states.cpu(), mask.cpu(), strict=False):
                    result[i] = states[keep]  # (L, D)
        return [result[i] for i in range(len(captions))]
