// RUN: stretto opt -p "split-all-reduce" %s | filecheck %s

// The first dim that two ranks divide; what is between them says who holds what.

// CHECK: %[[S:.+]] = "comm.reduce_scatter"(%arg0) {axes = ["tp"], dim = 1 : i64, reduce = "sum"} : {{.*}} -> tensor<3x2xf32, {tp = "shard(1)"}>
// CHECK-NEXT: %[[G:.+]] = "comm.all_gather"(%[[S]]) {axes = ["tp"], dim = 1 : i64} : {{.*}} -> tensor<3x4xf32>
// CHECK-NEXT: "aten.exp_default"(%[[G]])
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<3x4xf32, {tp = "partial(sum)"}>) -> tensor<3x4xf32> {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<3x4xf32, {tp = "partial(sum)"}>) -> tensor<3x4xf32>
  %1 = "aten.exp_default"(%0) : (tensor<3x4xf32>) -> tensor<3x4xf32>
  return %1 : tensor<3x4xf32>
}
}

// -----

// A dim that another axis cuts is cut further, inside of it; the type says so where this is not the mesh's order.

// CHECK: "comm.reduce_scatter"(%arg0) {axes = ["tp"], dim = 0 : i64, reduce = "sum"} : {{.*}} -> tensor<2x4xf32, {dp = "shard(0)", tp = "shard(0)"}>
// CHECK: "comm.reduce_scatter"(%arg1) {axes = ["dp"], dim = 0 : i64, reduce = "sum"} : {{.*}} -> tensor<2x4xf32, {dp = "shard(0, 1)", tp = "shard(0, 0)"}>
module attributes {comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(%x: tensor<4x4xf32, {dp = "shard(0)", tp = "partial(sum)"}>, %y: tensor<4x4xf32, {dp = "partial(sum)", tp = "shard(0)"}>) -> (tensor<4x4xf32, {dp = "shard(0)"}>, tensor<4x4xf32, {tp = "shard(0)"}>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4x4xf32, {dp = "shard(0)", tp = "partial(sum)"}>) -> tensor<4x4xf32, {dp = "shard(0)"}>
  %1 = "comm.all_reduce"(%y) {axes = ["dp"], reduce = "sum"} : (tensor<4x4xf32, {dp = "partial(sum)", tp = "shard(0)"}>) -> tensor<4x4xf32, {tp = "shard(0)"}>
  return %0, %1 : tensor<4x4xf32, {dp = "shard(0)"}>, tensor<4x4xf32, {tp = "shard(0)"}>
}
}

// -----

// Must not fire: a maximum, a scalar, and a dim that two ranks do not divide.

// CHECK-NOT: reduce_scatter
// CHECK-NOT: all_gather
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(max)"}>, %y: tensor<f32, {tp = "partial(sum)"}>, %z: tensor<3xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<f32>, tensor<3xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "max"} : (tensor<4xf32, {tp = "partial(max)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%y) {axes = ["tp"], reduce = "sum"} : (tensor<f32, {tp = "partial(sum)"}>) -> tensor<f32>
  %2 = "comm.all_reduce"(%z) {axes = ["tp"], reduce = "sum"} : (tensor<3xf32, {tp = "partial(sum)"}>) -> tensor<3xf32>
  return %0, %1, %2 : tensor<4xf32>, tensor<f32>, tensor<3xf32>
}
}

// -----

// RUN: stretto opt -p "split-all-reduce{min-bytes=17}" %s | filecheck %s

// Must not fire on the small one.

// CHECK: "comm.all_reduce"(%arg0)
// CHECK-NEXT: "comm.reduce_scatter"(%arg1)
// CHECK-NEXT: "comm.all_gather"
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>, %y: tensor<6xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<6xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%y) {axes = ["tp"], reduce = "sum"} : (tensor<6xf32, {tp = "partial(sum)"}>) -> tensor<6xf32>
  return %0, %1 : tensor<4xf32>, tensor<6xf32>
}
}
