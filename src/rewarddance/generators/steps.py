"""The two kinds of steps: along a flow, and by a diffusion pipeline's own scheduler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
from torch import Tensor

from rewarddance.errors import InputError, first_line
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.flow import euler_step, linear_shift, predicted_x_0
from rewarddance.types import Scales


class FlowGenerator(PipelineGenerator):
    """A flow-matching pipeline: the prediction is a velocity, a step is Euler's. A family may space time otherwise."""

    sigmas: list[float]
    """The noise levels before each step, and 0."""

    def _set_schedule(self) -> None:
        scheduler, name = self._scheduler, type(self._scheduler).__name__
        if name != "FlowMatchEulerDiscreteScheduler" or scheduler.config.stochastic_sampling:
            how = " with stochastic_sampling" if name == "FlowMatchEulerDiscreteScheduler" else ""
            raise InputError(
                f"the {self.kind} has a {name}{how}, whose steps are not repeated here.",
                "Give it a deterministic FlowMatchEulerDiscreteScheduler: change the folder's scheduler_config.json "
                "and model_index.json.",
            )
        scheduler.set_timesteps(device=self.device, **self._spacing())
        self.timesteps, self.sigmas = scheduler.timesteps, scheduler.sigmas.tolist()

    def _spacing(self) -> dict[str, Any]:
        """What the pipeline asks its scheduler's `set_timesteps` for."""
        n = self.options.num_inference_steps
        return {"sigmas": np.linspace(1.0, 1 / n, n), "mu": linear_shift(self._tokens(), self._scheduler.config)}

    def _tokens(self) -> int:
        """How many tokens the network sees of a picture."""
        return (self.height // self._multiple()) * (self.width // self._multiple())

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return euler_step(x_t, prediction, self.sigmas[step], self.sigmas[step + 1])

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return predicted_x_0(x_t, prediction, self.sigmas[step])

    def scales(self, step: int) -> Scales:
        return Scales(1 - self.sigmas[step], self.sigmas[step])


DETERMINISTIC = ("DDIMScheduler", "EulerDiscreteScheduler")
"""Diffusion schedulers whose step depends on nothing but its arguments."""


class DiffusionGenerator(PipelineGenerator):
    """A pipeline whose network predicts eps or v = sqrt(a) eps - sqrt(1 - a) x_0; its own scheduler takes the steps.

    Latents are sqrt(a) x_0 + sqrt(1 - a) eps, whatever the scheduler's own scale (Euler's is x_0 + sigma eps).
    """

    def _set_schedule(self) -> None:
        if self.options.scheduler is not None:
            kind: Any = getattr(diffusers, self.options.scheduler)
            config = dict(self._scheduler.config)
            if self.options.scheduler == "DDIMScheduler":
                config.setdefault("clip_sample", False)  # its own default is for networks that draw pixels
            self._scheduler = kind.from_config(config)
            self.pipeline.scheduler = copy.deepcopy(self._scheduler)
        scheduler, name = self._scheduler, type(self._scheduler).__name__
        if name not in DETERMINISTIC:
            raise InputError(
                f"the {self.kind} has a {name}, whose steps are random or need those before.",
                f"Set the option scheduler to {' or '.join(DETERMINISTIC)}, which takes over its noise levels.",
            )
        for key in ("clip_sample", "thresholding"):
            if scheduler.config.get(key):
                raise InputError(
                    f"the scheduler of the {self.kind} cuts predictions off ({key}), where no gradient is left.",
                    f"Set {key} to false in the folder's scheduler_config.json; it is for networks that draw pixels.",
                )
        try:
            scheduler.set_timesteps(self.options.num_inference_steps, device=self.device)
            self._read_scales()
        except (IndexError, ValueError) as error:
            raise InputError(
                f"the {self.kind} does not take {self.options.num_inference_steps} steps: {first_line(error)}.",
                f"Take fewer: it knows {scheduler.config.num_train_timesteps} noise levels.",
            ) from error

    def _read_scales(self) -> None:
        """Alpha and sigma before each step, and what the scheduler's own latents are multiplied with."""
        scheduler = self._scheduler
        self.timesteps = scheduler.timesteps
        if type(scheduler).__name__ == "EulerDiscreteScheduler":
            ratios = scheduler.sigmas[:-1].double()
            alphas = (1 + ratios**2).rsqrt()
            self._scales = [Scales(a, a * r) for a, r in zip(alphas.tolist(), ratios.tolist(), strict=True)]
            self._stretch = [*(1 / alphas).tolist(), 1.0]
        else:
            kept = scheduler.alphas_cumprod[self.timesteps.cpu()].double()
            self._scales = [Scales(a, s) for a, s in zip(kept.sqrt().tolist(), (1 - kept).sqrt().tolist(), strict=True)]
            self._stretch = [1.0] * (len(self.timesteps) + 1)

    def init_noise(self, seeds: Sequence[int]) -> Tensor:
        return super().init_noise(seeds) * float(self._scheduler.init_noise_sigma / self._stretch[0])

    def scales(self, step: int) -> Scales:
        return self._scales[step] if step < self.num_steps else Scales(1.0, 0.0)

    def error_scale(self, step: int) -> float:
        alpha, sigma = self.scales(step)
        return (alpha if self._scheduler.config.prediction_type == "epsilon" else 1.0) / sigma

    def _at(self, x_t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The step's time, and the latent in the scheduler's own scale."""
        self._scheduler._step_index = step  # all that Euler remembers; DDIM remembers nothing
        return self.timesteps[step], x_t * self._stretch[step]

    def _seen(self, x_t: Tensor, step: int) -> Tensor:
        """The latent as the network is shown it."""
        time, latent = self._at(x_t, step)
        return self._scheduler.scale_model_input(latent, time).to(self.dtype)

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        time, latent = self._at(x_t, step)
        return self._scheduler.step(prediction, time, latent, return_dict=False)[0] / self._stretch[step + 1]

    def predict_x0(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        time, latent = self._at(x_t, step)
        return self._scheduler.step(prediction, time, latent, return_dict=False)[1]
