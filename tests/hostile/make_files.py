"""Adds what is new to the corpus of small hostile files, `tests/hostile/files.zip`.

Run it by `python -m tests.hostile.make_files`. Files that are there are kept as they are: what was
hostile once stays a test, also when the format moves on.
"""

from __future__ import annotations

import io
import json
import lzma
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from tests.hostile.mutations import saved
from vpeft.backbones import digest
from vpeft.injection.adapter_file import KEY, read, sealed_bytes
from vpeft.training.checkpoint import Checkpoint, write_checkpoint

CORPUS = Path(__file__).parent / "files.zip"
DEEP = "[" * 10_000 + "]" * 10_000


def write() -> None:
    """Write all files into the archive, in a fixed order and with a fixed time."""
    made = {**adapters(), **weights(), **recipes(), **anatomies(), **checkpoints(), **records(), **tables(), **lists()}
    if CORPUS.exists():
        with zipfile.ZipFile(CORPUS) as archive:
            made |= {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(CORPUS, "w") as archive:
        for name, data in sorted(made.items()):
            assert len(data) < 70_000, f"{name} has {len(data)} bytes"
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def adapters() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder), "lora")
        sound, (manifest, tensors) = path.read_bytes(), read(path)
    raw = manifest.model_dump(mode="json")

    def forged(**changes: Any) -> bytes:
        return sealed_bytes({**raw, **changes}, tensors)

    def holding(**changes: Tensor) -> bytes:
        held = {**tensors, **changes}
        numbers = {"tensors_digest": digest.tensors_digest(held), "parameters": sum(v.numel() for v in held.values())}
        return sealed_bytes({**raw, **numbers}, held)

    def worded(old: str, new: str) -> bytes:
        return to_bytes(tensors, metadata={KEY: json.dumps({**raw, "format": 1, "seal": None}).replace(old, new)})

    def origin(name: str, **more: Any) -> bytes:
        return forged(origin={"name": name, **more})

    lora, first = raw["methods"][0], next(iter(tensors))
    return {
        f"adapter_{name}.safetensors": data
        for name, data in {
            "rank_200000": forged(methods=[{**lora, "fields": {**lora["fields"], "rank": 200_000}}]),
            "classes_100000000": forged(head={**raw["head"], "classes": 100_000_000}),
            "width_huge": forged(head={**raw["head"], "width": 2**40}),
            "methods_1000": forged(methods=[{"name": "lora", "fields": {}}] * 1000),
            "layers_huge": forged(head={"kind": "mlp", "settings": {"width": 48, "outputs": 3, "layers": 2**31}}),
            "heads_nested": forged(head={"kind": "several", "several": {"a": {"kind": "several", "several": {}}}}),
            "method_unknown": forged(methods=[{"name": "\x1b[31mred", "fields": {}}]),
            "towers_unknown": forged(methods=[{**lora, "tower": "text"}]),
            "labels_twice": forged(labels=["cat", "cat", "owl"]),
            "labels_control": forged(labels=["cat", "dog\x1b]0;owned\x07", "owl"]),
            "labels_turned": forged(labels=["cat", "dog\u202egpj", "owl"]),
            "labels_long": forged(labels=["cat", "d" * 20_000, "owl"]),
            "size_huge": forged(preprocessing={"size": [10**9, 10**9]}),
            "std_zero": forged(preprocessing={"size": [32, 32], "mean": [0.5], "std": [0.0]}),
            "scores_words": forged(scores={"top1": "nan"}),
            "scores_nan": worded('"top1": 0.5', '"top1": NaN'),
            "number_infinite": worded('"top1": 0.5', '"top1": 1e999'),
            "number_long": worded('"top1": 0.5', '"top1": ' + "9" * 5000),
            "key_twice": worded('"labels"', '"format": 1, "labels"'),
            "surrogate": worded('"cat"', '"\\ud800"'),
            "deep_manifest": worded('"extra": {}', '"extra": ' + DEEP),
            "train_everything": forged(train=[""]),
            "train_2000": forged(train=[f"blocks.{n}" for n in range(2000)]),
            "probe_short": forged(probe=raw["probe"][:1]),
            "probe_long": forged(probe=[0.0] * 1000),
            "anatomy_sends": forged(anatomy={"features": "push_to_hub"}),
            "anatomy_changes": forged(anatomy={"features": "requires_grad_"}),
            "anatomy_size": forged(anatomy={"blocks": ["blocks"], "image_size": [4096, 100_000]}),
            "nan": holding(**{first: torch.full_like(tensors[first], float("nan"))}),
            "complex": holding(**{first: tensors[first].to(torch.complex64)}),
            "whole_numbers": holding(**{first: tensors[first].to(torch.int64)}),
            "one_more": holding(extra=torch.zeros(3)),
            "origin_giant": origin("vit_giant_patch14_dinov2", pretrained=False),
            "origin_code": origin("py:tests/hostile/make_files.py:write"),
            "origin_hub": origin("hf:somebody/something"),
            "origin_folder": origin("local-dir:/etc"),
            "origin_size": origin("vit_tiny_patch16_224", pretrained=False, image_size=[16_384, 16_384]),
            "origin_weights": origin("pocket_vit", weights="/etc/hostname", weights_sha256="0" * 64),
            "one_bit": sound[:-5] + bytes([sound[-5] ^ 1]) + sound[-4:],
            "seal_moved": sound.replace(b'\\"name\\":\\"default\\"', b'\\"name\\":\\"dEfault\\"'),
            "cut": sound[:-100],
            "longer": sound + b"\0",
            "header_longer_than_file": struct.pack("<Q", 2**60) + sound[8:],
            "header_deep": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
            "header_overlap": _header({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, 12),
            "header_bomb": _header({"a": _entry([2**40, 2**40], 0, 8)}, 8),
            "header_negative": _header({"a": _entry([-2], 0, 8)}, 8),
            "text": b"hello, I am an adapter\n",
            "empty": b"",
        }.items()
    }


def _entry(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def _header(table: dict[str, Any], size: int) -> bytes:
    said = json.dumps(table).encode()
    return struct.pack("<Q", len(said)) + said + bytes(size)


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch hostile_file_was_run",)


def weights() -> dict[str, bytes]:
    def made(save: Any) -> bytes:
        file = io.BytesIO()
        save(file)
        return file.getvalue()

    nested: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(200):
        nested = {"a": nested}
    sound = made(lambda file: torch.save({"w": torch.zeros(4, 4)}, file))
    return {
        "weights_text.pth": b"these are no weights\n",
        "weights_empty.pth": b"",
        "weights_cut.pth": sound[: len(sound) // 2],
        "weights_runs.pth": made(lambda file: torch.save({"w": _Runs()}, file)),
        "weights_old_pickle.pt": pickle.dumps(_Runs()),
        "weights_number.pt": made(lambda file: torch.save(7, file)),
        "weights_deep.pt": made(lambda file: torch.save(nested, file)),
        "weights_objects.npz": made(lambda file: np.savez(file, w=np.array([_Runs(), None], dtype=object))),
        "weights_bomb.npz": made(lambda file: np.savez_compressed(file, w=np.zeros(12_000_000, np.float32))),
        "weights_text.npz": b"PK\x03\x04 no archive",
        "weights_no_array.npz": made(_archive_of_text),
        "weights_cut.safetensors": to_bytes({"w": torch.zeros(4, 4)})[:-8],
        "weights_other_shapes.safetensors": to_bytes({"w": torch.zeros(4, 4)}),
        "weights_text.safetensors": b"no weights",
    }


def _archive_of_text(file: Any) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}")


RECIPE = """backbone = "pocket_vit"
method = "lora"
[data]
source = "images"
"""


def recipes() -> dict[str, bytes]:
    words = {
        "deep": f"a = {DEEP}\n",
        "deep_tables": "a = {b = " * 5_000,
        "long_key": "a." * 20_000 + "b = 1\n",
        "nan": f"{RECIPE}[optimisation]\nlr = nan\n",
        "infinite": f"{RECIPE}[optimisation]\nweight_decay = inf\n",
        "number_long": f"{RECIPE}[optimisation]\nepochs = {'9' * 5000}\n",
        "number_large": f"{RECIPE}[optimisation]\nseed = {10**19}\n",
        "method_deep": RECIPE.replace('"lora"', f'"lora(rank={"[" * 5000})"'),
        "method_number": RECIPE.replace('"lora"', f'"lora(rank={"9" * 5000})"'),
        "method_list": RECIPE.replace('"lora"', "[1, 2]"),
        "no_mapping": RECIPE.replace("[data]", "[[data]]"),
        "null": RECIPE.replace("images", "a\\u0000b") + "[data.x]\n",
        "code": RECIPE.replace("pocket_vit", "py:tests/hostile/make_files.py:write"),
        "hub": RECIPE.replace("pocket_vit", "hf:somebody/something"),
    }
    return {f"recipe_{name}.toml": text.encode() for name, text in words.items()} | {
        "recipe_latin1.toml": "backbone = 'é'".encode("latin-1"),
        "recipe_nul.toml": b"backbone = 'a'\0",
        "recipe_picture.toml": bytes(range(256)) * 4,
    }


def anatomies() -> dict[str, bytes]:
    words = {
        "deep": f"blocks = {DEEP}\n",
        "sends": 'features = "push_to_hub"\n',
        "changes": 'features = "double"\n',
        "hidden": 'features = "__init__"\n',
        "size": "image_size = [1000000, 1000000]\n",
        "stride": 'blocks = "a"\nstride = -1\n',
        "other_key": "colour = 1\n",
        "list": "blocks = [1, 2]\n",
    }
    return {f"anatomy_{name}.toml": text.encode() for name, text in words.items()} | {
        "anatomy_utf16.toml": "blocks = 'a'".encode("utf-16"),
    }


def checkpoints() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        write_checkpoint(path, Checkpoint({"model": {"w": torch.arange(8.0)}}, {"epoch": 3}))
        sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-9] ^= 4

    def holding(facts: str) -> bytes:
        return to_bytes({"model/w": torch.zeros(2)}, metadata={"vpeft_checkpoint": facts})

    return {
        "checkpoint_one_bit.safetensors": bytes(flipped),
        "checkpoint_other_epoch.safetensors": sound.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 9'),
        "checkpoint_other_name.safetensors": sound.replace(b"model/w", b"model/v"),
        "checkpoint_older.safetensors": sound.replace(b'\\"format\\": 2', b'\\"format\\": 1'),
        "checkpoint_cut.safetensors": sound[:-4],
        "checkpoint_deep.safetensors": holding(DEEP),
        "checkpoint_list.safetensors": holding("[1]"),
        "checkpoint_nan.safetensors": holding('{"format": 1, "epoch": NaN}'),
        "checkpoint_text.safetensors": b"epoch 3",
        "checkpoint_empty.safetensors": b"",
        "checkpoint_other.safetensors": to_bytes({"w": torch.zeros(2)}),
    }


RECORD: dict[str, Any] = {
    "purpose": "final", "task": "digits/digits", "data": "0" * 64, "protocol": "quick@1",
    "methods": [{"name": "lora", "fields": {"rank": 8}}], "backbone": "pocket_vit", "weights": "0" * 64,
    "optimisation": {"lr": 1e-3}, "seed": 0,
}  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    """A sound record of a run that is done, with some fields changed."""
    from vpeft.bench.key import Identity
    from vpeft.bench.record import RecordedScores, RunRecord, State

    identity = Identity.model_validate(RECORD)
    scores = RecordedScores(split="test", values={"top1": 0.5}, leading="top1")
    sound = RunRecord(
        key=identity.key(), identity=identity, suite="digits", label="LoRA", state=State.done, scores=scores
    )
    return {**sound.model_dump(mode="json"), **changes}


def records() -> dict[str, bytes]:
    sound = record()
    identity, scores = sound["identity"], sound["scores"]
    texts = {
        "deep": DEEP,
        "text": "a record",
        "empty": "",
        "list": "[1, 2]",
        "number_infinite": json.dumps(sound).replace("0.5", "1e999"),
        "number_long": json.dumps(sound).replace("0.5", "9" * 5000),
        "score_nan": json.dumps(sound).replace("0.5", "NaN"),
        "key_twice": json.dumps(sound).replace('"suite"', '"label": "SSF", "suite"'),
        "surrogate": json.dumps(sound).replace("LoRA", "\\ud800"),
        "format_true": json.dumps({**sound, "format": True}),
        "format_list": json.dumps({**sound, "format": [2]}),
        "format_long": json.dumps({**sound, "format": "\x1b[31m" * 5000}),
        "other_seed": json.dumps({**sound, "identity": {**identity, "seed": 7}}),
        "other_key": json.dumps({**sound, "key": "../" * 300}),
        "identity_list": json.dumps({**sound, "identity": [identity]}),
        "option_deep": json.dumps({**sound, "identity": {**identity, "optimisation": {"a": [[[[[]]]]] * 20}}}),
        "unknown_field": json.dumps({**sound, "\x1b]0;owned\x07": 1}),
        "no_scores": json.dumps({**sound, "scores": None}),
        "score_words": json.dumps({**sound, "scores": {**scores, "values": {"top1": "good"}}}),
        "older_score_words": json.dumps({**sound, "format": 1, "scores": {"split": "test", "top1": []}}),
        "history_words": json.dumps({**sound, "history": [["epoch"], "loss"]}),
    }
    return {f"record_{name}.json": text.encode() for name, text in texts.items()} | {
        "record_latin1.json": json.dumps(sound).replace("LoRA", "Ä").encode("latin-1"),
        "record_utf16.json": json.dumps(sound).encode("utf-16"),
    }


def tables() -> dict[str, bytes]:
    line = json.dumps(record())
    texts = {
        "twice": f"{line}\n{line}\n",
        "no_key": "{}\n",
        "key_path": json.dumps({**record(), "key": "../../etc/passwd"}) + "\n",
        "key_number": '{"key": 7}\n',
        "deep": DEEP + "\n",
        "empty_line": f"{line}\n\n",
        "other_format": json.dumps({**record(), "format": 3}) + "\n",
        "bomb": " " * 300_000_000,
    }
    packed = {f"table_{name}.xz": lzma.compress(text.encode()) for name, text in texts.items()}
    sound = lzma.compress(f"{line}\n".encode())
    return packed | {
        "table_text.xz": line.encode(),
        "table_cut.xz": sound[:-20],
        "table_flipped.xz": sound[:60] + bytes([sound[60] ^ 8]) + sound[61:],
        "table_two.xz": sound + sound,
        "table_not_utf8.xz": lzma.compress(b"\xff\xfe\n"),
    }


def lists() -> dict[str, bytes]:
    head = "path,label\n"
    texts = {
        "empty": "",
        "no_column": "file,name\na.png,cat\n",
        "nul": f"{head}a\0.png,cat\n",
        "nul_in_header": "path,label\0\na.png,cat\n",
        "name_long": f"{head}{'a' * 5000}.png,cat\n",
        "folders_deep": f"{head}{'a/' * 4000}b.png,cat\n",
        "cell_long": f"{head}a.png,{'c' * 60_000}\n",
        "quote_open": f'{head}"a.png,cat\nb.png,dog\n' * 500,
        "columns_differ": f"{head}a.png\n",
        "split_unknown": "path,label,split\na.png,cat,\x1b[31mtrial\n",
        "label_empty": f"{head}a.png,\n",
        "label_control": f"{head}a.png,cat\x1b]0;owned\x07\n",
        "device": f"{head}/dev/zero,cat\n/dev/stdin,dog\n",
        "outside": f"{head}../../../../../../etc/passwd,cat\n",
        "itself": f"{head}list_itself.csv,cat\n",
        "columns_many": ",".join(["path", *(f"c{n}" for n in range(9000))]) + "\n",
    }
    return {f"list_{name}.csv": text.encode() for name, text in texts.items()} | {
        "list_latin1.csv": f"{head}é.png,cat\n".encode("latin-1"),
        "list_utf16.csv": f"{head}a.png,cat\n".encode("utf-16"),
        "list_picture.csv": bytes(range(256)) * 8,
        "list_text.parquet": b"path,label\na.png,cat\n",
        "list_magic.parquet": b"PAR1" + bytes(40) + b"\xff\xff\xff\x7fPAR1",
    }


if __name__ == "__main__":
    write()
