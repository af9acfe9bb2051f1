"""How many of timm's models vpeft attaches to: every name, five methods, and what is live.

    python benchmarks/breadth.py                 # what is not in docs/breadth.json yet, or was not live there
    python benchmarks/breadth.py --fresh         # all of it
    python benchmarks/breadth.py --page          # only the page, from the file

Every name of `timm.list_models()` is built on the meta device, which costs no memory, described, and given each method
(with the first of its settings whose places exist). A name counts as live with LoRA where LoRA attaches and, on the
full-size model, one forward pass runs every edit and every new tensor is in the graph of its output. That pass is made
for one name of each kind first (a model class and the set of its modules' classes), and then for the others; a name
whose pass is still to be made counts by its kind, and the page says how many. Values exist only in a model that really
computes: the smallest name of each kind is also built with random weights and proved by `verify`, with small images
where it takes them. The run can be stopped and started again.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import vpeft
from vpeft.backbones.describe import UnknownBackbone
from vpeft.method import get_method as get

FOLDER = Path(__file__).resolve().parents[1] / "docs"
METHODS = ("lora", "adaptformer", "ssf", "bitfit", "vpt_deep")
SMALL = 130_000_000  # parameters of the largest model that is built with values


def probe(name: str, passed: set[str]) -> dict[str, Any]:
    """What becomes of one name: its class, family, and for each method whether it attaches, or the reason.

    The pass that shows LoRA alive is left out where the name's kind is among those `passed` already.
    """
    entry: dict[str, Any] = {"class": "", "family": None}
    try:
        model = fresh(name)
    except Exception as error:
        return {**entry, "reason": f"timm does not build it without weights: {type(error).__name__}"}
    entry["class"] = f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}"
    entry["parameters"] = sum(p.numel() for p in model.parameters())
    entry["kind"] = kind_of(model)
    try:
        described = vpeft.describe(model)
    except UnknownBackbone as error:
        return {**entry, "reason": "no family" if "No description knows" in str(error) else str(error)}
    except Exception as error:  # a bug: it is counted and listed, never hidden
        return {**entry, "reason": f"{type(error).__name__}: {error}"}
    entry["family"] = described.facts.family
    for method in METHODS:
        try:
            tuned, fields = attach(described, method)
            if method == "lora" and entry["kind"] not in passed:
                entry |= lives(tuned)
            entry[method] = {"attached": True, **({"fields": fields} if fields else {})}
            tuned.detach()
        except vpeft.VpeftError as error:
            entry[method] = {"attached": False, "reason": str(error)}
        except Exception as error:  # a bug: it is counted and listed, never hidden
            entry[method] = {"attached": False, "reason": f"{type(error).__name__}: {error}"}
            described = vpeft.describe(fresh(name))
    return entry


def fresh(name: str) -> nn.Module:
    """The model anew, after something went wrong halfway."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def kind_of(model: nn.Module) -> str:
    """A short name for the model's class and the classes of its modules."""
    import hashlib

    classes = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules()})
    return f"{type(model).__name__}-{hashlib.sha256(' '.join(classes).encode()).hexdigest()[:8]}"


def attach(model: vpeft.Backbone, method: str) -> tuple[vpeft.TunedModel, dict[str, Any]]:
    """The method on the model, with the first of its settings whose places exist."""
    kind, refusal = get(method), None
    for fields in ({}, *kind.variants):
        try:
            return vpeft.tune(model, kind(**fields), num_classes=2, verify=False, show=False), fields
        except vpeft.MissingPlace as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def lives(tuned: vpeft.TunedModel) -> dict[str, Any]:
    """Whether one pass over the model on meta runs every edit and reaches every new tensor."""
    facts, channels = tuned.description.facts, tuned.description.pixels.width
    ran: list[object] = []
    tuned.eval()
    tuned._wiring.switch.watched = ran
    try:
        reached = graph_leaves(tuned(torch.zeros(2, channels, *facts.image_size, device="meta")))
    except Exception as error:
        return {"live": False, "why": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        tuned._wiring.switch.watched = None
    known = {id(operation) for operation in ran}
    asleep = [operation for operation in tuned._wiring.operations("default") if id(operation) not in known]
    unreached = [key for key, p in tuned.trainable() if id(p) not in reached]
    if asleep or unreached:
        return {"live": False, "why": f"{len(asleep)} edits never run, {len(unreached)} tensors are never reached"}
    return {"live": True, "sites": len(tuned.adapter().edits)}


def layer_by_layer(name: str) -> dict[str, Any]:
    """Whether LoRA on every linear and convolution is alive on a model that no family knows, described generically."""
    try:
        described = vpeft.describe(fresh(name), anatomy="generic")
        tuned = vpeft.tune(described, get("lora")(targets=("all",)), num_classes=2, verify=False, show=False)
    except Exception as error:
        return {"live": False, "why": f"{type(error).__name__}: {str(error)[:200]}"}
    return lives(tuned)


def graph_leaves(output: torch.Tensor) -> set[int]:
    """The ids of the parameters that a backward pass from `output` would reach."""
    found: set[int] = set()
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [after for after, _ in node.next_functions]
    return found


def prove(name: str) -> str:
    """`verify` on the real model with random weights: "live", or what is wrong.

    Scales and biases are moved off where they start: many a net is made with branches that are multiplied by zero,
    inside which nothing has a gradient. BatchNorm's statistics are those of noise, so that signals do not die away.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    said = ""
    try:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.numel() == max(parameter.shape, default=1):  # one value for each channel, or one in all
                    closed = not key.endswith("bias") and float(parameter.abs().max()) < 0.1
                    parameter.add_(0.05 * torch.randn_like(parameter) + (0.5 if closed else 0.0))
        settle(model)
        tuned, _ = attach(vpeft.describe(model), "lora")
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    facts = tuned.description.facts
    small = tuple(min(side, 64) for side in facts.image_size) if facts.dynamic_size else facts.image_size
    for size in dict.fromkeys((small, facts.image_size)):  # a last grid of one cell attends to itself alone
        try:
            report = tuned.verify(torch.randn(2, tuned.description.pixels.width, *size))
        except Exception as error:
            said = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        if report:
            return "live"
        said = " ".join(report.problems)[:200]
    return said


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Give the BatchNorms of a model the statistics of two noise images."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        facts = vpeft.describe(model).facts
        for module in norms:
            module.momentum = 1.0
        model.train()(torch.randn(2, 3, *facts.image_size))
        model.eval()


def write(found: dict[str, Any]) -> None:
    """The file and the page, each in one step."""
    text = json.dumps(found, indent=0, sort_keys=True) + "\n"
    for path, content in ((FOLDER / "breadth.json", text), (FOLDER / "breadth.md", page(found))):
        partial = path.with_suffix(".partial")
        partial.write_text(content)
        partial.replace(path)


def passed_kinds(found: dict[str, Any]) -> set[str]:
    """The kinds of which one name's pass has shown LoRA alive."""
    return {entry["kind"] for entry in found["names"].values() if entry.get("live")}


def counts(entry: dict[str, Any], passed: set[str]) -> bool:
    """Whether a name is live with LoRA: by its own pass, or as one of a kind that is."""
    own = entry.get("live")
    return bool(own) or (own is None and bool(entry.get("lora", {}).get("attached")) and entry["kind"] in passed)


def page(found: dict[str, Any]) -> str:
    """The page in Markdown."""
    names, kinds, passed = found["names"], found["kinds"], passed_kinds(found)
    own = [name for name, entry in names.items() if entry.get("live")]
    live = [name for name, entry in names.items() if counts(entry, passed)]
    proved = [k for k, verdict in kinds.items() if verdict["verify"] == "live"]
    of_proved = [name for name in live if names[name]["kind"] in proved]
    lines = [
        "# Breadth: every model name of timm",
        "",
        "Written by `python benchmarks/breadth.py`; do not edit. Each model is built at full size on the meta device. A"
        " model is *live* if one forward pass runs every edit of LoRA and the output depends on every new tensor.",
        "",
        f"timm {found['timm']} has {found['total']} model names; {len(names)} were tried. A *kind* is a model class"
        f" with the set of its modules' classes. **{len(live)} models are live with LoRA**: {len(own)} ran their own"
        f" pass, and {len(live) - len(own)} are of the same kind as one of these. They are of"
        f" {len({names[n]['kind'] for n in live})} kinds. For {len(kinds)} kinds, `verify` also tested the smallest"
        f" model with random weights: {len(proved)} kinds passed, which have {len(of_proved)} of the live models.",
        "",
        "| method | attaches to |",
        "|---|---|",
        *(f"| `{m}` | {sum(bool(e.get(m, {}).get('attached')) for e in names.values())} |" for m in METHODS),
        "",
        "## By family",
        "",
        "| family | names | live with LoRA | " + " | ".join(METHODS[1:]) + " |",
        "|---|---|---|" + "---|" * len(METHODS[1:]),
    ]
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in names.values():
        if entry.get("family"):
            families[entry["family"]].append(entry)
    for family, entries in sorted(families.items(), key=lambda item: (-len(item[1]), item[0])):
        attached = " | ".join(str(sum(bool(e.get(m, {}).get("attached")) for e in entries)) for m in METHODS[1:])
        lines.append(f"| {family} | {len(entries)} | {sum(counts(e, passed) for e in entries)} | {attached} |")
    unknown = [e for e in names.values() if e.get("reason") == "no family"]
    generic = {e["kind"]: e["generic"]["live"] for e in unknown if "generic" in e}
    if generic:
        layered = sum(generic.get(e["kind"], False) for e in unknown)
        lines += [
            "",
            f"No family describes {len(unknown)} models of {len({e['kind'] for e in unknown})} kinds. One model of each"
            f' of {len(generic)} kinds was tried with `anatomy="generic"` and LoRA on every linear and convolution:'
            f" {sum(generic.values())} kinds are live, which have {layered} models. They are not counted above.",
        ]
    lines += ["", "## Not live with LoRA, by reason", "", "| reason | class | names |", "|---|---|---|"]
    reasons: Counter[tuple[str, str]] = Counter()
    for entry in names.values():
        if not counts(entry, passed):
            reason = entry.get("reason") or entry.get("why") or entry.get("lora", {}).get("reason", "")
            reasons[(_short(reason), entry["class"])] += 1
    lines += [
        f"| {reason} | {kind} | {count} |"
        for (reason, kind), count in sorted(reasons.items(), key=lambda i: (-i[1], i[0]))
    ]
    failed = {k: v for k, v in kinds.items() if v["verify"] != "live"}
    if failed:
        lines += ["", "## Kinds that failed `verify`", "", "| kind | model | message |", "|---|---|---|"]
        lines += [f"| {kind} | {v['name']} | {_short(v['verify'])} |" for kind, v in sorted(failed.items())]
    return "\n".join([*lines, ""])


def _short(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]


@dataclass(frozen=True)
class Late:
    """True once the time limit has passed."""

    end: float

    def __bool__(self) -> bool:
        return time.monotonic() > self.end


def probe_all(found: dict[str, Any], names: list[str], late: Late, again: bool) -> None:
    """Try each name that is not live yet; with `again`, also run those that count only through their kind."""
    passed = passed_kinds(found)
    layered = {entry["kind"] for entry in found["names"].values() if "generic" in entry}
    for number, name in enumerate(names):
        if late:
            break
        entry = found["names"].get(name, {})
        if entry.get("live") or (not again and counts(entry, passed)) or (again and not counts(entry, passed)):
            continue
        asked = "generic" in entry
        found["names"][name] = entry = probe(name, set() if again else passed)
        if entry.get("reason") == "no family" and (asked or entry["kind"] not in layered):
            entry["generic"] = layer_by_layer(name)
            layered.add(entry["kind"])
        if entry.get("live"):
            passed.add(entry["kind"])
        if number % 25 == 0:
            gc.collect()
            write(found)


def prove_all(found: dict[str, Any], names: set[str], late: Late) -> None:
    """Build the smallest live model of each kind with values and let `verify` prove it, the smallest first."""
    passed = passed_kinds(found)
    smallest: dict[str, str] = {}
    for name in sorted(names & set(found["names"]), key=lambda n: (found["names"][n].get("parameters", 0), n)):
        entry = found["names"][name]
        if counts(entry, passed) and entry["parameters"] <= SMALL:
            smallest.setdefault(entry["kind"], name)
    for kind, name in smallest.items():
        if late:
            break
        if found["kinds"].get(kind, {}).get("verify") != "live":
            found["kinds"][kind] = {"name": name, "verify": prove(name)}
            gc.collect()
            write(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget what the file says")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--one-round", action="store_true", help="one pass for each kind, none for its other names")
    parser.add_argument("--no-verify", action="store_true", help="leave out the proofs on real models")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path, start = FOLDER / "breadth.json", time.monotonic()
    found: dict[str, Any] = {"timm": timm.__version__, "total": len(timm.list_models()), "names": {}, "kinds": {}}
    if path.exists() and not options.fresh:
        found = json.loads(path.read_text())
    names = [name for name in timm.list_models() if options.only in name]
    if not options.page:
        late = Late(start + options.seconds)
        probe_all(found, names, late, again=False)
        if not options.no_verify:
            prove_all(found, set(names), late)
        if not options.one_round:
            probe_all(found, names, late, again=True)
    write(found)


if __name__ == "__main__":
    main()
