"""What cannot be captured is refused at the user's line, with a way out and without torch's traceback."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, Mode
from torch import nn


class Written(nn.Module):
    """A model whose forward is the given function of the model and its input."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(4))
        self.cache = torch.zeros(4, 4)
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def refused(body: Callable[..., Any], **options: Any) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        capture(Written(body), (torch.randn(4, 4),), {}, mode=Mode.TRAIN, **options)
    assert "Traceback" not in str(caught.value) and len(str(caught.value).splitlines()) < 12
    assert caught.value.__cause__ is None
    return caught.value


def assert_at(error: CaptureError, body: Callable[..., Any], text: str) -> None:
    """The error points at the line of `body` that contains `text`."""
    assert error.span is not None and error.span.file == __file__
    lines, start = inspect.getsourcelines(body)
    assert error.span.line == start + next(index for index, line in enumerate(lines) if text in line)
    assert text in error.span.text


def test_a_branch_on_data_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = model.linear(x)
        if hidden.sum() > 0:
            hidden = hidden * 2
        return hidden.sum()

    error = refused(body)
    assert error.code == "E0220" and "torch.where" in error.help
    assert_at(error, body, "if hidden.sum() > 0")


def test_a_branch_inside_torch_s_own_modules_is_refused_too_and_torch_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = nn.AdaptiveLogSoftmaxWithLoss(8, 10, [4])  # looks which targets there are
    with pytest.raises(CaptureError, match="E0220"):
        capture(model, (torch.randn(4, 8), torch.tensor([1, 2, 3, 8])), {}, mode=Mode.TRAIN)
    assert capsys.readouterr() == ("", "")


def test_reading_out_a_value_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        scale = float(x.abs().max())
        return (model.linear(x) * (2.0 if scale > 1 else 1.0)).sum()

    error = refused(body)
    assert error.code == "E0220"
    assert_at(error, body, "float(x.abs()")


def test_a_shape_that_depends_on_data_is_refused() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        picked = x[x > 0]
        return model.linear(x).sum() + picked.sum()

    error = refused(body)
    assert error.code == "E0221" and "mask" in error.help
    assert_at(error, body, "x[x > 0]")


def test_a_slice_that_starts_where_a_tensor_says_is_refused_as_a_shape_that_depends_on_data() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        start = x[0].argmax()
        return model.linear(x).sum() + torch.combinations(x[0]).sum() + torch.narrow(x, 0, start, 2).sum()

    error = refused(body)
    assert error.code == "E0221" and "mask" in error.help and "u0" not in error.message
    assert_at(error, body, "torch.narrow")


@pytest.fixture
def kernelless() -> Iterator[None]:
    with torch.library._scoped_library("stretto_test", "FRAGMENT") as library:
        library.define("opaque(Tensor x) -> Tensor")
        library.impl("opaque", lambda x: x * 2, "CPU")
        yield


@pytest.mark.usefixtures("kernelless")
def test_an_op_without_a_meta_kernel_is_refused_with_the_registration_that_helps() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return model.linear(torch.ops.stretto_test.opaque(x)).sum()

    error = refused(body)
    assert error.code == "E0222" and "stretto_test" in error.message and "register_fake" in error.help
    assert_at(error, body, "stretto_test.opaque")


def test_a_random_op_that_is_not_a_function_of_the_place_is_refused_with_its_module_and_line() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leak = nn.RReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.leak(x)

    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return leaky(model.linear(x)).sum()

    leaky = Leaky()
    error = refused(body)
    assert error.code == "E0217" and "torch.rand" in error.help
    assert_at(error, Leaky, "self.leak(x)")


def test_a_buffer_that_is_changed_in_place_while_the_backward_needs_it_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = model.linear(x) * model.steps
        model.steps.add_(1)
        return hidden.sum()

    error = refused(body)
    assert error.code == "E0224" and "a tensor that the backward needs" in error.message
    assert_at(error, body, "add_(1)")


def test_a_sparse_tensor_in_the_forward_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = model.linear(x)
        return hidden.to_sparse()

    error = refused(body)
    assert error.code == "E0230" and "dense" in error.help
    assert_at(error, body, "to_sparse")


def test_integers_from_a_range_wider_than_a_word_are_refused() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return (model.linear(x) * torch.randint(0, 1 << 40, (4, 4))).sum()

    error = refused(body)
    assert error.code == "E0217" and "2^31" in error.expected
    assert_at(error, body, "torch.randint")


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_autocast_for_another_device_inside_the_forward_is_refused() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("xpu", dtype=torch.bfloat16):
            hidden = model.linear(x)
        return hidden.float().sum()

    error = refused(body)
    assert error.code == "E0223"
    assert error.span is not None and error.span.file == __file__


def test_a_control_flow_operator_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: model.linear(y), lambda y: y - 1, (x,)).sum()

    error = refused(body)
    assert error.code == "E0226" and "cond" in error.message and "torch.where" in error.help
    assert_at(error, body, "torch.cond")


def test_an_argument_that_json_cannot_say_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return (model.linear(x) * 2j).abs().sum()

    error = refused(body)
    assert error.code == "E0225" and "complex" in error.message
    assert_at(error, body, "2j")


def test_a_hook_on_a_tensors_gradient_is_refused_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        hidden = model.linear(x)
        hidden.register_hook(lambda gradient: gradient * 5)
        return hidden.sum()

    error = refused(body)
    assert error.code == "E0227"
    assert_at(error, body, "register_hook")


def test_a_backward_hook_on_a_module_is_refused_by_its_name() -> None:
    model = Written(lambda model, x: model.linear(x).sum())
    model.linear.register_full_backward_hook(lambda module, inputs, outputs: None)
    with pytest.raises(CaptureError, match='"linear"') as caught:
        capture(model, (torch.randn(4, 4),), {}, mode=Mode.TRAIN)
    assert caught.value.code == "E0227"


def test_an_error_in_the_forward_is_shown_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return model.linear(x.reshape(2, 8)).sum()

    error = refused(body)
    assert error.code == "E0224" and "RuntimeError" in error.message
    assert_at(error, body, "reshape(2, 8)")


def test_training_without_a_loss_is_refused_where_a_loss_is_asked_for() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return model.linear(x)

    error = refused(body, loss_only=True)
    assert error.code == "E0213" and "(4, 4)" in error.message
    assert_at(error, Written, "def forward")


def test_a_loss_that_is_cut_off_is_refused() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return model.linear(x).sum().detach()

    assert refused(body).code == "E0215"
    assert refused(body, loss_only=True).code == "E0213"


def test_a_result_of_an_unknown_type_is_refused() -> None:
    def body(model: Written, x: torch.Tensor) -> Any:
        return {"loss": model.linear(x).sum(), "model": model}

    error = refused(body)
    assert error.code == "E0214" and "Written" in error.message


def test_a_changed_input_is_refused_by_its_name() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return model.linear(x).sum()

    error = refused(body)
    assert error.code == "E0216" and '"x"' in error.message


def test_a_changed_tensor_that_is_no_buffer_is_refused_by_its_name() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        model.cache.add_(x)
        return model.linear(model.cache).sum()

    error = refused(body)
    assert error.code == "E0216" and '"cache"' in error.message and "register_buffer" in error.help


def test_a_value_with_a_gradient_that_is_written_into_a_buffer_is_refused_by_the_buffers_name() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        y = model.linear(x)
        model.steps.copy_(y[0])
        return y.sum()

    error = refused(body)
    assert error.code == "E0216" and '"steps"' in error.message and "no_grad" in error.help


def test_a_changed_parameter_is_refused_by_its_name() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            model.linear.weight.mul_(0.5)
        return model.linear(x).sum()

    error = refused(body)
    assert error.code == "E0216" and '"linear.weight"' in error.message


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((torch.ones(4, 4),), {"labels": 1}, "unexpected keyword argument 'labels'"),
        ((torch.ones(4, 4), 2), {}, "too many positional arguments"),
    ],
)
def test_arguments_that_the_forward_does_not_take_are_refused(args: Any, kwargs: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as caught:
        capture(Written(lambda model, x: x), args, kwargs, mode=Mode.TRAIN)
    assert caught.value.code == "E0210" and "forward(x" in caught.value.help
    assert caught.value.span is not None and caught.value.span.file == __file__


def test_an_argument_of_an_unknown_type_is_refused_by_its_name() -> None:
    with pytest.raises(CaptureError, match='"x"') as caught:
        capture(Written(lambda model, x: x), (object(),), {}, mode=Mode.TRAIN)
    assert caught.value.code == "E0211"


def test_an_input_that_wants_a_gradient_under_the_name_of_a_parameter_is_refused() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4))

        def forward(self, scale: torch.Tensor) -> torch.Tensor:
            return (scale * self.scale).sum()

    capture(Scaled(), (torch.ones(4),), {}, mode=Mode.TRAIN)
    with pytest.raises(CaptureError, match="detach") as caught:
        capture(Scaled(), (torch.ones(4, requires_grad=True),), {}, mode=Mode.TRAIN)
    assert caught.value.code == "E0212"


def test_an_op_that_checks_values_is_refused() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(model.linear.weight).sum() + x.sum()

    assert refused(body).code == "E0228"


def test_a_product_of_two_dtypes_is_refused_where_it_stands() -> None:
    with pytest.raises(CaptureError, match="multiplies float32 by float64") as caught:
        capture(Written(lambda model, x: model.linear(x).sum()), (torch.ones(4, 4).double(),), {}, mode=Mode.TRAIN)
    assert caught.value.code == "E0224" and caught.value.span is not None and caught.value.span.file == __file__


def test_a_value_that_only_python_uses_is_warned_of_at_its_line() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        assert x.detach().norm().item() is not None
        return model.linear(x).sum()

    with pytest.warns(UserWarning, match="takes the value of a tensor into Python") as warned:
        capture(Written(body), (torch.ones(4, 4),), {}, mode=Mode.TRAIN)
    assert __file__ in str(warned[0].message)


def test_an_argument_that_forward_does_not_have_is_named() -> None:
    with pytest.raises(CaptureError, match='it has no argument "y"'):
        capture(Written(lambda model, x: x), (), {"y": torch.ones(4, 4)}, mode=Mode.TRAIN)


def test_a_function_of_torch_that_reads_values_is_named() -> None:
    def body(model: Written, x: torch.Tensor) -> torch.Tensor:
        return torch.cov(model.linear(x)).sum()

    error = refused(body)
    assert error.code == "E0220" and error.message.endswith("in a line that calls torch.cov")


@pytest.mark.parametrize("transform", ["torch.vmap", "torch.func.grad"])
def test_a_function_transform_is_named_at_its_line(transform: str) -> None:
    def maps(model: Written, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda row: (model.linear.weight @ row).tanh())(model.linear(x)).sum()

    def differentiates(model: Written, x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda row: (model.linear.weight @ row).sum())(model.linear(x)[0]).sum()

    body = maps if transform == "torch.vmap" else differentiates
    error = refused(body)
    assert error.message == f'the forward calls "{transform}", which torch\'s export does not trace here'
    assert_at(error, body, transform)


@pytest.mark.parametrize("picks", ["nonzero", "tolist"])
def test_a_loop_over_a_list_of_experts_says_how_to_write_them(picks: str) -> None:
    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = x.argmax(-1) % 2
            if picks == "tolist" and chosen.tolist()[0] == 1:
                return x.sum()
            out = torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                (rows,) = (chosen == number).nonzero(as_tuple=True)
                out = out.index_add(0, rows, expert(x[rows]))
            return out.sum()

    with pytest.raises(CaptureError) as caught:
        capture(Looping(), (), {"x": torch.randn(3, 4)}, mode=Mode.TRAIN)
    assert caught.value.code == ("E0220" if picks == "tolist" else "E0221")
    assert caught.value.help is not None and "such as one over self.experts" in caught.value.help


def test_a_loop_over_experts_names_the_setting_that_has_none() -> None:
    class Looping(nn.Module):
        config = types.SimpleNamespace(_experts_implementation="eager")

        def set_experts_implementation(self, name: str) -> None:
            self.config = types.SimpleNamespace(_experts_implementation=name)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0].sum()

    model, setting = Looping(), 'set_experts_implementation("grouped_mm")'
    with pytest.raises(CaptureError, match="E0221") as caught:
        capture(model, (torch.randn(4),), {}, mode=Mode.INFER)
    assert setting in caught.value.help and "torch.where" in caught.value.help
    model.set_experts_implementation("grouped_mm")
    with pytest.raises(CaptureError, match="E0221") as caught:
        capture(model, (torch.randn(4),), {}, mode=Mode.INFER)
    assert setting not in caught.value.help
