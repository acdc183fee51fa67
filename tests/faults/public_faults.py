"""Silent errors of parallel training that users of other systems reported, as edits of a module.

Each is planted where the same mistake can be made here, found by what a value is (the gradient of a parameter, the
count of a loss's targets), and says which result a check has to name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from stretto.frontend.captured import Mode
from stretto.ir.bindings import Operation, Value, mlir
from stretto.ir.module import Module, argument_records, callee, entry, operations, result_records, terminator
from stretto.ir.pipelined_module import entries
from stretto.ir.types import from_mlir, is_tensor

from .collective_faults import dropped_reduction, never_waited, reduced_twice
from .corpus import Case
from .editing import Site

PARTITIONED, HOISTED, STARTED = "partition-tensors", "hoist-collectives", "start-collectives"
GPT = Case("gpt", "dp_tp.plan", Mode.TRAIN)
PIPELINE = Case("gpt", "pp.plan", Mode.TRAIN)
SEQUENCE_PARALLEL = Case("llama", "tp_sequence.plan", Mode.TRAIN)


@dataclass(frozen=True)
class PublicFault:
    """A reported error, and how it is made here."""

    source: str
    """Where it was reported."""
    case: Case
    level: str
    """The pass after which the module is edited."""
    plant: Callable[[Module], None]
    """Makes the mistake; fails where the module has no place for it."""
    named: str
    """What the check has to name: a result, or a kind of result."""


def site(module: Module, function: Operation, op: Operation) -> Site:
    """An operation as the other faults take it."""
    return Site(op, function, module.mesh, Random(0))


def gradient(module: Module, name: str) -> Site:
    """The operation that gives the gradient of a parameter."""
    for function in entries(module):
        for value, record in zip(terminator(function).operands, result_records(function), strict=True):
            if record.get("kind") == "gradient" and record.get("name") == name:
                return site(module, function, value.owner)
    raise LookupError(f"no gradient of {name}")


def everywhere(module: Module) -> Iterator[Site]:
    """Every operation, in order."""
    for function in module.functions().values():
        for op in operations(function):
            yield site(module, function, op)


def first(module: Module, matches: Callable[[Site], bool]) -> Site:
    """The first operation of a kind."""
    return next(found for found in everywhere(module) if matches(found))


def scaled(found: Site, factor: float) -> None:
    """Every user takes a multiple of the operation's result."""
    found.instead(found.emit_after("aten.mul.Scalar", [found.result, factor], found.result.type))


def made_by(value: Value, name: str) -> bool:
    """Whether an operation of this name gives the value."""
    return not isinstance(value.owner, mlir.Block) and Site(value.owner, value.owner, (), Random(0)).call.name == name


def unreduced_gradient(name: str) -> Callable[[Module], None]:
    """Each rank keeps its own part of a gradient's sum."""

    def plant(module: Module) -> None:
        assert dropped_reduction(gradient(module, name))

    return plant


def scaled_gradient(name: str, factor: float) -> Callable[[Module], None]:
    """A gradient is averaged where it is a sum, or summed where it is a mean."""

    def plant(module: Module) -> None:
        scaled(gradient(module, name), factor)

    return plant


def bias_on_every_rank(module: Module) -> None:
    """A row-parallel linear adds its bias on every rank before the all-reduce, not on one."""

    def selects_bias(found: Site) -> bool:
        if found.call.name != "aten.where.ScalarOther":
            return False
        value = found.op.operands[1]
        return isinstance(value.owner, mlir.Block) and len(from_mlir(value.type).shape) == 1

    found = first(module, selects_bias)
    found.erased(found.emit("aten.clone.default", [found.op.operands[1]], found.result.type))


def one_use_of_a_tied_weight(module: Module) -> None:
    """Of a weight that embedding and head share, only the head's gradient counts."""
    total = _sum_of_tied(module)
    total.instead(total.op.operands[0])


def tied_weight_reduced_twice(module: Module) -> None:
    """The embedding's part of a tied gradient is reduced over the data axis, added, and reduced with the sum again."""
    total = _sum_of_tied(module)
    part = total.op.operands[1]
    total.op.operands[1] = total.emit("comm.all_reduce", [part, ["dp"], "sum"], part.type)


def tied_weight_reduced_before_its_second_part(module: Module) -> None:
    """The data axis reduces the head's gradient; what the embedding adds afterwards stays each rank's own."""
    reduced = gradient(module, "embed_tokens.weight")
    total = _sum_of_tied(module)
    head, embedding = total.op.operands
    early = reduced.emit("comm.all_reduce", [head, ["dp"], "sum"], reduced.result.type)
    reduced.erased(reduced.emit("aten.add.Tensor", [early, embedding], reduced.result.type))


def _sum_of_tied(module: Module) -> Site:
    reduced = gradient(module, "embed_tokens.weight")
    total = site(module, reduced.function, reduced.op.operands[0].owner)
    assert total.call.name == "aten.add.Tensor"
    return total


def each_rank_counts_its_own_targets(module: Module) -> None:
    """The mean loss divides by the rank's own count of targets, not by the batch's."""

    def reduces_count(found: Site) -> bool:
        if found.call.name != "comm.all_reduce" or not made_by(found.op.operands[0], "aten.sum.default"):
            return False
        counted = found.op.operands[0].owner.operands[0]
        return str(from_mlir(counted.type).dtype) == "torch.bool"

    assert dropped_reduction(first(module, reduces_count))


def embedding_without_its_mask(module: Module) -> None:
    """A vocabulary-parallel embedding keeps the rows that it looked up for tokens of other ranks."""

    def masks_rows(found: Site) -> bool:
        return found.call.name == "aten.where.ScalarOther" and made_by(found.op.operands[1], "aten.embedding.default")

    found = first(module, masks_rows)
    found.erased(found.emit("aten.clone.default", [found.op.operands[1]], found.result.type))


def softmax_normalised_by_every_rank(module: Module) -> None:
    """A vocabulary-parallel loss reduces a sum over the vocabulary that is complete: the loss grows by log(ranks)."""

    def reduces_exponentials(found: Site) -> bool:
        operand = found.op.operands[0] if list(found.op.operands) else None
        return (
            found.call.name == "comm.all_reduce"
            and operand is not None
            and made_by(operand, "aten.sum.dim_IntList")
            and made_by(operand.owner.operands[0], "aten.exp.default")
        )

    assert reduced_twice(first(module, reduces_exponentials))


def loss_scaled_by_ranks(module: Module) -> None:
    """The backward begins with the loss's gradient times the ranks of an axis."""
    main = module.functions()["main"]
    index = next(i for i, record in enumerate(argument_records(main)) if record.get("kind") == "tangent")
    tangent = entry(main).arguments[index]
    use = next(iter(tangent.uses)).owner
    found = site(module, main, use)
    position = list(use.operands).index(tangent)
    use.operands[position] = found.emit("aten.mul.Scalar", [tangent, 2.0], tangent.type)


def last_microbatch_alone(module: Module) -> None:
    """A pipeline keeps the gradient of its last microbatch."""
    total = _accumulation(module)
    total.instead(total.op.operands[1])


def weight_gradient_added_twice(module: Module) -> None:
    """A schedule that splits the backward adds one microbatch's weight gradient twice."""
    total = _accumulation(module)
    total.instead(total.emit_after("aten.add.Tensor", [total.result, total.op.operands[1]], total.result.type))


def _accumulation(module: Module) -> Site:
    """The sum over microbatches of the gradient of a weight of the first layer."""
    found = gradient(module, "layers.0.attention_norm.weight")
    while found.call.name != "aten.add.Tensor":
        found = site(module, found.function, found.op.operands[0].owner)
    return found


def stage_with_another_layers_weights(module: Module) -> None:
    """A stage computes the second layer with the weights of the first: a wrong division of layers."""
    main = module.functions()["main"]
    one, two = [op for op in operations(main) if callee(op) == "layers_forward"]
    for i, value in enumerate(one.operands):
        if i and is_tensor(value.type):
            two.operands[i] = value


def tied_weight_not_sent_back(module: Module) -> None:
    """The first stage adds nothing of what the head's stage knows of a tied weight's gradient."""
    total = gradient(module, "embed_tokens.weight")
    assert total.call.name == "aten.add.Tensor"
    own = next(v for v in total.op.operands if not made_by(v, "comm.receive"))
    total.instead(own)


def gradient_before_its_reduction_ends(module: Module) -> None:
    """The optimizer reads a gradient whose all-reduce was started and is not awaited."""
    assert never_waited(gradient(module, "transformer.ln_f.weight"))


_MEGATRON = "https://github.com/NVIDIA/Megatron-LM/"
PUBLIC_FAULTS: dict[str, PublicFault] = {
    "final norm under sequence parallelism": PublicFault(
        f"{_MEGATRON}issues/1446",
        SEQUENCE_PARALLEL, PARTITIONED, unreduced_gradient("model.norm.weight"), "model.norm.weight",
    ),
    "norm inside a block under sequence parallelism": PublicFault(
        "https://github.com/NVIDIA-NeMo/RL/issues/3716",
        SEQUENCE_PARALLEL, PARTITIONED, unreduced_gradient("model.layers.0.input_layernorm.weight"),
        "model.layers.0.input_layernorm.weight",
    ),
    "norm gradient averaged over the tensor axis": PublicFault(
        "https://github.com/EleutherAI/gpt-neox/pull/1259",
        SEQUENCE_PARALLEL, PARTITIONED, scaled_gradient("model.norm.weight", 0.5), "model.norm.weight",
    ),
    "row-parallel bias added on every rank": PublicFault(
        "https://github.com/huggingface/text-generation-inference/issues/1036",
        GPT, PARTITIONED, bias_on_every_rank, "output",
    ),
    "gradient of a row-parallel bias divided by the ranks": PublicFault(
        "https://github.com/pytorch/torchtitan/pull/4332",
        GPT, PARTITIONED, scaled_gradient("layers.0.mlp.down_proj.bias", 0.5), "layers.0.mlp.down_proj.bias",
    ),
    "one use of a tied weight": PublicFault(
        f"{_MEGATRON}issues/656", GPT, PARTITIONED, one_use_of_a_tied_weight, "embed_tokens.weight"
    ),
    "tied weight between stages": PublicFault(
        "https://github.com/uw-syfi/piper/issues/13", PIPELINE, HOISTED, tied_weight_not_sent_back,
        "embed_tokens.weight",
    ),
    "tied weight reduced twice": PublicFault(
        f"{_MEGATRON}issues/844", GPT, PARTITIONED, tied_weight_reduced_twice, "embed_tokens.weight"
    ),
    "embedding gradient after its all-reduce": PublicFault(
        f"{_MEGATRON}issues/1012", GPT, PARTITIONED, tied_weight_reduced_before_its_second_part, "embed_tokens.weight"
    ),
    "mean of the ranks' means": PublicFault(
        "https://github.com/huggingface/transformers/issues/35203",
        GPT, PARTITIONED, each_rank_counts_its_own_targets, "output",
    ),
    "embedding without its mask": PublicFault(
        "https://github.com/hpcaitech/ColossalAI/pull/242", GPT, PARTITIONED, embedding_without_its_mask, "output"
    ),
    "loss off by the logarithm of the ranks": PublicFault(
        f"{_MEGATRON}issues/7452", GPT, PARTITIONED, softmax_normalised_by_every_rank, "output"
    ),
    "loss scaled by the size of an axis": PublicFault(
        f"{_MEGATRON}issues/906", GPT, PARTITIONED, loss_scaled_by_ranks, "gradient"
    ),
    "microbatches summed, not averaged": PublicFault(
        "https://github.com/deepspeedai/DeepSpeed/issues/7773",
        PIPELINE, HOISTED, scaled_gradient("layers.0.attention_norm.weight", 2.0), "layers.0.attention_norm.weight",
    ),
    "accumulated gradients divided at every step": PublicFault(
        "https://github.com/pytorch/torchtitan/issues/1733",
        PIPELINE, HOISTED, scaled_gradient("layers.1.attention_norm.weight", 0.5), "layers.1.attention_norm.weight",
    ),
    "last microbatch alone": PublicFault(
        "https://github.com/NVIDIA-NeMo/Automodel/pull/3530",
        PIPELINE, HOISTED, last_microbatch_alone, "layers.0.attention_norm.weight",
    ),
    "weight gradient added twice": PublicFault(
        "https://github.com/pytorch/pytorch/issues/180952",
        PIPELINE, HOISTED, weight_gradient_added_twice, "layers.0.attention_norm.weight",
    ),
    "wrong division into stages": PublicFault(
        "arXiv:2506.09280", GPT, PARTITIONED, stage_with_another_layers_weights, "output"
    ),
    "gradient read before its all-reduce ends": PublicFault(
        "https://github.com/facebookresearch/fairscale/issues/780",
        Case("gpt2", "gpt2/dp_tp.plan", Mode.TRAIN), STARTED, gradient_before_its_reduction_ends,
        "transformer.ln_f",
    ),
}  # fmt: skip
"""By what went wrong."""
