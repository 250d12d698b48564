from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.datasets import Dataset
from edge_client.tasks.model import parameter_table
from edge_client.training import Pace, TrainingSettings, accuracy, fit
from fedpruneshare.errors import TaskError

SETTINGS = TrainingSettings(local_epochs=2, batch_size=8, learning_rate=0.1)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def data(count=40):
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((count, 4)).astype(np.float32)
    return Dataset(inputs, inputs[:, :3].argmax(1).astype(np.int64))


def rng():
    return np.random.default_rng(2)


def random_mask(model, density=0.5):
    draw = np.random.default_rng(3)
    weights = parameter_table(model).weights()
    return [torch.from_numpy((draw.random(w.shape) < density).astype(np.float32)) for w in weights]


def test_training_learns_and_counts():
    model, dataset = net(), data(200)
    before = accuracy(model, dataset)
    first = fit(model, dataset, None, SETTINGS, rng())
    second = fit(model, dataset, None, SETTINGS, rng())
    assert accuracy(model, dataset) > max(before, 0.85)
    assert (first.steps, first.examples) == (50, 200)
    assert second.mean_loss < first.mean_loss
    assert first.seconds > 0


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_the_sgd_of_torch(momentum, weight_decay):
    ours, theirs = net(), net()
    dataset = data()
    settings = TrainingSettings(3, 8, 0.05, momentum, weight_decay)
    fit(ours, dataset, None, settings, rng())
    own = TrainingSettings(
        3,
        8,
        0.05,
        optimiser=lambda p, lr: torch.optim.SGD(p, lr, momentum=momentum, weight_decay=weight_decay),
    )
    fit(theirs, dataset, None, own, rng())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("own", [False, True], ids=["ours", "a task's own optimiser"])
def test_the_proximal_term_is_that_of_fedprox(own):
    """As if mu/2·||w − w0||² stood in the loss; and the larger mu, the closer the model stays."""
    dataset, start, mu = data(), [p.detach().clone() for p in net().parameters()], 0.3
    optimiser = torch.optim.SGD if own else None
    ours, theirs = net(), net()
    fit(ours, dataset, None, TrainingSettings(3, 8, 0.05, 0.0, 0.0, optimiser, mu), rng())

    def loss(outputs, targets):
        far = sum(((p - p0) ** 2).sum() for p, p0 in zip(theirs.parameters(), start, strict=True))
        return nn.functional.cross_entropy(outputs, targets) + mu / 2 * far

    fit(theirs, dataset, None, TrainingSettings(3, 8, 0.05, 0.0), rng(), loss)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    distances = []
    for weight in (0.0, 1.0, 10.0):
        model = net()
        fit(model, dataset, None, TrainingSettings(3, 8, 0.05, proximal_mu=weight), rng())
        distances.append(
            sum(float(((p.detach() - p0) ** 2).sum()) for p, p0 in zip(model.parameters(), start, strict=True))
        )
    assert distances[0] > distances[1] > distances[2]


OWN = {
    "ours": None,
    "Adam": torch.optim.Adam,
    "decay": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OWN)
def test_pruned_weights_stay_exactly_zero_and_the_others_move(optimiser):
    model = net()
    masks = random_mask(model)
    start = [model[0].weight.detach().clone(), model[3].weight.detach().clone()]
    fit(model, data(), masks, TrainingSettings(2, 8, 0.01, 0.9, 0.1, OWN[optimiser]), rng())
    for weight, mask, before in zip((model[0].weight, model[3].weight), masks, start, strict=True):
        assert (weight[mask == 0] == 0).all()
        assert (weight[mask == 1] != before[mask == 1]).float().mean() > 0.9
    assert list(model.state_dict()) == list(net().state_dict())  # no mask leaks into what is exported


def test_the_mask_holds_from_the_first_forward_pass():
    model, seen = net(), []

    def watch(outputs, targets):
        seen.append(model[0].weight.detach().abs().sum().item())
        return nn.functional.cross_entropy(outputs, targets)

    fit(model, data(), [torch.zeros(8, 4), torch.ones(3, 8)], SETTINGS, rng(), watch)
    assert seen == [0.0] * len(seen)


def test_equal_generators_give_equal_models_also_with_dropout():
    def trained(seed):
        torch.manual_seed(seed)  # torch's own state must not matter
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.uniform_(p, -1, 1)
        torch.manual_seed(seed + 100)
        state = torch.random.get_rng_state()
        fit(model, data(), None, SETTINGS, rng())
        assert torch.equal(state, torch.random.get_rng_state())
        return model[0].weight

    assert torch.equal(trained(1), trained(2))


def test_every_example_is_seen_once_an_epoch_and_no_batch_is_single():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 3)

        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return self.layer(x)

    dataset = Dataset(np.arange(17, dtype=np.float32)[:, None], np.zeros(17, np.int64))
    result = fit(Spy(), dataset, None, TrainingSettings(2, 8, 1e-4), rng())
    assert [len(batch) for batch in seen] == [8, 9, 8, 9]
    assert result.steps == 4
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(17))
    assert seen[0] != seen[2]


def test_one_example_is_enough():
    assert fit(net(), data(1), None, SETTINGS, rng()).steps == 2


def test_divergence_is_an_error_with_advice():
    with pytest.raises(TaskError, match=r"loss is (nan|inf) at step \d+.*learning_rate is 1e\+38"):
        fit(nn.Linear(4, 3), data(), None, TrainingSettings(9, 8, 1e38), rng())
    with pytest.raises(TaskError, match="'weight' holds a value that is not finite"):
        fit(nn.Linear(4, 3), data(8), None, TrainingSettings(1, 8, float("inf")), rng())


def test_a_mask_of_other_shape_is_refused():
    with pytest.raises(TaskError, match="expected those of the prunable weights"):
        fit(net(), data(), [torch.ones(8, 4)], SETTINGS, rng())


def test_frozen_and_unused_parameters_are_left_alone():
    model = net()
    model[0].weight.requires_grad_(False)
    model.spare = nn.Parameter(torch.ones(2, 2))
    model.forward = lambda x: nn.Sequential.forward(nn.Sequential(*list(model)[:4]), x)
    before = model[0].weight.clone()
    fit(model, data(), None, TrainingSettings(1, 8, 0.1, 0.9, 0.1), rng())
    assert torch.equal(before, model[0].weight)
    assert torch.equal(model.spare, torch.ones(2, 2))


def test_training_does_not_import_torchs_compiler():
    program = (
        "import sys, numpy as np; from torch import nn; from edge_client.datasets import Dataset;"
        "from edge_client.training import *;"
        "fit(nn.Linear(2, 2), Dataset(np.zeros((4, 2), np.float32), np.zeros(4, np.int64)), None,"
        " TrainingSettings(1, 2, 0.1), np.random.default_rng(0));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=250, check=False).returncode == 0


def test_a_training_that_is_over_stops_at_its_next_step_and_has_told_its_pace():
    pace = Pace()

    def loss(outputs, targets):
        pace.is_over = pace.steps == 3
        return nn.functional.cross_entropy(outputs, targets)

    assert pace.step_s() is None
    settings = TrainingSettings(local_epochs=100, batch_size=8, learning_rate=0.1, pace=pace)
    with pytest.raises(TaskError, match="ended after 4 steps"):
        fit(net(), data(), None, settings, rng(), loss)
    assert pace.steps == 4
    assert 0 < pace.step_s() < 10
