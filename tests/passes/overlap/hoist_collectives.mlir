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

// -----
// In the entry of a stage a reduction comes after the task that it needs, and nothing else changes its place.

// CHECK-LABEL: func.func @main_0
// CHECK: %[[G0:.*]] = call @f(%arg0) {microbatch = 0 : i64}
// CHECK-NEXT: "comm.send"(%[[G0]])
// CHECK-NEXT: %[[G1:.*]] = call @f(%arg0) {microbatch = 1 : i64}
// CHECK-NEXT: %[[S:.*]] = "aten.add_tensor"(%[[G0]], %[[G1]])
// CHECK-NEXT: "comm.all_reduce"(%[[S]])
// CHECK-NEXT: "comm.send"(%[[G1]])
// CHECK-NEXT: %[[R:.*]] = "comm.receive"
// CHECK-NEXT: call @f(%[[R]])
// CHECK-NEXT: "comm.all_reduce"(%[[R]]) {axes = ["pp"]
module attributes {comm.level = "comm", comm.mesh = [["dp", 2], ["pp", 2], ["microbatch", 2]], comm.pipeline = "pp"} {
  func.func @main_0(%x: tensor<4xf32> {aten.argument = {order = 0 : i64}}) -> (tensor<4xf32> {aten.argument = {order = 0 : i64}}, tensor<4xf32> {aten.argument = {order = 1 : i64}}, tensor<4xf32> {aten.argument = {order = 2 : i64}}) {
    %0 = func.call @f(%x) {microbatch = 0 : i64} : (tensor<4xf32>) -> tensor<4xf32>
    "comm.send"(%0) {axis = "pp", peer = 1 : i64} : (tensor<4xf32>) -> ()
    %1 = func.call @f(%x) {microbatch = 1 : i64} : (tensor<4xf32>) -> tensor<4xf32>
    "comm.send"(%1) {axis = "pp", peer = 1 : i64} : (tensor<4xf32>) -> ()
    %2 = "comm.receive"() {axis = "pp", peer = 1 : i64, size = array<i64: 4>, dtype = f32} : () -> tensor<4xf32>
    %3 = func.call @f(%2) {microbatch = 0 : i64} : (tensor<4xf32>) -> tensor<4xf32>
    %4 = "aten.add_tensor"(%0, %1) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    %5 = "comm.all_reduce"(%4) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>
    %6 = "comm.all_reduce"(%2) {axes = ["pp"], reduce = "sum"} : (tensor<4xf32>) -> tensor<4xf32>
    return %3, %5, %6 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
  }
  func.func @main_1() {
    return
  }
  func.func private @f(%x: tensor<4xf32>) -> tensor<4xf32> {
    return %x : tensor<4xf32>
  }
}
