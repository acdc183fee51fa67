"""Faults of sealed programs of pipelines, of sequence parallelism, and of batch norms with buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction

from ..program_editing import freeing, keeping, renamed
from .finding import Finder
from .folder_editing import (
    calling,
    changed,
    exchanged,
    found,
    function,
    in_program,
    named,
    with_argument,
    with_keyword,
)
from .program_folder_faults import FolderFault, is_reduction
from .users_models import Case

PIPELINE, SEQUENCE, NORMS = Case("gpt", "pp"), Case("gpt", "sequence"), Case("norms", "dp")


def sends_exchanged(program: Program) -> Program:
    """A stage sends two activations in each other's place."""
    place = function(program, "main_0")
    sends = [i for i, c in enumerate(place.code) if c.op == "comm.send" and i]
    one, two = sends[:2]
    first, second = place.code[one].reads()[0], place.code[two].reads()[0]
    code = [*place.code]
    code[two] = freeing(renamed(code[two], second, first), first)
    code[two] = keeping(code[two], second)
    code[one], code[two] = keeping(code[one], first), replace(code[two], free=(first,))
    return place.with_code(code)


def waits_exchanged(program: Program) -> Program:
    """A stage takes two gradients that it received in each other's place."""
    place = function(program, "main_0")
    waits = [i for i, c in enumerate(place.code) if c.op == "comm.wait" and _is_received(place.code, c)][:2]
    one, two = waits
    first, second = place.code[one].reads()[0], place.code[two].reads()[0]
    code = [*place.code]
    code[one] = replace(renamed(code[one], first, second), free=(second,))
    code[two] = replace(renamed(code[two], second, first), free=(first,))
    return place.with_code(code)


def _is_received(code: tuple[Instruction, ...], wait: Instruction) -> bool:
    start = next(c for c in code if wait.reads()[0] in c.writes())
    return start.op == "comm.receive_start" and start.kwargs["size"] == [1, 6, 8]


def one_microbatch_twice(program: Program) -> Program:
    place, index = found(program, calling("forward_0"), 1)
    return place.replaced(index, with_keyword(microbatch=0)(place.code[index]))


def rows_of_the_first_microbatch(program: Program) -> Program:
    place, index = found(program, named("aten.slice.Tensor"), 1, "main_0")
    source, dim, *_ = place.code[index].args
    return place.replaced(index, replace(place.code[index], args=(source, dim, 0, 1)))


def first_microbatch_counted_twice(program: Program) -> Program:
    place, index = found(program, named("aten.add.Tensor"), 0, "main_0")
    first, _ = place.code[index].args
    return place.replaced(index, with_argument(1, first)(place.code[index]))


def sends_what_it_received(program: Program) -> Program:
    """The last stage sends back the activation in place of its gradient."""
    place, index = found(program, named("comm.send"), 0, "main_1")
    received = next(c.out[0] for c in place.code if c.op == "comm.wait" and _is_received(place.code, c))
    assert received is not None
    user = next(i for i, c in enumerate(place.code) if received in c.free)
    code = [*place.code]
    if user < index:
        code[user] = keeping(code[user], received)
    code[index] = replace(code[index], args=(Slot(received),))
    return place.with_code(code)


def stages_in_reverse(program: Program) -> Program:
    assert program.pipeline is not None
    return replace(program, pipeline=replace(program.pipeline, entries=program.pipeline.entries[::-1]))


def microbatches_stated(count: int) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        assert program.pipeline is not None
        return replace(program, pipeline=replace(program.pipeline, microbatches=count))

    return edit


def separate_microbatches(program: Program) -> Program:
    assert program.pipeline is not None
    return replace(program, pipeline=replace(program.pipeline, separate_microbatches=True))


def mean_counts_one_microbatch(program: Program) -> Program:
    place, index = found(program, named("aten.add.Tensor"), 0, "main_1")
    first, second = place.code[index].args
    assert isinstance(second, Slot)
    alias = Instruction("aten.alias.default", (first,), {}, place.code[index].out, place.code[index].free)
    return place.replaced(index, alias)


PIPELINE_FAULTS: dict[str, FolderFault] = {
    "two sends of a stage exchanged": FolderFault(PIPELINE, in_program(sends_exchanged)),
    "two received gradients exchanged": FolderFault(PIPELINE, in_program(waits_exchanged)),
    "a message goes to its sender": FolderFault(
        PIPELINE, in_program(changed(named("comm.send"), with_keyword(peer=0), 1, "main_0"))
    ),
    "a stage receives from itself": FolderFault(
        PIPELINE, in_program(changed(named("comm.receive_start"), with_keyword(peer=1), 1, "main_1"))
    ),
    "a message along the data axis": FolderFault(
        PIPELINE, in_program(changed(named("comm.send"), with_keyword(axis="dp"), 1, "main_0"))
    ),
    "a message received in another dtype": FolderFault(
        PIPELINE, in_program(changed(named("comm.receive_start"), with_keyword(dtype=torch.float32), 1, "main_1"))
    ),
    "second microbatch draws as the first": FolderFault(PIPELINE, in_program(one_microbatch_twice)),
    "second microbatch reads the first one's rows": FolderFault(PIPELINE, in_program(rows_of_the_first_microbatch)),
    "gradient of the first microbatch added twice": FolderFault(PIPELINE, in_program(first_microbatch_counted_twice)),
    "last stage sends back its activation": FolderFault(PIPELINE, in_program(sends_what_it_received)),
    "stages in reverse": FolderFault(PIPELINE, in_program(stages_in_reverse)),
    "one microbatch stated for two": FolderFault(PIPELINE, in_program(microbatches_stated(1))),
    "step stated as a mean of separate microbatches": FolderFault(
        PIPELINE, in_program(separate_microbatches), Finder.RUN_CHECK
    ),
    "loss divided by the count of one microbatch": FolderFault(PIPELINE, in_program(mean_counts_one_microbatch)),
}
"""Two stages on a data axis, two microbatches."""


def is_gather(instruction: Instruction) -> bool:
    return instruction.op == "comm.all_gather_start"


def buffers_exchanged(program: Program) -> Program:
    names = exchanged({"norm.running_mean": "norm.running_var"})
    return replace(program, outputs=tuple(names(o) if o.kind == "buffer" else o for o in program.outputs))


def buffer_as_it_was(program: Program) -> Program:
    """The new running mean is the old one."""
    place = function(program, "main")
    new = next(o.slot for o in program.outputs if o.name == "norm.running_mean")
    index = next(i for i, c in enumerate(place.code) if new in c.writes())
    old = next(i.slot for i in program.inputs if i.name == "norm.running_mean")
    code = [keeping(c, old) for c in place.code]
    code[index] = Instruction("aten.alias.default", (Slot(old),), {}, (new,), place.code[index].free)
    return place.with_code(code)


OTHER_FAULTS: dict[str, FolderFault] = {
    "activations gathered along another dim": FolderFault(
        SEQUENCE, in_program(changed(is_gather, with_keyword(dim=2)))
    ),
    "gradients scattered along another dim": FolderFault(
        SEQUENCE, in_program(changed(named("comm.reduce_scatter_start"), with_keyword(dim=2)))
    ),
    "a scatter takes the greatest": FolderFault(
        SEQUENCE, in_program(changed(named("comm.reduce_scatter_start"), with_keyword(reduce="max")))
    ),
    "new running mean and variance exchanged": FolderFault(NORMS, in_program(buffers_exchanged)),
    "running mean never changes": FolderFault(NORMS, in_program(buffer_as_it_was)),
    "running mean with another momentum": FolderFault(
        NORMS, in_program(changed(lambda c: c.op == "aten.mul.Scalar" and c.args[1] == 0.1, with_argument(1, 0.01)))
    ),
    "variance not corrected for its sample": FolderFault(
        NORMS,
        in_program(changed(lambda c: c.op == "aten.mul.Scalar" and c.args[1] == 8 / 7, with_argument(1, 1.0))),
    ),
    "batches counted by two": FolderFault(
        NORMS, in_program(changed(lambda c: c.op == "aten.add.Scalar" and c.args[1] == 1, with_argument(1, 2)))
    ),
    "mean over the rank's rows": FolderFault(
        NORMS, in_program(changed(lambda c: c.op == "aten.div.Scalar" and c.args[1] == 8.0, with_argument(1, 4.0)))
    ),
    "gradient of a rank's other rows": FolderFault(
        NORMS, in_program(changed(named("rank.shard"), with_keyword(chunk=2))), Finder.VERIFY_FOLDER
    ),
    "a sum forgets its weight": FolderFault(
        NORMS, in_program(changed(lambda c: "alpha" in c.kwargs, with_keyword(alpha=1)))
    ),
    "running variance reduced as a maximum": FolderFault(
        NORMS, in_program(changed(is_reduction("sum"), with_keyword(reduce="max"), 1))
    ),
}
"""Sequence parallelism, and batch norms with buffers."""
