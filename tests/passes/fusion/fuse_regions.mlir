// RUN: stretto opt -p "fuse-regions" %s | filecheck %s

// A chain with a row reduction is a call; the product of matrices behind it is not in it.

// CHECK: func.func @main
// CHECK-NEXT: %[[A:.+]] = call @region(%arg0)
// CHECK-NEXT: %[[B:.+]] = "aten.mm_default"(%[[A]], %arg1)
// CHECK-NEXT: return %[[B]]
// CHECK: func.func private @region(%arg0: tensor<4x8xf32>) -> tensor<4x8xf32>
// CHECK-SAME: nn.kind = {name = "region", operands = ["in0"], results = ["out0"]}
// CHECK: "aten.mul_tensor"(%arg0, %arg0)
// CHECK: "aten.mean_dim"
// CHECK: "aten.sub_tensor"
module attributes {comm.level = "comm", comm.mesh = []} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> tensor<4x8xf32> {
    %0 = "aten.mul_tensor"(%x, %x) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
    %1 = "aten.mean_dim"(%0) {dim = [-1], keepdim = true} : (tensor<4x8xf32>) -> tensor<4x1xf32>
    %2 = "aten.sub_tensor"(%x, %1) : (tensor<4x8xf32>, tensor<4x1xf32>) -> tensor<4x8xf32>
    %3 = "aten.mm_default"(%2, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    return %3 : tensor<4x8xf32>
  }
}

// -----

// Not around an operation: what the product reads and what reads the product are two regions, though a value of the
// first is read by the second. A value that is read outside is a result.

// CHECK: func.func @main
// CHECK-NEXT: %[[A:.+]]:2 = call @region(%arg0)
// CHECK-NEXT: %[[B:.+]] = "aten.mm_default"(%[[A]]#1, %arg0)
// CHECK-NEXT: %[[C:.+]] = call @region_1(%[[A]]#0, %[[B]])
// CHECK-NEXT: return %[[C]]
module attributes {comm.level = "comm", comm.mesh = []} {
  func.func @main(%x: tensor<8x8xf32>) -> tensor<8x8xf32> {
    %0 = "aten.exp_default"(%x) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %1 = "aten.neg_default"(%0) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %2 = "aten.mm_default"(%1, %x) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %3 = "aten.mul_tensor"(%0, %2) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %4 = "aten.silu_default"(%3) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    return %4 : tensor<8x8xf32>
  }
}

// -----

// A view inside costs nothing; one that others read stays outside too. Lists keep their packing.

// CHECK: func.func @main
// CHECK: %[[T:.+]] = "aten.t_default"(%arg0)
// CHECK-NEXT: %[[A:.+]] = call @region(%arg0)
// CHECK-NEXT: "aten.mm_default"(%[[A]], %[[T]])
// CHECK: func.func private @region(%arg0: tensor<4x8xf32>) -> tensor<8x8xf32>
// CHECK: "aten.t_default"(%arg0)
// CHECK: builtin.unrealized_conversion_cast
// CHECK: "aten.cat_default"
module attributes {comm.level = "comm", comm.mesh = []} {
  func.func @main(%x: tensor<4x8xf32>) -> tensor<8x4xf32> {
    %t = "aten.t_default"(%x) : (tensor<4x8xf32>) -> tensor<8x4xf32>
    %0 = "aten.neg_default"(%t) : (tensor<8x4xf32>) -> tensor<8x4xf32>
    %p = builtin.unrealized_conversion_cast %0, %t : tensor<8x4xf32>, tensor<8x4xf32> to tuple<tensor<8x4xf32>, tensor<8x4xf32>>
    %1 = "aten.cat_default"(%p) {dim = 1} : (tuple<tensor<8x4xf32>, tensor<8x4xf32>>) -> tensor<8x8xf32>
    %2 = "aten.mm_default"(%1, %t) : (tensor<8x8xf32>, tensor<8x4xf32>) -> tensor<8x4xf32>
    return %2 : tensor<8x4xf32>
  }
}

// -----

// A sum over the first dims joins the work before it; not one over the last dims, whose rows are others.

// CHECK: func.func @main
// CHECK-NEXT: %[[R:.+]]:2 = call @region(%arg0)
// CHECK-NEXT: %[[S:.+]] = "aten.sum_dim_intlist"(%[[R]]#0) {dim = [1]
// CHECK-NEXT: return %[[R]]#1, %[[S]]
// CHECK: func.func private @region
// CHECK: "aten.exp_default"
// CHECK: "aten.sum_dim_intlist"({{.+}}) {dim = array<i64: 0>
module attributes {comm.level = "comm", comm.mesh = []} {
  func.func @main(%x: tensor<64x64xf32>) -> (tensor<64xf32>, tensor<64xf32>) {
    %0 = "aten.exp_default"(%x) : (tensor<64x64xf32>) -> tensor<64x64xf32>
    %1 = "aten.sum_dim_intlist"(%0) {dim = array<i64: 0>, keepdim = false} : (tensor<64x64xf32>) -> tensor<64xf32>
    %2 = "aten.sum_dim_intlist"(%0) {dim = [1], keepdim = false} : (tensor<64x64xf32>) -> tensor<64xf32>
    return %1, %2 : tensor<64xf32>, tensor<64xf32>
  }
}

// -----

// Must not fire: one operation is a kernel already; few sums over the first dims would leave a GPU idle; views compute
// nothing.

// CHECK: func.func @main
// CHECK-NOT: call
// CHECK: return
module attributes {comm.level = "comm", comm.mesh = []} {
  func.func @main(%x: tensor<4x8xf32>) -> (tensor<8xf32>, tensor<8x4xf32>) {
    %0 = "aten.exp_default"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>
    %1 = "aten.sum_dim_intlist"(%0) {dim = array<i64: 0>, keepdim = false} : (tensor<4x8xf32>) -> tensor<8xf32>
    %2 = "aten.t_default"(%0) : (tensor<4x8xf32>) -> tensor<8x4xf32>
    return %1, %2 : tensor<8xf32>, tensor<8x4xf32>
  }
}

// -----

// Work behind a collective is not put before it: the collective would start later. Collectives keep their order.

// CHECK: func.func @main
// CHECK-NEXT: %[[A:.+]] = call @region(%arg0)
// CHECK-NEXT: %[[B:.+]] = "comm.all_reduce"(%[[A]])
// CHECK-NEXT: %[[C:.+]] = "comm.all_reduce"(%arg1)
// CHECK-NEXT: %[[D:.+]] = "aten.mm_default"(%arg0, %arg0)
// CHECK-NEXT: %[[E:.+]] = "aten.mul_tensor"(%[[A]], %[[D]])
// CHECK-NEXT: return %[[B]], %[[C]], %[[E]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<8x8xf32>, %y: tensor<8x8xf32>) -> (tensor<8x8xf32>, tensor<8x8xf32>, tensor<8x8xf32>) {
    %0 = "aten.exp_default"(%x) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %1 = "aten.neg_default"(%0) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %2 = "comm.all_reduce"(%1) {axes = ["tp"], reduce = "max"} : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %3 = "comm.all_reduce"(%y) {axes = ["tp"], reduce = "max"} : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %4 = "aten.mm_default"(%x, %x) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %5 = "aten.mul_tensor"(%1, %4) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    return %2, %3, %5 : tensor<8x8xf32>, tensor<8x8xf32>, tensor<8x8xf32>
  }
}

// -----

// Nor where a product stands between the region and the collective.

// CHECK: func.func @main
// CHECK-NEXT: %[[A:.+]] = call @region(%arg0)
// CHECK-NEXT: %[[P:.+]] = "aten.mm_default"(%[[A]], %arg0)
// CHECK-NEXT: %[[B:.+]] = "comm.all_reduce"(%[[P]])
// CHECK-NEXT: %[[C:.+]] = "comm.all_reduce"(%arg1)
// CHECK-NEXT: %[[D:.+]] = "aten.mm_default"(%arg0, %arg0)
// CHECK-NEXT: "aten.mul_tensor"(%[[A]], %[[D]])
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<8x8xf32>, %y: tensor<8x8xf32>) -> (tensor<8x8xf32>, tensor<8x8xf32>, tensor<8x8xf32>) {
    %0 = "aten.exp_default"(%x) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %1 = "aten.neg_default"(%0) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %2 = "aten.mm_default"(%1, %x) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %3 = "comm.all_reduce"(%2) {axes = ["tp"], reduce = "max"} : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %4 = "comm.all_reduce"(%y) {axes = ["tp"], reduce = "max"} : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %5 = "aten.mm_default"(%x, %x) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    %6 = "aten.mul_tensor"(%1, %5) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
    return %3, %4, %6 : tensor<8x8xf32>, tensor<8x8xf32>, tensor<8x8xf32>
  }
}
