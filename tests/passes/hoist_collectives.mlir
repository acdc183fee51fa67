// RUN: stretto opt -p "hoist-collectives" %s | filecheck %s
// A weight gradient that the reduction does not need comes behind it, and will hide it.

// CHECK-LABEL: func.func @main
// CHECK: %[[G:.*]] = "aten.mm_default"(%arg0, %arg1)
// CHECK-NEXT: %[[R:.*]] = "comm.all_reduce"(%[[G]])
// CHECK-NEXT: %[[W:.*]] = "aten.mm_default"(%arg2, %arg3)
// CHECK-NEXT: "aten.relu_default"(%[[R]])
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%g: tensor<8x4xf32>, %w: tensor<4x6xf32>, %gt: tensor<4x8xf32>, %x: tensor<8x6xf32>) -> (tensor<8x6xf32>, tensor<4x6xf32>) {
    %0 = "aten.mm_default"(%g, %w) : (tensor<8x4xf32>, tensor<4x6xf32>) -> tensor<8x6xf32>
    %1 = "aten.mm_default"(%gt, %x) : (tensor<4x8xf32>, tensor<8x6xf32>) -> tensor<4x6xf32>
    %2 = "comm.all_reduce"(%0) {axes = ["tp"], reduce = "sum"} : (tensor<8x6xf32>) -> tensor<8x6xf32>
    %3 = "aten.relu_default"(%2) : (tensor<8x6xf32>) -> tensor<8x6xf32>
    return %3, %1 : tensor<8x6xf32>, tensor<4x6xf32>
  }
}

// -----
// Two collectives keep their order, and what one of them needs stays before it.

// CHECK-LABEL: func.func @main
// CHECK: "comm.all_reduce"(%arg0)
// CHECK-NEXT: %[[N:.*]] = "aten.neg_default"(%arg1)
// CHECK-NEXT: "comm.all_reduce"(%[[N]])
// CHECK-NEXT: "aten.exp_default"(%arg0)
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
    %0 = "aten.exp_default"(%a) : (tensor<4xf32>) -> tensor<4xf32>
    %1 = "comm.all_reduce"(%a) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>
    %2 = "aten.neg_default"(%b) : (tensor<4xf32>) -> tensor<4xf32>
    %3 = "comm.all_reduce"(%2) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>
    return %0, %1, %3 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
  }
}
