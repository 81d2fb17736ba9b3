"""An adversary: the gradient that it asks of reconstructions, and what it learns from them, taken apart by hand."""

import pytest
import torch
import torch.nn.functional as F

from mezzotint_training.learning.adversary import Adversary, followed, told_apart


@pytest.fixture
def batch():
    """A picture each of three kinds, its latents, and a reconstruction that has lost some of it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 2, 8, 8, generator=generator) * 2 - 1
    latents = torch.randn(3, 4, 4, 4, generator=generator)
    output = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1)), 3, 1) * torch.tensor([0.2, 0.5, 1.0])[:, None, None, None]
    return pixels, output.requires_grad_(), latents


@pytest.fixture
def adversary():
    torch.manual_seed(1)
    return Adversary(2, 4, 2, width=16)


def l1(output, pixels):
    return (output - pixels).abs().mean((1, 2, 3))


def test_what_is_asked_for_is_as_long_as_the_gradient_of_the_loss_and_makes_it_more_like_a_picture(adversary, batch):
    pixels, output, latents = batch
    (own,) = torch.autograd.grad(l1(output, pixels).sum(), output)
    loss = followed(adversary, pixels, output, latents, l1(output, pixels), weight=0.7)
    torch.testing.assert_close(loss, l1(output, pixels))  # the numbers are those of the loss
    (found,) = torch.autograd.grad(loss.sum(), output)
    asked = found - own
    torch.testing.assert_close(asked.flatten(1).norm(dim=1), 0.7 * own.flatten(1).norm(dim=1))
    realness = [adversary(x.detach(), latents).mean((1, 2, 3)) for x in (output, output - 0.01 * asked)]
    assert (realness[1] > realness[0]).all()
    realness_of = torch.autograd.grad(adversary(output, latents).mean((1, 2, 3)).sum(), output)[0]
    along = F.cosine_similarity(-asked.flatten(1), realness_of.flatten(1))
    torch.testing.assert_close(along, torch.ones(3))  # of each picture by itself


def test_without_weight_the_reconstruction_is_left_alone(adversary, batch):
    pixels, output, latents = batch
    (own,) = torch.autograd.grad(l1(output, pixels).sum(), output)
    loss = followed(adversary, pixels, output, latents, l1(output, pixels), weight=0.0)
    (found,) = torch.autograd.grad(loss.sum(), output)
    assert torch.equal(found, own)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_adversary_learns_by_the_hinge_loss_alone(adversary, batch, weight):
    pixels, output, latents = batch
    latents.requires_grad_()
    followed(adversary, pixels, output, latents, l1(output, pixels), weight).mean().backward()
    found = {name: p.grad for name, p in adversary.named_parameters()}
    assert latents.grad is None
    real, made = (adversary(x.detach(), latents.detach()) for x in (pixels, output))
    hinge = F.relu(1 - real).mean() + F.relu(1 + made).mean()
    expected = torch.autograd.grad(hinge, list(adversary.parameters()))
    for (name, gradient), other in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4, msg=name)


def test_it_learns_to_tell_pictures_from_blurred_ones_whatever_the_scale_of_the_latents(adversary):
    generator = torch.Generator().manual_seed(2)

    def some(count: int):
        pixels = (torch.rand(count, 2, 8, 8, generator=generator) > 0.5).float() * 2 - 1
        return pixels, F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="reflect"), 3, 1), torch.randn(count, 4, 4, 4)

    unseen = some(64)
    assert 0.05 < told_apart(adversary, *unseen).float().mean() < 0.95
    optimizer = torch.optim.AdamW(adversary.parameters(), 2e-3)
    for _ in range(40):
        pixels, made, latents = some(16)
        optimizer.zero_grad()
        followed(adversary, pixels, made, latents, l1(made, pixels), 0.0).mean().backward()
        optimizer.step()
    told = told_apart(adversary, *unseen)
    assert told.shape == (64,) and told.float().mean() > 0.98
    pixels, made, latents = unseen
    assert torch.equal(told_apart(adversary, made, pixels, latents), ~told)
    torch.testing.assert_close(adversary(pixels, latents), adversary(pixels, 1000 * latents), atol=1e-4, rtol=1e-4)
