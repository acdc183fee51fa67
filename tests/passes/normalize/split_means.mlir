// RUN: stretto opt -p "split-means" %s | filecheck %s

// Over some dims: their extents multiply to the count.

// CHECK: %[[S:.+]] = "aten.sum_dim_intlist"(%arg0) {dim = array<i64: 0, -1>, keepdim = true} : {{.*}} -> tensor<1x3x1xf32>
// CHECK-NEXT: %[[M:.+]] = "aten.div_scalar"(%[[S]]) {other = 8 : i64}
// CHECK-NEXT: return %[[M]]
func.func @main(%x: tensor<4x3x2xf32>) -> tensor<1x3x1xf32> {
  %0 = "aten.mean_dim"(%x) {dim = array<i64: 0, -1>, keepdim = true} : (tensor<4x3x2xf32>) -> tensor<1x3x1xf32>
  return %0 : tensor<1x3x1xf32>
}

// -----

// Over all; short floats are added up in float32 and cast back.

// CHECK: %[[S:.+]] = "aten.sum_default"(%arg0) {dtype = f32} : (tensor<4x3xbf16>) -> tensor<f32>
// CHECK-NEXT: %[[M:.+]] = "aten.div_scalar"(%[[S]]) {other = 12 : i64}
// CHECK-NEXT: %[[C:.+]] = "aten.u_to_copy_default"(%[[M]]) {dtype = bf16}
// CHECK-NEXT: return %[[C]]
func.func @main(%x: tensor<4x3xbf16>) -> tensor<bf16> {
  %0 = "aten.mean_default"(%x) : (tensor<4x3xbf16>) -> tensor<bf16>
  return %0 : tensor<bf16>
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

// Losses of 16 bits are added up in float32.

// CHECK: %[[X:.+]] = "aten.u_to_copy_default"(%arg0) {dtype = f32}
// CHECK: %[[L:.+]]:2 = "aten.nll_loss_forward_default"(%[[X]], %arg1) {ignore_index = -100 : i64, {{.*}}, reduction = 2 : i64} : {{.*}} -> (tensor<f32>, tensor<f32>)
// CHECK-NEXT: %[[D:.+]] = "aten.div_tensor"(%[[L]]#0,
// CHECK-NEXT: "aten.u_to_copy_default"(%[[D]]) {dtype = f16}
func.func @main(%x: tensor<4x3xf16>, %y: tensor<4xi64>) -> tensor<f16> {
  %0:2 = "aten.nll_loss_forward_default"(%x, %y) {ignore_index = -100 : i64, operandSegmentSizes = array<i32: 1, 1, 0>, reduction = 1 : i64} : (tensor<4x3xf16>, tensor<4xi64>) -> (tensor<f16>, tensor<f16>)
  return %0#0 : tensor<f16>
}

// -----

// Must not fire: the mean of nothing is not a number, which no count divides.

// CHECK: "aten.mean_dim"
// CHECK-NOT: aten.sum
func.func @main(%x: tensor<0x3xf32>) -> tensor<3xf32> {
  %0 = "aten.mean_dim"(%x) {dim = array<i64: 0>, keepdim = false} : (tensor<0x3xf32>) -> tensor<3xf32>
  return %0 : tensor<3xf32>
}

// -----

// Must not fire: losses of rows are not divided, and a sum's backward is left as it is.

// CHECK: "aten.nll_loss_backward_default"(%arg0, %arg1, %arg2, %arg3)
// CHECK-NOT: aten.div
func.func @main(%g: tensor<f32>, %x: tensor<4x3xf32>, %y: tensor<4xi64>, %n: tensor<f32>) -> tensor<4x3xf32> {
  %1 = "aten.nll_loss_backward_default"(%g, %x, %y, %n) {ignore_index = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0, 1>, reduction = 2 : i64} : (tensor<f32>, tensor<4x3xf32>, tensor<4xi64>, tensor<f32>) -> tensor<4x3xf32>
  return %1 : tensor<4x3xf32>
}

// -----
// RUN: stretto opt -p "split-means,propagate-placements,partition-tensors" %s | filecheck %s

// What it is for: a batch's mean is one number that is reduced, not a batch that is gathered.

// CHECK-NOT: comm.all_gather
// CHECK: "comm.all_reduce"({{.*}} : (tensor<f32, {dp = "partial(sum)"}>) -> tensor<f32>
module attributes {comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<4x3xf32, {dp = "shard(0)"}>) -> tensor<f32> {
  %0 = "aten.mean_default"(%x) : (tensor<4x3xf32, {dp = "shard(0)"}>) -> tensor<f32>
  return %0 : tensor<f32>
}
}
