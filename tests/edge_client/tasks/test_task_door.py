"""The task door: what gets in, and the reason given for what does not."""

from __future__ import annotations

import sys
import textwrap

import numpy as np
import pytest
import torch

from edge_client.datasets import Dataset
from edge_client.settings import SplitSettings
from edge_client.tasks import load_task
from fedpruneshare.errors import TaskError

GOOD = """
import numpy as np
import torch
from torch import nn

def build_model():
    return nn.Linear(4, 3)

def load_train(device, devices, rng):
    return rng.standard_normal((6, 4)), np.arange(6) % 3

def load_test():
    return (torch.zeros(3, 4), torch.arange(3))
"""


@pytest.fixture
def write_task(tmp_path):
    def write(text, name="my_task.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def rng():
    return np.random.default_rng(0)


def test_a_file_with_three_functions_is_a_task(write_task):
    task = load_task(write_task(GOOD))
    assert (task.name, task.data_source, task.optimiser) == ("my_task", "full", None)
    assert task.loss is torch.nn.functional.cross_entropy
    train, test = task.load_train(0, 2, rng()), task.load_test()
    assert train.inputs.dtype == np.float32 and train.inputs.shape == (6, 4)
    assert test.targets.dtype == np.int64 and test.targets.tolist() == [0, 1, 2]


def test_a_dotted_module_of_the_current_folder_is_a_task(write_task, tmp_path, monkeypatch):
    (tmp_path / "some_package_of_mine").mkdir()
    write_task(GOOD, "some_package_of_mine/task.py")
    monkeypatch.chdir(tmp_path)
    assert load_task("some_package_of_mine.task").name == "some_package_of_mine.task"


def test_a_task_file_may_import_its_neighbour(write_task):
    write_task("WIDTH = 4", "neighbour_of_the_task.py")
    path = write_task(GOOD.replace("import torch\n", "import torch\nfrom neighbour_of_the_task import WIDTH\n", 1))
    assert load_task(path).load_test().inputs.shape == (3, 4)


def test_two_files_of_one_name_do_not_mix(tmp_path):
    for folder, width in (("a", 4), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.py").write_text(GOOD.replace("nn.Linear(4", f"nn.Linear({width}"))
    first, second = (load_task(tmp_path / folder / "t.py") for folder in "ab")
    assert (first.build_model().in_features, second.build_model().in_features) == (4, 5)


def test_optional_parts_are_taken(write_task):
    task = load_task(
        write_task(
            GOOD
            + """
name = "mine"
def loss(outputs, targets): return (outputs ** 2).mean()
def optimiser(parameters, learning_rate): return torch.optim.Adam(parameters, learning_rate)
def transform(inputs): return inputs + 7
"""
        )
    )
    assert task.name == "mine"
    assert float(task.loss(torch.ones(2, 3), torch.zeros(2))) == 1.0
    assert task.optimiser is task.module.optimiser
    assert task.load_test().inputs.tolist() == [[7.0] * 4] * 3
    assert task.load_train(0, 1, rng()).inputs.mean() > 5


def test_data_dir_reaches_the_loaders_that_ask_for_it(write_task, tmp_path):
    text = GOOD.replace("load_test()", "load_test(data_dir)").replace("zeros(3, 4)", "full((3, 4), len(data_dir.name))")
    assert load_task(write_task(text), tmp_path / "abc").load_test().inputs[0, 0] == 3


def test_seeded_models_are_equal_and_leave_torch_alone(write_task):
    task = load_task(write_task(GOOD))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (task.seeded_model(seed).weight for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("returned", "shape"),
    [
        ("(torch.zeros(3, 4), torch.arange(3))", (3, 4)),
        ("torch.utils.data.TensorDataset(torch.zeros(3, 4), torch.arange(3))", (3, 4)),
        ("Pairs()", (3, 2, 2)),
        ("(np.zeros((3, 4), np.uint8), np.arange(3, dtype=np.uint8))", (3, 4)),
    ],
)
def test_data_in_any_usual_form_is_converted(write_task, returned, shape):
    pairs = """
class Pairs(torch.utils.data.Dataset):
    def __len__(self): return 3
    def __getitem__(self, i): return torch.zeros(2, 2), i
"""
    dataset = load_task(write_task(GOOD.replace("(torch.zeros(3, 4), torch.arange(3))", returned) + pairs)).load_test()
    assert isinstance(dataset, Dataset)
    assert dataset.inputs.shape == shape and dataset.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("None", "returned NoneType, expected a Dataset"),
        ("(1, 2, 3)", "a tuple of 3"),
        ("([[1.0]], [0])", "returned list, expected numpy arrays"),
        ("(torch.zeros(3, 4), torch.zeros(3))", "float32 targets"),
        ("(torch.zeros(3, 4), torch.arange(2))", "3 inputs and 2 targets"),
        ("(torch.zeros(3), torch.arange(3))", r"expected float32\[N"),
        ("(torch.zeros(0, 4), torch.arange(0))", "0 inputs"),
        ("(torch.full((3, 4), float('nan')), torch.arange(3))", "not finite"),
        ("(torch.zeros(3, 4), torch.arange(3) - 1)", "targets hold -1"),
        ("torch.utils.data.ChainDataset([])", "returned"),
        ("open('no such file')", "load_test.* failed: FileNotFoundError"),
    ],
)
def test_data_that_cannot_be_used_get_a_reason(write_task, returned, reason):
    task = load_task(write_task(GOOD.replace("(torch.zeros(3, 4), torch.arange(3))", returned)))
    with pytest.raises(TaskError, match=reason):
        task.load_test()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def load_test", "def load_tset", r"function load_test\(\) is missing"),
        ("def load_train(device, devices, rng)", "def load_train(device)", "does not take"),
        ("def build_model", "build_model = 3\ndef other", "build_model is int, expected a function"),
        ("import torch", "import torsch", "does not import: ModuleNotFoundError"),
        ("def load_test", "def def", "does not import: SyntaxError"),
        ("import torch", "import torch\nloss = 'mse'", "loss is str, expected a function"),
        ("import torch", "import torch\ndef data_source(d): return 'web'", "returned 'web', expected one of"),
    ],
)
def test_modules_that_cannot_be_used_get_a_reason(write_task, old, new, reason):
    with pytest.raises(TaskError, match=reason):
        load_task(write_task(GOOD.replace(old, new, 1)))


def test_all_faults_are_told_at_once(write_task):
    with pytest.raises(TaskError, match=r"build_model\(\) is missing.*load_train.*is missing.*load_test.*is missing"):
        load_task(write_task("x = 1"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hatp", "did you mean 'hapt'"),
        ("nothing", "expected one of"),
        ("no_such.module", "does not import: ModuleNotFoundError"),
        ("none/there.py", "is not there"),
    ],
)
def test_names_that_lead_nowhere(name, reason):
    with pytest.raises(TaskError, match=reason):
        load_task(name)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("'a model'", "returned str, expected torch.nn.Module"),
        ("nn.ReLU()", "no prunable weight"),
        ("nn.GroupNorm(2, 4)", "no prunable weight"),
        ("nn.LazyLinear(3)", "has no shape yet"),
        ("nn.Linear(4, 3).double()", "torch.float64, expected torch.float32"),
        ("nn.Linear(4, 3).half()", "torch.float16"),
        ("tied()", "'0.weight' and '1.weight' share one tensor"),
        ("nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))", "parametrised"),
        ("pruned()", "'weight_orig' is pruned"),
        ("nn.Linear(4, 0 / 0)", "build_model.* failed: ZeroDivisionError"),
    ],
)
def test_models_that_cannot_be_handled_get_a_reason(write_task, model, reason):
    helpers = """
import torch.nn.utils.prune
def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net
def pruned():
    return nn.utils.prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5)
"""
    task = load_task(write_task(GOOD.replace("nn.Linear(4, 3)", model) + helpers))
    with pytest.raises(TaskError, match=reason):
        task.build_model()


@pytest.mark.parametrize(("device", "devices"), [(2, 2), (-1, 2), (0, 0)])
def test_device_numbers_are_checked(write_task, device, devices):
    with pytest.raises(TaskError, match="device is"):
        load_task(write_task(GOOD)).load_train(device, devices, rng())


def test_a_tasks_own_error_keeps_its_text(write_task):
    text = GOOD + "\nfrom fedpruneshare.errors import TaskError\n"
    task = load_task(write_task(text.replace("return rng", "raise TaskError('only 3 machines')\n    return rng")))
    with pytest.raises(TaskError, match=r"^only 3 machines$"):
        task.load_train(0, 2, rng())


def test_nothing_is_left_of_a_module_that_fails(write_task):
    before = set(sys.modules)
    with pytest.raises(TaskError, match="RuntimeError: no"):
        load_task(write_task("raise RuntimeError('no')"))
    assert set(sys.modules) == before


VALUES = """
import numpy as np
import torch
from torch import nn
metric = "mae"
def build_model(): return nn.Linear(4, 1)
def load_train(device, devices, rng): return rng.standard_normal((6, 4)), np.arange(6)
def load_test():
    return torch.utils.data.TensorDataset(torch.zeros(3, 4), torch.rand(3))
"""


def test_a_task_of_values_gets_float_targets_and_a_loss_that_fits(write_task):
    task = load_task(write_task(VALUES))
    assert task.metric == "mae"
    assert task.load_train(0, 1, rng()).targets.dtype == task.load_test().targets.dtype == np.float32
    column, flat = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 2.0])
    assert float(task.loss(column, flat)) == pytest.approx(4 / 3)  # not all against all


def test_a_map_style_set_may_give_several_values(write_task):
    pairs = "Subset([(torch.ones(4), [1.5, 2])] * 3, [0, 1, 2])"
    text = VALUES.replace("TensorDataset(torch.zeros(3, 4), torch.rand(3))", pairs)
    np.testing.assert_array_equal(load_task(write_task(text)).load_test().targets, [[1.5, 2]] * 3)


def test_a_metric_that_does_not_exist_or_fit_is_named(write_task):
    with pytest.raises(TaskError, match=r"metric is 'rsme', expected one of .*did you mean 'rmse'"):
        load_task(write_task(VALUES.replace('"mae"', '"rsme"')))
    with pytest.raises(TaskError, match=r"float32 targets, expected class numbers .*: metric is macro_f1"):
        load_task(write_task(VALUES.replace('"mae"', '"macro_f1"'))).load_test()


def test_a_transform_may_not_lose_examples(write_task):
    task = load_task(write_task(VALUES + "\ndef transform(inputs): return inputs[1:]\n"))
    with pytest.raises(TaskError, match=r"transform\(\) returned float32\[2, 4\] for 3 examples"):
        task.load_test()


SPLITTING = GOOD.replace("def load_train(device, devices, rng):", "def load_train(device, devices, rng, split=None):")


def test_a_split_goes_to_a_task_that_takes_one(write_task):
    text = SPLITTING + "\nOWN = load_train\ndef load_train(device, devices, rng, split=None):\n"
    text += "    inputs, targets = OWN(device, devices, rng)\n"
    text += "    return inputs * 0 + (split.alpha if split else -1), targets\n"
    task = load_task(write_task(text))
    assert task.load_train(0, 2, rng()).inputs.max() == -1
    assert task.load_train(0, 2, rng(), SplitSettings("dirichlet", alpha=4.0)).inputs.min() == 4


def test_a_split_is_refused_by_a_task_that_takes_none(write_task):
    task = load_task(write_task(GOOD))
    task.check_split(SplitSettings())
    for refused in (task.check_split, lambda split: task.load_train(0, 2, rng(), split)):
        with pytest.raises(
            TaskError, match=r"task.split is 'iid', but load_train\(\) of task '.*' has no parameter `split`"
        ):
            refused(SplitSettings("iid"))


def test_the_form_of_the_data_is_part_of_the_label(write_task):
    task = load_task(write_task(GOOD + "\ndef data_form(data_dir): return 'JPEG'\n"))
    assert task.label == f"{task.name} (JPEG)"
    assert load_task(write_task(GOOD)).label == load_task(write_task(GOOD)).name
