"""Small modules under unusual plans: right to 1e-9, or refused with a message."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.frontend.captured import Mode
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn

from ..subsets import only
from .checking import assert_report, compiled_model
from .small_modules import CLASSES, MODULES
from .traffic import kinds, messages

LIKE_OTHERS = (
    "cross_entropy_of_each", "cross_entropy_smoothed", "cross_entropy_weighted", "attention_with_a_mask", "windows",
    "torch_s_own_attention",
)  # fmt: skip
"""Modules whose operations others have too: not part of the default run."""
DEFAULT = [name for name in MODULES if name not in LIKE_OTHERS]
PLANS = {
    "data": "mesh (dp=2)",
    "first_dims": 'mesh (dp=2, tp=3)\nshard "*" dim 0 over tp',
    "last_dims": 'mesh (dp=2, tp=2)\nshard "*" dim -1 over tp',
    "over_the_batch_s_axis": 'mesh (dp=2)\nshard "*" dim 0 over dp',
    "two_axes_on_a_dim": 'mesh (a=2, b=2)\nshard inputs batch over a\nshard "*" dim 0 over a, b',
    "last_dims_and_tokens": 'mesh (dp=2, tp=3)\nshard "*" dim -1 over tp\nshard activations tokens over tp',
}


def _check(name: str, plan: str, mode: Mode = Mode.TRAIN) -> None:
    torch.manual_seed(0)
    model, inputs = MODULES[name]()
    labels = "y" if name.startswith("cross_entropy") else ""
    about = {key: {"high": CLASSES, "ignore_index": key == labels} for key in inputs}
    assert_report(check(compiled_model(model, inputs, plan, mode, about=about).program))


@pytest.mark.parametrize("name", only(DEFAULT, MODULES))
def test_rows_of_every_parameter_and_the_batch_may_be_sharded(name: str) -> None:
    _check(name, PLANS["first_dims"])


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_right_under_every_plan(name: str, plan: str) -> None:
    _check(name, PLANS[plan])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_module_infers_as_on_one_device(name: str) -> None:
    _check(name, PLANS["last_dims"], Mode.INFER)


@st.composite
def plans(draw: st.DrawFn, module: nn.Module) -> str:
    """A mesh of up to three axes; each parameter sharded on a dim or two; the batch over one axis or none."""
    axes = draw(
        st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([1, 2, 3])), min_size=1, max_size=3)
    )
    mesh = dict(axes)
    lines = [f"mesh ({', '.join(f'{axis}={size}' for axis, size in mesh.items())})"]
    batch = draw(st.sampled_from([None, *(axis for axis, size in mesh.items() if size != 3)]))
    if batch is not None:
        lines.append(f"shard inputs batch over {batch}")
    for name, parameter in module.named_parameters():
        free = list(mesh)
        for dim in range(parameter.dim()):
            chosen = draw(st.sampled_from([None, *free]))
            if chosen is not None:
                free.remove(chosen)
                lines.append(f'shard "{name}" dim {dim} over {chosen}')
    return "\n".join(lines)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from(sorted(MODULES)))
def test_a_random_plan_changes_nothing(data: st.DataObject, name: str) -> None:
    module, _ = MODULES[name]()
    plan = data.draw(plans(module))
    try:
        _check(name, plan)
    except StrettoError as refusal:
        assert refusal.help, f"{plan}\n{refusal}"


@pytest.mark.parametrize("name", ["means", "mean_squares"])
def test_the_mean_over_a_batch_that_ranks_share_gathers_nothing(name: str) -> None:
    model, inputs = MODULES[name]()
    sent = messages(compiled_model(model, inputs, PLANS["data"]))
    assert set(kinds(sent)) == {"all_reduce"}


class _Selects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.up(x)[mask].sum()


def test_a_size_that_depends_on_data_is_refused_at_its_line() -> None:
    inputs = {"x": torch.zeros(4, 3), "mask": torch.ones(4, dtype=torch.bool)}
    with pytest.raises(StrettoError, match=r"test_small_modules\.py:\d+:\d+: error\[E0221\]") as caught:
        compiled_model(_Selects(), inputs, PLANS["data"])
    assert caught.value.span is not None and "self.up(x)[mask].sum()" in caught.value.span.text


def test_a_batch_that_its_axes_cannot_share_is_refused_with_its_size() -> None:
    model, inputs = MODULES["means"]()
    with pytest.raises(StrettoError, match=r"E0401.*4 rows"):
        compiled_model(model, inputs, "mesh (dp=3)")
