"""A judge on Ray Serve, asked as any server of ours. Skipped where Ray Serve is not installed."""

from __future__ import annotations

import socket

import pytest
import torch
from tiny import judge_folder, pictures

from rewarddance.jobs.deployment import application
from rewarddance.reward.loading import load_reward
from rewarddance.reward.remote.served import ServedReward
from rewarddance.types import Question

serve = pytest.importorskip("ray.serve", exc_type=ImportError)


@pytest.mark.timeout(900)  # Ray starts in minutes on a busy machine
def test_ray_serves_replicas_that_answer_as_the_judge_here():
    import ray  # type: ignore[import-not-found]

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        arguments = {"judge": str(judge_folder()), "device": "cpu", "max_batch": "8", "replicas": "2"}
        serve.run(application(arguments), name="judge", route_prefix="/")
        shots = pictures(5)
        asked = [Question("a red circle", shot, shots[0]) for shot in shots[1:]]
        expected = load_reward(judge_folder())(asked).margin
        remote = ServedReward(f"http://127.0.0.1:{port}")
        for _ in range(4):  # both replicas have their turn
            torch.testing.assert_close(remote(asked).margin, expected, atol=1e-4, rtol=1e-4)
    finally:
        serve.shutdown()
        ray.shutdown()
