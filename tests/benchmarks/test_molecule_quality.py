"""The benchmark of molecules: its character model, and the figures of a row."""

import pytest

from mezzotint_training.benchmarks import molecule_quality

pytest.importorskip("rdkit")


def test_the_character_model_draws_the_only_string_that_it_has_seen():
    model, tokens, seen = molecule_quality.train_peer([("C", "C", "O")], seconds=0.6)
    assert tokens == ["", "C", "O"] and seen % 64 == 0 and seen > 0
    drawn = molecule_quality.drawn_by_peer(model, tokens, 20, longest=5)
    assert len(drawn) == 20 and drawn.count("CCO") >= 18


def test_a_row_of_the_table_holds_shares_with_intervals():
    found = molecule_quality.figures(["CCO", "CCO", None, "CCN"], {"CCN"}, None)
    assert {name: figure["value"] for name, figure in found.items()} == {"valid": 0.75, "unique": 2 / 3, "novel": 0.5}
    assert found["valid"]["interval"][0] < 0.75 < found["valid"]["interval"][1]


def test_each_prompt_goes_with_its_own_attributes():
    def pipe(prompts, generator, attributes, guidance_scale):
        told = (f"{prompt}{one}{guidance_scale}" for prompt, one in zip(prompts, attributes, strict=True))
        return type("Result", (), {"molecules": list(told)})

    prompts = [f"{number}-" for number in range(molecule_quality.BATCH + 3)]
    found = molecule_quality.drawn_by(pipe, prompts, 0, attributes=list(range(len(prompts))), guidance_scale=1)
    assert found == [f"{number}-{number}1" for number in range(len(prompts))]
