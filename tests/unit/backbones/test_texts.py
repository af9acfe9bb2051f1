"""Text towers: their places, where texts end, and tokenizers that are missing, wrong, or given too long texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.image_text_models import LIBRARIES, WORDS, images, word_tokenizer
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.host import Towers
from vpeft.backbones.pocket_words import END, PAD, START, VOCABULARY, PocketTokenizer, pieces
from vpeft.backbones.texts import NoTokenizer, TextSpec, TooLongText, WrongTokenizer

pytest.importorskip("transformers")
pytest.importorskip("open_clip")


def described(name: str) -> tuple[Towers, Any]:
    """The description of a tiny model, and the inputs of its text tower."""
    found = vpeft.describe(LIBRARIES[name]())
    assert isinstance(found, Towers)
    return found, found.towers["text"].inputs


@pytest.mark.parametrize("name", LIBRARIES)
def test_both_towers_end_in_one_space_and_name_tokens_and_words(name: str) -> None:
    towers, spec = described(name)
    assert list(towers.towers) == ["image", "text"] and isinstance(spec, TextSpec)
    towers.require_shared_space()
    text = towers.towers["text"]
    assert (text.tokens.name, text.words.name, text.outlet.name) == ("text.tokens", "text.words", "text.outlet")
    seen: dict[str, Tensor] = {}
    for place in (text.tokens, text.words):
        assert place.exit is not None
        place.exit.module.register_forward_hook(lambda _, args, out, name=place.name: seen.update({name: out}))
    ids = spec.example(3)
    features = towers.feature("text", ids)
    assert torch.equal(seen["text.tokens"], ids)
    assert seen["text.words"].shape == (3, spec.length, text.words.width)
    assert features.shape[1] == towers.feature("image", images(LIBRARIES[name](), 2)).shape[1] == text.facts.width


@pytest.mark.parametrize("name", ["hf_clip", "siglip"])
def test_features_of_transformers_models_are_behind_their_projections(name: str) -> None:
    towers, spec = described(name)
    model: Any = towers.host
    pictures, ids = images(LIBRARIES[name](), 2), spec.example(2)
    with torch.no_grad():
        assert torch.equal(towers.feature("image", pictures), model.get_image_features(pictures).pooler_output)
        assert torch.equal(towers.feature("text", ids), model.get_text_features(ids).pooler_output)


def test_a_text_ends_at_its_first_end_token_or_before_its_padding() -> None:
    clip = described("hf_clip")[1]
    assert clip.ends(torch.tensor([[1, 5, 3, 3, 3], [1, 5, 6, 7, 3]])).tolist() == [2, 4]
    siglip = described("siglip")[1]
    assert siglip.end is None and siglip.start == 0
    assert siglip.ends(torch.tensor([[5, 6, siglip.pad, siglip.pad], [5, 6, 7, 8]])).tolist() == [1, 3]


def test_tokenizers_make_rows_of_the_towers_length_and_words_have_embeddings() -> None:
    towers, spec = described("hf_clip")
    with pytest.raises(NoTokenizer, match="with_tokenizer"):
        spec.ids(["a cat"])
    spec = towers.with_tokenizer(word_tokenizer()).towers["text"].inputs
    assert isinstance(spec, TextSpec)
    assert spec.ids(["a cat"]).tolist() == [[1, WORDS.index("a"), WORDS.index("cat"), 3, *[0] * 8]]
    found = spec.embedded("a photo of a")
    assert spec.embedding is not None
    numbers = [WORDS.index(word) for word in ["a", "photo", "of", "a"]]
    assert torch.equal(found, spec.embedding.weight[numbers]) and not found.requires_grad
    assert isinstance(towers.inputs.specs[1][1], TextSpec) and towers.inputs.specs[1][1].tokenizer is not None  # type: ignore[attr-defined]


def test_too_long_texts_and_wrong_tokenizers_say_so() -> None:
    spec = described("hf_clip")[0].with_tokenizer(word_tokenizer()).towers["text"].inputs
    assert isinstance(spec, TextSpec)
    with pytest.raises(TooLongText, match=r"has 22 tokens, .* reads 12"):
        spec.ids(["cat " * 20])

    def ids_of(rows: Any) -> TextSpec:
        found = described("hf_clip")[0].with_tokenizer(lambda texts: torch.tensor(rows)).towers["text"].inputs
        assert isinstance(found, TextSpec)
        return found

    with pytest.raises(WrongTokenizer, match=r"token 400, and this text tower knows 40"):
        ids_of([[1, 400, 3]]).ids(["cat"])
    with pytest.raises(WrongTokenizer, match="hold no end token, 3"):
        ids_of([[1, 5, 6]]).ids(["cat"])
    with pytest.raises(TooLongText, match="has more tokens than this text tower reads, 12"):
        ids_of([[1, *[5] * 20, 3]]).ids(["cat"])
    with pytest.raises(WrongTokenizer, match="rows of 20 tokens, and this text tower reads 12"):
        ids_of([[1, 3, *[0] * 18]]).ids(["cat"])
    with pytest.raises(WrongTokenizer, match="whole numbers"):
        ids_of([[0.5, 3.0]]).ids(["cat"])
    assert ids_of([[1, 5, 3]]).ids(["cat"]).shape == (1, 12)


def test_open_clips_own_tokenizer_is_found_and_cuts_nothing_off() -> None:
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=32, patch_size=16, width=16, layers=1, head_width=8)
    model = CLIP(8, vision, CLIPTextCfg(context_length=16, width=8, heads=1, layers=1))
    spec = vpeft.describe(model).towers["text"].inputs
    assert isinstance(spec, TextSpec)
    expected = open_clip.SimpleTokenizer(context_length=16)(["a photo of a cat."])
    assert torch.equal(spec.ids(["a photo of a cat."]), expected)
    with pytest.raises(TooLongText, match="tokens, start and end included"):
        spec.ids(["a photo of a cat and " * 5])


def test_towers_without_a_common_space_are_refused() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            clip: Any = LIBRARIES["hf_clip"]()
            clip.config.text_config.hidden_size = 16
            import transformers

            self.visual = clip.vision_model
            torch.manual_seed(0)
            self.words = transformers.CLIPTextModel(clip.config.text_config)
            self.logit_scale = nn.Parameter(torch.zeros(()))

    found = vpeft.describe(Apart())
    assert isinstance(found, Towers)
    with pytest.raises(vpeft.MissingPlace, match="image gives 32 channels and text gives 16 channels"):
        found.require_shared_space()
    model: Any = LIBRARIES["pocket_clip"]()
    del model.logit_scale
    again = vpeft.describe(model)
    assert isinstance(again, Towers)
    with pytest.raises(vpeft.MissingPlace, match="has no `logit_scale`"):
        again.require_shared_space()


def test_image_towers_have_neither_tokens_nor_words() -> None:
    plain: Backbone = vpeft.describe(vpeft.create_backbone("pocket_vit"))
    with pytest.raises(vpeft.MissingPlace, match="no place 'words'"):
        _ = plain.words


def test_pocket_words_are_whole_and_others_letter_by_letter() -> None:
    row = PocketTokenizer()(["Two red circles!"])[0].tolist()
    shown = [VOCABULARY[number] for number in row[:5]]
    assert shown == ["<start>", "two", "red", "circles", "!"] and row[5] == END and set(row[6:]) == {PAD}
    assert row[0] == START and [VOCABULARY[number] for number in pieces("zoo é")] == ["z", "o", "o", "<other>"]
    with pytest.raises(TooLongText, match="read letter by letter"):
        PocketTokenizer()(["incomprehensibilities and more"])
    assert len(set(VOCABULARY)) == len(VOCABULARY)
