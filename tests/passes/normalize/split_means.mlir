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

// Must not fire: the mean of nothing is not a number, which no count divides.

// CHECK: "aten.mean_dim"
// CHECK-NOT: aten.sum
func.func @main(%x: tensor<0x3xf32>) -> tensor<3xf32> {
  %0 = "aten.mean_dim"(%x) {dim = array<i64: 0>, keepdim = false} : (tensor<0x3xf32>) -> tensor<3xf32>
  return %0 : tensor<3xf32>
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
