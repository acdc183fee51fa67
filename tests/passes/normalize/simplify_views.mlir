// RUN: stretto opt -p "simplify-views,canonicalize" %s | filecheck %s
// A transpose of a transpose is gone; a reshape of a reshape is one; a reshape to the same shape is none.

// CHECK-LABEL: func.func @main
// CHECK-NEXT: %[[R:.*]] = "aten.reshape_default"(%arg1) {shape = array<i64: 2, 2, 6>}
// CHECK-NEXT: return %arg0, %[[R]], %arg0
module {
  func.func @main(%a: tensor<4x6xf32>, %b: tensor<24xf32>) -> (tensor<4x6xf32>, tensor<2x2x6xf32>, tensor<4x6xf32>) {
    %0 = "aten.t_default"(%a) : (tensor<4x6xf32>) -> tensor<6x4xf32>
    %1 = "aten.t_default"(%0) : (tensor<6x4xf32>) -> tensor<4x6xf32>
    %2 = "aten.reshape_default"(%b) {shape = array<i64: 4, 6>} : (tensor<24xf32>) -> tensor<4x6xf32>
    %3 = "aten.reshape_default"(%2) {shape = array<i64: 2, 2, 6>} : (tensor<4x6xf32>) -> tensor<2x2x6xf32>
    %4 = "aten.reshape_default"(%a) {shape = array<i64: 4, 6>} : (tensor<4x6xf32>) -> tensor<4x6xf32>
    return %1, %3, %4 : tensor<4x6xf32>, tensor<2x2x6xf32>, tensor<4x6xf32>
  }
}

// -----
// Transposes of different dims do not undo each other.

// CHECK-LABEL: func.func @main
// CHECK-COUNT-2: "aten.transpose_int"
module {
  func.func @main(%a: tensor<2x3x4xf32>) -> tensor<3x4x2xf32> {
    %0 = "aten.transpose_int"(%a) {dim0 = 0 : i64, dim1 = 1 : i64} : (tensor<2x3x4xf32>) -> tensor<3x2x4xf32>
    %1 = "aten.transpose_int"(%0) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<3x2x4xf32>) -> tensor<3x4x2xf32>
    return %1 : tensor<3x4x2xf32>
  }
}
