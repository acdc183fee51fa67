// RUN: stretto opt -p "scatter-norms{plan=%S/plans/fuse_norms.plan}" %s | filecheck %s

// The residual of the second sum is the cut one of the first; only what a product reads, and what is returned, is gathered.

// CHECK: %[[S:.+]] = "comm.reduce_scatter"(%arg1) {axes = ["tp"], dim = 1
// CHECK-NEXT: %[[R:.+]] = "comm.shard"(%arg0)
// CHECK-NEXT: %[[H:.+]] = "aten.add_tensor"(%[[R]], %[[S]])
// CHECK-NEXT: %[[N:.+]]:2 = "nn.rms_norm"(%[[H]], %arg2)
// CHECK-NEXT: %[[G:.+]] = "comm.all_gather"(%[[N]]#0)
// CHECK-NEXT: %[[V:.+]] = "aten.view_default"(%[[G]])
// CHECK-NEXT: %[[P:.+]] = "aten.mm_default"(%[[V]], %arg3)
// CHECK-NEXT: %[[Q:.+]] = "aten.view_default"(%[[P]])
// CHECK-NEXT: %[[T:.+]] = "comm.reduce_scatter"(%[[Q]])
// CHECK-NEXT: %[[O:.+]] = "aten.add_tensor"(%[[H]], %[[T]])
// CHECK-NEXT: %[[A:.+]] = "comm.all_gather"(%[[O]])
// CHECK-NEXT: return %[[A]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<3x4x8xf32>, %z: tensor<3x4x8xf32, {tp = "partial(sum)"}>, %w: tensor<8xf32>, %m: tensor<8x8xf32, {tp = "partial(sum)"}>) -> tensor<3x4x8xf32> {
  %0 = "comm.all_reduce"(%z) {axes = ["tp"], reduce = "sum"} : (tensor<3x4x8xf32, {tp = "partial(sum)"}>) -> tensor<3x4x8xf32>
  %1 = "aten.add_tensor"(%x, %0) : (tensor<3x4x8xf32>, tensor<3x4x8xf32>) -> tensor<3x4x8xf32>
  %2:2 = "nn.rms_norm"(%1, %w) {eps = 1.0e-6 : f64} : (tensor<3x4x8xf32>, tensor<8xf32>) -> (tensor<3x4x8xf32>, tensor<3x4x1xf32>)
  %3 = "aten.view_default"(%2#0) {size = array<i64: 12, 8>} : (tensor<3x4x8xf32>) -> tensor<12x8xf32>
  %4 = "aten.mm_default"(%3, %m) : (tensor<12x8xf32>, tensor<8x8xf32, {tp = "partial(sum)"}>) -> tensor<12x8xf32, {tp = "partial(sum)"}>
  %5 = "aten.view_default"(%4) {size = array<i64: 3, 4, 8>} : (tensor<12x8xf32, {tp = "partial(sum)"}>) -> tensor<3x4x8xf32, {tp = "partial(sum)"}>
  %6 = "comm.all_reduce"(%5) {axes = ["tp"], reduce = "sum"} : (tensor<3x4x8xf32, {tp = "partial(sum)"}>) -> tensor<3x4x8xf32>
  %7 = "aten.add_tensor"(%1, %6) : (tensor<3x4x8xf32>, tensor<3x4x8xf32>) -> tensor<3x4x8xf32>
  return %7 : tensor<3x4x8xf32>
}
}

// -----

// Must not fire: the sum and the norm are needed whole, so twice as much would be gathered.

// CHECK: "comm.all_reduce"
// CHECK-NEXT: "nn.rms_norm"
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%z: tensor<3x4x8xf32, {tp = "partial(sum)"}>, %w: tensor<8xf32>) -> (tensor<3x4x8xf32>, tensor<3x4x8xf32>) {
  %0 = "comm.all_reduce"(%z) {axes = ["tp"], reduce = "sum"} : (tensor<3x4x8xf32, {tp = "partial(sum)"}>) -> tensor<3x4x8xf32>
  %2:2 = "nn.rms_norm"(%0, %w) {eps = 1.0e-6 : f64} : (tensor<3x4x8xf32>, tensor<8xf32>) -> (tensor<3x4x8xf32>, tensor<3x4x1xf32>)
  return %0, %2#0 : tensor<3x4x8xf32>, tensor<3x4x8xf32>
}
}
