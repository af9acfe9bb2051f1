"""Protocols of the suites of images that users keep: VTAB-1k, FGVC, few-shot FGVC, CIFAR, ImageNet, folders.

Those with a number as their version are vpeft's own: rates are chosen on validation images, the last epoch counts, the
test is read once. Those with a name follow a published comparison as far as its code is known, so that old tables can
be measured again; `differs` says what is done otherwise. Where the publication reports the best epoch on the test
split, that number goes into the field `legacy_best_on_test`, and the score stays that of the last epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpeft.bench.protocol_rules import OF_CLASSIFICATION, Grid, Protocol, TaskRules, adamw_protocol
from vpeft.data.vtab1k.facts import FACTS, GROUPS, STRUCTURED

# Every published comparison on VTAB-1k resizes to a square without a crop: things at the border count.
_SQUASHED = {"resize": "squash", "crop_pct": 1.0}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_ZERO_TO_ONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

# Of 1,300 to 1,600 steps. The range holds the rates of published searches on VTAB-1k for adapters and probes; whole
# weights need a hundredth: the clean re-run gave full fine-tuning 1e-3 and 1e-2, at which it destroys the backbone.
_RATES = Grid(lr=(3e-4, 1e-3, 3e-3, 1e-2), weight_decay=(1e-4,))
_RATES_OWN = Grid(lr=(1e-5, 3e-5, 1e-4, 3e-4), weight_decay=(1e-4,))
_ONE = Grid(lr=(1e-3,), weight_decay=(1e-4,))
_ONE_OWN = Grid(lr=(1e-4,), weight_decay=(1e-4,))


def _published(
    name: str,
    version: str,
    title: str,
    rule: str,
    differs: tuple[str, ...],
    grid: Grid,
    *,
    preprocessing: Mapping[str, Any],
    seeds: int,
    tasks: Mapping[str, TaskRules] | None = None,
    exceptions: Mapping[str, Grid] | None = None,
    legacy_best_on_test: bool = False,
    validates: bool = False,
    **settings: Any,
) -> Protocol:
    """A protocol of a publication: 100 epochs, a warm-up of 10, a cosine, and what `settings` says otherwise."""
    return Protocol(
        name=name,
        version=version,
        title=title,
        rule=rule,
        differs=differs,
        optimisation={
            "epochs": 100,
            "batch": 64,
            "accumulate": 1,
            "head_lr": None,
            "warmup": 0.1,
            "schedule": "cosine",
            "min_lr": 1e-5,
            **OF_CLASSIFICATION,
            "clip": None,
            "early_stopping": None,
            "keep": "last",
            "drop_last": True,
            "batch_norm": "frozen",
            "augmentation": "none",
            "preprocessing": dict(preprocessing),
            **settings,
        },
        grid=grid,
        tasks=dict(tasks or {}),
        exceptions=dict(exceptions or {}),
        seeds=seeds,
        legacy_best_on_test=legacy_best_on_test,
        validates=validates,
    )


_NO_DROP_PATH = "Drop path of 0.1 is not applied: it is a setting of the backbone here."
_STEPS = "The rate changes at every step, not once for each epoch, and the warm-up starts near 0 instead of at 1e-6."
_SEED = "Seeds count from 0; the publication has the one seed 42."

# Rates and decays of the survey's scripts (the rows of LoRA; those of other methods differ on cifar and caltech101).
_SURVEY_POINTS: dict[str, tuple[float, float]] = {
    "cifar": (0.005, 0.005),
    "caltech101": (0.006, 0.35),
    "dtd": (0.0032, 0.04),
    "oxford_flowers102": (0.05, 0.11),
    "oxford_iiit_pet": (0.0007, 0.8),
    "svhn": (0.001, 0.005),
    "sun397": (0.0017, 0.01),
    "patch_camelyon": (0.0072, 0.002),
    "eurosat": (0.06, 0.001),
    "resisc45": (0.01, 0.01),
    "diabetic_retinopathy": (0.004, 0.0003),
    "clevr_count": (0.0033, 0.01),
    "clevr_dist": (0.0018, 0.005),
    "dmlab": (0.009, 0.1),
    "kitti": (0.0072, 0.0001),
    "dsprites_loc": (0.003, 0.001),
    "dsprites_ori": (0.01, 0.05),
    "smallnorb_azi": (0.0062, 0.005),
    "smallnorb_ele": (0.0011, 0.0005),
}
# Seven of the 19 are trained without augmentation there.
_SURVEY_PLAIN = frozenset(
    {"cifar", "caltech101", "clevr_dist", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"}
)


def _survey_task(name: str) -> TaskRules:
    lr, decay = _SURVEY_POINTS[name]
    smoothed = GROUPS[name] != STRUCTURED or name == "kitti"
    return TaskRules(
        grid=Grid(lr=(lr,), weight_decay=(decay,)),
        optimisation={
            "label_smoothing": 0.1 if smoothed else 0.0,
            "augmentation": "none" if name in _SURVEY_PLAIN else "randaugment_whole",
        },
    )


# VPT's rates before they are multiplied by batch / 256, and its decays (its table 6).
_VPT_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
_VPT_GRID = Grid(lr=tuple(rate * 64 / 256 for rate in _VPT_RATES), weight_decay=(0.0, 1e-4, 1e-3, 1e-2))
_VPT_OWN = Grid(lr=tuple(rate * 64 / 256 for rate in (5e-3, 1e-3, 5e-4, 1e-4)), weight_decay=(0.0, 1e-4, 1e-3, 1e-2))


def _with(rules: Protocol, **settings: Any) -> Protocol:
    """The protocol with further settings of its optimisation."""
    return rules.model_copy(update={"optimisation": {**rules.optimisation, **settings}})


_VTAB = (
    _with(
        adamw_protocol("vtab1k", "VTAB-1k", epochs=100, grid=_RATES, own_weights=_RATES_OWN, seeds=3, batch=64),
        preprocessing=_SQUASHED,
    ),
    _with(
        adamw_protocol("vtab1k-smoke", "VTAB-1k, one look", epochs=2, grid=_ONE, own_weights=_ONE_OWN, seeds=1),
        preprocessing=_SQUASHED,
    ),
    _published(
        "vtab1k",
        "v-petl",
        "VTAB-1k as in the survey's benchmark",
        "Learning rate, decay, smoothing and augmentation as the survey's scripts state them for each task; trained on"
        " the training and validation splits together, tested once; the last epoch counts. The survey reports the best"
        " test score over the epochs: legacy_best_on_test.",
        (
            _NO_DROP_PATH,
            _STEPS,
            _SEED,
            "RandAugment draws from torchvision's operations, not from timm's, and leaves out colour jitter.",
            "The test split is looked at after every epoch for legacy_best_on_test, there after every tenth.",
            "Biases and tensors of one dimension are not decayed; there everything is.",
            "Full fine-tuning and partial tuning have one rate; there each task has one of its own.",
        ),
        Grid(lr=(5e-3,), weight_decay=(5e-3,)),
        preprocessing={**_SQUASHED, **_IMAGENET},
        seeds=1,
        tasks={name: _survey_task(name) for name in FACTS},
        exceptions={name: Grid(lr=(5e-4,), weight_decay=(5e-2,)) for name in ("full_finetuning", "partial_k")},
        legacy_best_on_test=True,
    ),
    _published(
        "vtab1k",
        "noah",
        "VTAB-1k as in NOAH, FacT and Convpass",
        "Learning rate 1e-3 and decay 1e-4 for all, no augmentation; trained on the training and validation splits"
        " together, tested once; the last epoch counts. The publications report the best test score over the epochs:"
        " legacy_best_on_test.",
        (
            _NO_DROP_PATH,
            _STEPS,
            _SEED,
            "The scale of a method is its default; FacT and Convpass choose one for each task.",
            "Biases and tensors of one dimension are not decayed.",
        ),
        Grid(lr=(1e-3,), weight_decay=(1e-4,)),
        preprocessing={**_SQUASHED, **_IMAGENET},
        seeds=1,
        legacy_best_on_test=True,
    ),
    _published(
        "vtab1k",
        "vpt",
        "VTAB-1k as in VPT",
        "SGD; learning rate and decay chosen by the top-1 on the validation split after training on the training split"
        " (seed 0, 40 points), refitted on both, tested once; the last epoch counts; five seeds.",
        (
            _STEPS,
            "The batch is 64 for all methods; there it is 128 where prompts are few.",
            "Full fine-tuning has SGD as well; there it has AdamW.",
            "The head starts as vpeft's heads do; there its bias is -4.6.",
        ),
        _VPT_GRID,
        preprocessing={**_SQUASHED, **_IMAGENET},
        seeds=5,
        exceptions=dict.fromkeys(("full_finetuning", "partial_k"), _VPT_OWN),
        optimiser="sgd(momentum=0.9)",
        min_lr=0.0,
        drop_last=False,
    ),
    _published(
        "vtab1k",
        "osu",
        "VTAB-1k as in the clean re-run (Mai et al. 2025, arXiv 2409.16434)",
        "Learning rate (1e-3, 1e-2) and decay (1e-4, 1e-3) chosen by the top-1 on the validation split after training"
        " on the training split (seed 0, 4 points), refitted on both, tested once; the last epoch counts.",
        (
            _NO_DROP_PATH,
            _STEPS,
            _SEED,
            "Sizes of methods are their defaults; there they are searched for some.",
            "Full fine-tuning has the same rates, as there; they are too high for it.",
            "Biases and tensors of one dimension are not decayed.",
        ),
        Grid(lr=(1e-3, 1e-2), weight_decay=(1e-4, 1e-3)),
        preprocessing={**_SQUASHED, **_ZERO_TO_ONE},
        seeds=1,
    ),
)

_SURVEY_FGVC = {"cub": 1e-3, "nabirds": 2e-4, "flowers": 1e-3, "dogs": 2.5e-4, "cars": 2e-3}
_FGVC = (
    adamw_protocol(
        "fgvc",
        "FGVC",
        epochs=100,
        grid=_RATES,
        own_weights=_RATES_OWN,
        seeds=3,
        batch=64,
        augmentation="simple",
    ),
    adamw_protocol("fgvc-smoke", "FGVC, one look", epochs=2, grid=_ONE, own_weights=_ONE_OWN, seeds=1),
    _published(
        "fgvc",
        "v-petl",
        "FGVC as in the survey's benchmark",
        "Learning rate as the survey's scripts state it for each set, decay 0.05; trained on the training split alone,"
        " tested once; the last epoch counts. The survey reports the best test score over the epochs:"
        " legacy_best_on_test.",
        (
            _NO_DROP_PATH,
            _STEPS,
            _SEED,
            "The test split is looked at after every epoch for legacy_best_on_test, there after every tenth.",
            "Biases and tensors of one dimension are not decayed; there everything is.",
        ),
        Grid(lr=(1e-3,), weight_decay=(0.05,)),
        preprocessing={"resize": "shorter", "crop_pct": 0.875, **_IMAGENET},
        seeds=1,
        tasks={name: TaskRules(grid=Grid(lr=(lr,), weight_decay=(0.05,))) for name, lr in _SURVEY_FGVC.items()},
        augmentation="simple",
        legacy_best_on_test=True,
        validates=True,
        drop_last=False,
    ),
)

_FEW_SHOT = (
    adamw_protocol(
        "fgvc-few-shot-smoke", "Few-shot FGVC, one look", epochs=2, grid=_ONE, own_weights=_ONE_OWN, seeds=1
    ),
    _published(
        "fgvc-few-shot",
        "noah",
        "Few-shot FGVC as in NOAH",
        "Learning rate 5e-3 and decay 1e-4 for all methods, RandAugment, mixup 0.8, CutMix 1 and smoothing 0.1;"
        " trained on the published draw of K images for each class, tested once; the last epoch counts. There are no"
        " validation images; the three draws of a set take the place of seeds.",
        (
            _NO_DROP_PATH,
            _STEPS,
            "No random erasing and no colour jitter; RandAugment is torchvision's.",
            "NOAH's search with a supernet is a command of its own, vpeft search.",
        ),
        Grid(lr=(5e-3,), weight_decay=(1e-4,)),
        preprocessing=_IMAGENET,
        seeds=1,
        exceptions=dict.fromkeys(("full_finetuning", "partial_k"), _ONE_OWN),
        augmentation="randaugment",
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        drop_last=False,
    ),
)

# 45,000 and more images: ten passes are 7,000 steps.
_CIFAR = (
    adamw_protocol(
        "cifar", "CIFAR", epochs=10, grid=_RATES, own_weights=_RATES_OWN, seeds=3, batch=64, augmentation="flip"
    ),
    adamw_protocol("cifar-smoke", "CIFAR, one look", epochs=1, grid=_ONE, own_weights=_ONE_OWN, seeds=1),
)
_IMAGENET_SHIFT = (
    adamw_protocol(
        "imagenet-shift",
        "ImageNet and its variants, 16 images of each class",
        epochs=30,
        grid=_RATES,
        own_weights=_RATES_OWN,
        seeds=3,
        batch=64,
        augmentation="crop",
    ),
    adamw_protocol(
        "imagenet-shift-smoke",
        "ImageNet and its variants, one look",
        epochs=2,
        grid=_ONE,
        own_weights=_ONE_OWN,
        seeds=1,
    ),
)
_FOLDER = (
    adamw_protocol("folder", "Folders of images", epochs=30, grid=_RATES, own_weights=_RATES_OWN, seeds=3),
    adamw_protocol("folder-quick", "Folders, no search", epochs=10, grid=_ONE, own_weights=_ONE_OWN, seeds=1),
)

IMAGE_PROTOCOLS: tuple[Protocol, ...] = (*_VTAB, *_FGVC, *_FEW_SHOT, *_CIFAR, *_IMAGENET_SHIFT, *_FOLDER)
