// RUN: stretto opt -p "cut-stages{plan=%S/plans/two_stages.plan}" %s | filecheck %s

// A stage begins where the plan says. A backward operation goes where what it reads of the forward is at hand, a
// parameter's gradient where the parameter is used; what needs no parameter belongs to no stage.

// CHECK: %[[Y:.+]] = "aten.mm_default"(%arg2, %arg0) {stage = 0 : i64}
// CHECK-NEXT: %[[Z:.+]] = "aten.mm_default"(%[[Y]], %arg1) {stage = 1 : i64}
// CHECK: %[[GZ:.+]] = "aten.mul_tensor"(%[[Z]], %arg3) {stage = 1 : i64}
// CHECK: %[[GY:.+]] = "aten.mm_default"(%[[GZ]], {{.+}}) {stage = 1 : i64}
// CHECK: %[[XT:.+]] = "aten.t_default"(%arg2) : {{.+}}
// CHECK: "aten.mm_default"(%[[XT]], %[[GY]]) {stage = 0 : i64}
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 2]]} {
func.func @main(%v: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "up.weight", requires_grad = true}}, %w: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "down.weight", requires_grad = true}}, %x: tensor<4x8xf32, {microbatch = "shard(0)"}> {aten.argument = {index = 0 : i64, kind = "input", name = "x"}}, %t: tensor<f32> {aten.argument = {index = 0 : i64, kind = "tangent", name = "tangents_0"}}) -> (tensor<f32> {aten.argument = {index = 0 : i64, kind = "output", name = ""}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "up.weight"}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "down.weight"}}) {
  %y = "aten.mm_default"(%x, %v) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("up")
  %z = "aten.mm_default"(%y, %w) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("down")
  %q = "aten.mul_tensor"(%z, %z) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc("loss")
  %s = "aten.sum_default"(%q) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<f32, {microbatch = "partial(sum)"}> loc("loss")
  %gz = "aten.mul_tensor"(%z, %t) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<f32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc(fused<{backward = true}>["loss"])
  %yt = "aten.t_default"(%y) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x4xf32, {microbatch = "shard(1)"}> loc(fused<{backward = true}>["down"])
  %gw = "aten.mm_default"(%yt, %gz) : (tensor<8x4xf32, {microbatch = "shard(1)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}> loc(fused<{backward = true}>["down"])
  %wt = "aten.t_default"(%w) : (tensor<8x8xf32>) -> tensor<8x8xf32> loc(fused<{backward = true}>["down"])
  %gy = "aten.mm_default"(%gz, %wt) : (tensor<4x8xf32, {microbatch = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {microbatch = "shard(0)"}> loc(fused<{backward = true}>["down"])
  %xt = "aten.t_default"(%x) : (tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x4xf32, {microbatch = "shard(1)"}> loc(fused<{backward = true}>["up"])
  %gv = "aten.mm_default"(%xt, %gy) : (tensor<8x4xf32, {microbatch = "shard(1)"}>, tensor<4x8xf32, {microbatch = "shard(0)"}>) -> tensor<8x8xf32, {microbatch = "partial(sum)"}> loc(fused<{backward = true}>["up"])
  %loss = "comm.all_reduce"(%s) {axes = ["microbatch"], reduce = "sum"} : (tensor<f32, {microbatch = "partial(sum)"}>) -> tensor<f32>
  %0 = "comm.all_reduce"(%gv) {axes = ["microbatch"], reduce = "sum"} : (tensor<8x8xf32, {microbatch = "partial(sum)"}>) -> tensor<8x8xf32>
  %1 = "comm.all_reduce"(%gw) {axes = ["microbatch"], reduce = "sum"} : (tensor<8x8xf32, {microbatch = "partial(sum)"}>) -> tensor<8x8xf32>
  return %loss, %0, %1 : tensor<f32>, tensor<8x8xf32>, tensor<8x8xf32>
}
}
