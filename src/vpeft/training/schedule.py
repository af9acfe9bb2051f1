"""The learning rate as a function of the step only, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from vpeft.training.optimisation import Optimisation

# What a milestone multiplies the rate by: the default of MultiStepLR, and that of detection recipes.
STEP_FACTOR = 0.1


def warmup_steps(settings: Optimisation, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps of the warm-up."""
    share_of_run = settings.warmup * settings.epochs if settings.warmup < 1 else settings.warmup
    return round(share_of_run * steps_per_epoch)


def rate_at(step: int, peak: float, settings: Optimisation, steps_per_epoch: int) -> float:
    """Return the learning rate of optimiser step `step`, counted from 0.

    Warm-up of W steps: peak * (step + 1) / W, so no step has the rate zero. After it, with t from 0 to 1 over the
    remaining steps: floor + (peak - floor) * (1 + cos(pi t)) / 2, or a linear decay, or the constant peak, or the peak
    times 0.1 for every milestone that is passed.
    """
    warm = warmup_steps(settings, steps_per_epoch)
    if step < warm:
        return peak * (step + 1) / warm
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "step":
        ends = (settings.epochs * one if one < 1 else one for one in settings.milestones)
        passed = sum(step >= round(end * steps_per_epoch) for end in ends)
        return peak * STEP_FACTOR**passed
    floor = min(settings.min_lr, peak)
    done = (step - warm) / max(1, settings.epochs * steps_per_epoch - warm)
    share = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return floor + (peak - floor) * share
