// RUN: stretto opt -p "bucket-collectives" %s | filecheck %s

// Two sums that only leave the function become one, where the second stood.

// CHECK: aten.neg_default
// CHECK-NEXT: %[[B:.+]] = builtin.unrealized_conversion_cast %arg0, %arg1
// CHECK-NEXT: %[[S:.+]] = "comm.all_reduce_coalesced"(%[[B]]) {axes = ["dp"], reduce = "sum"}
// CHECK-NEXT: %[[R:.+]]:2 = builtin.unrealized_conversion_cast %[[S]]
// CHECK-NEXT: return %[[R]]#0, %[[R]]#1
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%a: tensor<4xf32, {dp = "partial(sum)"}>, %b: tensor<2x3xf32, {dp = "partial(sum)"}>, %c: tensor<4xf32>) -> (tensor<4xf32>, tensor<2x3xf32>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%a) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "aten.neg_default"(%c) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = "comm.all_reduce"(%b) {axes = ["dp"], reduce = "sum"} : (tensor<2x3xf32, {dp = "partial(sum)"}>) -> tensor<2x3xf32>
  return %0, %2, %1 : tensor<4xf32>, tensor<2x3xf32>, tensor<4xf32>
}
}

// -----

// A use of the first ends its bucket, which the others may not join; reduce_scatters keep the dim of each.

// CHECK: "comm.reduce_scatter"(%arg0)
// CHECK-NEXT: aten.neg_default
// CHECK-NEXT: %[[B:.+]] = builtin.unrealized_conversion_cast %arg1, %arg0
// CHECK-NEXT: "comm.reduce_scatter_coalesced"(%[[B]]) {axes = ["dp"], dims = array<i64: 1, 0>, reduce = "sum"}
// CHECK-NOT: reduce_scatter
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%a: tensor<4xf32, {dp = "partial(sum)"}>, %b: tensor<3x4xf32, {dp = "partial(sum)"}>) -> (tensor<2xf32, {dp = "shard(0)"}>, tensor<3x2xf32, {dp = "shard(1)"}>, tensor<2xf32, {dp = "shard(0)"}>) {
  %0 = "comm.reduce_scatter"(%a) {axes = ["dp"], dim = 0 : i64, reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<2xf32, {dp = "shard(0)"}>
  %1 = "aten.neg_default"(%0) : (tensor<2xf32, {dp = "shard(0)"}>) -> tensor<2xf32, {dp = "shard(0)"}>
  %2 = "comm.reduce_scatter"(%b) {axes = ["dp"], dim = 1 : i64, reduce = "sum"} : (tensor<3x4xf32, {dp = "partial(sum)"}>) -> tensor<3x2xf32, {dp = "shard(1)"}>
  %3 = "comm.reduce_scatter"(%a) {axes = ["dp"], dim = 0 : i64, reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<2xf32, {dp = "shard(0)"}>
  return %1, %2, %3 : tensor<2xf32, {dp = "shard(0)"}>, tensor<3x2xf32, {dp = "shard(1)"}>, tensor<2xf32, {dp = "shard(0)"}>
}
}

// -----

// Must not fire: one sum depends on a tangent and the other does not; the third and the fourth are of other groups, or
// of one rank; the last two have other dtypes and reductions.

// CHECK-NOT: coalesced
module attributes {comm.level = "comm", comm.mesh = [["dp", 2], ["tp", 2], ["one", 1]]} {
func.func @main(%a: tensor<4xf32, {dp = "partial(sum)"}> {aten.argument = {kind = "input", name = "a", index = 0 : i64}}, %t: tensor<4xf32, {dp = "partial(sum)"}> {aten.argument = {kind = "tangent", name = "", index = 0 : i64}}, %b: tensor<4xf32, {tp = "partial(sum)"}> {aten.argument = {kind = "input", name = "b", index = 1 : i64}}, %c: tensor<4xf64, {dp = "partial(sum)"}> {aten.argument = {kind = "input", name = "c", index = 2 : i64}}, %d: tensor<4xf32, {dp = "partial(max)"}> {aten.argument = {kind = "input", name = "d", index = 3 : i64}}) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf64>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%a) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%t) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  %2 = "comm.all_reduce"(%b) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %3 = "comm.all_reduce"(%c) {axes = ["dp"], reduce = "sum"} : (tensor<4xf64, {dp = "partial(sum)"}>) -> tensor<4xf64>
  %4 = "comm.all_reduce"(%d) {axes = ["dp"], reduce = "max"} : (tensor<4xf32, {dp = "partial(max)"}>) -> tensor<4xf32>
  return %0, %1, %2, %3, %4 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf64>, tensor<4xf32>
}
}

// -----

// Must not fire: the two are on different lanes.

// CHECK-NOT: coalesced
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%a: tensor<4xf32, {dp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%a) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%a) {axes = ["dp"], reduce = "sum", lane = "comm.dp"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
}

// -----
// RUN: stretto opt -p "bucket-collectives{max-bytes=32 kinds=all_gather}" %s | filecheck %s

// A bucket has at most so many bytes: of four gathers to 16 bytes each, two and two. The first use is kept.

// CHECK: "comm.all_gather_coalesced"(%{{.+}}) {axes = ["dp"], dims = array<i64: 0, 0>, use = 7 : i64}
// CHECK: "comm.all_gather_coalesced"(%{{.+}}) {axes = ["dp"], dims = array<i64: 0, 0>}
// CHECK-NOT: coalesced
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%a: tensor<2xf32, {dp = "shard(0)"}>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_gather"(%a) {axes = ["dp"], dim = 0 : i64, use = 7 : i64} : (tensor<2xf32, {dp = "shard(0)"}>) -> tensor<4xf32>
  %1 = "comm.all_gather"(%a) {axes = ["dp"], dim = 0 : i64, use = 8 : i64} : (tensor<2xf32, {dp = "shard(0)"}>) -> tensor<4xf32>
  %2 = "comm.all_gather"(%a) {axes = ["dp"], dim = 0 : i64} : (tensor<2xf32, {dp = "shard(0)"}>) -> tensor<4xf32>
  %3 = "comm.all_gather"(%a) {axes = ["dp"], dim = 0 : i64} : (tensor<2xf32, {dp = "shard(0)"}>) -> tensor<4xf32>
  return %0, %1, %2, %3 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
}
