"""A training loop over a compiled model, unchanged, gives what it gives with plain PyTorch."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import stretto
import torch
from torch import nn

from ...subsets import only
from ..models import PLANS, TP, PlainGPT, Small, batch, train, twins

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize(
    ("dtype", "plan"),
    only(
        [(torch.float32, "dp"), (torch.float64, "dp_tp_sequence"), (torch.float64, "stored")], product(TOLERANCE, PLANS)
    ),
    ids=str,
)
def test_five_steps_of_adamw_have_the_losses_of_plain_pytorch(dtype: torch.dtype, plan: str) -> None:
    model, plain = twins(dtype)
    losses = train(stretto.compile(model, plan=PLANS[plan]), 5)
    assert losses == pytest.approx(train(plain, 5), rel=TOLERANCE[dtype])
    assert losses[-1] < losses[0]


def test_gradients_of_several_batches_add_up() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=TP)
    for module in (compiled, plain):
        losses = [module(*batch(seed)) for seed in range(2)]
        for loss in losses:
            (loss / 2).backward()
        module(*batch(2)).backward()
    assert_same_gradients(model, plain)


def test_frozen_parameters_get_no_gradient_and_are_captured_again() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=TP)

    def freeze(module: nn.Module, step: int) -> None:
        module.get_submodule("blocks.0").requires_grad_(step != 1)

    assert train(compiled, 3, freeze) == pytest.approx(train(plain, 3, freeze), rel=1e-10)
    model.get_submodule("blocks").requires_grad_(False)
    plain.get_submodule("blocks").requires_grad_(False)
    for module in (compiled, plain):
        module(*batch()).backward()
    assert model.blocks[0].up.weight.grad is None
    assert_same_gradients(model, plain)


def test_a_model_without_trainable_parameters_runs_forward_only() -> None:
    model, plain = twins()
    compiled = stretto.compile(model, plan=TP)
    compiled.requires_grad_(False)
    loss = compiled(*batch())
    assert not loss.requires_grad
    assert stretto.program_of(compiled).manifest.mode == "infer"
    assert loss.item() == pytest.approx(plain(*batch()).item(), rel=1e-5)


def test_learning_rates_and_clipping_see_one_normal_model() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=TP)
    losses = []
    for module in (compiled, plain):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        own = []
        for step in range(3):
            loss = module(*batch(step))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=False)
            own += [loss.item(), norm.item()]
        losses.append(own)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_evaluation_between_steps_sees_the_new_parameters() -> None:
    model, plain = twins(torch.float64)
    compiled = stretto.compile(model, plan=TP)
    for module in (compiled, plain):
        train(module, 1)
        module.eval()
    with torch.no_grad():
        actual = compiled(batch()[0])
        assert torch.allclose(actual, plain(batch()[0]), rtol=0, atol=1e-10)
    with torch.inference_mode():
        assert torch.equal(compiled(batch()[0]), actual)


def test_buffers_are_written_once_with_the_statistics_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = Small()
    plain = copy.deepcopy(model)
    x = torch.randn(8, 4)
    loss, expected = model(x), plain.forward(x)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(model.norm.num_batches_tracked) == 1
    for own, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(own, other)
    assert_same_gradients(model, plain, 1e-6)


@pytest.mark.parametrize("plan", ["mesh (dp=2)", 'mesh (tp=2)\nshard "linear" columns over tp'], ids=["dp", "tp"])
def test_a_norm_that_averages_over_all_batches_counts_them(plan: str) -> None:
    torch.manual_seed(0)
    model = stretto.compile(Averaging().double(), plan=plan)
    plain = Averaging().double()
    plain.load_state_dict(model.state_dict())
    for step in range(3):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64) + step
        actual, expected = model(x), plain(x)
        actual.backward()
        expected.backward()
        assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    for own, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(own, other, rtol=1e-12, atol=0)
    assert_same_gradients(model, plain)
    assert model.eval()(x).item() == pytest.approx(plain.eval()(x).item(), rel=1e-12)
    assert stretto.program_of(model).of_kind("parameter")
    model.norm.momentum = plain.norm.momentum = 0.25
    for module in (model.train(), plain.train()):
        module(x)
    assert torch.allclose(model.norm.running_var, plain.norm.running_var, rtol=1e-12)


class Averaging(nn.Module):
    """A linear layer, and a norm whose statistics are averages over all batches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.linear(x)).pow(3).mean()
        return result


def test_outputs_beside_a_loss_cannot_be_differentiated_and_the_error_says_so() -> None:
    class Beside(nn.Linear):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = super().forward(x)
            return y.sum(), y

    model = stretto.compile(Beside(4, 4), plan="mesh (dp=2)")
    loss, y = model(torch.randn(4, 4))
    assert y.requires_grad and not y.detach().requires_grad
    with pytest.raises(stretto.StrettoError, match="which the program was not compiled to differentiate") as caught:
        (loss + y.sum()).backward()
    assert caught.value.code == "E0331"
    loss, y = model(torch.randn(4, 4))
    loss.backward()
    assert model.weight.grad is not None


def test_an_optimizer_made_before_steps_the_parameters_that_threads_share() -> None:
    model, plain = twins(torch.float64)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, plain)]
    for module, optimizer in zip((stretto.compile(model, plan=TP), plain), optimizers, strict=True):
        module(*batch()).backward()
        optimizer.step()
    assert all(
        torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_autocast_is_captured_and_leaves_the_compiler_alone() -> None:
    model, plain = twins()
    compiled = stretto.compile(model, plan=TP)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(batch()[0]), plain(batch()[0])
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(actual.float(), expected.float(), atol=0.1)
    assert compiled(batch()[0]).dtype == torch.float32


def assert_same_gradients(model: nn.Module, plain: nn.Module, tolerance: float = 1e-10) -> None:
    """Every parameter has the other's gradient, or none where the other has none."""
    others = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        expected = others[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if parameter.grad is not None and expected is not None:
            assert torch.allclose(parameter.grad, expected, rtol=0, atol=tolerance), name


def test_a_hugging_face_model_keeps_its_interface() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    plain = copy.deepcopy(model)
    plan = """
    mesh (dp=2, tp=2)
    shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp
    shard "*.o_proj", "*.down_proj" rows over tp
    shard "*.embed_tokens", "lm_head" vocab over tp
    """
    compiled = stretto.compile(model, plan=plan)
    assert isinstance(compiled, transformers.LlamaForCausalLM)
    tokens, _ = batch()
    result, expected = compiled(input_ids=tokens, labels=tokens), plain(input_ids=tokens, labels=tokens)
    assert type(result) is type(expected)
    assert result.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert torch.allclose(result.logits, expected.logits, atol=1e-5)
    result.loss.backward()
    expected.loss.backward()
    assert_same_gradients(model, plain, 1e-6)


def test_the_plain_face_stays_plain() -> None:
    model, plain = twins()
    compiled = stretto.compile(model, plan=TP)
    assert type(model) is PlainGPT
    assert torch.equal(model(*batch()), plain(*batch()))
    train(compiled, 1)
    assert not torch.equal(model(*batch()), plain(*batch()))
