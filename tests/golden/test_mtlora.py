"""MTLoRA against its authors' code, and counted as in the paper."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.golden.streams import reproduce_streams
from tests.models import images_for, tiny_convnext
from vpeft.batch import Batch
from vpeft.methods import MTLoRA

SWIN_T = "swin_tiny_patch4_window7_224"
HEADS = 1_946_624  # the authors' four decoders, "hrnet" of the widths 192, 384, 768, 768


def test_equals_the_authors_code() -> None:
    reproduce_streams("mtlora", MTLoRA(rank=4, task_rank=2))


@pytest.mark.parametrize("mode", ["matrix", "matrixv2"])
def test_equals_a_restatement_on_a_vit(mode: str) -> None:
    method = MTLoRA(rank=3, task_rank=2, mode=mode, patch=False, train_norms=False)
    heads = {"a": torch.nn.Linear(48, 5), "b": torch.nn.Linear(48, 2)}
    tuned = vpeft.tune(base_vit(), method, head=heads, verify=False, show=False).eval()
    randomise(tuned)
    own, x = dict(tuned.trainable()), images_for(base_vit())
    out = tuned(x)
    for task, head in heads.items():
        changes = {}
        shared: dict[str, torch.Tensor] = {}

        def update(key: str, x: torch.Tensor) -> torch.Tensor:
            return 4.0 * (x @ own[f"{key}.A"].mT @ own[f"{key}.B"].mT)

        for name in ("qkv", "proj", "fc1", "fc2"):
            place = f"blocks.{{}}.{'attn' if name in ('qkv', 'proj') else 'mlp'}.{name}"
            for i in range(3):
                key = place.format(i)
                if i < 2 or name == "qkv":
                    changes[f"blocks.{i}.{name}"] = lambda y, x, k=key: y + update(f"{k}.parallel", x)
                else:

                    def keep(y: torch.Tensor, x: torch.Tensor, k: str = key, n: str = name) -> torch.Tensor:
                        whole = y + update(f"{k}.after.shared", x)
                        shared[n] = whole if mode == "matrixv2" else y
                        return whole

                    changes[f"blocks.{i}.{name}"] = keep
        ViTByHand(base_vit(), changes)(x)  # the shared stream, whose W x + b the task's takes

        for name in ("proj", "fc1", "fc2"):
            key = f"blocks.2.{'attn' if name == 'proj' else 'mlp'}.{name}.after"
            changes[f"blocks.2.{name}"] = lambda y, x, f=shared[name], k=key: f + update(f"{k}.own.{task}", x)
        expected = head(ViTByHand(base_vit(), changes)(x))
        assert torch.allclose(out[task], expected, atol=1e-5), (out[task] - expected).abs().max()
        assert torch.allclose(tuned(x, batch=Batch(x, task=task)), out[task], atol=1e-6)


def test_counts_of_the_paper() -> None:
    tasks = ("a", "b", "c", "d")
    for rank, published in ((16, 4.95), (32, 6.08), (64, 8.34)):
        whole = trained(MTLoRA(rank=rank, tasks=tasks), model=SWIN_T) + HEADS
        assert abs(whole / 1e6 - published) < 0.011, whole
    assert trained(MTLoRA(rank=16, tasks=tasks), model=SWIN_T) + HEADS == 4_954_682
    low_rank = trained(MTLoRA(rank=16, tasks=tasks, merging="low_rank"), model=SWIN_T)
    assert trained(MTLoRA(rank=16, tasks=tasks), model=SWIN_T) - low_rank == 1_548_288 - 16 * 6 * (96 + 192 + 384)


def test_refuses_what_has_no_linear_layers() -> None:
    with pytest.raises(vpeft.MissingPlace, match="has no 'attn_branch'"):
        vpeft.tune(tiny_convnext(), MTLoRA(), show=False)
