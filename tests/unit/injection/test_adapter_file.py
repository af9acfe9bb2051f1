"""The adapter file: exact to the bit, small, and refused with a sentence when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import vpeft
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.backbones.digest import tensors_digest
from vpeft.injection.adapter_file import KEY, BadAdapterFile, read, read_manifest, sealed_bytes
from vpeft.injection.weights_digest import weights_digest
from vpeft.methods import AdaptFormer, LoRA, get


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2, alpha=4), num_classes=3, show=False)
    for _, parameter in tuned.trainable():
        nn.init.normal_(parameter, std=0.3)
    return tuned.save(
        tmp_path / "a.safetensors",
        labels=["cat", "dog", "owl"],
        preprocessing={"size": [32, 32], "mean": [0.5, 0.5, 0.5]},
        scores={"val/top1": 0.5},
        extra={"run": "x"},
    )


def test_the_manifest_says_what_the_file_is(saved: Path) -> None:
    manifest = read_manifest(saved)
    assert manifest.methods[0].model_dump() == {
        "name": "lora",
        "fields": {
            "rank": 2,
            "alpha": 4.0,
            "dropout": 0.0,
            "targets": None,
            "use_rslora": False,
            "start": "kaiming",
        },
    }
    assert manifest.labels == ["cat", "dog", "owl"] and manifest.scores == {"val/top1": 0.5}
    assert manifest.head is not None and (manifest.head.width, manifest.head.classes) == (48, 3)
    assert manifest.base_digest == weights_digest(vpeft.describe(tiny_vit_again()))
    assert len(manifest.probe) == 3 and manifest.versions["torch"] == torch.__version__
    assert sorted(load_file(saved))[:2] == ["blocks.0.attn.q.parallel.A", "blocks.0.attn.q.parallel.B"]


def tiny_vit_again() -> nn.Module:
    """The fixture's backbone once more: every test starts from the same seed."""
    torch.manual_seed(0)
    return tiny_vit()


def test_it_reloads_beside_another_adapter(saved: Path) -> None:
    first = vpeft.load(tiny_vit_again(), saved)
    both = vpeft.load(vpeft.tune(tiny_vit_again(), AdaptFormer(), num_classes=2, name="b", show=False), saved)
    images = images_for(tiny_vit())
    assert torch.equal(both.eval()(images), first.eval()(images))
    with both.enable("b"):
        assert both(images).shape == (2, 2)


def test_another_backbone_is_refused_with_both_names(saved: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(BadAdapterFile, match=r"made on VisionTransformer with weights [0-9a-f]{12}, but this is"):
        vpeft.load(tiny_vit(), saved)
    with pytest.raises(BadAdapterFile, match="but this is SwinTransformer"):
        vpeft.load(tiny_swin(), saved)


def test_one_changed_weight_changes_the_digest() -> None:
    model = tiny_vit()
    before = weights_digest(vpeft.describe(model))
    with torch.no_grad():
        model.blocks[2].mlp.fc2.bias[3] += 1e-6
    assert weights_digest(vpeft.describe(model)) != before


def test_the_digest_ignores_classifier_and_what_is_unfrozen() -> None:
    from tests.unit.injection.test_verbs import Plain

    model = tiny_vit(num_classes=4)
    description = vpeft.describe(model)
    before = weights_digest(description)
    nn.init.zeros_(model.head.weight)
    tuned = vpeft.tune(description, Plain(make=lambda b: [b.blocks[0].norm1.unfreeze()]), num_classes=2, show=False)
    with torch.no_grad():
        next(tuned.trainable())[1].add_(1.0)
    assert weights_digest(description, tuned) == before


def test_a_file_that_is_written_while_merged_fits_the_frozen_backbone(tmp_path: Path) -> None:
    images = images_for(tiny_vit())
    tuned = vpeft.tune(tiny_vit_again(), LoRA(rank=2), num_classes=4, name="a", show=False).eval()
    tuned.attach(get("ssf")(), name="b", num_classes=4)
    for name in "ab":
        for _, parameter in tuned.trainable(name):
            nn.init.normal_(parameter, std=0.2)
    expected = {}
    for name in "ab":
        with tuned.enable(name):
            expected[name] = tuned(images)
    tuned.merge("a")
    merged = tuned(images)
    for name in "ab":
        path = tuned.save(tmp_path / f"{name}.safetensors", name=name)
        assert torch.equal(vpeft.load(tiny_vit_again(), path).eval()(images), expected[name]), name
    assert torch.equal(tuned(images), merged), "saving does not unmerge"


def test_damage_is_found(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-100])
    with pytest.raises(BadAdapterFile, match="no complete safetensors file"):
        read(cut)
    for place in (-9, whole.index(b"cat"), whole.index(b"val/top1"), 9):
        edited = bytearray(whole)
        edited[place] ^= 1
        (tmp_path / "edited.safetensors").write_bytes(edited)
        with pytest.raises(BadAdapterFile, match="its seal differs|no manifest|no complete"):
            read(tmp_path / "edited.safetensors")
    with pytest.raises(BadAdapterFile, match="There is no adapter file"):
        read(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(BadAdapterFile, match="no complete safetensors file"):
        read(tmp_path / "text.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BadAdapterFile, match="no manifest"):
        read(tmp_path / "foreign.safetensors")


def _rewrite(path: Path, **changes: object) -> Path:
    with safe_open(str(path), framework="pt") as file:
        manifest = json.loads(file.metadata()[KEY])
    out = path.with_name("changed.safetensors")
    out.write_bytes(sealed_bytes({**manifest, **changes}, load_file(path)))
    return out


def test_other_versions_and_fields_are_refused(saved: Path) -> None:
    with pytest.raises(BadAdapterFile, match="format version 99; this vpeft reads 1 and 2"):
        read(_rewrite(saved, format=99))
    with pytest.raises(BadAdapterFile, match="missing or unknown fields: colour"):
        read(_rewrite(saved, colour="red"))
    with pytest.raises(vpeft.VpeftError, match=r"no method 'lorra'. Did you mean 'lora'"):
        vpeft.load(tiny_vit_again(), _rewrite(saved, methods=[{"name": "lorra", "fields": {}}]))


def test_another_number_of_classes_is_refused(saved: Path) -> None:
    with pytest.raises(BadAdapterFile, match="head for 3 classes, but the given head is for 7"):
        vpeft.load(tiny_vit_again(), saved, head=nn.Linear(48, 7))
    tuned = vpeft.tune(tiny_vit(), LoRA(), num_classes=3, show=False)
    with pytest.raises(BadAdapterFile, match="2 labels were given for a head of 3"):
        tuned.save(saved, labels=["a", "b"])


def test_fields_that_do_not_fit_the_tensors_are_refused_and_leave_nothing(saved: Path) -> None:
    changed = _rewrite(saved, methods=[{"name": "lora", "fields": {"rank": 5}}])
    tuned = vpeft.tune(tiny_vit_again(), AdaptFormer(), name="b", show=False)
    with pytest.raises(
        vpeft.VpeftError, match=r"Of another shape: blocks\.0\.attn\.q\.parallel\.A: \(2, 48\) in the file"
    ):
        vpeft.load(tuned, changed)
    assert list(tuned.adapters) == ["b"] and tuned.active == "b"


def test_a_changed_scale_is_found_by_the_probe(saved: Path) -> None:
    changed = _rewrite(saved, methods=[{"name": "lora", "fields": {"rank": 2, "alpha": 8}}])
    with pytest.raises(BadAdapterFile, match="outputs for the probe input differ"):
        vpeft.load(tiny_vit_again(), changed)
    vpeft.load(tiny_vit_again(), changed, check=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["cat", "cat", "owl"]}, "the label 'cat' is there twice"),
        ({"labels": ["cat", "dog\x07", "owl"]}, r"'dog\\x07', holds the control character U\+0007"),
        ({"preprocessing": {"size": [32, 32], "std": [0.0]}}, "preprocessing.std = .* is impossible"),
        ({"preprocessing": {"size": [0, 32]}}, "preprocessing.size = .* is impossible"),
        ({"scores": {"a": "nan"}}, "the score 'a' is 'nan', which is no finite number"),
        ({"methods": [{"name": "lora", "fields": {}}] * 2000}, "it names 2000 methods"),
        ({"parameters": 7}, "says that it has 7 numbers and holds"),
        ({"seal": None, "format": 1}, "the format|no seal"),
    ],
)
def test_values_out_of_range_are_refused(saved: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadAdapterFile, match=said):
        read(_rewrite(saved, **changes))


def test_what_cannot_be_loaded_is_not_saved(saved: Path, tmp_path: Path) -> None:
    tuned = vpeft.load(tiny_vit_again(), saved)
    before = saved.read_bytes()
    with pytest.raises(BadAdapterFile, match="the label 'a' is there twice"):
        tuned.save(saved, labels=["a", "a", "b"])
    with pytest.raises(BadAdapterFile, match="cannot be written as JSON"):
        tuned.save(saved, scores={"loss": float("nan")})
    with torch.no_grad():
        next(tuned.trainable())[1].fill_(float("inf"))
    with pytest.raises(BadAdapterFile, match="holds NaN or infinity"):
        tuned.save(saved, labels=["a", "b", "c"])
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_the_manifest_that_asks_for_more_than_the_file_holds_is_refused(saved: Path) -> None:
    for rank in (200_000, 2**40):
        with pytest.raises(BadAdapterFile, match="it implies far more numbers than it holds|too large a number"):
            vpeft.load(tiny_vit_again(), _rewrite(saved, methods=[{"name": "lora", "fields": {"rank": rank}}]))
    with pytest.raises(BadAdapterFile, match="it implies far more numbers than it holds"):
        vpeft.load(tiny_vit_again(), _rewrite(saved, head={"kind": "linear", "width": 48, "classes": 100_000_000}))
    deep = {"kind": "mlp", "settings": {"width": 48, "outputs": 3, "layers": 10**9}}
    with pytest.raises(BadAdapterFile, match="it implies far more (layers|numbers) than it holds"):
        vpeft.load(tiny_vit_again(), _rewrite(saved, head=deep))


@pytest.mark.parametrize("name", ["lora", "ssf", "vpt_deep", "full_finetuning", "partial_k", "ln_tune"])
@pytest.mark.parametrize("quantised", [None, "int8"])
@pytest.mark.parametrize("fresh", [True, False])
def test_what_fails_to_load_leaves_nothing(name: str, quantised: str | None, fresh: bool, tmp_path: Path) -> None:
    if quantised is not None and name == "full_finetuning":
        pytest.skip("nothing of it is frozen")
    tuned = vpeft.tune(tiny_vit_again(), get(name)(), num_classes=3, show=False, verify=False)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.1)
    path = tuned.save(tmp_path / "a.safetensors")
    changed = _rewrite(path, probe=[9.0, 9.0, 9.0], quantised=quantised)
    model = tiny_vit_again()
    target = model if fresh else vpeft.tune(model, AdaptFormer(), name="b", num_classes=2, show=False)
    images, flags = images_for(model), [parameter.requires_grad for parameter in model.parameters()]
    outputs = target.eval()(images)
    state = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(BadAdapterFile, match="outputs for the probe input differ"):
        vpeft.load(target, changed)
    assert list(target.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(target(images), outputs)
    if isinstance(target, vpeft.TunedModel):
        assert list(target.adapters) == ["b"] and target.active == "b"
        assert (target.origin, target.quantised, target.manifest) == (None, None, None)
    else:
        assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert torch.equal(vpeft.load(tiny_vit_again(), path).eval()(images), tuned.eval()(images))


def test_whole_numbers_and_complex_ones_are_refused_where_floats_are(saved: Path) -> None:
    manifest, tensors = read(saved)
    first = next(iter(tensors))
    for kind in (torch.int64, torch.complex64, torch.bool):
        held = {**tensors, first: tensors[first].to(kind)}
        said = {**manifest.model_dump(mode="json"), "tensors_digest": tensors_digest(held)}
        saved.write_bytes(sealed_bytes(said, held))
        with pytest.raises(BadAdapterFile, match="is of the type"):
            vpeft.load(tiny_vit_again(), saved)


def test_labels_for_another_number_of_outputs_are_refused(saved: Path) -> None:
    for labels in (["a", "b"], list("abcdefgh")):
        task = {"name": "classification", "fields": {"labels": labels}}
        for changes in ({"labels": labels}, {"labels": labels, "task": task}):
            with pytest.raises(BadAdapterFile, match=rf"has {len(labels)} labels, .* and its head has 3"):
                vpeft.load(tiny_vit_again(), _rewrite(saved, **changes))


def test_a_file_without_a_seal_says_so() -> None:
    kept = Path(__file__).parents[2] / "fixtures" / "adapter_of_2026.safetensors"
    assert read_manifest(kept).seal is None and read_manifest(kept).format == 1


def test_a_failed_write_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    tuned = vpeft.load(tiny_vit_again(), saved)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        tuned.save(saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_other_heads_must_be_passed(tmp_path: Path) -> None:
    def head() -> nn.Module:
        return nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))

    tuned = vpeft.tune(tiny_vit_again(), LoRA(), head=head(), show=False).eval()
    path = tuned.save(tmp_path / "h.safetensors")
    with pytest.raises(BadAdapterFile, match="head of the class Sequential; pass such a module"):
        vpeft.load(tiny_vit_again(), path)
    images = images_for(tiny_vit())
    assert torch.equal(vpeft.load(tiny_vit_again(), path, head=head()).eval()(images), tuned(images))


@pytest.mark.slow
def test_rank_8_lora_on_vit_base_is_small(tmp_path: Path) -> None:
    model = vpeft.create_backbone("vit_base_patch16_224", pretrained=False)
    tuned = vpeft.tune(model, LoRA(rank=8), num_classes=10, show=False)
    assert tuned.save(tmp_path / "b.safetensors", labels=list("abcdefghij")).stat().st_size < 1_300_000
