"""WEMoE: MLPs are mixed for each image by routers that learn without labels; everything else by task arithmetic."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vpeft.methods.wemoe import WEMoE
from vpeft.regimes.fusion.ground import Ground, entropy, sum_of
from vpeft.regimes.fusion.put_on import put_on
from vpeft.regimes.fusion.way import Fusion, Way, register_way
from vpeft.regimes.fusion.ways.smile import change_at, parameter_names, parameters_at
from vpeft.training.randomness import derived_seed, seed_everything, untouched_randomness


@register_way("wemoe", paper="2402.00433")
class WeMoe(Way):
    """MLP weights theta_0 + sum_n w_n tau_n with w = mean over the tokens of R(h); lambda sum_n tau_n elsewhere.

    The routers R learn by the entropy of the predictions on images of all tasks without labels (Adam). Departure: in
    training, too, w is that of each image; the code averages it over the batch.
    """

    needs = "classes"

    scale: float = 0.3
    """lambda, and w before the routers have learnt"""
    router_layers: int = Field(default=2, ge=1, le=2)
    """linear maps of a router"""
    steps: int = Field(default=1000, ge=0)
    """steps, each on one batch of every task"""
    batch: int = Field(default=16, gt=0)
    """images of each task in a step"""
    lr: float = Field(default=1e-4, gt=0)
    """learning rate of Adam"""

    def fuse(self, ground: Ground) -> Fusion:
        changes, names = ground.changes(), parameter_names(ground.tuned.backbone)
        method = WEMoE(experts=len(changes), layers=self.router_layers, start=self.scale)
        layers, covered = dict[str, Tensor](), set[str]()
        for block in ground.backbone.blocks:
            for place in (block.mlp.fc1, block.mlp.fc2):
                covered |= parameters_at(place, names)
                deltas = [change_at(place, names, one) for one in changes]
                layers[f"{place.name}.parallel.changes"] = torch.stack([weight for weight, _ in deltas])
                layers[f"{place.name}.parallel.shift"] = torch.stack([bias for _, bias in deltas])
        merged = sum_of(changes, [self.scale] * len(changes))
        added = {name: value for name, value in merged.items() if name not in covered}
        with untouched_randomness():
            seed_everything(derived_seed(ground.seed, "wemoe"))
            fusion = Fusion(added, (method,), layers)
            routers, losses = self._learnt(ground, fusion)
        return Fusion(added, (method,), {**layers, **routers}, {"entropy": losses})

    def _learnt(self, ground: Ground, fusion: Fusion) -> tuple[dict[str, Tensor], list[float]]:
        """The routers' tensors after the last step, and the entropies of the first and the last step."""
        tuned, name, before = ground.tuned, "learning", ground.tuned.active
        put_on(tuned, fusion, name, ground.heads())
        state = {key: value for key, value in tuned.adapter_state(name).items() if ".tap.steps." in key}
        routers = [value for key, value in tuned.trainable(name) if ".tap.steps." in key]
        for _, value in tuned.trainable(name):
            value.requires_grad_(False)
        for value in routers:
            value.requires_grad_(True)
        optimiser, losses = torch.optim.Adam(routers, lr=self.lr), list[float]()
        for number, batches in enumerate(ground.steps(self.batch, self.steps), 1):
            loss = torch.stack([entropy(tuned(batch.inputs, batch=batch)) for batch in batches]).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            ground.report(number, self.steps, f"entropy {losses[-1]:.3f}")
        learnt = {key: value.detach().clone() for key, value in state.items()}
        tuned.detach(name)
        assert before is not None
        tuned.enable(before)
        return learnt, [losses[0], losses[-1]] if losses else []
