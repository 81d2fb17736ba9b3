"""Text encoders beside each other: what distillation learns, against the encoder itself, and what each run reads by and
may spend."""

import argparse
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertConfig, BertModel, ByT5Tokenizer

from mezzotint_training.benchmarks import quality, text_encoders
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.networks.text import load_text_encoder

CAPTIONS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("ball", "house", "tree", "dog")]


@pytest.fixture
def teacher():
    torch.manual_seed(1)  # another than that of the untrained
    tokenizer = ByT5Tokenizer(model_max_length=32)
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    shape["initializer_range"] = 0.5
    return BertModel(BertConfig(vocab_size=384, max_position_embeddings=64, **shape)).eval(), tokenizer


def test_all_layers_are_the_encoder_itself_and_fewer_come_nearer(teacher):
    whole = text_encoders.distilled(*teacher, CAPTIONS, layers=4, steps=0)
    assert text_encoders.missed(whole, *teacher, CAPTIONS) == 0
    cut, taught = (text_encoders.distilled(*teacher, CAPTIONS, layers=2, steps=n, batch=8) for n in (0, 400))
    assert cut.config.num_hidden_layers == 2 and teacher[0].config.num_hidden_layers == 4
    for there, kept in zip(cut.encoder.layer, (0, 3), strict=True):
        first = teacher[0].encoder.layer[kept].state_dict()
        assert all(first[name].equal(weight) for name, weight in there.state_dict().items())
    errors = [text_encoders.missed(one, *teacher, CAPTIONS).item() for one in (cut, taught)]
    assert errors[1] < 0.5 * errors[0] and errors[0] > 0.01


def test_what_is_missed_is_a_share_of_the_variance(teacher):
    encoder, tokenizer = teacher

    class Mean(torch.nn.Module):
        """The mean of the hidden states of all tokens, whatever the token: it misses all of the variance."""

        def forward(self, **tokens):
            found = encoder(**tokens)
            kept = tokens["attention_mask"].bool()
            states = found.last_hidden_state[kept].mean(0).expand_as(found.last_hidden_state)
            return type(found)(last_hidden_state=states)

    assert text_encoders.missed(Mean(), encoder, tokenizer, CAPTIONS).item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("layers", [1, 5])
def test_as_many_layers_as_there_are(teacher, layers):
    with pytest.raises(UserError, match=f"--layers must be from 2 to 4, as many as the encoder has: got {layers}"):
        text_encoders.distilled(*teacher, CAPTIONS, layers=layers, steps=1)


def test_each_run_reads_by_its_encoder(teacher, tmp_path):
    encoder, tokenizer = teacher
    for part in teacher:
        part.save_pretrained(tmp_path / "text")
    rows = {"text": CAPTIONS, "keywords": [""] * len(CAPTIONS), "image": [None] * len(CAPTIONS)}
    features = datasets.Features(
        text=datasets.Value("string"), keywords=datasets.Value("string"), image=datasets.Image()
    )
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    small = TrainConfig(train_data_dir=str(tmp_path / "data"))
    shared = replace(small, text_encoder_name_or_path=str(tmp_path / "text"), text_encoder={}, max_text_length=32)
    args = argparse.Namespace(layers=2, distill_steps=1)
    runs = {name: text_encoders.with_encoder(name, shared, args, tmp_path) for name in text_encoders.ENCODERS}
    assert runs["bytes"] == (small, 0.0) and runs["pretrained"] == (shared, 0.0)
    layers = {}
    for name in ("distilled", "untrained"):
        assert runs[name][0] == replace(shared, text_encoder_name_or_path=str(tmp_path / name))
        layers[name] = load_text_encoder(str(tmp_path / name))[0]
    assert layers["distilled"].config.num_hidden_layers == 2 and runs["distilled"][1] > 0
    assert text_encoders.missed(layers["untrained"], *teacher, CAPTIONS) > 0.5


def test_what_was_spent_is_not_trained_for(tmp_path, monkeypatch, teacher):
    runs = []

    def run(side, config, threads):
        """A run of an update a second, that encodes the captions in 25 seconds where nobody has done so before."""
        runs.append(config)
        Path(config.output_dir).mkdir(exist_ok=True)
        return quality.Run([], 1.0, config.max_train_steps + (25.0 if len(runs) == 1 else 0.0))

    for module in (quality, text_encoders):
        monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(text_encoders, "steps_within", lambda seconds, *_: [round(x) for x in seconds])
    monkeypatch.setattr(text_encoders, "load_text_encoder", lambda folder: teacher)
    args = argparse.Namespace(seconds=100.0, threads=1)
    told = text_encoders.train(TrainConfig(dataset_name="digits"), 15.0, args, tmp_path / "bytes-0")
    assert told["updates"] == 100 - 15 - 25 and told["processor"] == 100
    assert [config.output_dir for config in runs] == [
        str(tmp_path / name) for name in ("bytes-0-first",) * 2 + ("bytes-0",)
    ]
    assert told["parameters"] == sum(weight.numel() for weight in teacher[0].parameters())
