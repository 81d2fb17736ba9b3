"""A network that gets the inputs of a task against the one that it was."""

import pytest
import torch

from mezzotint_training.config.errors import UserError
from mezzotint_training.config.settings import TrainConfig
from mezzotint_training.networks.widening import ready_for_task


@pytest.mark.parametrize("shape", [{}, {"patch_size": 2}, {"patch_size": 2, "linear_skip_size": 4}])
@pytest.mark.parametrize("task", ["inpaint", "upscale"])
def test_a_widened_network_draws_as_before_whatever_it_reads(make_unet, shape, task):
    unet = make_unet(**shape)
    wide = ready_for_task(TrainConfig(dataset_name="digits", task=task, scale=2), unet)
    assert wide.config.in_channels == 7 and wide.config.condition["task"] == task
    x, t, text = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 5, unet.config.cross_attention_dim)
    with torch.no_grad():
        expected = unet(x, t, text).sample
        for beside in (torch.zeros(2, 4, 8, 8), torch.randn(2, 4, 8, 8)):
            torch.testing.assert_close(wide(torch.cat([x, beside], 1), t, text).sample, expected, rtol=0, atol=1e-5)
    # and it can learn from all that it reads
    wide.train()
    beside = torch.randn(2, 4, 8, 8, requires_grad=True)
    wide(torch.cat([x, beside], 1), t, text).sample.square().mean().backward()
    assert wide.conv_in.weight.grad.flatten(2).abs().sum((0, 2)).all()
    if "linear_skip_size" in shape:
        gain = wide.linear_skip.gain.weight.grad
        assert gain.abs().sum(1)[-gain.shape[0] // 7 * 4 :].all()


def test_a_network_of_the_task_stays_as_it_is(make_unet):
    unet = make_unet(in_channels=7, condition={"task": "upscale", "scale": 2})
    assert ready_for_task(TrainConfig(dataset_name="digits", task="upscale", scale=2), unet) is unet
    with pytest.raises(UserError, match="^scale must be that of the saved pipeline, 2: got 4$"):
        ready_for_task(TrainConfig(dataset_name="digits", task="upscale", scale=4), unet)


@pytest.mark.parametrize(
    "saved, settings, rule",
    [
        (
            "inpaint",
            {"task": "upscale"},
            "^task must be inpaint, which the saved .* trained for: got upscale$",
        ),
        ("inpaint", {}, "^task must be inpaint, .*: got text_to_image$"),
        (None, {"task": "segment"}, "^task must be text_to_image, .*: got segment; train one from scratch$"),
        (None, {"task": "inpaint", "adapter": "lora"}, "^adapter cannot give a network the inputs of inpaint"),
    ],
)
def test_a_network_of_another_task_is_refused(make_unet, saved, settings, rule):
    unet = make_unet(**({"in_channels": 7, "condition": {"task": saved}} if saved else {}))
    with pytest.raises(UserError, match=rule):
        ready_for_task(TrainConfig(dataset_name="digits", pretrained_model_name_or_path="saved", **settings), unet)
