"""One molecule: its tokens, their code words, and what is wrong with a string. The oracles are selfies and RDKit."""

import itertools
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from mezzotint.samples import molecules as writer
from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.chains import chains
from mezzotint_training.data.dataset import CaptionedSamples
from mezzotint_training.data.lint import lint
from mezzotint_training.data.rows import load_splits
from mezzotint_training.data.source import first_sample, look_at, open_rows
from mezzotint_training.modalities import molecules
from mezzotint_training.modalities.contents import unit

Chem = pytest.importorskip("rdkit.Chem")
selfies = pytest.importorskip("selfies")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
ABOUT = {"notation": "selfies", "vocabulary": molecules.code_words({"[C]": 2, "[=C]": 1, "[O]": 1, "[Cl]": 1})}


def test_the_embedded_set_says_the_same_in_both_notations_and_holds_no_molecule_twice():
    rows = [row for split in chains().values() for row in split]
    smiles = [writer.smiles_of(row["smiles"], "smiles") for row in rows]
    assert smiles == [writer.smiles_of(row["selfies"], "selfies") for row in rows]
    assert len(set(smiles)) == len(rows) == 95
    assert [Chem.MolFromSmiles(one).GetNumHeavyAtoms() for one in smiles] == [row["heavy_atoms"] for row in rows]
    alcohol = Chem.MolFromSmarts("[OX2H]")
    found = [Chem.MolFromSmiles(one).HasSubstructMatch(alcohol) for one in smiles]
    assert found == [row["text"].endswith("alcohol") for row in rows]


@pytest.mark.parametrize(
    "smiles",
    [
        ASPIRIN,
        "C[N+](C)(C)CC(=O)[O-]",
        "Clc1ccc2[nH]ccc2c1",
        "[Na+].[Cl-]",
        "C/C=C\\C",
        "N[C@@H](C)C(=O)O",
        "C%12CC%12",
    ],
)
def test_strings_are_divided_into_tokens_of_either_notation(smiles):
    found = molecules.header(smiles, {"notation": "smiles"})
    assert "".join(found.tokens) == smiles
    assert (
        sum(token[0] not in "-=#$:/\\.()%0123456789" for token in found.tokens)
        == Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()
    )  # each atom is one
    translated = selfies.encoder(smiles)
    found = molecules.header(translated)
    assert (found.tokens, found.notation) == (tuple(selfies.split_selfies(translated)), "selfies")


def test_any_two_code_words_differ_in_six_bits_and_frequent_tokens_come_first():
    counts = {f"[{number}]": number + 1 for number in range(99)}
    words = molecules.code_words(counts)
    assert list(words)[:3] == ["", "[98]", "[97]"] and list(words.values())[:2] == [0, 2**16 - 1]
    assert min(bin(a ^ b).count("1") for a, b in itertools.combinations(words.values(), 2)) == 6
    assert len({*words.values()}) == 100 and words == molecules.code_words(dict(reversed(counts.items())))


def test_a_string_becomes_the_bits_of_its_code_words():
    found = molecules.read("[C][O]", 16, (4,), ABOUT)
    assert found.dtype == torch.uint8 and found.shape == (16, 4)
    numbers = (unit(found) > 0).long().T @ 2 ** torch.arange(16)
    assert numbers.tolist() == [ABOUT["vocabulary"]["[C]"], ABOUT["vocabulary"]["[O]"], 0, 0]


@pytest.mark.parametrize(
    "cell, about, what",
    [
        (None, {}, "there is none"),
        ("", {}, "there is none"),
        ("water, mostly", {}, "it must be a molecule in SELFIES or SMILES: got 'water, mostly'"),
        ("C1CC", {}, "it must be a molecule that RDKit can read: got 'C1CC'"),
        ("C(C)(C)(C)(C)C", {}, "it must be a molecule that RDKit can read: got 'C(C)(C)(C)(C)C'"),  # five bonds
        ("[C][Foo]", {}, "its symbols must be those of SELFIES: got '[Foo]'"),
        ("[Ring1][Branch1]", {}, "it must be a molecule: got '[Ring1][Branch1]', without atoms"),
        ("CCO", ABOUT, "it must be a molecule in selfies: got 'CCO'"),
        ("[C][Si]", ABOUT, "its tokens must be among the 4 of the model: got '[Si]'"),
        ("[C]" * 5, ABOUT, "it must have no more tokens than fit, 4: got 5"),
    ],
)
def test_what_is_no_molecule_is_said_in_one_line(cell, about, what):
    with pytest.raises(ValueError) as error:
        molecules.read(cell, 16, (4,), about)
    assert str(error.value) == what


def test_without_the_libraries_one_line_says_what_brings_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "selfies", None)
    with pytest.raises(UserError, match=r"^molecules need rdkit and selfies; pip install 'mezzotint\[molecules\]' b"):
        open_rows(TrainConfig(dataset_name="chains", modality="molecules"))


def test_length_and_vocabulary_are_the_sets_or_as_asked_or_the_saved_models():
    headers = [molecules.header(one) for one in ("[C][C][O]", "[C]" * 9, "[Na+1].[Cl-1]")]

    def settled(size=None, about=None, asked=None):
        config = SimpleNamespace(molecule_length_in_tokens=asked)
        return molecules.settle(config, headers[0], lambda: headers, size, about)

    ((length,), about) = settled()
    assert (length, about["notation"]) == (16, "selfies")
    assert list(about["vocabulary"]) == ["", "[C]", ".", "[Cl-1]", "[Na+1]", "[O]"]
    # of 3 x 16 positions 15 are taken; one is added for each of the six
    expected = {"": 34 / 54, "[C]": 12 / 54, ".": 2 / 54, "[Cl-1]": 2 / 54, "[Na+1]": 2 / 54, "[O]": 2 / 54}
    assert about["frequencies"] == pytest.approx(expected, abs=1e-8)
    ((length,), about) = settled(asked=5)  # of those that fit
    assert length == 8 and list(about["vocabulary"]) == ["", "[C]", ".", "[Cl-1]", "[Na+1]", "[O]"]
    assert settled((24,), {"name": "molecules", **ABOUT}) == ((24,), ABOUT)
    assert settled((24,), {"name": "molecules", **ABOUT}, asked=30) == ((32,), ABOUT)


def test_as_a_data_set_either_column_is_read_and_settings_of_pictures_are_refused():
    for column, notation, size in (("selfies", "selfies", 16), ("smiles", "smiles", 16)):
        config = TrainConfig(dataset_name="chains", modality="molecules", sample_column=column)
        rows = open_rows(config)
        assert first_sample(rows.known, config).notation == notation
        facts = look_at(rows, config, None)
        assert (facts.size, facts.channels, facts.about["notation"]) == ((size,), 16, notation)
        with pytest.raises(UserError, match=r"^the saved pipeline draws samples of modality image: got a set of modal"):
            look_at(rows, config, {"unet": SimpleNamespace(config={"modality": None})})
    with pytest.raises(UserError, match=r"^random_flip is not for molecules \(modality molecules\): got True$"):
        load_splits(TrainConfig(dataset_name="chains", modality="molecules", random_flip=True))
    with pytest.raises(UserError, match=r"^molecule_length_in_tokens is not for pictures \(modality image\): got 9$"):
        load_splits(TrainConfig(dataset_name="digits", modality="image", molecule_length_in_tokens=9))
    with pytest.raises(UserError, match="^sample_column 'heavy_atoms' must hold molecules: got Value"):
        open_rows(TrainConfig(dataset_name="chains", modality="molecules", sample_column="heavy_atoms"))


def test_bad_rows_are_named_by_their_number_and_skipped():
    strings = ["[C][O]", "no molecule", "[C][Si]", "[C][O]", None]
    rows = datasets.Dataset.from_dict({"selfies": strings, "text": ["a"] * 5})
    like = {"dataset_name": "chains", "modality": "molecules", "on_bad_row": "skip"}
    data = CaptionedSamples(rows, TrainConfig(**like), 16, (8,), about=ABOUT)
    data.read_all(progress=False)
    assert [line.partition(":")[0] for line in data.bad] == [f"molecule in row {i} cannot be read" for i in (1, 2, 4)]
    found = lint(data, 100)
    assert found.measures["tokens"] == (2, 2, 2)
    assert found.findings == [("a molecule that an earlier row has too", 1, [3])]
    config, what = TrainConfig(**like | {"on_bad_row": "stop"}), "its tokens must be among the 4 of the model: got"
    with pytest.raises(UserError, match=f"^molecule in row 2 cannot be read: {what} '.Si.'; --on_bad_row skip"):
        some = rows.select([0, 2]).add_column("number in the split", [0, 2])
        CaptionedSamples(some, config, 16, (8,), about=ABOUT).read_all(progress=False)


def test_a_molecule_is_drawn_or_written_and_kept_as_a_line():
    drawn = np.asarray(writer.show(selfies.encoder(ASPIRIN), {"notation": "selfies"}, (8,)))
    assert drawn.shape == (160, 160, 3) and (drawn[..., 0] > drawn[..., 2] + 100).sum() > 20  # red are its oxygens
    written = np.asarray(writer.show("C1CC", {"notation": "smiles"}, (8,)))
    assert written.shape == drawn.shape and written.min() < 128
    selfie = selfies.encoder(ASPIRIN)
    kept = writer.encoded(selfie, ".smi", {"notation": "selfies"}).decode()
    assert Chem.CanonSmiles(kept) == Chem.CanonSmiles(ASPIRIN) and kept.endswith("\n")
    assert writer.encoded(selfie, ".txt", {"notation": "selfies"}).decode() == selfie + "\n"
