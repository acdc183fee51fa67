// RUN: stretto opt -p "find-causal-masks" %s | filecheck %s

// The mask compares positions, in main; layers get it as an argument. It is causal: nothing of it is left.

// CHECK-LABEL: @layer
// CHECK-SAME: (%arg0: tensor<2x1x8x4xf32>)
// CHECK-NEXT: "nn.attention"(%arg0, %arg0, %arg0) {causal = true
// CHECK-LABEL: @main
// CHECK-NEXT: call @layer(%arg0) : (tensor<2x1x8x4xf32>)
// CHECK-NEXT: call @layer
// CHECK-NEXT: return
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]]} {
  func.func private @layer(%q: tensor<2x1x8x4xf32>, %seen: tensor<1x1x8x8xi1>) -> tensor<2x1x8x4xf32> {
    %0 = "aten.scalar_tensor_default"() {dtype = f32, s = 0xFFF0000000000000 : f64} : () -> tensor<f32>
    %1 = "aten.scalar_tensor_default"() {dtype = f32, s = 0.0 : f64} : () -> tensor<f32>
    %2 = "aten.where_self"(%seen, %1, %0) : (tensor<1x1x8x8xi1>, tensor<f32>, tensor<f32>) -> tensor<1x1x8x8xf32>
    %3:2 = "nn.attention"(%q, %q, %q, %2) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0>} : (tensor<2x1x8x4xf32>, tensor<2x1x8x4xf32>, tensor<2x1x8x4xf32>, tensor<1x1x8x8xf32>) -> (tensor<2x1x8x4xf32>, tensor<2x1x8xf32>)
    return %3#0 : tensor<2x1x8x4xf32>
  }
  func.func @main(%x: tensor<2x1x8x4xf32>) -> tensor<2x1x8x4xf32> {
    %0 = "aten.arange_default"() {end = 8 : i64} : () -> tensor<8xi64>
    %1 = "aten.unsqueeze_default"(%0) {dim = 1 : i64} : (tensor<8xi64>) -> tensor<8x1xi64>
    %2 = "aten.le_tensor"(%0, %1) : (tensor<8xi64>, tensor<8x1xi64>) -> tensor<8x8xi1>
    %3 = "aten.reshape_default"(%2) {shape = array<i64: 1, 1, 8, 8>} : (tensor<8x8xi1>) -> tensor<1x1x8x8xi1>
    %4 = call @layer(%x, %3) : (tensor<2x1x8x4xf32>, tensor<1x1x8x8xi1>) -> tensor<2x1x8x4xf32>
    %5 = call @layer(%4, %3) : (tensor<2x1x8x4xf32>, tensor<1x1x8x8xi1>) -> tensor<2x1x8x4xf32>
    return %5 : tensor<2x1x8x4xf32>
  }
}

// -----

// A window beside padding: of the mask it is noted how near and how far a key is that a query may see.

// CHECK: "nn.attention"(%arg0, %arg0, %arg0, %{{.+}}) {band = {highest = 2 : i64, lowest = 0 : i64}, causal = false
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]]} {
  func.func @main(%x: tensor<2x1x8x4xf32>, %real: tensor<2x1x1x8xi1>) -> tensor<2x1x8x4xf32> {
    %0 = "aten.arange_default"() {end = 8 : i64} : () -> tensor<8xi64>
    %1 = "aten.unsqueeze_default"(%0) {dim = 1 : i64} : (tensor<8xi64>) -> tensor<8x1xi64>
    %2 = "aten.sub_tensor"(%1, %0) : (tensor<8x1xi64>, tensor<8xi64>) -> tensor<8x8xi64>
    %3 = "aten.lt_scalar"(%2) {other = 3 : i64} : (tensor<8x8xi64>) -> tensor<8x8xi1>
    %4 = "aten.ge_scalar"(%2) {other = 0 : i64} : (tensor<8x8xi64>) -> tensor<8x8xi1>
    %5 = "aten.bitwise_and_tensor"(%3, %4) : (tensor<8x8xi1>, tensor<8x8xi1>) -> tensor<8x8xi1>
    %6 = "aten.bitwise_and_tensor"(%real, %5) : (tensor<2x1x1x8xi1>, tensor<8x8xi1>) -> tensor<2x1x8x8xi1>
    %7 = "aten.full_default"() {fill_value = 0.0 : f64, size = array<i64: 2, 1, 8, 8>, dtype = f32} : () -> tensor<2x1x8x8xf32>
    %8 = "aten.bitwise_not_default"(%6) : (tensor<2x1x8x8xi1>) -> tensor<2x1x8x8xi1>
    %9 = "aten.masked_fill_scalar"(%7, %8) {value = 0xFFF0000000000000 : f64} : (tensor<2x1x8x8xf32>, tensor<2x1x8x8xi1>) -> tensor<2x1x8x8xf32>
    %10:2 = "nn.attention"(%x, %x, %x, %9) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0>} : (tensor<2x1x8x4xf32>, tensor<2x1x8x4xf32>, tensor<2x1x8x4xf32>, tensor<2x1x8x8xf32>) -> (tensor<2x1x8x4xf32>, tensor<2x1x8xf32>)
    return %10#0 : tensor<2x1x8x4xf32>
  }
}

// -----

// A mask that is -1e9 and not -inf where keys come later hides nothing: a row of such numbers alone is a mean.

// CHECK: "nn.attention"(%arg0, %arg0, %arg0, %{{.+}}) {causal = false
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]]} {
  func.func @main(%x: tensor<2x1x8x4xf32>) -> tensor<2x1x8x4xf32> {
    %0 = "aten.full_default"() {fill_value = -1.0e9 : f64, size = array<i64: 8, 8>, dtype = f32} : () -> tensor<8x8xf32>
    %1 = "aten.triu_default"(%0) {diagonal = 1 : i64} : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %2:2 = "nn.attention"(%x, %x, %x, %1) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0>} : (tensor<2x1x8x4xf32>, tensor<2x1x8x4xf32>, tensor<2x1x8x4xf32>, tensor<8x8xf32>) -> (tensor<2x1x8x4xf32>, tensor<2x1x8xf32>)
    return %2#0 : tensor<2x1x8x4xf32>
  }
}
