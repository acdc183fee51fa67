// RUN: stretto opt -p "use-local-statistics{plan=%S/plans/two_stages.plan}" %s | filecheck %s

// Sums of exponentials are taken relative to the rank's own maximum, and put right when that of all ranks is known; a
// gradient's product with weights is taken before.

// CHECK: %[[M:.+]] = "aten.amax_default"(%arg0)
// CHECK-NEXT: %[[C:.+]] = "aten.clamp_min_default"(%[[M]])
// CHECK-NEXT: %[[Y:.+]] = "aten.sub_tensor"(%arg0, %[[C]])
// CHECK-NEXT: %[[E:.+]] = "aten.exp_default"(%[[Y]])
// CHECK-NEXT: %[[A:.+]] = "comm.all_reduce"(%[[M]]) {axes = ["pp"], reduce = "max"}
// CHECK-NEXT: %[[D:.+]] = "aten.sub_tensor"(%[[C]], %[[A]])
// CHECK-NEXT: %[[F:.+]] = "aten.exp_default"(%[[D]])
// CHECK-NEXT: %[[S:.+]] = "aten.sum_dim_intlist"(%[[E]])
// CHECK-NEXT: %[[Q:.+]] = "aten.squeeze_dim"(%[[F]])
// CHECK-NEXT: %[[P:.+]] = "aten.mul_tensor"(%[[S]], %[[Q]])
// CHECK-NEXT: "comm.all_reduce"(%[[P]])
// CHECK: %[[G:.+]] = "aten.exp_default"
// CHECK-NEXT: %[[X:.+]] = "aten.mm_default"(%[[E]], %arg1)
// CHECK-NEXT: %[[Z:.+]] = "aten.mul_tensor"(%[[X]], %[[G]])
// CHECK-NEXT: "aten.mul_tensor"(%[[Z]], %arg2)
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 2]]} {
  func.func @main(%y: tensor<4x3xf32>, %w: tensor<3x5xf32>, %r: tensor<4x1xf32>) -> (tensor<4xf32>, tensor<4x5xf32>) {
    %0 = "aten.amax_default"(%y) {dim = array<i64: 1>, keepdim = true} : (tensor<4x3xf32>) -> tensor<4x1xf32>
    %1 = "comm.all_reduce"(%0) {axes = ["pp"], reduce = "max"} : (tensor<4x1xf32>) -> tensor<4x1xf32>
    %2 = "aten.sub_tensor"(%y, %1) : (tensor<4x3xf32>, tensor<4x1xf32>) -> tensor<4x3xf32>
    %3 = "aten.exp_default"(%2) : (tensor<4x3xf32>) -> tensor<4x3xf32>
    %4 = "aten.sum_dim_intlist"(%3) {dim = array<i64: 1>, keepdim = false} : (tensor<4x3xf32>) -> tensor<4xf32>
    %5 = "comm.all_reduce"(%4) {axes = ["pp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>
    %6 = "aten.unsqueeze_default"(%5) {dim = 1 : i64} : (tensor<4xf32>) -> tensor<4x1xf32>
    %7 = "aten.sub_tensor"(%y, %6) : (tensor<4x3xf32>, tensor<4x1xf32>) -> tensor<4x3xf32>
    %8 = "aten.exp_default"(%7) : (tensor<4x3xf32>) -> tensor<4x3xf32>
    %9 = "aten.mul_tensor"(%8, %r) : (tensor<4x3xf32>, tensor<4x1xf32>) -> tensor<4x3xf32>
    %10 = "aten.mm_default"(%9, %w) : (tensor<4x3xf32>, tensor<3x5xf32>) -> tensor<4x5xf32>
    %11 = "comm.all_reduce"(%10) {axes = ["pp"], reduce = "sum"} : (tensor<4x5xf32>) -> tensor<4x5xf32>
    return %5, %11 : tensor<4xf32>, tensor<4x5xf32>
  }
}

// -----

// Must not fire: over another axis than that of the stages.

// CHECK-NOT: clamp_min
// CHECK: "aten.sub_tensor"(%arg0, %
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["tp", 2], ["microbatch", 2]]} {
  func.func @main(%y: tensor<4x3xf32>) -> tensor<4x3xf32> {
    %0 = "aten.amax_default"(%y) {dim = array<i64: 1>, keepdim = true} : (tensor<4x3xf32>) -> tensor<4x1xf32>
    %1 = "comm.all_reduce"(%0) {axes = ["tp"], reduce = "max"} : (tensor<4x1xf32>) -> tensor<4x1xf32>
    %2 = "aten.sub_tensor"(%y, %1) : (tensor<4x3xf32>, tensor<4x1xf32>) -> tensor<4x3xf32>
    %3 = "aten.exp_default"(%2) : (tensor<4x3xf32>) -> tensor<4x3xf32>
    return %3 : tensor<4x3xf32>
  }
}
