// RUN: stretto opt -p "expand-losses" %s | filecheck %s

// Mean squares, the reduction being the schema's default; and the backward, which knows the count.

// CHECK: %[[D:.+]] = "aten.sub_tensor"(%arg0, %arg1)
// CHECK-NEXT: %[[S:.+]] = "aten.pow_tensor_scalar"(%[[D]]) {exponent = 2 : i64}
// CHECK-NEXT: %[[M:.+]] = "aten.mean_default"(%[[S]]) : {{.*}} -> tensor<f32>
// CHECK: "aten.mul_scalar"({{.*}}) {other = 0.16666666666666666 : f64}
// CHECK-NOT: mse_loss
func.func @main(%x: tensor<4x3xf32>, %y: tensor<4x3xf32>, %g: tensor<f32>) -> (tensor<f32>, tensor<4x3xf32>) {
  %0 = "aten.mse_loss_default"(%x, %y) : (tensor<4x3xf32>, tensor<4x3xf32>) -> tensor<f32>
  %1 = "aten.mse_loss_backward_default"(%g, %x, %y) {reduction = 1 : i64} : (tensor<f32>, tensor<4x3xf32>, tensor<4x3xf32>) -> tensor<4x3xf32>
  return %0, %1 : tensor<f32>, tensor<4x3xf32>
}

// -----

// A loss of each element has no mean.

// CHECK: %[[S:.+]] = "aten.pow_tensor_scalar"
// CHECK-NEXT: return %[[S]]
func.func @main(%x: tensor<4x3xf32>, %y: tensor<4x3xf32>) -> tensor<4x3xf32> {
  %0 = "aten.mse_loss_default"(%x, %y) {reduction = 0 : i64} : (tensor<4x3xf32>, tensor<4x3xf32>) -> tensor<4x3xf32>
  return %0 : tensor<4x3xf32>
}

// -----

// Must not fire: a loss over classes is no loss of pairs.

// CHECK: "aten.u_log_softmax_default"
// CHECK-NEXT: return
func.func @main(%x: tensor<4x3xf32>) -> tensor<4x3xf32> {
  %0 = "aten.u_log_softmax_default"(%x) {dim = 1 : i64, half_to_float = false} : (tensor<4x3xf32>) -> tensor<4x3xf32>
  return %0 : tensor<4x3xf32>
}
