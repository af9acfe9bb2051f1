"""The application on Ray Serve, where Ray is installed."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from tests.unit.serving.fleet import BACKBONE, made, picture
from vpeft.methods import get
from vpeft.serving.ray_deployment import NoBackboneNamed, build


def test_it_needs_a_backbone(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    with pytest.raises(NoBackboneNamed, match="backbone=NAME"):
        build({"folder": tmp_path})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_replicas_answer(tmp_path: Path) -> None:
    ray, serve = pytest.importorskip("ray"), pytest.importorskip("ray.serve")
    made(tmp_path, "lora", get("lora")(rank=2))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8437})
        serve.run(build({"folder": tmp_path, "backbone": BACKBONE, "replicas": 2, "num_cpus": 0.5}))
        asked = urllib.request.Request(
            "http://127.0.0.1:8437/predict?adapter=lora", picture(), {"content-type": "image/png"}
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            said = json.loads(answer.read())
        assert len(said["predictions"][0]["predictions"]) == 3
    finally:
        serve.shutdown()
        ray.shutdown()
