"""Losses, miners and samplers of pytorch-metric-learning by name, in snake case and without the last word.

`proxy_anchor(alpha=32)` is its ProxyAnchorLoss, `multi_similarity` as a miner its MultiSimilarityMiner, and
`m_per_class(m=4)` its MPerClassSampler.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import VpeftError, nearest
from ..method_spec import parse_one

Part = Literal["loss", "miner", "sampler"]
# What the task knows, and no user states.
_KNOWN = {
    "loss": ("num_classes", "embedding_size", "descriptors_dim", "l"),
    "miner": (),
    "sampler": ("labels", "length_before_new_iter"),
}
# Losses around other losses, whose arguments are objects, and samplers that need other facts of the data.
_OTHERS = re.compile("base|wrapper|multiple|generic|cross_batch|self_supervised|hierarchical|tuples|threshold")


class MissingLibrary(VpeftError):
    """pytorch-metric-learning is not installed."""


class UnknownPart(VpeftError):
    """The library has no such loss, miner or sampler, or it has no such setting."""


def parts_of(part: Part) -> dict[str, type]:
    """The classes of the library that can be named, by name, sorted.

    Raises:
        MissingLibrary: with the command that installs it.
    """
    plural = {"loss": "losses", "miner": "miners", "sampler": "samplers"}[part]
    try:
        module = importlib.import_module(f"pytorch_metric_learning.{plural}")
    except ImportError:
        raise MissingLibrary(
            "Losses for retrieval are those of pytorch-metric-learning. Install it: pip install 'vpeft[retrieval]'."
        ) from None
    ending = part.capitalize()
    found = {
        _snake(name.removesuffix(ending)): kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and name.endswith(ending)
    }
    return {name: found[name] for name in sorted(found) if name and not _OTHERS.search(name)}


def made(text: str, part: Part, **known: Any) -> Any:
    """The loss, miner or sampler that `text` names.

    Args:
        text: name, or name with settings: triplet_margin(margin=0.1).
        part: which of the three.
        known: what the task knows: the number of classes, the size of the embeddings, the labels.

    Raises:
        UnknownPart: there is none of this name, or a setting that it does not take.
    """
    spec, kind = parse_one(text, part), _named(text, part)
    try:
        return kind(**{name: value for name, value in known.items() if name in _settings(kind)}, **spec.fields)
    except (TypeError, ValueError, AssertionError) as error:
        raise UnknownPart(f"The {part} {spec.name} does not take {spec.fields}: {error}.") from None


def _named(text: str, part: Part) -> type:
    """The class that `text` names, if it takes the settings in `text`; nothing is made."""
    spec, there = parse_one(text, part), parts_of(part)
    if spec.name not in there:
        raise UnknownPart(f"pytorch-metric-learning has no {part} {spec.name!r}. {nearest(spec.name, there)}")
    kind = there[spec.name]
    taken = _settings(kind)
    for name in spec.fields:
        if name not in taken or name in _KNOWN[part]:
            offered = [one for one in taken if one not in _KNOWN[part]]
            raise UnknownPart(f"The {part} {spec.name} has no setting {name!r}. {nearest(name, offered)}")
    lacking = [name for name, needed in taken.items() if needed and name not in {*spec.fields, *_KNOWN[part]}]
    if lacking:
        raise UnknownPart(f"The {part} {spec.name} needs {', '.join(lacking)}: {spec.name}({lacking[0]}=...).")
    return kind


def learnt_by(text: str, classes: int, size: int) -> dict[str, Tensor]:
    """The tensors that a loss learns, as they start: proxies (C, E) and the like; empty for most losses.

    Raises:
        UnknownPart: as `made`; or the loss keeps parameters deeper than at its top.
    """
    loss: nn.Module = made(text, "loss", **_sizes(classes, size))
    found = {name: value.detach() for name, value in loss.named_parameters()}
    deep = [name for name in found if "." in name]
    if deep:
        raise UnknownPart(
            f"The loss {text} learns {', '.join(deep)}, which cannot be kept with an adapter. Take another."
        )
    return found


def value_of(
    text: str, embeddings: Tensor, labels: Tensor, classes: int, learnt: dict[str, Tensor], pairs: Any
) -> Tensor:
    """The loss of embeddings (B, E) in single precision with class numbers (B,).

    Args:
        text: which loss.
        embeddings, labels: of the batch.
        classes: how many there are.
        learnt: the tensors that the loss learns.
        pairs: what a miner has chosen; None for all.

    Raises:
        UnknownPart: a tensor that the loss learns is not there.
    """
    loss = _skeleton(text, classes, embeddings.shape[1])
    lacking = {name for name, _ in loss.named_parameters()} - learnt.keys()
    if lacking:
        raise UnknownPart(
            f"The loss {text} learns {', '.join(sorted(lacking))}, which the model gives in training alone, with the"
            " head embedding. Put it into training mode: tuned.train()."
        )
    found = functional_call(loss, {**learnt}, (embeddings, labels, pairs))
    value: Tensor = found
    return value


@lru_cache(maxsize=8)
def _skeleton(text: str, classes: int, size: int) -> nn.Module:
    """The loss without tensors of its own that count: `functional_call` puts those of the head in their place."""
    with torch.random.fork_rng(devices=[]):
        loss: nn.Module = made(text, "loss", **_sizes(classes, size))
    return loss


@lru_cache(maxsize=8)
def miner(text: str) -> Any:
    """A miner: (embeddings, class numbers) -> the pairs or triplets that count."""
    return made(text, "miner")


def sampled(text: str, numbers: Sequence[int], count: int, seed: int) -> list[int]:
    """At least `count` samples in the order in which a sampler takes them, cut to `count`.

    Args:
        text: which sampler.
        numbers: the class of each sample.
        count: of an epoch.
        seed: of its draws; the process's own random numbers stay as they are.
    """
    # made first: the library's first import draws numbers too
    sampler = made(text, "sampler", labels=np.asarray(numbers), length_before_new_iter=count)
    state = np.random.get_state()
    found: list[int] = []
    try:
        np.random.seed(seed % 2**32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            while len(found) < count:
                found += [int(index) for index in sampler]
    finally:
        np.random.set_state(state)
    return found[:count]


def checked(text: str, part: Part) -> str:
    """The text itself, if it names something with settings that it takes. Nothing is made, whatever the settings say.

    Without the library only the form is looked at, so that adapter files can be used where nothing is trained.

    Raises:
        UnknownPart: as `made`.
    """
    try:
        _named(text, part)
    except MissingLibrary:
        parse_one(text, part)
    return text


def _sizes(classes: int, size: int) -> dict[str, int]:
    """The number of classes and the size of embeddings, by the names that losses have for them."""
    return {"num_classes": classes, "embedding_size": size, "descriptors_dim": size, "l": size}


def _settings(kind: type) -> dict[str, bool]:
    """What the constructors of a class and of its parents take, and whether the user must give it; not `**kwargs`.

    What a parent demands, the class gives it.
    """
    found: dict[str, bool] = {}
    inherited = False
    for one in kind.__mro__:
        own = one.__dict__.get("__init__")
        if own is None:
            continue
        parameters = list(inspect.signature(own).parameters.values())[1:]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for parameter in parameters:
            if parameter.kind in named:
                needed = parameter.default is inspect.Parameter.empty and not inherited
                found.setdefault(parameter.name, needed)
        inherited = True
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _snake(name: str) -> str:
    """ProxyAnchor -> proxy_anchor, NTXent -> nt_xent, FastAP -> fast_ap, P2SGrad -> p2s_grad."""
    parts = re.findall(r"[A-Z\d]+(?=[A-Z][a-z])|[A-Z]?[a-z\d]+|[A-Z\d]+", name)
    return "_".join(parts).lower()
