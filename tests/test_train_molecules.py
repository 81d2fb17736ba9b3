"""Molecules from a set to a published pipeline: one short run on the embedded chains, gone on with, loaded by a
stranger, measured."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from strangers import forked
from tiny_run import TEXT_ENCODER, UNET, distilled, logged, run, saved, steered, trained

from mezzotint import MezzotintMoleculePipeline
from mezzotint.samples.molecules import SIDE, smiles_of
from mezzotint_training import cli
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.data.chains import chains
from mezzotint_training.data.source import look_at, open_rows
from mezzotint_training.data.streaming import CaptionedStream, load_stream
from mezzotint_training.metrics import molecules as metrics
from mezzotint_training.modalities import molecules

pytest.importorskip("rdkit")
selfies = pytest.importorskip("selfies")
CHAINS = {
    "recipe": ...,
    "modality": "molecules",
    "dataset_name": "chains",
    "max_train_samples": ...,
    "validation_split": "test",
    "num_validation_samples": 8,
    "attribute_columns": ["heavy_atoms"],
    "unet": UNET,
    "text_encoder": TEXT_ENCODER,
    "train_batch_size": 8,
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "validation_steps": 2,
    "num_inference_steps": 2,
    "num_validation_images": 1,
    "validation_prompts": ["an alcohol", "a branched amine"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with forked():
        return trained(tmp_path_factory.mktemp("molecules") / "chains", **CHAINS | {"load_back": True})


def test_a_finished_run_is_a_pipeline_of_molecules_that_a_stranger_loads(folder):
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["load_back"]["where"] == "where mezzotint is not installed" and measured["load_back"]["moved"] == 0
    config = json.loads((folder / "unet" / "config.json").read_text())
    tokens = {token for row in chains()["train"] for token in selfies.split_selfies(row["selfies"])}
    assert set(config["modality"]["vocabulary"]) == {"", *tokens}
    assert (config["spatial_dims"], config["sample_size"], config["out_channels"]) == (1, 16, 16)
    pipe = MezzotintMoleculePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        ["an alcohol"] * 3,
        num_inference_steps=2,
        fragment="[O]",
        attributes={"heavy_atoms": 7},
        attribute_guidance_scale={"heavy_atoms": 3.0},
    ).molecules
    assert all(one.startswith("[O]") and smiles_of(one, "selfies") for one in found)
    assert set(logged(folder, "held_out_loss")) == {2, 4}


def test_samples_are_scaled_to_unit_variance(folder):
    config = TrainConfig(dataset_name="chains", modality="molecules", validation_split="test")
    rows = open_rows(config)
    facts = look_at(rows, config, None)
    read = [molecules.read(row["selfies"], 16, facts.size, facts.about) for row in rows.known]
    bits = (torch.stack(read) > 0).double() * 2 - 1  # (N, C, L)
    network = json.loads((folder / "unet" / "config.json").read_text())
    torch.testing.assert_close(torch.tensor(network["sample_mean"]).double(), bits.mean((0, 2)), atol=1e-4, rtol=0)
    deviation = bits.square().mean((0, 2)).sub(bits.mean((0, 2)).square()).sqrt()
    torch.testing.assert_close(torch.tensor(network["sample_std"]).double(), deviation, atol=1e-4, rtol=0)


def test_a_run_that_is_stopped_ends_bit_for_bit_as_one_that_was_not(folder, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for path in ("checkpoint-4", "unet", "scheduler"):
        shutil.rmtree(again / path)
    (again / "model_index.json").unlink()
    result = run(output_dir=again, **CHAINS)
    assert result.code == 0 and "going on from step 2" in result.out, result.err
    for name in ("weights", "optimizer", "ema"):
        before, after = saved(folder, 4, name), saved(again, 4, name)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert logged(folder) == logged(again)


def test_they_are_distilled_to_two_steps(folder, tmp_path):
    result = distilled(folder, tmp_path / "student", "--no-load_back")
    assert result.code == 0, result.err
    pipe, evaluations = MezzotintMoleculePipeline.from_pretrained(tmp_path / "student"), []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: evaluations.append(len(inputs[0])))
    assert smiles_of(*pipe("an alcohol", attributes={"heavy_atoms": 7}).molecules, "selfies") and evaluations == [1, 1]


def test_a_classifier_steers_them(folder, tmp_path):
    (plain, guided), classifier = steered(folder, tmp_path / "steered", dataset_name="chains", label_column="text")
    assert classifier.config.spatial_dims == 1 and "an alcohol" in classifier.config.id2label.values()
    assert guided > plain + 0.01


def test_a_string_is_classified_by_its_likelihood(folder, capsys):
    words = ["classify", str(folder), "[C][C][O]", "--rounds", "6", "--device", "cpu"]
    assert cli.main([*words, "--captions", "an alcohol", "a branched amine"]) == 0
    assert capsys.readouterr().out.startswith("[C][C][O]: a")
    assert cli.main(["classify", str(folder), "[Xx]", "--captions", "an alcohol", "an amine", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("mezzotint: molecule [Xx] cannot be read: ")


def test_one_is_drawn_from_another_or_from_its_beginning(folder, tmp_path, capsys):
    argv = ["sample", str(folder), "an alcohol", "--num_inference_steps", "5", "--device", "cpu"]
    argv += ["--output", str(tmp_path / "x.txt")]
    assert cli.main([*argv, "--molecule", "[C][C][O]", "--strength", "0.2"]) == 0, capsys.readouterr().err
    assert (tmp_path / "x.txt").read_text() == "[C][C][O]\n"  # of so little noise the code words are the nearest
    assert cli.main([*argv, "--fragment", "[O][C]"]) == 0
    assert (tmp_path / "x.txt").read_text().startswith("[O][C]")


def test_its_card_and_its_drawings(folder):
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-to-molecule" in card and "of up to 16 tokens of 6 kinds" in card
    assert "76 captioned molecules of `chains`" in card and "a picture" not in card
    assert Image.open(folder / "samples/step-000004.png").size[0] > 2 * SIDE
    for number in (1, 2):
        assert (folder / f"samples/step-000004-{number}.smi").read_text().count("\n") == 1


def test_what_a_saved_pipeline_cannot_read_is_refused_in_one_line(folder, tmp_path):
    (tmp_path / "set").mkdir()
    rows = ["selfies,text", "[C][C][O],an alcohol", "[C][Si],a silane"]
    (tmp_path / "set" / "train.csv").write_text("\n".join(rows) + "\n")
    tuned = {"dataset_name": ..., "train_data_dir": tmp_path / "set", "pretrained_model_name_or_path": folder}
    tuned |= {"validation_split": ..., "attribute_columns": ..., "unet": ..., "text_encoder": ...}
    tuned |= {"max_text_length": ..., "output_dir": tmp_path / "run"}
    result = run(**CHAINS | tuned)
    what = "molecule in row 1 cannot be read: its tokens must be among the 6 of the model: got '[Si]'"
    assert result.code == 2 and what in result.err, result.err
    result = run(**CHAINS | tuned | {"sample_column": "text"})
    assert result.code == 2 and "it must be a molecule in selfies: got 'an alcohol'" in result.err, result.err
    assert not (tmp_path / "run").exists()


def test_adapters_are_trained_of_a_saved_pipeline(folder, tmp_path):
    of_it = {"pretrained_model_name_or_path": folder, "unet": ..., "text_encoder": ..., "validation_prompts": []}
    tuned = trained(tmp_path / "tuned", **CHAINS | of_it | {"adapter": "lora", "max_train_steps": 1})
    pipe = MezzotintMoleculePipeline.from_pretrained(folder)
    pipe.load_lora_weights(tuned)
    assert [*pipe.unet.peft_config] == [*pipe.get_list_adapters()["unet"]]


def test_a_stream_of_molecules_has_the_same_samples():
    config = TrainConfig(
        dataset_name="chains", modality="molecules", streaming=True, validation_split="test", shuffle_buffer_size=40
    )
    stream = load_stream(config)
    about = {
        "notation": "selfies",
        "vocabulary": molecules.code_words(dict.fromkeys(["[C]", "[O]", "[N]", "[S]", "[Cl]", "[Branch1]"], 1)),
    }
    data = CaptionedStream(stream, config, 16, (16,), about=about)
    whole = {molecules.read(row["selfies"], 16, (16,), about).numpy().tobytes() for row in load_stream(config).rows}
    batch = next(data.batches(8))
    for sample in batch["sample"]:
        assert ((sample > 0) * 255).to(torch.uint8).numpy().tobytes() in whole


# ----------------------------------------------------------------------------------------------------------- metrics


def test_shares_count_molecules_and_not_strings():
    drawn = metrics.canonical(["CCO", "OCC", "C1CC", "CCN", "CCC"], "smiles")
    assert drawn == ["CCO", "CCO", None, "CCN", "CCC"]
    found = {name: figure.value for name, figure in metrics.shares(drawn, {"CCC"}).items()}
    assert found == {"valid": 4 / 5, "unique": 3 / 4, "novel": 2 / 3}
    assert set(metrics.shares([None], {"CCC"})) == {"valid"}


def test_the_error_of_logp_is_the_mean_of_distances_from_what_was_asked():
    ethanol, benzene = -0.0014, 1.6866  # Crippen's, of Wildman and Crippen (1999) by their sums of atoms
    assert metrics.logp(["CCO", "c1ccccc1"]).tolist() == pytest.approx([ethanol, benzene], abs=1e-4)
    assert metrics.logp_error(["CCO", None, "c1ccccc1"], [1.0, 9.0, 1.0]).value == pytest.approx(
        ((1 - ethanol) + (benzene - 1)) / 2, abs=1e-4
    )


def test_the_chemnet_distance_is_that_of_its_package():
    fcd = pytest.importorskip("fcd")
    smiles = [row["smiles"] for row in chains()["train"]]
    features = metrics.chemnet_features(smiles)
    a, b = features[:38], features[38:]

    parts = ((x.mean(0).numpy(), np.cov(x.T.numpy())) for x in (a, b))
    (mean_a, cov_a), (mean_b, cov_b) = parts
    expected = fcd.calculate_frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert metrics.chemnet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert metrics.chemnet_distance(a, a) == pytest.approx(0, abs=1e-4)
