"""The page that stands beside an adapter on the Hub, made of its manifest alone."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..injection.adapter_file import Manifest

FILE = "adapter.safetensors"
# The Hub's names of tasks, by ours; others have no name there.
_PIPELINES = {
    "classification": "image-classification",
    "multilabel": "image-classification",
    "semantic_segmentation": "image-segmentation",
    "instance_segmentation": "image-segmentation",
    "detection": "object-detection",
    "depth": "depth-estimation",
}


def model_card(manifest: Manifest, repository: str) -> str:
    """The text of README.md: the Hub's header, what it is, a snippet, the methods, scores, labels and versions."""
    return "\n".join([_header(manifest), *_body(manifest, repository)]) + "\n"


def _header(manifest: Manifest) -> str:
    fields: dict[str, Any] = {"library_name": "vpeft", "tags": ["vpeft", *(one.name for one in manifest.methods)]}
    if manifest.base_license:
        fields["license"] = manifest.base_license.lower()
    if manifest.base_source and re.fullmatch(r"[\w.-]+/[\w.-]+", manifest.base_source):
        fields["base_model"] = manifest.base_source
    if manifest.task.name in _PIPELINES:
        fields["pipeline_tag"] = _PIPELINES[manifest.task.name]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _body(manifest: Manifest, repository: str) -> list[str]:
    methods = " + ".join(one.name for one in manifest.methods)
    backbone = manifest.origin.name if manifest.origin is not None else manifest.backbone
    lines = [
        f"# {_cell(repository.rpartition('/')[2])}",
        "",
        f"An adapter ({_cell(methods)}) for `{_cell(backbone)}`, made with vpeft: {manifest.parameters} numbers, the"
        " head included. It holds no weights of the backbone.",
        "",
        "```bash",
        f"vpeft predict hf:{repository} photo.jpg",
        "```",
        "",
        "```python",
        "import vpeft",
        "",
        f"backbone = vpeft.create_backbone({backbone!r})",
        f"tuned = vpeft.load(backbone, vpeft.hub.pull({repository!r}))",
        "```",
        "",
        "## Method",
        "",
        "| setting | value |",
        "|---|---|",
    ]
    for one in manifest.methods:
        lines.append(f"| method | {_cell(one.name)}{_cell(f' on {one.tower}' if one.tower else '')} |")
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in one.fields.items()]
    lines += [
        f"| task | {_cell(manifest.task.name)} |",
        f"| statistics of BatchNorm | {manifest.statistics} |",
        f"| weights of the backbone | {manifest.base_digest} |",
        f"| digest of the tensors | {manifest.tensors_digest} |",
        "",
    ]
    if manifest.scores:
        lines += ["## Scores", "", "| score | value |", "|---|---|"]
        lines += [f"| {_cell(name)} | {value:.4g} |" for name, value in manifest.scores.items()]
        lines += ["", "As the training computed them on its own splits.", ""]
    protocol = manifest.extra.get("protocol")
    if protocol is not None:
        lines += [f"Protocol: {_cell(protocol)}.", ""]
    if manifest.labels:
        shown = ", ".join(_cell(label) for label in manifest.labels[:100])
        more = f" and {len(manifest.labels) - 100} more" if len(manifest.labels) > 100 else ""
        lines += ["## Labels", "", f"{shown}{more}", ""]
    if manifest.preprocessing:
        lines += ["## Preprocessing", "", "| setting | value |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in manifest.preprocessing.items()]
        lines.append("")
    said = ", ".join(f"{_cell(name)} {_cell(version)}" for name, version in manifest.versions.items())
    licence = manifest.base_license or "not stated; see the backbone's own page"
    return [*lines, "## Licence and versions", "", f"Licence of the backbone: {_cell(licence)}.", "", f"{said}."]


def _cell(value: Any) -> str:
    """A value as text that neither ends a cell nor becomes markup."""
    text = str(value).replace("\n", " ").replace("\r", " ")
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text) if not re.fullmatch(r"[\w .,()+-]*", text) else text
