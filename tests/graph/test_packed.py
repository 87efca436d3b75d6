"""Convolutions with packed weights: the same as torch's, whatever their window, for few rows and many."""

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.graph.packed import PackedConvolution

LAYERS = {
    "plain": nn.Conv2d(8, 16, 3),
    "strided and padded": nn.Conv2d(8, 16, 3, 2, 1),
    "dilated, without a bias": nn.Conv2d(8, 16, 3, dilation=2, bias=False),
    "of one entry": nn.Conv2d(8, 128, 1),
    "oblong": nn.Conv2d(8, 28, (1, 5), (2, 1), (0, 2)),
}


def packed(predictor: Predictor) -> list[PackedConvolution]:
    (compiled,) = predictor._compiled.values()
    return [node.target for node in compiled._split.trunk.graph.nodes if isinstance(node.target, PackedConvolution)]


@pytest.mark.parametrize(("rows", "is_packed"), [(1, True), (2, True), (3, False), (70, False)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_convolution_is_torchs(name: str, rows: int, is_packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With packed weights where rows are few beside them, else by torch itself."""
    layer, x = LAYERS[name], torch.randn(rows, 8, 8, 8)
    plain = []
    convolution = torch.conv2d
    monkeypatch.setattr(torch, "conv2d", lambda *given: plain.append(given) or convolution(*given))
    convolve = PackedConvolution(layer.weight, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type] # pairs, no words
    with torch.inference_mode():
        found, expected = convolve(x, layer.weight, layer.bias), layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.stride() == expected.stride()
    assert bool(plain) is not is_packed


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_trunk_of_convolutions_is_the_eval_networks(rows: int, form: torch.memory_format) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 6, 3, padding="same"), nn.Conv2d(6, 5, 2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(20, 3),
    ).eval()  # fmt: skip
    x = torch.randn(rows, 3, 12, 12).to(memory_format=form)
    predictor = Predictor.capture(network, torch.randn(2, 3, 12, 12))
    answer = predictor.predict(x, passes=400, quantities=["deterministic"])
    with torch.inference_mode():
        expected = network(x)
    assert len(packed(predictor)) == 2
    mean, variance = answer["mean"], answer["variance"]
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    assert bool(((mean - expected).abs() <= 5 * (variance / 400).sqrt() + 1e-6).all())


def test_plans_share_packed_weights() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 3)).eval()
    predictor, x = Predictor.capture(network, torch.randn(2, 3, 6, 6)), torch.randn(1, 3, 6, 6)
    predictor.predict(x, passes=2)
    (first,) = packed(predictor)
    predictor._compiled.clear()
    predictor.predict(x, passes=2, variant="gaussian")
    (second,) = packed(predictor)
    assert second.packed is first.packed
