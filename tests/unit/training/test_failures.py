"""Numbers that are not finite, and memory that does not suffice: what is said, and what is kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches, same, tuned_vit, weights
from vpeft.batch import Batch
from vpeft.injection.tuned_model import TunedModel
from vpeft.tasks.classification import Classification
from vpeft.training.checkpoint import read_checkpoint
from vpeft.training.failures import NonFinite, OutOfMemory, first_not_finite
from vpeft.training.fit import fit
from vpeft.training.loop import LAST_GOOD
from vpeft.training.optimisation import Optimisation
from vpeft.training.result import Result
from vpeft.training.step import LoneImage

SHORT = Optimisation(epochs=2, batch=8)


class Spoilt(Patches):
    """One image holds NaN."""

    def __init__(self, where: int) -> None:
        super().__init__(24)
        self.images[where, 0, 0, 0] = float("nan")


def test_a_spoilt_image_is_named_and_the_weights_before_it_are_saved(tmp_path: Path) -> None:
    tuned = tuned_vit()
    with pytest.raises(NonFinite, match=r"the input: 1 of 8 images.*last_good\.safetensors") as caught:
        fit(tuned, Spoilt(20), optimisation=SHORT, out=tmp_path, progress=False)
    result = caught.value.result
    assert result is not None
    assert (result.state, result.history) == ("failed", [])
    saved = read_checkpoint(tmp_path / LAST_GOOD)
    assert saved.facts["state"]["step"] == result.steps
    assert same(saved.tensors["model"], weights(tuned))
    assert all(torch.isfinite(value).all() for value in weights(tuned).values())
    assert Result.model_validate_json((tmp_path / "result.json").read_text()) == result


def test_the_weights_before_the_spoilt_batch_are_those_of_a_run_that_ends_there(tmp_path: Path) -> None:
    whole = tuned_vit()
    after: list[dict[str, Tensor]] = []
    fit(
        whole,
        Patches(24),
        optimisation=SHORT,
        progress=False,
        after_epoch=lambda tuned, record: after.append(weights(tuned)),
    )

    class LaterSpoilt(Patches):
        accesses = 0

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            self.accesses += 1
            image, target = super().__getitem__(index)
            return (image if self.accesses <= 24 else image * float("inf")), target

    tuned = tuned_vit()
    with pytest.raises(NonFinite, match=r"Step 4 \(epoch 2\)"):
        fit(tuned, LaterSpoilt(24), optimisation=SHORT, progress=False)
    assert same(weights(tuned), after[0])


def test_a_frozen_weight_a_module_and_a_gradient_are_named() -> None:
    tuned = tuned_vit()
    with torch.no_grad():
        tuned.backbone.blocks[1].mlp.fc1.weight[2, 3] = float("nan")
    with pytest.raises(NonFinite, match=r"the parameter 'backbone\.blocks\.1\.mlp\.fc1\.weight' \(1 of \d+ values"):
        fit(tuned, Patches(8), optimisation=SHORT, progress=False)

    class Root(torch.autograd.Function):
        """Harmless forward, NaN backward, as sqrt at 0 has it."""

        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        def backward(context: Any, slope: Tensor) -> Tensor:
            return slope * float("nan")

    class Sharp(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Root.apply(super().forward(x))
            return out

    method = vpeft.methods.LoRA(rank=2)
    tuned = vpeft.tune(tiny_vit(), method, head=Sharp(48, 3), show=False, verify=False)
    with pytest.raises(NonFinite, match=r"the gradient of '.*' and \d+ more.*The model still holds the weights"):
        fit(tuned, Patches(8), optimisation=SHORT, progress=False)
    assert first_not_finite(tuned, Batch(torch.randn(2, 3, 32, 32))) is None


def test_an_overflow_within_the_network_is_found_at_its_origin() -> None:
    class Overflowing(torch.nn.GELU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1e30 * 1e30

    tuned = tuned_vit()
    tuned.backbone.blocks[2].mlp.act = Overflowing()
    found = first_not_finite(tuned, Batch(torch.randn(2, 3, 32, 32)))
    assert found is not None
    assert found.startswith("the output of 'backbone.blocks.2.mlp.act' (Overflowing,")


def test_a_loss_that_is_not_finite_by_itself_is_said_to_be_so() -> None:
    class Bad(Classification):
        def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"bad": outputs.sum() * 0 + float("inf")}

    with pytest.raises(NonFinite, match=r"the loss \(inf\): the outputs are finite"):
        fit(tuned_vit(), Patches(8), optimisation=SHORT, progress=False, task=Bad())


def test_out_of_memory_states_the_measured_need_and_what_to_change() -> None:
    def tuned() -> TunedModel:
        made = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), num_classes=3, show=False, verify=False)

        def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB.")

        made.register_forward_pre_hook(watch)
        return made

    model = tuned()
    before = weights(model)
    with pytest.raises(OutOfMemory) as caught:
        fit(model, Patches(8), optimisation=SHORT, progress=False, acceleration="off")
    text = str(caught.value)
    assert "8 images at a time (batch 8, accumulate 1, precision fp32)" in text
    assert "accumulate = 2 (the same steps" in text
    assert 'Change one of: acceleration = "low_memory" (about ' in text
    assert 'acceleration = "recompute_blocks" (about ' in text and "fit_memory = " in text
    assert 'precision = "bf16"' in text
    assert "Tried to allocate 1.20 GiB" in text
    assert caught.value.result is not None
    assert caught.value.result.state == "failed"
    assert same(before, weights(model))
    # The advice is right: the same batch in smaller parts goes through.
    assert fit(tuned(), Patches(8), optimisation=SHORT.model_copy(update={"accumulate": 4}), progress=False).steps == 2

    from vpeft.training.memory import readable, saved_bytes

    model.train()
    each = saved_bytes(model, torch.randn(3, 3, 32, 32)) - saved_bytes(model, torch.randn(2, 3, 32, 32))
    assert f"Measured: {readable(each)} per image" in text
    # That is of the plain computation; what is accelerated keeps less, and the message says what was measured.
    with pytest.raises(OutOfMemory) as caught:
        fit(tuned(), Patches(8), optimisation=SHORT, progress=False)
    less = re.search(r"Measured: ([\d.]+) KiB per image", str(caught.value))
    assert less is not None and float(less[1]) * 1024 < each


def test_another_error_is_not_taken_for_it() -> None:
    class Wrong(Classification):
        def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fit(tuned_vit(), Patches(8), optimisation=SHORT, progress=False, task=Wrong())


def test_batch_norm_with_a_lone_image_is_explained() -> None:
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(48), torch.nn.Linear(48, 3))
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), head=head, show=False, verify=False)
    with pytest.raises(LoneImage, match="drop_last = true"):
        fit(tuned, Patches(9), optimisation=SHORT, progress=False)
    dropped = SHORT.model_copy(update={"drop_last": True})
    assert fit(tuned, Patches(9), optimisation=dropped, task=Classification(mixup=0.2), progress=False).steps == 2


LIMITED = """
import resource, torch, vpeft
torch.set_num_threads(1)
from tests.unit.training.material import Patches, tuned_vit
from vpeft.training.failures import OutOfMemory
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
tuned = tuned_vit(img_size=32, patch_size=4, embed_dim=192)
fit(tuned, Patches(2), optimisation=Optimisation(epochs=1, batch=2), progress=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 160 * 2**20, -1))
try:
    fit(tuned, Patches(512), optimisation=Optimisation(epochs=1, batch=512), progress=False)
except OutOfMemory as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
def test_real_exhaustion_on_the_processor() -> None:
    root = Path(__file__).parents[3]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=paths, cwd=root)
    assert "Out of memory at 512 images at a time" in done.stdout, done.stderr
    assert "MiB per image are saved for the backward pass" in done.stdout
    assert "the processor's memory did not suffice" in done.stdout
