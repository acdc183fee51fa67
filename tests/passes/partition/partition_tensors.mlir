// RUN: stretto opt -p "partition-tensors" %s | filecheck %s

// A partial sum: reduced whole, over all its axes at once, or scattered onto the dim that the axis is to shard.

// CHECK: "comm.all_reduce"(%arg0) {axes = ["dp", "tp"], reduce = "sum"} : {{.*}} -> tensor<4x6xf32>
// CHECK: "comm.reduce_scatter"(%arg1) {axes = ["tp"], dim = 0 : i64, reduce = "sum"} : {{.*}} -> tensor<2x6xf32, {tp = "shard(0)"}>
module attributes {comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(%x: tensor<4x6xf32, {dp = "partial(sum)", tp = "partial(sum)"}>, %y: tensor<4x6xf32, {tp = "partial(sum)"}>) -> (tensor<4x6xf32>, tensor<4x6xf32, {tp = "shard(0)"}>) {
  %0 = "comm.reshard"(%x) : (tensor<4x6xf32, {dp = "partial(sum)", tp = "partial(sum)"}>) -> tensor<4x6xf32>
  %1 = "comm.reshard"(%y) : (tensor<4x6xf32, {tp = "partial(sum)"}>) -> tensor<4x6xf32, {tp = "shard(0)"}>
  return %0, %1 : tensor<4x6xf32>, tensor<4x6xf32, {tp = "shard(0)"}>
}
}

// -----

// Five rows over two: each holds three, the gathered sixth is cut off; before they are scattered, a row of zeros is added.

// CHECK: @main(%arg0: tensor<3x4xf32, {extents = array<i64: 5, 4>, tp = "shard(0)"}>
// CHECK-NEXT: %[[G:.+]] = "comm.all_gather"(%arg0) {axes = ["tp"], dim = 0 : i64} : {{.*}} -> tensor<6x4xf32>
// CHECK-NEXT: "aten.slice_tensor"(%[[G]]) {dim = 0 : i64, end = 5 : i64, start = 0 : i64{{.*}} -> tensor<5x4xf32>
// CHECK-NEXT: %[[P:.+]] = "aten.constant_pad_nd_default"(%arg1) {pad = array<i64: 0, 0, 0, 1>{{.*}} -> tensor<6x4xf32>
// CHECK-NEXT: "comm.reduce_scatter"(%[[P]]) {axes = ["tp"], dim = 0 : i64, reduce = "sum"} : {{.*}} -> tensor<3x4xf32, {extents = array<i64: 5, 4>
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<5x4xf32, {tp = "shard(0)"}>, %y: tensor<5x4xf32, {tp = "partial(sum)"}>) -> (tensor<5x4xf32>, tensor<5x4xf32, {tp = "shard(0)"}>) {
  %0 = "comm.reshard"(%x) : (tensor<5x4xf32, {tp = "shard(0)"}>) -> tensor<5x4xf32>
  %1 = "comm.reshard"(%y) : (tensor<5x4xf32, {tp = "partial(sum)"}>) -> tensor<5x4xf32, {tp = "shard(0)"}>
  return %0, %1 : tensor<5x4xf32>, tensor<5x4xf32, {tp = "shard(0)"}>
}
}

// -----

// From one dim to another: an all-to-all where both are even, else gathered and cut again.

// CHECK: "comm.all_to_all"(%arg0) {axes = ["tp"], concat_dim = 0 : i64, split_dim = 1 : i64}
// CHECK: %[[G:.+]] = "comm.all_gather"(%arg1)
// CHECK: "comm.shard"(%[[G]]) {axes = ["tp"], chunk = 3 : i64, dim = 1 : i64}
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x6xf32, {tp = "shard(0)"}>, %y: tensor<4x5xf32, {tp = "shard(0)"}>) -> (tensor<4x6xf32, {tp = "shard(1)"}>, tensor<4x5xf32, {tp = "shard(1)"}>) {
  %0 = "comm.reshard"(%x) : (tensor<4x6xf32, {tp = "shard(0)"}>) -> tensor<4x6xf32, {tp = "shard(1)"}>
  %1 = "comm.reshard"(%y) : (tensor<4x5xf32, {tp = "shard(0)"}>) -> tensor<4x5xf32, {tp = "shard(1)"}>
  return %0, %1 : tensor<4x6xf32, {tp = "shard(1)"}>, tensor<4x5xf32, {tp = "shard(1)"}>
}
}

// -----

// Two axes on one dim: the inner is peeled off where chunks nest evenly (8 = 2 * 4), else (6: chunks of 2, 2, 2, 0) all is gathered.

// CHECK: "comm.all_gather"(%arg0) {axes = ["tp"], dim = 0 : i64} : {{.*}} -> tensor<4xf32, {dp = "shard(0)"}>
// CHECK: %[[G:.+]] = "comm.all_gather"(%arg1) {axes = ["dp", "tp"], dim = 0 : i64} : {{.*}} -> tensor<8xf32>
// CHECK: %[[S:.+]] = "aten.slice_tensor"(%[[G]])
// CHECK: "comm.shard"(%[[S]]) {axes = ["dp"], chunk = 3 : i64, dim = 0 : i64}
module attributes {comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(%x: tensor<8xf32, {dp = "shard(0)", tp = "shard(0)"}>, %y: tensor<6xf32, {dp = "shard(0)", tp = "shard(0)"}>) -> (tensor<8xf32, {dp = "shard(0)"}>, tensor<6xf32, {dp = "shard(0)"}>) {
  %0 = "comm.reshard"(%x) : (tensor<8xf32, {dp = "shard(0)", tp = "shard(0)"}>) -> tensor<8xf32, {dp = "shard(0)"}>
  %1 = "comm.reshard"(%y) : (tensor<6xf32, {dp = "shard(0)", tp = "shard(0)"}>) -> tensor<6xf32, {dp = "shard(0)"}>
  return %0, %1 : tensor<8xf32, {dp = "shard(0)"}>, tensor<6xf32, {dp = "shard(0)"}>
}
}

// -----

// A whole bias that joins a partial product is kept on the first rank and zero elsewhere, so that the sum counts it once.

// CHECK: %[[C:.+]] = "comm.offset"() {axes = ["tp"], chunk = 1 : i64}
// CHECK: %[[F:.+]] = "aten.eq_scalar"(%[[C]]) {other = 0 : i64}
// CHECK: %[[B:.+]] = "aten.where_scalarother"(%[[F]], %arg1) {other = 0.000000e+00 : f64} : {{.*}} -> tensor<6xf32, {tp = "partial(sum)"}>
// CHECK: "aten.add_tensor"(%arg0, %[[B]])
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x6xf32, {tp = "partial(sum)"}>, %b: tensor<6xf32>) -> tensor<4x6xf32, {tp = "partial(sum)"}> {
  %0 = "comm.reshard"(%b) : (tensor<6xf32>) -> tensor<6xf32, {tp = "partial(sum)"}>
  %1 = "aten.add_tensor"(%x, %0) : (tensor<4x6xf32, {tp = "partial(sum)"}>, tensor<6xf32, {tp = "partial(sum)"}>) -> tensor<4x6xf32, {tp = "partial(sum)"}>
  return %1 : tensor<4x6xf32, {tp = "partial(sum)"}>
}
}

// -----

// Padding of a summed dim is zeroed first; an even dim needs no mask.

// CHECK: %[[A:.+]] = "comm.mask"(%arg0) {axes = ["tp"], chunk = 3 : i64, dim = 1 : i64, extent = 5 : i64, fill = 0.000000e+00 : f64}
// CHECK: %[[B:.+]] = "comm.mask"(%arg1) {axes = ["tp"], chunk = 3 : i64, dim = 0 : i64, extent = 5 : i64
// CHECK: "aten.mm_default"(%[[A]], %[[B]]) : {{.*}} -> tensor<4x2xf32, {tp = "partial(sum)"}>
// CHECK-NOT: comm.mask
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x5xf32, {tp = "shard(1)"}>, %w: tensor<5x2xf32, {tp = "shard(0)"}>, %y: tensor<4x6xf32, {tp = "shard(1)"}>) -> (tensor<4x2xf32, {tp = "partial(sum)"}>, tensor<4xf32, {tp = "partial(sum)"}>) {
  %0 = "aten.mm_default"(%x, %w) : (tensor<4x5xf32, {tp = "shard(1)"}>, tensor<5x2xf32, {tp = "shard(0)"}>) -> tensor<4x2xf32, {tp = "partial(sum)"}>
  %1 = "aten.sum_dim_intlist"(%y) {dim = array<i64: 1>, keepdim = false} : (tensor<4x6xf32, {tp = "shard(1)"}>) -> tensor<4xf32, {tp = "partial(sum)"}>
  return %0, %1 : tensor<4x2xf32, {tp = "partial(sum)"}>, tensor<4xf32, {tp = "partial(sum)"}>
}
}

// -----

// Sizes that an op states become the rank's own; a vocabulary's lookup finds the rank's rows and gives zero for the others.

// CHECK: "aten.reshape_default"(%arg0) {shape = array<i64: 2, 6>}
// CHECK: %[[O:.+]] = "comm.offset"() {axes = ["tp"], chunk = 5 : i64}
// CHECK: %[[I:.+]] = "aten.sub_tensor"(%arg2, %[[O]])
// CHECK: "aten.embedding_default"(%arg1, {{.*}} : (tensor<5x4xf32, {tp = "shard(0)"}>
// CHECK: "aten.where_scalarother"{{.*}} -> tensor<3x4xf32, {tp = "partial(sum)"}>
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x2x3xf32, {tp = "shard(0)"}>, %w: tensor<10x4xf32, {tp = "shard(0)"}>, %i: tensor<3xi64>) -> (tensor<4x6xf32, {tp = "shard(0)"}>, tensor<3x4xf32, {tp = "partial(sum)"}>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 4, 6>} : (tensor<4x2x3xf32, {tp = "shard(0)"}>) -> tensor<4x6xf32, {tp = "shard(0)"}>
  %1 = "aten.embedding_default"(%w, %i) {padding_idx = -1 : i64, scale_grad_by_freq = false, sparse = false} : (tensor<10x4xf32, {tp = "shard(0)"}>, tensor<3xi64>) -> tensor<3x4xf32, {tp = "partial(sum)"}>
  return %0, %1 : tensor<4x6xf32, {tp = "shard(0)"}>, tensor<3x4xf32, {tp = "partial(sum)"}>
}
}

// -----

// A mask of five rows over two: each rank draws its own three; for a user that cuts columns it draws these anew.

// CHECK: @main(%[[S:.+]]: tensor<2xi64>, %[[N:.+]]: tensor<i64>, %{{.+}}: tensor<3x4xf32
// CHECK-NEXT: %[[A:.+]] = "comm.random"(%[[S]], %[[N]]) {axes = ["tp", ""], below = 7 : i64, chunks = array<i64: 3, 4>, size = array<i64: 5, 4>} : {{.*}} -> tensor<3x4xi1, {extents = array<i64: 5, 4>, tp = "shard(0)"}>
// CHECK-NEXT: %[[B:.+]] = "comm.random"(%[[S]], %[[N]]) {axes = ["", "tp"], below = 7 : i64, chunks = array<i64: 5, 2>, size = array<i64: 5, 4>} : {{.*}} -> tensor<5x2xi1, {tp = "shard(1)"}>
// CHECK-NEXT: return %[[A]], %[[B]]
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%s: tensor<2xi64>, %n: tensor<i64>, %x: tensor<5x4xf32, {tp = "shard(0)"}>) -> (tensor<5x4xi1, {tp = "shard(0)"}>, tensor<5x4xi1, {tp = "shard(1)"}>) {
  %0 = "nn.random"(%s, %n, %x) {below = 7 : i64, operandSegmentSizes = array<i32: 1, 1, 1>, size = array<i64: 5, 4>} : (tensor<2xi64>, tensor<i64>, tensor<5x4xf32, {tp = "shard(0)"}>) -> tensor<5x4xi1, {tp = "shard(0)"}>
  %1 = "comm.reshard"(%0) : (tensor<5x4xi1, {tp = "shard(0)"}>) -> tensor<5x4xi1, {tp = "shard(1)"}>
  return %0, %1 : tensor<5x4xi1, {tp = "shard(0)"}>, tensor<5x4xi1, {tp = "shard(1)"}>
}
}

// -----

// A batch norm over five rows on two ranks: sums are reduced, one number a channel; what pads the sixth row adds nothing.

// CHECK: %[[X:.+]] = "comm.mask"(%arg0) {axes = ["tp"], chunk = 3 : i64, dim = 0 : i64, extent = 5 : i64, fill = 0.000000e+00 : f64}
// CHECK: %[[S:.+]] = "aten.sum_dim_intlist"(%[[X]]) {dim = array<i64: 0>, keepdim = false}
// CHECK: %[[T:.+]] = "comm.all_reduce"(%[[S]]) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>
// CHECK: %[[M:.+]] = "aten.div_scalar"(%[[T]]) {other = 5.000000e+00 : f64}
// CHECK: "comm.mask"
// CHECK: "comm.all_reduce"{{.*}} : (tensor<4xf32>) -> tensor<4xf32>
// CHECK-NOT: comm.
// CHECK: return %{{.+}}, %[[M]], %{{.+}}
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<5x4xf32, {tp = "shard(0)"}>) -> (tensor<5x4xf32, {tp = "shard(0)"}>, tensor<4xf32>, tensor<4xf32>) {
  %0:3 = "aten.native_batch_norm_default"(%x) {eps = 1.000000e-05 : f64, momentum = 1.000000e-01 : f64, operandSegmentSizes = array<i32: 1, 0, 0, 0, 0>, training = true} : (tensor<5x4xf32, {tp = "shard(0)"}>) -> (tensor<5x4xf32, {tp = "shard(0)"}>, tensor<4xf32>, tensor<4xf32>)
  return %0#0, %0#1, %0#2 : tensor<5x4xf32, {tp = "shard(0)"}>, tensor<4xf32>, tensor<4xf32>
}
}
