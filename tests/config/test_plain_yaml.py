# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Numbers in YAML are JSON's and other decimal ones; files that may not be read at all are in `test_config.py`."""

import json
import math

import pytest

from mezzotint_training.config import plain_yaml
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.flags import parsed


@pytest.mark.parametrize(
    "text", ["0", "-3", "17", "1.5", "-0.25", "1.0e-3", "2.5e+3", "1" * 300, "true", "null", '"x"']
)
def test_numbers_are_those_of_json(text):
    found, known = plain_yaml.load(text), json.loads(text)
    assert found == known and type(found) is type(known)


def test_numbers_are_decimal():
    assert plain_yaml.load("[+4, 1_000, 5., .5, 007.5]") == [4, 1000, 5.0, 0.5, 7.5]
    assert plain_yaml.load("[.inf, -.inf]") == [math.inf, -math.inf] and math.isnan(plain_yaml.load(".nan"))
    texts = ["010", "0x10", "0b11", "0o7", "1:30", "1:30.5", "2020-01-01", "1e-3", "1.2.3", "."]  # numbers to some
    assert plain_yaml.load(f"[{', '.join(texts)}]") == texts


@pytest.mark.parametrize("text", ["0x10", "1:30"])
def test_whole_numbers_in_another_base_are_refused(text, tmp_path):
    from mezzotint_training.config.settings import TrainConfig

    with pytest.raises(UserError, match=f"max_train_steps must be of type int: got '{text}'"):
        TrainConfig(output_dir=str(tmp_path), max_train_steps=parsed("max_train_steps", text))
