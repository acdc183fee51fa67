// RUN: stretto opt -p "assign-lanes{axes=dp},start-collectives" %s | filecheck %s

// The collective over dp gets the lane, and its start keeps it; the other stays on the lane of all communication.

// CHECK: "comm.all_reduce_start"(%arg0) {axes = ["dp"], lane = "dp", reduce = "sum"}
// CHECK: "comm.all_reduce_start"(%arg1) {axes = ["tp"], reduce = "sum"}
module attributes {comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {dp = "partial(sum)"}>, %y: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%y) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
}

// -----

// Must not fire: a collective that has a lane keeps it.

// CHECK: "comm.all_reduce_start"(%arg0) {axes = ["dp"], lane = "aux", reduce = "sum"}
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32> {
  %0 = "comm.all_reduce"(%x) {axes = ["dp"], reduce = "sum", lane = "aux"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
}
