// RUN: stretto opt -p "raise-matmuls,canonicalize" %s | filecheck %s

// Scores of attention: examples and heads stay apart.

// CHECK: @main(%arg0: tensor<2x3x4x5xf32>, %arg1: tensor<2x3x5x6xf32>)
// CHECK-NEXT: %[[C:.+]] = "nn.matmul"(%arg0, %arg1) : {{.*}} -> tensor<2x3x4x6xf32>
// CHECK-NEXT: return %[[C]]
func.func @main(%a: tensor<2x3x4x5xf32>, %b: tensor<2x3x5x6xf32>) -> tensor<2x3x4x6xf32> {
  %0 = "aten.expand_default"(%a) {size = array<i64: 2, 3, 4, 5>} : (tensor<2x3x4x5xf32>) -> tensor<2x3x4x5xf32>
  %1 = "aten.reshape_default"(%0) {shape = array<i64: 6, 4, 5>} : (tensor<2x3x4x5xf32>) -> tensor<6x4x5xf32>
  %2 = "aten.reshape_default"(%b) {shape = array<i64: 6, 5, 6>} : (tensor<2x3x5x6xf32>) -> tensor<6x5x6xf32>
  %3 = "aten.bmm_default"(%1, %2) : (tensor<6x4x5xf32>, tensor<6x5x6xf32>) -> tensor<6x4x6xf32>
  %4 = "aten.reshape_default"(%3) {shape = array<i64: 2, 3, 4, 6>} : (tensor<6x4x6xf32>) -> tensor<2x3x4x6xf32>
  return %4 : tensor<2x3x4x6xf32>
}

// -----

// A backward's transposed operand is looked through; what comes merged is taken apart, and who wants it merged gets it.

// CHECK: %[[T:.+]] = "aten.transpose_int"(%arg0) {dim0 = 2 : i64, dim1 = 3 : i64} : {{.*}} -> tensor<2x3x5x4xf32>
// CHECK-NEXT: %[[B:.+]] = "aten.reshape_default"(%arg1) {shape = array<i64: 2, 3, 4, 6>}
// CHECK-NEXT: %[[C:.+]] = "nn.matmul"(%[[T]], %[[B]]) : {{.*}} -> tensor<2x3x5x6xf32>
// CHECK-NEXT: %[[M:.+]] = "aten.reshape_default"(%[[C]]) {shape = array<i64: 6, 5, 6>}
// CHECK-NEXT: return %[[M]]
func.func @main(%a: tensor<2x3x4x5xf32>, %b: tensor<6x4x6xf32>) -> tensor<6x5x6xf32> {
  %0 = "aten.reshape_default"(%a) {shape = array<i64: 6, 4, 5>} : (tensor<2x3x4x5xf32>) -> tensor<6x4x5xf32>
  %1 = "aten.transpose_int"(%0) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<6x4x5xf32>) -> tensor<6x5x4xf32>
  %2 = "aten.bmm_default"(%1, %b) : (tensor<6x5x4xf32>, tensor<6x4x6xf32>) -> tensor<6x5x6xf32>
  return %2 : tensor<6x5x6xf32>
}

// -----

// Experts' products, whose first dim was never merged, stay; so do those of other dims cut anew.

// CHECK: "aten.bmm_default"(%arg0, %arg1)
// CHECK: "aten.bmm_default"
// CHECK-NOT: nn.matmul
func.func @main(%a: tensor<6x4x5xf32>, %b: tensor<6x5x6xf32>, %c: tensor<2x6x2x5xf32>) -> (tensor<6x4x6xf32>, tensor<6x4x6xf32>) {
  %0 = "aten.bmm_default"(%a, %b) : (tensor<6x4x5xf32>, tensor<6x5x6xf32>) -> tensor<6x4x6xf32>
  %1 = "aten.reshape_default"(%c) {shape = array<i64: 6, 4, 5>} : (tensor<2x6x2x5xf32>) -> tensor<6x4x5xf32>
  %2 = "aten.bmm_default"(%1, %b) : (tensor<6x4x5xf32>, tensor<6x5x6xf32>) -> tensor<6x4x6xf32>
  return %0, %2 : tensor<6x4x6xf32>, tensor<6x4x6xf32>
}
