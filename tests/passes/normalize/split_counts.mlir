// RUN: stretto opt -p "split-counts" %s | filecheck %s

// The count of a cross-entropy depends on the labels alone.

// CHECK: %[[V:.+]] = "aten.ne_scalar"(%arg1) {other = -100 : i64}
// CHECK-NEXT: %[[N:.+]] = "aten.sum_default"(%[[V]]) {dtype = f32}
// CHECK-NEXT: %[[L:.+]]:3 = "nn.cross_entropy"(%arg0, %arg1)
// CHECK-NEXT: "aten.div_tensor"(%[[L]]#0, %[[N]])
func.func @main(%x: tensor<4x3xf32>, %y: tensor<4xi64>) -> tensor<f32> {
  %0:3 = "nn.cross_entropy"(%x, %y) {ignore_index = -100 : i64} : (tensor<4x3xf32>, tensor<4xi64>) -> (tensor<f32>, tensor<f32>, tensor<4xf32>)
  %1 = "aten.div_tensor"(%0#0, %0#1) : (tensor<f32>, tensor<f32>) -> tensor<f32>
  return %1 : tensor<f32>
}

// -----

// Must not fire: the count of a loss of other operations is `split-means`' part.

// CHECK-NOT: aten.ne
// CHECK: "aten.nll_loss_forward_default"(%arg0, %arg1)
func.func @main(%x: tensor<4x3xf32>, %y: tensor<4xi64>) -> tensor<f32> {
  %0:2 = "aten.nll_loss_forward_default"(%x, %y) {ignore_index = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 0>, reduction = 1 : i64} : (tensor<4x3xf32>, tensor<4xi64>) -> (tensor<f32>, tensor<f32>)
  return %0#0 : tensor<f32>
}
