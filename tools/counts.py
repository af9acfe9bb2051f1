"""Write docs/counts.md: trained parameters of each method against its paper, and the lines of each method's file.

python tools/counts.py            write
python tools/counts.py --check    say whether it is stale, and exit with 1 if it is

Everything is counted on the meta device, without weights. A row that differs from its paper must say why,
or this fails.
"""

from __future__ import annotations

import ast
import copy
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "counts.md"
METHODS = ROOT / "src" / "vpeft" / "methods"
VIT, SWIN_B, SWIN_L = "vit_base_patch16_224", "swin_base_patch4_window7_224", "swin_large_patch4_window7_224"
CLASSES = 100
WIDTHS = {VIT: 768, SWIN_B: 1024, SWIN_L: 1536}
VTAB_HEAD, FGVC_HEAD = 38_045, 180_407  # the mean head on 768 channels: 940 classes in 19 tasks, 1173 in 5
# A detector norms the output of each stage; a classifier only the last one's.
NORMS_B, NORMS_L = 2 * (128 + 256 + 512), 2 * (192 + 384 + 768)


@dataclass(frozen=True)
class Row:
    """One setting of one method.

    Attributes:
        exact: the count by the paper's formula or the authors' code, without the head; None where there is none.
        printed: the figure as published, such as "0.29M".
        plus: what the printed figure counts beyond ours, and `reason` says what that is.
        reason: why ours, with `plus`, is not the published one; or what `plus` is.
    """

    method: str
    exact: int | None
    printed: str = ""
    reason: str = ""
    plus: int = 0
    backbone: str = VIT
    fields: dict[str, Any] = field(default_factory=dict)


def _bench() -> list[Row]:
    r, head = Row, "the print includes the mean head"
    dense = "the print has a detector's norms behind all four stages"
    return [
        r("full_finetuning", 85_798_656, "85.8M"),
        r("linear_probe", 0, "0M"),
        r("mlp_head", 1_776_384, "0M", "the hidden layers are the head's: papers count none", -1_776_384),
        r("partial_k", 7_089_408, "7.09M"),
        r("partial_k", 14_177_280, fields={"k": 2}),
        r("partial_k", 28_353_024, fields={"k": 4}),
        r("bitfit", 102_912, "0.10M"),
        r("ln_tune", 38_400),
        r("difffit", 140_544),
        r("adapter", 156_768, "0.16M"),
        r("adapter", 2_379_264, "2.38M", fields={"variant": "houlsby"}),
        r("adapter", 1_779_840, fields={"variant": "vpt"}),
        r("adapter", 894_528, fields={"variant": "pfeiffer"}),
        r("adaptformer", 1_189_632, "1.19M"),
        r("adaptformer", 156_768, "0.16M", fields={"bottleneck": 8}),
        r("sct", 111_744, "0.11M"),
        r("u_tuning", 313_536, "0.36M", "which combination the print counts could not be verified (no code)"),
        r("vpt_shallow", 76_800, "0.08M"),
        r("vpt_shallow", 76_800, "0.25M", f"{head} and truncates; the prompt length varies over tasks", FGVC_HEAD),
        r("vpt_deep", 92_160),
        r("vpt_deep", 460_800, "0.56M", "the print is a mean over tasks with 1 to 200 prompts", fields={"tokens": 50}),
        r("vfpt", 92_160),
        r("prefix_tuning", 368_640, "0.36M", "the print truncates"),
        r("ssf", 205_824, "0.21M"),
        r("ssf", 205_824, "0.39M", head, FGVC_HEAD),
        r("lora", 294_912, "0.29M"),
        r("lora", 589_824, "0.77M", head, FGVC_HEAD, fields={"rank": 16}),
        r("lora", 1_327_104, fields={"targets": ("q", "k", "v", "proj", "fc1", "fc2")}),
        r("noah", None, "0.43M", "a found sub-network; its count depends on the search, the supernet is not counted"),
        r("fact_tt", 21_504, fields={"rank": 8}),
        r("fact_tt", 61_440, "0.037M", "the print is a mean over tasks with R = 8 or 16"),
        r("fact_tk", 30_976, fields={"rank": 16}),
        r("fact_tk", 86_528, "0.069M", "the print is a mean over tasks with R = 16 or 32"),
        r("repadapter", 239_808, "0.22M", "the print counts no biases", -18_624),
        r("hydra", 239_712, "0.28M", head, VTAB_HEAD),
        r("convpass", 327_552, "0.33M"),
        r("convpass", 163_776, "0.16M", fields={"sites": ("attn",)}),
        r("lst", 2_376_492, "2.38M"),
        r("dtl", 36_864, "0.04M"),
        r("dtl_plus", 43_776, "0.05M", "the print is a mean over tasks with kernels of 3 to 5"),
        r("hst", 764_840, "0.78M", f"{head} on 72 channels", 17_126),
        r("gps", 167_424, "0.22M", f"{head}, and camelyon has k = 2; that makes 0.21", VTAB_HEAD + 83_712 // 19),
        r("gps", 251_136, fields={"k": 2}),
        r("last", 608_256, "0.66M", "13 modules of 50,688 would be the print; no code tells where the last one is"),
        r("snf", 36_864, "0.036M", "the abstract truncates"),
        r(
            "snf",
            627_072,
            "0.25M",
            "the default of the code; which n the benchmark prints is unknown",
            fields={"length": 16},
        ),
        r(
            "bapat",
            2_093_184,
            "2.06M",
            "m = 32 is the nearest; the m of the print is not stated",
            fields={"hidden": 32},
        ),
        r("lorand", 918_528),
        r("lorand", 1_203_456, "1.20M", backbone=SWIN_B),
        r("lorand", 1_799_040, "1.31M", "not what the authors' code makes", backbone=SWIN_L),
        r("e3va", None, "1.20M", dense, NORMS_B, SWIN_B),
        r("e3va", None, "1.79M", dense, NORMS_L, SWIN_L),
        r("mona", 2_684_928),
        r("mona", 3_667_456, "4.16M", "not what the authors' code makes", backbone=SWIN_B),
        r("mona", 5_267_712, "5.08M", "not what the authors' code makes", backbone=SWIN_L),
    ]


def _around() -> list[Row]:
    r = Row
    six = ("k", "v", "fc1")
    return [
        r("visual_prompting_pixel", 69_840),
        r("side_tuning", 9_547_585, fields={"side": "alexnet"}),
        r("synqt", 2_650_514, "", "18,469 numbers that the authors' forward never uses are left out", 18_469),
        r(
            "synqt",
            2_761_106,
            "",
            "18,469 numbers that the authors' forward never uses are left out",
            18_469,
            VIT,
            {"tokens": 16},
        ),
        r("ssl", 64_512),
        r("ssl", 27_648, fields={"targets": six}),
        r("ssb", 147_456),
        r("ssb", 82_944, fields={"targets": six}),
        r("ssb", 82_944, fields={"sides": "outputs"}),
        r("mpc", 294_912),
        r("attnscale", 5_606_928),
        r("attnscale", 465_708, fields={"share": "heads", "with_dra": False}),
        r("dra", 18_432),
        r("petal", 107_584),
        r("petal", 369_664, fields={"core": "tucker"}),
        r("patt", 3_558_912),
        r("vpetl_unified", 4_748_544),
        r("bapat", 6_201_088, "6.18M", "the print is of the video model", backbone=SWIN_B),
        r("u_tuner", 156_768),
        r("vptsp_g", 287_232),
        r("unipt", 2_215_489),
        r("unipt", 8_859_649, fields={"reduction": 1}),
        r("sherl", 2_809_538),
        r("sherl", 1_183_970, fields={"reduction": 8}),
        r("res_tuning_bypass", 387_324, "0.42M", "which bottleneck the print counts could not be verified"),
        r("res_tuning_bypass", 1_198_848, fields={"bottleneck": 32, "blend": "sum"}),
        r("gist", 768, fields={"bottleneck": 0}),
        r("gist", 83_760),
        r("cara", 85_440),
        r("uni_adapter", 9_470_976, fields={"bottleneck": 512}),
        r("approx_bp", 0),
        r("cvpt", 184_320),
        r("vapt", 55_608),
        r("pae", 92_160 + 327_680),
        r("self_prompt_tuning", 184_320),
        r("self_prompt_tuning", 76_800, fields={"deep": False, "tokens": 100}),
        r("lpt", 1_029_120),
        r("lpt", 92_160, fields={"stage": "shared"}),
        r("lpt", 936_960, fields={"stage": "groups"}),
        r("dam_vp", 69_840, fields={"clusters": 1}),
        r("ilm_vp", 147_456, fields={"width": 96}),
        r("sparse_tuning", 1_314_432, "1.1M", "the released sizes give more than the figure in its README shows"),
    ]


def _dense() -> list[Row]:
    r, rows = Row, []
    dense = "the print has a detector's norms behind all four stages"
    for model, norms, full, bias, lns, adapter, half, last in (
        (SWIN_B, NORMS_B, "86.75M", "0.20M", "0.06M", "3.11M", "3.11M", "12.60M"),
        (SWIN_L, NORMS_L, "198.58M", "0.30M", "0.09M", "4.66M", "4.66M", "28.34M"),
    ):
        wide = "; 198.58 is not the count of a Swin-L" if model == SWIN_L else ""
        rows += [
            r("full_finetuning", None, full, dense + wide, norms, model),
            r("bitfit", None, bias, dense, norms // 2, model, {"relative_position": True}),
            r("ln_tune", None, lns, dense, norms, model),
            r("adapter", None, adapter, backbone=model, fields={"variant": "houlsby"}),
            r("adaptformer", None, half, "the code has one adapter for each block: half of the print", 0, model),
            r("partial_k", None, last, "the print leaves out the final norm", -2 * WIDTHS[model], model),
        ]
    return rows


def counted(rows: list[Row]) -> dict[int, int]:
    """Trained parameters without the head, by the row's position."""
    import torch

    import vpeft
    from vpeft.backbones.create import create_backbone
    from vpeft.methods import get

    found = {}
    for backbone in dict.fromkeys(row.backbone for row in rows):
        with torch.device("meta"):
            model = create_backbone(backbone, pretrained=False)
        described = vpeft.describe(model)
        for place, row in enumerate(rows):
            kind = get(row.method)
            if row.backbone != backbone or row.method == "noah":
                continue
            # What trains in place leaves nothing to go back to, so it gets a copy.
            target = described if kind.restorable else copy.deepcopy(model)
            with torch.device("meta"):
                tuned = vpeft.tune(target, kind(**row.fields), verify=False, show=False)
            found[place] = sum(parameter.numel() for _, parameter in tuned.trainable())
            if kind.restorable:
                tuned.detach()
    return found


def fits(row: Row, ours: int) -> bool:
    """Whether the published figure, to its last digit, is ours with what it counts beyond."""
    number, _, decimals = row.printed.removesuffix("M").partition(".")
    unit = 10.0 ** -len(decimals)
    return abs((ours + row.plus) / 1e6 - float(f"{number}.{decimals or 0}")) <= unit / 2 + 1e-9


def page() -> str:
    """The page; AssertionError where a row differs from its paper and does not say why."""
    rows = [*_bench(), *_around(), *_dense()]
    ours = counted(rows)
    lines, zero = [], 0
    for place, row in enumerate(rows):
        short = row.backbone.split("_patch")[0]
        settings = ", ".join(f"{key}={value!r}" for key, value in row.fields.items())
        name = f"[{row.method}](methods.md#{row.method})" + (f" {settings}" if settings else "")
        if place not in ours:
            lines.append((name, short, "", "", "", row.printed, "", row.reason))
            continue
        count = ours[place]
        exact = None if row.exact is None else count + (row.plus if row.method == "synqt" else 0) - row.exact
        agrees = not row.printed or fits(row, count)
        assert row.reason or (not exact and agrees), f"{row}: {count:,} is not it, and nothing says why"
        assert not exact, f"{row}: {count:,} is not the formula's or the code's count"
        zero += exact is not None
        with_head = f"{count + CLASSES * (WIDTHS[row.backbone] + 1):,}" if row.method != "hst" else f"{count + 7300:,}"
        lines.append(
            (
                name,
                short,
                f"{count:,}",
                with_head,
                "" if exact is None else f"{exact:+,}" if exact else "0",
                row.printed,
                "" if not row.printed else "yes" if agrees else "no",
                row.reason,
            )
        )
    columns = ("method", "backbone", "trained", f"with a head of {CLASSES}", "difference", "printed", "fits", "remark")
    return (
        "\n\n".join(
            [
                "# Trained parameters against the papers\n<!-- Written by tools/counts.py. -->",
                "Counted on models of the papers' size. *difference* is our count minus the count by the paper's"
                " formula or the authors' code, without the head. *printed* is the published figure. *fits* says"
                " whether our count, corrected by what the remark names, rounds to it.",
                _table(columns, lines),
                f"The table has {len(lines)} rows. {zero} have a formula or code to compare with; their difference is"
                " zero.",
                "## Lines of the methods' files",
                _lines(),
            ]
        )
        + "\n"
    )


def _lines() -> str:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in METHODS.glob("*.py")}
    files = {name: text for name, text in texts.items() if re.search(r"^@register\(", text, re.MULTILINE)}
    whole = {name: len(text.splitlines()) for name, text in files.items()}
    ordered = sorted(whole.items(), key=lambda item: (item[1], item[0]))
    name, most = ordered[-1]
    return (
        f"{len(files)} files hold one method each. The median is {statistics.median(whole.values()):g} lines, the"
        f" largest file has {most} (`{name}.py`), the smallest {ordered[0][1]} (`{ordered[0][0]}.py`). Docstrings and"
        " imports count; without docstrings and blank lines the median is"
        f" {statistics.median(map(code_lines, files.values())):g}. Layers that several methods share are in `layers/`."
    )


def code_lines(text: str) -> int:
    """The lines of a module that are neither blank nor part of a string that stands by itself, such as a docstring."""
    said = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    prose = {line for node in said for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return sum(bool(line.strip()) and number not in prose for number, line in enumerate(text.splitlines(), 1))


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *rows))


def run(arguments: list[str]) -> int:
    """Write or check; 1 if it is stale when checking."""
    fresh = page()
    stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != fresh
    if stale and "--check" in arguments:
        print(f"stale: {PAGE.relative_to(ROOT)}; run `python tools/counts.py` and commit.")
    elif stale:
        PAGE.write_text(fresh, encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return int(stale and "--check" in arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(run(sys.argv[1:]))
