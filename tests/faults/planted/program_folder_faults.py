"""Faults of sealed program folders: `program.json` says something else than what was compiled, and all hashes fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Input, Instruction, Output

from ..program_editing import freeing, is_start, keeping
from ..program_faults import without_collective
from .finding import Finder
from .folder_editing import (
    Plant,
    calling,
    changed,
    exchanged,
    found,
    function,
    gradient,
    in_program,
    inserted,
    named,
    read_instead,
    reduction_of,
    swapped,
    with_argument,
    with_keyword,
)
from .users_models import Case

GPT = Case("gpt", "dp_tp")
NORM_WEIGHT = "layers.0.norm.weight"
Q, K = "layers.0.q_proj.weight", "layers.0.k_proj.weight"


@dataclass(frozen=True)
class FolderFault:
    """A fault of a saved folder, and the last command by which it must be found: an earlier one will do."""

    case: Case
    plant: Plant
    found_by: Finder = Finder.VERIFY_FOLDER
    equivalent: str = ""
    """Why it changes nothing, where that is so."""
    missed: str = ""
    """Why no command sees it. See docs/trust.md."""


def reduced_over(axis: str) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        place, start = reduction_of(program, NORM_WEIGHT)
        return place.replaced(start, with_keyword(axes=[axis])(place.code[start]))

    return edit


def said_of(name: str, **attributes: object) -> Callable[[Program], Program]:
    """Other constants of the kind that a function says it is."""

    def edit(program: Program) -> Program:
        right = program.functions[name]
        assert right.kind is not None
        wrong = replace(right, kind=replace(right.kind, attributes={**right.kind.attributes, **attributes}))
        return replace(program, functions={**program.functions, name: wrong})

    return edit


def greatest_gradient(program: Program) -> Program:
    place, start = reduction_of(program, NORM_WEIGHT)
    return place.replaced(start, with_keyword(reduce="max")(place.code[start]))


def gradient_not_reduced(program: Program) -> Program:
    altered = without_collective(*reduction_of(program, NORM_WEIGHT))
    assert altered is not None
    return altered


def tied_gradient_of_one_use(program: Program) -> Program:
    place, start = reduction_of(program, "embed.weight")
    [total] = place.code[start].reads()
    add = next(i for i, c in enumerate(place.code) if total in c.writes())
    head, _embedding = place.code[add].args
    alias = Instruction("aten.alias.default", (head,), {}, (total,), place.code[add].free)
    return place.replaced(add, alias)


def freed_before_its_last_use(program: Program) -> Program:
    place = function(program, "layers_forward")
    last = next(i for i, c in enumerate(place.code) if 0 in c.free)
    code = [*place.code]
    code[0], code[last] = freeing(code[0], 0), keeping(code[last], 0)
    return place.with_code(code)


def residual_of_itself(program: Program) -> Program:
    place, index = found(program, named("aten.add.Tensor"), among="layers_forward")
    _, branch = place.code[index].args
    return place.replaced(index, with_argument(0, branch)(place.code[index]))


def weights_of_the_first_layer(program: Program) -> Program:
    place, one = found(program, calling("layers_forward"), 0)
    _, two = found(program, calling("layers_forward"), 1)
    (name, first), (_, second) = place.code[one].args, place.code[two].args
    mixed = [*second[:3], first[3], *second[4:]]  # type: ignore[index]
    return place.replaced(two, replace(place.code[two], args=(name, mixed)))


def weights_of_a_call_swapped(program: Program) -> Program:
    place, index = found(program, calling("layers_forward"), 1)
    name, values = place.code[index].args
    mixed = [*values]  # type: ignore[misc]
    mixed[3], mixed[4] = mixed[4], mixed[3]
    return place.replaced(index, replace(place.code[index], args=(name, mixed)))


def results_of_a_call_swapped(program: Program) -> Program:
    place, index = found(program, calling("layers_backward"), 0)
    out = [*place.code[index].out]
    body = program.functions["layers_backward"]
    assert len(body.results) == len(out)
    one, two = (n for n, slot in enumerate(out) if n in (3, 4))
    out[one], out[two] = out[two], out[one]
    return place.replaced(index, replace(place.code[index], out=tuple(out)))


def tangent_slot(program: Program) -> int:
    return next(argument.slot for argument in program.inputs if argument.kind == "tangent")


def tangent_taken_as_one(program: Program) -> Program:
    place, slot = function(program, "main"), tangent_slot(program)
    use = next(i for i, c in enumerate(place.code) if slot in c.reads())
    one = Instruction("aten.scalar_tensor.default", (1.0,), {"dtype": torch.float64})
    return read_instead(inserted(place, use, one), "main", use + 1, slot, place.function.slots)


def tangent_squared(program: Program) -> Program:
    place, slot = function(program, "main"), tangent_slot(program)
    use = next(i for i, c in enumerate(place.code) if slot in c.reads())
    square = Instruction("aten.mul.Tensor", (Slot(slot), Slot(slot)))
    return read_instead(inserted(place, use, square), "main", use + 1, slot, place.function.slots)


def inputs_renamed(program: Program) -> Program:
    return replace(program, inputs=tuple(map(exchanged({Q: K}), program.inputs)))


def gradients_renamed(program: Program) -> Program:
    outputs = [o if o.kind != "gradient" else exchanged({Q: K})(o) for o in program.outputs]
    return replace(program, outputs=tuple(outputs))


def both_renamed(program: Program) -> Program:
    return gradients_renamed(inputs_renamed(program))


def inputs_of_the_user_exchanged(program: Program) -> Program:
    tokens, targets = (next(i for i in program.inputs if i.name == name) for name in ("tokens", "targets"))
    indices = {"tokens": targets.index, "targets": tokens.index}
    inputs = [replace(i, index=indices.get(i.name, i.index)) for i in program.inputs]
    return replace(program, inputs=tuple(inputs))


def gradient_slots_exchanged(program: Program) -> Program:
    slots = {Q: gradient(program, K).slot, K: gradient(program, Q).slot}
    outputs = [replace(o, slot=slots.get(o.name, o.slot)) for o in program.outputs]
    body = program.functions["main"]
    results = tuple(output.slot for output in outputs)
    main = replace(body, results=results if body.results == tuple(o.slot for o in program.outputs) else body.results)
    return replace(program, outputs=tuple(outputs), functions={**program.functions, "main": main})


def parameter(name: str, edit: Callable[[Input], Input]) -> Callable[[Program], Program]:
    return lambda program: replace(program, inputs=tuple(edit(i) if i.name == name else i for i in program.inputs))


def output(kind: str, name: str, edit: Callable[[Output], Output]) -> Callable[[Program], Program]:
    def in_place(program: Program) -> Program:
        outputs = [edit(o) if (o.kind, o.name) == (kind, name) else o for o in program.outputs]
        return replace(program, outputs=tuple(outputs))

    return in_place


def sharded_over_another_axis(record: Input) -> Input:
    return replace(record, shards=tuple(replace(shard, axes=("dp",)) for shard in record.shards))


def sharded_along_another_dim(record: Input) -> Input:
    return replace(record, shards=tuple(replace(shard, dim=1 - shard.dim) for shard in record.shards))


def not_trained(program: Program) -> Program:
    """The gradient of a parameter is no result any more."""
    dropped = gradient(program, NORM_WEIGHT)
    place = function(program, "main")
    position = list(program.outputs).index(dropped)
    results = tuple(slot for n, slot in enumerate(place.function.results) if n != position)
    code = [freeing(c, dropped.slot) if dropped.slot in c.writes() else c for c in place.code]
    without = place.with_function(replace(place.function, results=results, code=tuple(code)))
    kept = tuple(o for o in program.outputs if o != dropped)
    frozen = parameter(NORM_WEIGHT, lambda record: replace(record, requires_grad=False))
    return frozen(replace(without, outputs=kept))


def backward_begins_at(offset: int) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        main = program.functions["main"]
        assert main.backward_at is not None
        moved = replace(main, backward_at=main.backward_at + offset)
        return replace(program, functions={**program.functions, "main": moved})

    return edit


def one_draw_for_both_layers(program: Program) -> Program:
    place, index = found(program, lambda c: c.op == "aten.scalar_tensor.default" and c.args == (1,), among="main")
    return place.replaced(index, with_argument(0, 0)(place.code[index]))


def is_reduction(reduce: str) -> Callable[[Instruction], bool]:
    return lambda c: is_start(c) and c.kwargs.get("reduce") == reduce


GPT_FAULTS: dict[str, FolderFault] = {
    "gradient all-reduced over another axis": FolderFault(GPT, in_program(reduced_over("tp"))),
    "gradient is the ranks' greatest, not their sum": FolderFault(GPT, in_program(greatest_gradient)),
    "gradient not reduced": FolderFault(GPT, in_program(gradient_not_reduced)),
    "tied weight gets the gradient of one use": FolderFault(GPT, in_program(tied_gradient_of_one_use)),
    "input of a layer freed before its last use": FolderFault(
        GPT, in_program(freed_before_its_last_use), Finder.LOADING
    ),
    "residual adds the branch to itself": FolderFault(GPT, in_program(residual_of_itself)),
    "second layer called with a weight of the first": FolderFault(GPT, in_program(weights_of_the_first_layer)),
    "q and k swapped in one call": FolderFault(GPT, in_program(weights_of_a_call_swapped)),
    "two gradients of a call in each other's place": FolderFault(GPT, in_program(results_of_a_call_swapped)),
    "loss's tangent taken as 1": FolderFault(GPT, in_program(tangent_taken_as_one)),
    "loss's tangent squared": FolderFault(GPT, in_program(tangent_squared)),
    "names of two parameters exchanged": FolderFault(GPT, in_program(inputs_renamed)),
    "names of two gradients exchanged": FolderFault(GPT, in_program(gradients_renamed)),
    "names of two parameters and of their gradients exchanged": FolderFault(GPT, in_program(both_renamed)),
    "the user's two inputs exchanged": FolderFault(GPT, in_program(inputs_of_the_user_exchanged), Finder.RUN_CHECK),
    "slots of two gradients exchanged": FolderFault(GPT, in_program(gradient_slots_exchanged)),
    "parameter sharded over another axis": FolderFault(GPT, in_program(parameter(Q, sharded_over_another_axis))),
    "parameter sharded along another dim": FolderFault(GPT, in_program(parameter(Q, sharded_along_another_dim))),
    "parameter of another dtype": FolderFault(
        GPT, in_program(parameter(Q, lambda record: replace(record, dtype="float32"))), Finder.RUN_CHECK
    ),
    "gradient stated in another dtype": FolderFault(
        GPT, in_program(output("gradient", Q, lambda record: replace(record, dtype="float32")))
    ),
    "a parameter is not trained": FolderFault(GPT, in_program(not_trained), Finder.RUN_CHECK),
    "backward begins one instruction early": FolderFault(GPT, in_program(backward_begins_at(-1)), Finder.LOADING),
    "backward begins one instruction late": FolderFault(GPT, in_program(backward_begins_at(1))),
    "both layers drop the same elements": FolderFault(GPT, in_program(one_draw_for_both_layers)),
    "dropout keeps another share": FolderFault(
        GPT, in_program(changed(named("rank.random"), with_keyword(below=3 << 28)))
    ),
    "data ranks drop the same rows": FolderFault(
        GPT, in_program(changed(named("rank.random"), with_keyword(axes=["", "", ""])))
    ),
    "tensor ranks drop other elements": FolderFault(
        GPT, in_program(changed(named("rank.random"), with_keyword(axes=["tp", "", ""])))
    ),
    "random numbers of another global shape": FolderFault(
        GPT, in_program(changed(named("rank.random"), with_keyword(size=[4, 6, 16])))
    ),
    "dropout scales by another factor, forward only": FolderFault(
        GPT, in_program(changed(named("aten.mul.Scalar"), with_argument(1, 1.25), among="layers_forward"))
    ),
    "dropout scales by another factor, backward only": FolderFault(
        GPT, in_program(changed(named("aten.mul.Scalar"), with_argument(1, 1.25), among="layers_backward"))
    ),
    "layer norm with another epsilon": FolderFault(
        GPT, in_program(changed(named("aten.native_layer_norm.default"), with_argument(4, 1e-6)))
    ),
    "causal mask left out of attention": FolderFault(
        GPT, in_program(changed(named("aten.scalar_tensor.default"), with_argument(0, 0.0), among="attention"))
    ),
    "attention said to see what its body hides": FolderFault(
        GPT, in_program(said_of("attention", causal=False)), Finder.VERIFY_FOLDER
    ),
    "gradient of attention said to have another scale": FolderFault(
        GPT, in_program(said_of("attention_backward", scale=1.0)), Finder.VERIFY_FOLDER
    ),
    "attention transposes other dims back": FolderFault(
        GPT, in_program(changed(named("aten.transpose.int"), with_argument(2, 3), 3, "layers_forward"))
    ),
    "offset of a vocabulary shard one short": FolderFault(
        GPT, in_program(changed(named("rank.offset"), with_keyword(chunk=6)))
    ),
    "row-parallel bias added by another rank": FolderFault(
        GPT,
        in_program(changed(named("aten.eq.Scalar"), with_argument(1, 1), among="layers_forward")),
        Finder.VERIFY_FOLDER,  # it changes no value, but a constant that is none of the module's
    ),
    "row-parallel bias added by no rank": FolderFault(
        GPT, in_program(changed(named("aten.eq.Scalar"), with_argument(1, 2), among="layers_forward"))
    ),
    "padded vocabulary takes part in the softmax": FolderFault(
        GPT, in_program(changed(named("rank.mask"), with_keyword(fill=0.0)))
    ),
    "padding counts as valid": FolderFault(GPT, in_program(changed(named("rank.mask"), with_keyword(extent=14)))),
    "greatest logit is the rank's own": FolderFault(
        GPT,
        in_program(changed(is_reduction("max"), with_keyword(axes=["dp"]))),
    ),
    "sum of exponentials over data ranks": FolderFault(
        GPT, in_program(changed(is_reduction("sum"), with_keyword(axes=["dp"]), 1, "main"))
    ),
    "another label is ignored": FolderFault(
        GPT, in_program(changed(named("aten.ne.Scalar"), with_argument(1, -1), among="main"))
    ),
    "first row of a shard is looked up elsewhere": FolderFault(
        GPT, in_program(changed(named("aten.ge.Scalar"), with_argument(1, 1), among="main"))
    ),
    "subtraction with its operands swapped": FolderFault(
        GPT, in_program(changed(named("aten.sub.Tensor"), swapped, 3, "main"))
    ),
    "embedding's gradient scaled by frequency": FolderFault(
        GPT, in_program(changed(named("aten.embedding_dense_backward.default"), with_argument(4, True)))
    ),
}
"""One program on a data and a tensor axis."""
