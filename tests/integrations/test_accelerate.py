"""`accelerate` and its registry, on layers of our own: what is swapped, what is left alone, and the way back."""

import copy
import pickle

import pytest
import torch
from torch import nn

from flowkernels.integrations import Given, accelerate, coverage, register, takes
from flowkernels.integrations.core import LIBRARIES


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.broken = False

    def forward(self, x):
        return 2 * self.net(x)


@register(Doubling, runs="one addition", note="for the tests")
class FastDoubling(Doubling):
    @staticmethod
    def refuse(module):
        return "it is broken" if module.broken else None

    def forward(self, x):
        if not takes(x):
            return super().forward(x)
        y = self.net(x)
        return y + y


class Derived(Doubling):
    pass


def model():
    return nn.Sequential(Doubling(), nn.Linear(2, 2), nn.Sequential(Doubling()))


def kinds(module):
    return [type(m) for m in module.modules() if isinstance(m, Doubling)]


def test_replaces_nested_modules_and_undoes_it():
    net = model()
    report = accelerate(net)
    assert kinds(net) == [FastDoubling, FastDoubling]
    assert [(r.name, r.was, r.runs) for r in report.replaced] == [
        ("0", "Doubling", "one addition"),
        ("2.0", "Doubling", "one addition"),
    ]
    assert not report.left_alone
    report.undo()
    report.undo()
    assert kinds(net) == [Doubling, Doubling]


def test_a_second_call_finds_nothing_to_do():
    net = model()
    accelerate(net)
    report = accelerate(net, strict=True)
    assert not report.replaced
    assert not report.left_alone
    report.undo()
    assert kinds(net) == [FastDoubling, FastDoubling]


def test_a_shared_module_is_replaced_once():
    shared = Doubling()
    net = nn.Sequential(shared, shared)
    report = accelerate(net)
    assert [r.name for r in report.replaced] == ["0"]
    x = torch.randn(3, 2)
    torch.testing.assert_close(net(x), 2 * shared.net(2 * shared.net(x)))
    report.undo()
    assert type(shared) is Doubling


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_stay_fast_and_leave_the_original(how):
    net = model()
    report = accelerate(net)
    other = how(net)
    report.undo()
    x = torch.randn(3, 2)
    assert kinds(other) == [FastDoubling, FastDoubling]
    torch.testing.assert_close(other(x), net(x))
    assert not accelerate(other).replaced


def test_hooks_are_called():
    net, seen = model(), []
    net[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    accelerate(net)
    net(torch.randn(3, 2))
    assert seen == [FastDoubling]


def test_train_and_eval_pass_through():
    net = model().eval()
    accelerate(net)
    assert not net[0].training
    assert net.train()[0].net.training


@pytest.mark.parametrize("exclude", ["2", ["2.0"], lambda net: net[2], lambda net: [net[2][0]], nn.Sequential])
def test_exclude_by_name_module_and_class(exclude):
    net = nn.ModuleList([Doubling(), nn.Linear(2, 2), nn.Sequential(Doubling())])
    report = accelerate(net, exclude=exclude(net) if callable(exclude) and exclude is not nn.Sequential else exclude)
    assert kinds(net) == [FastDoubling, Doubling]
    assert [(left.name, left.why) for left in report.left_alone] == [("2.0", "excluded")]
    accelerate(net, exclude="2", strict=True)


def test_exclude_refuses_what_is_no_module():
    with pytest.raises(ValueError, match="'nothing'"):
        accelerate(model(), exclude="nothing")
    with pytest.raises(TypeError, match="3"):
        accelerate(model(), exclude=[3])
    with pytest.raises(TypeError, match="int"):
        accelerate(3)


def shadowed(net):
    net[0].forward = lambda x: x


def derived(net):
    net[0] = Derived()


def refused(net):
    net[0].broken = True


@pytest.mark.parametrize(
    "change, why", [(shadowed, "attribute of the instance"), (derived, "a subclass of"), (refused, "it is broken")]
)
def test_what_cannot_be_taken_is_left_alone(change, why):
    net = model()
    change(net)
    before = kinds(net)
    with pytest.raises(ValueError, match=why):
        accelerate(net, strict=True)
    assert kinds(net) == before
    report = accelerate(net)
    assert kinds(net) == [before[0], FastDoubling]
    assert [left.name for left in report.left_alone] == ["0"]
    assert why in report.left_alone[0].why
    assert why in str(report)


def test_a_changed_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(Doubling, "forward", lambda self, x: x)
    assert "not the library's own" in accelerate(model()).left_alone[0].why


def test_other_modules_are_not_mentioned():
    report = accelerate(nn.Linear(2, 2))
    assert (report.replaced, report.left_alone) == ([], [])
    assert str(report) == "module  class  now runs\n0 replaced, 0 left alone"


def test_register_refuses_what_could_not_be_swapped():
    with pytest.raises(TypeError, match="subclass of Doubling"):
        register(Doubling, runs="")(nn.Linear)

    class Constructed(Doubling):
        def __init__(self):
            super().__init__()

    with pytest.raises(TypeError, match="__init__"):
        register(Doubling, runs="")(Constructed)


def test_given_replaces_attributes_for_one_call():
    layer = Doubling()
    found = Doubling.forward(Given(layer, net=lambda x: x), torch.ones(1, 2))
    assert found.tolist() == [[2, 2]]
    assert Given(layer).net is layer.net


def test_takes_floating_tensors_of_one_kind():
    x = torch.zeros(2, 3)
    assert takes(x, x)
    assert takes(x.double())
    for other in (x.double(), x.half(), None, x.to("meta")):
        assert not takes(x, other)
    for alone in (x.half(), x.int(), torch.zeros(3), "x"):
        assert not takes(alone)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_page_has_the_table_of_what_is_covered(request, library):
    pytest.importorskip(library)
    page = (request.config.rootpath / "docs" / "accelerate.md").read_text()
    in_page = [line for line in page.splitlines() if line.startswith(f"| `{library}.")]
    assert in_page == [f"| `{name}` | {runs} | {note} |" for name, runs, note in coverage(library)]
