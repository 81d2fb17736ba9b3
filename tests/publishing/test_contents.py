"""What must not leave is found in the files themselves: keys by their form, places by whether they are there, sizes."""

import json
import os

import pytest

from mezzotint import hub
from mezzotint_training.publishing import contents

KEYS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "a GitHub token": "ghp_" + "aB3" * 13,
    "an AWS key": "AKIA" + "Z7" * 8,
    "a Google key": "AIza" + "aB3-_" * 7,
    "a key of OpenAI's form": "sk-proj-" + "aB3" * 14,
    "a Slack token": "xoxb-1234567890-abc",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password in an address": "https://jane:geheim@example.com/x",
}


def problems(folder, name: str, content: str) -> list[str]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return contents.problems({name: folder / name})


@pytest.mark.parametrize("what", KEYS)
def test_keys_are_known_by_their_form(tmp_path, what):
    [line] = problems(tmp_path, "recipe.yaml", f"prompt: {KEYS[what]}\n")
    assert line == f"recipe.yaml must hold no secret: what looks like {what} is at byte 8"
    assert KEYS[what] not in line  # which would go into logs
    for less in (KEYS[what][:9], "task-skip", "https://example.com:80/@x", "jane@example.com", "-----BEGIN PUBLIC KEY"):
        assert problems(tmp_path, "recipe.yaml", f"prompt: {less}\n") == []
    assert problems(tmp_path, "tokenizer/tokenizer.json", KEYS[what]) == []  # parts of words


def test_places_are_those_that_are_there(tmp_path):
    (tmp_path / "jane").mkdir()
    [line] = problems(tmp_path, "evaluation.json", json.dumps({"data": str(tmp_path / "jane")}))
    assert line == f"evaluation.json must name no place on this machine: got {tmp_path}/jane"
    for other in ("/home/nobody/at/all", "a/b/c", "/usr/bin", "https://huggingface.co/tmp", "and/or", "/"):
        assert problems(tmp_path, "evaluation.json", json.dumps({"data": other})) == []


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "x.safetensors").touch()
    os.truncate(tmp_path / "x.safetensors", 60 * 10**9)  # of which nothing is on the disk
    [line] = contents.problems({"unet/x.safetensors": tmp_path / "x.safetensors"})
    assert line.startswith("unet/x.safetensors must be of at most 50 GB: got 60; save_pretrained(…, max_shard_size=…)")


def test_weights_that_are_cut_off_are_no_matter_here(tmp_path):
    for content in ("", "abc", "\x01" * 20):
        assert problems(tmp_path, "unet/x.safetensors", content) == []


def test_code_is_the_packages_or_foreign(make_pipe, tmp_path):
    make_pipe().save_pretrained(tmp_path)
    assert contents.foreign_code(hub.content(tmp_path)) == []
    (code,) = tmp_path.glob("scheduler/*.py")
    code.write_bytes(code.read_bytes() + b"\n")
    assert contents.foreign_code(hub.content(tmp_path)) == [f"scheduler/{code.name}"]
