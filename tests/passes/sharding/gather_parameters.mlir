// RUN: stretto opt -p "gather-parameters" %s | filecheck %s

// A stored parameter is gathered for each call of a layer, and whoever is called takes it whole.

// CHECK: @main(%arg0: tensor<4x8xf32>, %arg1: tensor<8x8xf32, {dp = "shard(0)"}>
// CHECK: %[[A:.+]] = "comm.reshard"(%arg1) {use = 0 : i64} : (tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<8x8xf32>
// CHECK-NEXT: %[[H:.+]] = call @layers_forward(%arg0, %[[A]])
// CHECK-NEXT: %[[B:.+]] = "comm.reshard"(%arg1) {use = 1 : i64}
// CHECK-NEXT: %{{.+}} = call @layers_forward(%[[H]], %[[B]])
// CHECK: func private @layers_forward(%arg0: tensor<4x8xf32>, %arg1: tensor<8x8xf32>)
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)"}> {aten.argument = {kind = "parameter", name = "w", stored = ["dp"]}}) -> tensor<4x8xf32> {
    %0 = func.call @layers_forward(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
    %1 = func.call @layers_forward(%0, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
    return %1 : tensor<4x8xf32>
  }
  func.func private @layers_forward(%x: tensor<4x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32> {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
    return %0 : tensor<4x8xf32>
  }
}

// -----

// Two gathers of one parameter stay two behind propagation, partition and `cse`; the axis that shards it stays cut.

// RUN: stretto opt -p "gather-parameters,propagate-placements,partition-tensors,canonicalize,cse" %s | filecheck %s

// CHECK: "comm.all_gather"(%arg1) {axes = ["dp"], dim = 0 : i64, use = 0 : i64}
// CHECK: "comm.all_gather"(%arg1) {axes = ["dp"], dim = 0 : i64, use = 1 : i64}
module attributes {comm.level = "aten", comm.mesh = [["dp", 2], ["tp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)", tp = "shard(1)"}> {aten.argument = {kind = "parameter", name = "w", stored = ["dp"]}}) -> (tensor<4x8xf32>, tensor<4x8xf32>) {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)", tp = "shard(1)"}>) -> tensor<4x8xf32> loc("a")
    %1 = "aten.relu_default"(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("a")
    %2 = "aten.mm_default"(%1, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)", tp = "shard(1)"}>) -> tensor<4x8xf32> loc("b")
    return %1, %2 : tensor<4x8xf32>, tensor<4x8xf32>
  }
}

// -----

// A rank casts its part, and the forward and the backward of a layer gather what is cast.

// RUN: stretto opt -p "gather-parameters" %s | filecheck %s

// CHECK: %[[C:.+]] = "aten.u_to_copy_default"(%arg1) {dtype = bf16}
// CHECK: %[[A:.+]] = "comm.reshard"(%[[C]]) {use = 0 : i64}
// CHECK: %[[H:.+]] = call @layers_forward(%arg0, %[[A]]) : (tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xbf16>
// CHECK: %[[B:.+]] = "comm.reshard"(%[[C]]) {use = 1 : i64}
// CHECK: call @layers_backward(%[[H]], %[[B]])
// CHECK: func private @layers_forward(%arg0: tensor<4x8xbf16>, %arg1: tensor<8x8xbf16>) -> tensor<4x8xbf16>
// CHECK-NOT: u_to_copy
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x8xbf16>, %w: tensor<8x8xf32, {dp = "shard(0)"}> {aten.argument = {kind = "parameter", name = "w", stored = ["dp"]}}) -> tensor<4x8xbf16> {
    %0:2 = func.call @layers_forward(%x, %w) : (tensor<4x8xbf16>, tensor<8x8xf32, {dp = "shard(0)"}>) -> (tensor<4x8xbf16>, tensor<8x8xbf16>)
    %1 = func.call @layers_backward(%0#0, %0#1) : (tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xbf16>
    return %1 : tensor<4x8xbf16>
  }
  func.func private @layers_forward(%x: tensor<4x8xbf16>, %w: tensor<8x8xf32, {dp = "shard(0)"}>) -> (tensor<4x8xbf16>, tensor<8x8xbf16>) {
    %0 = "aten.u_to_copy_default"(%w) {dtype = bf16} : (tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<8x8xbf16>
    %1 = "aten.mm_default"(%x, %0) : (tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xbf16>
    return %1, %0 : tensor<4x8xbf16>, tensor<8x8xbf16>
  }
  func.func private @layers_backward(%x: tensor<4x8xbf16>, %w: tensor<8x8xbf16>) -> tensor<4x8xbf16> {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xbf16>
    return %0 : tensor<4x8xbf16>
  }
}

// -----

// What a layer uses in its own dtype too is gathered in that.

// RUN: stretto opt -p "gather-parameters" %s | filecheck %s

// CHECK: %[[A:.+]] = "comm.reshard"(%arg1) {use = 0 : i64}
// CHECK-NEXT: call @layers_forward(%arg0, %[[A]])
// CHECK: func private @layers_forward(%arg0: tensor<8x8xf32>, %arg1: tensor<8x8xf32>)
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<8x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)"}> {aten.argument = {kind = "parameter", name = "w", stored = ["dp"]}}) -> tensor<8x8xf32> {
    %0:2 = func.call @layers_forward(%x, %w) : (tensor<8x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> (tensor<8x8xf32>, tensor<8x8xbf16>)
    return %0#0 : tensor<8x8xf32>
  }
  func.func private @layers_forward(%x: tensor<8x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)"}>) -> (tensor<8x8xf32>, tensor<8x8xbf16>) {
    %0 = "aten.u_to_copy_default"(%w) {dtype = bf16} : (tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<8x8xbf16>
    %1 = "aten.mm_default"(%x, %w) : (tensor<8x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<8x8xf32>
    return %1, %0 : tensor<8x8xf32>, tensor<8x8xbf16>
  }
}

// -----

// With one gather a step, all uses take the first: the whole parameter lives in between.

// RUN: stretto opt -p "gather-parameters" %s | filecheck %s

// CHECK: %[[A:.+]] = "comm.reshard"(%arg1) {use = 0 : i64}
// CHECK-NEXT: %[[H:.+]] = call @layers_forward(%arg0, %[[A]])
// CHECK-NEXT: %{{.+}} = call @layers_forward(%[[H]], %[[A]])
// CHECK-NOT: comm.reshard
module attributes {comm.level = "aten", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)"}> {aten.argument = {gather = "once", kind = "parameter", name = "w", stored = ["dp"]}}) -> tensor<4x8xf32> {
    %0 = func.call @layers_forward(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
    %1 = func.call @layers_forward(%0, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
    return %1 : tensor<4x8xf32>
  }
  func.func private @layers_forward(%x: tensor<4x8xf32>, %w: tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32> {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {dp = "shard(0)"}>) -> tensor<4x8xf32>
    return %0 : tensor<4x8xf32>
  }
}

// -----

// Over the axis that `within` leaves out a parameter is gathered once, over the others for each use.

// RUN: stretto opt -p "gather-parameters,propagate-placements,partition-tensors,canonicalize,cse" %s | filecheck %s

// CHECK: %[[N:.+]] = "comm.all_gather"(%arg1) {axes = ["node"], dim = 0 : i64, use = 0 : i64} : ({{.+}}) -> tensor<4x8xf32
// CHECK: "comm.all_gather"(%[[N]]) {axes = ["gcd"], dim = 0 : i64, use = 1 : i64}
// CHECK: "comm.all_gather"(%[[N]]) {axes = ["gcd"], dim = 0 : i64, use = 2 : i64}
// CHECK-NOT: comm.all_gather
module attributes {comm.level = "aten", comm.mesh = [["node", 2], ["gcd", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32, {gcd = "shard(0, 0)", node = "shard(0, 1)"}> {aten.argument = {kind = "parameter", name = "w", stored = ["gcd", "node"], within = ["gcd"]}}) -> (tensor<4x8xf32>, tensor<4x8xf32>) {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {gcd = "shard(0, 0)", node = "shard(0, 1)"}>) -> tensor<4x8xf32> loc("a")
    %1 = "aten.relu_default"(%0) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("a")
    %2 = "aten.mm_default"(%1, %w) : (tensor<4x8xf32>, tensor<8x8xf32, {gcd = "shard(0, 0)", node = "shard(0, 1)"}>) -> tensor<4x8xf32> loc("b")
    return %1, %2 : tensor<4x8xf32>, tensor<4x8xf32>
  }
}
