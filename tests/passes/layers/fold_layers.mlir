// RUN: stretto opt -p "fold-layers" %s | filecheck %s

// Three equal layers become one function; its location counts for all of them.

// CHECK: func.func private @layers_forward(%arg0: tensor<4x8xf32>, %arg1: tensor<8x8xf32>)
// CHECK-NEXT: %[[MM:.+]] = "aten.mm_default"(%arg0, %arg1)
// CHECK-NEXT: %[[OUT:.+]] = "aten.relu_default"(%[[MM]])
// CHECK-NEXT: return %[[OUT]]
// CHECK: @main
// CHECK-NEXT: %[[A:.+]] = call @layers_forward(%arg0, %arg1)
// CHECK-NEXT: %[[B:.+]] = call @layers_forward(%[[A]], %arg2)
// CHECK-NEXT: %[[C:.+]] = call @layers_forward(%[[B]], %arg3)
// CHECK-NEXT: return %[[C]]
func.func @main(%x: tensor<4x8xf32>, %u: tensor<8x8xf32>, %v: tensor<8x8xf32>, %w: tensor<8x8xf32>) -> tensor<4x8xf32> {
  %0 = "aten.mm_default"(%x, %u) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = false}>["layers.0.up"])
  %1 = "aten.relu_default"(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = false}>["layers.0"])
  %2 = "aten.mm_default"(%1, %v) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = false}>["layers.1.up"])
  %3 = "aten.relu_default"(%2) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = false}>["layers.1"])
  %4 = "aten.mm_default"(%3, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = false}>["layers.2.up"])
  %5 = "aten.relu_default"(%4) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = false}>["layers.2"])
  return %5 : tensor<4x8xf32>
}

// -----

// What one layer's users need, the function of all gives: here the first layer's product, which is also returned.

// CHECK: private @layers_forward{{.*}} -> (tensor<4x4xf32>, tensor<4x4xf32>)
// CHECK: %[[A:.+]]:2 = call @layers_forward(%arg0, %arg1)
// CHECK: %[[B:.+]]:2 = call @layers_forward(%[[A]]#1, %arg2)
// CHECK: return %[[B]]#1, %[[A]]#0
func.func @main(%x: tensor<4x4xf32>, %u: tensor<4x4xf32>, %v: tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>) {
  %0 = "aten.mm_default"(%x, %u) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.0")
  %1 = "aten.relu_default"(%0) : (tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.0")
  %2 = "aten.mm_default"(%1, %v) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.1")
  %3 = "aten.relu_default"(%2) : (tensor<4x4xf32>) -> tensor<4x4xf32> loc("layers.1")
  return %3, %0 : tensor<4x4xf32>, tensor<4x4xf32>
}

// -----

// Must not fire: the layers differ in a constant.

// CHECK-NOT: call
// CHECK-NOT: private
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = "aten.mul_scalar"(%x) {other = 2.0 : f64} : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0")
  %1 = "aten.mul_scalar"(%0) {other = 3.0 : f64} : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1")
  return %1 : tensor<4xf32>
}

// -----

// Must not fire: layers that take turns, each needing what the other made of it, cannot run in one piece.

// CHECK-NOT: call
// CHECK-NOT: private
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = "aten.exp_default"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0")
  %1 = "aten.exp_default"(%0) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1")
  %2 = "aten.relu_default"(%1) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0")
  %3 = "aten.relu_default"(%2) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1")
  return %3 : tensor<4xf32>
}

// -----

// Interleaved, but neither needs the other: both are called.

// CHECK: %[[A:.+]] = call @layers_forward(%arg0)
// CHECK: %[[B:.+]] = call @layers_forward(%arg1)
// CHECK: return %[[A]], %[[B]]
func.func @main(%x: tensor<4xf32>, %y: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = "aten.exp_default"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0")
  %1 = "aten.exp_default"(%y) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1")
  %2 = "aten.relu_default"(%0) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0")
  %3 = "aten.relu_default"(%1) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1")
  return %2, %3 : tensor<4xf32>, tensor<4xf32>
}

// -----

// Forward and backward of the same layers are functions of their own.

// CHECK: private @h_forward
// CHECK: private @h_backward
// CHECK: call @h_forward
// CHECK: call @h_forward
// CHECK: call @h_backward
// CHECK: call @h_backward
func.func @main(%x: tensor<4xf32>, %g: tensor<4xf32>) -> tensor<4xf32> {
  %0 = "aten.tanh_default"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc(fused<{backward = false}>["h.0"])
  %1 = "aten.tanh_default"(%0) : (tensor<4xf32>) -> tensor<4xf32> loc(fused<{backward = false}>["h.1"])
  %2 = "aten.tanh_backward_default"(%g, %1) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32> loc(fused<{backward = true}>["h.1"])
  %3 = "aten.tanh_backward_default"(%2, %0) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32> loc(fused<{backward = true}>["h.0"])
  return %3 : tensor<4xf32>
}
