"""Staying within a memory limit: what is chosen, what is said, and that the result is that of the same batch."""

from __future__ import annotations

import pytest
import torch

from tests.unit.training.material import Patches, same, tuned_vit, weights
from vpeft.training.fit import fit
from vpeft.training.fit_memory import CannotFit, Choice, fitting
from vpeft.training.memory_plan import MemoryPlan
from vpeft.training.optimisation import Optimisation
from vpeft.training.sizes import BadSize, bytes_of


def test_sizes() -> None:
    sizes = {"8GB": 8 * 10**9, "7.5 GiB": int(7.5 * 2**30), "900MB": 900 * 10**6, "512": 512, "3k": 3000, "1gib": 2**30}
    assert {text: bytes_of(text) for text in sizes} == sizes
    for wrong in ("", "GB", "8 elephants", "-1GB", "0GB", "8iB"):
        with pytest.raises(BadSize, match="Write a number and a unit"):
            bytes_of(wrong)
    with pytest.raises(ValueError, match="is not a size of memory"):
        Optimisation(fit_memory="much")


EACH = {"auto": 100, "auto,low_memory": 60, "auto,low_memory,recompute_blocks": 10}


def plan(acceleration: str) -> MemoryPlan:
    """1000 bytes that do not depend on the images, and so many for each of 64."""
    each = EACH[acceleration]
    return MemoryPlan(batch=64, weights=1000, gradients=0, optimiser=0, activations=64 * each, per_image=each)


def chosen(limit: int, parts: int = 1, **options: object) -> Choice:
    return fitting(limit, 64, "auto", parts, plan, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "options", "acceleration", "parts"),
    [
        (7400, {}, "auto", 1),
        (4840, {}, "auto,low_memory", 1),
        (4839, {}, "auto,low_memory", 2),  # 32 images
        (1480, {}, "auto,low_memory", 8),  # the smallest parts that cost no time
        (4839, {"patient": False}, "auto,low_memory,recompute_blocks", 1),
        (1479, {}, "auto,low_memory,recompute_blocks", 2),
        (1030, {}, "auto,low_memory,recompute_blocks", 22),  # parts of three images at most
        (1640, {"least": None}, "auto,low_memory,recompute_blocks", 1),
        (3000, {"parts": 4}, "auto", 4),
    ],
)
def test_the_first_way_that_fits(limit: int, options: dict[str, object], acceleration: str, parts: int) -> None:
    found = chosen(limit, **options).way  # type: ignore[arg-type]
    assert (found.acceleration, found.parts) == (acceleration, parts)
    assert found.plan.total <= limit
    assert found.plan.batch == -(-64 // parts)


def test_what_is_said() -> None:
    assert chosen(4839).lines(4839) == [
        "memory: within 4.7 KiB by acceleration auto,low_memory and accumulate 2: 2.9 KiB for 32 images at a time",
        "  as asked: 7.2 KiB",
        "  acceleration auto,low_memory: 4.7 KiB",
    ]
    assert chosen(7400).lines(7400) == ["memory: within 7.2 KiB as asked: 7.2 KiB for 64 images at a time"]
    with pytest.raises(CannotFit, match="Nothing stays within 1005 B:") as failure:
        chosen(1005)
    assert "Allow at least 1010 B" in str(failure.value)
    with pytest.raises(CannotFit, match="Allow at least 1.6 KiB"):
        chosen(1639, least=None)


def test_a_run_keeps_its_batch_and_ends_with_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    ends, kept = [], []
    for fit_memory, accumulate in ((None, 3), ("470KB", 1)):
        settings = Optimisation(epochs=1, batch=12, acceleration="off", accumulate=accumulate, fit_memory=fit_memory)
        tuned = tuned_vit()
        result = fit(tuned, Patches(12), None, optimisation=settings)
        kept.append(result.optimisation)
        ends.append(weights(tuned))
    said = capsys.readouterr().err
    assert "memory: within 459.0 KiB by acceleration low_memory,recompute_blocks and accumulate 3" in said
    assert "for 4 images at a time" in said and "  as asked: 1.9 MiB" in said
    assert (kept[1].batch, kept[1].accumulate, kept[1].acceleration) == (12, 3, "low_memory,recompute_blocks")
    # three parts, whose blocks are run again, give the bits of three plain parts
    assert same(ends[0], ends[1])
    with pytest.raises(CannotFit, match="Allow at least"):
        fit(tuned_vit(), Patches(12), None, optimisation=settings.model_copy(update={"fit_memory": "20KB"}))


def test_norms_that_gather_statistics_are_not_given_parts() -> None:
    import vpeft
    from tests.models import tiny_vit
    from vpeft.methods import get
    from vpeft.training.fit_memory import divisible

    torch.manual_seed(0)
    head = vpeft.tune(tiny_vit(), get("linear_probe")(batch_norm=True), num_classes=3, show=False, verify=False)
    assert not divisible(head.train())
    assert divisible(tuned_vit().train())
