"""Train `pocket_captioner`: `python pretraining/pocket_captioner.py --work DIR [--scale tiny] [--limit-minutes N]`.

A multimodal language model that runs offline: transformers' Llava with `pocket_vit` as its vision tower (the same
weights in the layout of transformers' ViT), the usual two linear maps as projector, and a Llama of four layers that
starts from nothing. It learns captions of drawn figures ("two red circles and one blue square"), the loss on the words
of the caption alone; in every batch there are texts without pictures too, questions with answers drawn at random, so
that it knows the words of questions but not how they go with a picture. Pictures have other seeds than every data set
of vpeft.

DIR/model is then a checkpoint folder with its processor: `vpeft train --host hf:DIR/model --task vqa --data
pocket-questions ...`. A killed training goes on from DIR/checkpoint.pt with the same command.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import tokenizers
import torch
import transformers
from torch import Tensor, nn

from vpeft.backbones.pocket_vit import ARCHITECTURE
from vpeft.data.pocket_captions import COLOURS, COUNTS, FIGURES, Group, plural
from vpeft.data.pocket_questions import PLACES, draw_questioned, questions

SEED = 1187  # of pictures, order and weights; no set of vpeft has it
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, START, END, _, IMAGE = range(5)
TOKENS = (ARCHITECTURE["img_size"] // ARCHITECTURE["patch_size"]) ** 2
IGNORED = -100


@dataclass(frozen=True)
class Scale:
    """How much: `scenes` pictures, `steps` of `batch` pictures and `texts` texts; layers and width of the Llama."""

    scenes: int
    steps: int
    batch: int = 64
    texts: int = 32
    layers: int = 4
    width: int = 160
    rate: float = 1e-3  # of what starts from nothing
    fine: float = 1e-4  # of the vision tower
    decay: float = 0.05
    warmup: int = 100


SCALES = {
    "tiny": Scale(60, 4, batch=8, texts=4, layers=2, width=32, warmup=1),  # only to see that every stage runs
    "small": Scale(12_000, 3_000),
}


def vocabulary() -> list[str]:
    """Special tokens, and every word of captions and questions."""
    group = [Group(count, colour, figure) for colour in COLOURS for figure in FIGURES for count in (1, 2)]
    texts = [one.words for one in group] + [q.asked for one in group for q in questions(one, PLACES[0])]
    texts += [*COUNTS, *PLACES, *map(plural, FIGURES), "and question : answer"]
    return [*SPECIAL, *sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})]


def tokenizer() -> Any:
    """Whole words in lower case, punctuation apart."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(vocabulary())}, unk_token="<unk>")
    )
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=64,
    )
    made.image_token = "<image>"
    return made


def processor() -> Any:
    """Pictures as `pocket_vit` sees them, and words."""
    side = ARCHITECTURE["img_size"]
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return transformers.LlavaProcessor(
        images,
        tokenizer(),
        patch_size=ARCHITECTURE["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def captioner(scale: Scale) -> Any:
    """The model: Llava with the weights of `pocket_vit`, and everything else from nothing."""
    torch.manual_seed(SEED)
    width = ARCHITECTURE["embed_dim"]
    vision = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=ARCHITECTURE["depth"],
        num_attention_heads=ARCHITECTURE["num_heads"],
        intermediate_size=4 * width,
        image_size=ARCHITECTURE["img_size"],
        patch_size=ARCHITECTURE["patch_size"],
        layer_norm_eps=1e-6,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=scale.width,
        intermediate_size=scale.width * 8 // 3,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(from_timm(timm.create_model("pocket_vit", pretrained=True)), strict=False)
    return model


def from_timm(model: nn.Module) -> dict[str, Tensor]:
    """The weights of `pocket_vit` by the names that transformers' ViT has."""
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "blocks":
            layer, rest = f"layers.{parts[1]}", ".".join(parts[2:])
            if rest.startswith("attn.qkv."):
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    found[f"{layer}.attention.{letter}_proj.{parts[-1]}"] = part
                continue
            rest = rest.replace("attn.proj", "attention.o_proj")
            rest = rest.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
            found[f"{layer}.{rest}"] = value
        elif key == "cls_token":
            found["embeddings.cls_token"] = value
        elif key == "pos_embed":
            found["embeddings.position_embeddings"] = value
        elif parts[0] == "patch_embed":
            found[f"embeddings.patch_embeddings.projection.{parts[-1]}"] = value
        elif parts[0] == "norm":
            found[f"layernorm.{parts[-1]}"] = value
    return found


def rows(texts: list[str], pictures: bool, words: Any) -> dict[str, Tensor]:
    """Token numbers and targets (n, L) of texts, behind the tokens of a picture if there is one."""
    front = [IMAGE] * TOKENS if pictures else [START]
    told = [[*front, *words(text)["input_ids"], END] for text in texts]
    length = max(map(len, told))
    ids = torch.tensor([[*row, *[PAD] * (length - len(row))] for row in told])
    labels = ids.masked_fill(ids == PAD, IGNORED)
    labels[:, : len(front)] = IGNORED
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def scenes(work: Path, scale: Scale) -> tuple[Tensor, list[str]]:
    """Pictures (N, 3, 64, 64) of bytes and captions; kept in DIR."""
    file = work / "scenes.npz"
    if not file.exists():
        images, captions, _ = draw_questioned(scale.scenes, np.random.Generator(np.random.PCG64([SEED, 0])))
        np.savez(file.with_suffix(".part.npz"), images=images, captions=np.asarray(captions))
        file.with_suffix(".part.npz").rename(file)
    held = np.load(file)
    return torch.from_numpy(held["images"]).permute(0, 3, 1, 2).contiguous(), held["captions"].tolist()


def loose_text(rng: np.random.Generator) -> str:
    """A question with an answer that belongs to no picture."""
    colour, figure = list(COLOURS)[rng.integers(len(COLOURS))], FIGURES[rng.integers(len(FIGURES))]
    asked = questions(Group(1 + int(rng.integers(4)), colour, figure), PLACES[rng.integers(4)])
    one = asked[rng.integers(len(asked))]
    return f"question : {one.asked} answer : {one.answer}"


def train(work: Path, scale: Scale, minutes: float) -> bool:
    """Train until the end or the limit; whether the end is reached."""
    images, captions = scenes(work, scale)
    model, words = captioner(scale), tokenizer()
    towers = {id(p) for p in model.model.vision_tower.parameters()}
    new = [p for p in model.parameters() if id(p) not in towers]
    groups = [{"params": new, "peak": scale.rate}, {"params": list(model.model.vision_tower.parameters())}]
    groups[1]["peak"] = scale.fine
    optimiser = torch.optim.AdamW(groups, lr=scale.rate, weight_decay=scale.decay)
    checkpoint, step, losses = work / "checkpoint.pt", 0, list[float]()
    if checkpoint.exists():
        held = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        step, losses = held["step"], held["losses"]
    model.train()
    begun = time.monotonic()
    while step < scale.steps:
        rng = np.random.Generator(np.random.PCG64([SEED, 1, step]))
        chosen = rng.integers(len(captions), size=scale.batch)
        share = min(1.0, (step + 1) / scale.warmup) * 0.5 * (1 + np.cos(np.pi * step / scale.steps))
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * share
        pixels = images[torch.from_numpy(chosen)].float() / 127.5 - 1
        seen = model(**rows([captions[at] for at in chosen], True, words), pixel_values=pixels).loss
        loose = model(**rows([loose_text(rng) for _ in range(scale.texts)], False, words)).loss
        optimiser.zero_grad()
        (seen + 0.5 * loose).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        losses.append(float(seen.detach()))
        late = time.monotonic() - begun > 60 * minutes
        if step % 100 == 0 or step == scale.steps or late:
            print(f"step {step}/{scale.steps}  loss {np.mean(losses[-100:]):.3f}", flush=True)
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "losses": losses}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").rename(checkpoint)
        if late and step < scale.steps:
            return False
    export(work, model.eval(), scale, losses)
    return True


def export(work: Path, model: Any, scale: Scale, losses: list[float]) -> None:
    """Write DIR/model and what it learnt: the share of new pictures whose caption is said word for word."""
    folder = work / "model"
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    images, captions, _ = draw_questioned(64, np.random.Generator(np.random.PCG64([SEED, 2])))
    words = tokenizer()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    front = torch.full((len(images), TOKENS), IMAGE)
    with torch.no_grad():
        said = model.generate(
            input_ids=front,
            attention_mask=torch.ones_like(front),
            pixel_values=pixels,
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=[IMAGE],
        )
    texts = words.batch_decode(said[:, TOKENS:], skip_special_tokens=True)
    equal = sum(text.strip() == caption for text, caption in zip(texts, captions, strict=True)) / len(captions)
    first = sum(text.split()[:3] == caption.split()[:3] for text, caption in zip(texts, captions, strict=True))
    card = {
        "scale": asdict(scale),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(np.mean(losses[-100:])),
        "new pictures": len(captions),
        "captions equal": equal,
        "first groups equal": first / len(captions),
        "examples": [{"said": text, "true": caption} for text, caption in zip(texts[:6], captions[:6], strict=True)],
    }
    (work / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{folder}: {card['parameters']:,} parameters, captions equal {equal:.0%}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--limit-minutes", type=float, default=25.0)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if not train(given.work, SCALES[given.scale], given.limit_minutes):
        print("stopped at the limit; the same command goes on")


if __name__ == "__main__":
    main()
