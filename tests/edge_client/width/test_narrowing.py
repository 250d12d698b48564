from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch_models
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_client.datasets import Dataset
from edge_client.exporting import export_template
from edge_client.tasks.model import parameter_table, read_state, write_state
from edge_client.training import TrainingSettings, fit
from edge_client.width.groups import find_groups
from edge_client.width.narrowing import narrow, narrow_masks, read_narrow, write_narrow
from fedpruneshare.errors import SupportMismatchError, TaskError
from fedpruneshare.sparse.channels import ChannelGroup, Cut, all_kept, coordinates
from fedpruneshare.sparse.onnx_codec import build_model

WIDTHS = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def groups_of():
    """Groups by name of the model, found once."""
    known = {}

    def find(name):
        if name not in known:
            model = torch_models.build(name)
            known[name] = find_groups(model, parameter_table(model), torch_models.example_inputs(name))
        return known[name]

    return find


def cut(name, groups, width, seed=0):
    """Model with distinct channels, its table, what is kept, and the narrowed model."""
    model = torch_models.distinct(torch_models.build(name))
    table = parameter_table(model)
    (kept,) = torch_models.ranked_kept(groups, [width], seed)
    return model, table, kept, narrow(model, table, groups, kept)


def outputs(model, name):
    with torch.no_grad():
        return model.eval()(torch_models.example_inputs(name))


# --------------------------------------------------------------------------- the model


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "lenet", "hard_coded"])
def test_without_norms_it_is_the_full_model_with_the_other_channels_silenced(name, width, groups_of):
    groups = groups_of(name)
    model, table, kept, small = cut(name, groups, width)
    weights, vectors = read_state(model, table)
    has_weight, has_vector = coordinates(table, groups, kept)
    write_state(model, table, weights * has_weight, vectors * has_vector)
    torch.testing.assert_close(outputs(small, name), outputs(model, name), rtol=1e-4, atol=1e-5)


def test_it_is_the_model_that_would_have_been_built_so(groups_of):
    """The same sizes everywhere, by their `repr` and their state dict, and the same outputs."""
    name = "resnet_group_norm"
    _, _, _, small = cut(name, groups_of(name), 0.5)
    built = torch_models.ResNet(torch_models.group_norm, widths=(4, 8, 16))
    assert repr(small) == repr(built)
    built.load_state_dict(small.state_dict(), strict=True)
    torch.testing.assert_close(outputs(small, name), outputs(built, name))


def test_depthwise_grouped_and_transposed_layers_have_the_sizes_of_built_ones(groups_of):
    _, _, _, small = cut("mobile_multiplied", groups_of("mobile_multiplied"), 0.5)
    layers = [layer for layer in small if list(layer.parameters())]
    assert repr(layers) == repr(
        [
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16)),
            *(nn.Conv2d(16, 12, 1), nn.PReLU(12), nn.Conv2d(12, 16, 3, groups=4), nn.Linear(16, 7)),
        ]
    )
    _, _, _, small = cut("upwards", groups_of("upwards"), 0.5)
    layers = [layer for layer in small if list(layer.parameters())]
    up = nn.ConvTranspose2d
    assert repr(layers) == repr(
        [
            *(nn.Conv2d(3, 4, 3, stride=4), nn.InstanceNorm2d(4, affine=True), up(4, 6, 2, stride=2)),
            *(up(6, 12, 2, stride=2, groups=3), up(12, 12, 2, groups=12), nn.Linear(48, 4)),
        ]
    )


@pytest.mark.parametrize("name", ["lenet", "hapt", "resnet_batch_norm", "mobile_multiplied", "mixer"])
def test_it_exports_like_any_other_model(name, groups_of):
    """`export_template` compares the graph's outputs with the model's, on another batch size."""
    _, _, _, small = cut(name, groups_of(name), 0.5)
    table = parameter_table(small)
    template = export_template(small, table, torch_models.CUTTABLE[name][1])
    assert len(build_model(template, table.unflatten(*read_state(small, table)))) > 4 * table.weight_count


@pytest.mark.parametrize("name", torch_models.CUTTABLE)
def test_at_full_width_nothing_changes_and_nothing_is_shared(name, groups_of):
    model = torch_models.distinct(torch_models.build(name))
    table, groups = parameter_table(model), groups_of(name)
    small = narrow(model, table, groups, all_kept(groups))
    assert torch.equal(outputs(small, name), outputs(model, name))
    taken = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not taken & {tensor.data_ptr() for tensor in small.state_dict().values() if tensor.numel()}


def test_only_small_arrays_are_copied(groups_of, monkeypatch):
    model, groups = torch_models.build("lenet"), groups_of("lenet")
    copied = []
    usual = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self.shape) or usual(self, memo))
    (kept,) = torch_models.ranked_kept(groups, [0.25])
    narrow(model, parameter_table(model), groups, kept)
    assert copied == [(10,)]  # the bias of the scores, the one array no channel is cut from


def test_modes_and_frozen_parameters_stay(groups_of):
    model = torch_models.build("resnet_batch_norm").eval()
    model.stem.weight.requires_grad_(False)
    groups = groups_of("resnet_batch_norm")
    (kept,) = torch_models.ranked_kept(groups, [0.5])
    small = narrow(model, parameter_table(model), groups, kept)
    assert not small.training
    assert not small.stem.weight.requires_grad
    assert small.fc.weight.requires_grad
    assert int(small.norm.num_batches_tracked) == int(model.norm.num_batches_tracked)


# --------------------------------------------------------------------------- its arrays


@pytest.mark.parametrize("name", torch_models.CUTTABLE)
@settings(max_examples=5, deadline=None)
@given(width=st.sampled_from(WIDTHS), seed=st.integers(0, 2**32 - 1))
def test_arrays_go_to_their_places_in_the_full_model_and_back(name, groups_of, width, seed):
    groups = groups_of(name)
    model, table, kept, small = cut(name, groups, width, seed)
    weights, vectors = read_state(model, table)
    has_weight, has_vector = coordinates(table, groups, kept)
    found_weights, found_vectors = read_narrow(small, table, groups, kept)
    assert np.array_equal(found_weights, weights * has_weight)
    assert np.array_equal(found_vectors, vectors * has_vector)
    assert has_weight.sum() == parameter_table(small).weight_count
    assert has_vector.sum() == parameter_table(small).vector_count

    other = narrow(torch_models.build(name, seed=1), table, groups, kept)
    weights.flags.writeable = vectors.flags.writeable = False  # as what is read from a message
    write_narrow(other, table, groups, kept, weights, vectors)
    again = read_narrow(other, table, groups, kept)
    assert np.array_equal(again[0], found_weights)
    assert np.array_equal(again[1], found_vectors)


def test_a_scalar_parameter_travels_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(2.0))
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.temperature * self.last(self.first(x))

    model = Scaled()
    table = parameter_table(model)
    groups = find_groups(model, table, torch.randn(2, 3))
    (kept,) = torch_models.ranked_kept(groups, [0.5])
    small = narrow(model, table, groups, kept)
    weights, vectors = read_narrow(small, table, groups, kept)
    assert vectors[0] == 2.0
    write_narrow(small, table, groups, kept, weights, vectors * 3)
    assert small.temperature.item() == 6.0


# --------------------------------------------------------------------------- training


def test_masks_are_those_of_the_full_model_cut_likewise(groups_of):
    groups = groups_of("lenet")
    _, table, kept, small = cut("lenet", groups, 0.5)
    positions = np.flatnonzero(np.random.default_rng(0).random(table.weight_count) < 0.3)
    masks = narrow_masks(table, groups, kept, np.random.default_rng(1).permutation(positions))
    assert [mask.shape for mask in masks] == [tuple(weight.shape) for weight in parameter_table(small).weights()]
    ones = np.zeros(table.weight_count, np.float32)
    ones[positions] = 1
    write_narrow(small, table, groups, kept, ones, np.zeros(table.vector_count, np.float32))
    weights = [parameter for parameter in small.parameters() if parameter.ndim > 1]
    assert all(torch.equal(mask, weight) for mask, weight in zip(masks, weights, strict=True))


@pytest.mark.parametrize("positions", [[-1], [10**6], [0, 10**6]])
def test_positions_outside_the_model_are_refused(positions, groups_of):
    groups = groups_of("lenet")
    model = torch_models.build("lenet")
    with pytest.raises(SupportMismatchError, match="expected 0 to 44189"):
        narrow_masks(parameter_table(model), groups, all_kept(groups), np.array(positions))


@pytest.mark.parametrize(
    "training",
    [
        TrainingSettings(2, 8, 0.05),
        TrainingSettings(2, 8, 0.05, 0.0, 0.01, None, 0.5),
        TrainingSettings(2, 8, 0.01, optimiser=torch.optim.Adam),
    ],
    ids=["momentum", "proximal", "Adam"],
)
@pytest.mark.parametrize("name", ["hapt", "resnet_batch_norm"])
def test_a_narrow_model_trains_under_its_mask(name, training, groups_of):
    groups = groups_of(name)
    _, table, kept, _ = cut(name, groups, 0.5)
    small = narrow(torch_models.build(name), table, groups, kept)
    positions = np.flatnonzero(np.random.default_rng(0).random(table.weight_count) < 0.5)
    masks = narrow_masks(table, groups, kept, positions)
    before = copy.deepcopy(small)
    rng = np.random.default_rng(0)
    shape = torch_models.CUTTABLE[name][1]
    dataset = Dataset(rng.standard_normal((24, *shape)).astype(np.float32), rng.integers(0, 4, 24))
    first = fit(small, dataset, masks, training, np.random.default_rng(1))
    second = fit(small, dataset, masks, training, np.random.default_rng(2))
    assert second.mean_loss < first.mean_loss
    weights, _ = read_narrow(small, table, groups, kept)
    outside = np.ones(table.weight_count, np.bool_)
    outside[positions] = False
    assert not weights[outside | ~coordinates(table, groups, kept)[0]].any()
    moved = [not torch.equal(a, b) for a, b in zip(small.parameters(), before.parameters(), strict=True)]
    assert all(moved)


# --------------------------------------------------------------------------- what is refused


def uneven(model, cuts, channels, kept):
    table = parameter_table(model)
    groups = (ChannelGroup(channels, 1, tuple(cuts)),)
    return lambda: narrow(model, table, groups, (np.array(kept, np.bool_),))


class OwnSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))
        self.sizes = (3, 4)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))
        self.power = 2


def test_a_module_with_a_number_that_may_be_a_size_is_refused_by_name():
    model = nn.Sequential(OwnSizes())
    with pytest.raises(TaskError, match=r"layer '0' \(OwnSizes\) cannot be narrowed: its attribute 'sizes'"):
        uneven(model, [Cut(0, 0)], 4, [1, 0, 1, 0])()


def test_a_module_with_plain_arrays_is_taken_as_it_is():
    small = uneven(nn.Sequential(Plain()), [Cut(0, 0)], 4, [1, 0, 1, 0])()
    assert small[0].weight.shape == (2, 3)
    assert small[0].power == 2


@pytest.mark.parametrize(
    ("model", "cuts", "channels", "kept", "text"),
    [
        (nn.LSTM(4, 3), [Cut(0, 1)], 4, [1, 1, 0, 1], r"\(LSTM\) cannot be narrowed"),
        (
            nn.Sequential(nn.Conv1d(1, 4, 1), nn.GroupNorm(2, 4)),
            [Cut(2, 0), Cut(3, 0)],
            4,
            [1, 1, 1, 0],
            "3 channels in 2",
        ),
        (nn.Conv1d(4, 6, 1, groups=2), [Cut(0, 0), Cut(1, 0)], 6, [1, 1, 1, 0, 1, 1], "fits no 2 groups"),
        (nn.Conv1d(4, 6, 1), [Cut(0, 0)], 6, [1, 1, 1, 0, 1, 1], "6 biases, expected 5"),
        (nn.Conv1d(3, 6, 1, groups=3), [Cut(0, 0), Cut(1, 0)], 6, [1, 1, 1, 0, 1, 1], "fits no 2 groups"),
    ],
    ids=["LSTM", "GroupNorm", "grouped", "bias", "depthwise"],
)
def test_cuts_that_a_layer_cannot_have_are_refused(model, cuts, channels, kept, text):
    with pytest.raises(TaskError, match=text):
        uneven(model, cuts, channels, kept)()
