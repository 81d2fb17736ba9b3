"""Captions to hidden states: a batch with its padding and mask against each caption encoded on its own."""

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from tiny_run import TEXT_ENCODER

from mezzotint_training.config import TrainConfig, UserError
from mezzotint_training.text import TextEncoding, load_text_encoder, new_text_encoder

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
    assert sizes == [2, 1]
    assert torch.equal(encode(["a", "b", "a"])[0], first) and sizes == [2, 1]


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


# -------------------------------------------------------------------------------------------------------- a new encoder


def test_the_small_encoder_is_as_it_was_asked_for():
    text_encoder, tokenizer = small(max_text_length=9)
    assert type(text_encoder) is transformers.T5EncoderModel and type(tokenizer) is transformers.ByT5Tokenizer
    config = text_encoder.config
    assert {name: getattr(config, name) for name in TEXT_ENCODER} == TEXT_ENCODER
    assert (config.vocab_size, config.dropout_rate, tokenizer.model_max_length) == (384, 0.0, 9)
    assert max(tokenizer("\U0010ffff ÿ").input_ids) < 384
    config = TrainConfig(dataset_name="digits", text_encoder=TEXT_ENCODER | {"dropout_rate": 0.1, "vocab_size": 300})
    text_encoder, _ = new_text_encoder(config)
    assert (text_encoder.config.dropout_rate, text_encoder.config.vocab_size) == (0.1, 300)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"d_modle": 8}, r"T5Config has no argument 'd_modle'; did you mean d_model\?"),
        ({"d_model": "wide"}, "text_encoder: .*'d_model' expected int, got str"),
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


@pytest.mark.parametrize("kind", [clip_text, clip_two_towers, bert, bert_for_words, t5])
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
