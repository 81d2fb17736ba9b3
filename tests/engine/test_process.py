"""The process of a run: what it says of the arithmetic that the machine has."""

import pytest
import torch
from tiny_run import run

from mezzotint_training.engine.process import has_bf16


@pytest.mark.parametrize(
    "found, expected",
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, False),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({}, True),
    ],
)
def test_bf16_without_instructions_for_it_is_told_once(monkeypatch, tmp_path, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert has_bf16() is expected
    if found.get("architecture") == "x86_64":
        told = run(output_dir=tmp_path / "run", mixed_precision="bf16", plan=True)
        assert told.code == 0, told.err
        assert told.out.count("mixed_precision bf16 is slower than float32 on this CPU") == (0 if expected else 1)
        assert "bf16 is slower" not in run(output_dir=tmp_path / "run", plan=True).out


def test_an_older_torch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bf16()
