"""Tiny multimodal language models of transformers at random start, with their processors, and a fixed batch.

Words are whole: the tokenizer knows those of `WORDS`. Images are 32 x 32 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import roughen

WORDS = [
    *("a", "red", "blue", "green", "circle", "square", "ring", "bar", "one", "two", "three", "and", "how", "many"),
    *("which", "colour", "is", "the", "where", "left", "right", "top", "bottom", "question", "answer", "describe"),
    *("picture", "yes", "no", "what", "there", "are", "of", "user", "assistant", ":", "?", "."),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>"]
SPECIAL += ["<end_of_utterance>"]
KINDS = ("llava", "idefics3", "smolvlm", "blip2")
SIDE = 32
VOCABULARY = len(SPECIAL) + len(WORDS)
PAD, START, END, IMAGE = 0, 1, 2, 4
LANGUAGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
# tokens of an image in the text: a token for each patch, or fewer
IMAGE_TOKENS = {"llava": 16, "idefics3": 4, "smolvlm": 4, "blip2": 3}


def multimodal(kind: str, seed: int = 0) -> Any:
    """One of `KINDS`, in evaluation mode, the same weights for a seed."""
    import transformers

    torch.manual_seed(seed)
    llama = transformers.LlamaConfig(
        **LANGUAGE, intermediate_size=48, num_key_value_heads=2, attention_bias=True, mlp_bias=True
    )
    if kind == "llava":
        config: Any = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION), text_config=llama, image_token_id=IMAGE
        )
        model: nn.Module = transformers.LlavaForConditionalGeneration(config)
    elif kind == "blip2":
        opt = transformers.OPTConfig(**LANGUAGE, ffn_dim=48, word_embed_proj_dim=32)
        former = transformers.Blip2QFormerConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            encoder_hidden_size=16,
            vocab_size=VOCABULARY,
        )
        config = transformers.Blip2Config(
            vision_config=transformers.Blip2VisionConfig(**VISION).to_dict(),
            qformer_config=former.to_dict(),
            text_config=opt.to_dict(),
            num_query_tokens=IMAGE_TOKENS[kind],
            image_token_index=IMAGE,
        )
        model = transformers.Blip2ForConditionalGeneration(config)
        nn.init.normal_(model.query_tokens)
    else:
        stem = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
        config = getattr(transformers, f"{stem}Config")(
            vision_config=VISION,
            text_config=llama.to_dict(),
            scale_factor=2,
            image_token_id=IMAGE,
            pad_token_id=PAD,
            tie_word_embeddings=False,
        )
        model = getattr(transformers, f"{stem}ForConditionalGeneration")(config)
    roughen(model)
    return model.eval()


def batch(kind: str, count: int = 2) -> dict[str, Tensor]:
    """The named arguments of the model's forward: images, token numbers, the first of the texts padded on the left."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    words = torch.randint(len(SPECIAL), VOCABULARY, (count, 5), generator=generator)
    ids = torch.cat([torch.full((count, IMAGE_TOKENS[kind]), IMAGE), words], dim=1)
    ids = torch.cat([torch.full((count, 1), START), ids], dim=1)
    ids[0] = torch.cat([torch.tensor([PAD]), ids[0, :-1]])
    found = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    return {**found, "pixel_values": images[:, None] if kind in ("idefics3", "smolvlm") else images}


def labelled(kind: str, count: int = 2) -> dict[str, Tensor]:
    """`batch` with targets: the last three words."""
    found = batch(kind, count)
    labels = found["input_ids"].clone()
    labels[:, :-3] = -100
    return {**found, "labels": labels}


def tokenizer() -> Any:
    """A tokenizer of whole words."""
    import tokenizers
    import transformers

    known = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        model_max_length=128,
    )


def processor(kind: str) -> Any:
    """The model's processor of images and words."""
    import transformers

    words = tokenizer()
    size = {"height": SIDE, "width": SIDE}
    if kind == "llava":
        images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
        words.image_token = "<image>"
        return transformers.LlavaProcessor(
            images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
    if kind == "blip2":
        return transformers.Blip2Processor(
            transformers.BlipImageProcessor(size=size), words, num_query_tokens=IMAGE_TOKENS[kind]
        )
    stem = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    made = getattr(transformers, f"{stem}ImageProcessor")(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    more: dict[str, Any] = {}
    if kind == "smolvlm":
        more["video_processor"] = transformers.SmolVLMVideoProcessor()
    return getattr(transformers, f"{stem}Processor")(made, words, image_seq_len=IMAGE_TOKENS[kind], **more)


def saved(kind: str, folder: Path) -> Path:
    """A checkpoint folder, as a full model comes."""
    multimodal(kind).save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    return folder
