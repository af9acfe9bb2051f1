"""The names of all accelerations. This module imports nothing heavy, so the command line can list them quickly."""

from __future__ import annotations

from vpeft.errors import VpeftError, nearest

# Name -> what it does; in the order in which they are listed.
NAMES: dict[str, str] = {
    "frozen_prefix": "compute the outputs of everything before the first trained place once per image",
    "decoded_images": "decode and resize images once and keep them as eight-bit pixels",
    "cached_query": "compute the frozen model's own feature of each image, by which prompts are chosen, once",
    "class_token_only": "compute queries, projection and MLP of the last block for the class token only",
    "key_value_prompts": "compute inserted tokens whose outputs are dropped as keys and values only, once per batch",
    "fused_low_rank": "add low-rank updates to the frozen projection's output in place",
    "fused_scale_shift": "fold scales and shifts into the preceding frozen linear layer or norm at every step",
    "attention_kernel": "in 16 bits on a CPU, use the attention kernel that measures as the faster one",
    "frozen_precision": "cast frozen weights to 16 bits once instead of at every step",
    "low_memory": "recompute outputs of norms and of the MLP's first layer in the backward pass; save masks as bits",
    "recompute_blocks": "save only the input of every block and recompute the block in the backward pass (gradient"
    " checkpointing)",
    "batched_adapters": "compute the steps of several runs, whose adapters share one backbone, in one pass",
    "compile_blocks": "compile every block separately with torch.compile, including its edits",
}
# They trade time for memory, so `auto` does not include them.
FOR_MEMORY = frozenset({"low_memory", "recompute_blocks"})
# Compiling takes as long as some hundred steps; batching runs pays off with small batches only.
ON_REQUEST = FOR_MEMORY | {"batched_adapters", "compile_blocks"}


class UnknownAcceleration(VpeftError):
    """There is no acceleration of this name."""


def wanted(choice: str) -> list[str]:
    """Return the accelerations of a choice: `auto`, `off`, or names separated by commas, of which `auto` may be one.

    Raises:
        UnknownAcceleration: a name does not exist; the message lists the names.
    """
    words = [word.strip() for word in choice.split(",") if word.strip()]
    if words == ["off"]:
        return []
    chosen: set[str] = set()
    for word in words:
        if word == "auto":
            chosen |= NAMES.keys() - ON_REQUEST
        elif word in NAMES:
            chosen.add(word)
        else:
            raise UnknownAcceleration(f"There is no acceleration {word!r}. {nearest(word, ['auto', 'off', *NAMES])}")
    if not words:
        raise UnknownAcceleration(f"Which acceleration? {nearest('', ['auto', 'off', *NAMES])}")
    return [name for name in NAMES if name in chosen]
