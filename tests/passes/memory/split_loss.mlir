// RUN: stretto opt -p "split-loss{plan=%S/plans/split_loss.plan}" %s | filecheck %s

// Rows that no input shards are cut; sums are added, rows are joined; each chunk's backward reads its own scores.

// CHECK: %[[X0:.+]] = "aten.slice_tensor"(%arg0) {dim = 1 : i64, end = 2 : i64, start = 0 : i64}
// CHECK-NEXT: %[[S0:.+]] = "nn.linear"(%[[X0]], %arg1)
// CHECK: %[[C0:.+]]:3 = "nn.cross_entropy"(%[[S0]], %{{.+}})
// CHECK: %[[S1:.+]] = "nn.linear"(%{{.+}}, %arg1)
// CHECK: %[[C1:.+]]:3 = "nn.cross_entropy"(%[[S1]], %{{.+}})
// CHECK-NEXT: %[[T:.+]] = "aten.add_tensor"(%[[C0]]#0, %[[C1]]#0)
// CHECK: "nn.cross_entropy_backward"(%{{.+}}, %[[S0]], %{{.+}}, %[[C0]]#2)
// CHECK-NEXT: %[[D0:.+]] = "nn.linear"
// CHECK: "nn.cross_entropy_backward"(%{{.+}}, %[[S1]], %{{.+}}, %[[C1]]#2)
// CHECK-NEXT: %[[D1:.+]] = "nn.linear"
// CHECK: "aten.cat_default"
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x4x8xf32>, %w: tensor<8x16xf32>, %wt: tensor<16x8xf32>, %y: tensor<4x4xi64, {dp = "shard(0)"}> {aten.argument = {kind = "input", name = "y"}}, %d: tensor<f32> {aten.argument = {kind = "tangent"}}) -> (tensor<f32>, tensor<4x4x8xf32>) {
    %s = "nn.linear"(%x, %w) {operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<4x4x8xf32>, tensor<8x16xf32>) -> tensor<4x4x16xf32>
    %t:3 = "nn.cross_entropy"(%s, %y) {ignore_index = -100 : i64} : (tensor<4x4x16xf32>, tensor<4x4xi64, {dp = "shard(0)"}>) -> (tensor<f32>, tensor<f32>, tensor<4x4xf32>)
    %ds = "nn.cross_entropy_backward"(%d, %s, %y, %t#2) {ignore_index = -100 : i64} : (tensor<f32>, tensor<4x4x16xf32>, tensor<4x4xi64, {dp = "shard(0)"}>, tensor<4x4xf32>) -> tensor<4x4x16xf32> loc(fused<{backward = true}>["head"])
    %dx = "nn.linear"(%ds, %wt) {operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<4x4x16xf32>, tensor<16x8xf32>) -> tensor<4x4x8xf32> loc(fused<{backward = true}>["head"])
    return %t#0, %dx : tensor<f32>, tensor<4x4x8xf32>
  }
}

// -----

// Where an input shards the only rows, each rank's own part is cut.

// CHECK: %[[V:.+]] = "aten.reshape_default"(%arg0) {shape = array<i64: 2, 2, 2, 8>}
// CHECK-NEXT: %[[O:.+]] = "aten.slice_tensor"(%[[V]]) {dim = 1 : i64, end = 1 : i64, start = 0 : i64}
// CHECK-NEXT: %[[R:.+]] = "aten.reshape_default"(%[[O]]) {shape = array<i64: 4, 8>}
// CHECK-NEXT: "aten.mm_default"(%[[R]], %arg1)
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<8x8xf32>, %w: tensor<8x16xf32>, %y: tensor<8xi64, {dp = "shard(0)"}> {aten.argument = {kind = "input", name = "y"}}) -> tensor<f32> {
    %s = "aten.mm_default"(%x, %w) : (tensor<8x8xf32>, tensor<8x16xf32>) -> tensor<8x16xf32>
    %t:3 = "nn.cross_entropy"(%s, %y) {ignore_index = -100 : i64} : (tensor<8x16xf32>, tensor<8xi64, {dp = "shard(0)"}>) -> (tensor<f32>, tensor<f32>, tensor<8xf32>)
    return %t#0 : tensor<f32>
  }
}

// -----

// Must not fire: a plan without the statement.

// RUN: stretto opt -p "split-loss{plan=%S/plans/recompute.plan}" %s | filecheck %s

// CHECK-NOT: aten.slice
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<8x8xf32>, %w: tensor<8x16xf32>, %y: tensor<8xi64>) -> tensor<f32> {
    %s = "aten.mm_default"(%x, %w) : (tensor<8x8xf32>, tensor<8x16xf32>) -> tensor<8x16xf32>
    %t:3 = "nn.cross_entropy"(%s, %y) {ignore_index = -100 : i64} : (tensor<8x16xf32>, tensor<8xi64>) -> (tensor<f32>, tensor<f32>, tensor<8xf32>)
    return %t#0 : tensor<f32>
  }
}
