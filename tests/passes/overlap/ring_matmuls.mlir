// RUN: stretto opt -p "ring-matmuls{plan=%S/plans/fuse.plan},canonicalize" %s | filecheck %s

// The own shard is multiplied while the other one comes; the weight is computed first.

// CHECK: %[[W:.+]] = "aten.t_default"(%arg1)
// CHECK: %[[N:.+]] = "comm.permute"(%arg0) {axes = ["tp"], shift = 1 : i64}
// CHECK: %[[OWN:.+]] = "aten.reshape_default"(%arg0) {shape = array<i64: 8, 6>}
// CHECK: %[[Y0:.+]] = "aten.mm_default"(%[[OWN]], %[[W]])
// CHECK: %[[CAME:.+]] = "aten.reshape_default"(%[[N]]) {shape = array<i64: 8, 6>}
// CHECK: %[[Y1:.+]] = "aten.mm_default"(%[[CAME]], %[[W]])
// CHECK: "aten.cat_default"
// CHECK: "comm.offset"
// CHECK: "aten.index_select_default"
// CHECK-NOT: comm.all_gather
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<2x4x6xf32, {tp = "shard(1)"}>, %w: tensor<5x6xf32, {tp = "shard(0)"}>) -> tensor<16x5xf32> {
  %0 = "comm.all_gather"(%x) {axes = ["tp"], dim = 1 : i64} : (tensor<2x4x6xf32, {tp = "shard(1)"}>) -> tensor<2x8x6xf32>
  %1 = "aten.reshape_default"(%0) {shape = array<i64: 16, 6>} : (tensor<2x8x6xf32>) -> tensor<16x6xf32>
  %2 = "aten.t_default"(%w) : (tensor<5x6xf32, {tp = "shard(0)"}>) -> tensor<6x5xf32>
  %3 = "aten.mm_default"(%1, %2) : (tensor<16x6xf32>, tensor<6x5xf32>) -> tensor<16x5xf32>
  return %3 : tensor<16x5xf32>
}
}

// -----

// A sum of two products starts with the other rank's chunk, and takes up this one's where it ends.

// CHECK: %[[R:.+]] = "comm.offset"()
// CHECK: %[[A0:.+]] = "aten.mm_default"
// CHECK: %[[B0:.+]] = "aten.mm_default"
// CHECK: %[[S0:.+]] = "aten.add_tensor"(%[[A0]], %[[B0]])
// CHECK-NEXT: %[[H:.+]] = "comm.permute"(%[[S0]]) {axes = ["tp"], shift = 1 : i64}
// CHECK: %[[A1:.+]] = "aten.mm_default"
// CHECK: %[[B1:.+]] = "aten.mm_default"
// CHECK: %[[T:.+]] = "aten.add_tensor"(%[[H]], %[[A1]])
// CHECK-NEXT: %[[S1:.+]] = "aten.add_tensor"(%[[T]], %[[B1]])
// CHECK-NOT: comm.reduce_scatter
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%a: tensor<16x6xf32>, %v: tensor<6x5xf32>, %b: tensor<16x4xf32>, %w: tensor<4x5xf32>) -> tensor<2x4x5xf32, {tp = "shard(1)"}> {
  %0 = "aten.mm_default"(%a, %v) : (tensor<16x6xf32>, tensor<6x5xf32>) -> tensor<16x5xf32>
  %1 = "aten.mm_default"(%b, %w) : (tensor<16x4xf32>, tensor<4x5xf32>) -> tensor<16x5xf32>
  %2 = "aten.add_tensor"(%0, %1) : (tensor<16x5xf32>, tensor<16x5xf32>) -> tensor<16x5xf32>
  %3 = "aten.reshape_default"(%2) {shape = array<i64: 2, 8, 5>} : (tensor<16x5xf32>) -> tensor<2x8x5xf32, {tp = "partial(sum)"}>
  %4 = "comm.reduce_scatter"(%3) {axes = ["tp"], dim = 1 : i64, reduce = "sum"} : (tensor<2x8x5xf32, {tp = "partial(sum)"}>) -> tensor<2x4x5xf32, {tp = "shard(1)"}>
  return %4 : tensor<2x4x5xf32, {tp = "shard(1)"}>
}
}

// -----

// Must not fire: the product sums over the dim that is gathered, and the other factor needs the gathered tensor.

// CHECK-COUNT-2: comm.all_gather
// CHECK-NOT: comm.permute
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x3xf32, {tp = "shard(1)"}>, %y: tensor<2x4xf32, {tp = "shard(0)"}>, %w: tensor<6x5xf32>) -> (tensor<4x5xf32>, tensor<4x4xf32>) {
  %0 = "comm.all_gather"(%x) {axes = ["tp"], dim = 1 : i64} : (tensor<4x3xf32, {tp = "shard(1)"}>) -> tensor<4x6xf32>
  %1 = "aten.mm_default"(%0, %w) : (tensor<4x6xf32>, tensor<6x5xf32>) -> tensor<4x5xf32>
  %2 = "comm.all_gather"(%y) {axes = ["tp"], dim = 0 : i64} : (tensor<2x4xf32, {tp = "shard(0)"}>) -> tensor<4x4xf32>
  %3 = "aten.t_default"(%2) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %4 = "aten.mm_default"(%2, %3) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  return %1, %4 : tensor<4x5xf32>, tensor<4x4xf32>
}
}
