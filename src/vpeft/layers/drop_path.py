"""Stochastic depth: in training, what a layer adds is left out for some rows of the batch, and scaled up for others."""

from __future__ import annotations

from timm.layers.drop import DropPath as DropPath
