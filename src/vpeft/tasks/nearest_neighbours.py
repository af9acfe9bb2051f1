"""Scores of retrieval by exact search for nearest neighbours, a part of the queries at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Similarities of one part: 2^24 in single precision are 64 MiB, and a handful of such tensors are alive at once.
AT_ONCE = 2**24


def retrieval_scores(
    queries: Tensor,
    query_classes: Tensor,
    gallery: Tensor,
    gallery_classes: Tensor,
    recall_at: Sequence[int],
    *,
    own: Tensor | None = None,
    query_copies: Tensor | None = None,
    gallery_copies: Tensor | None = None,
    at_once: int = AT_ONCE,
) -> dict[str, float]:
    """R@K, MAP@R and R-precision, each the mean over the queries that have an image of their class in the gallery.

    R@K is the share of the queries with an image of their class among the K nearest. With R such images in the gallery,
    R-precision is their share among the R nearest, and MAP@R = 1/R sum_{i <= R} P(i) rel(i), P(i) the precision among
    the i nearest and rel(i) whether the i-th is one (Musgrave et al., "A Metric Learning Reality Check", arXiv
    2003.08505). A query is left out of its own gallery by its place, so that an exact copy of it counts as any other
    image. Of images that are equally near, those of other classes come first, so that a model which maps all images to
    one point scores nothing by the order of the data.

    Args:
        queries, gallery: embeddings of length one (Q, E) and (N, E).
        query_classes, gallery_classes: class numbers (Q,) and (N,).
        recall_at: the K.
        own: place of each query in the gallery (Q,), -1 for none.
        query_copies, gallery_copies: numbers (Q,) and (N,), equal for images with equal content, which are then left
            out of each other's gallery; None to leave them in.
        at_once: similarities in memory at a time.

    Returns:
        `recall_at_K` for each K, `map_at_r`, `r_precision`, and `queries`, how many counted; NaN where none did.
    """
    names = [f"recall_at_{k}" for k in recall_at]
    sums = dict.fromkeys([*names, "map_at_r", "r_precision", "queries"], 0.0)
    rows = max(1, at_once // max(1, len(gallery)))
    for first in range(0, len(queries), rows):
        part = slice(first, first + rows)
        similar = queries[part] @ gallery.T
        same = query_classes[part, None] == gallery_classes[None]
        left_out = torch.zeros_like(same)
        if own is not None:
            there = (own[part] >= 0).nonzero().flatten()
            left_out[there, own[part][there]] = True
        if query_copies is not None and gallery_copies is not None:
            left_out |= query_copies[part, None] == gallery_copies[None]
        same &= ~left_out
        similar = similar.masked_fill(left_out, -torch.inf)
        counts = same.sum(1)
        counted = counts > 0
        sums["queries"] += int(counted.sum())
        if not bool(counted.any()):
            continue
        similar, same, left_out, counts = (one[counted] for one in (similar, same, left_out, counts))
        best = similar.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        nearer = ((similar >= best) & ~same & ~left_out).sum(1)
        for name, k in zip(names, recall_at, strict=True):
            sums[name] += int((nearer < k).sum())
        # one step of the number format back, so that others come first among equals
        ranked = torch.where(same, similar.nextafter(torch.full_like(similar, -torch.inf)), similar)
        deepest = int(counts.max())
        hits = same.gather(1, ranked.topk(deepest, dim=1).indices)
        places = torch.arange(1, deepest + 1, device=hits.device)
        hits &= places <= counts[:, None]
        precision = hits.cumsum(1).double() / places
        sums["map_at_r"] += float(((precision * hits).sum(1) / counts).sum())
        sums["r_precision"] += float((hits.sum(1).double() / counts).sum())
    found = sums["queries"]
    return {
        name: value if name == "queries" else value / found if found else float("nan") for name, value in sums.items()
    }
