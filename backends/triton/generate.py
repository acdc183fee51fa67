"""Write a fused region as one Triton kernel, in readable source.

Code is generated from outputs back to loads: for each output at the kernel's index, then for the operands at the
indices that follow. So views cost no memory, and a value that is needed twice at one index is computed once. Without
reductions the kernel runs over one flat `index`. With row reductions it runs over tiles of rows and all columns: in
one block, or in one loop over blocks of columns for each reduction and one for the outputs.

Every load is cast to float32 at once (float64 stays): between loads and stores nothing is rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...runtime.program.arguments import DTYPES
from .expansions import expanded
from .indexing import Index, Term, base_term, flat, linear, regroup, varies
from .joins import JOINS
from .pointwise import helpers_of
from .reductions import REDUCTIONS, Reduction, reduction_of
from .region import Declined, Region
from .scalars import pointwise_text
from .values import NO_GUARD, TAKEN, Guard, compute_type, converted
from .views import source_index

MOST_COLUMNS_AT_ONCE = 8192
"""Rows with more columns are read in a loop: a block of more would not stay in registers (elements)."""

MOST_INSTRUCTIONS = 256
"""A kernel of more would need more registers than there are."""


@dataclass(frozen=True)
class Kernel:
    """The source of a kernel, and what its launch needs to know."""

    name: str
    source: str
    inputs: tuple[int, ...]
    """The region's slots whose pointers it takes, in order, before those of the outputs."""
    outputs: tuple[int, ...]
    rows: int
    columns: int
    """Of a kernel without reductions 1 column, and a row for each element."""
    has_rows: bool
    """Whether it reduces rows."""
    loops: bool
    along_first: bool = False
    """Whether the elements of a row lie apart: it reduces the first dims."""


@dataclass
class Scope:
    """The lines of a kernel's body, or of one loop over columns; and the names of the values computed there."""

    lines: list[str] = field(default_factory=list)
    names: dict[object, str] = field(default_factory=dict)


def generate(region: Region, name: str) -> Kernel:
    """The kernel of a region. Raises Declined where it cannot be one."""
    if not region.outputs:
        raise Declined("it returns nothing")
    return Writer(expanded(region), name).kernel()


class Writer:
    """Writes one kernel."""

    def __init__(self, region: Region, name: str) -> None:
        self.region = region
        self.name = name
        reductions = [reduction_of(region, i) for i in region.code if i.op.split(".")[1] in REDUCTIONS]
        self.has_rows = bool(reductions)
        self.rows, self.columns = _space(region, reductions)
        self.along_first = any(reduction.along_first for reduction in reductions)
        self.loops = self.along_first or (self.has_rows and self.columns > MOST_COLUMNS_AT_ONCE)
        self.body = Scope()
        self.inner = Scope() if self.loops else self.body
        self.loaded: list[int] = []
        self._taken: set[str] = set()

    def kernel(self) -> Kernel:
        """The kernel."""
        for type_ in self.region.types.values():
            if DTYPES[type_.dtype] not in TAKEN:
                raise Declined(f"it computes with {type_.dtype}")
        if len(self.region.code) > MOST_INSTRUCTIONS:
            raise Declined(f"it has {len(self.region.code)} instructions, more than {MOST_INSTRUCTIONS}")
        for slot in self.region.outputs:
            if slot in self.region.inputs:
                raise Declined("it returns one of its arguments")
        for position, slot in enumerate(self.region.outputs):
            self._store(slot, f"out{position}_ptr")
        if self.loops and self.inner.lines:
            self.body.lines += self._loop(self.inner.lines)
        body = [*self._prologue(), *self.body.lines]
        inputs = tuple(slot for slot in self.region.inputs if slot in self.loaded)
        source = self._source(inputs, body)
        return Kernel(
            self.name, source, inputs, self.region.outputs, self.rows, self.columns, self.has_rows, self.loops,
            self.along_first,
        )  # fmt: skip

    def value(self, slot: int, index: Index, guard: Guard = NO_GUARD) -> str:
        """The name of a value at an index, computed where it is not yet."""
        terms = flat(index)
        depends = varies(terms) | guard.varies
        key = (slot, terms, guard.name)
        known = self.inner.names.get(key) or self.body.names.get(key)
        if known is not None:
            return known
        maker = self.region.makers.get(slot)
        if maker is None:
            name = self._load(slot, index, guard)
        elif (source := source_index(self.region, maker, index)) is not None:
            operand = maker.args[0].index  # type: ignore[attr-defined]
            name = self.cast(self.value(operand, source, guard), operand, slot)
        elif maker.op.split(".")[1] in REDUCTIONS:
            name = self._reduce(reduction_of(self.region, maker), index)
            depends = frozenset({"row"})
        elif (join := JOINS.get(maker.op.split(".")[1])) is not None:
            text = join(self, maker, index, guard)
            name = self.line(slot, text, depends)
        else:
            name = self.line(slot, pointwise_text(self, maker, index, guard), depends)
        self.scope(depends).names[key] = name
        return name

    def scope(self, depends: frozenset[str]) -> Scope:
        """Where a value that depends on these indices is computed."""
        return self.inner if "column" in depends else self.body

    def line(self, slot: int, text: str, depends: frozenset[str]) -> str:
        """Append the computation of a slot's value; returns its name."""
        maker = self.region.makers[slot]
        name = self.fresh(f"{maker.op.split('.')[1].strip('_')}_{slot}")
        self.scope(depends).lines.append(f"{name} = {text}  # {maker.op} {self.region.types[slot]}")
        return name

    def condition(self, text: str, depends: frozenset[str]) -> str:
        """The name of a mask, computed where it is not yet."""
        scope = self.scope(depends)
        if text not in scope.names:
            scope.names[text] = self.fresh("inside")
            scope.lines.append(f"{scope.names[text]} = {text}")
        return scope.names[text]

    def cast(self, name: str, source: int, target: int) -> str:
        """A value of a slot's dtype in the dtype in which another slot's is computed."""
        return converted(name, self.region.dtype(source), self.region.dtype(target))

    def fresh(self, stem: str) -> str:
        """A name that no other value has."""
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def _load(self, slot: int, index: Index, guard: Guard) -> str:
        if slot not in self.region.inputs:
            raise Declined(f"nothing in it makes slot {slot}")
        if slot not in self.loaded:
            self.loaded.append(slot)
        position = self.region.inputs.index(slot)
        terms = flat(index)
        depends = varies(terms)
        masks = self._masks(terms) + ([guard.name] if guard.name else [])
        options = f", mask={' & '.join(masks)}, other=0" if masks else ""
        dtype = self.region.dtype(slot)
        cast = f".to({compute_type(dtype)})" if dtype.is_floating_point and dtype.itemsize < 4 else ""
        name = self.fresh(f"in{position}")
        address = " + ".join([linear(terms), *(f"{base} * 0" for base in sorted(guard.varies - depends))])
        text = f"{name} = tl.load(in{position}_ptr + {address}{options}){cast}  # {self.region.types[slot]}"
        self.scope(depends | guard.varies).lines.append(text)
        return name

    def _masks(self, terms: Sequence[Term]) -> list[str]:
        depends = varies(terms)
        return [mask for base, mask in (("row", "row_mask"), ("column", "column_mask")) if base in depends] + [
            _flat_mask(base) for base in sorted(depends) if base.startswith("index")
        ]

    def _store(self, slot: int, pointer: str) -> None:
        numel = self.region.numel(slot)
        if not self.has_rows:
            terms = [base_term("index", numel)]
            if numel != self.rows:
                terms = [base_term(f"index_{numel}", numel)]
                if f"index_{numel}" not in self._taken:
                    self._taken.add(f"index_{numel}")
                    self.body.lines += [f"index_{numel} = index", f"{_flat_mask(f'index_{numel}')} = index < {numel}"]
        elif numel == self.rows * self.columns:
            terms = [base_term("row", self.rows), base_term("column", self.columns)]
            terms = terms[::-1] if self.along_first else terms
        elif numel == self.rows:
            terms = [base_term("row", self.rows)]
        else:
            raise Declined(f"it returns {numel} elements from {self.rows} rows of {self.columns}")
        index = regroup(terms, self.region.shape(slot))
        value = self.value(slot, index)
        masks = [_flat_mask(term.base) for term in terms]
        inner = self.rows if self.along_first else self.columns
        place = " + ".join([f"{terms[0].base} * {inner}", terms[1].base] if len(terms) > 1 else [terms[0].base])
        depends = frozenset(term.base for term in terms)
        comment = f"# {self.region.types[slot]}"
        self.scope(depends).lines.append(f"tl.store({pointer} + {place}, {value}, mask={' & '.join(masks)})  {comment}")

    def _reduce(self, reduction: Reduction, index: Index) -> str:
        """The reduction of the current row: it may only be used at the kernel's own row."""
        if flat(index) != flat(regroup([base_term("row", self.rows)], (self.rows,))):
            raise Declined(f"{reduction.instruction.op} is read at other rows than it is computed for")
        key = ("reduced", reduction.slot)
        if key in self.body.names:
            return self.body.names[key]
        operand_index = reduction.operand_index(index, base_term("column", self.columns))
        name = self.fresh(f"{reduction.kind}_{reduction.slot}")
        comment = f"# {reduction.instruction.op} {self.region.types[reduction.slot]}"
        if self.loops:
            enclosing, self.inner = self.inner, Scope()
            lines = self.inner.lines
            accumulator = f"{name}_parts"
            value = self._reduced_value(reduction, operand_index)
            lines.append(f"{accumulator} = {reduction.combined(accumulator, value)}")
            self.inner = enclosing
            start = f"{accumulator} = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], {reduction.identity}, {reduction.type})"
            self.body.lines += [start, *self._loop(lines)]
            value = accumulator
        else:
            value = self._reduced_value(reduction, operand_index)
        self.body.lines.append(f"{name} = {reduction.of_block(value)}  {comment}")
        self.body.names[key] = name
        return name

    def _reduced_value(self, reduction: Reduction, index: Index) -> str:
        value = self.cast_to(self.value(reduction.operand, index), reduction.operand, reduction.dtype)
        return f"tl.where(row_mask & column_mask, {value}, {reduction.identity})"

    def cast_to(self, name: str, source: int, dtype: torch.dtype) -> str:
        """A value of a slot's dtype, for computation in another dtype."""
        return converted(name, self.region.dtype(source), dtype)

    def _loop(self, lines: Sequence[str]) -> list[str]:
        head = [
            f"for start in range(0, {self.columns}, BLOCK_COLUMNS):",
            "    column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]",
            f"    column_mask = column < {self.columns}",
        ]
        return [*head, *(f"    {line}" for line in lines)]

    def _prologue(self) -> list[str]:
        wide = any(self.region.numel(slot) >= 2**31 for slot in self.region.types)
        program = "tl.program_id(0)" + (".to(tl.int64)" if wide else "")
        if not self.has_rows:
            return [f"index = {program} * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)", f"index_mask = index < {self.rows}"]
        rows = [
            f"row = ({program} * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]",
            f"row_mask = row < {self.rows}",
        ]
        columns = ["column = tl.arange(0, BLOCK_COLUMNS)[None, :]", f"column_mask = column < {self.columns}"]
        return rows if self.loops else rows + columns

    def _source(self, inputs: Sequence[int], body: Sequence[str]) -> str:
        pointers = [f"in{self.region.inputs.index(slot)}_ptr" for slot in inputs]
        pointers += [f"out{position}_ptr" for position in range(len(self.region.outputs))]
        blocks = ["BLOCK_ROWS: tl.constexpr"] + (["BLOCK_COLUMNS: tl.constexpr"] if self.has_rows else [])
        head = ["import triton", "import triton.language as tl", ""]
        helpers = [line for helper in helpers_of(body) for line in ["", *helper.splitlines(), ""]]
        signature = f"def {self.name}({', '.join([*pointers, *blocks])}):"
        return "\n".join([*head, *helpers, "", "@triton.jit", signature, *(f"    {line}" for line in body), ""])


def _space(region: Region, reductions: Sequence[Reduction]) -> tuple[int, int]:
    """Rows and columns of the iteration space."""
    if not reductions:
        return max(region.numel(slot) for slot in region.outputs), 1
    spaces = {(reduction.rows, reduction.columns) for reduction in reductions}
    if len(spaces) > 1:
        listed = " and ".join(f"{rows} rows of {columns}" for rows, columns in sorted(spaces))
        raise Declined(f"its reductions run over {listed}")
    if len({reduction.along_first for reduction in reductions}) > 1:
        raise Declined("it reduces the first dims and the last ones")
    return spaces.pop()


def _flat_mask(base: str) -> str:
    return f"{base}_mask"
