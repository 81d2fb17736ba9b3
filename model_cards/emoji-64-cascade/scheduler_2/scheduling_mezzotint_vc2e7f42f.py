# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""The noise: how much of it there is at each timestep, how it is added, what the network is asked to predict, and how
one step takes some of it away.

All noise maths of the project lives here and nowhere else. The file stands alone (it travels inside checkpoints): it
imports torch, numpy and diffusers only.

Symbols, with `t` a timestep from 0 (least noise) to `num_train_timesteps - 1` (most):

    x_0  original_samples, clean data      alphas_cumprod[t] = a_t = prod(1 - betas[:t + 1])
    eps  noise, standard normal            alpha_t = sqrt(a_t), the share of signal
    x_t  sample, noisy data                sigma_t = sqrt(1 - a_t), the share of noise
    D    the network's prediction of x_0   lambda_t = log(alpha_t / sigma_t), half the log signal-to-noise ratio

`sigmas` in an argument's or a method's name is the *ratio* sigma_t / alpha_t (the k-diffusion and EDM sigma, the
standard deviation of the noise on unscaled data), as in every diffusers scheduler.
"""

import base64
import inspect
import math
import numbers
import reprlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar, rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

# The text of this file as it was loaded, to go into checkpoints: the one on disk may change during a long run
SOURCE = Path(__file__).read_bytes()

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
VarianceType = Literal["fixed_small", "fixed_large"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]

# Arguments that stand in a config under private names, at which no stock scheduler warns, and their defaults
_PRIVATE = {"fitted_schedules": None, "consistency_steps": None, "consistency_shift": 1.0}
# What a stock scheduler was left at for these goes with its own steps, not with its network
_PASSED_OVER = ("trained_betas", "variance_type")


@dataclass
class MezzotintSchedulerOutput(BaseOutput):
    """
    Args:
        prev_sample (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): the sample after the step.
        pred_original_sample (`torch.Tensor` of the same shape): x_0 as predicted at this step, for previews.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class MezzotintScheduler(SchedulerMixin, ConfigMixin):
    """
    A variance-preserving noise schedule. Its steps are linear multistep ones in data prediction, with coefficients that
    are fitted to a checkpoint where there is a table for the number of steps and those of DPM-Solver++
    (<https://huggingface.co/papers/2211.01095>) elsewhere; or those of DDPM
    (<https://huggingface.co/papers/2006.11239>) and DDIM (<https://huggingface.co/papers/2010.02502>). Those of a
    distilled network (`consistency_steps`) are a consistency model's: x_0 is predicted, and noised anew to the next
    level (<https://huggingface.co/papers/2303.01469>, Algorithm 1). Timesteps may be fractional everywhere.

    **A table** of `fitted_schedules` holds, for n steps, all that sampling needs. With D[i] the data prediction made
    from the network's output at `taus[i]`, step i is

        x[i+1] = a[i] x[i] + c[i,0] D[i] + c[i,1] D[i-1] + ...

    | key | value |
    |---|---|
    | `num_inference_steps` | n |
    | `guidance_scale` | the scale of classifier-free guidance that it was fitted at; 1 is off |
    | `taus` | n timesteps given to the network, descending in `[0, num_train_timesteps - 1]` |
    | `sigmas` | n noise levels sigma_t / alpha_t of the states, descending |
    | `coefficients` | n rows `[a, c_0, c_1, ...]` of at most i + 2 numbers |
    | `correction` | what is added to x[n], *optional*: `shapes` and `weights` of `correction`, below |
    | `provenance` | what it was fitted on and how well it does; never read |

    A `correction` is a network of three convolutions that sees the whole run, x[n], x[n-1], D[n-1], D[n-2], ..., one
    after the other along the channels, with as many D as the longest row reads. `shapes` are those of its kernels and
    biases in turn, `weights` their numbers, one after the other, as float16 with the low byte first, in base64.

    Args:
        num_train_timesteps (`int`): how many noise levels the schedule has.
        beta_start (`float`): the first beta of `linear`, `scaled_linear` and `sigmoid`.
        beta_end (`float`): the last one.
        beta_schedule (`"linear"`, `"scaled_linear"`, `"squaredcos_cap_v2"` or `"sigmoid"`): the curve of the betas.
        trained_betas (list of `float`, *optional*): the betas themselves, each in (0, 1]; replaces the four above.
        prediction_type (`"epsilon"`, `"sample"` or `"v_prediction"`): what the network predicts: the noise, the clean
            sample, or the velocity `alpha_t eps - sigma_t x_0` (appendix D of <https://huggingface.co/papers/2202.00512>).
        variance_type (`"fixed_small"` or `"fixed_large"`, *optional*): makes `step` DDPM's, with one of the two fixed
            variances of DDPM section 3.2. `fixed_large` adds noise in the last step too unless the timesteps end in 0,
            as `leading` ones do.
        clip_sample (`bool`): whether predicted x_0 is clamped to `[-clip_sample_range, clip_sample_range]`.
        clip_sample_range (`float`): that range, in the units of the network's (normalised) data.
        thresholding (`bool`): whether predicted x_0 is thresholded dynamically, Imagen section 2.3
            (<https://huggingface.co/papers/2205.11487>); takes the place of `clip_sample`.
        dynamic_thresholding_ratio (`float`): the quantile of |x_0| that becomes the threshold.
        sample_max_value (`float`): the largest threshold.
        timestep_spacing (`"leading"`, `"linspace"` or `"trailing"`): how the timesteps of DDPM and DDIM are spread,
            Table 2 of <https://huggingface.co/papers/2305.08891>. `trailing` starts at pure noise for every number.
        steps_offset (`int`): added to `leading` timesteps.
        set_alpha_to_one (`bool`): whether the last DDIM step ends on clean data (`a = 1`) or on `a_0`.
        rescale_betas_zero_snr (`bool`): rescale the betas to zero terminal signal, Algorithm 1 of the same paper.
        solver_order (`1`, `2` or `3`): of the multistep steps without a table, over timesteps that are uniform in
            log sigma: 2 is DPM-Solver++(2M), 3 its third-order form. 1 is DDIM over `timestep_spacing`.
        fitted_schedules (list of `dict`, *optional*): tables as above, made by `mezzotint fit-scheduler`; at most one
            for each number of steps and guidance scale.
        consistency_steps (list of `int`, *optional*): the numbers of steps that the network is distilled to, by
            `mezzotint distill`; a pipeline draws in the first of them by default, and without guidance, which is in the
            network. Of any number, the noise levels are uniform in the angle arctan(sigma_t / alpha_t / shift).
        consistency_shift (`float`): that shift, above 0: the noise level of the second of two steps.

    Raises:
        ValueError: for a name that is not among the choices, betas outside (0, 1], `epsilon` with zero terminal signal
            (pure noise does not determine x_0), a table that is no such table, or `consistency_steps` beside tables or
            a `variance_type`.
    """

    # Stock schedulers that `from_config(scheduler.config)` turns this one into. diffusers would leave a class outside
    # its own namespace off the list, hence `_get_compatibles`.
    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    order = 1
    ignore_for_config = list(_PRIVATE)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: BetaSchedule = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: PredictionType = "v_prediction",
        variance_type: VarianceType | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: TimestepSpacing = "trailing",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        rescale_betas_zero_snr: bool = False,
        solver_order: int = 2,
        fitted_schedules: list[dict[str, Any]] | None = None,
        consistency_steps: list[int] | None = None,
        consistency_shift: float = 1.0,
    ):
        _check_choice("beta_schedule", beta_schedule, BetaSchedule)
        _check_choice("prediction_type", prediction_type, PredictionType)
        if variance_type is not None:
            _check_choice("variance_type", variance_type, VarianceType)
        _check_choice("timestep_spacing", timestep_spacing, TimestepSpacing)
        if solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order must be 1, 2 or 3: got {solver_order!r}")
        for name, least in {"num_train_timesteps": 1, "steps_offset": 0}.items():
            value = self.config[name]
            if not _is_number(value, numbers.Integral) or not least <= value <= 10**6:
                raise ValueError(f"{name} must be a whole number from {least} to 1000000: got {reprlib.repr(value)}")
        for name in ("beta_start", "beta_end", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"):
            if not _is_number(self.config[name]):
                raise ValueError(f"{name} must be a finite number: got {reprlib.repr(self.config[name])}")
        if not 0 <= dynamic_thresholding_ratio <= 1:
            raise ValueError(f"dynamic_thresholding_ratio must be in [0, 1]: got {dynamic_thresholding_ratio}")
        for name in ("clip_sample", "thresholding", "set_alpha_to_one", "rescale_betas_zero_snr"):
            if not isinstance(self.config[name], bool):
                raise ValueError(f"{name} must be true or false: got {reprlib.repr(self.config[name])}")

        # diffusers notes which arguments were left at their default and lets a scheduler made from this config put its
        # own default there (`prediction_type="epsilon"`, for one): not here. Stock schedulers know nothing of tables,
        # and would warn of them; under a private name they carry them along, and hand them back.
        if "_use_default_values" in self.config:
            self.register_to_config(_use_default_values=[])
        if fitted_schedules is not None:
            self.register_to_config(_fitted_schedules=fitted_schedules)
        if consistency_steps is not None:
            self.register_to_config(_consistency_steps=consistency_steps, _consistency_shift=consistency_shift)

        if trained_betas is not None:
            betas = torch.tensor(_floats("trained_betas", trained_betas), dtype=torch.float32)
            self.register_to_config(num_train_timesteps=len(betas))
        elif beta_schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
        elif beta_schedule == "scaled_linear":
            ends = (max(beta, 0) ** 0.5 for beta in (beta_start, beta_end))
            betas = torch.linspace(*ends, num_train_timesteps, dtype=torch.float32) ** 2
        elif beta_schedule == "squaredcos_cap_v2":
            betas = betas_for_alpha_bar(num_train_timesteps)
        else:  # sigmoid
            betas = torch.sigmoid(torch.linspace(-6, 6, num_train_timesteps)) * (beta_end - beta_start) + beta_start
        if rescale_betas_zero_snr:
            betas = rescale_zero_terminal_snr(betas)
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"betas must be in (0, 1]: got values from {betas.min().item():g} to {betas.max().item():g}"
            )
        if prediction_type == "epsilon" and bool((betas == 1).any()):
            raise ValueError(
                "a beta of 1 (zero terminal signal) needs a prediction_type that determines x_0 from pure noise: got "
                "'epsilon', possible are 'v_prediction' and 'sample'"
            )

        self.betas = betas
        self.alphas = 1.0 - betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]
        # log(sigma_t / alpha_t), between whose entries a fractional timestep is interpolated, as the stock solvers do
        # when they turn a sigma into a timestep. Zero signal stands at the smallest float there, below any other entry.
        a = self.alphas_cumprod.double().clamp(min=torch.finfo(torch.float32).tiny)
        self.log_sigmas = (0.5 * torch.log((1 - a) / a)).float()

        if fitted_schedules is not None and not isinstance(fitted_schedules, (list, tuple)):
            raise ValueError(f"fitted_schedules must be a list of tables: got {reprlib.repr(fitted_schedules)}")
        for table in fitted_schedules or ():
            _check_table(table, len(self))
        kinds = [(table["num_inference_steps"], table["guidance_scale"]) for table in fitted_schedules or ()]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"fitted_schedules may hold one table for each (steps, guidance scale): got {kinds}")
        if not _is_number(consistency_shift) or consistency_shift <= 0:
            raise ValueError(f"consistency_shift must be a number above 0: got {reprlib.repr(consistency_shift)}")
        if consistency_steps is not None:
            counts = consistency_steps if isinstance(consistency_steps, (list, tuple)) else []
            if not counts or not all(_is_number(n, numbers.Integral) and 1 <= n <= len(self) for n in counts):
                got = reprlib.repr(consistency_steps)
                raise ValueError(f"consistency_steps must be a list of numbers in [1, {len(self)}]: got {got}")
            if fitted_schedules or variance_type is not None:
                got = "fitted_schedules" if fitted_schedules else f"variance_type {variance_type!r}"
                raise ValueError(f"consistency_steps are all the steps that a distilled network takes: got {got} too")

        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.config.num_train_timesteps - 1, -1, -1)
        self.fitted_schedule: dict[str, Any] | None = None  # the table in use
        self._correction: list[torch.Tensor] | None = None  # its network's weights
        self._rows: list[tuple[float, ...]] | None = None  # of the multistep steps, None for DDPM's and DDIM's
        self._rows_for = (0, 0.0)  # the index of the first step and the eta that they were worked out for
        self._run: tuple[Any, ...] | None = None  # what they and the timesteps were worked out for
        self._begin_index: int | None = None
        self._step_index: int | None = None

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls, *super()._get_compatibles()]

    @classmethod
    def _dict_from_json_file(cls, json_file):
        try:
            config = super()._dict_from_json_file(json_file)
        except RecursionError:
            raise ValueError(f"{json_file} must hold a JSON object: got one that is nested too deeply") from None
        if not isinstance(config, dict):  # diffusers would fetch the repository of which a text is the name
            raise ValueError(f"{json_file} must hold a JSON object: got {reprlib.repr(config)}")
        name = config.get("_class_name")
        if not isinstance(name, str) or not name.endswith("Scheduler"):
            raise ValueError(f"{json_file} must be the configuration of a scheduler: got _class_name {name!r}")
        return config

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        # The other way round too: what a stock scheduler was left at (`prediction_type="epsilon"`) is what its network
        # was made for, and must not become our default, be it said in the config or only known from the class's name
        passed_over = [name for name in _PASSED_OVER if name in config_dict.get("_use_default_values", [])]
        config = _stock_defaults(config_dict.get("_class_name"), cls) | dict(config_dict)
        ours = {}
        for name, default in _PRIVATE.items():  # which files of before say under their own names
            ours[name] = kwargs.pop(name, config.pop(name, config.pop(f"_{name}", default)))
        config["_use_default_values"] = passed_over
        init_dict, unused, hidden = super().extract_init_dict(config, **kwargs)
        if "_use_default_values" in config_dict:
            hidden["_use_default_values"] = []  # of a config that was not read from a file, as `__init__` has it
        return init_dict | ours, unused, hidden

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # ------------------------------------------------------------------------------------------------ noise levels

    def _alpha_cumprod(self, timesteps, like: torch.Tensor) -> torch.Tensor:
        """a_t in float32 at each (fractional) timestep, on the device of `like` and shaped to broadcast with it."""
        t = torch.as_tensor(timesteps, device=like.device).reshape(-1).float()  # (B,) or (1,)
        self.alphas_cumprod = self.alphas_cumprod.to(like.device)
        self.log_sigmas = self.log_sigmas.to(like.device)
        low = t.floor().long()
        high = (low + 1).clamp(max=len(self) - 1)
        a = torch.where(
            t == low,  # on the grid exactly what stock schedulers hold
            self.alphas_cumprod[low],
            torch.sigmoid(-2 * torch.lerp(self.log_sigmas[low], self.log_sigmas[high], t - low)),
        )
        return a.reshape(-1, *[1] * (like.ndim - 1))  # (B, 1, ..., 1)

    def _alpha_sigma(self, timesteps, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha_t, sigma_t), shaped as `_alpha_cumprod`."""
        a = self._alpha_cumprod(timesteps, like)
        return a.sqrt(), (1 - a).sqrt()

    def timesteps_to_sigmas(self, timesteps: torch.Tensor) -> torch.Tensor:
        """sigma_t / alpha_t at each (fractional) timestep; infinite where the schedule has no signal left.

        Args:
            timesteps (`torch.Tensor` of any shape): each in `[0, num_train_timesteps - 1]`.
        """
        alpha, sigma = self._alpha_sigma(timesteps, like=timesteps.reshape(-1))
        return (sigma / alpha).reshape(timesteps.shape)

    def sigmas_to_timesteps(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The inverse of `timesteps_to_sigmas`: the fractional timestep of each sigma, the nearest end beyond the
        schedule's range. `sigmas` (`torch.Tensor` of any shape): each greater than 0."""
        grid = np.arange(len(self))
        t = np.interp(sigmas.detach().double().log().cpu().numpy(), self.log_sigmas.double().cpu().numpy(), grid)
        return torch.as_tensor(t, dtype=torch.float32, device=sigmas.device)

    # ----------------------------------------------------------------------------- forward process, target, inverse

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The forward process in one go, q(x_t | x_0), DDPM eq. 4.

        Args:
            original_samples (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): x_0, normalised data.
            noise (`torch.Tensor` of the same shape): standard normal.
            timesteps (`torch.Tensor` of shape `(batch_size,)`): each in `[0, num_train_timesteps - 1]`.
        """
        alpha, sigma = self._alpha_sigma(timesteps, like=original_samples)
        # x_t = alpha_t x_0 + sigma_t eps
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The velocity of clean `sample` and `noise`, progressive distillation appendix D; shapes as `add_noise`."""
        alpha, sigma = self._alpha_sigma(timesteps, like=sample)
        # v = alpha_t eps - sigma_t x_0
        return (alpha * noise - sigma * sample).to(sample.dtype)

    def get_target(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The target: what the network should predict at `add_noise(original_samples, noise, timesteps)`, by
        `prediction_type`."""
        if self.config.prediction_type == "epsilon":
            return noise
        if self.config.prediction_type == "sample":
            return original_samples
        return self.get_velocity(original_samples, noise, timesteps)

    def predict_original_sample(self, model_output: torch.Tensor, timesteps, sample: torch.Tensor) -> torch.Tensor:
        """x_0 as the network's output implies it: the inverse of `get_target` (for epsilon, DDPM eq. 15).

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): the network's prediction.
            timesteps (number, or `torch.Tensor` of shape `(batch_size,)`): of `sample`.
            sample (`torch.Tensor` of the same shape): x_t.
        """
        if self.config.prediction_type == "sample":
            return model_output
        alpha, sigma = self._alpha_sigma(timesteps, like=sample)
        if self.config.prediction_type == "epsilon":
            return (sample - sigma * model_output) / alpha  # x_0 = (x_t - sigma_t eps) / alpha_t
        return alpha * sample - sigma * model_output  # x_0 = alpha_t x_t - sigma_t v

    def predict_noise(self, model_output: torch.Tensor, timesteps, sample: torch.Tensor) -> torch.Tensor:
        """eps as the network's output implies it; arguments as `predict_original_sample`."""
        if self.config.prediction_type == "epsilon":
            return model_output
        alpha, sigma = self._alpha_sigma(timesteps, like=sample)
        if self.config.prediction_type == "sample":
            return (sample - alpha * model_output) / sigma  # eps = (x_t - alpha_t x_0) / sigma_t
        return alpha * model_output + sigma * sample  # eps = alpha_t v + sigma_t x_t

    def predict_score(self, model_output: torch.Tensor, timesteps, sample: torch.Tensor) -> torch.Tensor:
        """The score, grad log p_t(x_t): with it the same network drives Langevin dynamics, the reverse SDE and the
        probability-flow ODE of <https://huggingface.co/papers/2011.13456> (eq. 13; DDIM is a solver of that ODE)."""
        _, sigma = self._alpha_sigma(timesteps, like=sample)
        return -self.predict_noise(model_output, timesteps, sample) / sigma  # score = -eps / sigma_t

    # --------------------------------------------------------------------------------------------- reverse process

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[float] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        """Choose the timesteps of a sampling run, most noise first. Give a number, `timesteps` or `sigmas`.

        A number of steps with fitted tables takes the one of the nearest guidance scale (in ratio), which is then in
        `self.fitted_schedule`. Else the noise levels are uniform in log sigma from the most to the least of the
        schedule, but that the last step, half as long again, goes on from there to no noise at all. With solver_order 1
        or a `variance_type` the timesteps are spread as `timestep_spacing` says, with `consistency_steps` in an angle.

        Args:
            num_inference_steps (`int`): how many.
            device (`str` or `torch.device`): where `self.timesteps` goes.
            timesteps (list of `float`): the timesteps themselves, descending, each in `[0, num_train_timesteps - 1]`.
            sigmas (list of `float`): the noise levels sigma_t / alpha_t, descending; a closing 0 may stand or not.
            guidance_scale (`float`): that will be sampled at, for the choice of a table; 1 is off.

        Raises:
            ValueError: none or several were given, too many steps, or values out of range or order.
        """
        if sum(x is not None for x in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError("set_timesteps needs exactly one of num_inference_steps, timesteps and sigmas")
        if num_inference_steps is not None and not _is_number(num_inference_steps, numbers.Integral):
            raise ValueError(f"num_inference_steps must be a whole number: got {reprlib.repr(num_inference_steps)}")
        # the same number again, of the same config: everything is there
        run = (num_inference_steps, str(device), guidance_scale, self.config)
        if num_inference_steps is not None and self._run is not None and run == self._run[:-1]:
            self.timesteps = self._run[-1]
            self._begin_index = self._step_index = None
            return
        self._run = None

        last = len(self) - 1
        n = num_inference_steps
        self.fitted_schedule = self._correction = None
        consistency = self.consistency_steps is not None
        multistep = self.config.solver_order > 1 and self.config.variance_type is None and not consistency
        if sigmas is not None:
            sigmas = _floats("sigmas", sigmas)
            sigmas = sigmas[:-1] if sigmas[-1] == 0 else sigmas
            if not sigmas or not all(sigma > 0 for sigma in sigmas):
                raise ValueError(f"sigmas must be positive (a closing 0 aside): got {sigmas}")
            grid = self.sigmas_to_timesteps(torch.tensor(sigmas)).numpy()
        elif timesteps is not None:
            grid = np.asarray(_floats("timesteps", timesteps))
        elif not 1 <= n <= len(self):
            raise ValueError(f"num_inference_steps must be in [1, {len(self)}]: got {n}")
        elif self.config.variance_type is None and (tables := self.fitted(n)):
            distance = [abs(np.log(max(table["guidance_scale"], 1) / max(guidance_scale, 1))) for table in tables]
            self.fitted_schedule = tables[int(np.argmin(distance))]
            grid = np.asarray(self.fitted_schedule["taus"], dtype=float)
            if self.fitted_schedule.get("correction") is not None:
                self._correction = weights_of(self.fitted_schedule["correction"])
        elif consistency:
            # sigma_t / alpha_t = shift tan(angle), TrigFlow's time (<https://huggingface.co/papers/2410.11081>, section
            # 3) moved to where the first prediction leaves most to mend
            angles = np.arctan(np.exp(self.log_sigmas[-1].item()) / self.consistency_shift) * np.arange(n, 0, -1) / n
            levels = np.log(self.consistency_shift * np.tan(angles))
            grid = np.interp(levels, self.log_sigmas.double().cpu().numpy(), np.arange(len(self)))
            grid[0] = last
        elif multistep:
            # zero terminal signal has no finite log sigma: it comes first, before the largest one there is
            levels = self.log_sigmas.double().cpu().numpy()
            most = levels[-1] if self.betas[-1] < 1 else levels[-2]
            grid = np.interp(most - (most - levels[0]) / (n + 0.5) * np.arange(n), levels, np.arange(len(self)))
            grid[0] = last
        # Table 2 of "Common Diffusion Noise Schedules and Sample Steps are Flawed", as stock schedulers round it
        elif self.config.timestep_spacing == "linspace":
            grid = np.linspace(0, last, n).round()[::-1]
        elif self.config.timestep_spacing == "leading":
            grid = (np.arange(n) * (len(self) // n))[::-1] + self.config.steps_offset
        else:
            grid = np.round(np.arange(len(self), 0, -len(self) / n)[:n]) - 1  # rounding may make it n + 1
        if not (grid.max() <= last and grid.min() >= 0 and np.all(np.diff(grid) < 0)):
            raise ValueError(f"timesteps must descend within [0, {last}]: got {grid.tolist()}")

        self.num_inference_steps = len(grid)
        self._grid = grid
        whole = np.array_equal(grid, np.round(grid))
        self.timesteps = torch.as_tensor(grid.copy(), dtype=torch.int64 if whole else torch.float32).to(device)
        self._begin_index = self._step_index = None
        self._rows, self._rows_for = self._multistep_rows() if multistep or self.fitted_schedule else None, (0, 0.0)
        self._run = (*run, self.timesteps)

    @property
    def fitted_schedules(self) -> list[dict[str, Any]] | None:
        """All tables that the scheduler was made with, `None` without."""
        return self.config.get("_fitted_schedules")

    @property
    def consistency_steps(self) -> list[int] | None:
        """The numbers of steps that the network is distilled to, `None` where it is not."""
        return self.config.get("_consistency_steps")

    @property
    def consistency_shift(self) -> float:
        """The noise level of the second of two steps of a distilled network."""
        return self.config.get("_consistency_shift", 1.0)

    def fitted(self, num_inference_steps: int) -> list[dict[str, Any]]:
        """The tables of `fitted_schedules` for that many steps."""
        return [table for table in self.fitted_schedules or () if table["num_inference_steps"] == num_inference_steps]

    @property
    def sigmas(self) -> torch.Tensor:
        """The noise levels sigma_t / alpha_t of the states of the run, closed by 0; before `set_timesteps` those of all
        timesteps. A float32 tensor on the CPU."""
        if self.fitted_schedule is not None:
            levels = torch.tensor(self.fitted_schedule["sigmas"])
        else:
            levels = self.timesteps_to_sigmas(self.timesteps.cpu().float())
        return torch.cat([levels, levels.new_zeros(1)])

    @property
    def begin_index(self) -> int | None:
        """The index of the first step, where `set_begin_index` gave one."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The index of the next step, `None` before the first."""
        return self._step_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the index of the timestep at which the first step is taken, for a run that starts from a picture; without
        it the first step looks its timestep up. Call it after `set_timesteps`."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The index of the timestep in `self.timesteps` that is nearest to `timestep`."""
        return int(np.abs(self._grid - float(timestep)).argmin())

    def _multistep_rows(self, first: int = 0, eta: float = 0.0) -> list[tuple[float, ...]]:
        """For each step (alpha, sigma, std, a, c_0, c_1, ...): alpha_t and sigma_t at the network's time, the standard
        deviation of the noise that is added, and the step's coefficients: a table's, or those of (SDE-)DPM-Solver++ of
        order `solver_order` in lambda for steps from `first` on. Lower orders where there are too few predictions yet,
        and towards the end, where the last step goes to x_0 itself. A table knows runs from its start only; those from
        the middle take DPM-Solver++ over its timesteps."""
        n = len(self._grid)
        # in float64 throughout: levels may lie close together
        lambdas = -np.interp(self._grid, np.arange(len(self)), self.log_sigmas.double().cpu().numpy())
        alpha, sigma = 1 / np.sqrt(1 + np.exp(-2 * lambdas)), 1 / np.sqrt(1 + np.exp(2 * lambdas))
        if self.fitted_schedule is not None and first == 0:
            if eta > 0:
                raise ValueError(f"eta above 0 goes with steps without a table: {self._table_said()}")
            rows = self.fitted_schedule["coefficients"]
            return [(float(alpha[i]), float(sigma[i]), 0.0, *map(float, rows[i])) for i in range(n)]
        order = max(self.config.solver_order, 1 if self.fitted_schedule is None else 2)
        rows = []
        for i in range(n):
            if i == n - 1:
                row = (0.0, 0.0, 1.0)
            else:
                h = lambdas[i + 1] - lambdas[i]
                # The noise's share in x[i] shrinks by a factor more, to leave room for new noise: DDIM eq. 12 and 16.
                # All integrals are those of the flow over a step that is longer by its logarithm.
                shrink = np.sqrt(1 - eta**2 + eta**2 * np.exp(-2 * h))
                std = eta * sigma[i + 1] * np.sqrt(-np.expm1(-2 * h))
                length = h - np.log(shrink)
                decay = np.expm1(-length)  # e^-h - 1 of the flow
                c = [-alpha[i + 1] * decay, 0.0, 0.0]  # alpha_t (1 - e^-h) D[i], eq. 9 at order 1
                use = min(order, i - first + 1, n - i)
                if use > 1 and i > first:
                    r_0 = (lambdas[i] - lambdas[i - 1]) / h
                    first_difference = np.array([1, -1, 0]) / r_0  # of (D[i], D[i-1], D[i-2]), over lambda / h
                    if use == 2:  # Algorithm 2: D + (1 / 2r) (D[i] - D[i-1])
                        c = c + -alpha[i + 1] * decay / 2 * first_difference
                    else:  # the third-order form: two more integrals against the divided differences of D
                        r_1 = (lambdas[i - 1] - lambdas[i - 2]) / h
                        older = np.array([0, 1, -1]) / r_1
                        second_difference = (first_difference - older) / (r_0 + r_1)
                        slope = first_difference + r_0 * second_difference
                        c = c + alpha[i + 1] * (decay / length + 1) * slope
                        c = c - alpha[i + 1] * ((decay + length) / length**2 - 0.5) * second_difference
                row = (std, sigma[i + 1] / sigma[i] * shrink, *c[:use])
            rows.append((float(alpha[i]), float(sigma[i]), *map(float, row)))
        return rows

    def _table_said(self) -> str:
        return f"got the fitted schedule of {self.num_inference_steps} steps; another number or timesteps have none"

    def previous_timestep(self, timestep: float | torch.Tensor) -> float:
        """The timestep that a step from `timestep` leads to; negative is clean data. One that is not on the grid of
        `set_timesteps` goes down by the grid's stride, and by 1 where no grid was set."""
        t = float(timestep)
        if self.num_inference_steps is None:
            return t - 1
        index = np.abs(self._grid - t).argmin()
        if abs(self._grid[index] - t) < 1e-3:
            return float(self._grid[index + 1]) if index + 1 < len(self._grid) else -1.0
        return t - len(self) // self.num_inference_steps

    def scale_model_input(self, sample: torch.Tensor, timestep: float | None = None) -> torch.Tensor:
        """`sample` as it is: a variance-preserving sample already has unit variance at every timestep."""
        return sample

    def guide(self, model_output: torch.Tensor, timesteps, gradient: torch.Tensor) -> torch.Tensor:
        """The network's output with `gradient` added to the score it implies: classifier guidance,
        <https://huggingface.co/papers/2105.05233>, Algorithm 2, with `gradient` = s grad log p(y | x_t).

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): the network's prediction.
            timesteps (number, or `torch.Tensor` of shape `(batch_size,)`): of the sample.
            gradient (`torch.Tensor` of the same shape): with respect to the sample.
        """
        alpha, sigma = self._alpha_sigma(timesteps, like=model_output)
        if self.config.prediction_type == "epsilon":
            return model_output - sigma * gradient  # eps' = eps - sigma_t g
        ratio = torch.where(alpha > 0, sigma / alpha, 0)  # noise alone says nothing of the class
        if self.config.prediction_type == "sample":
            return model_output + sigma * ratio * gradient  # x_0' = x_0 + sigma_t^2 / alpha_t g
        return model_output - ratio * gradient  # v' = v - sigma_t / alpha_t g

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> MezzotintSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step of the reverse process, from `timestep` to `previous_timestep(timestep)`.

        Multistep steps remember the predictions of the steps before, so they are taken in the order of the timesteps.
        Those of DDPM and DDIM (`solver_order` 1 without a table, or a `variance_type`) remember nothing.

        With `eta` above 0, steps of DPM-Solver++ are SDE-DPM-Solver++'s, with h = lambda' - lambda and new noise z:

            x' = sigma' / sigma k x + alpha' (1 - k e^-h) D + ... + eta sigma' sqrt(1 - e^-2h) z
            k = sqrt(1 - eta^2 (1 - e^-2h))

        It begins with the step of DDIM at that `eta`. 1 is the reverse SDE (<https://huggingface.co/papers/2211.01095>,
        appendix A; <https://huggingface.co/papers/2011.13456>, eq. 6), between 0 and 1 are those that share its
        distributions, with eta^2 of its noise. `solver_order` 1 with 1 is DDPM's ancestral sampling, which becomes
        Euler-Maruyama as steps shrink (2011.13456, appendix E).

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): the network at `sample`.
            timestep (`float`): of `sample`; one for the whole batch.
            sample (`torch.Tensor` of the same shape): x_t.
            eta (`float`): noise that is added, of DDIM and of the multistep steps without a table (there at most 1): 0
                is none, 1 as much as DDPM's. DDPM's own steps take no notice of it.
            use_clipped_model_output (`bool`): for DDIM: derive the noise again from the clipped x_0.
            generator (`torch.Generator`, or a list of one for each sample, *optional*): for the noise that is added.
            variance_noise (`torch.Tensor` of the same shape, *optional*): that noise itself.
            return_dict (`bool`): whether an output object or the tuple `(prev_sample, pred_original_sample)` comes.

        Raises:
            ValueError: for a generator beside noise, and for an `eta` that the steps have no place for: any above 0 in
                those of a table from its start and of a distilled network, above 1 in multistep ones.
        """
        if variance_noise is not None and generator is not None:
            raise ValueError("step takes a generator or variance_noise, not both")
        if eta != 0 and self.consistency_steps is not None:
            raise ValueError(f"eta must be 0 with consistency_steps, between which x_0 is noised anew: got {eta}")
        if self._rows is not None:
            if not 0 <= eta <= 1:
                raise ValueError(f"eta must be in [0, 1] for multistep steps: got {eta}")
            prev_sample, x_0 = self._multistep(model_output, timestep, sample, eta, generator, variance_noise)
            if not return_dict:
                return prev_sample, x_0
            return MezzotintSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)
        t = float(timestep)
        prev_t = self.previous_timestep(t)
        a = self._alpha_cumprod(t, like=sample)
        consistency = self.consistency_steps is not None
        if prev_t >= 0:
            a_prev = self._alpha_cumprod(prev_t, like=sample)
        elif self.config.variance_type is None and not consistency:
            a_prev = self.final_alpha_cumprod.to(a)
        else:
            a_prev = torch.ones_like(a)

        x_0 = self.predict_original_sample(model_output, t, sample)
        eps = self.predict_noise(model_output, t, sample)
        if self.config.thresholding or self.config.clip_sample:
            x_0 = self._clip(x_0)

        # written in a, not in alpha**2: at little noise 1 - a and beta are differences of nearly equal numbers
        beta = 1 - a / a_prev  # of this step, which may span many of the schedule's
        variance = (1 - a_prev) / (1 - a) * beta
        if self.config.variance_type is not None:
            # DDPM eq. 7: the posterior mean of x_{t-1} given x_t and x_0; the two fixed variances of section 3.2
            mean = a_prev.sqrt() * beta / (1 - a) * x_0 + (a / a_prev).sqrt() * (1 - a_prev) / (1 - a) * sample
            std = (variance.clamp(min=1e-20) if self.config.variance_type == "fixed_small" else beta).sqrt()
            add_noise = t > 0
        elif consistency:
            mean, std = a_prev.sqrt() * x_0, (1 - a_prev).sqrt()  # x_0 noised anew, all the way
            add_noise = prev_t >= 0
        else:
            if use_clipped_model_output:
                eps = (sample - a.sqrt() * x_0) / (1 - a).sqrt()
            # DDIM eq. 16, then eq. 12, where rounding may not make the root's argument negative
            std = eta * variance.sqrt()
            mean = a_prev.sqrt() * x_0 + (1 - a_prev - std**2).clamp(min=0).sqrt() * eps
            add_noise = eta > 0
        if add_noise:
            mean = mean + std * self._noise(model_output, generator, variance_noise)

        prev_sample, x_0 = mean.to(sample.dtype), x_0.to(sample.dtype)
        if not return_dict:
            return prev_sample, x_0
        return MezzotintSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def corrector_step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        snr: float = 0.16,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One step of Langevin dynamics at the noise level of `timestep`, which draws the sample nearer to the
        distribution there: the corrector of <https://huggingface.co/papers/2011.13456>, Algorithm 5,

            x_t <- x_t + epsilon s + sqrt(2 epsilon) z,    epsilon = 2 alphas[t] (snr |z| / |s|)^2

        with the score s = grad log p_t(x_t) of the network's output and noise z, D numbers each. The norms are
        |z|^2 = D and |s|^2 = D / sigma_t^2: the first is the mean, the second the most that its mean can be. (From the
        sample's own norms the step would be longer where the score is small; such dynamics end at p_t |s|^2 in place of
        p_t. From a batch's, a sample would depend on others.) Of Gaussian data no variance then ends more than
        1 / (1 - snr^2) times too large. What `step` remembers stays as it is.

        Args:
            model_output (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): the network at `sample`.
            timestep (`float`): of `sample`; one for the whole batch.
            sample (`torch.Tensor` of the same shape): x_t.
            snr (`float`): the ratio of the lengths of the two terms, signal to noise, but for alphas[t]^(1/2).
            generator (`torch.Generator`, or a list of one for each sample, *optional*): for the noise.
            noise (`torch.Tensor` of the same shape, *optional*): that noise itself.

        Raises:
            ValueError: for a generator beside noise, in a run of a table from its start (its states are at other noise
                levels than its timesteps say), and for a distilled network, which does not predict the score.
        """
        if noise is not None and generator is not None:
            raise ValueError("corrector_step takes a generator or noise, not both")
        if self.consistency_steps is not None:
            raise ValueError("a corrector needs a network that predicts the score: got one with consistency_steps")
        if self.fitted_schedule is not None and self._rows_for[0] == 0:
            raise ValueError(f"a corrector goes with steps without a table: {self._table_said()}")
        wide = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        score = self.predict_score(model_output.to(wide.dtype), timestep, wide)
        _, sigma = self._alpha_sigma(timestep, like=wide)
        epsilon = 2 * self.alphas.to(sigma)[int(timestep)] * (snr * sigma) ** 2
        return (wide + epsilon * score + (2 * epsilon).sqrt() * self._noise(wide, generator, noise)).to(sample.dtype)

    def _multistep(self, model_output: torch.Tensor, timestep, sample: torch.Tensor, eta, generator, variance_noise):
        """(x[i+1], D[i]) with x[i+1] = a x[i] + sum_j c_j D[i-j] + std z: few operations, with numbers that were worked
        out before, and no wait for the device."""
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
            self._predictions: list[torch.Tensor] = []  # D[i], D[i-1], ...
            self._first_index = self._step_index
        if self._rows_for != (self._first_index, eta):
            self._rows, self._rows_for = self._multistep_rows(self._first_index, eta), (self._first_index, eta)
        reads = max(map(len, self._rows)) - 4  # predictions that a step reads, at most
        if self._step_index >= len(self._rows):
            raise ValueError(f"all {len(self._rows)} steps have been taken: call set_timesteps before another run")
        alpha, sigma, std, a, *c = self._rows[self._step_index]
        self._step_index += 1

        wide = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
        if self.config.prediction_type == "sample":
            x_0 = model_output.to(wide.dtype, copy=True)  # the next call of a captured graph writes over its output
        elif self.config.prediction_type == "epsilon":
            x_0 = torch.sub(wide, model_output, alpha=sigma).div_(alpha)  # (x_t - sigma_t eps) / alpha_t
        else:
            x_0 = torch.mul(wide, alpha).sub_(model_output, alpha=sigma)  # alpha_t x_t - sigma_t v
        if self.config.thresholding or self.config.clip_sample:
            x_0 = self._clip(x_0)

        self._predictions = [x_0, *self._predictions[: reads - 1]]
        prev_sample = torch.mul(wide, a)
        for weight, prediction in zip(c, self._predictions, strict=False):
            prev_sample.add_(prediction, alpha=weight)
        if std > 0:
            prev_sample.add_(self._noise(wide, generator, variance_noise), alpha=std)
        if self._correction is not None and self._first_index == 0 and self._step_index == len(self._rows):
            self._correction = [weight.to(wide) for weight in self._correction]
            prev_sample.add_(correction(self._correction, torch.cat([prev_sample, wide, *self._predictions], 1)))
        return prev_sample.to(sample.dtype), x_0.to(sample.dtype)

    @staticmethod
    def _noise(like: torch.Tensor, generator, noise: torch.Tensor | None = None) -> torch.Tensor:
        """`noise` where it is given, else standard normal noise of the shape, device and dtype of `like`."""
        if noise is None:
            return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        return noise.to(like)

    def _clip(self, sample: torch.Tensor) -> torch.Tensor:
        """Predicted x_0 within `clip_sample_range`; or dynamic thresholding, Imagen section 2.3: clamp each sample to
        its own quantile of |x_0| and divide by it."""
        if not self.config.thresholding:
            return sample.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        flat = sample.flatten(1).float()  # (B, C*...)
        s = torch.quantile(flat.abs(), self.config.dynamic_thresholding_ratio, dim=1, keepdim=True)  # (B, 1)
        s = s.clamp(min=1, max=self.config.sample_max_value)
        return (flat.clamp(-s, s) / s).reshape(sample.shape).to(sample.dtype)


def correction(weights: list[torch.Tensor], run: torch.Tensor) -> torch.Tensor:
    """Difference that a table's `correction` adds to the end of a run of fitted steps: the output of a small network.

        h = silu(k_0 * run + b_0),    h' = h + silu(k_1 * h + b_1),    k_2 * h' + b_2

    Args:
        weights (list of `torch.Tensor`): k_0, b_0, k_1, b_1, k_2, b_2, kernels and biases of convolutions.
        run (`torch.Tensor` of shape `(batch_size, (2 + predictions) * channels, *spatial)`): x[n], x[n-1], D[n-1], ...

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, *spatial)`.

    Raises:
        ValueError: for samples of another number of channels or of axes than the weights were made for.
    """
    k_0, b_0, k_1, b_1, k_2, b_2 = weights
    if run.ndim != k_0.ndim or run.shape[1] != k_0.shape[1]:
        made_for = f"{k_0.ndim - 2} axes and {k_2.shape[0]} channels"
        got = f"{run.ndim - 2} and {run.shape[1] * k_2.shape[0] / k_0.shape[1]:g}"
        raise ValueError(f"the fitted schedule in use corrects samples of {made_for}: got {got}")
    convolution = (F.conv1d, F.conv2d, F.conv3d)[run.ndim - 3]
    hidden = F.silu(convolution(run, k_0, b_0, padding="same"))
    hidden = hidden + F.silu(convolution(hidden, k_1, b_1, padding="same"))
    return convolution(hidden, k_2, b_2, padding="same")


def weights_of(written: dict[str, Any]) -> list[torch.Tensor]:
    """The weights that a table's `correction` holds, in float32."""
    values = np.frombuffer(base64.b64decode(written["weights"], validate=True), dtype="<f2").astype(np.float32)
    sizes = [math.prod(shape) for shape in written["shapes"]]
    parts = torch.from_numpy(values).split(sizes)
    return [part.reshape(shape) for part, shape in zip(parts, written["shapes"], strict=True)]


def _check_choice(name: str, value: str, choices) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}: got {value!r}")


def _is_number(value: Any, kind: type = numbers.Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 2**63  # what tensors take; no NaN


def _floats(name: str, values: Any) -> list[float]:
    """The numbers of an argument. Raises `ValueError` in one line where there are none, or something else."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        found = []
    if not found or isinstance(values, str):
        raise ValueError(f"{name} must be a list of numbers: got {reprlib.repr(values)}")
    return found


def _stock_defaults(class_name: Any, cls: type) -> dict[str, Any]:
    """The arguments of `cls` as diffusers' scheduler of that name is left at; none for a name that is not of its."""
    stock = getattr(diffusers, class_name, None) if isinstance(class_name, str) else None
    if not isinstance(stock, type):
        return {}
    arguments, ours = (inspect.signature(kind.__init__).parameters for kind in (stock, cls))
    found = {name: x.default for name, x in arguments.items() if name in ours and x.default is not x.empty}
    return {"prediction_type": "epsilon"} | found  # said of those too that lack a package and show no arguments


def _check_table(table: dict[str, Any], num_train_timesteps: int) -> None:
    """Raises `ValueError` in one line for a value that is not a table of `fitted_schedules`."""
    needed = ("num_inference_steps", "guidance_scale", "taus", "sigmas", "coefficients")
    if not isinstance(table, dict) or (missing := [name for name in needed if name not in table]):
        got = f"none of {', '.join(missing)}" if isinstance(table, dict) else reprlib.repr(table)
        raise ValueError(f"a fitted schedule must hold {', '.join(needed)}: got {got}")
    n, taus, sigmas, rows = (table[name] for name in ("num_inference_steps", "taus", "sigmas", "coefficients"))
    where = f"the fitted schedule of {reprlib.repr(n)} steps"
    if not all(isinstance(x, (list, tuple)) for x in (taus, sigmas, rows)) or not all(
        isinstance(row, (list, tuple)) for row in rows
    ):
        raise ValueError(f"{where} must hold lists of numbers: got {reprlib.repr(table)}")
    lengths = {"taus": len(taus), "sigmas": len(sigmas), "coefficients": len(rows)}
    if not _is_number(n, numbers.Integral) or set(lengths.values()) != {n}:
        raise ValueError(f"{where} must hold {reprlib.repr(n)} of each: got {lengths}")
    if not all(2 <= len(row) <= i + 2 for i, row in enumerate(rows)):
        raise ValueError(f"row i of {where} must hold 2 to i + 2 coefficients: got {[len(row) for row in rows]}")
    if not all(map(_is_number, [table["guidance_scale"], *taus, *sigmas, *(c for row in rows for c in row)])):
        raise ValueError(f"{where} must hold finite numbers: got {table}")
    if not all(a > b for levels in (taus, sigmas) for a, b in pairwise(levels)):
        raise ValueError(f"taus and sigmas of {where} must descend: got {list(taus)} and {list(sigmas)}")
    if taus[0] > num_train_timesteps - 1 or taus[-1] < 0 or sigmas[-1] <= 0:
        raise ValueError(
            f"taus of {where} must be in [0, {num_train_timesteps - 1}] and sigmas above 0: got {list(taus)} and "
            f"{list(sigmas)}"
        )
    if table.get("correction") is not None:
        _check_correction(table["correction"], where, max(map(len, rows)) - 1)


def _check_correction(written: Any, where: str, predictions: int) -> None:
    """Raises `ValueError` in one line for a value that is not the `correction` of a table whose longest row reads so
    many predictions."""
    try:
        shapes = [tuple(shape) for shape in written["shapes"]]
        k_0, b_0, k_1, b_1, k_2, b_2 = shapes
        (width, seen, *places), (channels, *_) = k_0, k_2
        fits = all(_is_number(size, numbers.Integral) and size > 0 for shape in shapes for size in shape)
        fits = fits and 1 <= len(places) <= 3 and seen == (2 + predictions) * channels
        fits = fits and (k_1[:2], k_2[1]) == ((width, width), width)
        fits = fits and len(k_0) == len(k_1) == len(k_2) and (b_0, b_1, b_2) == ((width,), (width,), (channels,))
        fits = fits and all(bool(weight.isfinite().all()) for weight in weights_of(written))
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"correction of {where} must hold shapes, of three kernels and their biases in turn, the first of which "
            f"reads {2 + predictions} samples, and weights, as many finite float16 numbers in base64: got "
            f"{reprlib.repr(written)}"
        )
