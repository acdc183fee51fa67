// RUN: stretto opt -p "cap-memory{plan=%S/plans/cap.plan}" %s | filecheck %s

// The gather's result is the larger part of what it keeps, and the peak is at the product: it starts behind it.

// CHECK: %[[P:.+]] = "aten.mm_default"(%arg1, %arg1)
// CHECK-NEXT: %[[S:.+]] = "aten.sum_default"(%[[P]])
// CHECK-NEXT: %[[F:.+]] = "comm.all_gather_start"(%arg0)
// CHECK-NEXT: "comm.wait"(%[[F]])
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<2x8xf32, {dp = "shard(0)"}>, %y: tensor<8x8xf32>) -> (tensor<4x8xf32>, tensor<f32>) {
  %0 = "comm.all_gather_start"(%x) {axes = ["dp"], dim = 0 : i64} : (tensor<2x8xf32, {dp = "shard(0)"}>) -> !async.value<tensor<4x8xf32>>
  %1 = "aten.mm_default"(%y, %y) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %2 = "aten.sum_default"(%1) : (tensor<8x8xf32>) -> tensor<f32>
  %3 = "comm.wait"(%0) : (!async.value<tensor<4x8xf32>>) -> tensor<4x8xf32>
  %4 = "aten.neg_default"(%3) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  return %4, %2 : tensor<4x8xf32>, tensor<f32>
}
}

// -----

// The reduction's operand is the larger part: it is waited for where it starts.

// CHECK: %[[F:.+]] = "comm.reduce_scatter_start"
// CHECK-NEXT: "comm.wait"(%[[F]])
// CHECK-NEXT: "aten.mm_default"
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<8x8xf32, {dp = "partial(sum)"}>, %y: tensor<8x8xf32>) -> (tensor<4x8xf32, {dp = "shard(0)"}>, tensor<f32>) {
  %n = "aten.neg_default"(%x) : (tensor<8x8xf32, {dp = "partial(sum)"}>) -> tensor<8x8xf32, {dp = "partial(sum)"}>
  %0 = "comm.reduce_scatter_start"(%n) {axes = ["dp"], dim = 0 : i64, reduce = "sum"} : (tensor<8x8xf32, {dp = "partial(sum)"}>) -> !async.value<tensor<4x8xf32, {dp = "shard(0)"}>>
  %1 = "aten.mm_default"(%y, %y) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %2 = "aten.sum_default"(%1) : (tensor<8x8xf32>) -> tensor<f32>
  %3 = "comm.wait"(%0) : (!async.value<tensor<4x8xf32, {dp = "shard(0)"}>>) -> tensor<4x8xf32, {dp = "shard(0)"}>
  return %3, %2 : tensor<4x8xf32, {dp = "shard(0)"}>, tensor<f32>
}
}

// -----

// RUN: stretto opt -p "hoist-collectives,start-collectives,cap-memory{plan=%S/plans/cap.plan}" %s | filecheck %s

// No collective is under way at the peak, but what moved before it keeps memory there: the order is again what it was.

// CHECK: %[[A:.+]] = "aten.mm_default"(%arg1, %arg1)
// CHECK-NEXT: %[[S:.+]] = "aten.sum_default"(%[[A]])
// CHECK-NEXT: %[[F:.+]] = "comm.all_gather_start"(%arg0)
// CHECK-NOT: position
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<2x8xf32, {dp = "shard(0)"}>, %y: tensor<8x8xf32>) -> (tensor<f32>, tensor<f32>) {
  %1 = "aten.mm_default"(%y, %y) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %2 = "aten.sum_default"(%1) : (tensor<8x8xf32>) -> tensor<f32>
  %3 = "comm.all_gather"(%x) {axes = ["dp"], dim = 0 : i64} : (tensor<2x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
  %4 = "aten.sum_default"(%3) : (tensor<4x8xf32>) -> tensor<f32>
  return %2, %4 : tensor<f32>, tensor<f32>
}
}

// -----

// RUN: stretto opt -p "cap-memory{plan=%S/plans/cap_growth.plan}" %s | filecheck %s

// Must not fire: the plan allows more memory.

// CHECK: "comm.all_gather_start"
// CHECK-NEXT: "aten.mm_default"
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<2x8xf32, {dp = "shard(0)"}>, %y: tensor<8x8xf32>) -> (tensor<4x8xf32>, tensor<f32>) {
  %0 = "comm.all_gather_start"(%x) {axes = ["dp"], dim = 0 : i64} : (tensor<2x8xf32, {dp = "shard(0)"}>) -> !async.value<tensor<4x8xf32>>
  %1 = "aten.mm_default"(%y, %y) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %2 = "aten.sum_default"(%1) : (tensor<8x8xf32>) -> tensor<f32>
  %3 = "comm.wait"(%0) : (!async.value<tensor<4x8xf32>>) -> tensor<4x8xf32>
  return %3, %2 : tensor<4x8xf32>, tensor<f32>
}
}
