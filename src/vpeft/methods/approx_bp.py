"""Approx-BP: activations keep two bits for the backward pass, and their gradient is that of a near step function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..backbones.activations import activations
from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register

# c_i and a_i of the paper's search: thresholds, and the slopes that add up where x is above them
THRESHOLDS = {
    "gelu": (-3.1858810036855245, -0.001178821281161997, 3.190832613414926),
    "silu": (-6.3050461001646445, -0.0008684942046214787, 6.325815242089708),
}
STEPS = {
    "gelu": (-0.04922261145617846, 1.0979632065417297, -0.048740595085551286),
    "silu": (-0.04060357190528599, 1.080925428529668, -0.040321856624382146),
}


@register("approx_bp", category="unified", family="unified", paper="2406.16282", year=2024, venue="ICML")
class ApproxBP(Method):
    """The forward pass is exact; in the backward pass each activation has the slope of three ReLUs near to it.

    dx = dy * sum of a_i over the c_i below x, i = 1..3 (ReGELU2, ReSiLU2): four slopes, so two bits for each number are
    kept, an eighth of what GELU keeps in 16 bits. The gradient differs from the exact one. It adds no parameter and
    stands beside another method: `tune(model, LoRA(), ApproxBP())`; by itself the head alone trains.

    It acts on GELU (erf or tanh, as the authors say) and SiLU modules of the blocks. Left out: MS-LayerNorm, which
    shares a norm's output with the next layer and folds the norm's scale into it; its gradient is exact, which makes it
    no method.
    """

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        found = activations(backbone)
        if not found:
            raise MissingPlace(
                f"Approx-BP changes the gradient of GELU and SiLU, and no block of {backbone.facts.architecture} has"
                " one as a module that makes a new tensor."
            )
        for kind, site in found:
            came = site.input.tap(Passed())
            yield came
            yield site.before(Cut())
            yield site.after(StepSlopes(kind), reads=(came,))


class Passed(nn.Module):
    """x -> x."""

    keeps_forward = True

    def forward(self, x: Tensor) -> Tensor:
        return x


class Cut(Passed):
    """x -> x without its graph, so that the activation keeps nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class StepSlopes(Passed):
    """(f(x), x) -> f(x), with the slopes of steps as its gradient for x."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, out: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        if not (torch.is_grad_enabled() and x.requires_grad):
            return out
        given: Tensor = _Steps.apply(out, x, self.kind)
        return given


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, kind: str) -> Tensor:
        above = [(x > threshold).to(torch.uint8) for threshold in THRESHOLDS[kind]]
        code = (above[0] + above[1] + above[2]).flatten()
        fours = F.pad(code, (0, -len(code) % 4)).view(-1, 4)
        ctx.save_for_backward(fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6)
        ctx.shape, ctx.kind = x.shape, kind
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (bits,) = ctx.saved_tensors
        places = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=bits.device)
        code = (bits[:, None] >> places & 3).flatten()[: grad.numel()].view(ctx.shape)
        slopes = torch.tensor((0.0, *STEPS[ctx.kind]), dtype=torch.float64).cumsum(0).to(grad)
        return None, grad * slopes[code.int()], None
