"""Lists of tensors keep their packing casts, whatever upstream's passes remove."""

import torch
from stretto.ir.interpreter import run
from stretto.ir.module import Module, operations
from stretto.ir.operations import read

STACK_OF_A_SPLIT = """
module {
  func.func @main(%a: tensor<4xf32>) -> (tensor<2x2xf32>, tensor<2xf32>) {
    %0 = "aten.split_tensor"(%a) {split_size = 2 : i64} : (tensor<4xf32>) -> tuple<tensor<2xf32>, tensor<2xf32>>
    %1:2 = builtin.unrealized_conversion_cast %0
      : tuple<tensor<2xf32>, tensor<2xf32>> to tensor<2xf32>, tensor<2xf32>
    %2 = builtin.unrealized_conversion_cast %1#0, %1#1
      : tensor<2xf32>, tensor<2xf32> to tuple<tensor<2xf32>, tensor<2xf32>>
    %3 = "aten.stack_default"(%2) {dim = 0 : i64} : (tuple<tensor<2xf32>, tensor<2xf32>>) -> tensor<2x2xf32>
    return %3, %1#1 : tensor<2x2xf32>, tensor<2xf32>
  }
}
"""


def stacked(module: Module) -> int:
    """How many tensors the module's stack joins."""
    calls = [read(op) for op in operations(module.functions()["main"])]
    [stack] = [call for call in calls if call is not None and call.name == "aten.stack.default"]
    return len(stack.args[0])


def test_a_list_that_is_unpacked_and_packed_again_survives_canonicalization() -> None:
    module = Module.parse(STACK_OF_A_SPLIT)
    module.run_upstream("canonicalize,cse")
    assert stacked(module) == 2
    module.verify()
    again, part = run(module, [torch.arange(4.0)])
    assert again.tolist() == [[0, 1], [2, 3]] and part.tolist() == [2, 3]


def test_a_text_in_which_an_operation_takes_the_tuple_of_another_is_packed_when_read() -> None:
    direct = STACK_OF_A_SPLIT.replace('"aten.stack_default"(%2)', '"aten.stack_default"(%0)')
    assert stacked(Module.parse(direct)) == 2


def test_a_tuple_that_nothing_unpacks_is_unpacked_for_its_user() -> None:
    lines = STACK_OF_A_SPLIT.replace('"aten.stack_default"(%2)', '"aten.stack_default"(%0)').splitlines()
    kept = [line for line in lines if "cast" not in line and "      :" not in line]
    text = "\n".join(kept).replace("return %3, %1#1 : tensor<2x2xf32>, tensor<2xf32>", "return %3 : tensor<2x2xf32>")
    text = text.replace("-> (tensor<2x2xf32>, tensor<2xf32>) {", "-> tensor<2x2xf32> {")
    module = Module.parse(text)
    assert stacked(module) == 2
    module.verify()
