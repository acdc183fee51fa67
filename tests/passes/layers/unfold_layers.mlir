// RUN: stretto opt -p "unfold-layers" %s | filecheck %s

// Each call becomes the function's operations; the function goes.

// CHECK: @main
// CHECK-NEXT: %[[A:.+]] = "aten.mm_default"(%arg0, %arg1)
// CHECK-NEXT: %[[B:.+]] = "aten.mm_default"(%[[A]], %arg2)
// CHECK-NEXT: return %[[B]]
// CHECK-NOT: @layers_forward
func.func @main(%x: tensor<4x4xf32>, %v: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = func.call @layers_forward(%x, %v) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.0")
  %1 = func.call @layers_forward(%0, %w) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.1")
  return %1 : tensor<4x4xf32>
}
func.func private @layers_forward(%x: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = "aten.mm_default"(%x, %w) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.*.up")
  return %0 : tensor<4x4xf32>
}

// -----

// A future that one layer gives the next one is waited for inline.

// CHECK: @main
// CHECK-NEXT: %[[F:.+]] = "comm.all_reduce_start"(%arg0)
// CHECK-NEXT: %[[A:.+]] = "comm.wait"(%[[F]])
// CHECK-NEXT: %[[G:.+]] = "comm.all_reduce_start"(%[[A]])
// CHECK-NEXT: %[[B:.+]] = "comm.wait"(%[[G]])
// CHECK-NEXT: %[[H:.+]] = "comm.all_reduce_start"(%[[B]])
// CHECK-NEXT: %[[C:.+]] = "comm.wait"(%[[H]])
// CHECK-NEXT: return %[[C]]
// CHECK-NOT: @layers_forward
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %f = "comm.all_reduce_start"(%x) {axes = ["tp"], reduce = "max"} : (tensor<4xf32>) -> !async.value<tensor<4xf32>>
  %0 = func.call @layers_forward(%f) : (!async.value<tensor<4xf32>>) -> !async.value<tensor<4xf32>> loc("layers.0")
  %1 = func.call @layers_forward(%0) : (!async.value<tensor<4xf32>>) -> !async.value<tensor<4xf32>> loc("layers.1")
  %2 = "comm.wait"(%1) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>
  return %2 : tensor<4xf32>
}
func.func private @layers_forward(%f: !async.value<tensor<4xf32>>) -> !async.value<tensor<4xf32>> {
  %0 = "comm.wait"(%f) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>
  %1 = "comm.all_reduce_start"(%0) {axes = ["tp"], reduce = "max"} : (tensor<4xf32>) -> !async.value<tensor<4xf32>>
  return %1 : !async.value<tensor<4xf32>>
}
}

// -----
// RUN: stretto opt -p "unfold-layers,canonicalize,cse" %s | filecheck %s

// Lanes stay: two equal operations on two lanes are two.

// CHECK: @main
// CHECK-NEXT: "aten.neg_default"(%arg0) {lane = "aux"}
// CHECK-NEXT: "aten.neg_default"(%arg0)
// CHECK-NEXT: return
func.func @main(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0:2 = func.call @layers_forward(%x) : (tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>)
  return %0#0, %0#1 : tensor<4xf32>, tensor<4xf32>
}
func.func private @layers_forward(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = "aten.neg_default"(%x) {lane = "aux"} : (tensor<4xf32>) -> tensor<4xf32>
  %1 = "aten.neg_default"(%x) : (tensor<4xf32>) -> tensor<4xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
