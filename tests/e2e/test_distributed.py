"""Two processes with half the batch each have the gradients of one process with all of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import vpeft
from tests.models import images_for, tiny_vit
from vpeft.methods import Method, get

METHODS = ("lora", "bitfit", "adaptformer")


def _tuned(method: Method) -> vpeft.TunedModel:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), method, num_classes=3, show=False).eval()
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.2)
    return tuned


def _worker(rank: int, name: str, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    tuned = _tuned(get(name)())
    model = nn.parallel.DistributedDataParallel(tuned)
    images = images_for(tiny_vit(), 4)[2 * rank : 2 * rank + 2]
    model(images).square().mean().backward()
    if rank == 0:
        torch.save({key: p.grad for key, p in tuned.trainable()}, Path(folder) / "grads.pt")
    torch.distributed.destroy_process_group()


def _sharded(rank: int, name: str, port: int, folder: str) -> None:
    """Two SGD steps with the blocks of the backbone sharded over two processes (FSDP2), then a file from each."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    tuned = _tuned(get(name)())
    for block in tuned.backbone.blocks:
        fully_shard(block, mesh=init_device_mesh("cpu", (2,)))
    _two_steps(tuned)
    tuned.save(Path(folder) / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def _two_steps(tuned: vpeft.TunedModel) -> None:
    images = images_for(tiny_vit(), 4)
    optimiser = torch.optim.SGD([parameter for _, parameter in tuned.trainable()], lr=0.05)
    for _ in range(2):
        tuned(images).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "bitfit", "ssf"])
def test_a_sharded_backbone_trains_and_its_adapter_file_is_that_of_one_process(name: str, tmp_path: Path) -> None:
    mp.spawn(_sharded, args=(name, _free_port(), str(tmp_path)), nprocs=2)
    tuned = _tuned(get(name)())
    _two_steps(tuned)
    images = images_for(tiny_vit(), 4)
    for rank in range(2):
        torch.manual_seed(0)
        again = vpeft.load(tiny_vit(), tmp_path / f"{rank}.safetensors").eval()
        assert torch.allclose(again(images), tuned(images), atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    mp.spawn(_worker, args=(name, _free_port(), str(tmp_path)), nprocs=2)
    together = torch.load(tmp_path / "grads.pt", weights_only=True)
    tuned = _tuned(get(name)())
    tuned(images_for(tiny_vit(), 4)).square().mean().backward()
    for key, parameter in tuned.trainable():
        assert torch.allclose(together[key], parameter.grad, atol=1e-6, rtol=1e-4), key
