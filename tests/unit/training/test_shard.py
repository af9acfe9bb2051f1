"""Frozen weights that are divided among processes: the same training and the same file as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.processes import in_processes
from tests.unit.training.material import Patches
from vpeft.injection.tuned_model import TunedModel
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.processes import CannotShard

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

# Plain SGD: Adam divides by the size of gradients, and some (of keys' biases) are nothing but rounding.
PLAIN = Optimisation(epochs=1, batch=6, lr=0.05, optimiser="sgd", device="cpu", acceleration="off")
SHARDED = PLAIN.model_copy(update={"shard": True})
# what a file says besides: of when it was made, and golden outputs, which are rounded in another order
NOT_COMPARED = {"probe", "tensors_digest", "seal"}


def tuned_with(method: str, model: Any = tiny_vit) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(model(), vpeft.methods.get(method)(), num_classes=3, show=False, verify=False)


def trained(method: str, settings: Optimisation, file: Path, model: Any = tiny_vit) -> tuple[float, int, int]:
    """Train and save; return the validation score and the bytes of frozen weights in blocks, here and of the whole."""
    tuned = tuned_with(method, model)
    own = {p for _, p in tuned.trainable()}
    count = sum(p.numel() for block in tuned.description.blocks for p in block.exit.module.parameters() if p not in own)
    result = fit(tuned, Patches(13), Patches(9, seed=8), optimisation=settings, progress=False)
    tuned.save(file)
    assert result.val is not None
    own = {p for _, p in tuned.trainable()}
    here = 0
    for block in tuned.description.blocks:
        for p in block.exit.module.parameters():
            if p not in own:
                here += (p.to_local() if hasattr(p, "to_local") else p).numel()
    return result.val.value, here, count


def content(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors, vpeft.injection.adapter_file.read_manifest(file).model_dump()


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_the_file_is_that_of_one_process(method: str, tmp_path: Path) -> None:
    found = in_processes(2, tmp_path, lambda rank: trained(method, SHARDED, tmp_path / f"{rank}.safetensors"))
    alone, _, _ = trained(method, PLAIN, tmp_path / "alone.safetensors")
    tensors, manifest = content(tmp_path / "alone.safetensors")
    for rank, (score, here, whole) in enumerate(found):
        assert score == pytest.approx(alone, abs=1e-6)
        assert here <= 0.55 * whole
        of_shards, said = content(tmp_path / f"{rank}.safetensors")
        assert of_shards.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.allclose(of_shards[name], tensor, atol=2e-5, rtol=1e-4), name
        for key in manifest.keys() - NOT_COMPARED:
            assert said[key] == manifest[key], key
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    again = vpeft.load(tuned_with("lora").detach(), tmp_path / "0.safetensors")
    assert again.manifest is not None


def test_one_process_has_nothing_to_share_with() -> None:
    with pytest.raises(CannotShard, match="torchrun"):
        fit(tuned_with("lora"), Patches(6), optimisation=SHARDED, progress=False)


def test_full_fine_tuning_has_nothing_frozen(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        with pytest.raises(CannotShard) as told:
            fit(tuned_with("full_finetuning"), Patches(6), optimisation=SHARDED, progress=False)
        return str(told.value)

    for told in in_processes(2, tmp_path, work):
        assert "has no frozen weights in its blocks" in told


@pytest.mark.parametrize(
    ("method", "words"), [("gps", "looks at the data before training"), ("vqt", "outside of the block")]
)
def test_methods_that_need_whole_weights_say_so(method: str, words: str, tmp_path: Path) -> None:
    def work(rank: int) -> str:
        with pytest.raises(CannotShard) as told:
            fit(tuned_with(method), Patches(6), optimisation=SHARDED, progress=False)
        return str(told.value)

    for told in in_processes(2, tmp_path, work):
        assert words in told


def test_shard_and_fit_memory_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave out fit_memory or shard"):
        Optimisation(shard=True, fit_memory="1GB")
