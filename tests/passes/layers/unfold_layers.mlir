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
