"""The server of a judge on Ray Serve, with as many replicas as wanted:

serve run rewarddance.jobs.deployment:application judge=my-judge replicas=4
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarddance.jobs.recipes import ServeRun
from rewarddance.jobs.serve import load_served, options_of
from rewarddance.runtime.config import parse_recipe


def application(arguments: Mapping[str, Any]) -> Any:
    """A Serve application: `rewarddance serve`'s keys, and `replicas`, each with a GPU where the cluster has any.

    Ray Serve listens and shares requests out; batches, limits and the token are each replica's own.
    """
    import ray  # type: ignore[import-not-found]
    from ray import serve  # type: ignore[import-not-found]

    keys = {name: value for name, value in arguments.items() if name != "replicas"}
    run = parse_recipe(ServeRun, keys, "the application's arguments")

    def build() -> Any:
        from rewarddance.serve.server import JudgeServer

        return JudgeServer(load_served(run), options_of(run)).app

    gpus = 1 if run.device != "cpu" and ray.cluster_resources().get("GPU") else 0
    deployment = serve.deployment(
        name="judge",
        num_replicas=int(arguments.get("replicas", 1)),
        max_ongoing_requests=run.queue,
        ray_actor_options={"num_gpus": gpus},
    )
    return deployment(serve.ingress(build)()).bind()
