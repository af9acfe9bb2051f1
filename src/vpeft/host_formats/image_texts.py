"""Multimodal language models of transformers: a picture and words in, words out, by the model's own processor.

The processor makes the tokens of a picture and of a text as the model was trained with; it comes with a checkpoint
folder, or is put on a model of your own, `model.processor = ...`. Where the processor has a chat template, the words
are a user's and the answer is the assistant's; else a template says how a question is put ("Question: {} Answer:").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vpeft.batch import Batch
from vpeft.errors import need_extra

from .host_format import HostFormat, NoHostFormat, register_format, taken

IGNORED = -100
"""The target of a token that is not learnt, as every model of transformers takes it."""
_READ: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


@register_format
class ImageTexts(HostFormat):
    """Llava, Idefics3, SmolVLM, BLIP-2 and their like: `input_ids`, `pixel_values` and `labels`; and `generate`.

    Unlike other formats it is given pictures of any size and words, and answers with losses in training and with texts
    in evaluation: `learn` and `answer` are called by the tasks.
    """

    kinds = ("caption", "answer")

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        asked = {"input_ids", "pixel_values", "labels", "attention_mask"}
        return asked <= set(taken(host)) and callable(getattr(host, "generate", None))

    @property
    def classes(self) -> int | None:
        return None

    @property
    def processor(self) -> Any:
        """The model's processor of pictures and words.

        Raises:
            NoHostFormat: none is known.
        """
        own = self.host.__dict__.get("processor")
        if own is not None:
            return own
        if self.host not in _READ:
            config: Any = getattr(self.host, "config", None)
            folder = str(getattr(config, "_name_or_path", ""))
            transformers: Any = need_extra("transformers", "hf")
            try:
                _READ[self.host] = transformers.AutoProcessor.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
                raise NoHostFormat(
                    f"{type(self.host).__name__} comes without a processor, which makes its tokens of pictures and"
                    f" words ({str(error).strip().partition(chr(10))[0]}). Save it beside the model,"
                    " processor.save_pretrained(folder), or put it on the model: model.processor = processor."
                ) from None
        return _READ[self.host]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    # -- words to tokens ---------------------------------------------------------------------------------------------

    def prompt(self, words: str, template: str) -> str:
        """The whole text before an answer: a user's turn with a picture, or the picture and the template.

        Args:
            words: a question or an instruction; empty for the picture alone.
            template: how words are put where the processor has no chat template, with {} for them.
        """
        processor = self.processor
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, *([{"type": "text", "text": words}] if words else [])]
            said: str = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            return said
        put = template.format(words) if words else ""
        if getattr(processor, "num_query_tokens", None):  # it puts the tokens of the picture before the text itself
            return put
        token = getattr(processor, "image_token", "<image>")
        return f"{getattr(token, 'content', token)} {put}".rstrip()

    def answer_tokens(self, prompt: str, answer: str) -> list[int]:
        """Tokens of an answer behind a prompt, with the token that ends it."""
        tokenizer = self.tokenizer
        gap = "" if not prompt or prompt[-1].isspace() else " "
        before, whole = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt}{gap}{answer}"))
        end = tokenizer.eos_token_id
        before, whole = ([*row[:-1], *(one for one in row[-1:] if one != end)] for row in (before, whole))
        if prompt and whole[: len(before)] == before:
            found = whole[len(before) :]
        else:
            found = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
        return [*found, *([] if end is None else [end])]

    def asked(self, images: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's arguments for pictures (3, H, W) of 8 bits and the texts before the answers, padded in front."""
        tokenizer = self.tokenizer
        before, tokenizer.padding_side = tokenizer.padding_side, "left"
        try:
            made = self.processor(
                images=[[image] for image in images], text=list(prompts), padding=True, return_tensors="pt"
            )
        finally:
            tokenizer.padding_side = before
        known = set(taken(self.host)) | {"pixel_attention_mask"}
        like = next(parameter for parameter in self.host.parameters() if parameter.is_floating_point())
        return {
            name: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            for name, value in made.items()
            if name in known and isinstance(value, Tensor)
        }

    # -- what the tasks call -----------------------------------------------------------------------------------------

    def learn(self, model: Any, images: Sequence[Tensor], prompts: Sequence[str], answers: Sequence[str]) -> Any:
        """What the model gives, with its own loss, the mean over the tokens of the answers."""
        named = self.asked(images, prompts)
        ids, mask = named["input_ids"], named["attention_mask"]
        rows = [self.answer_tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        length = max(map(len, rows))
        behind = torch.full((len(rows), length), self._pad, dtype=ids.dtype)
        for row, tokens in zip(behind, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        counts = torch.tensor([[place < len(tokens) for place in range(length)] for tokens in rows])
        behind, counts = behind.to(ids.device), counts.to(ids.device)
        whole = torch.cat([mask, counts.to(mask.dtype)], dim=1)
        named |= {
            "input_ids": torch.cat([ids, behind], dim=1),
            "attention_mask": whole,
            "labels": torch.cat([torch.full_like(ids, IGNORED), behind.masked_fill(~counts, IGNORED)], dim=1),
        }
        if "position_ids" in taken(self.host):  # from the first word on, as `generate` counts them
            named["position_ids"] = (whole.cumsum(dim=1) - 1).clamp(min=0)
        return model(**named)

    def answer(self, model: Any, images: Sequence[Tensor], prompts: Sequence[str], **options: Any) -> list[str]:
        """The model's answers, by its own `generate` with a key-value cache; `options` are of `generate`."""
        named = self.asked(images, prompts)
        picture = getattr(self.host.config, "image_token_id", None)
        if isinstance(picture, int):  # an answer asks for no further picture
            options = {"suppress_tokens": [picture], **options}
        said: Tensor = model.generate(**named, do_sample=False, pad_token_id=self._pad, **options)
        said = said[:, named["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(said, skip_special_tokens=True)]

    @property
    def _pad(self) -> int:
        found = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if found is None else found)

    # -- as every format ---------------------------------------------------------------------------------------------

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        raise NoHostFormat(
            f"{type(self.host).__name__} takes pictures with words: use the task captioning or"
            " visual_question_answering."
        )

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        return outputs


def image_texts(host: nn.Module | None, kind: str) -> ImageTexts:
    """The format of a host that answers with words.

    Raises:
        NoHostFormat: the model is no such host.
    """
    if host is not None and ImageTexts.fits(host):
        return ImageTexts(host, kind)
    found = "a bare backbone or a model with a head" if host is None else type(host).__name__
    raise NoHostFormat(
        f"{found} says nothing in words. This task tunes a multimodal language model of transformers (Llava, SmolVLM,"
        " Idefics3, BLIP-2) with its own head: create_backbone('host::hf:FOLDER'), or --host hf:FOLDER."
    )


def losses_of(outputs: Any) -> Mapping[str, Tensor]:
    """The loss that a model of transformers computed from `labels`, as a task names its parts."""
    loss: Tensor = outputs["loss"]
    return {"tokens": loss.float().squeeze()}
