// RUN: stretto opt -p "outline-idioms" %s | filecheck %s

// Attention is a call of a function that says what it takes and gives; its body is of operations that every target has.

// CHECK: func.func @main
// CHECK-NEXT: %[[A:.+]]:2 = call @attention(%arg0, %arg1, %arg1)
// CHECK-NEXT: return %[[A]]#0 : tensor<2x4x8x16xf32, {tp = "shard(1)"}>
// CHECK: func.func private @attention(%arg0: {{.+}}, %arg1: {{.+}}, %arg2: {{.+}})
// CHECK-SAME: nn.kind = {attributes = {causal = true}, name = "attention", operands = ["query", "key", "value"], results = ["out", "logsumexp"]}
// CHECK-NOT: nn.
// CHECK: "aten.logsumexp_default"
// CHECK: return %{{.+}}, %{{.+}} : tensor<2x4x8x16xf32, {tp = "shard(1)"}>, tensor<2x4x8xf32>
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%q: tensor<2x4x8x16xf32, {tp = "shard(1)"}>, %k: tensor<2x4x8x16xf32, {tp = "shard(1)"}>) -> tensor<2x4x8x16xf32, {tp = "shard(1)"}> {
    %0:2 = "nn.attention"(%q, %k, %k) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<2x4x8x16xf32, {tp = "shard(1)"}>, tensor<2x4x8x16xf32, {tp = "shard(1)"}>, tensor<2x4x8x16xf32, {tp = "shard(1)"}>) -> (tensor<2x4x8x16xf32, {tp = "shard(1)"}>, tensor<2x4x8xf32>)
    return %0#0 : tensor<2x4x8x16xf32, {tp = "shard(1)"}>
  }
}

// -----

// Equal ones of one line share a function, one with a mask has its own; the names of functions that are there stay.

// CHECK: call @attention_1(%arg0, %arg0, %arg0)
// CHECK: call @attention_1(%{{.+}}, %arg0, %arg0)
// CHECK: call @attention_2(%arg0, %arg0, %arg0, %arg1)
// CHECK: func.func private @attention(%arg0: tensor<2x4x8x16xf32>)
// CHECK: func.func private @attention_1({{.+}}{attributes = {causal = false}, name = "attention", operands = ["query", "key", "value"]
// CHECK: func.func private @attention_2({{.+}}{attributes = {causal = false}, name = "attention", operands = ["query", "key", "value", "mask"]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%q: tensor<2x4x8x16xf32>, %m: tensor<8x8xf32>) -> (tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>) {
    %0:2 = "nn.attention"(%q, %q, %q) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>) -> (tensor<2x4x8x16xf32>, tensor<2x4x8xf32>) loc("model.py":3:0)
    %1:2 = "nn.attention"(%0#0, %q, %q) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>) -> (tensor<2x4x8x16xf32>, tensor<2x4x8xf32>) loc("model.py":3:0)
    %2:2 = "nn.attention"(%q, %q, %q, %m) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0>} : (tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>, tensor<8x8xf32>) -> (tensor<2x4x8x16xf32>, tensor<2x4x8xf32>) loc("model.py":3:0)
    %3 = func.call @attention(%1#0) : (tensor<2x4x8x16xf32>) -> tensor<2x4x8x16xf32>
    return %1#0, %2#0, %3 : tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>, tensor<2x4x8x16xf32>
  }
  func.func private @attention(%x: tensor<2x4x8x16xf32>) -> tensor<2x4x8x16xf32> {
    return %x : tensor<2x4x8x16xf32>
  }
}

// -----

// Must not fire: an idiom that no target has kernels for.

// CHECK: %[[Y:.+]]:2 = "nn.rms_norm"(%arg0, %arg1)
// CHECK-NEXT: return %[[Y]]#0
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8xf32>) -> tensor<4x8xf32> {
    %0:2 = "nn.rms_norm"(%x, %w) {eps = 9.9999999999999995E-7 : f64} : (tensor<4x8xf32>, tensor<8xf32>) -> (tensor<4x8xf32>, tensor<4x1xf32>)
    return %0#0 : tensor<4x8xf32>
  }
}
