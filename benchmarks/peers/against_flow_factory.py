"""An iteration of Flow-Factory's GRPO: its own trainer against ours, on Stable Diffusion 3's classes.

Its trainer as `load_trainer` makes it of a YAML file: sample, prepare_feedback, optimize. Changed: torchaudio, which
its reward modules import, is an empty stand-in, and autocast, which is for GPUs, does nothing. Its schedule of SD3 is
not the pipeline's own, so for the comparison of gradients ours takes its times.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import types
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import yaml
from peers.against_flow_grpo import STEPS, generator_of, gradient_on, iteration_of, recipe_of
from peers.clones import clone_of
from peers.comparison import Comparison, Work
from peers.pipelines import LORA_ALPHA, LORA_RANK, PROMPTS, away, by_layer, copy_lora, gradients_of, sd3, stirred
from torch import Tensor

from rewarddance.alignment.flow_grpo import Rollouts
from rewarddance.alignment.random_steps import RandomWindow
from rewarddance.errors import InputError

GROUP, TEXT = 4, 256
"""Its text length is the pipeline's default."""
REWARD = "flow_factory_brightness"


def importable(folder: Path) -> None:
    """Its package on the path, with stand-ins. Raises InputError where a package that it needs is not installed."""
    sys.path.insert(0, str(folder / "src"))
    import_module("diffusers.loaders")  # before torchaudio's stand-in, which nobody shall take for the real one

    for name in ("torchaudio", "torchaudio.functional", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
        if name not in sys.modules:
            module = sys.modules[name] = types.ModuleType(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    try:
        from flow_factory.rewards.abc import PointwiseRewardModel, RewardModelOutput
        from flow_factory.trainers import load_trainer  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"Flow-Factory needs the package {error.name}.",
            f"pip install --target {folder.parent / 'extra'} --no-deps {error.name}",
        ) from error

    class Brightness(PointwiseRewardModel):
        required_fields = ("prompt", "image")
        use_tensor_inputs = True

        def __call__(self, prompt: Any, image: Any = None, **named: Any) -> Any:
            return RewardModelOutput(rewards=torch.stack([one.float().mean() for one in image]), extra_info={})

    sys.modules[REWARD] = types.ModuleType(REWARD)
    sys.modules[REWARD].Brightness = Brightness  # type: ignore[attr-defined]


def _config(scratch: Path, steps: Sequence[int], resolution: int) -> dict[str, Any]:
    rows = len(PROMPTS) * GROUP
    shown = {"resolution": resolution, "guidance_scale": 1.0, "num_inference_steps": STEPS, "seed": 42}
    return {
        "launcher": "accelerate", "num_processes": 1, "mixed_precision": "no",
        "data": {
            "dataset_dir": str(scratch / "data"), "cache_dir": str(scratch / "cache"), "preprocessing_batch_size": 4,
            "dataloader_num_workers": 0, "force_reprocess": True, "max_dataset_size": len(PROMPTS),
            "sampler_type": "auto",
        },
        "model": {
            "finetune_type": "lora", "master_weight_dtype": "fp32", "lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA,
            "target_modules": "default", "model_name_or_path": str(scratch / "sd3"), "model_type": "sd3-5",
        },
        "log": {
            "run_name": "x", "project": "x", "logging_backend": "none", "save_dir": str(scratch / "saves"),
            "save_freq": 0, "verbose": False,
        },
        "train": {
            "trainer_type": "grpo", "advantage_aggregation": "sum", "clip_range": 1e-4, "adv_clip_range": 5.0,
            "kl_type": "x-based", "kl_beta": 0.0, "ref_param_device": "cpu", "latent_storage_dtype": "fp32",
            "per_device_batch_size": rows, "group_size": GROUP, "global_std": False,
            "unique_sample_num_per_epoch": len(PROMPTS), "gradient_step_per_epoch": 1, "learning_rate": 1e-12,
            "adam_weight_decay": 0, "max_grad_norm": 1e9, "ema_decay": 0.99, "ema_update_interval": 4,
            "ema_device": "cpu", "enable_gradient_checkpointing": False, **shown,
        },
        "scheduler": {
            "dynamics_type": "Flow-SDE", "noise_level": 0.7, "num_sde_steps": len(steps), "sde_steps": list(steps),
            "seed": 42,
        },
        "eval": {"per_device_batch_size": 4, "eval_freq": 0, **shown},
        "rewards": [
            {"name": "bright", "reward_model": f"{REWARD}.Brightness", "batch_size": rows, "device": "cpu",
             "dtype": "float32"}
        ],
    }  # fmt: skip


class FlowFactory:
    """Its trainer, which trains at these steps. gradients: what its optimiser was given last, by layer."""

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        importable(folder)
        from flow_factory.hparams import Arguments
        from flow_factory.trainers import load_trainer

        logging.disable(logging.WARNING)
        scratch, pipeline = Path(mkdtemp()), sd3()
        os.environ["HF_HOME"] = str(scratch / "hf")
        pipeline.save_pretrained(scratch / "sd3")
        (scratch / "data").mkdir()
        for split in ("train", "test"):
            (scratch / "data" / f"{split}.txt").write_text("\n".join(PROMPTS) + "\n")
        config = _config(scratch, steps, pipeline.default_sample_size * pipeline.vae_scale_factor)
        (scratch / "recipe.yaml").write_text(yaml.safe_dump(config))
        self.trainer: Any = load_trainer(Arguments.load_from_yaml(str(scratch / "recipe.yaml")))
        self.trainer.autocast = contextlib.nullcontext
        self.network, self.gradients = self.trainer.adapter.transformer, dict[str, Tensor]()
        torch.manual_seed(5)
        stirred(self.network)
        optimiser_step = self.trainer.optimizer.step

        def step(*args: Any, **named: Any) -> Any:
            if self.trainer.accelerator.sync_gradients:
                self.gradients = by_layer(gradients_of(self.network).items())
            return optimiser_step(*args, **named)

        self.trainer.optimizer.step = step

    def iteration(self) -> list[Any]:
        samples = self.trainer.sample()
        self.trainer.prepare_feedback(samples)
        self.trainer.optimize(samples)
        return samples


def difference(peer: FlowFactory) -> dict[str, float]:
    """How far our gradient is from Flow-Factory's, on its own latents and noises and at its own times."""
    scheduler, generator = peer.trainer.adapter.scheduler, generator_of(1.0, TEXT)
    copy_lora(peer.network, generator.network)
    samples = peer.iteration()
    generator.timesteps, generator.sigmas = scheduler.timesteps.clone(), scheduler.sigmas.tolist()
    steps = [int(step) for step in scheduler.train_timesteps]
    window, none = RandomWindow("flow", 0.7, steps[0], len(steps)), torch.empty(0)
    x = torch.stack([
        torch.stack([one.all_latents[int(one.latent_index_map[step])] for one in samples])
        for step in [*steps, steps[-1] + 1]
    ])  # fmt: skip
    log_probs = torch.stack([
        torch.stack([one.log_probs[int(one.log_prob_index_map[step])] for one in samples]) for step in steps
    ])  # fmt: skip
    advantage = torch.tensor([float(one.advantage) for one in samples]).clamp(-5, 5)
    condition, rows = generator.encode([one.prompt for one in samples]), torch.arange(len(samples))
    rollouts = Rollouts(window, [rows], [condition], x, log_probs, none, none, [[] for _ in steps])
    return {"gradient": away(gradient_on(generator, rollouts, advantage, lambda k: 0.0), peer.gradients)}


def comparison(peers: Path) -> Comparison:
    folder, generator = clone_of("Flow-Factory", peers), generator_of(1.0, TEXT)
    peer = FlowFactory(folder, [2, 3])
    works: dict[str, Work] = {"Flow-Factory's fast recipe, 2 steps of 9": peer.iteration}
    works["ours, the same work"] = iteration_of(generator, recipe_of(0.0, 2, 0.25, shared_prefix=False))
    works["ours, the prefix shared"] = iteration_of(generator, recipe_of(0.0, 2, 0.25))
    works["ours, the graph kept, too"] = iteration_of(generator, recipe_of(0.0, 2, 0.25, keep_graph=True))
    return Comparison(works, difference(peer))
