from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch_models
from torch import nn

import edge_client.width.groups
from edge_client.tasks.model import parameter_table
from edge_client.width.groups import examine, find_groups
from edge_client.width.narrowing import narrow
from edge_client.width.tracing import trace_ties
from fedpruneshare.errors import TaskError
from fedpruneshare.sparse.channels import ChannelGroup, Cut, check_groups, kept_indices


def found(name):
    model = torch_models.build(name)
    table = parameter_table(model)
    return model, table, find_groups(model, table, torch_models.example_inputs(name))


def cuts_of(table, group):
    return {(table.parameters[cut.parameter].name, cut.axis, cut.offset, cut.block) for cut in group.cuts}


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", torch_models.CUTTABLE)
def test_width_one_half_leaves_a_much_smaller_model_that_runs(name):
    model, table, groups = found(name)
    check_groups(groups, table)
    (kept,) = torch_models.ranked_kept(groups, [0.5])
    small = narrow(model, table, groups, kept).eval()
    assert size(small) <= torch_models.CUTTABLE[name][2] * size(model)
    inputs = torch_models.example_inputs(name)
    assert small(inputs).shape == model.eval()(inputs).shape


@pytest.mark.parametrize("name", torch_models.CUTTABLE)
def test_the_model_itself_and_torchs_generator_stay_as_they_are(name):
    model = torch_models.build(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    examine(model, parameter_table(model), torch_models.example_inputs(name))
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_groups_follow_from_the_model_alone():
    assert found("resnet_group_norm")[2] == found("resnet_group_norm")[2]


def test_the_groups_of_lenet_are_these():
    """Behind the flattening, each of 16 channels is a block of 4 x 4 features. Inputs and scores are never cut."""
    _, table, groups = found("lenet")
    assert [parameter.name for parameter in table.parameters][4:6] == ["7.weight", "7.bias"]
    assert groups == (
        ChannelGroup(6, 1, (Cut(0, 0), Cut(1, 0), Cut(2, 1))),
        ChannelGroup(16, 1, (Cut(2, 0), Cut(3, 0), Cut(4, 1, 0, 16))),
        ChannelGroup(120, 1, (Cut(4, 0), Cut(5, 0), Cut(6, 1))),
        ChannelGroup(84, 1, (Cut(6, 0), Cut(7, 0), Cut(8, 1))),
    )


def test_norm_groups_become_parts():
    _, _, groups = found("hapt")
    assert [(group.channels, group.parts) for group in groups] == [(32, 8), (64, 8), (64, 8)]


def test_what_a_shortcut_joins_is_one_group():
    _, table, groups = found("resnet_batch_norm")
    (stream,) = (group for group in groups if ("stem.weight", 0, 0, 1) in cuts_of(table, group))
    assert cuts_of(table, stream) == {
        (name, axis, 0, 1)
        for name, axis in [
            ("stem.weight", 0),
            *((f"norm.{array}", 0) for array in ("weight", "bias", "running_mean", "running_var")),
            ("blocks.0.conv1.weight", 1),
            ("blocks.0.conv2.weight", 0),
            *((f"blocks.0.norm2.{array}", 0) for array in ("weight", "bias", "running_mean", "running_var")),
            ("blocks.1.conv1.weight", 1),
            ("blocks.1.short.0.weight", 1),
        ]
    }


def test_branches_that_share_a_norm_are_divided_along_its_groups():
    """12 + 20 channels in norm groups of 8: parts of 4, so that each norm group keeps twice as many as a part."""
    _, table, groups = found("concat")
    assert [(group.channels, group.parts) for group in groups[:2]] == [(12, 3), (20, 5)]
    assert ("norm.weight", 0, 12, 1) in cuts_of(table, groups[1])
    assert ("conv.weight", 1, 12, 1) in cuts_of(table, groups[1])


def test_depthwise_convolutions_go_with_their_inputs_and_grouped_ones_keep_their_groups():
    _, table, groups = found("mobile_multiplied")
    assert ("3.weight", 0, 0, 2) in cuts_of(table, groups[0])  # two filters an input channel
    assert [(group.channels, group.parts) for group in groups] == [(16, 1), (6, 1), (32, 4)]
    assert ("6.weight", 0, 18, 1) in cuts_of(table, groups[1])  # equal channels of all four groups go together
    assert ("8.weight", 1, 0, 1) in cuts_of(table, groups[1])


def test_both_halves_of_a_gate_go_together():
    _, table, groups = found("gated")
    assert {("both.weight", 0, 0, 1), ("both.weight", 0, 16, 1)} <= cuts_of(table, groups[0])
    assert groups[0].channels == 16


def test_features_that_become_a_channel_of_a_map_go_together():
    _, table, groups = found("unfolded")
    assert cuts_of(table, groups[0]) == {("first.weight", 0, 0, 16), ("first.bias", 0, 0, 16), ("conv.weight", 1, 0, 1)}


def test_inputs_beside_hidden_channels_stay():
    _, table, groups = found("beside")
    assert cuts_of(table, groups[0]) == {("conv.weight", 0, 0, 1), ("conv.bias", 0, 0, 1), ("fc.weight", 1, 4, 1)}


@pytest.mark.parametrize("name", torch_models.CUTTABLE)
def test_inputs_and_scores_are_never_cut(name):
    model, table, groups = found(name)
    (kept,) = torch_models.ranked_kept(groups, [0.25])
    last = [index for index, parameter in enumerate(table.parameters) if len(parameter.shape) == 2][-1]
    shape = table.parameters[last].shape
    assert len(kept_indices(last, table, groups, kept)[0]) == shape[0]
    if isinstance(next(layer for layer in model.modules() if not list(layer.children())), nn.Conv1d | nn.Conv2d):
        first = next(index for index, parameter in enumerate(table.parameters) if len(parameter.shape) > 2)
        assert len(kept_indices(first, table, groups, kept)[1]) == table.parameters[first].shape[1]


# --------------------------------------------------------------------------- what stays whole, and why


def reasons(model, inputs):
    return " | ".join(examine(model, parameter_table(model), inputs).reasons)


def test_a_size_written_into_forward_leaves_those_channels_whole():
    model, inputs = torch_models.build("hard_coded"), torch_models.example_inputs("hard_coded")
    assert "the 16 channels of 'conv2' stay whole: the narrowed model fails: RuntimeError: shape '[-1, 400]'" in (
        reasons(model, inputs)
    )


def test_a_model_that_cannot_be_cut_is_refused_with_the_layer_and_the_error():
    model = torch_models.OneHidden("reshape")
    with pytest.raises(TaskError, match=r"OneHidden cannot be cut: the 3 channels of 'conv' stay whole: .*\[2, 48\]"):
        find_groups(model, parameter_table(model), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("model", [torch_models.OneHidden("sum"), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))])
def test_channels_that_are_inputs_or_scores_are_not_hidden(model):
    with pytest.raises(TaskError, match="none of its channels lie between its inputs and its scores"):
        find_groups(model, parameter_table(model), torch.randn(2, 3, 8, 8))


def test_a_layer_of_unknown_make_is_named():
    assert reasons(torch_models.build("recurrent"), torch_models.example_inputs("recurrent")) == (
        "layer 'lstm' stays whole: the make of LSTM is not known"
    )


def test_flattened_branches_that_are_joined_stay_whole():
    """A limit of the library: it takes the 18 places of a channel for a part of the next branch."""
    assert "stays whole: the library takes its channels for others" in (
        reasons(torch_models.Branches(), torch.randn(2, 4, 20))
    )


def test_norm_groups_of_one_channel_leave_nothing_to_cut():
    model = nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.GroupNorm(8, 8), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    assert "the 8 channels of '0' stay whole: its groups have one channel each" in reasons(model, torch.randn(2, 2, 9))


def test_norm_groups_that_are_only_partly_cut_would_keep_different_numbers():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 2)
            self.twin = nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.fc(self.norm(torch.cat([self.conv(x), x + self.twin(x)], 1)).mean(2))

    assert "would keep different numbers" in reasons(Partly(), torch.randn(2, 4, 9))


def test_a_model_that_fails_is_refused_with_its_error():
    with pytest.raises(TaskError, match="model fails on the example inputs: RuntimeError"):
        model = nn.Linear(3, 2)
        find_groups(model, parameter_table(model), torch.randn(2, 4))


def test_a_model_that_only_runs_in_single_precision_is_proven_in_it():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.first(x.float()) + torch.ones(1, dtype=torch.float32))

    model = Single()
    groups = find_groups(model, parameter_table(model), torch.randn(2, 6))
    assert [group.channels for group in groups] == [8]


@pytest.mark.parametrize("mistake", ["a bias one place off", "a reader forgotten"])
def test_a_tie_that_is_wrong_does_not_stand_the_proof(monkeypatch, mistake):
    def wrong(model, inputs):
        ties = trace_ties(model, inputs)
        for elements in ties.classes:
            if mistake == "a reader forgotten":
                elements[:] = [element for element in elements if element[0] != ("3.weight", 1)]
            else:
                elements[:] = [((n, a), (i + 1) % 8 if n == "0.bias" else i) for (n, a), i in elements]
        return ties

    monkeypatch.setattr(edge_client.width.groups, "trace_ties", wrong)
    model, inputs = torch_models.build("plain"), torch_models.example_inputs("plain")
    examined = examine(model, parameter_table(model), inputs)
    assert [group.channels for group in examined.groups] == [12, 20]
    assert "channels of '0' stay whole" in examined.reasons[0]


def test_without_the_library_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    model = torch_models.build("plain")
    with pytest.raises(TaskError, match=r"pip install 'fedpruneshare\[export\]'"):
        find_groups(model, parameter_table(model), torch_models.example_inputs("plain"))


def test_a_training_device_does_not_import_the_library():
    program = "import sys, edge_client.width.narrowing, edge_client.service; sys.exit('torch_pruning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=250, check=False).returncode == 0
