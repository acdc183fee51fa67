// RUN: stretto opt -p "split-segments{plan=%S/plans/two_stages.plan}" %s | filecheck %s

// The last stage's backward is parted: what the first stage waits for is B. What the first does with it is W, since it
// hands out nothing.

// CHECK: @main
// CHECK: %[[F0:.+]] = call @forward_0(%arg2, %arg0) {segment = "F", stage = 0 : i64}
// CHECK: %[[F1:.+]]:2 = call @forward_1(%[[F0]], %arg1) {segment = "F", stage = 1 : i64}
// CHECK: %[[B:.+]]:2 = call @input_gradient_1(%[[F1]]#0, %arg3, {{.+}}) {segment = "B", stage = 1 : i64}
// CHECK: %[[W1:.+]] = call @weight_gradient_1(%[[F0]], %[[B]]#0) {segment = "W", stage = 1 : i64}
// CHECK: %[[W0:.+]] = call @weight_gradient_0(%arg2, %[[B]]#1) {segment = "W", stage = 0 : i64}
// CHECK: "comm.all_reduce"(%[[F1]]#1) {axes = ["microbatch"], reduce = "sum"}
// CHECK: "comm.all_reduce"(%[[W0]]) {axes = ["microbatch"], reduce = "sum"}
// CHECK: "comm.all_reduce"(%[[W1]]) {axes = ["microbatch"], reduce = "sum"}
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 2]]} {
func.func @main(%v: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "up.weight", requires_grad = true}}, %w: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "down.weight", requires_grad = true}}, %x: tensor<4x8xf32, {microbatch = "shard(0)"}> {aten.argument = {index = 0 : i64, kind = "input", name = "x"}}, %t: tensor<f32> {aten.argument = {index = 0 : i64, kind = "tangent", name = "tangents_0"}}) -> (tensor<f32> {aten.argument = {index = 0 : i64, kind = "output", name = ""}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "up.weight"}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "down.weight"}}) {
  %y = "aten.mm_default"(%x, %v) {stage = 0 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("up")
  %z = "aten.mm_default"(%y, %w) {stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("down")
  %q = "aten.mul_tensor"(%z, %z) {stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("loss")
  %s = "aten.sum_default"(%q) {stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<f32, {microbatch = "partial(sum)"}> loc("loss")
  %gz = "aten.mul_tensor"(%z, %t) {stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc(fused<{backward = true}>["loss"])
  %yt = "aten.t_default"(%y) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x4xf32, {microbatch = "shard(1)"}> loc(fused<{backward = true}>["down"])
  %gw = "aten.mm_default"(%yt, %gz) {stage = 1 : i64} : (tensor<8x4xf32, {microbatch = "shard(1)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}> loc(fused<{backward = true}>["down"])
  %wt = "aten.t_default"(%w) : (tensor<8x8xf32>) -> tensor<8x8xf32> loc(fused<{backward = true}>["down"])
  %gy = "aten.mm_default"(%gz, %wt) {stage = 1 : i64} : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc(fused<{backward = true}>["down"])
  %xt = "aten.t_default"(%x) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x4xf32, {microbatch = "shard(1)"}> loc(fused<{backward = true}>["up"])
  %gv = "aten.mm_default"(%xt, %gy) {stage = 0 : i64} : (tensor<8x4xf32, {microbatch = "shard(1)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}> loc(fused<{backward = true}>["up"])
  %loss = "comm.all_reduce"(%s) {axes = ["microbatch"], reduce = "sum"} : (tensor<f32, {microbatch = "partial(sum)"}>) -> tensor<f32>
  %0 = "comm.all_reduce"(%gv) {axes = ["microbatch"], reduce = "sum"} : (tensor<8x8xf32, {microbatch = "partial(sum)"}>) -> tensor<8x8xf32>
  %1 = "comm.all_reduce"(%gw) {axes = ["microbatch"], reduce = "sum"} : (tensor<8x8xf32, {microbatch = "partial(sum)"}>) -> tensor<8x8xf32>
  return %loss, %0, %1 : tensor<f32>, tensor<8x8xf32>, tensor<8x8xf32>
}
}
