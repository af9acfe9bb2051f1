"""docs/speed.md from the results of `speed.py` and of the benchmarks beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# case -> variant -> aims: share of the reference's time, and of the bytes that it saves for the backward pass (or None)
AIMS: dict[str, dict[str, tuple[float, float | None]]] = {
    "lora, rank 8, qkv, fp32": {"vpeft, auto": (0.92, 0.94), "vpeft, auto,low_memory": (1.0, 0.55)},
    "lora, rank 8, qkv, bf16": {"vpeft, auto": (0.65, None)},
    "vpt_deep, 10 prompts, fp32": {"auto": (0.90, None)},
    "vpt_deep, 100 prompts, fp32": {"auto": (0.65, None)},
    "ssf, fp32": {"auto": (0.95, 0.65)},
    "ssf, bf16": {"auto": (0.87, 0.52)},
}
RUN_AIMS = {"linear_probe": 50.0, "partial_k, k = 1": 15.0, "lora in the last four blocks": 1.8}
RUN_AIMS |= dict.fromkeys(("lst", "lst, heads = 1"), 5.0)
IMPORT_AIM = 1.15
SERVING_AIM = 1.05


def page(result: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as Markdown; `beside` holds the results of the other benchmarks by name."""
    lines = [
        "# Speed and memory",
        "",
        "Written by `python benchmarks/speed.py`; do not edit. [Accelerations](acceleration.md) says what"
        " `--acceleration` does and what each name means.",
        "",
        f"Measured on one thread of a processor ({result['processor']}, {result['cores']} cores), torch"
        f" {result['torch']}; random images, random weights, AdamW. The variants of a case alternate step by step in"
        " one process. Times are processor times. A ratio divides a step's time by the reference's step of the same"
        " round; the tables give the median over rounds, the smallest and the largest. *Saved tensors* are the bytes"
        f" that autograd saves for the backward pass, counted exactly. {_loads(result)} processes competed for the"
        " cores during the measurement, so times are noisy. The project set the aims before it measured; a dash means"
        " no aim.",
    ]
    lines += _steps(result["steps"])
    lines += _every(result.get("every", {}))
    lines += _dense(beside.get("dense_speed", result))
    lines += _runs(result["runs"])
    lines += _passes(result.get("together", {}))
    lines += _imports(result.get("imports", {}))
    lines += _batched(beside.get("batched_adapters"))
    lines += _serving(beside.get("serving"))
    lines += _compiled(beside.get("compile_blocks"))
    lines += _growth(beside.get("growth"))
    lines += _gpu(beside.get("gpu"))
    return "\n".join(lines)


def _loads(result: Mapping[str, Any]) -> str:
    parts = (
        result[part].values() for part in ("steps", "every", "dense", "runs", "together", "imports") if part in result
    )
    loads = [one["load"] for part in parts for one in part if "load" in one]
    return f"{min(loads):.0f} to {max(loads):.0f}"


def _met(value: float, aim: float | None, least: bool = False) -> str:
    """The aim, and whether it is met at the two digits that are shown."""
    if aim is None:
        return "–"
    ok = round(value, 1) >= aim if least else round(value, 2) <= aim
    return f"{'at least' if least else 'at most'} {aim:g}: {'met' if ok else 'missed'}"


def _steps(cases: Mapping[str, Any]) -> Iterable[str]:
    yield from (
        "",
        "## One training step",
        "",
        "The model is ViT-Ti/16 at 224 unless the row names another.",
        "",
        "| case | variant | batch | time | | aim | saved tensors | aim | accelerations in use |",
        "|---|---|---|---|---|---|---|---|---|",
    )
    for title, case in cases.items():
        for name, value in case["variants"].items():
            aims = AIMS.get(title.removeprefix("ViT-S, "), {}).get(name, (None, None))
            if name == case["reference"]:
                milliseconds, mebibytes = 1000 * value["seconds"], value["bytes"] / 2**20
                shown = f"1 ({milliseconds:.0f} ms) | | – | 1 ({mebibytes:.0f} MiB) | –"
            else:
                shown = (
                    f"{value['ratio']:.2f} | {value['least']:.2f} to {value['most']:.2f} |"
                    f" {_met(value['ratio'], aims[0])} | {value['bytes_ratio']:.2f} |"
                    f" {_met(value['bytes_ratio'], aims[1])}"
                )
            yield f"| {title} | {name} | {case.get('batch', 8)} | {shown} | {', '.join(value['in_use'])} |"
    behind = [
        f"{title} ({name})"
        for title, case in cases.items()
        if case["reference"] == "peft"
        for name, value in case["variants"].items()
        if name.startswith("vpeft") and value["least"] > 1
    ]
    yield ""
    yield "peft is faster in every round than: " + ("; ".join(behind) or "none of these variants") + "."
    half, full = (cases.get(f"lora, rank 8, qkv, {precision}", {}).get("variants") for precision in ("bf16", "fp32"))
    if not half or not full:
        return
    yield ""
    slow = half["peft"]["seconds"] / full["peft"]["seconds"]
    if slow > 2:
        yield (
            "This processor has no bf16 instructions. It emulates them, and the matrix products then take nearly the"
            f" whole step ({slow:.0f} times the fp32 step). So the rows in bf16 cannot show whether the aims are met:"
            " LoRA at most 0.65 of peft's time, and 0.90 of peft with the same attention kernel; SSF at most 0.87 in"
            " time and 0.52 in saved tensors. These have not been measured on a processor with bf16 instructions."
        )
        return
    ratio = half["vpeft, auto"]["ratio"] / half["peft, plain products"]["ratio"]
    yield (
        "In bf16, a user of peft can choose the same attention kernel by hand; against that, vpeft takes"
        f" {ratio:.2f} of the time ({_met(ratio, 0.90)})."
    )


def _dense(result: Mapping[str, Any]) -> Iterable[str]:
    """The cost of each method on segmentation models."""
    cases = result.get("dense", {})
    made = [case for case in cases.values() if "ratio" in case]
    if not made:
        return
    first = made[0]
    loads = sorted(case["load"] for case in made)
    heads = ",".join(dict.fromkeys(case["decoder"] for case in cases.values()))
    names = ",".join(dict.fromkeys(case["method"] for case in cases.values()))
    yield from (
        "",
        "## Segmentation: methods against full tuning",
        "",
        f"Swin-T at 256 x 256 with 19 classes, {first['images']} image in a batch, fp32, default settings, `auto`;"
        f" torch {result['torch']}, one thread. Times and bytes are relative to full tuning of the same model, whose"
        " steps alternate with the method's. The head trains in every row. Load average of the machine during the"
        f" measurement: {loads[0]:.0f} to {loads[-1]:.0f} on {result['cores']} cores, so times are"
        " noisy and bytes are not.",
        "",
        "```",
        f"python benchmarks/speed.py --only dense --heads {heads} --dense-batch {first['images']}"
        f" --rounds {first['rounds']} \\",
        f"  --methods {names} \\",
        "  --out benchmarks/results/dense_speed.json",
        "```",
    )
    for head in dict.fromkeys(case["decoder"] for case in made):
        mine = {case["method"]: case for case in cases.values() if case["decoder"] == head}
        full = next(case for case in mine.values() if "ratio" in case)
        seconds = sorted(case["seconds_of_full"] for case in mine.values() if "ratio" in case)
        yield from (
            "",
            f"Under `{head}`, {full['head'] / 1e6:.1f} M parameters, a step of full tuning takes"
            f" {1000 * seconds[len(seconds) // 2]:.0f} ms and saves {full['bytes_of_full'] / 2**20:.0f} MiB.",
            "",
            "| method | trained in the backbone | time | | saved tensors | accelerations in use |",
            "|---|---|---|---|---|---|",
            "| full_finetuning | all | 1 | | 1 | |",
        )
        for title, case in sorted(mine.items(), key=lambda item: item[1].get("bytes", 1 << 60)):
            if "refused" in case:
                yield f"| {title} | – | – | | – | {case['refused']} |"
                continue
            yield (
                f"| {title} | {case['trainable']:,} | {case['ratio']:.2f} | {case['least']:.2f} to {case['most']:.2f} |"
                f" {case['bytes'] / case['bytes_of_full']:.2f} | {', '.join(case['in_use'])} |"
            )


def _every(cases: Mapping[str, Any]) -> Iterable[str]:
    if not cases:
        return
    yield from (
        "",
        "## Every method against its plain form",
        "",
        "ViT-Ti/16 at 224, fp32, default settings. Aim: neither ratio above 1. Methods without an acceleration differ"
        " from 1 by noise only.",
        "",
        "| method | time | | saved tensors | accelerations in use |",
        "|---|---|---|---|---|",
    )
    for title, case in sorted(
        cases.items(), key=lambda item: item[1].get("variants", {}).get("auto", {}).get("ratio", 9)
    ):
        if "refused" in case:
            yield f"| {title} | – | | – | {case['refused']} |"
            continue
        value = case["variants"]["auto"]
        yield (
            f"| {title} | {value['ratio']:.2f} | {value['least']:.2f} to {value['most']:.2f} |"
            f" {value['bytes_ratio']:.2f} | {', '.join(value['in_use'])} |"
        )
    made = {title: case["variants"]["auto"] for title, case in cases.items() if "variants" in case}
    slower = sorted(title for title, value in made.items() if value["least"] > 1)
    larger = sorted(title for title, value in made.items() if value["bytes_ratio"] > 1)
    yield ""
    yield (
        f"Slower in every round: {', '.join(slower) or 'none'}. More bytes in saved tensors:"
        f" {', '.join(larger) or 'none'}. Median time below 0.99:"
        f" {sum(value['ratio'] < 0.99 for value in made.values())} of {len(made)}."
    )


def _runs(cases: Mapping[str, Any]) -> Iterable[str]:
    yield from (
        "",
        "## A whole run: 100 epochs of 1,000 images",
        "",
        "ViT-Ti/16 at 224, batch 16. The time is extrapolated from the costs of `vpeft.fit` per run, per image, per"
        " epoch and per image and epoch, which are measured with two numbers of images. The table gives the median of"
        " several estimates, the smallest and the largest.",
        "",
        "| method | times faster | | aim | plain epoch | epoch on cached outputs | step |",
        "|---|---|---|---|---|---|---|",
    )
    for name, one in cases.items():
        plain, fast = one["epoch_seconds"]["plain"], one["epoch_seconds"]["recorded"]
        yield (
            f"| {name} | {one['times_faster']:.1f} | {one['least']:.1f} to {one['most']:.1f} |"
            f" {_met(one['times_faster'], RUN_AIMS.get(name), least=True)} | {plain:.2f} s |"
            f" {fast:.3f} s | {one['step_ratio']:.0f}x |"
        )


def _passes(found: Mapping[str, Any]) -> Iterable[str]:
    """Several runs in one pass."""
    if not found:
        return
    yield from (
        "",
        "## Several runs in one pass, of 1,000 images",
        "",
        "`vpeft.fit_together` compared with as many calls of `vpeft.fit`, estimated as above; the learning rates"
        " differ. Aim: at most 0.3 of the time of single runs.",
        "",
        "| runs | compared with | time | |",
        "|---|---|---|---|",
    )
    words = {
        "records": "single runs, each with its own cache",
        "plain": "single runs without accelerations",
        "changing": "single runs, on images that change from epoch to epoch",
    }
    for title, one in found.items():
        for name, value in one["ratios"].items():
            yield f"| {title} | {words[name]} | {value['ratio']:.3f} | {value['least']:.3f} to {value['most']:.3f} |"


def _imports(found: Mapping[str, Any]) -> Iterable[str]:
    if not found:
        return
    one = found["import"]
    seconds = one["seconds"]
    yield from (
        "",
        "## Importing",
        "",
        f"In a fresh interpreter, `import torch, timm` takes {seconds['torch, timm']:.2f} s of processor time."
        f" Importing vpeft and everything that `vpeft.tune` needs takes {one['ratio']:.2f} [{one['least']:.2f} to"
        f" {one['most']:.2f}] of that ({_met(one['ratio'], IMPORT_AIM)}). `import vpeft` alone takes"
        f" {seconds['bare']:.2f} s, because it loads torch on first use.",
    )


def _batched(found: Mapping[str, Any] | None) -> Iterable[str]:
    if not found:
        return
    yield from (
        "",
        "## Small runs in one pass",
        "",
        "`python benchmarks/batched_adapters.py` compares an epoch of several runs with `auto,batched_adapters` to the"
        " sum of their epochs one after the other.",
        "",
        "| backbone | method | batch | runs | relative to `auto` | | relative to `off` | |",
        "|---|---|---|---|---|---|---|---|",
    )
    for row in found["rows"]:
        cells = " | ".join(
            f"{row['against'][choice]['ratio']:.2f} | {row['against'][choice]['least']:.2f} to"
            f" {row['against'][choice]['most']:.2f}"
            for choice in ("auto", "off")
        )
        yield f"| {row['backbone']} | {row['method']} | {row['batch']} | {row['runs']} | {cells} |"


def _serving(found: Mapping[str, Any] | None) -> Iterable[str]:
    if not found:
        return
    yield from (
        "",
        "## Serving several adapters",
        "",
        "`python benchmarks/serving.py` runs 16 images through several adapters, without gradients, on ViT-Ti/16 at"
        f" 224. Time relative to the bare backbone (aim: at most {SERVING_AIM:g}).",
        "",
        "| method | adapters | one pass | | one after the other | | peft, `adapter_names` | |",
        "|---|---|---|---|---|---|---|---|",
    )
    for row in found["rows"]:
        cells = []
        for way in ("one pass", "one after the other", "peft, adapter_names"):
            one = row["ways"].get(way)
            cells.append(f"{one['ratio']:.2f} | {one['least']:.2f} to {one['most']:.2f}" if one else "– | ")
        yield f"| {row['method']} | {row['adapters']} | {' | '.join(cells)} |"


def _compiled(found: Mapping[str, Any] | None) -> Iterable[str]:
    if not found:
        return
    yield from (
        "",
        "## Compiled blocks",
        "",
        "`python benchmarks/compile_blocks.py` compares `auto,compile_blocks` with `auto`, as above.",
        "",
        "| method | precision | step | | saved tensors | set-up |",
        "|---|---|---|---|---|---|",
    )
    for row in found["rows"]:
        low, high = row["noise"]
        yield (
            f"| {row['method']} | {row['precision']} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |"
            f" {row['kept_ratio']:.2f} | {row['setup_seconds']:.0f} s |"
        )
    if all(row["noise"][1] > 1 for row in found["rows"]):
        yield ""
        yield "The gain is within the noise, so it is used on request only."


def _growth(found: Mapping[str, Any] | None) -> Iterable[str]:
    if not found:
        return
    yield from (
        "",
        "## How cost grows",
        "",
        "`python benchmarks/growth.py` varies one quantity at a time; the others stay at batch 4, 196 patches, 12"
        " blocks of ViT-Ti, rank 8, 10 prompts. Times are relative to the first point of the first line of each panel."
        " For adapters, the time is that of serving a batch of 16 images through several LoRA adapters, relative to the"
        " bare backbone.",
        "",
        "![Time and saved tensors against batch, tokens, depth, rank, prompts and adapters](images/growth.png)",
        "",
        "| what varies | line | " + "from | to | time grows | saved tensors grow |",
        "|---|---|---|---|---|---|",
    )
    for panel, one in found["panels"].items():
        for line, points in one["lines"].items():
            first, last = points[0], points[-1]
            kept = "–" if not first.get("bytes") else f"{last['bytes'] / first['bytes']:.2f}x"
            yield (
                f"| {panel} | {line} | {first['at']} | {last['at']} |"
                f" {last['seconds'] / first['seconds']:.2f}x | {kept} |"
            )


def _gpu(found: Mapping[str, Any] | None) -> list[str]:
    """What `gpu.py` measured; without its results, a sentence that says so."""
    if not found or found["tiny"] or found["device"] == "cpu":  # a trial of the program says nothing of speed
        return ["", "Nothing on this page was measured on a GPU.", ""]
    gpu, versions = found["gpu"], found["versions"]
    lines = [
        "",
        "## On a GPU",
        "",
        f"`python benchmarks/gpu.py` on one {gpu['name']} ({gpu['bytes'] / 2**30:.0f} GiB), torch {versions['torch']},"
        f" {found['date']}: bf16, random images of 224 pixels on the device, random weights, AdamW. Speeds are medians"
        " over steps, with the slowest and the fastest step. A part that ran out of time has fewer rows.",
    ]
    parts = found["parts"]
    for part, title in (("training", "Training"), ("compiled", "Training, compiled")):
        if rows := parts.get(part, {}).get("rows"):
            lines += ["", f"### {title}", "", *_gpu_training(rows)]
    if rows := parts.get("batched", {}).get("rows"):
        lines += [
            "",
            "### Several runs in one pass",
            "",
            "| model | runs | batch of each | images/s in one pass | images/s one after the other | time |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            start = f"| {row['model']} | {row['runs']} | {row['batch']}"
            if "failed" in row:
                lines.append(f"{start} | {_in_cell(row['failed'])} | | |")
                continue
            speeds = f"{row['images_per_second']:.0f} | {row['images_per_second_alone']:.0f}"
            lines.append(f"{start} | {speeds} | {row['ratio']:.2f} |")
    if rows := parts.get("serving", {}).get("rows"):
        columns = ("backbone", "one pass", "one after the other", "merged", "peft, adapter_names")
        lines += [
            "",
            "### Serving several adapters",
            "",
            f"Images a second, {rows[0]['images']} images in a batch.",
            "",
            f"| method | adapters | {' | '.join(columns)} |",
            f"|---|---|{'---|' * len(columns)}",
        ]
        for row in rows:
            speeds = row.get("images_per_second", {})
            cells = [f"{speeds[one]:.0f}" if one in speeds else "–" for one in columns]
            lines.append(f"| {row['method']} | {row['adapters']} | {' | '.join(cells)} |")
    if rows := parts.get("tests", {}).get("rows"):
        counts = {word: sum(row[word] for row in rows) for word in ("passed", "failed", "error", "skipped")}
        lines += ["", "GPU tests: " + ", ".join(f"{count} {word}" for word, count in counts.items()) + "."]
    return [*lines, ""]


def _gpu_training(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    yield "| model | way | trained | batch | images/s | | peak memory | set-up |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        start = f"| {row['model']} | {row['way']}"
        if "failed" in row:
            yield f"{start} | | | {_in_cell(row['failed'])} | | | |"
            continue
        speed = f"{row['images_per_second']:.0f} | {row['slowest']:.0f} to {row['fastest']:.0f}"
        yield (
            f"{start} | {row['trained']:,} | {row['batch']} | {speed} | {row['peak_bytes'] / 2**30:.2f} GiB |"
            f" {row['set_up_seconds']:.1f} s |"
        )


def _in_cell(text: str) -> str:
    """One line of text that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "/")[:120]
