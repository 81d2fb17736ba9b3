"""Text to molecule: bits to strings, fragments that are kept, forms of the result, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from tiny_pipes import FREQUENCIES, VOCABULARY, molecules

from mezzotint import MezzotintAudioPipeline, MezzotintMoleculePipeline
from mezzotint.pipelines.conditions_mezzotint import classes_to_bits
from mezzotint.pipelines.pipeline_mezzotint_molecules import MezzotintMoleculePipelineOutput

LENGTH = 8


@pytest.fixture(scope="module")
def pipe() -> MezzotintMoleculePipeline:
    return molecules()


def call(pipe, seed: int = 0, **arguments):
    return pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(seed), **arguments).molecules


def bits(*tokens: str) -> torch.Tensor:
    words = [VOCABULARY[token] for token in tokens] + [0] * (LENGTH - len(tokens))
    return classes_to_bits(torch.tensor(words)[None, None], 2**16)


def test_bits_are_read_as_the_nearest_tokens_up_to_where_they_end(pipe):
    assert pipe.strings(bits("[C]", "[Branch1]", "[=C]", "[O]")) == ["[C][Branch1][=C][O]"]
    assert pipe.strings(bits()) == [""] and pipe.strings(bits(*["[C]"] * LENGTH)) == ["[C]" * LENGTH]
    wrong = bits("[C]", "[O]", "[O]")
    wrong[0, [1, 9], :3] *= -1  # two bits of six or more
    noisy = wrong + 0.3 * torch.randn(wrong.shape, generator=torch.Generator().manual_seed(0))
    assert pipe.strings(noisy) == ["[C][O][O]"]
    hole = bits("[C]", "", "[O]", "[C]", "[C]")
    hole[0, :, 1] *= 0.1  # a place in the middle that nothing is drawn at, without being sure
    assert pipe.strings(hole) == ["[C][O][C][C]"]


def test_a_noisy_place_is_read_by_bayes_rule(pipe):
    """The oracle is the posterior, written out; only at a place that is half way between two words it matters."""
    data = bits("[C]", "[C]", "[C]") + 0.7 * torch.randn(1, 16, LENGTH, generator=torch.Generator().manual_seed(3))
    data[0, :, 1] = (0.45 * bits("[C]") + 0.55 * bits("[Branch1]"))[0, :, 0]
    variance = (data.abs() - 1).square().mean().item()
    words = {token: classes_to_bits(torch.tensor([[[word]]]), 2**16)[0, :, 0] for token, word in VOCABULARY.items()}
    posterior = {
        token: FREQUENCIES[token] * ((data[0, :, 1] - word).square().sum() / (-2 * variance)).exp().item()
        for token, word in words.items()
    }
    assert max(posterior, key=lambda token: posterior[token]) == "[C]"
    assert min(words, key=lambda token: (data[0, :, 1] - words[token]).square().sum().item()) == "[Branch1]"
    assert pipe.strings(data) == ["[C][C][C]"]


def test_a_fragment_is_kept_and_the_network_is_told_it_at_every_step(pipe):
    seen = []

    def keep(run, step, timestep, tensors):
        seen.append(tensors["latents"])
        return {}

    noise = torch.randn(2, 16, LENGTH, generator=torch.Generator().manual_seed(7))
    found = call(pipe, fragment="[C][=C]", num_molecules_per_prompt=2, latents=noise, callback_on_step_end=keep)
    assert all(one.startswith("[C][=C]") for one in found)
    expected = ((bits("[C]", "[=C]")[..., :2] + 0.2) / 0.9).expand(2, -1, -1)
    torch.testing.assert_close(seen[-1][..., :2], expected)
    pipe.scheduler.set_timesteps(3)
    for latents, timestep in zip(seen, pipe.scheduler.timesteps[1:], strict=False):
        noisy = pipe.scheduler.add_noise(expected, noise[..., :2], timestep.expand(2))
        torch.testing.assert_close(latents[..., :2], noisy)


def test_a_molecule_is_taken_up_from_the_noise_of_its_strength(pipe):
    """The network meets its bits as `add_noise` makes them; of all steps nothing is left of them."""
    noise, met = torch.randn(2, 16, LENGTH, generator=torch.Generator().manual_seed(7)), []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: met.append(inputs))
    call(pipe, molecule="[C][=C][O]", strength=0.7, num_molecules_per_prompt=2, latents=noise)
    hook.remove()
    known = ((bits("[C]", "[=C]", "[O]") + 0.2) / 0.9).expand(2, -1, -1)
    noisy = pipe.scheduler.add_noise(known, noise, torch.as_tensor(met[0][1]).reshape(-1)[:1].expand(2))
    assert len(met) == 2
    torch.testing.assert_close(met[0][0][:2], noisy)
    free = call(pipe, latents=noise, num_molecules_per_prompt=2, output_type="pt")
    again = call(pipe, molecule="[C]", strength=1, latents=noise, num_molecules_per_prompt=2, output_type="pt")
    assert torch.equal(free, again)
    assert len(call(pipe, molecule="[C]" * LENGTH, strength=0.5)) == 1  # as many tokens as fit
    for wrong, what in (({"strength": 0.5}, "strength goes with molecule: got it alone"),
                        ({"molecule": "[N]"}, "molecule must be tokens that the network knows")):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            call(pipe, **wrong)


def test_forms_of_the_result(pipe):
    result = pipe(num_inference_steps=2, num_molecules_per_prompt=2)
    assert isinstance(result, MezzotintMoleculePipelineOutput) and all(isinstance(one, str) for one in result.molecules)
    data = {kind: call(pipe, output_type=kind) for kind in ("np", "pt", "latent", "str")}
    assert isinstance(data["np"], np.ndarray) and data["np"].shape == data["latent"].shape == (1, 16, LENGTH)
    torch.testing.assert_close(data["latent"] * 0.9 - 0.2, data["pt"])
    assert pipe.strings(data["pt"]) == data["str"]
    (one,) = pipe(num_inference_steps=2, return_dict=False)
    assert len(one) == 1


def test_selfies_become_smiles_where_the_package_is_there(pipe, monkeypatch):
    selfies = pytest.importorskip("selfies")
    assert call(pipe, output_type="smiles") == [selfies.decoder(one) for one in call(pipe)]
    monkeypatch.setitem(sys.modules, "selfies", None)
    assert isinstance(call(pipe)[0], str)  # SELFIES need nothing
    with pytest.raises(ValueError, match="^SMILES of SELFIES need the package selfies; pip install selfies brings it$"):
        call(pipe, output_type="smiles")
    assert call(molecules(notation="smiles"), output_type="smiles") == call(molecules(notation="smiles"))


@pytest.mark.parametrize(
    "arguments, what",
    [
        ({"fragment": "[C][Si]"}, r"fragment must be tokens that the network knows, in selfies: got '\[C\]\[Si\]'"),
        ({"fragment": ""}, "fragment must be tokens that the network knows, in selfies: got ''"),
        ({"fragment": 3}, "fragment must be tokens that the network knows, in selfies: got 3"),
        ({"fragment": "[C]" * 8}, "fragment must have at most 7 tokens: got 8"),
        ({"molecule": "[C]" * 9}, "molecule must have at most 8 tokens: got 9"),
        ({"num_molecules_per_prompt": 0}, "num_molecules_per_prompt must be a positive whole number: got 0"),
        ({"output_type": "pil"}, "output_type must be one of 'str', 'smiles', 'np', 'pt', 'latent': got 'pil'"),
        ({"generator": [torch.Generator()] * 2}, "a list of generators needs one for each molecule: got 2 for 1"),
        ({"prompt": "an alcohol"}, ".*text.*"),
    ],
)
def test_what_is_impossible_is_refused_in_one_line(pipe, arguments, what):
    with pytest.raises(ValueError, match=f"^{what}$"):
        pipe(**arguments)


def test_sounds_and_molecules_are_not_mistaken_for_each_other(pipe):
    with pytest.raises(ValueError, match="got some of modality molecules, which MezzotintMoleculePipeline takes$"):
        MezzotintAudioPipeline(**pipe.components).check_inputs(2, None, None, 1, 0.0, None, None, "np", None, [])


def test_saved_and_loaded_it_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = MezzotintMoleculePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.vocabulary == VOCABULARY
    np.testing.assert_array_equal(call(loaded, output_type="np"), call(pipe, output_type="np"))
    assert call(loaded) == call(pipe)
