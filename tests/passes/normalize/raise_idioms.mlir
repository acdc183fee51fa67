// RUN: stretto opt -p "raise-idioms" %s | filecheck %s

// A mean of squares, its reciprocal root, and two products are one norm.

// CHECK: func.func @main
// CHECK-NEXT: %[[N:.+]]:2 = "nn.rms_norm"(%arg0, %arg1) {eps = 9.9999999999999995E-7 : f64}
// CHECK-NEXT: return %[[N]]#0
func.func @main(%x: tensor<4x8xf32>, %w: tensor<8xf32>) -> tensor<4x8xf32> {
  %0 = "aten.pow_tensor_scalar"(%x) {exponent = 2 : i64} : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %1 = "aten.mean_dim"(%0) {dim = array<i64: -1>, keepdim = true} : (tensor<4x8xf32>) -> tensor<4x1xf32>
  %2 = "aten.add_scalar"(%1) {other = 9.9999999999999995E-7 : f64} : (tensor<4x1xf32>) -> tensor<4x1xf32>
  %3 = "aten.rsqrt_default"(%2) : (tensor<4x1xf32>) -> tensor<4x1xf32>
  %4 = "aten.mul_tensor"(%x, %3) : (tensor<4x8xf32>, tensor<4x1xf32>) -> tensor<4x8xf32>
  %5 = "aten.mul_tensor"(%w, %4) : (tensor<8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
  return %5 : tensor<4x8xf32>
}

// -----

// Must not fire: a mean of cubes is in no norm.

// CHECK-NOT: nn.
// CHECK: return
func.func @main(%x: tensor<4x8xf32>, %w: tensor<8xf32>) -> tensor<4x8xf32> {
  %0 = "aten.pow_tensor_scalar"(%x) {exponent = 3 : i64} : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %1 = "aten.mean_dim"(%0) {dim = array<i64: -1>, keepdim = true} : (tensor<4x8xf32>) -> tensor<4x1xf32>
  %2 = "aten.add_scalar"(%1) {other = 9.9999999999999995E-7 : f64} : (tensor<4x1xf32>) -> tensor<4x1xf32>
  %3 = "aten.rsqrt_default"(%2) : (tensor<4x1xf32>) -> tensor<4x1xf32>
  %4 = "aten.mul_tensor"(%x, %3) : (tensor<4x8xf32>, tensor<4x1xf32>) -> tensor<4x8xf32>
  %5 = "aten.mul_tensor"(%w, %4) : (tensor<8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
  return %5 : tensor<4x8xf32>
}

// -----

// Cross-entropy over classes gives a total and a count, which ranks can add up; its backward needs no log-softmax.

// CHECK: %[[C:.+]]:3 = "nn.cross_entropy"(%arg0, %arg1)
// CHECK-NEXT: %[[L:.+]] = "aten.div_tensor"(%[[C]]#0, %[[C]]#1)
// CHECK: %[[G:.+]] = "nn.cross_entropy_backward"({{.*}}, %arg0, %arg1, %[[C]]#2)
// CHECK-NOT: log_softmax
// CHECK: return %[[L]], %[[G]]
func.func @main(%x: tensor<4x10xf32>, %t: tensor<4xi64>, %g: tensor<f32>) -> (tensor<f32>, tensor<4x10xf32>) {
  %1 = "aten.u_log_softmax_default"(%x) {dim = 1 : i64, half_to_float = false} : (tensor<4x10xf32>) -> tensor<4x10xf32> loc(fused<{backward = false}>["loss"])
  %2:2 = "aten.nll_loss_forward_default"(%1, %t) {ignore_index = -100 : i64, operandSegmentSizes = array<i32: 1, 1, 0>, reduction = 1 : i64} : (tensor<4x10xf32>, tensor<4xi64>) -> (tensor<f32>, tensor<f32>) loc(fused<{backward = false}>["loss"])
  %3 = "aten.nll_loss_backward_default"(%g, %1, %t, %2#1) {ignore_index = -100 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0, 1>, reduction = 1 : i64} : (tensor<f32>, tensor<4x10xf32>, tensor<4xi64>, tensor<f32>) -> tensor<4x10xf32> loc(fused<{backward = true}>["loss"])
  %4 = "aten.u_log_softmax_backward_data_default"(%3, %1) {dim = 1 : i64, input_dtype = f32} : (tensor<4x10xf32>, tensor<4x10xf32>) -> tensor<4x10xf32> loc(fused<{backward = true}>["loss"])
  return %2#0, %4 : tensor<f32>, tensor<4x10xf32>
}

// -----

// Attention that is one operation of torch already; of its results only the first is used.

// CHECK: %[[A:.+]]:2 = "nn.attention"(%arg0, %arg1, %arg1)
// CHECK: return %[[A]]#0
func.func @main(%q: tensor<2x2x4x8xf32>, %k: tensor<2x2x4x8xf32>) -> tensor<2x2x4x8xf32> {
  %0:2 = "aten.u_scaled_dot_product_flash_attention_for_cpu_default"(%q, %k, %k) {dropout_p = 0.000000e+00 : f64, is_causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<2x2x4x8xf32>, tensor<2x2x4x8xf32>, tensor<2x2x4x8xf32>) -> (tensor<2x2x4x8xf32>, tensor<2x2x4xf32>)
  return %0#0 : tensor<2x2x4x8xf32>
}
