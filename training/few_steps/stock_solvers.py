# Copyright 2026 The Mezzotint authors. Licensed under the Apache License, Version 2.0.
"""Every deterministic solver of diffusers, in each of its useful settings, on a network of ours.

The one list of what a fitted schedule is held against: by the fitter before it keeps a table, and by
`benchmarks/few_steps.py`. `settings` are all of them, `common_settings` the tenth that comes out best. `solvers_at`
gives those that make a wanted number of network calls, and says of each of the others why it isn't among them;
`sample` is the plain loop of every diffusers pipeline.
"""

import inspect
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x_t, timestep) to what `prediction_type` says

# Why the other schedulers of diffusers are not in the list
_RANDOM = "adds noise in its steps"
_FLOW = "integrates a straight flow, not a variance-preserving schedule"
_TOKENS = "works on tokens, not on continuous data"
_SAME = "is DDIM under another name or in the other direction"
EXCLUDED = {
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler", "DDPMWuerstchenScheduler", "UnCLIPScheduler"), _RANDOM),
    **dict.fromkeys(
        ("EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "RePaintScheduler"), _RANDOM
    ),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler", "SCMScheduler", "CMStochasticIterativeScheduler"), _RANDOM),
    **dict.fromkeys(("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler", "CogVideoXDPMScheduler"), _RANDOM),
    **dict.fromkeys(("KarrasVeScheduler", "ScoreSdeVeScheduler", "LTXEulerAncestralRFScheduler"), _RANDOM),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "HeliosScheduler"), _FLOW),
    **dict.fromkeys(("FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "HeliosDMDScheduler"), _FLOW),
    **dict.fromkeys(("MiniMaxH3Scheduler", "PiflowScheduler", "RFD4ProteinaScheduler"), _FLOW),
    **dict.fromkeys(("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler"), _TOKENS),
    **dict.fromkeys(("EntropyBoundScheduler", "VQDiffusionScheduler"), _TOKENS),
    **dict.fromkeys(("DDIMParallelScheduler", "DDIMInverseScheduler", "CogVideoXDDIMScheduler"), _SAME),
    "DPMSolverMultistepInverseScheduler": "goes from data to noise",
}

# Schedulers whose timesteps are functions of sigma of their own, and those functions' inverses. No diffusers pipeline
# could give them to our network; so that they are in the list nevertheless, their timesteps are translated.
_SIGMA_OF_TIMESTEP: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "EDMEulerScheduler": lambda t: torch.exp(4 * t),  # EDM Table 1, c_noise = ln(sigma) / 4
    "EDMDPMSolverMultistepScheduler": lambda t: torch.exp(4 * t),
    "IPNDMScheduler": lambda t: torch.tan(t.double() * torch.pi / 2),  # an angle
}


@dataclass(frozen=True)
class Setting:
    """A scheduler of diffusers by the name of its class, and the arguments in which it differs from the defaults and
    from the noise schedule that it is made for."""

    scheduler_class: str
    overrides: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        said = []
        for name, value in self.overrides:
            if name == "tau_func" or value is False and name.startswith("use_"):
                continue
            if value is True and name.startswith("use_"):
                said.append(name.removeprefix("use_").split("_")[0])
            else:
                said.append(value if isinstance(value, str) and name != "final_sigmas_type" else f"{name}={value}")
        return " ".join([self.scheduler_class.removesuffix("Scheduler"), *said])

    def scheduler(self, base: SchedulerMixin) -> SchedulerMixin:
        """A new scheduler of this setting with the noise schedule and the `prediction_type` of `base`, as
        `from_config(base.config, **overrides)` makes it.

        Raises:
            ValueError: where the class can't hold that noise schedule or prediction type. diffusers raises its own.
        """
        cls = getattr(diffusers, self.scheduler_class)
        known = inspect.signature(cls.__init__).parameters
        if base.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
            raise ValueError(f"{self.scheduler_class} has no rescale_betas_zero_snr")
        # what another solver of `base` is set to (its order, its tables) is no business of this one
        config = {k: v for k, v in base.config.items() if k in known and k != "solver_order" and v is not None}
        if "sigma_data" in known:  # with unit-variance data EDM's preconditioning is v-prediction
            if base.config.prediction_type != "v_prediction":
                raise ValueError(f"{self.scheduler_class} needs v_prediction: got {base.config.prediction_type}")
            low, high = base.timesteps_to_sigmas(torch.tensor([0.0, len(base) - 1.0])).tolist()
            config |= {"sigma_min": low, "sigma_max": high, "sigma_data": 1.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # 'dpmsolver' is deprecated, and works
            scheduler = cls.from_config(config, **dict(self.overrides))
        if self.scheduler_class in _SIGMA_OF_TIMESTEP:
            _translate(scheduler, base, _SIGMA_OF_TIMESTEP[self.scheduler_class])
        return scheduler


def _translate(scheduler: SchedulerMixin, base: SchedulerMixin, sigma_of: Callable) -> None:
    """Let `set_timesteps` give the timesteps of `base` for the same noise levels."""
    own = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device=None) -> None:
        own(num_inference_steps, device=device)
        scheduler.timesteps = base.sigmas_to_timesteps(sigma_of(scheduler.timesteps))
        scheduler.set_begin_index(0)  # from here on steps are counted, not looked up by their timestep

    scheduler.set_timesteps = set_timesteps


def _no_noise(_) -> int:
    """tau of SA-Solver for the probability-flow ODE."""
    return 0


def _axis(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


_SPACINGS = _axis("timestep_spacing", "leading", "linspace", "trailing")
_KARRAS, _EXPONENTIAL, _BETA, _LU = (
    {f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
)
_GRIDS = [*_SPACINGS, _KARRAS, _EXPONENTIAL, _BETA]
# Of these four classes the grids end where the spaced timesteps do
_BOTH = [spacing | grid for spacing in _SPACINGS for grid in ({}, _KARRAS, _EXPONENTIAL, _BETA)]
_FINAL = _axis("final_sigmas_type", "zero", "sigma_min")
_SIGMA_MIN = _axis("sigma_min", 0.03, 0.1, 0.2)  # grids that end earlier
_HIGH_ORDERS = _axis("solver_order", 2, 3)  # the first order of each is DDIM's or Euler's step

# Each entry: a class, and axes whose product are its settings
_PRODUCTS: list[tuple[Any, ...]] = [
    ("DDIMScheduler", _SPACINGS, _axis("set_alpha_to_one", True, False)),
    ("PNDMScheduler", _SPACINGS, _axis("skip_prk_steps", True, False), _axis("set_alpha_to_one", True, False)),
    ("IPNDMScheduler",),
    ("DEISMultistepScheduler", _HIGH_ORDERS, _GRIDS),
    (
        "DPMSolverMultistepScheduler",
        _axis("algorithm_type", "dpmsolver++"),
        [{"solver_order": 2}, {"solver_order": 2, "solver_type": "heun"}, {"solver_order": 3}],
        [*_GRIDS, _LU],
        [*_FINAL, {"euler_at_final": True}, {"lower_order_final": False}],
    ),
    (
        "DPMSolverMultistepScheduler",
        _axis("algorithm_type", "dpmsolver"),  # which diffusers lets end on sigma_min only
        _HIGH_ORDERS,
        [*_GRIDS, _LU],
        _axis("final_sigmas_type", "sigma_min"),
    ),
    (
        "DPMSolverSinglestepScheduler",
        [{"solver_order": 2}, {"solver_order": 2, "solver_type": "heun"}, {"solver_order": 3}],
        [{}, _KARRAS, _EXPONENTIAL, _BETA],
        [final | {"lower_order_final": True} for final in _FINAL],
    ),
    (
        "DPMSolverSinglestepScheduler",
        _axis("algorithm_type", "dpmsolver"),
        _HIGH_ORDERS,
        [{}, _KARRAS, _EXPONENTIAL, _BETA],
        [{"final_sigmas_type": "sigma_min", "lower_order_final": True}],
    ),
    ("UniPCMultistepScheduler", _axis("solver_type", "bh2"), _HIGH_ORDERS, _GRIDS, _FINAL),
    ("UniPCMultistepScheduler", _HIGH_ORDERS, [_KARRAS, _EXPONENTIAL], _SIGMA_MIN),
    (
        "UniPCMultistepScheduler",
        [{"solver_type": "bh1"}, {"predict_x0": False}],  # which give no numbers when they end on zero
        _HIGH_ORDERS,
        _GRIDS,
        _axis("final_sigmas_type", "sigma_min"),
    ),
    ("HeunDiscreteScheduler", _BOTH),
    ("KDPM2DiscreteScheduler", _BOTH),
    ("EulerDiscreteScheduler", _BOTH, _FINAL),
    ("EulerDiscreteScheduler", _axis("interpolation_type", "log_linear"), _SPACINGS),
    ("EulerDiscreteScheduler", [_KARRAS, _EXPONENTIAL], _SIGMA_MIN),
    ("LMSDiscreteScheduler", _BOTH),
    (
        "SASolverScheduler",
        _axis("tau_func", _no_noise),
        [{"predictor_order": p, "corrector_order": c} for p, c in ((2, 2), (3, 3), (3, 4))],
        _GRIDS,
    ),
    ("EDMEulerScheduler", _axis("sigma_schedule", "karras", "exponential"), _FINAL),
    (
        "EDMDPMSolverMultistepScheduler",
        _HIGH_ORDERS,
        _axis("sigma_schedule", "karras", "exponential"),
        [*_FINAL, *_SIGMA_MIN],
    ),
]


@cache
def settings() -> tuple[Setting, ...]:
    """All settings of all solvers, each once."""
    made = []
    for scheduler_class, *axes in _PRODUCTS:
        for parts in itertools.product(*axes):
            made.append(Setting(scheduler_class, tuple(item for part in parts for item in part.items())))
    return tuple(dict.fromkeys(made))


# What people take, and what came first or near it for some denoiser at some count when all were tried
_COMMON = """
DDIM trailing set_alpha_to_one=True
DDIM leading set_alpha_to_one=True
DEISMultistep solver_order=3 karras
DEISMultistep solver_order=3 trailing
DPMSolverMultistep dpmsolver++ solver_order=2 karras final_sigmas_type=zero
DPMSolverMultistep dpmsolver++ solver_order=2 lu final_sigmas_type=zero
DPMSolverMultistep dpmsolver++ solver_order=2 trailing final_sigmas_type=zero
DPMSolverMultistep dpmsolver++ solver_order=3 trailing final_sigmas_type=zero
DPMSolverMultistep dpmsolver++ solver_order=3 leading lower_order_final=False
DPMSolverMultistep dpmsolver++ solver_order=3 leading final_sigmas_type=sigma_min
DPMSolverSinglestep solver_order=2 heun exponential final_sigmas_type=sigma_min lower_order_final=True
DPMSolverSinglestep solver_order=2 final_sigmas_type=sigma_min lower_order_final=True
UniPCMultistep bh2 solver_order=2 trailing final_sigmas_type=zero
UniPCMultistep bh2 solver_order=2 karras final_sigmas_type=zero
UniPCMultistep bh2 solver_order=2 exponential final_sigmas_type=zero
UniPCMultistep bh2 solver_order=3 trailing final_sigmas_type=zero
UniPCMultistep bh2 solver_order=3 exponential final_sigmas_type=zero
UniPCMultistep solver_order=2 exponential sigma_min=0.03
UniPCMultistep solver_order=2 exponential sigma_min=0.1
UniPCMultistep solver_order=2 exponential sigma_min=0.2
UniPCMultistep solver_order=3 exponential sigma_min=0.03
UniPCMultistep bh1 solver_order=2 leading final_sigmas_type=sigma_min
UniPCMultistep predict_x0=False solver_order=2 leading final_sigmas_type=sigma_min
UniPCMultistep predict_x0=False solver_order=3 exponential final_sigmas_type=sigma_min
SASolver predictor_order=2 corrector_order=2 leading
SASolver predictor_order=3 corrector_order=3 leading
EDMDPMSolverMultistep solver_order=2 exponential sigma_min=0.1
EDMDPMSolverMultistep solver_order=2 exponential sigma_min=0.2
EDMDPMSolverMultistep solver_order=3 exponential sigma_min=0.1
HeunDiscrete linspace karras
EulerDiscrete linspace karras final_sigmas_type=zero
LMSDiscrete trailing
"""


@cache
def common_settings() -> tuple[Setting, ...]:
    """About thirty settings: a tenth of the work, and seldom far from the best of all."""
    named = {str(setting): setting for setting in settings()}
    return tuple(named[name] for name in _COMMON.strip().splitlines())


def sample(
    scheduler: SchedulerMixin, network: Network, noise: torch.Tensor, num_inference_steps: int, **set_timesteps_kwargs
) -> tuple[torch.Tensor, int]:
    """Solve from noise to data by the loop of every diffusers pipeline.

    Args:
        scheduler (`SchedulerMixin`): any, stock or ours.
        network (callable): of the scaled input and a timestep (0-d tensor).
        noise (`torch.Tensor` of shape `(batch_size, channels, *spatial)`): standard normal.
        num_inference_steps (`int`): given to `set_timesteps`, with `set_timesteps_kwargs`.

    Returns:
        x_0 of the noise's shape, and how many times the network was called.
    """
    scheduler.set_timesteps(num_inference_steps, device=noise.device, **set_timesteps_kwargs)
    x, calls = noise * scheduler.init_noise_sigma, 0
    for t in scheduler.timesteps:
        model_output = network(scheduler.scale_model_input(x, t), t)
        calls += 1
        x = scheduler.step(model_output, t, x, return_dict=False)[0]
    return x, calls


@dataclass
class Solvers:
    """The settings that call the network a given number of times.

    Args:
        steps: `num_inference_steps` of each.
        same: those that do exactly what one of these does at this count, and which.
        left_out: why each of the rest can't be had.
    """

    steps: dict[Setting, int] = field(default_factory=dict)
    same: dict[Setting, Setting] = field(default_factory=dict)
    left_out: dict[Setting, str] = field(default_factory=dict)


def solvers_at(evaluations: int, base: SchedulerMixin, among: tuple[Setting, ...] | None = None) -> Solvers:
    """Which of `among` (by default all `settings()`) call the network exactly `evaluations` times, on a scheduler like
    `base`, found by trying each on a function that costs nothing. Of several that do the same only the first is taken.
    """
    found, seen = Solvers(), torch.empty(0, 64)  # what those in `found.steps` give
    noise = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    for setting in settings() if among is None else among:
        try:
            steps = _steps_for(evaluations, setting, base)
            if steps is None:
                found.left_out[setting] = f"no num_inference_steps makes {evaluations} calls"
                continue
            # any smooth function will do; unlike noise and data, no two solvers agree on it
            x, calls = sample(setting.scheduler(base), lambda x, t: torch.tanh(0.7 * x + t / 500), noise, steps)
            if calls != evaluations:
                raise RuntimeError(f"{calls} calls in place of {evaluations}")
        except Exception as error:  # diffusers' own of any kind: a setting that cannot be had is said, not hidden
            found.left_out[setting] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if not bool(x.isfinite().all()):
            found.left_out[setting] = "gives values that are not finite"
            continue
        equal = ((seen - x.flatten()).abs() < 1e-4).all(1)  # different solvers are apart by a hundred times that
        if bool(equal.any()):
            found.same[setting] = list(found.steps)[int(equal.int().argmax())]
        else:
            seen = torch.cat([seen, x.reshape(1, -1)])
            found.steps[setting] = steps
    return found


def _steps_for(evaluations: int, setting: Setting, base: SchedulerMixin) -> int | None:
    scheduler = setting.scheduler(base)
    for steps in range(evaluations, 0, -1):
        try:
            scheduler.set_timesteps(steps)
        except Exception:
            if steps == evaluations:
                raise
            return None  # fewer steps than the solver can do with
        if len(scheduler.timesteps) == evaluations:
            return steps
    return None
