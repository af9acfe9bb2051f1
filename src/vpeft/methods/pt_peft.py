"""PT-PEFT: prefixes are learnt first, and then LoRA, adapters or prompts beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.prompt import PromptTokens
from ..method import Method, register
from .adapter import Adapter
from .lora import LoRA
from .prefix_tuning import PrefixTuning
from .vpt_deep import VPTDeep

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

# The name under which a layer says in which stage it begins to learn.
STAGE = "pt_peft_stage"


@register("pt_peft", category="unified", family="unified", paper="2411.00029", year=2024, venue="EMNLP Findings")
class PTPEFT(Method):
    """Stage 1 trains [K_p; k], [V_p; v] in each attention; stage 2 trains these and a PEFT method beside them.

    `parts` are the methods that it is made of: `prefix_tuning`, and `lora`, `adapter` or `vpt_deep`. In stage 1, the
    first `share` of the training, the second method's tensors get no gradient, and its prompts are not inserted. LoRA
    and adapters begin at zero, so that stage 2 starts exactly from the model of stage 1; the optimiser keeps nothing of
    them from before. With `keep="frozen"` the prefixes stop learning there, which is not the paper's form.

    The authors published no code. Sizes, widths, epochs and rates are not stated in what could be read: all are fields,
    and both stages share the schedule of one training.
    """

    length: int = Field(default=16, gt=0)
    """n, prefixes of each attention"""
    form: Literal["direct", "mlp"] = "mlp"
    """whether the prefixes are the parameters, or an encoder makes them in training"""
    hidden: int = Field(default=64, gt=0)
    """inner channels of the encoder"""
    peft: Literal["lora", "adapter", "prompt"] = "lora"
    """what is learnt beside the prefixes in stage 2"""
    rank: int = Field(default=8, gt=0)
    """r, for "lora\""""
    bottleneck: int = Field(default=8, gt=0)
    """channels of the bottleneck, for "adapter\""""
    tokens: int = Field(default=10, gt=0)
    """prompts before each block, for "prompt\""""
    share: float = Field(default=0.5, ge=0.0, le=1.0)
    """share of the training that is stage 1"""
    keep: Literal["trained", "frozen"] = "trained"
    """whether the prefixes go on learning in stage 2"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    @property
    def parts(self) -> tuple[PrefixTuning, Method]:
        """The methods of stage 1 and of stage 2."""
        later: dict[str, Method] = {
            "lora": LoRA(rank=self.rank),
            "adapter": Adapter(bottleneck=self.bottleneck),
            "prompt": VPTDeep(tokens=self.tokens),
        }
        return PrefixTuning(length=self.length, form=self.form, hidden=self.hidden), later[self.peft]

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for stage, part in enumerate(self.parts, start=1):
            for edit in part.edits(backbone):
                layer: Any = edit.layer
                if isinstance(layer, PromptTokens):
                    layer.__class__ = LaterPrompts
                setattr(layer, STAGE, stage)
                yield edit

    def advance(self, tuned: TunedModel, progress: float) -> None:
        """Note the stage: prompts of stage 2 are inserted from then on."""
        for layer in _layers(tuned):
            layer.__dict__["pt_peft_now"] = 1 if progress < self.share else 2
            if isinstance(layer, LaterPrompts):
                layer.held_back = progress < self.share

    def after_backward(self, tuned: TunedModel) -> None:
        """Take away the gradients of what does not learn in this stage."""
        for layer in _layers(tuned):
            begins, now = getattr(layer, STAGE), layer.__dict__.get("pt_peft_now", 2)
            if begins > now or (begins < now and self.keep == "frozen"):
                for parameter in layer.parameters():
                    parameter.grad = None


class LaterPrompts(PromptTokens):
    """Prompts that are not inserted while they are held back: h (B, ...) -> (B, 0, D)."""

    held_back: bool = False

    def rows(self, tokens: Tensor, batch: int) -> Tensor:
        made = super().rows(tokens, batch)
        return made[:, :0] if self.held_back else made


def _layers(tuned: TunedModel) -> Iterator[nn.Module]:
    """The layers of this method in the adapter that is on."""
    for edit in tuned.adapter().edits:
        if edit.layer is not None and hasattr(edit.layer, STAGE):
            yield edit.layer
