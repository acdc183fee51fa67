// RUN: stretto opt -p "average-microbatches{plan=%S/plans/two_stages_alone.plan}" %s | filecheck %s

// The batch is twice as large, a loss is a half of the mean, and so is what its gradient begins with. Gradients are
// added up over microbatches, before ranks add up theirs; the root of a mean stays that of one microbatch.

// CHECK: comm.mesh = {{.+}}["dp", 2], ["microbatch", 2]
// CHECK: %arg1: tensor<4x8xf32, {dp = "shard(0)", microbatch = "shard(0)"}>
// CHECK-DAG: %[[X:.+]] = "aten.alias_default"(%arg1) : {{.+}} -> tensor<4x8xf32, {dp = "shard(0)"}>
// CHECK-DAG: %[[T:.+]] = "aten.div_scalar"(%arg2) {other = 2 : i64}
// CHECK: %[[Y:.+]] = "aten.mm_default"(%[[X]], %arg0)
// CHECK: %[[R:.+]] = "aten.sqrt_default"
// CHECK: "aten.div_tensor"(%[[T]], %[[R]])
// CHECK: %[[GW:.+]] = "aten.mm_default"
// CHECK-NEXT: %[[PART:.+]] = "aten.div_scalar"(%[[R]]) {other = 2 : i64} : (tensor<f32>) -> tensor<f32, {microbatch = "partial(sum)"}>
// CHECK-NEXT: %[[LOSS:.+]] = "comm.all_reduce"(%[[PART]]) {axes = ["microbatch"], reduce = "sum"}
// CHECK-NEXT: %[[ADDEND:.+]] = "aten.alias_default"(%[[GW]])
// CHECK-NEXT: %[[SUM:.+]] = "comm.all_reduce"(%[[ADDEND]]) {axes = ["dp", "microbatch"], reduce = "sum"}
// CHECK-NEXT: return %[[LOSS]], %[[SUM]]
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["dp", 2]]} {
func.func @main(%w: tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "parameter", name = "up.weight", requires_grad = true}}, %x: tensor<4x8xf32, {dp = "shard(0)"}> {aten.argument = {index = 0 : i64, kind = "input", name = "x"}}, %t: tensor<f32> {aten.argument = {index = 0 : i64, kind = "tangent", name = "tangents_0"}}) -> (tensor<f32> {aten.argument = {index = 0 : i64, kind = "output", name = ""}}, tensor<8x8xf32> {aten.argument = {index = -1 : i64, kind = "gradient", name = "up.weight"}}) {
  %y = "aten.mm_default"(%x, %w) : (tensor<4x8xf32, {dp = "shard(0)"}>, tensor<8x8xf32>) -> tensor<4x8xf32, {dp = "shard(0)"}> loc("up")
  %q = "aten.mul_tensor"(%y, %y) : (tensor<4x8xf32, {dp = "shard(0)"}>, tensor<4x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32, {dp = "shard(0)"}> loc("loss")
  %p = "aten.sum_default"(%q) : (tensor<4x8xf32, {dp = "shard(0)"}>) -> tensor<f32, {dp = "partial(sum)"}> loc("loss")
  %s = "comm.all_reduce"(%p) {axes = ["dp"], reduce = "sum"} : (tensor<f32, {dp = "partial(sum)"}>) -> tensor<f32>
  %r = "aten.sqrt_default"(%s) : (tensor<f32>) -> tensor<f32> loc("loss")
  %u = "aten.div_tensor"(%t, %r) : (tensor<f32>, tensor<f32>) -> tensor<f32> loc(fused<{backward = true}>["loss"])
  %g = "aten.mul_tensor"(%y, %u) : (tensor<4x8xf32, {dp = "shard(0)"}>, tensor<f32>) -> tensor<4x8xf32, {dp = "shard(0)"}> loc(fused<{backward = true}>["loss"])
  %xt = "aten.t_default"(%x) : (tensor<4x8xf32, {dp = "shard(0)"}>) -> tensor<8x4xf32, {dp = "shard(1)"}> loc(fused<{backward = true}>["up"])
  %h = "aten.mm_default"(%xt, %g) : (tensor<8x4xf32, {dp = "shard(1)"}>, tensor<4x8xf32, {dp = "shard(0)"}>) -> tensor<8x8xf32, {dp = "partial(sum)"}> loc(fused<{backward = true}>["up"])
  %gw = "comm.all_reduce"(%h) {axes = ["dp"], reduce = "sum"} : (tensor<8x8xf32, {dp = "partial(sum)"}>) -> tensor<8x8xf32> loc(fused<{backward = true}>["up"])
  return %r, %gw : tensor<f32>, tensor<8x8xf32>
}
}

// -----

// Each microbatch draws what a forward of its own would, and rows are put behind each other: those of each data rank,
// also where all ranks have them already.

// CHECK: %[[SEED:.+]] = "aten.slice_tensor"(%arg1) {dim = 0 : i64, end = 1 : i64, start = 0 : i64}
// CHECK: %[[STEP:.+]] = "aten.slice_tensor"(%arg1) {dim = 0 : i64, end = 2 : i64, start = 1 : i64}
// CHECK: %[[FIRST:.+]] = "aten.mul_scalar"(%[[STEP]]) {other = 2 : i64}
// CHECK: %[[M:.+]] = "comm.offset"() {axes = ["microbatch"], chunk = 1 : i64}
// CHECK: "aten.add_tensor"(%[[FIRST]], %[[M]])
// CHECK: %[[STATE:.+]] = "aten.cat_default"
// CHECK: "comm.random"(%[[STATE]], %arg2)
// CHECK: %[[ALL:.+]] = "comm.all_gather"{{.+}} {axes = ["dp"], dim = 0 : i64}
// CHECK: "comm.all_gather"{{.+}} {axes = ["microbatch"], dim = 0 : i64} : {{.+}} -> tensor<8x8xf32, {dp = "shard(0)"}>
// CHECK: "aten.view_default"(%[[ALL]]) {size = array<i64: 2, 4, 8>}
// CHECK: "comm.all_gather"{{.+}} {axes = ["microbatch"], dim = 1 : i64} : {{.+}} -> tensor<2x8x8xf32>
// CHECK: "aten.view_default"{{.+}} {size = array<i64: 16, 8>}
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["dp", 2]]} {
func.func @main(%x: tensor<4x8xf32, {dp = "shard(0)"}> {aten.argument = {index = 0 : i64, kind = "input", name = "x"}}, %r: tensor<2xi64> {aten.argument = {index = -1 : i64, kind = "random", name = "random"}}, %n: tensor<i64> {aten.argument = {index = -1 : i64, kind = "constant", name = "number"}}) -> (tensor<4x8xf32, {dp = "shard(0)"}> {aten.argument = {index = 0 : i64, kind = "output", name = ""}}, tensor<8x8xf32> {aten.argument = {index = 1 : i64, kind = "output", name = ""}}) {
  %m = "comm.random"(%r, %n) {axes = ["dp", ""], below = 7 : i64, chunks = [4, 8], size = [8, 8]} : (tensor<2xi64>, tensor<i64>) -> tensor<4x8xi1, {dp = "shard(0)"}>
  %y = "aten.mul_tensor"(%x, %m) : (tensor<4x8xf32, {dp = "shard(0)"}>, tensor<4x8xi1, {dp = "shard(0)"}>) -> tensor<4x8xf32, {dp = "shard(0)"}>
  %z = "comm.all_gather"(%y) {axes = ["dp"], dim = 0 : i64} : (tensor<4x8xf32, {dp = "shard(0)"}>) -> tensor<8x8xf32>
  return %y, %z : tensor<4x8xf32, {dp = "shard(0)"}>, tensor<8x8xf32>
}
}

// -----

// RUN: stretto opt -p "average-microbatches{plan=%S/plans/two_stages.plan}" %s | filecheck %s

// A pipeline of the whole batch stays as it is.

// CHECK: comm.mesh = {{.+}}"pp", 2]]
// CHECK: return %arg0
module attributes {comm.level = "comm", comm.mesh = [["pp", 2]]} {
func.func @main(%x: tensor<4x8xf32> {aten.argument = {index = 0 : i64, kind = "input", name = "x"}}) -> (tensor<4x8xf32> {aten.argument = {index = 0 : i64, kind = "output", name = ""}}) {
  return %x : tensor<4x8xf32>
}
}
