"""Floating-point operations and traffic of single operations, against their definitions."""

from stretto.costs.compute import FLOPS_PER_BYTE, bytes_of, flops, op_time, traffic
from stretto.ir.bindings import Operation
from stretto.ir.module import Module, operations
from stretto.ir.operations import read

_PRODUCT = """
func.func @main(%x: tensor<{m}x{k}xf32>, %w: tensor<{k}x{n}xf32>) -> tensor<{m}x{n}xf32> {{
  %0 = "aten.mm_default"(%x, %w) : (tensor<{m}x{k}xf32>, tensor<{k}x{n}xf32>) -> tensor<{m}x{n}xf32>
  return %0 : tensor<{m}x{n}xf32>
}}
"""
_SUM = """
func.func @main(%x: tensor<8x4xf32>) -> tensor<8x4xf32> {
  %0 = "aten.exp_default"(%x) : (tensor<8x4xf32>) -> tensor<8x4xf32>
  return %0 : tensor<8x4xf32>
}
"""


def _first(module: Module) -> Operation:
    return next(iter(operations(module.functions()["main"])))


def test_a_product_takes_two_operations_for_each_element_and_term() -> None:
    op = _first(module := Module.parse(_PRODUCT.format(m=2, k=3, n=5)))
    call = read(op)
    assert module is not None and call is not None
    assert flops(call, list(op.results)) == 2 * 2 * 3 * 5


def test_an_operation_without_a_formula_takes_the_time_of_its_bytes() -> None:
    op = _first(module := Module.parse(_SUM))
    call = read(op)
    assert module is not None and call is not None
    assert flops(call, list(op.results)) == 0
    assert bytes_of(op.results[0]) == 8 * 4 * 4
    assert op_time(call, call.values(), list(op.results)) == traffic([*call.values(), *op.results]) == 2 * 8 * 4 * 4


def test_a_large_product_takes_the_time_of_its_floating_point_operations() -> None:
    op = _first(module := Module.parse(_PRODUCT.format(m=4096, k=4096, n=4096)))
    call = read(op)
    assert module is not None and call is not None
    assert op_time(call, call.values(), list(op.results)) == 2 * 4096**3 / FLOPS_PER_BYTE
