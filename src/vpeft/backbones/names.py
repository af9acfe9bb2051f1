"""Names of backbones, as the libraries and the hub write them, in the one form that `create_backbone` keeps.

| written | kept |
|---|---|
| `vit_base_patch16_224.augreg_in21k`, `timm/...`, `hf-hub:timm/...`, `hf:timm/...`, the page of it | the timm name |
| `hf-hub:someone/model`, `hf_hub:someone/model` | `hf-hub:someone/model`, a timm model on the hub |
| `local-dir:FOLDER` | `local-dir:FOLDER`, a timm model in a folder |
| `google/vit-base-patch16-224`, `https://huggingface.co/google/vit-base-patch16-224` | with `hf:` |
| `torchvision:resnet18`, `torchvision/resnet18`, `torchvision:resnet50.IMAGENET1K_V2` | with `torchvision:` |
| `ViT-B-16`, `ViT-B-16/openai`, `open_clip/ViT-B-16/openai`, OpenAI's `ViT-B/16` | with `open_clip:` |
| `py:FILE.py:NAME`, `hf:ID`, `hf:FOLDER` | as they are |
| `host::NAME`, `host:5:NAME` | a whole model with its own heads, for five classes; NAME as above |
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..arguments import TEXT, require
from .own_code import OWN_CODE

TRANSFORMERS = "hf:"
TIMM_HUB = "hf-hub:"
TIMM_FOLDER = "local-dir:"
TORCHVISION = "torchvision:"
OPEN_CLIP = "open_clip:"
HOST = "host:"  # a whole model with its own heads; see host_create.py

_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:models/)?([\w.-]+/[\w.-]+)(?:[/?#].*)?", re.I)
_OPENAI = re.compile(r"(ViT-[BL])/(14|16|32)(@336px)?")
_OPEN_CLIP_NAME = re.compile(
    r"(?:(?:coca|nllb-clip|xlm-roberta|roberta)[\w-]*|ViTamin-\w[\w-]*|EVA\d+-\w[\w-]*|ViT-\w[\w-]*)"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")


def one_form(name: str) -> str:
    """The name in the form that `create_backbone` reads and an adapter file keeps; see the module."""
    require("create_backbone(name)", name=(name, TEXT))
    name = name.strip()
    if name.startswith(HOST):
        classes, _, rest = name.removeprefix(HOST).partition(":")
        return f"{HOST}{classes}:{one_form(rest)}"
    if name.startswith(OWN_CODE):
        return name
    page = _PAGE.fullmatch(name.removeprefix(TRANSFORMERS))
    if page is not None:
        return one_form(page[1])
    head, mark, rest = name.partition(":")
    source = head.lower().replace("_", "-")
    if mark and source == "hf":
        return _of_timm(rest) or name
    if mark and source == "hf-hub":
        return _of_timm(rest) or TIMM_HUB + rest
    if mark and source == "local-dir":
        return TIMM_FOLDER + rest
    if mark and source in ("timm", "torchvision", "open-clip", "openclip"):
        return one_form(f"{source}/{rest}")
    first, slash, after = name.partition("/")
    if slash and first.lower() == "torchvision":
        return TORCHVISION + after
    if slash and first.lower() in ("open_clip", "open-clip", "openclip"):
        return OPEN_CLIP + after
    known = _of_timm(name)
    if known is not None:
        return known
    openai = _OPENAI.fullmatch(name)
    if openai is not None:
        return f"{OPEN_CLIP}{openai[1]}-{openai[2]}{'-336' if openai[3] else ''}/openai"
    if _OPEN_CLIP_NAME.fullmatch(first.partition(":")[0]):
        return OPEN_CLIP + name.replace(":", "/")
    if os.path.isdir(name):  # False for impossible names too
        return _folder(name)
    return TRANSFORMERS + name if _HUB_ID.fullmatch(name) else name


def fetches_or_runs(name: str) -> bool:
    """Whether a name can lead to somebody's own code or to anybody's files on the hub."""
    form = one_form(name)
    if form.startswith(HOST):
        form = form.removeprefix(HOST).partition(":")[2]
    return form.startswith((OWN_CODE, TRANSFORMERS, TIMM_HUB))


def _of_timm(name: str) -> str | None:
    """The timm name of `timm/NAME`; None for any other."""
    owner, slash, model = name.partition("/")
    return model.removesuffix("/") if slash and owner.lower() == "timm" and model else None


def _folder(name: str) -> str:
    """A folder as that of a timm model, where its configuration says so, or of a transformers checkpoint."""
    try:
        stated = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TRANSFORMERS + name
    return (TIMM_FOLDER if isinstance(stated, dict) and "architecture" in stated else TRANSFORMERS) + name
