// RUN: stretto opt -p "keep-dims-apart,canonicalize" %s | filecheck %s

// A linear layer, and the gradients of its weight and bias: examples and tokens stay apart.

// CHECK: @main(%arg0: tensor<2x3x4xf32>, %arg1: tensor<4x5xf32>, %arg2: tensor<5xf32>, %arg3: tensor<2x3x5xf32>)
// CHECK-NEXT: %[[Y:.+]] = "nn.linear"(%arg0, %arg1, %arg2) {{.*}} -> tensor<2x3x5xf32>
// CHECK-NEXT: %[[W:.+]] = "nn.sum_of_outer_products"(%arg3, %arg0) : {{.*}} -> tensor<5x4xf32>
// CHECK-NEXT: %[[B:.+]] = "aten.sum_dim_intlist"(%arg3) {dim = array<i64: 0, 1>, keepdim = false} : {{.*}} -> tensor<5xf32>
// CHECK-NEXT: return %[[Y]], %[[W]], %[[B]]
func.func @main(%x: tensor<2x3x4xf32>, %w: tensor<4x5xf32>, %b: tensor<5xf32>, %g: tensor<2x3x5xf32>) -> (tensor<2x3x5xf32>, tensor<5x4xf32>, tensor<5xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 4>} : (tensor<2x3x4xf32>) -> tensor<6x4xf32>
  %1 = "aten.addmm_default"(%b, %0, %w) : (tensor<5xf32>, tensor<6x4xf32>, tensor<4x5xf32>) -> tensor<6x5xf32>
  %2 = "aten.reshape_default"(%1) {shape = array<i64: 2, 3, 5>} : (tensor<6x5xf32>) -> tensor<2x3x5xf32>
  %3 = "aten.reshape_default"(%g) {shape = array<i64: 6, 5>} : (tensor<2x3x5xf32>) -> tensor<6x5xf32>
  %4 = "aten.t_default"(%3) : (tensor<6x5xf32>) -> tensor<5x6xf32>
  %5 = "aten.mm_default"(%4, %0) : (tensor<5x6xf32>, tensor<6x4xf32>) -> tensor<5x4xf32>
  %6 = "aten.sum_dim_intlist"(%3) {dim = array<i64: 0>, keepdim = true} : (tensor<6x5xf32>) -> tensor<1x5xf32>
  %7 = "aten.reshape_default"(%6) {shape = array<i64: 5>} : (tensor<1x5xf32>) -> tensor<5xf32>
  return %2, %5, %7 : tensor<2x3x5xf32>, tensor<5x4xf32>, tensor<5xf32>
}

// -----

// Heads that are merged into features stay merged; a gradient that comes merged is taken apart as the other operand is.

// CHECK: %[[X:.+]] = "aten.reshape_default"(%arg0) {shape = array<i64: 2, 3, 8>}
// CHECK-NEXT: %[[Y:.+]] = "nn.linear"(%[[X]], %arg1) {{.*}} -> tensor<2x3x5xf32>
// CHECK-NEXT: %[[R:.+]] = "aten.reshape_default"(%[[Y]]) {shape = array<i64: 6, 5>}
// CHECK-NEXT: %[[G:.+]] = "aten.reshape_default"(%arg2) {shape = array<i64: 2, 3, 5>}
// CHECK: %[[W:.+]] = "nn.sum_of_outer_products"(%[[G]], %{{.+}}) : {{.*}} -> tensor<5x8xf32>
// CHECK-NEXT: return %[[R]], %[[W]]
func.func @main(%x: tensor<2x3x4x2xf32>, %w: tensor<8x5xf32>, %g: tensor<6x5xf32>) -> (tensor<6x5xf32>, tensor<5x8xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 8>} : (tensor<2x3x4x2xf32>) -> tensor<6x8xf32>
  %1 = "aten.mm_default"(%0, %w) : (tensor<6x8xf32>, tensor<8x5xf32>) -> tensor<6x5xf32>
  %2 = "aten.t_default"(%g) : (tensor<6x5xf32>) -> tensor<5x6xf32>
  %3 = "aten.mm_default"(%2, %0) : (tensor<5x6xf32>, tensor<6x8xf32>) -> tensor<5x8xf32>
  return %1, %3 : tensor<6x5xf32>, tensor<5x8xf32>
}

// -----

// A loss over the tokens of all examples.

// CHECK: %[[L:.+]]:3 = "nn.cross_entropy"(%arg0, %arg1) {{.*}} -> (tensor<f32>, tensor<f32>, tensor<2x3xf32>)
// CHECK: %[[D:.+]] = "nn.cross_entropy_backward"(%arg2, %arg0, %arg1, %[[L]]#2) {{.*}} -> tensor<2x3x7xf32>
// CHECK-NEXT: return %[[L]]#0, %[[D]]
func.func @main(%x: tensor<2x3x7xf32>, %y: tensor<2x3xi64>, %s: tensor<f32>) -> (tensor<f32>, tensor<2x3x7xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 7>} : (tensor<2x3x7xf32>) -> tensor<6x7xf32>
  %1 = "aten.reshape_default"(%y) {shape = array<i64: 6>} : (tensor<2x3xi64>) -> tensor<6xi64>
  %t, %n, %l = "nn.cross_entropy"(%0, %1) {ignore_index = -100 : i64} : (tensor<6x7xf32>, tensor<6xi64>) -> (tensor<f32>, tensor<f32>, tensor<6xf32>)
  %2 = "nn.cross_entropy_backward"(%s, %0, %1, %l) {ignore_index = -100 : i64} : (tensor<f32>, tensor<6x7xf32>, tensor<6xi64>, tensor<6xf32>) -> tensor<6x7xf32>
  %3 = "aten.reshape_default"(%2) {shape = array<i64: 2, 3, 7>} : (tensor<6x7xf32>) -> tensor<2x3x7xf32>
  return %t, %3 : tensor<f32>, tensor<2x3x7xf32>
}

// -----

// Rows that were never merged stay, and so do those whose dims are cut anew: 6 features of 4 are no 8 of 3.

// CHECK-NOT: nn.linear
// CHECK: "aten.mm_default"
// CHECK: "aten.mm_default"
// CHECK-NOT: nn.linear
func.func @main(%a: tensor<6x4xf32>, %w: tensor<4x5xf32>, %b: tensor<2x6x2xf32>) -> (tensor<6x5xf32>, tensor<6x5xf32>) {
  %0 = "aten.mm_default"(%a, %w) : (tensor<6x4xf32>, tensor<4x5xf32>) -> tensor<6x5xf32>
  %1 = "aten.reshape_default"(%b) {shape = array<i64: 6, 4>} : (tensor<2x6x2xf32>) -> tensor<6x4xf32>
  %2 = "aten.mm_default"(%1, %w) : (tensor<6x4xf32>, tensor<4x5xf32>) -> tensor<6x5xf32>
  return %0, %2 : tensor<6x5xf32>, tensor<6x5xf32>
}
