"""Tokenizers of pictures: the shapes, the nearest code, files that are refused, and transformers' own class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.visual_sequences import CODES, TOKENS, write_codec
from vpeft.backbones.picture_codec import SHAPE, NoCodec, PocketVq, picture_codec


def test_tokens_are_the_codes_of_the_largest_cosine() -> None:
    torch.manual_seed(0)
    model = PocketVq(side=8, patch=4, codes=CODES, width=8, depth=1).eval()
    pictures = torch.rand(3, 3, 8, 8)
    cells = model.encoder(model.patches(2 * pictures - 1)).flatten(2).transpose(1, 2)
    cosines = torch.nn.functional.cosine_similarity(cells[:, :, None], model.codebook, dim=-1)
    assert torch.equal(model.encode(pictures), cosines.argmax(-1))
    tokens = model.encode(pictures)
    assert tokens.shape == (3, TOKENS)
    painted = model.decode(tokens).detach()
    assert painted.shape == pictures.shape and float(painted.min()) >= 0 and float(painted.max()) <= 1
    # each row of the picture's cells is a row of the tokens
    upper = pictures.clone()
    upper[:, :, 4:] = torch.rand(3, 3, 4, 8)
    shallow = PocketVq(side=8, patch=4, codes=CODES, width=8, depth=0)
    assert torch.equal(shallow.encode(pictures)[:, :2], shallow.encode(upper)[:, :2])


def test_a_file_gives_the_same_tokens_and_its_digest_is_that_of_its_weights(tmp_path: Path) -> None:
    path = write_codec(tmp_path / "vq.safetensors")
    found = picture_codec(str(path))
    assert found is picture_codec(str(path)) and not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    torch.manual_seed(0)
    made = PocketVq(side=8, patch=4, codes=CODES, width=8, depth=1)
    assert made.digest() == found.digest()
    with torch.no_grad():
        made.codebook[0, 0] += 1
    assert made.digest() != found.digest()
    pictures = torch.rand(300, 3, 8, 8)
    assert torch.equal(found.encoded(pictures), found.encode(pictures))
    assert found.encoded(pictures[:0]).shape == (0, TOKENS)


@pytest.mark.parametrize("fault", ["none", "text", "shape", "keys"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "vq.safetensors"
    if fault == "text":
        path.write_text("no tensors")
    elif fault != "none":
        shape: dict[str, Any] = PocketVq(side=8, patch=4, codes=CODES, width=8, depth=1).shape
        stated = {**shape, "codes": 10**9} if fault == "shape" else {"side": 8, "another": 1}
        save_file({"codebook": torch.zeros(CODES, 8)}, str(path), metadata={SHAPE: json.dumps(stated)})
    with pytest.raises(NoCodec, match="vq.safetensors"):
        picture_codec(str(path))


def test_janus_of_transformers_gives_its_own_tokens(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.JanusVQVAEConfig(
        num_embeddings=32,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        num_patches=4,
    )
    model = transformers.JanusVQVAE(config).eval()
    model.save_pretrained(tmp_path / "janus")
    codec = picture_codec(f"hf:{tmp_path / 'janus'}")
    assert (codec.side, codec.count, codec.codes) == (8, 16, 32)
    pictures = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        tokens = codec.encode(pictures)
        assert torch.equal(tokens.flatten(), model.encode(2 * pictures - 1).image_tokens.flatten())
        assert torch.allclose(codec.decode(tokens), ((model.decode(tokens) + 1) / 2).clamp(0, 1), atol=1e-6)
    with pytest.raises(NoCodec, match="JanusVQVAE"):
        picture_codec(f"hf:{tmp_path}")
