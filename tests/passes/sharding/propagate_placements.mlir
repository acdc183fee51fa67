// RUN: stretto opt -p "propagate-placements" %s | filecheck %s

// Columns, then rows: the product of sharded features is a partial sum, which the result of `main` must not be.

// CHECK: %[[H:.+]] = "aten.mm_default"(%arg0, %arg1) : {{.*}} -> tensor<4x8xf32, {tp = "shard(1)"}>
// CHECK-NEXT: %[[R:.+]] = "aten.relu_default"(%[[H]]) : {{.*}} -> tensor<4x8xf32, {tp = "shard(1)"}>
// CHECK-NEXT: %[[Y:.+]] = "aten.mm_default"(%[[R]], %arg2) : {{.*}} -> tensor<4x6xf32, {tp = "partial(sum)"}>
// CHECK-NEXT: %[[Z:.+]] = "comm.reshard"(%[[Y]]) : {{.*}} -> tensor<4x6xf32>
// CHECK-NEXT: return %[[Z]]
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x6xf32>, %u: tensor<6x8xf32, {tp = "shard(1)"}>, %v: tensor<8x6xf32, {tp = "shard(0)"}>) -> tensor<4x6xf32> {
  %0 = "aten.mm_default"(%x, %u) : (tensor<4x6xf32>, tensor<6x8xf32, {tp = "shard(1)"}>) -> tensor<4x8xf32>
  %1 = "aten.relu_default"(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %2 = "aten.mm_default"(%1, %v) : (tensor<4x8xf32>, tensor<8x6xf32, {tp = "shard(0)"}>) -> tensor<4x6xf32>
  return %2 : tensor<4x6xf32>
}
}

// -----

// A partial sum that two ops use is reduced once, and both use the reduced copy.

// CHECK: %[[Y:.+]] = "aten.mm_default"(%arg0, %arg1) : {{.*}} -> tensor<4x4xf32, {tp = "partial(sum)"}>
// CHECK-NEXT: %[[R:.+]] = "comm.reshard"(%[[Y]])
// CHECK-NOT: comm.reshard
// CHECK: "aten.exp_default"(%[[R]])
// CHECK-NEXT: "aten.tanh_default"(%[[R]])
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x8xf32, {tp = "shard(1)"}>, %w: tensor<8x4xf32, {tp = "shard(0)"}>) -> (tensor<4x4xf32>, tensor<4x4xf32>) {
  %0 = "aten.mm_default"(%x, %w) : (tensor<4x8xf32, {tp = "shard(1)"}>, tensor<8x4xf32, {tp = "shard(0)"}>) -> tensor<4x4xf32>
  %1 = "aten.exp_default"(%0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  %2 = "aten.tanh_default"(%0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
  return %1, %2 : tensor<4x4xf32>, tensor<4x4xf32>
}
}

// -----

// Where the plan shards activations over tokens, a partial sum of their shape is scattered there.

// CHECK: %[[Y:.+]] = "aten.reshape_default"({{.*}} -> tensor<2x4x6xf32, {tp = "partial(sum)"}>
// CHECK-NEXT: %[[R:.+]] = "comm.reshard"(%[[Y]]) : {{.*}} -> tensor<2x4x6xf32, {tp = "shard(1)"}>
// CHECK-NEXT: "aten.exp_default"(%[[R]]) : {{.*}} -> tensor<2x4x6xf32, {tp = "shard(1)"}>
module attributes {comm.activations = [["tp", 1]], comm.mesh = [["tp", 2]], comm.tokens = array<i64: 2, 4>} {
func.func @main(%x: tensor<8x8xf32, {tp = "shard(1)"}>, %w: tensor<8x6xf32, {tp = "shard(0)"}>) -> tensor<2x4x6xf32> {
  %0 = "aten.mm_default"(%x, %w) : (tensor<8x8xf32, {tp = "shard(1)"}>, tensor<8x6xf32, {tp = "shard(0)"}>) -> tensor<8x6xf32>
  %1 = "aten.reshape_default"(%0) {shape = array<i64: 2, 4, 6>} : (tensor<8x6xf32>) -> tensor<2x4x6xf32>
  %2 = "aten.exp_default"(%1) : (tensor<2x4x6xf32>) -> tensor<2x4x6xf32>
  return %2 : tensor<2x4x6xf32>
}
}

// -----

// A function whose arguments come to lie differently is copied for each way.

// CHECK: call @f(
// CHECK-NEXT: call @f_1(
// CHECK-NEXT: call @f(
// CHECK: private @f(%arg0: tensor<4xf32>) -> tensor<4xf32>
// CHECK: private @f_1(%arg0: tensor<4xf32, {dp = "shard(0)"}>) -> tensor<4xf32, {dp = "shard(0)"}>
module attributes {comm.mesh = [["dp", 2]]} {
func.func private @f(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = "aten.exp_default"(%x) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func @main(%x: tensor<4xf32>, %y: tensor<4xf32, {dp = "shard(0)"}>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %0 = "aten.neg_default"(%y) : (tensor<4xf32, {dp = "shard(0)"}>) -> tensor<4xf32>
  %1 = call @f(%x) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = call @f(%0) : (tensor<4xf32>) -> tensor<4xf32>
  %3 = call @f(%1) : (tensor<4xf32>) -> tensor<4xf32>
  return %1, %2, %3 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
}

// -----

// A gradient is brought to its parameter's placement where it is made, before anything else runs.

// CHECK: %[[G:.+]] = "aten.mm_default"(%arg1, %arg2) : {{.*}} -> tensor<6x4xf32, {dp = "partial(sum)"}>
// CHECK-NEXT: %[[R:.+]] = "comm.reshard"(%[[G]]) : {{.*}} -> tensor<6x4xf32>
// CHECK-NEXT: "aten.exp_default"
// CHECK: return %[[R]]
module attributes {comm.mesh = [["dp", 2]]} {
func.func @main(%w: tensor<6x4xf32> {aten.argument = {index = -1, kind = "parameter", name = "w", owner = "linear"}},
    %x: tensor<6x8xf32, {dp = "shard(1)"}> {aten.argument = {index = 0, kind = "input", name = "x"}},
    %g: tensor<8x4xf32, {dp = "shard(0)"}> {aten.argument = {index = 1, kind = "input", name = "g"}})
    -> (tensor<6x4xf32> {aten.argument = {index = -1, kind = "gradient", name = "w"}}, tensor<8x4xf32> {aten.argument = {index = 0, kind = "output", name = "o", whole = false}}) {
  %0 = "aten.mm_default"(%x, %g) : (tensor<6x8xf32, {dp = "shard(1)"}>, tensor<8x4xf32, {dp = "shard(0)"}>) -> tensor<6x4xf32>
  %1 = "aten.exp_default"(%g) : (tensor<8x4xf32, {dp = "shard(0)"}>) -> tensor<8x4xf32>
  return %0, %1 : tensor<6x4xf32>, tensor<8x4xf32>
}
}

// -----

// Must not fire: nothing is sharded, nothing moves.

// CHECK-NOT: comm.reshard
// CHECK-NOT: shard(
module attributes {comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4x6xf32>, %w: tensor<6x8xf32>) -> tensor<4x8xf32> {
  %0 = "aten.mm_default"(%x, %w) : (tensor<4x6xf32>, tensor<6x8xf32>) -> tensor<4x8xf32>
  return %0 : tensor<4x8xf32>
}
}

// -----

// A gradient is reduced in the dtype that its record names: after the cast to it, though before would cost fewer bytes.

// CHECK: %[[S:.+]] = "aten.sum_dim_intlist"
// CHECK-NEXT: %[[C:.+]] = "aten.u_to_copy_default"(%[[S]]) {dtype = f32} : {{.*}} -> tensor<8xf32, {dp = "partial(sum)"}>
// CHECK-NEXT: %[[R:.+]] = "comm.reshard"(%[[C]])
// CHECK-NEXT: return %[[R]]
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%w: tensor<8xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4x8xbf16, {dp = "shard(0)"}>)
      -> (tensor<8xf32> {aten.argument = {kind = "gradient", name = "w", reduce = "float32"}}) {
    %0 = "aten.sum_dim_intlist"(%a) {dim = array<i64: 0>} : (tensor<4x8xbf16, {dp = "shard(0)"}>) -> tensor<8xbf16>
    %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<8xbf16>) -> tensor<8xf32>
    return %1 : tensor<8xf32>
  }
}

// -----

// And before the cast, where it names the shorter one.

// CHECK: %[[S:.+]] = "aten.sum_dim_intlist"
// CHECK-NEXT: %[[R:.+]] = "comm.reshard"(%[[S]])
// CHECK-NEXT: %[[C:.+]] = "aten.u_to_copy_default"(%[[R]]) {dtype = f32}
// CHECK-NEXT: return %[[C]]
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%w: tensor<8xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4x8xbf16, {dp = "shard(0)"}>)
      -> (tensor<8xf32> {aten.argument = {kind = "gradient", name = "w", reduce = "bfloat16"}}) {
    %0 = "aten.sum_dim_intlist"(%a) {dim = array<i64: 0>} : (tensor<4x8xbf16, {dp = "shard(0)"}>) -> tensor<8xbf16>
    %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<8xbf16>) -> tensor<8xf32>
    return %1 : tensor<8xf32>
  }
}

// -----

// So it is in a folded layer, where a cast product is one part of a gradient: the part stays partial through its cast.

// CHECK: func.func private @layers
// CHECK: %[[S:.+]] = "aten.sum_dim_intlist"
// CHECK-NEXT: %[[C:.+]] = "aten.u_to_copy_default"(%[[S]]) {dtype = f32} : {{.*}} -> tensor<8xf32, {dp = "partial(sum)"}>
// CHECK-NEXT: "comm.reshard"(%[[C]])
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func private @layers(%w: tensor<8xf32>, %a: tensor<4x8xbf16, {dp = "shard(0)"}>) -> tensor<8xf32> {
    %0 = "aten.sum_dim_intlist"(%a) {dim = array<i64: 0>} : (tensor<4x8xbf16, {dp = "shard(0)"}>) -> tensor<8xbf16>
    %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<8xbf16>) -> tensor<8xf32>
    %2 = "aten.add_tensor"(%w, %1) : (tensor<8xf32>, tensor<8xf32>) -> tensor<8xf32>
    return %2 : tensor<8xf32>
  }
  func.func @main(%w: tensor<8xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4x8xbf16, {dp = "shard(0)"}>)
      -> (tensor<8xf32> {aten.argument = {kind = "gradient", name = "w", reduce = "float32"}}) {
    %0 = call @layers(%w, %a) : (tensor<8xf32>, tensor<4x8xbf16, {dp = "shard(0)"}>) -> tensor<8xf32>
    return %0 : tensor<8xf32>
  }
}

// -----

// Axes nest on a dim as in the largest operand that nests them: the bias is brought to the order of the product.

// CHECK: %[[Y:.+]] = "aten.mm_default"(%arg0, %arg1) : {{.*}} -> tensor<4x8xf32, {dp = "shard(1, 1)", tp = "shard(1, 0)"}>
// CHECK-NEXT: %[[B:.+]] = "comm.reshard"(%arg2) : {{.*}} -> tensor<8xf32, {dp = "shard(0, 1)", tp = "shard(0, 0)"}>
// CHECK-NEXT: "aten.add_tensor"(%[[Y]], %[[B]]) {{.*}} -> tensor<4x8xf32, {dp = "shard(1, 1)", tp = "shard(1, 0)"}>
module attributes {comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(%x: tensor<4x6xf32>, %w: tensor<6x8xf32, {dp = "shard(1, 1)", tp = "shard(1, 0)"}>, %b: tensor<8xf32, {dp = "shard(0)", tp = "shard(0)"}>) -> tensor<4x8xf32> {
  %0 = "aten.mm_default"(%x, %w) : (tensor<4x6xf32>, tensor<6x8xf32, {dp = "shard(1, 1)", tp = "shard(1, 0)"}>) -> tensor<4x8xf32>
  %1 = "aten.add_tensor"(%0, %b) {alpha = 1 : i64} : (tensor<4x8xf32>, tensor<8xf32, {dp = "shard(0)", tp = "shard(0)"}>) -> tensor<4x8xf32>
  return %1 : tensor<4x8xf32>
}
}
