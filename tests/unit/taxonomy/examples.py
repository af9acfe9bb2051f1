"""Properties of methods that nobody registered, for tests of what is computed from properties."""

from __future__ import annotations

from dataclasses import replace

from vpeft.taxonomy.properties import Properties

ONE = Properties(
    name="one",
    family="reparameter",
    category="partial",
    year=2020,
    venue="arXiv",
    paper="2001.00001",
    backbone="vit",
    places=("blocks.*.attn.q", "blocks.*.attn.v"),
    reads=(),
    verbs=("parallel",),
    parameters=1000,
    share=0.001,
    adds_modules=True,
    keeps_structure=True,
    mergeable=True,
    latency=False,
    reach="full",
    identity=True,
    memory=0.7,
    trains=("D x r", "r x D"),
    keeps=(),
    shares=False,
    reads_data=False,
)
TWIN = replace(ONE, name="twin")
DIAGONAL = replace(ONE, name="diagonal", trains=("D", "r"), keeps=("D x r", "r x D"), parameters=60)
SIDE = replace(
    ONE, name="side", places=("outlet",), reads=("blocks.*",), verbs=("tap", "after"), mergeable=False, reach="none",
    trains=("r x r",),
)  # fmt: skip
EVERY = (ONE, TWIN, DIAGONAL, SIDE)
