"""verify() finds what is dead, and leaves everything as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.models import images_for, tiny_vit
from tests.unit.injection.test_verbs import Dense, Plain
from vpeft.injection.verify import NotPooled, NotTogether
from vpeft.methods import LoRA


class Functional(nn.Module):
    """An MLP that uses its first layer's weight without running the layer, as some attention classes do."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.norm, self.fc2 = mlp.fc1, mlp.act, mlp.norm, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(F.linear(x, self.fc1.weight, self.fc1.bias)))
        return out


def test_a_place_off_the_executed_path_is_refused_by_name() -> None:
    model = tiny_vit()
    model.blocks[1].mlp = Functional(model.blocks[1].mlp)
    with pytest.raises(vpeft.DeadPlace, match=r"never executed.*blocks\.1\.mlp\.fc1\.parallel"):
        vpeft.tune(model, LoRA(targets=("fc1",)), show=False)


def test_a_tensor_without_gradient_is_refused_by_name() -> None:
    """Both factors at zero can never learn (the trap of KMnP/vpt's adapter)."""

    class Dead(Dense):
        def __init__(self, width: int) -> None:
            super().__init__(width, width)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
            self.up = nn.Parameter(torch.zeros(width, width))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ self.up

    with pytest.raises(vpeft.DeadPlace, match=r"no gradient in two steps: .*linear\.weight.*3 in all"):
        vpeft.tune(
            tiny_vit(), Plain(make=lambda b: [b.blocks[0].mlp_branch.parallel(Dead(48))], identity=True), show=False
        )


def test_gradients_are_looked_at_where_the_caller_switched_them_off() -> None:
    with torch.no_grad():
        assert vpeft.tune(tiny_vit(), LoRA(), show=False).verify().live


def test_a_declared_dormant_tensor_passes() -> None:
    class Half(Dense):
        def __init__(self, width: int) -> None:
            super().__init__(width, width)
            self.asleep = nn.Parameter(torch.zeros(3))
            self.dormant = {"asleep": "used by the second phase of training alone"}

    tuned = vpeft.tune(tiny_vit(), Plain(make=lambda b: [b.blocks[0].mlp_branch.parallel(Half(48))]), show=False)
    report = tuned.verify()
    assert report and list(report.dormant) == ["blocks.0.mlp_branch.parallel.asleep"]


def test_a_broken_promise_about_step_0_is_refused() -> None:
    with pytest.raises(vpeft.DeadPlace, match="step 0 differ"):
        vpeft.tune(
            tiny_vit(),
            Plain(make=lambda b: [b.blocks[0].mlp_branch.parallel(Dense(48, 48))], identity=True),
            show=False,
        )


def test_a_layer_that_writes_to_the_backbone_is_found() -> None:
    model = tiny_vit()

    class Vandal(Dense):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                model.blocks[2].norm1.bias.add_(0.0)
            return super().forward(x)

    with pytest.raises(vpeft.DeadPlace, match=r"were written to: blocks\.2\.norm1\.bias"):
        vpeft.tune(model, Plain(make=lambda b: [b.blocks[0].after(Vandal(48, 48))]), show=False)


def test_methods_that_contradict_each_other_are_one_sentence() -> None:
    """E3VA's side branch has the positions of the image, and GIST's second token is one more."""
    with pytest.raises(NotTogether, match=r"gist and e3va do not go together on VisionTransformer: .*RuntimeError"):
        vpeft.tune(tiny_vit(), vpeft.methods.GIST(), vpeft.methods.E3VA(), num_classes=3, show=False)


def test_verify_leaves_no_trace() -> None:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3, verify=False, show=False).train()
    images = images_for(tiny_vit())
    tuned(images).sum().backward()
    grads = {key: p.grad.clone() for key, p in tuned.trainable() if p.grad is not None}
    state = {key: value.clone() for key, value in tuned.state_dict().items()}
    random = torch.get_rng_state()
    report = tuned.verify()
    assert report and report.identity and len(report.live) == len(list(tuned.trainable()))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(value.equal(state[key]) for key, value in tuned.state_dict().items())
    assert all(p.grad is not None and p.grad.equal(grads[key]) for key, p in tuned.trainable())
    assert tuned.training and tuned.active == "default"


@pytest.mark.parametrize(("name", "shape"), [("test_vit", r"\(2, 101, 64\)"), ("test_resnet", r"\(2, 96, 5, 5\)")])
def test_a_model_that_does_not_pool_is_one_sentence(name: str, shape: str) -> None:
    import timm

    model = timm.create_model(name, global_pool="", num_classes=0)
    with pytest.raises(NotPooled, match=f"features of the shape {shape}.*global_pool='avg'"):
        vpeft.tune(model, LoRA(rank=2), num_classes=3)
