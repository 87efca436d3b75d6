"""Every layer trains: its gradients are its forward pass's, and a small network with it learns to read digits."""

import inspect

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from trainable import TRAINABLE, TRAINING_ROWS

import service.dropout
from service.catalogue import LAYERS, describe_variants

EPOCHS = 15
EXPORTED = [
    each
    for each in (getattr(service.dropout, name) for name in service.dropout.__all__)
    if inspect.isclass(each) and issubclass(each, nn.Module)
]
DERIVED = [name for name, each in TRAINABLE.items() if not each.own_gradient]


def test_every_layer_of_the_catalogue_is_trained_here() -> None:
    missing = [layer.__name__ for layer in EXPORTED if not {each.__name__ for each in layer.__mro__} & set(TRAINABLE)]

    assert missing == []
    assert set(TRAINABLE) <= {layer.__name__ for layer in EXPORTED}


def test_every_layer_is_told_where_variants_are_listed() -> None:
    told = [layer for layers in LAYERS.values() for layer in layers]

    assert set(EXPORTED) == {layer for layer in told if not layer.__module__.startswith("torch.")}
    assert [each["name"] for each in describe_variants() if not each["layers"]] == ["fast"]


@pytest.mark.parametrize("name", DERIVED)
def test_gradients_are_finite_differences_under_the_same_noise(name: str) -> None:
    """Of inputs, which are positive, and parameters alike, in float64, the noise repeated by its seed."""
    torch.manual_seed(5)
    module = TRAINABLE[name].layer().double().train()
    names = [each for each, _ in module.named_parameters()]
    inputs = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in TRAINABLE[name].inputs]

    given = inputs or [torch.arange(6)]

    def forward(*tensors: Tensor, seed: int = 7) -> Tensor:
        torch.manual_seed(seed)
        state = dict(zip(names, tensors[len(inputs) :], strict=True))
        return only_output(torch.func.functional_call(module, state, (*tensors[: len(inputs)], *given[len(inputs) :])))

    everything = (*inputs, *(each.detach().clone().requires_grad_() for each in module.parameters()))
    assert torch.autograd.gradcheck(forward, everything)
    noisy = [forward(*everything, seed=seed) for seed in range(20)]
    quiet = only_output(module.eval()(*given))
    assert not all(torch.allclose(each, quiet) for each in noisy)


def only_output(result: object) -> Tensor:
    """Return a layer's output, without a recurrent layer's final states."""
    return result if isinstance(result, Tensor) else result[0]  # type: ignore[index] # a tuple


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_small_network_learns_to_read_digits_with_it(name: str) -> None:
    digits = load_digits()
    x, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(2)
    trainable = TRAINABLE[name]
    network = trainable.network().train()
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAINING_ROWS).split(100):
            loss = nn.functional.cross_entropy(network(x[batch]), labels[batch])
            losses.append(loss.item())
            if trainable.extra is not None:
                loss = loss + trainable.extra(network)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        right = (network.eval()(x[TRAINING_ROWS:]).argmax(1) == labels[TRAINING_ROWS:]).double().mean()

    assert sum(losses[-14:]) < 0.5 * sum(losses[:14])
    assert right > 0.8
