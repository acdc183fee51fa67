"""What a message is made of, by the data flow of the module: the prover finds the same in the program, or refuses it.

The source of a value is a short text. An argument, a result of a call (with its microbatch) and a received message have
names. An operation on one value, such as a cast, keeps its source; one on several hashes theirs in order. Sizes are in
no source, so that programs for other sizes have the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...ir.bindings import Operation, Value
from ...ir.collectives import RECEIVE_START
from ...ir.module import Record, callee
from ...ir.operations import flatten, read, results_of
from ...ir.pipelined_module import microbatch_of
from ...runtime.program.ops import source_of_call, source_of_several


def argument_sources(arguments: Sequence[Value], records: Sequence[Record]) -> dict[Value, str]:
    """The sources of a function's arguments: an entry's have records with their names."""
    names = [
        f"{record['kind']} {record['name']}" if "kind" in record else f"argument {index}"
        for index, record in enumerate(records)
    ]
    return dict(zip(arguments, names, strict=True))


def result_sources(op: Operation, sources: Mapping[Value, str]) -> dict[Value, str]:
    """The sources of an operation's results."""
    name, results = callee(op), flatten(results_of(op))
    if name is not None:
        return {value: source_of_call(name, index, microbatch_of(op)) for index, value in enumerate(results)}
    call = read(op)
    assert call is not None, "it was lowered"
    if call.name == RECEIVE_START:
        return dict.fromkeys(results, str(call.args[4]) if len(call.args) > 4 else "a message")
    source = source_of_several([sources[value] for value in call.values()])
    if len(results) == 1:
        return {results[0]: source}
    return {value: f"{source}#{index}" for index, value in enumerate(results)}
