"""The same application on many machines with Ray Serve, which keeps replicas alive and spreads requests over them.

    serve run vpeft.serving.ray_deployment:build folder=/shared/adapters backbone=pocket_vit replicas=4

Replicas need to see one folder of adapters. Limits hold for each replica. Ray's proxy speaks with clients: the client
that a rate counts is the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vpeft.backbones.create import create_backbone
from vpeft.backbones.trust import TYPED
from vpeft.errors import VpeftError, need_extra
from vpeft.serving.settings import ServeSettings

REPLICAS, CORES, CHIPS = "replicas", "num_cpus", "num_gpus"


class NoBackboneNamed(VpeftError):
    """A deployment on many machines has to be told its backbone."""


def build(arguments: Mapping[str, Any]) -> Any:
    """The application for `serve run` and `serve.run`.

    Args:
        arguments: fields of `ServeSettings`, of which `folder` and `backbone` are needed, and `replicas`, `num_cpus`
            and `num_gpus` of each.

    Raises:
        MissingExtra: Ray Serve is not installed.
        NoBackboneNamed: there is no `backbone`.
    """
    serve = need_extra("ray.serve", "ray")
    given = dict(arguments)
    replicas = int(given.pop(REPLICAS, 1))
    machine = {name: float(given.pop(name)) for name in (CORES, CHIPS) if name in given}
    # Ray's proxy is called by many names, and it decides who reaches it.
    settings = ServeSettings.model_validate({"hosts": ("*",), **given})
    if settings.backbone is None:
        raise NoBackboneNamed("Which backbone? Give backbone=NAME.")

    def application() -> Any:
        """Called in each replica."""
        from vpeft.serving.run import application as made

        name = settings.backbone or ""
        model = create_backbone(name, pretrained=settings.weights is None, weights=settings.weights, trust=TYPED)
        chip = "cuda" if settings.device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
        return made(model, settings, torch.device(chip))

    fleet = serve.deployment(
        num_replicas=replicas, ray_actor_options=machine, max_ongoing_requests=settings.queue, name="vpeft"
    )
    return fleet(serve.ingress(application)()).bind()
