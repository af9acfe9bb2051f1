"""Each head against a restatement in plain tensors, on features that are made by hand."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vpeft.backbones.features import Feature, Features
from vpeft.head import BadHead, Head, all_heads, get_head
from vpeft.heads.attentive import AttentiveHead
from vpeft.heads.batchnorm_linear import BatchNormLinearHead
from vpeft.heads.coral import CoralHead
from vpeft.heads.cosine import CosineHead
from vpeft.heads.last_k import LastKHead
from vpeft.heads.linear import LinearHead
from vpeft.heads.linear_map import LinearMapHead
from vpeft.heads.mlp import MlpHead

WIDTH, OUTPUTS, BATCH = 12, 5, 4


def _features(seed: int = 0) -> Features:
    """A vector, tokens with a class token and two registers on a 2 x 3 grid, and maps of two widths."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    return Features(
        {
            "outlet": Feature(random(BATCH, WIDTH)),
            "norm": Feature(random(BATCH, 9, WIDTH), prefix=3, grid=(2, 3)),
            "blocks.0": Feature(random(BATCH, 9, WIDTH), prefix=3, grid=(2, 3)),
            "blocks.1": Feature(random(BATCH, 9, WIDTH), prefix=3, grid=(2, 3)),
            "stages.0": Feature(random(BATCH, 4, 6, 8), grid=(4, 6)),
            "stages.1": Feature(random(BATCH, 2, 3, WIDTH), grid=(2, 3)),
            "clip": Feature(random(BATCH, 2, 2, 3, WIDTH), grid=(2, 2, 3)),
        },
        size=(32, 48),
    )


def _trained(head: Head) -> Head:
    """The head with weights as training could leave them: biases and scales are no longer at their start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head.eval()


def _every() -> list[Head]:
    """Each kind with settings that differ from the defaults."""
    return [
        LinearHead(WIDTH, OUTPUTS),
        MlpHead(WIDTH, OUTPUTS, hidden=7, layers=2, activation="tanh", dropout=0.5),
        CosineHead(WIDTH, OUTPUTS, scale=4.0, learn_scale=False),
        CosineHead(WIDTH, OUTPUTS),
        BatchNormLinearHead(WIDTH, OUTPUTS, eps=1e-3),
        AttentiveHead(WIDTH, OUTPUTS, pooled_width=WIDTH, heads=3, queries=2, mlp_ratio=2.0),
        AttentiveHead(8, OUTPUTS, place="stages.0", pooled_width=WIDTH, mlp_ratio=0.0),
        LastKHead((WIDTH, WIDTH), OUTPUTS, ("blocks.0", "blocks.1"), pooling="both"),
        LastKHead((8, WIDTH), OUTPUTS, ("stages.0", "stages.1")),
        LinearMapHead(WIDTH, OUTPUTS, batch_norm=True),
        LinearMapHead(8, OUTPUTS, "stages.0"),
        CoralHead(WIDTH, OUTPUTS),
    ]


@pytest.mark.parametrize("number", range(12))
def test_settings_and_state_make_the_head_again(number: int) -> None:
    head = _trained(_every()[number])
    settings = json.loads(json.dumps(head.settings))
    again = get_head(head.kind)(**settings)
    again.load_state_dict(head.state_dict())
    assert again.reads == head.reads and again.settings == head.settings
    assert torch.equal(again.eval()(_features()), head(_features()))


def test_every_head_here_is_found_by_its_kind() -> None:
    assert all(all_heads()[head.kind] is type(head) for head in _every())


@pytest.mark.parametrize("number", range(12))
def test_gradients_reach_every_parameter(number: int) -> None:
    head = _trained(_every()[number]).train()
    # Squared, as the sum of a LayerNorm's output is constant.
    head(_features()).pow(2).sum().backward()
    silent = [name for name, parameter in head.named_parameters() if not parameter.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert silent == []


@pytest.mark.parametrize("number", range(12))
def test_samples_do_not_depend_on_each_other_in_evaluation(number: int) -> None:
    head, features = _trained(_every()[number]), _features()
    alone = Features(
        {
            name: Feature(features[name][1:2], found.prefix, found.grid)
            for name in features
            if (found := features.feature(name))
        }
    )
    torch.testing.assert_close(head(alone)[0], head(features)[1], rtol=1e-5, atol=1e-6)


def test_mlp() -> None:
    head = _trained(MlpHead(WIDTH, OUTPUTS, hidden=7, layers=2, activation="relu"))
    weights = dict(head.named_parameters())
    h = _features()["outlet"]
    for step in (0, 3):
        h = (h @ weights[f"hidden.{step}.weight"].T + weights[f"hidden.{step}.bias"]).clamp(min=0)
    torch.testing.assert_close(head(_features()), h @ weights["out.weight"].T + weights["out.bias"])
    assert head(_features()["outlet"]).equal(head(_features()))


@pytest.mark.parametrize(("options", "said"), [({"hidden": 0}, "at least 1"), ({"activation": "gelo"}, "'gelu'")])
def test_mlp_refuses(options: dict[str, int | str], said: str) -> None:
    with pytest.raises(BadHead, match=said):
        MlpHead(WIDTH, OUTPUTS, **options)  # type: ignore[arg-type]


def test_cosine() -> None:
    head = _trained(CosineHead(WIDTH, OUTPUTS, scale=4.0, learn_scale=False))
    assert isinstance(head, CosineHead)
    f = _features()["outlet"].double()
    for row in range(BATCH):
        for k in range(OUTPUTS):
            w = head.weight[k].double()
            expected = 4 * (f[row] @ w) / (f[row].norm() * w.norm())
            assert head(_features())[row, k].item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(head(f.float() * 100), head(f.float()), atol=1e-5)


def test_cosine_learns_its_scale_where_it_should() -> None:
    assert "scale" in dict(CosineHead(3, 2).named_parameters())
    assert "scale" not in dict(CosineHead(3, 2, learn_scale=False).named_parameters())
    assert CosineHead(3, 2).scale.item() == 10
    with pytest.raises(BadHead, match="above 0"):
        CosineHead(3, 2, scale=0)


def test_batchnorm_linear() -> None:
    head = BatchNormLinearHead(WIDTH, OUTPUTS)
    f = _features()["outlet"]
    standard = (f - f.mean(0)) / (f.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(head(_features()), standard @ head.linear.weight.T + head.linear.bias)
    # In evaluation the running statistics, which one batch moved by a tenth from 0 and 1.
    standard = (f - 0.1 * f.mean(0)) / (0.9 + 0.1 * f.var(0) + 1e-6).sqrt()
    torch.testing.assert_close(head.eval()(_features()), standard @ head.linear.weight.T + head.linear.bias)
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("with_pooled", [True, False])
def test_attentive(with_pooled: bool) -> None:
    head = _trained(
        AttentiveHead(WIDTH, OUTPUTS, pooled_width=WIDTH if with_pooled else 0, heads=3, queries=2, mlp_ratio=2.0)
    )
    w, features, results = dict(head.named_parameters()), _features(), []

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    for row in range(BATCH):
        x = features["norm"][row, 3:]
        if with_pooled:
            x = torch.cat((features["outlet"][row : row + 1], x))
        x = norm(x, "norm_tokens")
        key_value = x @ w["kv.weight"].T + w["kv.bias"]
        keys, values = key_value[:, :WIDTH], key_value[:, WIDTH:]
        looked = w["queries"] @ w["q.weight"].T + w["q.bias"]
        seen = torch.zeros(2, WIDTH)
        for part in range(3):
            own = slice(4 * part, 4 * part + 4)
            shares = (looked[:, own] @ keys[:, own].T / 4**0.5).softmax(-1)
            seen[:, own] = shares @ values[:, own]
        q = w["queries"] + seen
        hidden = functional.gelu(norm(q, "norm_queries") @ w["mlp.0.weight"].T + w["mlp.0.bias"])
        q = q + hidden @ w["mlp.2.weight"].T + w["mlp.2.bias"]
        results.append(q.mean(0) @ w["out.weight"].T + w["out.bias"])
    torch.testing.assert_close(head(features), torch.stack(results))


def test_attentive_does_not_care_for_the_order_of_cells_but_for_each_of_them() -> None:
    head, features = _trained(AttentiveHead(8, OUTPUTS, place="stages.0")), _features()
    turned = Features({"stages.0": Feature(features["stages.0"].flip(1, 2), grid=(4, 6))})
    torch.testing.assert_close(head(turned), head(features))
    changed = features["stages.0"].clone()
    changed[:, 3, 5, 0] += 1
    assert not torch.allclose(head(Features({"stages.0": Feature(changed, grid=(4, 6))})), head(features))


def test_attentive_takes_pooled_features_of_another_width() -> None:
    head = _trained(AttentiveHead(8, OUTPUTS, place="stages.0", pooled_width=WIDTH))
    assert head.reads == ("stages.0", "outlet")
    features = _features()
    other = Features({"stages.0": features.feature("stages.0"), "outlet": Feature(features["outlet"] + 1)})
    assert not torch.allclose(head(features), head(other))


@pytest.mark.parametrize("width", [12, 65, 192, 1152])
def test_attentive_finds_heads_that_divide(width: int) -> None:
    head = AttentiveHead(width, 2)
    assert width % head.heads == 0 and (width < 128 or head.heads > 1)


def test_attentive_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(BadHead, match="heads that divide 12"):
        AttentiveHead(12, 2, heads=5)


@pytest.mark.parametrize("pooling", ["token", "mean", "both"])
def test_last_k(pooling: str) -> None:
    places = ("blocks.0", "blocks.1")
    head, features = _trained(LastKHead((WIDTH, WIDTH), OUTPUTS, places, pooling)), _features()
    assert isinstance(head, LastKHead)
    token = [features[place][:, 0] for place in places]
    mean = [features[place][:, 3:].mean(1) for place in places]
    parts = {"token": token, "mean": mean, "both": [*token, mean[1]]}[pooling]
    normed = [(p - p.mean(1, keepdim=True)) / (p.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() for p in parts]
    torch.testing.assert_close(head(features), torch.cat(normed, 1) @ head.linear.weight.T + head.linear.bias)


def test_last_k_refuses() -> None:
    with pytest.raises(BadHead, match="token, mean, both"):
        LastKHead((WIDTH,), OUTPUTS, ("blocks.0",), "max")


@pytest.mark.parametrize(("place", "first"), [("norm", 3), ("stages.0", 0)])
def test_linear_map(place: str, first: int) -> None:
    features = _features()
    head = _trained(LinearMapHead(features[place].shape[-1], OUTPUTS, place))
    assert isinstance(head, LinearMapHead)
    rows, columns = features.feature(place).grid  # type: ignore[misc]
    cells = features[place][:, first:].reshape(BATCH, rows, columns, -1)
    out = head(features)
    assert out.shape == (BATCH, OUTPUTS, rows, columns)
    weight, bias = head.conv.weight[:, :, 0, 0], head.conv.bias
    for row in range(rows):
        for column in range(columns):
            torch.testing.assert_close(out[:, :, row, column], cells[:, row, column] @ weight.T + bias)


def test_linear_map_refuses_clips() -> None:
    with pytest.raises(Exception, match="time axis"):
        LinearMapHead(WIDTH, OUTPUTS, "clip")(_features())


# -- the contract of settings ------------------------------------------------------------------------------------------


class _Odd(Head):
    kind = "odd_for_tests"

    def __init__(self, width: int, outputs: int, sizes: tuple[int, ...] = (1, 2), name: str = "x") -> None:
        super().__init__()
        self.layer = nn.Linear(width, outputs)


class _OddChild(_Odd):
    kind = "odd_child_for_tests"

    def __init__(self, width: int, more: int = 3) -> None:
        super().__init__(width, more, sizes=(9,))


class _SameInit(_Odd):
    kind = "same_init_for_tests"


@pytest.fixture(autouse=True, scope="module")
def _forget() -> object:
    yield
    from vpeft import head

    for kind in ("odd_for_tests", "odd_child_for_tests", "same_init_for_tests"):
        head._HEADS.pop(kind, None)


def test_settings_hold_the_defaults_and_are_what_json_gives_back() -> None:
    head = _Odd(3, 4)
    assert head.settings == {"width": 3, "outputs": 4, "sizes": [1, 2], "name": "x"}
    assert json.loads(json.dumps(head.settings)) == head.settings


def test_settings_of_a_subclass_are_its_own() -> None:
    assert _OddChild(3).settings == {"width": 3, "more": 3}
    assert _SameInit(3, 4, name="y").settings == {"width": 3, "outputs": 4, "sizes": [1, 2], "name": "y"}
    assert _Odd(3, 4).settings["sizes"] == [1, 2]


def test_settings_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(BadHead, match="adapter file cannot hold"):
        _Odd(3, 4, name=torch.zeros(2))  # type: ignore[arg-type]


def test_two_heads_of_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="'linear' is taken by vpeft.heads.linear"):

        class Second(Head):
            kind = "linear"


def test_unknown_heads_are_refused_by_the_nearest_name() -> None:
    with pytest.raises(BadHead, match="'attentive'"):
        get_head("attentve")
