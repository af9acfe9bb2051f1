"""The server in process: it says what `vpeft predict` says, for every adapter and task, alone and in common batches."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vpeft

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from tests.unit.serving.fleet import BACKBONE, METHODS, TASKS, fleet, made, of_task, picture
from vpeft.cli.loaded import open_adapter
from vpeft.cli.predict import predictions_for
from vpeft.methods import get
from vpeft.serving.app import Server
from vpeft.serving.settings import ServeSettings, Tokens

TOKEN = "a-token-for-the-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}
Made = Callable[..., TestClient]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def served() -> Iterator[Made]:
    """Starts servers, and closes them at the end."""
    open_ones: list[TestClient] = []

    def serve(folder: Path, tokens: Tokens | None = None, **settings: Any) -> TestClient:
        server = Server(
            vpeft.create_backbone(BACKBONE).eval(),
            ServeSettings(folder=folder, hosts=("testserver",), **settings),
            tokens or Tokens(use=TOKEN),
        )
        client = TestClient(server.app, raise_server_exceptions=False, headers=BEARER)
        client.__enter__()
        client.server = server  # type: ignore[attr-defined]
        open_ones.append(client)
        return client

    yield serve
    for client in open_ones:
        client.__exit__(None, None, None)


def server_of(client: TestClient) -> Server:
    found: Server = client.server  # type: ignore[attr-defined]
    return found


def expected(path: Path, files: list[Path]) -> list[dict[str, Any]]:
    loaded = open_adapter(path, device="cpu")
    return [{"predictions": list(one.rows[:5]), **one.values} for one in predictions_for(loaded, files)]


def same(a: Any, b: Any) -> None:
    """Equal but for the rounding of other batches."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same(a[name], b[name])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    else:
        assert a == b


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_says_what_predict_says(served: Made, adapters: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    client = served(adapters)
    answer = client.post(f"/predict?adapter={name}", content=picture(1)).json()
    assert answer["adapter"] == name and answer["task"] == "classification"
    (one,) = answer["predictions"]
    assert one.pop("image") == "image"
    same(expected(adapters / f"{name}.safetensors", [tmp_path / "a.png"]), [one])


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_served(served: Made, tmp_path: Path, name: str) -> None:
    folder = of_task(tmp_path / "adapters", name)
    loaded = open_adapter(folder / f"{name}.safetensors", device="cpu")
    files = []
    for number in range(loaded.task.images_per_sample):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(picture(number))
    (wanted,) = predictions_for(loaded, files)
    form = [("image", (file.name, file.read_bytes(), "image/png")) for file in files]
    answer = served(folder).post("/predict?map=true", files=form).json()
    (one,) = answer["predictions"]
    assert one.pop("image") == " ".join(file.name for file in files)
    drawn = one.pop("map", None)
    same(json.loads(json.dumps({"predictions": list(wanted.rows[:5]), **wanted.values})), one)
    assert (drawn is None) == (wanted.map is None)
    if drawn is not None and "png" in drawn:
        shown = np.asarray(Image.open(BytesIO(base64.b64decode(drawn["png"]))))
        assert (shown == wanted.map.numpy()).mean() > 0.999
    elif drawn is not None:
        np.testing.assert_allclose(np.load(BytesIO(base64.b64decode(drawn["npy"]))), wanted.map, rtol=1e-3, atol=1e-4)


def test_images_of_many_adapters_share_passes_and_nothing_else(served: Made, adapters: Path, tmp_path: Path) -> None:
    """24 requests at once for six adapters, twice: each answer is that of its adapter alone, in fewer passes."""
    client = served(adapters, wait_ms=300, batch=24)
    passes = list[int]()
    backbone = server_of(client).pool.tuned.backbone
    backbone.patch_embed.register_forward_hook(lambda _, __, out: passes.append(len(out)))
    names, wanted = [list(METHODS)[number % len(METHODS)] for number in range(24)], {}
    for name in METHODS:
        files = []
        for number in (number for number in range(24) if names[number] == name):
            files.append(tmp_path / f"{name}-{number}.png")
            files[-1].write_bytes(picture(number))
        wanted |= dict(
            zip([file.name for file in files], expected(adapters / f"{name}.safetensors", files), strict=True)
        )

    def ask(number: int) -> Any:
        return client.post(f"/predict?adapter={names[number]}", content=picture(number)).json()

    with ThreadPoolExecutor(24) as threads:
        for _ in range(2):  # loads them, then tries which may share
            list(threads.map(ask, range(24)))
        passes.clear()
        for number, answer in enumerate(threads.map(ask, range(24))):
            (one,) = answer["predictions"]
            same(wanted[f"{names[number]}-{number}.png"]["predictions"], one["predictions"])
    assert sum(passes) == 24 and len(passes) < 12
    assert max(passes) >= 9, "lora, lora_b and bottleneck act on each image alone, so that they share"


def test_features_are_those_of_the_adapter_or_of_the_frozen_backbone(served: Made, adapters: Path) -> None:
    client = served(adapters)
    loaded = open_adapter(adapters / "lora.safetensors", device="cpu")
    image = loaded.preprocessing.transform()(loaded.preprocessing.read(picture(3)))[None]
    with torch.no_grad():
        with_adapter = loaded.model.features(image)[0]
        with loaded.model.disable():
            frozen = loaded.model.features(image)[0]
    for address, row in (("/embed?adapter=lora", with_adapter), ("/embed", frozen)):
        (one,) = client.post(address, content=picture(3)).json()["embeddings"]
        torch.testing.assert_close(torch.tensor(one["embedding"]), row, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(with_adapter, frozen, atol=1e-3)


def test_an_image_is_sent_in_three_ways(served: Made, adapters: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.png").write_bytes(picture(5))
    client = served(adapters, images=tmp_path)
    ways = [
        client.post("/predict?adapter=lora", content=picture(5), headers={"content-type": "image/png"}),
        client.post("/predict", files={"image": ("x.png", picture(5))}, data={"adapter": "lora"}),
        client.post("/predict", json={"adapter": "lora", "paths": ["sub/x.png"]}),
    ]
    answers = [way.json()["predictions"][0]["predictions"] for way in ways]
    assert len(answers[0]) == 3
    same(answers[0], answers[1])
    same(answers[0], answers[2])
    assert (
        len(client.post("/predict?adapter=lora&top=1", content=picture(5)).json()["predictions"][0]["predictions"]) == 1
    )


def test_an_occlusion_map_shows_where_the_answer_comes_from(served: Made, adapters: Path) -> None:
    said = served(adapters).post("/explain?adapter=lora", content=picture(6)).json()
    loaded = open_adapter(adapters / "lora.safetensors", device="cpu")
    image = loaded.preprocessing.transform()(loaded.preprocessing.read(picture(6)))
    covered = image.clone()
    covered[:, 8:16, 16:24] = image.mean(dim=(1, 2), keepdim=True)
    with torch.no_grad():
        whole, part = loaded.model(torch.stack([image, covered])).softmax(1)
    first = int(whole.argmax())
    assert said["answer"] == {"label": loaded.labels[first]} and len(said["falls"]) == len(said["falls"][0]) == 8
    assert said["falls"][1][2] == pytest.approx(float(whole[first] - part[first]), abs=1e-4)


# -- the pool ----------------------------------------------------------------------------------------------------------


def test_adapters_are_loaded_on_first_use_and_the_oldest_leave(served: Made, adapters: Path) -> None:
    client = served(adapters, loaded=3, pinned=("biases",))
    pool = server_of(client).pool
    assert pool.names == ["biases"]
    answers = {name: client.post(f"/predict?adapter={name}", content=picture(1)).json() for name in METHODS}
    assert len(pool.names) == 3 and "biases" in pool.names and pool.names[-1] == "weights"
    for name in METHODS:  # loaded again, they say the same
        assert client.post(f"/predict?adapter={name}", content=picture(1)).json() == answers[name]
    listed = {one["name"]: one for one in client.get("/adapters").json()["adapters"]}
    assert listed.keys() == METHODS.keys() and listed["biases"]["pinned"]
    assert sum(one["loaded"] for one in listed.values()) == 3
    text = client.get("/metrics").text
    assert "vpeft_adapters_loaded 3.0" in text and 'vpeft_images_total{adapter="lora"} 2.0' in text


def test_adapters_are_added_replaced_and_removed_while_it_runs(served: Made, adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    client = served(folder)
    first, second = (adapters / f"{name}.safetensors" for name in ("lora", "lora_b"))
    assert client.post("/predict?adapter=new", content=picture()).status_code == 404
    added = client.post("/adapters?name=new", content=first.read_bytes())
    assert added.status_code == 201 and (folder / "new.safetensors").read_bytes() == first.read_bytes()
    one = client.post("/predict?adapter=new", content=picture()).json()["predictions"]
    assert client.post("/adapters?name=new", content=second.read_bytes()).status_code == 409
    assert client.post("/predict?adapter=new", content=picture()).json()["predictions"] == one
    assert client.post("/adapters?name=new&replace=true", content=second.read_bytes()).status_code == 201
    other = client.post("/predict?adapter=new", content=picture()).json()["predictions"]
    assert other != one
    (folder / "new.safetensors").write_bytes(first.read_bytes())  # by a copy into the folder
    same(client.post("/predict?adapter=new", content=picture()).json()["predictions"], one)
    assert client.delete("/adapters/new").status_code == 204
    assert client.delete("/adapters/new").status_code == 404
    assert client.post("/predict?adapter=new", content=picture()).status_code == 404
    assert list(folder.iterdir()) == [] and server_of(client).pool.names == []


def test_what_cannot_be_served_is_refused_and_changes_nothing(served: Made, adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    client = served(folder)
    good = (adapters / "lora.safetensors").read_bytes()
    edited = bytearray(good)
    edited[-1] ^= 1
    other = tmp_path / "other"
    other.mkdir()
    full = made(other, "full", get("full_finetuning")()).read_bytes()
    for name, data, status in (
        ("a", bytes(edited), 422),
        ("a", good[:-100], 422),
        ("a", b"", 422),
        ("a", b"nothing", 422),
        ("../a", good, 409),
        ("a b", good, 409),
        ("", good, 409),
        ("a", full, 409),
    ):
        answer = client.post("/adapters", params={"name": name}, content=data)
        assert answer.status_code == status and answer.json()["error"]
    assert list(folder.iterdir()) == [] and server_of(client).pool.names == []
    assert not server_of(client).pool.tuned.adapters


def test_a_damaged_file_in_the_folder_is_named_and_the_others_work(
    served: Made, adapters: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    data = (adapters / "lora.safetensors").read_bytes()
    (folder / "good.safetensors").write_bytes(data)
    (folder / "bad.safetensors").write_bytes(data[:-10])
    (folder / "run").mkdir()
    (folder / "run" / "adapter.safetensors").write_bytes(data)
    client = served(folder)
    said = client.get("/adapters").json()
    assert [one["name"] for one in said["adapters"]] == ["good", "run"]
    assert [one["name"] for one in said["not_usable"]] == ["bad"]
    assert client.post("/predict?adapter=bad", content=picture()).status_code == 422
    assert client.post("/predict?adapter=run", content=picture()).status_code == 200


# -- what is around it -------------------------------------------------------------------------------------------------


def test_the_page_and_the_document_are_there_without_a_token(served: Made, adapters: Path) -> None:
    client = served(adapters)
    client.headers.pop("authorization")
    page = client.get("/")
    assert (
        page.status_code == 200
        and "Try an adapter" in page.text
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert client.get("/page.js").status_code == client.get("/page.css").status_code == 200
    assert client.get("/health").json()["status"] == "ok"
    document = client.get("/openapi.json").json()
    routes = {route.path for route in server_of(client).app.routes}  # type: ignore[attr-defined]
    assert set(document["paths"]) == routes - {"/", "/page.js", "/page.css", "/openapi.json"}
    for path, calls in document["paths"].items():
        for method in calls.keys() - {"parameters"}:
            found = client.request(method, path.replace("{name}", "lora"))
            assert found.status_code != 405, (path, method)


def test_closing_answers_what_waits(served: Made, adapters: Path) -> None:
    server = Server(vpeft.create_backbone(BACKBONE).eval(), ServeSettings(folder=adapters, wait_ms=5000), Tokens())
    server.engine.start()
    card = server.catalogue.card("lora")
    sample = card.task.sample_of(card.preprocessing.read(picture()), card.transform, "x")
    waiting = [server.engine.submit("predict", "lora", [sample]) for _ in range(3)]
    server.engine.close(20)
    assert [one.result(0)[0].id for one in waiting] == ["x"] * 3
    with pytest.raises(Exception, match="closing"):
        server.engine.submit("predict", "lora", [sample])
