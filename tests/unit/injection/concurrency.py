"""The contract check `threads`: one TunedModel used by threads and asyncio tasks at once gives the right answers.

Nothing here asserts by itself but `threads`: `threads(lambda: tuned_model_with("a", "b"), image)` for any method.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vpeft.injection.tuned_model import TunedModel

Call = Callable[[], Tensor]


def wrong_answers(calls: Sequence[tuple[Call, Tensor]], rounds: int) -> Counter[str]:
    """Each call in a thread of its own, `rounds` times: how many answers are "wrong", or which errors came instead."""
    found: Counter[str] = Counter()
    start = threading.Barrier(len(calls))

    def work(call: Call, expected: Tensor) -> None:
        with torch.no_grad():
            start.wait()
            for _ in range(rounds):
                try:
                    if not torch.allclose(call(), expected, atol=1e-4, rtol=1e-3):
                        found["wrong"] += 1
                except Exception as error:
                    found[f"{type(error).__name__}: {error}"] += 1

    threads = [threading.Thread(target=work, args=pair) for pair in calls]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many more chances to mix
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return found


async def wrong_in_tasks(tuned: TunedModel, images: Tensor, expected: dict[str, Tensor], rounds: int) -> Counter[str]:
    """Tasks that wait inside of `with enable`, while others switch."""
    found: Counter[str] = Counter()

    async def task(name: str) -> None:
        for _ in range(rounds):
            with tuned.enable(name):
                await asyncio.sleep(0)
                out = tuned(images)
                await asyncio.sleep(0)
                again = tuned(images)
            for one in (out, again):
                if not torch.allclose(one, expected[name], atol=1e-4, rtol=1e-3):
                    found["wrong"] += 1

    await asyncio.gather(*(task(name) for name in expected))
    return found


def threads(make: Callable[[], TunedModel], images: Sequence[Tensor], rounds: int = 50) -> None:
    """Assert that no answer is wrong: with nothing switched, with `enable` in each thread, with an `await` inside.

    Args:
        make: gives a model in eval mode with two adapters, whose outputs differ; the second is on.
        images: two batches.
        rounds: calls of each of four threads, so that 50 are 200 answers.
    """
    tuned = make()
    with torch.no_grad():
        _threads(tuned, images, rounds)


def _threads(tuned: TunedModel, images: Sequence[Tensor], rounds: int) -> None:
    first, second = tuned.adapters
    pairs = [(image, tuned(image)) for image in images]
    calls: list[tuple[Call, Tensor]] = [(lambda image=image: tuned(image), out) for image, out in pairs]  # type: ignore[misc]
    found = wrong_answers(calls * 2, rounds)
    assert not found, f"nothing switched: {dict(found)} of {4 * rounds}"

    def by(name: str) -> Tensor:
        with tuned.enable(name):
            return tuned(images[0])

    expected = {name: by(name) for name in (first, second)}
    assert not torch.allclose(expected[first], expected[second], atol=1e-3), "two adapters that cannot be told apart"
    calls = [(lambda name=name: by(name), out) for name, out in expected.items()]  # type: ignore[misc]
    found = wrong_answers(calls * 2, rounds)
    assert not found, f"enable in each thread: {dict(found)} of {4 * rounds}"
    found = asyncio.run(wrong_in_tasks(tuned, images[0], expected, rounds))
    assert not found, f"await inside of enable: {dict(found)} of {4 * rounds}"
    assert tuned.active == second, "nothing was switched for everybody"
    assert torch.allclose(tuned(images[1]), pairs[1][1], atol=1e-4, rtol=1e-3)
