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

// Classes with weights: the sum of the weights of those labels that are not ignored; the mean becomes a sum and a
// division, forward and backward.

// CHECK: %[[E:.+]] = "aten.eq_scalar"(%arg1) {other = 2 : i64}
// CHECK-NEXT: %[[C:.+]] = "aten.masked_fill_scalar"(%arg1, %[[E]])
// CHECK: %[[P:.+]] = "aten.index_tensor"(%arg2,
// CHECK-NEXT: %[[M:.+]] = "aten.masked_fill_scalar"(%[[P]], %[[E]])
// CHECK-NEXT: %[[N:.+]] = "aten.sum_default"(%[[M]])
// CHECK-NEXT: %[[L:.+]]:2 = "aten.nll_loss_forward_default"(%arg0, %arg1, %arg2) {ignore_index = 2 : i64, {{.*}}, reduction = 2
// CHECK-NEXT: %[[D:.+]] = "aten.div_tensor"(%[[L]]#0, %[[N]])
// CHECK-NEXT: %[[G:.+]] = "aten.div_tensor"(%[[D]], %[[N]])
// CHECK-NEXT: "aten.nll_loss_backward_default"(%[[G]], %arg0, %arg1, %arg2, %[[N]]) {ignore_index = 2 : i64, {{.*}}, reduction = 2
func.func @main(%x: tensor<4x3xf32>, %y: tensor<4xi64>, %w: tensor<3xf32>) -> tensor<4x3xf32> {
  %0:2 = "aten.nll_loss_forward_default"(%x, %y, %w) {ignore_index = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1>, reduction = 1 : i64} : (tensor<4x3xf32>, tensor<4xi64>, tensor<3xf32>) -> (tensor<f32>, tensor<f32>)
  %1 = "aten.nll_loss_backward_default"(%0#0, %x, %y, %w, %0#1) {ignore_index = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1>, reduction = 1 : i64} : (tensor<f32>, tensor<4x3xf32>, tensor<4xi64>, tensor<3xf32>, tensor<f32>) -> tensor<4x3xf32>
  return %1 : tensor<4x3xf32>
}

// -----

// Must not fire: losses of rows are not divided, and a sum's backward is left as it is.

// CHECK: "aten.nll_loss_backward_default"(%arg0, %arg1, %arg2, %arg3)
// CHECK-NOT: aten.div
func.func @main(%g: tensor<f32>, %x: tensor<4x3xf32>, %y: tensor<4xi64>, %n: tensor<f32>) -> tensor<4x3xf32> {
  %1 = "aten.nll_loss_backward_default"(%g, %x, %y, %n) {ignore_index = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0, 1>, reduction = 2 : i64} : (tensor<f32>, tensor<4x3xf32>, tensor<4xi64>, tensor<f32>) -> tensor<4x3xf32>
  return %1 : tensor<4x3xf32>
}
