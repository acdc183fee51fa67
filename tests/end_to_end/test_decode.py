"""A decode step with a static cache of keys and values: the cache is a state, the position a value."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.model.compiled_module import compiled_module, program_of
from stretto.driver.report.remarks import remarks_of
from stretto.dsl.error import PlanError
from stretto.runtime import Program
from stretto.runtime.checks.program_check import check
from stretto.runtime.errors import ProgramError, RunError
from stretto.runtime.program.records import Instruction
from stretto.runtime.prover import Types, prove
from stretto.runtime.threads.session import RankThreads
from torch import Tensor, nn

from ..forked_ranks import values_of_ranks

HEADS, HEAD, LENGTH, BATCH, VOCABULARY = 4, 4, 64, 2, 31
HIDDEN = HEADS * HEAD
TP = """mesh (tp=2)
shard "*.q", "*.k", "*.v", "*.up" columns over tp
shard "*.o", "*.down" rows over tp
shard buffers "*.keys", "*.values" dim 1 over tp
"""
STATES = ["*.keys", "*.values"]
WINDOW = 8


class Attention(nn.Module):
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(BATCH, HEADS, LENGTH, HEAD))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(batch, tokens, hidden), and the positions of the tokens (tokens,)."""
        q, k, v = (p(x).view(BATCH, -1, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        scores = q @ self.keys.transpose(-1, -2) / math.sqrt(HEAD)
        later = torch.arange(LENGTH)[None, :] > position[:, None]
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        return self.o((weights @ self.values).transpose(1, 2).reshape(BATCH, -1, HIDDEN))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(HIDDEN), Attention()
        self.up, self.down = nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x), position)
        return x + self.down(torch.relu(self.up(x)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, position)
        return self.head(x)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().double().eval()


@pytest.fixture(scope="module")
def decoded() -> tuple[Decoder, Decoder, Tensor]:
    """A compiled model after 64 tokens one at a time, the same model eager, and the largest error of its logits."""
    eager, model = decoder(), decoder()
    compiled = stretto.compile(model, plan=TP, states=STATES)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    memory = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        expected = eager(tokens, torch.arange(LENGTH))
        steps = [compiled(tokens[:, i : i + 1], torch.tensor([i])) for i in range(LENGTH)]
    assert {name: buffer.data_ptr() for name, buffer in compiled.named_buffers()} == memory
    return compiled, eager, (torch.cat(steps, 1) - expected).abs().max()


def test_64_tokens_one_at_a_time_are_the_full_forward_without_a_copy_of_the_cache(
    decoded: tuple[Decoder, Decoder, Tensor],
) -> None:
    compiled, eager, error = decoded
    assert error < 1e-9
    for (name, buffer), (_, expected) in zip(compiled.named_buffers(), eager.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=0, atol=1e-9, msg=name)
    last = compiled_module(compiled).last
    assert last is not None and isinstance(last.session, RankThreads)
    assert last.session.copied_state_bytes == 0
    assert len(compiled_module(compiled)._programs._keys) == 1, "compiled once"


def test_the_cache_is_a_state_that_is_placed_and_written_in_place(decoded: tuple[Decoder, Decoder, Tensor]) -> None:
    program = program_of(decoded[0])
    states = program.of_kind("state")
    assert len(states) == 4 and all(each.shards[0].dim == 1 for each in states)
    writes = [i for function in program.functions.values() for i in function.code if i.into is not None]
    assert [each.op for each in writes] == ["aten.index_copy.default"] * 2, "once in the body of the layers"
    ops = [i.op for function in program.functions.values() for i in function.code]
    assert not any("gather" in op for op in ops)
    verdict = prove(program)
    assert verdict.safe and verdict.peak_bytes == prove(program, types=Types.STATED).peak_bytes


def test_a_saved_program_with_states_is_checked_like_any_other(decoded: tuple[Decoder, Decoder, Tensor]) -> None:
    program = program_of(decoded[0])
    described = {"inputs": {"tokens": {"high": VOCABULARY - 1}, "position": {"high": LENGTH - 1}}}
    manifest = replace(program.manifest, arguments={**program.manifest.arguments, **described})
    report = check(replace(program, manifest=manifest))
    assert report.passed and any("keys" in row.name for row in report.rows)


@pytest.mark.parametrize("position", [LENGTH, -1])
def test_a_position_past_the_cache_is_refused_by_its_name_and_length_at_the_line(
    decoded: tuple[Decoder, Decoder, Tensor], position: int
) -> None:
    token = torch.zeros(BATCH, 1, dtype=torch.int64)
    with pytest.raises(RunError) as caught, torch.no_grad():
        decoded[0](token, torch.tensor([position]))
    error = caught.value
    assert error.code == "E0339" and f"position {position} is past the end" in error.message
    assert 'state "layers.0.attention.keys", which has 64 in dim 2' in error.message
    assert "from 0 to 63" in error.render() and "test_decode.py" in error.render()
    with torch.no_grad():
        again = decoded[0](token, torch.tensor([0]))
        torch.testing.assert_close(again, decoded[1](token, torch.tensor([0])), rtol=0, atol=1e-9)


class Ring(Attention):
    """A cache of the last `WINDOW` positions, each at its position modulo the window."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """One token: (batch, 1, hidden), and its position (1,)."""
        q, k, v = (p(x).view(BATCH, -1, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        self.keys.index_copy_(2, position % WINDOW, k)
        self.values.index_copy_(2, position % WINDOW, v)
        scores = q @ self.keys.transpose(-1, -2) / math.sqrt(HEAD)
        held = position - (position - torch.arange(WINDOW)) % WINDOW
        weights = scores.masked_fill(held < 0, -math.inf).softmax(-1)
        return self.o((weights @ self.values).transpose(1, 2).reshape(BATCH, -1, HIDDEN))


class Windowed(Attention):
    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """All tokens at once, each of which sees the last `WINDOW`."""
        q, k, v = (p(x).view(BATCH, -1, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        distance = position[:, None] - position[None, :]
        hidden = (distance < 0) | (distance >= WINDOW)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(HEAD)).masked_fill(hidden, -math.inf).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(BATCH, -1, HIDDEN))


@pytest.mark.slow
def test_a_ring_of_the_last_positions_is_a_sliding_window_and_is_written_in_place() -> None:
    eager, model = decoder(), decoder()
    for layer in eager.layers:
        layer.attention.__class__ = Windowed
    for layer in model.layers:
        layer.attention.__class__ = Ring
        for name in STATES:
            layer.attention.register_buffer(name[2:], torch.zeros(BATCH, HEADS, WINDOW, HEAD).double())
    compiled = stretto.compile(model, plan=TP, states=STATES)
    tokens = torch.randint(0, VOCABULARY, (BATCH, 3 * WINDOW + 2))
    with torch.no_grad():
        expected = eager(tokens, torch.arange(tokens.shape[1]))
        steps = [compiled(tokens[:, i : i + 1], torch.tensor([i])) for i in range(tokens.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=1e-9)
    last = compiled_module(compiled).last
    assert last is not None and isinstance(last.session, RankThreads)
    assert last.session.copied_state_bytes == 0 and len(compiled_module(compiled)._programs._keys) == 1


def decoding_rank(rank: int, folder: Path) -> float:
    """One of two processes: some tokens, then the weights with the cache; the error of the last logits."""
    tokens = torch.randint(0, VOCABULARY, (BATCH, 4), generator=torch.Generator().manual_seed(1))
    eager, model = decoder(), decoder()
    compiled = stretto.compile(model, plan=TP, states=STATES)
    with torch.no_grad():
        for i in range(4):
            found = compiled(tokens[:, i : i + 1], torch.tensor([i]))
        expected = eager(tokens, torch.arange(4))[:, -1:]
    stretto.save_weights(compiled, folder / "weights.safetensors")
    stretto.save_checkpoint(folder / "checkpoint", compiled)
    if rank == 0:
        torch.save(dict(eager.named_buffers()), folder / "buffers.pt")
    return float(((found.full_tensor() if hasattr(found, "full_tensor") else found) - expected).abs().max())


@pytest.mark.slow
def test_states_of_processes_are_whole_in_weights_and_checkpoints(tmp_path: Path) -> None:
    assert max(values_of_ranks(decoding_rank, 2, tmp_path)) < 1e-9
    buffers = torch.load(tmp_path / "buffers.pt")
    for load, source in (stretto.load_weights, "weights.safetensors"), (load_checkpoint, "checkpoint"):
        model = decoder()
        load(model, tmp_path / source)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, buffers[name], rtol=0, atol=1e-9, msg=f"{name} of {source}")


def load_checkpoint(model: nn.Module, path: Path) -> None:
    stretto.load_checkpoint(path, model)


def test_a_pipeline_refuses_states_in_words_at_its_statement() -> None:
    step = torch.zeros(BATCH, 1, dtype=torch.int64), torch.tensor([0])
    plan = "mesh (pp=2)\npipeline over pp { schedule gpipe  microbatches 2 }"
    with pytest.raises(StrettoError) as caught, torch.no_grad():
        stretto.compile(decoder(), plan=plan, states=["*.keys"])(*step)
    error = caught.value
    assert error.code == "E0425" and '"layers.0.attention.keys" is one, and 1 more' in error.message
    assert error.span is not None and error.span.line == 2 and '"pp"' in error.help


def rewritten(program: Program, edit: dict[int, Instruction]) -> Program:
    """The program with other instructions in the body of the layers."""
    body = program.functions["layers_forward"]
    code = tuple(edit.get(index, each) for index, each in enumerate(body.code))
    return replace(program, functions={**program.functions, "layers_forward": replace(body, code=code)})


def test_a_state_that_is_read_after_it_was_overwritten_is_refuted_with_both_instructions(
    decoded: tuple[Decoder, Decoder, Tensor],
) -> None:
    program = program_of(decoded[0])
    code = program.functions["layers_forward"].code
    write = next(index for index, each in enumerate(code) if each.into is not None)
    [new] = code[write].writes()
    old = code[write].into
    assert old is not None
    read = next(i for i, each in enumerate(code) if i > write and new in each.reads() and len(each.reads()) == 1)
    slots = {new: old}

    def instead(value: object) -> object:
        return type(value)(slots[value.index]) if getattr(value, "index", None) in slots else value  # type: ignore

    late = replace(code[read], args=tuple(map(instead, code[read].args)), free=(*code[read].free, old))
    kept = replace(code[write], free=tuple(slot for slot in code[write].free if slot != old))
    views = tuple((s, slots.get(o, o)) for s, o in program.functions["layers_forward"].views)
    edited = rewritten(program, {write: kept, read: late})
    body = replace(edited.functions["layers_forward"], views=views)
    edited = replace(edited, functions={**edited.functions, "layers_forward": body})
    for types in Types:
        verdict = prove(edited, types=types)
        assert verdict.counterexample is not None and verdict.counterexample.code == "E0731"
        assert [place.index for place in verdict.counterexample.places] == [read, write]


def test_into_names_a_state_and_nothing_else(decoded: tuple[Decoder, Decoder, Tensor]) -> None:
    program = program_of(decoded[0])
    code = program.functions["layers_forward"].code
    relu = next(index for index, each in enumerate(code) if each.op == "aten.relu.default")
    wrong = rewritten(program, {relu: replace(code[relu], into=code[relu].reads()[0])})
    with pytest.raises(ProgramError, match="is not in the memory of a state"):
        _ = wrong.validated
    write = next(index for index, each in enumerate(code) if each.into is not None)
    with pytest.raises(ProgramError, match="is no operand"):
        _ = rewritten(program, {write: replace(code[write], into=code[relu].reads()[0])}).validated


def test_a_state_whose_old_value_is_read_gets_its_new_one_by_a_copy() -> None:
    """Replicas keep states of their own, and see what the caller writes."""

    class Average(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            old = self.mean.clone()
            self.mean.mul_(0.5).add_(x.mean(0))
            return old + self.mean

    eager = Average()
    compiled = stretto.compile(Average(), plan="mesh (tp=2)\nshard inputs dim 1 over tp", states=["mean"])
    with torch.no_grad():
        for step in range(3):
            x = torch.randn(3, 4, dtype=torch.float64)
            torch.testing.assert_close(compiled(x), eager(x))
            torch.testing.assert_close(compiled.mean, eager.mean)
            if step == 1:
                for model in (compiled, eager):
                    model.mean.fill_(2.0)
    [remark] = [remark for remark in remarks_of(program_of(compiled)) if remark["pass"] == "states"]
    assert str(remark["message"]).endswith('shard buffers "mean" dim 0 over tp')


def test_states_that_change_places_keep_their_values() -> None:
    class Swap(nn.Module):
        first: Tensor
        second: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("first", torch.arange(4.0))
            self.register_buffer("second", -torch.arange(4.0))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.first.clone(), self.second.clone()
            self.first.copy_(second.index_copy(0, torch.tensor([1]), x))
            self.second.copy_(first)
            return first + second

    eager = Swap()
    compiled = stretto.compile(Swap(), plan='mesh (tp=2)\nshard buffers "*" dim 0 over tp', states=["*"])
    with torch.no_grad():
        for step in range(3):
            x = torch.full((1,), 10.0 + step)
            torch.testing.assert_close(compiled(x), eager(x))
            torch.testing.assert_close(compiled.first, eager.first)
            torch.testing.assert_close(compiled.second, eager.second)


def test_a_backward_reads_the_old_value_of_a_state() -> None:
    class Scaled(nn.Module):
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
            self.register_buffer("scale", torch.full((4,), 2.0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            y = (x @ self.weight) * self.scale.clone()
            self.scale.index_copy_(0, torch.tensor([1]), x.detach()[0, :1])
            return y.pow(2).sum()

    eager, compiled = (
        Scaled(),
        stretto.compile(Scaled(), plan='mesh (tp=2)\nshard "weight" dim 1 over tp', states=["scale"]),
    )
    for _ in range(2):
        x = torch.randn(3, 4, dtype=torch.float64)
        for model in (eager, compiled):
            model.zero_grad()
            (3.0 * model(x)).backward()
        torch.testing.assert_close(compiled.weight.grad, eager.weight.grad)
        torch.testing.assert_close(compiled.scale, eager.scale)


def test_a_glob_that_names_no_buffer_is_refused() -> None:
    step = torch.zeros(BATCH, 1, dtype=torch.int64), torch.tensor([0])
    with pytest.raises(StrettoError) as caught, torch.no_grad():
        stretto.compile(decoder(), plan="mesh (tp=2)", states=["*.kyes"])(*step)
    assert caught.value.code == "E0424" and "*.keys" in caught.value.help
    with pytest.raises(PlanError) as refused, torch.no_grad():
        stretto.compile(decoder(), plan='mesh (tp=2)\nshard buffers "*.cache" dim 1 over tp')(*step)
    assert refused.value.code == "E0114"
    with pytest.raises(PlanError) as refused, torch.no_grad():
        stretto.compile(decoder(), plan='mesh (tp=2)\nshard buffers "*.keys" dim 7 over tp')(*step)
    assert refused.value.code == "E0115"
