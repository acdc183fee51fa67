// RUN: stretto opt -p "place-arguments{plan=%S/plans/feed_forward.plan}" %s | filecheck %s

// Columns cut dim 0 of a linear weight and its bias, rows dim 1 of the weight alone; inputs are cut by `dp`.

// CHECK: comm.mesh = [["dp", 2], ["tp", 2]]
// CHECK: @main(%arg0: tensor<8x6xf32, {tp = "shard(0)"}> {{.*}}"up.weight"
// CHECK-SAME: %arg1: tensor<8xf32, {tp = "shard(0)"}> {{.*}}"up.bias"
// CHECK-SAME: %arg2: tensor<6x8xf32, {tp = "shard(1)"}> {{.*}}"down.weight"
// CHECK-SAME: %arg3: tensor<6xf32> {{.*}}"down.bias"
// CHECK-SAME: %arg4: tensor<4x6xf32, {dp = "shard(0)"}>
func.func @main(
  %0: tensor<8x6xf32> {aten.argument = {index = -1, kind = "parameter", name = "up.weight", owner = "linear"}},
  %1: tensor<8xf32> {aten.argument = {index = -1, kind = "parameter", name = "up.bias", owner = "linear"}},
  %2: tensor<6x8xf32> {aten.argument = {index = -1, kind = "parameter", name = "down.weight", owner = "linear"}},
  %3: tensor<6xf32> {aten.argument = {index = -1, kind = "parameter", name = "down.bias", owner = "linear"}},
  %4: tensor<4x6xf32> {aten.argument = {index = 0, kind = "input", name = "x"}}) {
  return
}

// -----

// Transposed linears (GPT-2's) have their features the other way about; buffers and inputs without the batch stay whole.

// CHECK: @main(%arg0: tensor<6x8xf32, {tp = "shard(1)"}> {{.*}}"up.weight"
// CHECK-SAME: %arg1: tensor<8x6xf32, {tp = "shard(0)"}> {{.*}}"down.weight"
// CHECK-SAME: %arg2: tensor<4x6xf32> {{.*}}"buffer"
// CHECK-SAME: %arg3: tensor<4x6xf32, {dp = "shard(0)"}>
// CHECK-SAME: %arg4: tensor<6xf32> {{.*}}"scale"
func.func @main(
  %0: tensor<6x8xf32> {aten.argument = {index = -1, kind = "parameter", name = "up.weight", owner = "linear_transposed"}},
  %1: tensor<8x6xf32> {aten.argument = {index = -1, kind = "parameter", name = "down.weight", owner = "linear_transposed"}},
  %2: tensor<4x6xf32> {aten.argument = {index = -1, kind = "buffer", name = "cache"}},
  %3: tensor<4x6xf32> {aten.argument = {index = 0, kind = "input", name = "x"}},
  %4: tensor<6xf32> {aten.argument = {index = 1, kind = "input", name = "scale"}}) {
  return
}

// -----
// RUN: stretto opt -p "place-arguments{plan=%S/plans/tokens.plan}" %s | filecheck %s

// A vocabulary that three ranks cannot share evenly keeps its global shape; the activations' policy is on the module.

// CHECK: module attributes {comm.activations = [{{\[}}"tp", 1]], {{.*}}comm.tokens = array<i64: 4, 9>}
// CHECK: @main(%arg0: tensor<40x16xf32, {tp = "shard(0)"}> {{.*}}"wte.weight"
// CHECK-SAME: %arg1: tensor<4x9xi64, {pod = "shard(0)"}>
func.func @main(
  %0: tensor<40x16xf32> {aten.argument = {index = -1, kind = "parameter", name = "wte.weight", owner = "embedding"}},
  %1: tensor<4x9xi64> {aten.argument = {index = 0, kind = "input", name = "tokens"}}) {
  return
}
