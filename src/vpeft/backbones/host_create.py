"""Make a whole model, with its own heads, for the classes of a data set.

    host::hf:FOLDER                a checkpoint of transformers as the class that it was saved from
    host::torchvision:NAME         a detector or segmenter of torchvision
    host::open_clip:NAME/WEIGHTS   an image-text model of open_clip with both towers
    host::pocket_clip              the shipped one
    host::py:FILE.py:NAME          a function of yours that makes one

`host:5:hf:FOLDER` has outputs for five classes. Where the checkpoint has another number, the layers that tell classes
apart are made anew; they are named in the model's origin and train beside every adapter.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import VpeftError, nearest, need_extra
from .hf_create import quiet, stated_processor
from .library_create import create_whole_open_clip
from .names import HOST, OPEN_CLIP, TORCHVISION, TRANSFORMERS
from .own_code import OWN_CODE, create_from_own_code
from .torchvision_hosts import create_torchvision_host, torchvision_hosts
from .trust import Trust

# The host among the shipped models.
POCKET = "pocket_clip"


class NoHost(VpeftError):
    """A name of a host from which no whole model can be made."""


def host_name(name: str, classes: int | None = None) -> str:
    """The name of a model as that of a whole one: `hf:FOLDER` -> `host:5:hf:FOLDER` for five classes."""
    if name.startswith(HOST):
        name = split_name(name)[1]
    return f"{HOST}{'' if classes is None else classes}:{name}"


def split_name(name: str) -> tuple[int | None, str]:
    """The number of classes, None for the model's own, and the name of the model.

    Raises:
        NoHost: it is no such name.
    """
    count, mark, rest = name.removeprefix(HOST).partition(":")
    if not mark or not rest or (count and not count.isdigit()):
        raise NoHost(f"{name!r} is no name of a whole model; it is {HOST}:NAME, or {HOST}5:NAME for five classes.")
    return (int(count) if count else None), rest


def create_host(name: str, pretrained: bool, trust: Trust) -> tuple[nn.Module, tuple[str, ...], list[str]]:
    """The model, the names of its layers that were made anew, and sentences on them.

    Args:
        name: of a whole model; see this file.
        pretrained: load the checkpoint's weights, or those that torchvision offers.
        trust: what may be run and fetched.

    Raises:
        NoHost: nothing can be made from the name.
    """
    classes, where = split_name(name)
    if where.startswith(TRANSFORMERS):
        return _from_transformers(where.removeprefix(TRANSFORMERS), pretrained, classes, trust)
    if where.startswith(TORCHVISION):
        return _from_torchvision(where.removeprefix(TORCHVISION), pretrained, classes)
    if where.startswith(OPEN_CLIP):
        return create_whole_open_clip(where.removeprefix(OPEN_CLIP), pretrained), (), []
    if where == POCKET:
        from .pocket_clip import pocket_clip

        return pocket_clip(pretrained), (), []
    if where.startswith(OWN_CODE):
        trust.require_code(where)
        return create_from_own_code(where.removeprefix(OWN_CODE)), (), []
    raise NoHost(
        f"A whole model is named {TRANSFORMERS}FOLDER (transformers), {TORCHVISION}NAME, {OPEN_CLIP}NAME/WEIGHTS,"
        f" {OWN_CODE}FILE.py:NAME or {POCKET}; {where!r} is none of these."
    )


def _from_transformers(
    where: str, pretrained: bool, classes: int | None, trust: Trust
) -> tuple[nn.Module, tuple[str, ...], list[str]]:
    transformers: Any = need_extra("transformers", "hf")
    try:
        config = transformers.AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=not trust.download
        )
    except (OSError, ValueError) as error:
        raise NoHost(f"transformers finds no checkpoint {where!r}: {_first(error)}") from None
    stated = list(config.architectures or [])
    kind = next((getattr(transformers, one) for one in stated if hasattr(transformers, one)), None)
    if kind is None:
        raise NoHost(
            f"{where} does not say which model of transformers it was saved from ({', '.join(stated) or 'nothing'})."
        )
    own = int(getattr(config, "num_labels", 0))
    changed = classes is not None and classes != own
    if changed:
        config.num_labels = classes
    if not pretrained:
        model = kind(config)
        fresh: tuple[str, ...] = ()
    else:
        try:
            with quiet():
                model, told = kind.from_pretrained(
                    where,
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=changed,
                    trust_remote_code=False,
                    local_files_only=not trust.download,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise NoHost(f"The weights of {where!r} cannot be loaded: {_first(error)}") from None
        keys = [str(entry[0]) for entry in told["mismatched_keys"]] + [str(key) for key in told["missing_keys"]]
        trained = {name for name, _ in model.named_parameters()}
        fresh = tuple(dict.fromkeys(key.rpartition(".")[0] for key in keys if key in trained))
    model.config._name_or_path = where
    model.__dict__["preprocessor_config"] = stated_processor(where, trust)
    notes = [f"Made anew for {classes} classes, {where} has {own}: {', '.join(fresh)}."] if fresh and changed else []
    return model.eval(), fresh, notes


def _from_torchvision(name: str, pretrained: bool, classes: int | None) -> tuple[nn.Module, tuple[str, ...], list[str]]:
    known = torchvision_hosts()
    if name not in known:
        raise NoHost(f"torchvision has no detector or segmenter {name!r}. {nearest(name, known)}")
    model, fresh = create_torchvision_host(name, pretrained, classes)
    notes = [f"Made anew for {classes} classes: {', '.join(fresh)}."] if fresh and pretrained else []
    return model, fresh, notes


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
