// RUN: stretto opt -p "put-batch-first" %s | filecheck %s

// Rows of a matrix product, tokens first (3 tokens, 4 examples).

// CHECK: %[[T:.+]] = "aten.transpose_int"(%arg0) {dim0 = 0 : i64, dim1 = 1 : i64} : (tensor<3x4x5xf32>) -> tensor<4x3x5xf32>
// CHECK-NEXT: %[[R:.+]] = "aten.reshape_default"(%[[T]]) {shape = array<i64: 12, 5>}
// CHECK-NEXT: %[[Y:.+]] = "aten.mm_default"(%[[R]], %arg1)
// CHECK-NEXT: %[[A:.+]] = "aten.reshape_default"(%[[Y]]) {shape = array<i64: 4, 3, 2>}
// CHECK-NEXT: %[[U:.+]] = "aten.transpose_int"(%[[A]]) {{.*}} -> tensor<3x4x2xf32>
// CHECK-NEXT: "aten.reshape_default"(%[[U]]) {shape = array<i64: 12, 2>}
module attributes {comm.activations = [], comm.tokens = [4, 3]} {
func.func @main(%x: tensor<3x4x5xf32>, %w: tensor<5x2xf32>) -> tensor<12x2xf32> {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 12, 5>} : (tensor<3x4x5xf32>) -> tensor<12x5xf32>
  %1 = "aten.mm_default"(%0, %w) : (tensor<12x5xf32>, tensor<5x2xf32>) -> tensor<12x2xf32>
  return %1 : tensor<12x2xf32>
}
}

// -----

// A product that contracts rows, and a sum of rows, take them in any order.

// CHECK: %[[G:.+]] = "aten.reshape_default"({{.*}}) {shape = array<i64: 12, 2>} : (tensor<4x3x2xf32>)
// CHECK-NEXT: %[[T:.+]] = "aten.t_default"(%[[G]])
// CHECK: %[[X:.+]] = "aten.reshape_default"({{.*}}) {shape = array<i64: 12, 5>} : (tensor<4x3x5xf32>)
// CHECK-NEXT: "aten.mm_default"(%[[T]], %[[X]])
// CHECK: %[[S:.+]] = "aten.reshape_default"({{.*}}) {shape = array<i64: 12, 2>} : (tensor<4x3x2xf32>)
// CHECK-NEXT: "aten.sum_dim_intlist"(%[[S]])
module attributes {comm.activations = [], comm.tokens = [4, 3]} {
func.func @main(%x: tensor<3x4x5xf32>, %g: tensor<3x4x2xf32>) -> (tensor<2x5xf32>, tensor<2xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 12, 5>} : (tensor<3x4x5xf32>) -> tensor<12x5xf32>
  %1 = "aten.reshape_default"(%g) {shape = array<i64: 12, 2>} : (tensor<3x4x2xf32>) -> tensor<12x2xf32>
  %2 = "aten.t_default"(%1) : (tensor<12x2xf32>) -> tensor<2x12xf32>
  %3 = "aten.mm_default"(%2, %0) : (tensor<2x12xf32>, tensor<12x5xf32>) -> tensor<2x5xf32>
  %4 = "aten.sum_dim_intlist"(%1) {dim = array<i64: 0>, keepdim = false} : (tensor<12x2xf32>) -> tensor<2xf32>
  return %3, %4 : tensor<2x5xf32>, tensor<2xf32>
}
}

// -----

// Must not fire: the batch is first already.

// CHECK-NOT: aten.transpose
module attributes {comm.activations = [], comm.tokens = [4, 3]} {
func.func @main(%x: tensor<4x3x5xf32>, %w: tensor<5x2xf32>) -> tensor<12x2xf32> {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 12, 5>} : (tensor<4x3x5xf32>) -> tensor<12x5xf32>
  %1 = "aten.mm_default"(%0, %w) : (tensor<12x5xf32>, tensor<5x2xf32>) -> tensor<12x2xf32>
  return %1 : tensor<12x2xf32>
}
}
