"""RegMean++: RegMean block by block, on what the blocks that are merged already give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vpeft.regimes.fusion.ground import Ground, sum_of
from vpeft.regimes.fusion.way import Fusion, register_way
from vpeft.regimes.fusion.ways.regmean import RegMean, gram_matrices, linear_layers, solved


@register_way("regmean_plus_plus", paper="2508.03121")
class RegMeanPlusPlus(RegMean):
    """RegMean, in which G_n of a block is of the model whose earlier parts are merged and whose block is that of n.

    What comes before the first block is averaged first; what comes behind the last one is merged last.
    """

    def fuse(self, ground: Ground) -> Fusion:
        changes, modules, base = ground.changes(), linear_layers(ground), ground.base
        models = [{name: value + one[name] for name, value in base.items()} for one in changes]
        added = sum_of(changes, [1 / len(changes)] * len(changes))
        groups = self._groups(ground, list(base))
        merged = {name: base[name] + added[name] for name in groups[0]}
        for number, group in enumerate(groups[1:], 1):
            layers = {name: module for name, module in modules.items() if name in group}
            if layers:
                grams = [
                    gram_matrices(ground, source, {**values, **merged}, layers, self.images, self.batch)
                    for source, values in zip(ground.sources, models, strict=True)
                ]
                added |= solved(changes, grams, self.ratio)
            merged |= {name: base[name] + added[name] for name in group}
            ground.report(number, len(groups) - 1, "blocks")
        return Fusion(added)

    def _groups(self, ground: Ground, names: list[str]) -> list[set[str]]:
        """The names of parameters by where they lie: before the blocks, each block, behind them."""
        owners = {id(parameter): name for name, parameter in ground.tuned.backbone.named_parameters()}
        blocks = []
        for block in ground.backbone.blocks:
            inside = {id(p) for part in block.walk() for p in _parameters(part.own)}
            if block.exit is not None:
                inside |= {id(p) for p in block.exit.module.parameters()}
            blocks.append({owners[key] for key in inside if key in owners} & set(names))
        in_blocks = set().union(*blocks) if blocks else set()
        final = ground.backbone.norm
        behind = {owners[id(p)] for p in _parameters(final.own) if id(p) in owners} & set(names) - in_blocks
        return [set(names) - in_blocks - behind, *blocks, behind]


def _parameters(own: Mapping[str, tuple[nn.Module, str]]) -> list[Any]:
    return [getattr(module, attribute) for module, attribute in own.values()]
