"""Several tasks in two processes with half the batch each: the gradients of one process with all of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import vpeft
from tests.models import images_for, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.methods import get


def head(description: Backbone, width: int) -> nn.Module:
    return nn.Linear(width, 3)


def _tuned(name: str) -> vpeft.TunedModel:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), get(name)(), head={"a": head, "b": head}, verify=False).eval()
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.2)
    return tuned


def _loss(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return outputs["a"].square().mean() + 3 * outputs["b"].square().mean()


def _worker(rank: int, name: str, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    tuned = _tuned(name)
    model = nn.parallel.DistributedDataParallel(tuned, find_unused_parameters=True)
    _loss(model(images_for(tiny_vit(), 4)[2 * rank : 2 * rank + 2])).backward()
    if rank == 0:
        torch.save({key: p.grad for key, p in tuned.trainable()}, Path(folder) / "grads.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "polyhistor", "mtlora"])
def test_two_processes_have_the_gradients_of_one(name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(name, port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    tuned = _tuned(name)
    _loss(tuned(images_for(tiny_vit(), 4))).backward()
    found = torch.load(tmp_path / "grads.pt")
    for key, parameter in tuned.trainable():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        given = torch.zeros_like(parameter) if found[key] is None else found[key]
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=key)
