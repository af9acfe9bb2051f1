"""torchvision's MViT: attention over the tubelets of a clip, whose queries, keys and values are pooled as maps.

A block that changes the width, or pools its queries, belongs to the downsampling before the blocks of its stage, so
that every block keeps its shape. Tokens cannot be inserted: the pooling lays all but the class token out as a map. The
model states its grid, so that clips of another size or length are not taken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.video.mvit import MultiscaleAttention, MultiscaleBlock, _add_rel_pos, _add_shortcut

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, norm, own_parameters, projection, site
from ..convolutional import norm_width
from ..describe import FramesRule, UnknownBackbone, family
from ..inputs import InputSpec
from ..library_create import UnsuitableSize
from ..places import Place
from ..points import Layout, Point
from ..staged import BlockMaker, Passage, lay_out

NO_TOKENS = "its attention pools all tokens but the class token as a map, which has no room for further ones"


class EditedMultiscaleAttention(MultiscaleAttention):  # type: ignore[misc]
    """torchvision's attention with edits between the pooled q, k, v and their use; bit-equal to it without.

    Further keys come first and have no position (bias 0).
    """

    def forward(self, x: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        batch, count, _ = x.shape
        made = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).transpose(1, 3)
        q, k, v = made.unbind(dim=2)
        k, k_thw = (k, sizes) if self.pool_k is None else self.pool_k(k, sizes)
        v = v if self.pool_v is None else self.pool_v(v, sizes)[0]
        q, sizes = (q, sizes) if self.pool_q is None else self.pool_q(q, sizes)
        core: Any = self.__dict__["vpeft_core"]
        keys = k.shape[2]
        q, k, v = core(q, k, v)
        scores = core.scores(torch.matmul(self.scaler * q, k.transpose(2, 3)))
        if self.rel_pos_h is not None and self.rel_pos_w is not None and self.rel_pos_t is not None:
            further = k.shape[2] - keys
            own = scores[..., further:].clone() if further else scores
            own = _add_rel_pos(own, q, sizes, k_thw, self.rel_pos_h, self.rel_pos_w, self.rel_pos_t)
            scores = torch.cat([scores[..., :further], own], dim=-1) if further else own
        x = torch.matmul(core.weights(scores.softmax(dim=-1)), v)
        if self.residual_pool:
            x = _add_shortcut(x, q, self.residual_with_cls_embed)
        out: Tensor = self.project(x.transpose(1, 2).reshape(batch, -1, self.output_dim))
        return out, sizes


class WithGrid(nn.Module):
    """A block as a function of its tokens; it holds the live block without being its parent."""

    def __init__(self, block: nn.Module, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.inner, self.grid = (block,), grid

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner[0].forward(x, self.grid)[0]
        return out


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """The number that the model was made for is the only one."""
    own = _size(model)[0]
    if frames == own:
        return []
    raise UnsuitableSize(
        f"{type(model).__name__} was made for {own} frames, on which the shapes of its blocks depend, and {frames} are"
        f" wanted. Take {own}, or a model without such shapes (torchvision:swin3d_t)."
    )


def _size(model: nn.Module) -> tuple[int, int, int]:
    """Frames, height and width of the clips."""
    net: Any = model
    time, high, wide = (int(cells) * int(step) for cells, step in zip(_grid(model), net.conv_proj.stride, strict=True))
    return time, high, wide


def _grid(model: nn.Module) -> tuple[int, int, int]:
    net: Any = model
    return (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)


def _pooled(model: nn.Module, clips: Tensor) -> Tensor:
    net: Any = model
    x, sizes = net.pos_encoding(net.conv_proj(clips).flatten(2).transpose(1, 2)), _grid(model)
    for block in net.blocks:
        x, sizes = block(x, sizes)
    pooled: Tensor = net.norm(x)[:, 0]
    return pooled


def _head(model: nn.Module) -> nn.Module:
    net: Any = model
    found: nn.Module = net.head
    return found


@family("torchvision_mvit", "torchvision.models.video.mvit.MViT", fit_frames=fit_frames)
def describe_torchvision_mvit(model: nn.Module) -> Backbone:
    """torchvision MViT, versions 1 and 2: pooled attention over clips, with a class token."""
    net: Any = model
    frames, high, wide = _size(model)
    patch, positions, (steps, *grid) = net.conv_proj, net.pos_encoding, _grid(model)
    stride, size = int(patch.stride[1]), (high, wide)
    made_of: list[Passage | BlockMaker] = []
    for module in net.blocks:
        step, pool = _step(module, (steps, grid[0], grid[1]))
        made_of.append(step)
        grid = [-(-side // pool) for side in grid]
    made = lay_out(made_of, size, stride, Layout.TOKENS, prefix=1, frames=steps)
    first, last, depth = made.stages[0], made.stages[-1], made.where.depth
    start = Where(-1, Layout.TOKENS, tuple(positions.spatial_size), 1, stride, frames=steps)
    entering = Point(net.blocks[0], "input")
    names = {
        "cls_token": "class_token",
        "pos_embed": "spatial_pos",
        "time_embed": "temporal_pos",
        "cls_pos": "class_pos",
    }
    own = {ours: (positions, theirs) for ours, theirs in names.items() if positions._parameters.get(theirs) is not None}
    end = Where(depth, Layout.TOKENS, made.where.grid, 1, made.where.stride, frames=steps)
    channels = int(patch.in_channels)
    return Backbone(
        module=model,
        facts=Facts(
            family="torchvision_mvit",
            library="torchvision",
            architecture=type(model).__name__,
            image_size=size,
            depth=depth,
            width=norm_width(net.norm),
            prefix_tokens=1,
            pooling="token",
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(patch, "input"), channels),
        trunk=outline.trunk(made.stages, first.width, last.width, enter=entering),
        stages=made.stages,
        norm=norm("norm", net.norm, end, norm_width(net.norm)),
        others=[
            projection("patch", patch, start.but(Layout.CHANNELS_FIRST, prefix=0)),
            outline.embedding(Point(positions, "output"), start, int(patch.out_channels), own=own),
            *made.tail,
        ],
        pooled=_pooled,
        classifier=_head,
        end=None if made.behind is None else Point(made.behind, "input"),
        inputs=InputSpec(size, channels, layout="clips", names=("clips",), frames=frames),
        no_tokens=NO_TOKENS,
    )


def _step(module: Any, grid: tuple[int, int, int]) -> tuple[Passage | BlockMaker, int]:
    """A block, or what pools its queries or changes the width, and by how much it divides the grid in height."""
    if type(module) is not MultiscaleBlock or module.needs_transposal:
        raise UnknownBackbone(
            f"One block is a {type(module).__name__}; torchvision_mvit describes MultiscaleBlock with LayerNorm."
        )
    pool = (1, 1, 1) if module.pool_skip is None else tuple(int(side) for side in module.pool_skip.pool.stride)
    if pool[0] != 1 or pool[1] != pool[2]:
        raise UnknownBackbone(f"One block pools its queries by {pool}; places are known where time is not pooled.")
    if pool[1] > 1 or module.project is not None:
        return Passage(WithGrid(module, grid), lambda name, where: _changes(name, module, where), pool[1]), pool[1]
    return lambda index, stage, where: _block(index, module, where), 1


def _block(index: int, module: Any, where: Where) -> Block:
    name, width = f"blocks.{index}", norm_width(module.norm1)
    attn = _attention(f"{name}.attn", module.attn, where, width)
    linears = [part for part in module.mlp if isinstance(part, nn.Linear)]
    fc1, fc2 = (projection(f"{name}.mlp.fc{number}", layer, where) for number, layer in enumerate(linears, start=1))
    ends = Point(module.mlp, "input"), Point(module.mlp, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, where, width, {"fc1": fc1, "fc2": fc2}, None, (fc1,))
    # one module drops both branches: which call is meant, what ran before it tells
    calls = (module.attn, module.mlp)
    drops = [Point(module.stochastic_depth, "output", calls=calls, call=number) for number in (0, 1)]
    first, second = module.norm1, module.norm2
    return outline.residual_pair(
        index,
        module,
        (
            outline.Residual(attn, Point(first, "input"), drops[0], first, attn.consumers, attn.proj),
            outline.Residual(mlp, Point(second, "input"), drops[1], second, mlp.consumers, fc2),
        ),
        where,
        width,
        drop_path=float(module.stochastic_depth.p),
    )


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    """With the poolings that have weights; they see the heads of a clip as rows of the batch."""
    qkv = projection(f"{name}.qkv", module.qkv, where)
    third = qkv.width // 3
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        parts[letter] = projection(f"{name}.{letter}", module.qkv, where, (offset * third, (offset + 1) * third))
    parts |= _pools(name, module, where)
    parts["proj"] = projection(f"{name}.proj", module.project[0], where)
    core = attention_core(f"{name}.core", module, EditedMultiscaleAttention, where, third, int(module.num_heads))
    if module.pool_k is not None and max(module.pool_k.pool.stride) > 1:
        core.grid, core.reduced = None, True
    parts["core"] = core
    ends = Point(module, "input"), Point(module, "output", 0)
    return site(name, AttentionSite, *ends, where, width, parts, own_parameters(module), (qkv,))


def _pools(name: str, module: Any, where: Where) -> dict[str, Place]:
    parts: dict[str, Place] = {}
    for letter in "qkv":
        pool = getattr(module, f"pool_{letter}")
        if pool is not None:
            here = where.but(Layout.CHANNELS_FIRST, prefix=0)
            parts[f"{letter}_pool"] = projection(f"{name}.{letter}_pool", pool.pool, here)
            after = pool.norm_act[0]
            parts[f"{letter}_norm"] = norm(f"{name}.{letter}_norm", after, where, norm_width(after))
            parts[f"{letter}_norm"].verbs = frozenset({"unfreeze"})  # it sees the heads apart, (B, heads, N, d)
    return parts


def _changes(name: str, module: Any, where: Where) -> dict[str, Place]:
    """Norms and projections of a block that pools or widens; `reduction` makes its shortcut, if a linear map does."""
    linears = [part for part in module.mlp if isinstance(part, nn.Linear)]
    parts: dict[str, Place] = {
        "norm1": norm(f"{name}.norm1", module.norm1, where, norm_width(module.norm1)),
        "qkv": projection(f"{name}.attn.qkv", module.attn.qkv, where),
        **_pools(f"{name}.attn", module.attn, where),
        "proj": projection(f"{name}.attn.proj", module.attn.project[0], where),
        "norm2": norm(f"{name}.norm2", module.norm2, where, norm_width(module.norm2)),
        "fc1": projection(f"{name}.mlp.fc1", linears[0], where),
        "fc2": projection(f"{name}.mlp.fc2", linears[1], where),
    }
    if module.project is not None:
        parts["reduction"] = projection(f"{name}.reduction", module.project, where)
    return parts
