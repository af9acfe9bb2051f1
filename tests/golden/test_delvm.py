"""DeLVM (arXiv 2402.04841): the sizes of its models, and its loss with a teacher as torch computes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vpeft.backbones.pocket_sequence import new_llama
from vpeft.tasks.next_tokens import shifted_divergence, shifted_loss

pytest.importorskip("transformers")


@pytest.mark.parametrize(("width", "heads", "stated"), [(1024, 8, 0.3e9), (2048, 16, 1.1e9)])
def test_the_models_have_the_papers_sizes(width: int, heads: int, stated: float) -> None:
    with torch.device("meta"):
        model = new_llama(8192, width, 22, 2048, heads)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(stated, rel=0.05)
    inner = 8 * round(width / 3)
    assert count == 22 * (4 * width**2 + 3 * width * inner + 2 * width) + width + 2 * 8192 * width


def test_the_loss_is_cross_entropy_plus_the_divergence_of_all_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 9, 16, generator=generator, requires_grad=grad) for grad in (True, False))
    tokens, every = torch.randint(16, (2, 9), generator=generator), torch.ones(9, dtype=torch.bool)
    found = shifted_loss(student, tokens, every) + shifted_divergence(student, teacher, every)
    ours, theirs = (logits[:, :-1].reshape(-1, 16) for logits in (student, teacher))
    apart = F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")
    wanted = F.cross_entropy(ours, tokens[:, 1:].reshape(-1)) + apart
    assert torch.allclose(found, wanted, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(loss, student, retain_graph=True) for loss in (found, wanted))
    assert torch.allclose(one, other, atol=1e-4)
