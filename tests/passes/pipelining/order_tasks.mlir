// RUN: stretto opt -p "order-tasks{plan=%S/plans/two_stages.plan}" %s | filecheck %s

// Each stage has an entry: its parameters, whole inputs, tasks in the order of ZB-H1, gradients, and the loss for all.

// CHECK: @main_0(%arg0: tensor<8x8xf32> {{{.*}}"up.weight"{{.*}}%arg1: tensor<8x8xf32> {{{.*}}"x"{{.*}}) -> (tensor<f32> {{{.*}}"output"{{.*}}"up.weight"
// CHECK: %[[X0:.+]] = "aten.slice_tensor"(%arg1) {dim = 0 : i64, end = 4 : i64, start = 0 : i64}
// CHECK: %[[Y0:.+]] = call @forward_0(%[[X0]], %arg0) {microbatch = 0 : i64}
// CHECK-NEXT: "comm.send"(%[[Y0]]) {axis = "pp", carries = "forward_0[0]@0", peer = 1 : i64}
// CHECK: %[[Y1:.+]] = call @forward_0({{.+}}, %arg0) {microbatch = 1 : i64}
// CHECK-NEXT: "comm.send"(%[[Y1]]) {axis = "pp", carries = "forward_0[0]@1", peer = 1 : i64}
// CHECK: %[[G0:.+]] = "comm.receive"()
// CHECK-NEXT: %[[W0:.+]] = call @weight_gradient_0(%[[X0]], %[[G0]]) {microbatch = 0 : i64}
// CHECK: %[[W1:.+]] = call @weight_gradient_0({{.+}}) {microbatch = 1 : i64}
// CHECK: "aten.add_tensor"(%[[W0]], %[[W1]])
// CHECK: %[[LOSS:.+]] = "comm.receive"()
// CHECK: return %[[LOSS]], %{{.+}} : tensor<f32>, tensor<8x8xf32>

// CHECK: @main_1(%arg0: tensor<8x8xf32> {{{.*}}"down.weight"
// CHECK: call @forward_1({{.+}}) {microbatch = 0 : i64}
// CHECK-NEXT: call @input_gradient_1({{.+}}) {microbatch = 0 : i64}
// CHECK-NEXT: "comm.send"
// CHECK: call @forward_1({{.+}}) {microbatch = 1 : i64}
// CHECK: call @input_gradient_1({{.+}}) {microbatch = 1 : i64}
// CHECK: call @weight_gradient_1({{.+}}) {microbatch = 0 : i64}
// CHECK: call @weight_gradient_1({{.+}}) {microbatch = 1 : i64}
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 2]]} {
  func.func @main(%arg0: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "up.weight", requires_grad = true}}, %arg1: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "down.weight", requires_grad = true}}, %arg2: tensor<4x8xf32, {microbatch = "shard(0)"}> {aten.argument = {index = 0 : i64, kind = "input", name = "x"}}, %arg3: tensor<f32> {aten.argument = {index = 0 : i64, kind = "tangent", name = "tangents_0"}}) -> (tensor<f32> {aten.argument = {index = 0 : i64, kind = "output", name = ""}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "up.weight"}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "down.weight"}}) {
    %0 = "aten.t_default"(%arg1) : (tensor<8x8xf32>) -> tensor<8x8xf32>
    %1 = call @forward_0(%arg2, %arg0) {segment = "F", stage = 0 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}>
    %2:2 = call @forward_1(%1, %arg1) {segment = "F", stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32, {microbatch = "partial(sum)"}>)
    %3:2 = call @input_gradient_1(%2#0, %arg3, %0) {segment = "B", stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32>, tensor<8x8xf32>) -> (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>)
    %4 = call @weight_gradient_1(%1, %3#0) {segment = "W", stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}>
    %5 = call @weight_gradient_0(%arg2, %3#1) {segment = "W", stage = 0 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}>
    %6 = "comm.all_reduce"(%2#1) {axes = ["microbatch"], reduce = "sum"} : (tensor<f32, {microbatch = "partial(sum)"}>) -> tensor<f32>
    %7 = "comm.all_reduce"(%5) {axes = ["microbatch"], reduce = "sum"} : (tensor<8x8xf32, {microbatch = "partial(sum)"}>) -> tensor<8x8xf32>
    %8 = "comm.all_reduce"(%4) {axes = ["microbatch"], reduce = "sum"} : (tensor<8x8xf32, {microbatch = "partial(sum)"}>) -> tensor<8x8xf32>
    return %6, %7, %8 : tensor<f32>, tensor<8x8xf32>, tensor<8x8xf32>
  }
  func.func private @forward_0(%arg0: tensor<4x8xf32, {microbatch = "shard(0)"}>, %arg1: tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> {
    %0 = "aten.mm_default"(%arg0, %arg1) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}>
    return %0 : tensor<4x8xf32, {microbatch = "shard(0)"}>
  }
  func.func private @forward_1(%arg0: tensor<4x8xf32, {microbatch = "shard(0)"}>, %arg1: tensor<8x8xf32>) -> (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32, {microbatch = "partial(sum)"}>) {
    %0 = "aten.mm_default"(%arg0, %arg1) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}>
    %1 = "aten.mul_tensor"(%0, %0) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<4x8xf32, {microbatch = "shard(0)"}>
    %2 = "aten.sum_default"(%1) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<f32, {microbatch = "partial(sum)"}>
    return %0, %2 : tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32, {microbatch = "partial(sum)"}>
  }
  func.func private @input_gradient_1(%arg0: tensor<4x8xf32, {microbatch = "shard(0)"}>, %arg1: tensor<f32>, %arg2: tensor<8x8xf32>) -> (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) {
    %0 = "aten.mul_tensor"(%arg0, %arg1) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}>
    %1 = "aten.mm_default"(%0, %arg2) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}>
    return %0, %1 : tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>
  }
  func.func private @weight_gradient_1(%arg0: tensor<4x8xf32, {microbatch = "shard(0)"}>, %arg1: tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}> {
    %0 = "aten.t_default"(%arg0) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x4xf32, {microbatch = "shard(1)"}>
    %1 = "aten.mm_default"(%0, %arg1) : (tensor<8x4xf32, {microbatch = "shard(1)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}>
    return %1 : tensor<8x8xf32, {microbatch = "partial(sum)"}>
  }
  func.func private @weight_gradient_0(%arg0: tensor<4x8xf32, {microbatch = "shard(0)"}>, %arg1: tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}> {
    %0 = "aten.t_default"(%arg0) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x4xf32, {microbatch = "shard(1)"}>
    %1 = "aten.mm_default"(%0, %arg1) : (tensor<8x4xf32, {microbatch = "shard(1)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}>
    return %1 : tensor<8x8xf32, {microbatch = "partial(sum)"}>
  }
}
