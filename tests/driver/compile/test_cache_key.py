"""The key of the compile cache: whatever a program depends on changes it, and nothing else does."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import pytest
import torch
from stretto import Plan, allow_ops
from stretto.driver.compile import cache_key as cache_key_module
from stretto.driver.compile import own_sources
from stretto.driver.compile.cache_key import cache_key, dumped
from stretto.driver.compile.compile_program import compile_capture, compile_program
from stretto.driver.compile.compile_target import with_named_sizes
from stretto.driver.compile.request import CompileRequest, Options
from stretto.driver.compile.traced_call import traced_call
from stretto.frontend.captured import Mode
from stretto.frontend.dynamic_sizes.dynamic_dims import DynamicDims
from stretto.frontend.forward_facts import NotKeyed
from stretto.frontend.to_ir import Floats
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.experimental import register_sharding
from torch.utils._python_dispatch import TorchDispatchMode

PLAN = 'mesh (dp=2, tp=2)\nshard "up" columns over tp'


class Net(nn.Module):
    """Two layers, a norm, dropout, buffers: a part for every fact."""

    def __init__(self, p: float = 0.1, eps: float = 1e-5, scale: float = 2.0) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8, eps=eps)
        self.dropout = nn.Dropout(p)
        self.down = nn.Linear(8, 8)
        self.register_buffer("ids", torch.tensor([0, 2, 1]))
        self.register_buffer("mean", torch.zeros(8))
        self.scale = scale
        self.table = torch.tensor([1.0, 2.0])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.dropout(self.norm(self.up(x)) * self.scale)[:, self.ids].sum() * self.table.sum()
        return {"loss": hidden + self.down(self.mean).sum()}


class Moved(Net):
    """The same forward on other lines."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.dropout(self.norm(self.up(x)) * self.scale)[:, self.ids].sum() * self.table.sum()
        return {"loss": hidden + self.down(self.mean).sum()}


class OtherName(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": super().forward(x)["loss"]}


class OwnLinear(nn.Module):
    """A linear layer that is none by its class: the plan's roles are others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(8, 4)), nn.Parameter(torch.zeros(8))

    forward = nn.Linear.forward


def key_of(request: CompileRequest) -> str:
    return cache_key(request, traced_call(request))


def request_of(
    model: nn.Module | None = None, x: Tensor | None = None, plan: Plan | None = None, **options: Any
) -> CompileRequest:
    model = Net() if model is None else model
    x = torch.randn(4, 4) if x is None else x
    return CompileRequest.of(model, (x,), {}, plan or Plan.parse(PLAN), Options(**options))


def changed(change: Callable[[Net], Any]) -> CompileRequest:
    model = Net()
    change(model)
    return request_of(model)


def tie(model: Net) -> None:
    model.down.bias = model.norm.bias


def share_memory(model: Net) -> None:
    model.norm.bias = nn.Parameter(model.norm.weight.detach())


def in_columns(model: Net) -> None:
    model.down.weight = nn.Parameter(torch.zeros(8, 8).t())


def with_sizes() -> CompileRequest:
    return with_named_sizes(request_of(), DynamicDims.of({"x": {0: "batch"}}))


CHANGES: dict[str, Callable[[], CompileRequest]] = {
    "a constant in the source": lambda: request_of(Net(scale=2.5)),
    "its type": lambda: request_of(Net(scale=2)),
    "a tensor that becomes a constant": lambda: changed(lambda m: setattr(m, "table", torch.tensor([1.0, 3.0]))),
    "an integer buffer's range": lambda: changed(lambda m: m.ids.fill_(3)),
    "dropout": lambda: request_of(Net(p=0.2)),
    "eps": lambda: request_of(Net(eps=1e-6)),
    "eval mode": lambda: changed(lambda m: m.eval()),
    "eval mode of a part": lambda: changed(lambda m: m.dropout.eval()),
    "tied parameters": lambda: changed(tie),
    "parameters that share memory": lambda: changed(share_memory),
    "a frozen parameter": lambda: changed(lambda m: m.down.weight.requires_grad_(False)),
    "a parameter's dtype": lambda: request_of(Net().double(), torch.randn(4, 4).double()),
    "a parameter's strides": lambda: changed(in_columns),
    "a parameter's name": lambda: changed(lambda m: m.register_parameter("more", nn.Parameter(torch.zeros(1)))),
    "the class that owns a parameter": lambda: changed(lambda m: setattr(m, "up", OwnLinear())),
    "a hook on a module": lambda: changed(lambda m: m.up.register_forward_hook(lambda _m, _i, out: out * 2)),
    "the lines of the model's source": lambda: request_of(Moved()),
    "the name of a result": lambda: request_of(OtherName()),
    "an input's rows": lambda: request_of(x=torch.randn(6, 4)),
    "an input's dtype": lambda: request_of(Net().double(), torch.randn(4, 4).double()),
    "an input's strides": lambda: request_of(x=torch.randn(4, 4).t()),
    "an input that wants a gradient": lambda: request_of(x=torch.randn(4, 4).requires_grad_()),
    "no gradients": lambda: request_of(mode=Mode.INFER),
    "the loss alone": lambda: request_of(loss_only=True),
    "float64": lambda: request_of(floats=Floats.FLOAT64),
    "delayed reductions": lambda: request_of(delay_reductions=True),
    "padded inputs": lambda: request_of(padded_inputs=("x",)),
    "a statement of the plan": lambda: request_of(plan=Plan.parse(PLAN + '\nshard "down" rows over tp')),
    "the mesh": lambda: request_of(plan=Plan.parse(PLAN.replace("dp=2", "dp=4"))),
    "a line of the plan": lambda: request_of(plan=Plan.parse("# moved\n" + PLAN)),
    "the plan's file": lambda: request_of(plan=Plan.parse(PLAN, "other.plan")),
    "the compute dtype": lambda: request_of(plan=Plan.parse(PLAN + "\nprecision { compute bf16 }")),
    "named sizes": with_sizes,
}


def test_equal_calls_have_equal_keys_whatever_the_weights_and_the_values() -> None:
    first = key_of(request_of())
    model = Net()
    model(torch.randn(4, 4))["loss"].backward()
    assert key_of(request_of(model)) == first
    assert key_of(request_of(keep_weights=False, source={"path": "x"}, arguments={"inputs": {"x": {}}})) == first


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_gives_another_key(change: str) -> None:
    assert key_of(CHANGES[change]()) != key_of(request_of())


@contextlib.contextmanager
def restored(set_to: Callable[[Any], Any], value: Any, old: Any) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(old)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": lambda: restored(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic algorithms": lambda: restored(torch.use_deterministic_algorithms, True, False),
    "matmul precision": lambda: restored(torch.set_float32_matmul_precision, "medium", "highest"),
    "oneDNN": lambda: restored(torch._C._set_mkldnn_enabled, False, True),
    "flash attention": lambda: restored(torch.backends.cuda.enable_flash_sdp, False, True),
    "threads": lambda: restored(torch.set_num_threads, torch.get_num_threads() + 1, torch.get_num_threads()),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("state", STATES)
def test_a_state_of_torch_gives_another_key(state: str) -> None:
    model, x = Net(), torch.randn(4, 4)
    before = key_of(request_of(model, x))
    with STATES[state]():
        assert key_of(request_of(model, x)) != before
    assert key_of(request_of(model, x)) == before


class Store:
    """An argument that holds a tensor, and more."""

    def __init__(self, rows: Tensor, more: Any = None) -> None:
        self.rows = rows
        self.more = more


class Storing(Net):
    def forward(self, x: Tensor, store: Store) -> dict[str, Tensor]:
        store.rows.add_(1)
        return super().forward(x)


def test_the_key_tells_all_of_an_object_among_the_arguments() -> None:
    def key(rows: Tensor, more: Any = None) -> str:
        call = (torch.randn(4, 4), Store(rows, more))
        return key_of(CompileRequest.of(Storing(), call, {}, Plan.parse(PLAN), Options()))

    rows = torch.zeros(4, 2)
    assert key(rows) == key(rows + 1) == key(rows, None)
    others = (
        (rows.int(), None),
        (rows[:2], None),
        (rows.t().contiguous().t(), None),
        (rows, 1),
        (rows, {2}),
        (rows, Net),
    )
    keys = {key(rows), *(key(*each) for each in others)}
    assert len(keys) == 1 + len(others)
    with pytest.raises(NotKeyed):
        key(rows, lambda: None)


def test_the_key_tells_every_field_of_a_request_but_those_that_say_where_programs_are_kept() -> None:
    """A new field of `CompileRequest` belongs into `cache_key`; new fields of `Options` and of plans are there."""
    told = {"model", "call", "plan", "options", "sizes", "if_static"}
    assert {field.name for field in fields(CompileRequest)} == told | {"cache", "sharing"}


def test_other_sources_give_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(request_of())
    monkeypatch.setattr(cache_key_module, "own_state", lambda: "0.1.0 of other sources")
    assert key_of(request_of()) != before


def test_every_file_of_the_compiler_is_among_the_sources() -> None:
    hashed = {path.removeprefix(f"{own_sources._ROOT}/") for path in own_sources._source_files()}
    assert {
        "cli.py",
        "dsl/plan.lark",
        "ops/op_table.txt",
        "driver/compile/own_sources.py",
        "costs/communication.py",
    } <= hashed
    assert not any(name.startswith(("tests", "docs", "examples")) for name in hashed)


def test_a_source_that_is_newer_than_the_process_is_not_keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_sources, "LOADED_AT", 0.0)
    with pytest.raises(NotKeyed, match="was changed after this process had started"):
        own_sources.own_state.__wrapped__()


@torch.library.custom_op("stretto_tests_cache::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    return x * 2


twist.register_fake(torch.empty_like)


class Twisted(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(torch.ops.stretto_tests_cache.twist(x))


def test_an_op_that_the_caller_allows_gives_another_key_and_its_calls_are_not_keyed() -> None:
    before = key_of(request_of())
    allow_ops("stretto_tests_cache::twist")
    assert key_of(request_of()) != before
    with pytest.raises(NotKeyed, match=r'custom op "stretto_tests_cache\.twist\.default"'):
        key_of(request_of(Twisted()))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


UNKEYED = {
    "a mode of the caller's": Watching,
    "hooks of the caller's": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
}


@pytest.mark.parametrize("reason", UNKEYED)
def test_what_the_caller_runs_beside_the_forward_is_not_keyed(reason: str) -> None:
    request = request_of()
    traced = traced_call(request)
    with UNKEYED[reason](), pytest.raises(NotKeyed, match=reason):
        cache_key(request, traced)


def test_a_strategy_that_the_caller_registers_is_not_keyed() -> None:
    strategies = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
    before = dict(strategies)
    try:
        register_sharding(torch.ops.aten.tanh.default)(lambda x: [([Replicate()], [Replicate()])])
        with pytest.raises(NotKeyed, match=r"aten\.tanh\.default"):
            key_of(request_of())
    finally:
        strategies.clear()
        strategies.update(before)


def test_an_op_of_torch_with_a_gradient_of_the_caller_is_not_keyed() -> None:
    request = request_of()
    traced = traced_call(request)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("gelu", lambda x, approximate="none": x, "AutogradCPU")
        with pytest.raises(NotKeyed, match=r'"aten\.gelu"'):
            cache_key(request, traced)
    assert cache_key(request, traced)


def test_a_parameter_of_a_class_of_its_own_is_not_keyed() -> None:
    class Special(nn.Parameter):
        pass

    model = Net()
    request = request_of(model)
    traced = traced_call(request)
    model.down.bias = Special(torch.zeros(8))
    with pytest.raises(NotKeyed, match="Special"):
        cache_key(request, traced)


def test_a_value_without_a_text_is_not_keyed() -> None:
    with pytest.raises(NotKeyed, match="holds a object"):
        dumped((1, object()))


_opened: list[str] | None = None


class Steep(torch.autograd.Function):
    """Its forward does not say what its backward computes."""

    factor = 2.0
    table = torch.tensor(1.0)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.factor = Steep.factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.factor * Steep.table


def test_the_backward_of_a_custom_autograd_function_is_told_by_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steeper(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            loss: Tensor = Steep.apply(self.up(x)).sum()  # type: ignore[no-untyped-call]
            return {"loss": loss}

    before = key_of(request_of(Steeper()))
    assert key_of(request_of(Steeper())) == before
    with monkeypatch.context() as patch:
        patch.setattr(Steep, "factor", 3.0)
        assert key_of(request_of(Steeper())) != before
    monkeypatch.setattr(Steep, "table", torch.tensor(2.0))
    assert key_of(request_of(Steeper())) != before


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(args[0]))


def test_a_compile_reads_no_file_and_no_variable_that_its_key_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the forward is traced, passes and lowering read the package's own files, and nothing of the user's."""
    global _opened
    compile_program(request_of())  # what is imported on first use is not read again
    request = request_of()
    captures = traced_call(request).captures()
    read: list[str] = []
    plain = type(os.environ).__getitem__

    def recorded(environ: Any, name: str) -> str:
        read.append(name)
        return plain(environ, name)

    monkeypatch.setattr(type(os.environ), "__getitem__", recorded)
    sys.addaudithook(_audit)
    _opened = []
    try:
        compile_capture(captures.own, request.model, request.plan, request.options)
        found = _opened
    finally:
        _opened = None
    assert not found
    assert not [name for name in read if not name.startswith(("TORCH", "PYTORCH"))]
