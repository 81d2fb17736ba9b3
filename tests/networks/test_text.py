"""Captions to hidden states: a batch with its padding and mask against each caption encoded on its own; what is kept on
disk against what the encoder says, and a build that was killed against one that was not."""

import contextlib
import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from encode_captions import build, sentences
from forked import server
from safetensors.torch import load_file, save_file
from tiny_run import TEXT_ENCODER, tree

from mezzotint.pipelines.sampling_mezzotint import token_limit
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.metrics.features import PretrainedFeatures
from mezzotint_training.networks import cache, text
from mezzotint_training.networks.text import TextEncoding, load_text_encoder, new_text_encoder, train_what_is_read

CAPTIONS = ["a red boot", "", "ein rotes Schloß", "a red boot", "x", "a red boot in the rain of the last day of May"]
WIDTH = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def small(**settings):
    torch.manual_seed(0)
    text_encoder, tokenizer = new_text_encoder(
        TrainConfig(dataset_name="digits", text_encoder=TEXT_ENCODER, **settings)
    )
    return text_encoder.eval(), tokenizer


def counted(text_encoder) -> list[int]:
    """Grows by the batch size with each call of the encoder."""
    sizes = []
    text_encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def alone(text_encoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return text_encoder(torch.tensor([ids])).last_hidden_state[0]


# ------------------------------------------------------------------------------------------------------------ encoding


@pytest.mark.parametrize("trained", [False, True])
def test_a_batch_is_each_caption_alone(accelerator, trained):
    text_encoder, tokenizer = small()
    encode = TextEncoding(text_encoder, tokenizer, accelerator, trained)
    for captions in (CAPTIONS, CAPTIONS[::-1], ["x"]):  # later ones are already known
        hidden_states, mask = encode(captions)
        assert hidden_states.shape[:2] == mask.shape and mask.dtype == torch.bool
        assert mask.shape[1] == max(len(caption.encode()) + 1 for caption in captions)
        for caption, states, keep in zip(captions, hidden_states, mask, strict=True):
            ids = [byte + 3 for byte in caption.encode()] + [1]  # bytes after three special tokens, then the end
            assert keep.tolist() == [True] * len(ids) + [False] * (len(keep) - len(ids))
            torch.testing.assert_close(states[keep], alone(text_encoder, ids), rtol=1e-4, atol=1e-5)


def test_a_different_caption_is_encoded_once_a_batch(accelerator):
    text_encoder, tokenizer = small()
    sizes = counted(text_encoder)
    encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=True)
    for _ in range(2):
        encode(CAPTIONS + CAPTIONS)
    assert sizes == [5, 5]


def test_a_frozen_encoder_sees_a_caption_once_a_run(accelerator):
    text_encoder, tokenizer = small()
    sizes = counted(text_encoder)
    encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    first = encode(["a", "b", "a"])[0]
    encode(["b", "c"])
    assert sum(sizes) == 3
    assert torch.equal(encode(["a", "b", "a"])[0], first) and sum(sizes) == 3


def test_only_a_trained_encoder_gets_gradients(accelerator):
    text_encoder, tokenizer = small()
    hidden_states, _ = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)(["a"])
    assert not hidden_states.requires_grad
    hidden_states, mask = TextEncoding(text_encoder, tokenizer, accelerator, trained=True)(["a", "b c"])
    hidden_states[mask].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in text_encoder.parameters())
    rows = text_encoder.shared.weight.grad.abs().sum(1) > 0
    assert rows.nonzero().flatten().tolist() == sorted({1, *(byte + 3 for byte in b"ab c")})  # and padding gets none


def test_a_long_caption_is_cut_to_what_the_encoder_reads(accelerator):
    text_encoder, tokenizer = small(max_text_length=6)
    hidden_states, mask = TextEncoding(text_encoder, tokenizer, accelerator, trained=True)(["abcdefgh", "ab"])
    assert mask.sum(1).tolist() == [6, 3]
    ids = [byte + 3 for byte in b"abcde"] + [1]
    torch.testing.assert_close(hidden_states[0], alone(text_encoder, ids), rtol=1e-4, atol=1e-5)


def test_without_an_encoder_there_is_no_text(accelerator):
    assert TextEncoding(None, None, accelerator, trained=False)(["a"]) == (None, None)


def test_it_is_what_the_pipeline_makes_of_a_prompt(accelerator, make_pipe):
    pipe = make_pipe()
    hidden_states, mask = TextEncoding(pipe.text_encoder, pipe.tokenizer, accelerator, trained=True)(CAPTIONS)
    expected, _, expected_mask, _ = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(hidden_states[mask], expected[mask], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- a frozen encoder's states, kept and computed


def wide():
    """An encoder large enough for the rounding of its products to depend on their size."""
    torch.manual_seed(0)
    settings = TrainConfig(dataset_name="digits").text_encoder
    text_encoder, tokenizer = new_text_encoder(TrainConfig(dataset_name="digits", text_encoder=settings))
    return text_encoder.eval(), tokenizer


def equal(encode, captions, expected) -> bool:
    hidden_states, mask = encode(captions)
    return all(torch.equal(s[m], expected[c]) for c, s, m in zip(captions, hidden_states, mask, strict=True))


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_frozen_encoders_states_depend_on_the_caption_alone_to_the_last_bit(accelerator, monkeypatch, by_itself):
    text_encoder, tokenizer = wide()
    monkeypatch.setattr(text, "ROWS", 8)  # so that captions of one length fill several batches

    def encoding():
        encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
        encode.one_caption_at_a_time = by_itself
        return encode

    captions = sentences(70)
    expected = {}
    for caption in captions:
        hidden_states, mask = encoding()([caption])
        expected[caption] = hidden_states[0]
        reference = alone(text_encoder, [byte + 3 for byte in caption.encode()] + [1])
        torch.testing.assert_close(hidden_states[0], reference, rtol=1e-4, atol=1e-5)
    for seed in range(4):
        order = random.Random(seed).sample(captions, 70)
        encode = encoding()
        for start, end in ((0, 3), (1, 40), (35, 70)):  # some are known by then, some not
            assert equal(encode, order[start:end], expected)


def test_an_accelerator_gets_few_shapes_and_always_some_padding(tmp_path, accelerator):
    bert(tmp_path)
    text_encoder, tokenizer = load_text_encoder(str(tmp_path))
    seen = []
    hook = text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args[0].shape, bool(kwargs["attention_mask"].all()))),
        with_kwargs=True,
    )
    encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    encode.one_caption_at_a_time = False
    full = [" ".join(["red" if bit == "1" else "a" for bit in f"{i:06b}"] + ["a"] * 9) for i in range(64)]
    hidden_states, mask = encode(full)  # all of the greatest length, 12, and more than two batches of them
    assert mask.all() and mask.shape == (64, 12)
    encode(["a"])
    assert seen == [(32, 12, False)] * 4
    hook.remove()
    for states, caption in zip(hidden_states, full, strict=True):
        ids = tokenizer(caption, truncation=True, max_length=12).input_ids
        torch.testing.assert_close(states, alone(text_encoder, ids), rtol=1e-4, atol=1e-5)


def test_what_is_on_disk_is_what_the_encoder_says_and_the_encoder_rests(tmp_path, accelerator):
    text_encoder, tokenizer = wide()
    captions = sentences(40)
    computed = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    expected = {caption: computed([caption])[0][0] for caption in ["", *captions]}
    sizes = counted(text_encoder)
    TextEncoding(text_encoder, tokenizer, accelerator, trained=False).prepare(captions * 2, tmp_path)
    assert sum(sizes) == 41  # with the empty caption
    encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    encode.prepare(reversed(captions), str(tmp_path))
    for start in range(0, 40, 8):
        assert equal(encode, [*captions[start : start + 8], ""], expected)
    assert sum(sizes) == 41
    hidden_states, _ = encode(["another"])  # one that was not prepared
    assert torch.equal(hidden_states, computed(["another"])[0]) and sum(sizes) == 43


def test_captions_whose_file_is_gone_or_damaged_are_encoded_anew(tmp_path, accelerator, capsys):
    text_encoder, tokenizer = wide()
    captions = sentences(9)
    first = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    expected = {caption: first([caption])[0][0] for caption in captions}
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
        encode.prepare(captions, tmp_path)
        (path,) = tmp_path.glob("*/*.safetensors")
        damage(path)
        assert equal(encode, captions, expected)
    assert capsys.readouterr().out.count("is damaged") == 1


def test_what_is_kept_in_memory_is_bounded(accelerator, monkeypatch):
    captions = sentences(50)
    text_encoder, tokenizer = wide()
    whole = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    expected = {caption: whole([caption])[0][0] for caption in captions}
    for trained, limit in (
        (False, 200_000),
        (True, 2_000),
    ):  # a caption's states take about 17 kB, its tokens 300 bytes
        monkeypatch.setattr(text, "RECENT_BYTES", limit)
        encode = TextEncoding(text_encoder, tokenizer, accelerator, trained)
        for start in range(0, 50, 10):
            if trained:
                encode(captions[start : start + 10])
            else:
                assert equal(encode, captions[start : start + 10], expected)
            kept = encode.recent.kept
            assert sum(len(key) + tensor.nbytes for key, tensor in kept.items()) == encode.recent.size <= limit
            assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) <= limit
        assert 3 < len(kept) < 20


def test_a_trained_encoder_and_none_have_nothing_on_disk(tmp_path, accelerator):
    TextEncoding(*small(), accelerator, trained=True).prepare(CAPTIONS, tmp_path / "cache")
    TextEncoding(None, None, accelerator, trained=False).prepare(CAPTIONS, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_an_encoder_whose_states_are_on_disk_leaves_the_accelerator_and_comes_back_when_it_is_needed(
    tmp_path, accelerator
):
    text_encoder, tokenizer = small()
    encode = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)
    places = []
    text_encoder.to = lambda device: places.append(str(device))
    encode.device = torch.device("cpu", 0)  # stands for an accelerator
    encode.release()
    assert not places  # nothing is on disk
    encode.prepare(CAPTIONS, tmp_path)
    assert places == ["cpu:0", "cpu"]
    encode(CAPTIONS)
    assert places == ["cpu:0", "cpu"]
    encode(["new"])
    assert places == ["cpu:0", "cpu", "cpu:0"]


def test_another_folder_for_whatever_the_states_depend_on(tmp_path, accelerator, monkeypatch):
    torch.manual_seed(0)
    bert(tmp_path / "here")
    text_encoder, tokenizer = load_text_encoder(str(tmp_path / "here"))

    def fingerprint():
        return TextEncoding(text_encoder, tokenizer, accelerator, trained=False).fingerprint()

    prints = [fingerprint()]
    text_encoder.save_pretrained(tmp_path / "there")
    tokenizer.save_pretrained(tmp_path / "there")
    again = load_text_encoder(str(tmp_path / "there"))
    assert TextEncoding(*again, accelerator, trained=False).fingerprint() == prints[0] == fingerprint()

    with torch.no_grad():  # one weight, by as little as there is
        weight = text_encoder.encoder.layer[1].output.dense.bias[3:4]
        weight.copy_(torch.nextafter(weight, torch.tensor(1.0)))
    prints.append(fingerprint())
    text_encoder.config.layer_norm_eps *= 2
    prints.append(fingerprint())
    tokenizer.add_tokens(["boots"])
    prints.append(fingerprint())
    tokenizer.model_max_length = 7
    prints.append(fingerprint())
    text_encoder.to(torch.bfloat16)
    prints.append(fingerprint())
    monkeypatch.setattr(cache, "FORMAT", -1)
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)
    accelerator.state._mixed_precision = "bf16"  # which is for what is trained: a CPU encodes in float32
    assert fingerprint() == prints[-1]


def test_a_cpu_encodes_with_one_thread_and_in_whole_precision(accelerator):
    """Whatever the run's: a caption is too small to be shared out, and autocast would cast the weights for each."""
    text_encoder, tokenizer = small()
    captions = ["a red boot", "x", "two boots and a hat"]

    def states(precision: str, threads: int) -> list[torch.Tensor]:
        accelerator.state._mixed_precision = precision
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with accelerator.autocast():
                found = TextEncoding(text_encoder, tokenizer, accelerator, trained=False)._frozen_states(captions)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        return found

    plain = states("no", 1)
    for precision, threads in (("bf16", 1), ("no", 2)):
        for one, other in zip(states(precision, threads), plain, strict=True):
            assert torch.equal(one, other) and one.dtype == torch.float32
    accelerator.state._mixed_precision = "no"


def test_a_build_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 8)
    process = server().Process(target=build, args=(tmp_path / "killed", 0.003))
    process.start()
    while len(list(tmp_path.glob("killed/*/*.safetensors"))) < 5:
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    files = list(tmp_path.glob("killed/*/*.safetensors"))
    there = sum(len(load_file(file)["keys"]) for file in files)  # all of them whole
    assert 5 <= len(files) < 32 and 5 <= there < 241
    assert build(tmp_path / "killed") == 241 - there
    assert build(tmp_path / "whole") == 241
    for path in tmp_path.glob("killed/*/.*"):  # what the killed process was writing
        path.unlink()
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


# -------------------------------------------------------------------------------------------------------- a new encoder


def test_the_small_encoder_is_as_it_was_asked_for():
    text_encoder, tokenizer = small(max_text_length=9)
    assert type(text_encoder) is transformers.T5EncoderModel and type(tokenizer) is transformers.ByT5Tokenizer
    config = text_encoder.config
    assert {name: getattr(config, name) for name in TEXT_ENCODER} == TEXT_ENCODER
    assert (config.vocab_size, config.dropout_rate, tokenizer.model_max_length) == (384, 0.0, 9)
    assert max(tokenizer("\U0010ffff ÿ").input_ids) < 384
    config = TrainConfig(dataset_name="digits", text_encoder=TEXT_ENCODER | {"dropout_rate": 0.1, "vocab_size": 390})
    text_encoder, _ = new_text_encoder(config)
    assert (text_encoder.config.dropout_rate, text_encoder.config.vocab_size) == (0.1, 390)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d_modle": 8}, r"T5Config has no argument 'd_modle'; did you mean d_model\?"),
        ({"d_model": "wide"}, "the text_encoder's d_model must be of type int: got 'wide'"),
        ({"d_model": 0}, "the text_encoder's d_model must be at least 1: got 0"),
        ({"num_layers": -1}, "the text_encoder's num_layers must be at least 1: got -1"),
        ({"num_layers": 10**9}, "the text_encoder's num_layers must be at most 1,024: got 1000000000"),
        ({"vocab_size": 300}, "the tokenizer has tokens up to 383, the encoder knows 300: they do not fit"),
        ({"feed_forward_proj": "none at all"}, "text_encoder cannot be made: "),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        new_text_encoder(TrainConfig(dataset_name="digits", text_encoder=arguments))


# --------------------------------------------------------------------------------------------------- a loaded encoder


def clip_tokenizer(folder):
    letters = sorted(set("a red boot"))[1:]
    words = {w: i for i, w in enumerate([*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(words, [], model_max_length=12)
    tokenizer.save_pretrained(folder)
    ids = [words["<|startoftext|>"]]
    for word in ("a", "red", "boot"):
        ids += [words[x] for x in word[:-1]] + [words[word[-1] + "</w>"]]
    return len(words), [*ids, words["<|endoftext|>"]]


def clip_text(folder):
    size, ids = clip_tokenizer(folder)
    special = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "max_position_embeddings": 12}
    model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**WIDTH, **special))
    model.save_pretrained(folder)
    return model, ids


def clip_two_towers(folder):
    size, ids = clip_tokenizer(folder)
    special = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "max_position_embeddings": 12}
    vision = WIDTH | {"image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=WIDTH | special, vision_config=vision, projection_dim=8)
    model = transformers.CLIPModel(config)
    model.save_pretrained(folder)
    return model.text_model, ids


def bert(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boo", "##t"]
    transformers.BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(folder)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=9, max_position_embeddings=12, **WIDTH))
    model.save_pretrained(folder)
    return model, [2, 5, 6, 7, 8, 3]


def bert_for_words(folder):  # its checkpoint has a head in place of the pooler
    model, ids = bert(folder)
    whole = transformers.BertForMaskedLM(model.config)
    whole.save_pretrained(folder)
    return whole.bert, ids


def t5(folder):
    transformers.ByT5Tokenizer().save_pretrained(folder)
    config = transformers.T5Config(vocab_size=384, dropout_rate=0.0, **TEXT_ENCODER)
    model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model.encoder, [byte + 3 for byte in b"a red boot"] + [1]


def t5_v1_1(folder):  # as google/t5-v1_1-large: an encoder-decoder, gated, untied, with pieces for a vocabulary
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁red", -1.0), ("▁boo", -1.0), ("t", -2.0)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=12)
    tokenizer.save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=16, dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **TEXT_ENCODER
    )
    model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model.encoder, [3, 4, 5, 6, 1]


def of_a_pipeline(folder):
    (folder / "model_index.json").write_text("{}")
    model, ids = t5(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    transformers.ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    return model, ids


@pytest.mark.parametrize("kind", [clip_text, clip_two_towers, bert, bert_for_words, t5, t5_v1_1, of_a_pipeline])
def test_any_encoder_is_loaded_with_its_tokenizer(tmp_path, accelerator, kind):
    torch.manual_seed(0)
    model, ids = kind(tmp_path)
    text_encoder, tokenizer = load_text_encoder(str(tmp_path))
    assert text_encoder.config.hidden_size == 16
    hidden_states, mask = TextEncoding(text_encoder.eval(), tokenizer, accelerator, trained=False)(["a red boot", ""])
    assert mask.sum(1)[0] == len(ids) and mask.sum(1)[1] < len(ids)
    torch.testing.assert_close(hidden_states[0], alone(model.eval(), ids), rtol=1e-4, atol=1e-5)
    # the text tower alone, the encoder alone
    names = [name for name, _ in text_encoder.named_parameters()]
    assert not [name for name in names if "vision" in name or "decoder" in name or "lm_head" in name]


@pytest.mark.parametrize("kind", [clip_text, bert, t5])
def test_every_weight_that_asks_for_a_gradient_gets_one(tmp_path, accelerator, kind):
    kind(tmp_path)
    text_encoder, tokenizer = load_text_encoder(str(tmp_path))
    text_encoder.train().requires_grad_(False)
    train_what_is_read(text_encoder)
    assert text_encoder.training and all(p.grad is None for p in text_encoder.parameters())
    frozen = [name for name, p in text_encoder.named_parameters() if not p.requires_grad]
    assert frozen == (["pooler.dense.weight", "pooler.dense.bias"] if kind is bert else [])
    TextEncoding(text_encoder, tokenizer, accelerator, trained=True)(["a red boot", "a"])[0].square().sum().backward()
    assert [name for name, p in text_encoder.named_parameters() if p.grad is None] == frozen
    text_encoder.save_pretrained(tmp_path / "saved")  # with all its weights, as a pipeline loads it
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "saved"))
    assert all(torch.equal(after[name], before[name]) for name in frozen)


def test_captions_longer_than_a_loaded_encoder_reads_are_cut(tmp_path, accelerator):
    clip_text(tmp_path)
    hidden_states, _ = TextEncoding(*load_text_encoder(str(tmp_path)), accelerator, trained=False)(["red " * 20])
    assert hidden_states.shape == (1, 12, 16)


def remove(path):
    path.unlink()


def drop_weight(path):
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


def change_shape(path):
    tensors = load_file(path)
    tensors[sorted(tensors)[0]] = torch.zeros(2)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("model.safetensors", remove, "no file named model.safetensors"),
        ("model.safetensors", drop_weight, r"1 weights are missing or of another shape \(embeddings\."),
        ("model.safetensors", change_shape, r"1 weights are missing or of another shape \(.*embeddings\."),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:99]), "header"),
        ("tokenizer.json", lambda path: path.write_text("{"), "cannot be loaded"),
        ("config.json", remove, "cannot be loaded"),
    ],
)
def test_an_encoder_that_is_not_whole_is_refused_in_one_line(tmp_path, name, damage, message):
    bert(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        load_text_encoder(str(tmp_path))
    assert str(error.value).startswith(f"text_encoder_name_or_path {tmp_path} cannot be loaded: ")
    assert "\n" not in str(error.value)


def test_weights_in_a_pickle_are_refused(tmp_path):
    model, _ = bert(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no file named model.safetensors"):
        load_text_encoder(str(tmp_path))


# -------------------------------------------------------------------------------------------------- somebody's encoder


def evil(folder: Path, mark: Path, parts: str) -> None:
    """Give a saved encoder code of its own, which leaves a mark, by `auto_map` in its configuration or tokenizer's."""
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import *\n"
        "class C(BertConfig): model_type = 'evil'\nclass M(BertModel): config_class = C\nclass T(BertTokenizer): pass\n"
    )
    if "model" in parts:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
        (folder / "config.json").write_text(json.dumps(config))
    if "tokenizer" in parts:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("parts", ["model", "tokenizer", "model and tokenizer"])
def test_no_code_of_an_encoder_runs_and_nobody_is_asked(parts, tmp_path, monkeypatch):
    bert(tmp_path / "bert")
    evil(tmp_path / "bert", tmp_path / "mark", parts)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: (tmp_path / "asked").touch() or "y")
    with contextlib.suppress(UserError):  # a tokenizer without its code may be another that is installed
        load_text_encoder(str(tmp_path / "bert"))
    with pytest.raises(UserError, match="^features '.*' cannot be loaded: [^\n]+$"):
        PretrainedFeatures(str(tmp_path / "bert"), torch.device("cpu"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "asked").exists()


def spoilt(folder: Path, name: str, **changes) -> None:
    settings = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(settings))


def lost_link(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("tokenizer_config.json")


def another_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(20))]
    transformers.BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(folder)


@pytest.mark.parametrize(
    "damage, words",
    [
        (another_tokenizer, "the tokenizer has tokens up to 24, the encoder knows 9: they do not fit"),
        (lambda folder: spoilt(folder, "config.json", num_hidden_layers=10**12), "num_hidden_layers must be at most"),
        (lost_link, "tokenizer_config.json is no plain file"),
        (lambda folder: spoilt(folder, "tokenizer_config.json", pad_token=None), "padding token"),
        (
            lambda folder: shutil.copy(folder / "config.json", folder / "tokenizer_config.json"),
            "tokenizer_config.json must hold a tokenizer's settings: got a model's",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "header"),
        (lambda folder: (folder / "config.json").write_text("[]"), ""),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ""),
        (lambda folder: (folder / "config.json").write_text("[" * 50_000), ""),
    ],
)
def test_an_encoder_that_is_damaged_or_whose_tokenizer_is_anothers_is_one_line(damage, words, tmp_path):
    bert(tmp_path / "bert")
    damage(tmp_path / "bert")
    with pytest.raises(UserError) as error:
        load_text_encoder(str(tmp_path / "bert"))
    assert str(error.value).startswith(f"text_encoder_name_or_path {tmp_path / 'bert'} cannot be loaded: ")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_a_text_is_as_long_as_there_are_positions(kind):
    """Where positions are counted from behind the padding's, as many less."""
    settings = {**WIDTH, "vocab_size": 384, "max_position_embeddings": 34, "pad_token_id": 0}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings))
    tokenizer = transformers.ByT5Tokenizer(model_max_length=1000)
    limit = 34 if kind == "bert" else 33 if kind == "roberta" else 32
    assert token_limit(model, tokenizer) == limit
    for length in (limit, limit + 1):
        ids = torch.full((1, length), 7)
        with pytest.raises((IndexError, RuntimeError)) if length > limit else contextlib.nullcontext():
            model(ids, attention_mask=torch.ones_like(ids))
