"""For each method of peft: the method of ours with the same formula, and how our tensors are made of peft's.

A layer of peft is given as it lives in a loaded model, so what peft draws from a seed or rounds is what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..method import Method
from ..methods import get

ADAPTER = "default"
Config = Mapping[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class PeftKind:
    """One method of peft.

    Attributes:
        fields: (config, layers) -> fields of our method without its targets.
        tensors: (layer, our layer) -> tensors of ours by name, in peft's shapes up to a reshape.
        method: the name of ours.
        refused: settings of peft's that change the formula, with the value that keeps it.
    """

    method: str
    fields: Callable[[Config, Sequence[nn.Module]], dict[str, Any]]
    tensors: Callable[[nn.Module, nn.Module], Tensors]
    refused: Mapping[str, Any] = field(default_factory=dict)

    def made(self, config: Config, layers: Sequence[nn.Module], targets: Mapping[str, Any]) -> Method:
        """Our method for these layers of peft's."""
        return get(self.method)(**self.fields(config, layers), **targets)


def tensor_of(layer: Any, name: str) -> Tensor:
    """A tensor of a layer of peft's: a parameter, or of a module that holds one."""
    found = getattr(layer, name)[ADAPTER]
    if isinstance(found, nn.Module):
        found = next(iter(found.parameters()))
    return found.detach()  # type: ignore[no-any-return]


def _widest(layers: Sequence[Any]) -> int:
    return max(int(layer.r[ADAPTER]) for layer in layers)


def _rank(config: Config, layers: Sequence[nn.Module]) -> dict[str, Any]:
    """The largest rank and a scale of one; each layer's own scale goes into its factors."""
    return {"rank": _widest(layers)}


def _more(value: Tensor, size: int, dim: int) -> Tensor:
    """Zeros behind a tensor, up to `size` along `dim`: a rank that does nothing."""
    lacking = size - value.shape[dim]
    if lacking <= 0:
        return value
    shape = list(value.shape)
    shape[dim] = lacking
    return torch.cat([value, value.new_zeros(shape)], dim=dim)


def _low_rank(layer: Any, own: Any) -> Tensors:
    rank = len(own.A)
    a, b = tensor_of(layer, "lora_A").flatten(1), tensor_of(layer, "lora_B").flatten(1)
    return {"A": _more(a, rank, 0), "B": _more(b * layer.scaling[ADAPTER], rank, 1)}


def _direction(layer: Any, own: Any) -> Tensors:
    return {**_low_rank(layer, own), "magnitude": tensor_of(layer, "lora_magnitude_vector").flatten()}


def _hadamard(layer: Any, own: Any) -> Tensors:
    rank = len(own.A1)
    a1, b1 = tensor_of(layer, "hada_w1_b"), tensor_of(layer, "hada_w1_a") * layer.scaling[ADAPTER]
    a2, b2 = tensor_of(layer, "hada_w2_b"), tensor_of(layer, "hada_w2_a")
    return {"A1": _more(a1, rank, 0), "B1": _more(b1, rank, 1), "A2": _more(a2, rank, 0), "B2": _more(b2, rank, 1)}


def _kronecker(layer: Any, own: Any) -> Tensors:
    found = {"C": tensor_of(layer, "lokr_w1") * layer.scaling[ADAPTER]}
    if ADAPTER in layer.lokr_w2:
        return {**found, "D": tensor_of(layer, "lokr_w2").flatten(1)}
    a, b = tensor_of(layer, "lokr_w2_b"), tensor_of(layer, "lokr_w2_a")
    return {**found, "A": _more(a.flatten(1), len(own.A), 0), "B": _more(b, len(own.A), 1)}


def _factor(config: Config, layers: Sequence[nn.Module]) -> dict[str, Any]:
    factor = int(config.get("decompose_factor", -1))
    return {"rank": _widest(layers), "factor": None if factor < 0 else factor}


def _rotation(config: Config, layers: Sequence[nn.Module]) -> dict[str, Any]:
    series = bool(config.get("use_cayley_neumann", True))
    block = max(int(tensor_of(layer, "oft_R").shape[-1]) for layer in layers)
    side = round((1 + (1 + 8 * block) ** 0.5) / 2)  # of b (b - 1) / 2 numbers
    return {
        "block": side,
        "shared": bool(config.get("block_share", False)),
        "terms": int(config.get("num_cayley_neumann_terms", 5)) if series else None,
    }


def _rotated(layer: Any, own: Any) -> Tensors:
    # peft's exact form is the inverse rotation, that of the other sign
    upper = tensor_of(layer, "oft_R")
    return {"upper": upper if own.terms is not None else -upper}


def _butterfly(config: Config, layers: Sequence[nn.Module]) -> dict[str, Any]:
    shape = tensor_of(layers[0], "boft_R").shape
    return {"block": int(shape[-1]), "factors": int(shape[0])}


def _plain(**names: str) -> Callable[[nn.Module, nn.Module], Tensors]:
    return lambda layer, own: {ours: tensor_of(layer, theirs) for ours, theirs in names.items()}


def _vectors(layer: Any, own: Any) -> Tensors:
    a, b = own.factors.A.clone(), own.factors.B.clone()
    for ours, theirs in ((a, layer.vera_A[ADAPTER]), (b, layer.vera_B[ADAPTER])):
        rows, columns = min(len(ours), len(theirs)), min(ours.shape[1], theirs.shape[1])
        ours[:rows, :columns] = theirs[:rows, :columns]
    found = {"d": tensor_of(layer, "vera_lambda_d"), "b": tensor_of(layer, "vera_lambda_b")}
    return {**found, "factors.A": a, "factors.B": b}


def _spectrum(config: Config, layers: Sequence[Any]) -> dict[str, Any]:
    return {
        "count": int(config["n_frequency"]),
        "scale": float(config["scaling"]),
        "seed": int(config.get("random_loc_seed") or 777),
        "zero": True,
    }


def _triplets(layer: Any, own: Any) -> Tensors:
    rank = len(own.A)
    a, e, b = (tensor_of(layer, name) for name in ("lora_A", "lora_E", "lora_B"))
    shares = float(layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER] + 1e-5))
    return {"A": _more(a, rank, 0), "E": _more(e * shares, rank, 0), "B": _more(b, rank, 1)}


def _triplet_rank(config: Config, layers: Sequence[nn.Module]) -> dict[str, Any]:
    rank = max(1, *(len(tensor_of(layer, "lora_A")) for layer in layers))
    return {"rank": rank, "target": rank}


def _scales(layer: Any, own: Any) -> Tensors:
    vector = tensor_of(layer, "ia3_l").flatten()
    return {"inputs" if layer.is_feedforward else "scale": vector}


_LORA = {
    "lora_bias": False,
    "bias": "none",
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "arrow_config": None,
}

KINDS: dict[str, PeftKind] = {
    "LORA": PeftKind("lora", _rank, _low_rank, {**_LORA, "use_dora": False}),
    "DORA": PeftKind("dora", _rank, _direction, _LORA),
    "LOHA": PeftKind("loha", _rank, _hadamard, {"use_effective_conv2d": False}),
    "LOKR": PeftKind("lokr", _factor, _kronecker, {"use_effective_conv2d": False, "decompose_both": False}),
    "IA3": PeftKind("ia3", lambda config, layers: {}, _scales),
    "OFT": PeftKind("oft", _rotation, _rotated, {"coft": False, "bias": "none"}),
    "BOFT": PeftKind("boft", _butterfly, _plain(Q="boft_R", s="boft_s"), {"bias": "none"}),
    "HRA": PeftKind(
        "hra",
        lambda config, layers: {
            "rank": max(tensor_of(layer, "hra_u").shape[1] for layer in layers),
            "orthogonalised": bool(config.get("apply_GS", False)),
        },
        _plain(u="hra_u"),
        {"bias": "none"},
    ),
    "VERA": PeftKind("vera", lambda config, layers: {"rank": int(config["r"])}, _vectors, {"bias": "none"}),
    "FOURIERFT": PeftKind("fourierft", _spectrum, _plain(coefficients="fourierft_spectrum"), {"bias": "none"}),
    "ADALORA": PeftKind("adalora", _triplet_rank, _triplets, _LORA),
}
