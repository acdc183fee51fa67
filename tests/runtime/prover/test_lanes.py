"""Lanes: what one lane uses, no other may free, overwrite or reorder. Every fault is named by two source lines."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import networkx as nx
import pytest
from stretto.backends.program.frees import with_frees
from stretto.runtime.program.mesh import RankMesh
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Function, Instruction
from stretto.runtime.prover import Backend, RankClass, Verdict, prove, prove_ranks

from ...subsets import only
from .. import lane_module
from ..rotated_module import lowered
from .programs import PAIR, SQUARE, S, program, step

CODE = lowered(lane_module.module())
Edit = Callable[[list[Instruction]], None]


def edited(change: Edit) -> Program:
    """The program of the module, with other instructions, which says nothing of types."""
    code = list(CODE.functions["main"].code)
    change(code)
    main = replace(CODE.functions["main"], code=tuple(code), slots=40, types=(), views=())
    return replace(CODE, functions={"main": main})


def index_of(op: str, lane: str = "", number: int = 0) -> int:
    """The index of an instruction by its op and lane."""
    return [i for i, each in enumerate(CODE.functions["main"].code) if (each.op, each.lane) == (op, lane)][number]


EXP, LAST = index_of("aten.exp.default"), index_of("aten.exp.default", number=1)
NEG, VIEW, MM, TANH = (
    index_of(f"aten.{op}", "aux") for op in ("neg.default", "view.default", "mm.default", "tanh.default")
)
GATHER, REDUCE = index_of("comm.all_gather_start", "comm.dp"), index_of("comm.all_reduce_start", "comm.tp")
WAIT_W, WAIT_S = index_of("comm.wait", "aux"), index_of("comm.wait")
ADD, JOIN = index_of("aten.add.Tensor"), index_of("aten.add.Tensor", number=1)
SLOT = {name: CODE.functions["main"].code[i].out[0] for name, i in {
    "h": 0, "g": GATHER, "s": REDUCE, "e": EXP, "n": NEG, "v": VIEW, "w": WAIT_W, "m": MM, "t": TANH, "r": WAIT_S,
    "a": ADD, "b": JOIN,
}.items()}  # fmt: skip


def freed_at(name: str, index: int) -> Edit:
    """Free a slot at another instruction."""

    def change(code: list[Instruction]) -> None:
        slot = SLOT[name]
        assert slot is not None
        for i, each in enumerate(code):
            code[i] = replace(each, free=tuple(s for s in each.free if s != slot))
        code[index] = replace(code[index], free=(*code[index].free, slot))

    return change


def on_lane(index: int, lane: str) -> Edit:
    """Move an instruction to another lane."""

    def change(code: list[Instruction]) -> None:
        code[index] = replace(code[index], lane=lane)

    return change


def written(name: str, index: int) -> Edit:
    """An instruction writes its result to a slot that is set; whoever read its own slot reads that one."""

    def change(code: list[Instruction]) -> None:
        old, new = code[index].out[0], SLOT[name]
        assert old is not None and new is not None
        for i, each in enumerate(code):
            free = tuple(s for s in each.free if s != new or i < index)
            args = tuple(S(new) if arg == S(old) and i > index else arg for arg in each.args)
            code[i] = replace(each, free=tuple(new if s == old else s for s in free), args=args)
        code[index] = replace(code[index], out=(new,))

    return change


def reading(index: int, *names: str) -> Edit:
    """An instruction reads other slots."""

    def change(code: list[Instruction]) -> None:
        slots = [SLOT[name] for name in names]
        code[index] = replace(code[index], args=tuple(S(slot) for slot in slots if slot is not None))

    return change


def without(index: int) -> Edit:
    """One instruction is missing."""
    return lambda code: code.__delitem__(index)


def inserted(index: int, *new: Instruction) -> Edit:
    def change(code: list[Instruction]) -> None:
        code[index:index] = new

    return change


def both(*edits: Edit) -> Edit:
    def change(code: list[Instruction]) -> None:
        for edit in edits:
            edit(code)

    return change


def another_sum(lane: str, name: str, index: int) -> Edit:
    """A second sum over tp, on a lane, waited for at once."""
    slot = SLOT[name]
    assert slot is not None
    start = step("comm.all_reduce_start", S(slot), axes=["tp"], reduce="sum", out=[30], loc=0)
    return inserted(index, replace(start, lane=lane), step("comm.wait", S(30), out=[31], free=[30, 31], loc=0))


def unwaited(code: list[Instruction]) -> None:
    """The product reads the future of its weight."""
    free = tuple(slot for slot in code[MM].free if slot != SLOT["w"])
    code[MM] = replace(code[MM], args=(code[MM].args[0], S(SLOT["g"] or 0)), free=free)
    del code[WAIT_W]


def waited_twice(code: list[Instruction]) -> None:
    """Another lane waits for the weight, too."""
    code[WAIT_W] = replace(code[WAIT_W], free=())
    code.insert(MM, step("comm.wait", S(SLOT["g"] or 0), out=[30], free=[SLOT["g"] or 0], loc=0))


def unread(code: list[Instruction]) -> None:
    """The wait for the sum is another op, which frees the future."""
    code[WAIT_S] = replace(code[WAIT_S], op="aten.exp.default", args=(S(SLOT["e"] or 0),), free=(SLOT["s"] or 0,))


FAULTS: Mapping[str, tuple[Edit, str]] = {
    "a tensor is freed by its last reader, while the other lane reads it": (freed_at("e", ADD), "E0729"),
    "a tensor is freed while a third lane reads it": (both(freed_at("e", ADD), on_lane(NEG, "third")), "E0729"),
    "a view is freed last, on a lane that is not behind": (both(freed_at("n", VIEW), freed_at("v", WAIT_S)), "E0729"),
    "a view's tensor is freed last, on a lane that is not behind": (freed_at("n", ADD), "E0729"),
    "a product is freed on the compute lane before the lanes meet": (freed_at("m", WAIT_S), "E0729"),
    "a gathered weight is freed on the compute lane": (freed_at("w", ADD), "E0729"),
    "a result of the other lane is freed before it is read": (freed_at("t", ADD), "E0702"),
    "an operand of a product is freed by a sum of compute": (both(freed_at("n", MM), freed_at("v", ADD)), "E0729"),
    "a slot is written on compute while the other lane reads it": (written("e", WAIT_S), "E0729"),
    "a result of the other lane is written over before the lanes meet": (written("t", ADD), "E0729"),
    "a slot of the other lane is kept, and written on compute": (
        both(freed_at("n", JOIN), written("n", ADD)), "E0729",
    ),
    "a product is kept, and written on compute": (both(freed_at("m", JOIN), written("m", WAIT_S)), "E0729"),
    "what a collective reads is written by another lane": (both(freed_at("h", WAIT_S), written("h", EXP)), "E0709"),
    "the lanes never meet, as the sum reads another tensor": (reading(JOIN, "a", "a"), "E0729"),
    "a future is read by another lane instead of its wait": (unwaited, "E0708"),
    "a future is freed by another lane, and never waited on": (unread, "E0705"),
    "a future is waited on twice, on two lanes": (waited_twice, "E0707"),
    "a future is waited on before its start": (lambda code: code.insert(0, code.pop(WAIT_S)), "E0701"),
    "two sums of a group are on two lanes": (another_sum("comm.other", "e", NEG), "E0730"),
    "two sums of a group are on two lanes, the second behind other work": (another_sum("comm.other", "e", MM), "E0730"),
    "a sum of a group is on the lane of another group": (another_sum("comm.dp", "e", VIEW), "E0730"),
    "a sum of a group is on the default lane": (another_sum("", "e", TANH), "E0730"),
    "of two sums of a group, the first moves to a lane of its own": (
        both(another_sum("comm.tp", "e", NEG), on_lane(REDUCE, "comm.other")), "E0730",
    ),
}  # fmt: skip


def test_at_least_20_faults_are_planted() -> None:
    mutants = [edited(change).functions["main"].code for change, _ in FAULTS.values()]
    assert len({repr(mutant) for mutant in mutants}) == len(FAULTS) >= 20


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_between_lanes_is_found_and_named_by_two_source_lines(name: str) -> None:
    change, code = FAULTS[name]
    assert_named(prove(edited(change)), code)


def assert_named(verdict: Verdict, code: str) -> None:
    """A counterexample that names two instructions and their lines."""
    counterexample = verdict.counterexample
    assert counterexample is not None, verdict.render()
    assert counterexample.code == code, verdict.render()
    lines = [place.location.line for place in counterexample.places if place.location is not None]
    assert len(lines) >= 2 and all(lines), verdict.render()


def swapped(first: int, second: int) -> Program:
    """The program whose two starts stand in the other order."""

    def change(code: list[Instruction]) -> None:
        code[first], code[second] = code[second], code[first]

    return edited(change)


def test_starts_that_ranks_swap_deadlock_under_one_launch_order_and_not_under_one_for_each_group() -> None:
    """Ranks 0 and 3 start the gather over dp first, ranks 1 and 2 the sum over tp: a cycle of four."""
    classes = [RankClass(CODE, (0, 3)), RankClass(swapped(GATHER, REDUCE), (1, 2))]
    verdict = prove_ranks(classes)
    assert_named(verdict, "E0712")
    assert "safe under gloo only" in verdict.render()
    under_gloo = prove_ranks(classes, backend=Backend.GLOO)
    assert under_gloo.safe and under_gloo.only_under_gloo
    assert under_gloo.render().startswith("safe under gloo only: 4 ranks (2 distinct)")
    assert not prove(CODE, backend=Backend.GLOO).only_under_gloo


def test_a_cycle_of_waits_is_a_deadlock_under_gloo_too() -> None:
    """Ranks 0 and 3 wait for the gather before they start the sum, ranks 1 and 2 the other way round."""
    dp_first = edited(lambda code: code.insert(GATHER + 1, code.pop(WAIT_W)))
    tp_first = edited(lambda code: code.insert(GATHER, code.pop(WAIT_S)) or code.insert(GATHER, code.pop(REDUCE + 1)))
    verdict = prove_ranks([RankClass(dp_first, (0, 3)), RankClass(tp_first, (1, 2))], backend=Backend.GLOO)
    assert_named(verdict, "E0712")
    assert "gloo only" not in verdict.render()


OPS = ("aten.neg.default", "aten.exp.default", "aten.view.default", "aten.add.Tensor", "start", "wait")
LANES = ("", "a", "b")


def made(seed: int) -> list[Instruction]:
    """Random instructions on three lanes, without frees; every future is waited on, and the last one reads all."""
    draw = random.Random(seed)
    tensors, futures, code = [0], [], list[Instruction]()
    for slot in range(1, 10):
        op, lane = draw.choice(OPS), draw.choice(LANES)
        operand = S(draw.choice(tensors))
        if op == "wait" and futures:
            each = step("comm.wait", S(futures.pop(0)), out=[slot], loc=0)
        elif op in ("start", "wait"):
            each = step("comm.all_reduce_start", operand, axes=["tp"], reduce="sum", out=[slot], loc=0)
            lane = "comm.tp"
        else:
            more = {"aten.view.default": ([4, 4],), "aten.add.Tensor": (S(draw.choice(tensors)),)}.get(op, ())
            each = step(op, operand, *more, out=[slot], loc=0)
        code.append(replace(each, lane=lane))
        (futures if each.op == "comm.all_reduce_start" else tensors).append(slot)
    code += [step("comm.wait", S(future), out=[20 + n], loc=0) for n, future in enumerate(futures)]
    last = draw.sample(tensors, 2)
    return [*code, step("aten.add.Tensor", S(last[0]), S(last[1]), out=[30], loc=0)]


def is_safe(code: Sequence[Instruction]) -> bool:
    """Whether memory is given back only behind all that use it, by reachability in the graph of all orders."""
    order: nx.DiGraph[int] = nx.DiGraph()
    order.add_nodes_from(range(len(code)))
    on_lane: dict[str, int] = {}
    makers: dict[int, int] = {}
    memory: dict[int, set[int]] = {0: {0}}
    uses: dict[int, set[int]] = {0: set()}
    for index, each in enumerate(code):
        lane = each.lane or "compute"
        order.add_edges_from([(on_lane[lane], index)] if lane in on_lane else [])
        order.add_edges_from((makers[slot], index) for slot in each.reads() if slot in makers)
        on_lane[lane] = index
        read = set().union(*(memory[slot] for slot in each.reads()))
        [slot] = each.out
        makers[slot] = index
        is_view, is_wait = each.op == "aten.view.default", each.op == "comm.wait"
        memory[slot] = read if is_view or is_wait else ({slot} | read if "start" in each.op else {slot})
        if is_wait:
            memory[slot] = {max(read)}
        for each_memory in read | memory[slot]:
            uses.setdefault(each_memory, set()).add(index)
    reached = nx.transitive_closure(order, reflexive=True)
    live = {0}
    for index, each in enumerate(code):
        live |= {*each.writes()}
        before = set().union(*(memory[slot] for slot in live))
        live -= {*each.free}
        gone = before - set().union(*(memory[slot] for slot in live), {0})
        if any(use <= index and not reached.has_edge(use, index) for each_memory in gone for use in uses[each_memory]):
            return False
    return True


@pytest.mark.parametrize("seed", only(range(10), range(60)))
def test_frees_of_the_lowering_are_safe_and_others_are_judged_as_by_brute_force(seed: int) -> None:
    code = with_frees(made(seed), (0,), (30,), RankMesh(PAIR))
    assert is_safe(code) and prove(program(*code, result=30)).safe
    draw = random.Random(seed)
    freed = [(index, slot) for index, each in enumerate(code) for slot in each.free]
    verdicts = set()
    for index, slot in freed:
        uses = [i for i, each in enumerate(code) if slot in (*each.reads(), *each.writes())]
        for earlier in range(max(uses), index):
            mutant = list(code)
            mutant[index] = replace(code[index], free=tuple(s for s in code[index].free if s != slot))
            mutant[earlier] = replace(mutant[earlier], free=(*mutant[earlier].free, slot))
            verdict = prove(program(*mutant, result=30))
            if verdict.counterexample is None or verdict.counterexample.code != "E0709":
                assert verdict.safe == is_safe(mutant), verdict.render()
                verdicts.add(verdict.safe)
    moved = draw.randrange(len(code))
    lane = draw.choice(LANES)
    if code[moved].op != "comm.all_reduce_start":
        mutant = [replace(each, lane=lane) if i == moved else each for i, each in enumerate(code)]
        assert prove(program(*mutant, result=30)).safe == is_safe(mutant)


def test_what_a_callee_leaves_behind_must_be_ordered_when_it_returns() -> None:
    """The callee's own tensor is used on a lane that nothing joins; behind a reader of its result it is safe."""
    aux = replace(step("aten.neg.default", S(1), out=[2], loc=1), lane="aux")
    own = step("aten.exp.default", S(0), out=[1], loc=0)
    call = step("call", "body", [S(0)], out=[1], loc=2)
    left = {"body": Function(3, (0,), (2,), (own, aux))}
    verdict = prove(program(call, step("aten.exp.default", S(1), out=[2], loc=2), result=2, functions=left))
    assert verdict.counterexample is not None and verdict.counterexample.code == "E0729"
    assert 'left at the end of "body"' in verdict.render()
    freed = {"body": replace(left["body"], code=(own, replace(aux, free=(1,))))}
    assert prove(program(call, step("aten.exp.default", S(1), out=[2], loc=2), result=2, functions=freed)).safe


def test_a_call_orders_lanes_by_what_it_returns() -> None:
    """The operand is freed in the caller behind a reader of the callee's result, or too early."""
    aux = replace(step("aten.neg.default", S(0), out=[1], loc=1), lane="aux")
    body = {"body": Function(2, (0,), (1,), (aux,))}
    code = [
        step("aten.exp.default", S(0), out=[1], loc=0),
        step("call", "body", [S(1)], out=[2], loc=0),
        step("aten.exp.default", S(0), out=[3], loc=1),
        step("aten.add.Tensor", S(2), S(3), out=[4], loc=2),
    ]
    safe = [*code[:3], replace(code[3], free=(1, 2, 3))]
    early = [*code[:2], replace(code[2], free=(1,)), replace(code[3], free=(2, 3))]
    assert prove(program(*safe, result=4, functions=body)).safe
    assert_named(prove(program(*early, result=4, functions=body)), "E0729")


def test_lanes_of_one_rank_say_nothing_where_no_instruction_names_one() -> None:
    verdict = prove(program(step("aten.exp.default", S(0), out=[1]), result=1, mesh=SQUARE))
    assert verdict.safe and verdict.lanes == () and "lanes" not in verdict.render()
    assert prove(CODE).lanes == ("aux", "comm.dp", "comm.tp")
