import numpy as np
import pytest
import torch

from tiramisu.models import FCDenseNet
from tiramisu.training.optim import LasagneRMSprop, build_optimizer, build_schedule


def test_rmsprop_follows_lasagnes_formula() -> None:
    rng = np.random.default_rng(0)
    value, average = rng.normal(size=5), np.zeros(5)
    parameter = torch.nn.Parameter(torch.from_numpy(value.copy()))
    optimizer = LasagneRMSprop([parameter], lr=1e-2, weight_decay=2e-4)
    for _ in range(20):
        grad = rng.normal(size=5) * 1e-4  # small enough that the place of epsilon matters
        parameter.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        grad = grad + 2 * 1e-4 * value  # the derivative of 1e-4 * value**2, Lasagne's l2
        average = 0.9 * average + 0.1 * grad**2
        value = value - 1e-2 * grad / np.sqrt(average + 1e-6)
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop"])
def test_only_convolution_weights_decay(name: str) -> None:
    network = FCDenseNet(layers_per_block=1, growth_rate=4, num_poolings=1, stem_channels=4)
    optimizer = build_optimizer(name, network, 1e-3, 0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for path, parameter in network.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim == 4), path


def _rates(name: str, steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(name, optimizer, steps, 10, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_exponential_drops_once_per_epoch() -> None:
    rates = _rates("exponential", 30, gamma=0.5)
    assert rates == [1.0] * 10 + [0.5] * 10 + [0.25] * 10


def test_cosine_warms_up_and_ends_at_zero() -> None:
    rates = _rates("cosine", 100, warmup_epochs=2)
    assert rates[:20] == sorted(rates[:20]) and rates[0] > 0 and max(rates) == rates[20] == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[-1] < 1e-3


def test_onecycle_rises_and_falls_to_nearly_nothing() -> None:
    rates = _rates("onecycle", 100)
    peak = int(np.argmax(rates))
    assert 20 < peak < 40 and max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 1e-2 and rates[0] < 0.1


def test_constant_stays() -> None:
    assert set(_rates("constant", 20)) == {1.0}


def test_trapezoid_is_flat_until_its_last_quarter() -> None:
    rates = _rates("trapezoid", 100)
    assert set(rates[:76]) == {1.0}
    assert rates[75:] == sorted(rates[75:], reverse=True) and 0 < rates[-1] < 0.05
    assert _rates("trapezoid", 200)[:150] == [1.0] * 150  # what comes before the fall serves a longer training as well
