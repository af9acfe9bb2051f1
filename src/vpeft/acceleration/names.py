"""The names of all accelerations, as they are typed; loads nothing else."""

from __future__ import annotations

from vpeft.errors import VpeftError, nearest

# Name -> what it does; in the order in which they are listed.
NAMES: dict[str, str] = {
    "frozen_prefix": "outputs of everything before the first trained place are computed once per image",
    "decoded_images": "images are decoded and resized once, and kept as eight-bit pixels",
    "class_token_only": "the last block computes queries, projection and MLP for the class token only, as only that is"
    " read",
    "key_value_prompts": "inserted tokens whose outputs are dropped are computed as keys and values, once for a batch",
    "fused_low_rank": "low-rank changes are added into the frozen projection's output without copying it",
    "fused_scale_shift": "scales and shifts are folded into the frozen linear map or norm before them at every step",
    "attention_kernel": "attention in 16 bits on a processor by whichever kernel measures as the faster one",
    "frozen_precision": "in 16 bits, frozen weights are cast once and not at every step",
    "low_memory": "outputs of norms and of the MLP's first layer are computed again in the backward pass, and masks are"
    " kept as bits",
    "recompute_blocks": "every block keeps its input alone and is computed again in the backward pass (gradient"
    " checkpointing)",
    "batched_adapters": "adapters of several runs stand on one backbone, and the steps of all are one pass through it",
    "compile_blocks": "every block is compiled by itself (torch.compile), with its edits inside",
}
# Cost time for memory, so `auto` leaves them out.
FOR_MEMORY = frozenset({"low_memory", "recompute_blocks"})
# Compiling takes as long as some hundred steps; batching runs brings something where their batches are small.
ON_REQUEST = FOR_MEMORY | {"batched_adapters", "compile_blocks"}


class UnknownAcceleration(VpeftError):
    """There is no acceleration of this name."""


def wanted(choice: str) -> list[str]:
    """The names that `auto`, `off`, or names with commas between them stand for; `auto` may be one of the names.

    Raises:
        UnknownAcceleration: a word is none of them; the message lists what there is.
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
