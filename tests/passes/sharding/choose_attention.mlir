// RUN: stretto opt -p "choose-attention{plan=%S/plans/all_to_all.plan}" %s | filecheck %s

// The tokens of the queries are cut over cp. Four ranks cannot share two heads of keys, so each is there twice; the
// gradient of a head is the sum of those of its copies.

// CHECK: %[[K1:.+]] = "aten.unsqueeze_default"(%arg1) {dim = 2 : i64}
// CHECK-NEXT: %[[K2:.+]] = "aten.expand_default"(%[[K1]]) {{.*}} -> tensor<3x2x2x8x4xf32>
// CHECK-NEXT: %[[K:.+]] = "aten.reshape_default"(%[[K2]]) {{.*}} -> tensor<3x4x8x4xf32>
// CHECK: %[[V:.+]] = "aten.reshape_default"({{.*}} -> tensor<3x4x8x4xf32>
// CHECK-NEXT: %[[O:.+]]:2 = "nn.attention"(%arg0, %[[K]], %[[V]]) {{.*}}over = {{\[\[}}"cp", "all_to_all"{{\]\]}}
// CHECK: %[[G:.+]]:3 = "nn.attention_backward"(%arg3, %arg0, %{{.+}}, %{{.+}}, %[[O]]#0, %[[O]]#1) {{.*}}over = {{\[\[}}"cp", "all_to_all"{{\]\]}}
// CHECK-NEXT: %[[DK:.+]] = "aten.reshape_default"(%[[G]]#1) {{.*}} -> tensor<3x2x2x8x4xf32>
// CHECK-NEXT: %[[SK:.+]] = "aten.sum_dim_intlist"(%[[DK]]) {dim = array<i64: 2>
// CHECK: return %[[O]]#0, %[[SK]]
module attributes {comm.level = "aten", comm.mesh = [["cp", 4]]} {
  func.func @main(%q: tensor<3x8x8x4xf32, {cp = "shard(2)"}>, %k: tensor<3x2x8x4xf32, {cp = "shard(2)"}>, %v: tensor<3x2x8x4xf32, {cp = "shard(2)"}>, %g: tensor<3x8x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x8x8x4xf32>, tensor<3x2x8x4xf32>) {
    %0:2 = "nn.attention"(%q, %k, %v) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x8x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x8x8x4xf32>, tensor<3x8x8xf32>)
    %1:3 = "nn.attention_backward"(%g, %q, %k, %v, %0#0, %0#1) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0>} : (tensor<3x8x8x4xf32, {cp = "shard(2)"}>, tensor<3x8x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x8x4xf32, {cp = "shard(2)"}>, tensor<3x8x8x4xf32>, tensor<3x8x8xf32>) -> (tensor<3x8x8x4xf32>, tensor<3x2x8x4xf32>, tensor<3x2x8x4xf32>)
    return %0#0, %1#1 : tensor<3x8x8x4xf32>, tensor<3x2x8x4xf32>
  }
}

// -----

// Attention over the heads of the batch's images, or any other whose tokens no axis cuts, stays as it is.

// CHECK-NOT: over =
// CHECK: return
module attributes {comm.level = "aten", comm.mesh = [["cp", 4]]} {
  func.func @main(%q: tensor<4x8x8x4xf32, {cp = "shard(0)"}>, %k: tensor<4x2x8x4xf32, {cp = "shard(0)"}>) -> tensor<4x8x8x4xf32> {
    %0:2 = "nn.attention"(%q, %k, %k) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<4x8x8x4xf32, {cp = "shard(0)"}>, tensor<4x2x8x4xf32, {cp = "shard(0)"}>, tensor<4x2x8x4xf32, {cp = "shard(0)"}>) -> (tensor<4x8x8x4xf32>, tensor<4x8x8xf32>)
    return %0#0 : tensor<4x8x8x4xf32>
  }
}

// -----

// Behind propagation and partition: queries, keys and values are exchanged for heads, and the result for tokens.

// RUN: stretto opt -p "choose-attention{plan=%S/plans/all_to_all.plan},propagate-placements,partition-tensors" %s | filecheck %s

// CHECK: %[[Q:.+]] = "comm.all_to_all"(%arg0) {axes = ["cp"], {{.*}} -> tensor<3x1x8x4xf32
// CHECK-NEXT: %[[K:.+]] = "comm.all_to_all"(%arg1) {axes = ["cp"]
// CHECK-NEXT: %[[V:.+]] = "comm.all_to_all"(%arg2) {axes = ["cp"]
// CHECK-NEXT: %[[O:.+]]:2 = "nn.attention"(%[[Q]], %[[K]], %[[V]])
// CHECK-NEXT: %[[R:.+]] = "comm.all_to_all"(%[[O]]#0) {axes = ["cp"], {{.*}} -> tensor<3x4x2x4xf32
module attributes {comm.level = "aten", comm.mesh = [["cp", 4]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %k: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %v: tensor<3x4x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0:2 = "nn.attention"(%q, %k, %v) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    return %0#0 : tensor<3x4x8x4xf32>
  }
}

// -----

// A ring of two with fewer keys than queries: the rank's own block, then that of the rank before it, whose keys count
// from where that one's begin.

// RUN: stretto opt -p "choose-attention{plan=%S/plans/ring.plan},propagate-placements,partition-tensors" %s | filecheck %s

// CHECK: %[[C:.+]] = "comm.offset"() {axes = ["cp"], chunk = 1 : i64}
// CHECK-NEXT: %[[Q:.+]] = "aten.mul_scalar"(%[[C]]) {other = 4 : i64}
// CHECK-NEXT: %[[K:.+]] = "aten.mul_scalar"(%[[C]]) {other = 2 : i64}
// CHECK-NEXT: %[[O:.+]]:2 = "nn.attention"(%arg0, %arg1, %arg2, %[[Q]], %[[K]])
// CHECK: %[[K1:.+]] = "comm.permute"(%arg1) {axes = ["cp"], shift = 1 : i64}
// CHECK-NEXT: %[[V1:.+]] = "comm.permute"(%arg2) {axes = ["cp"], shift = 1 : i64}
// CHECK-NEXT: %[[A:.+]] = "aten.add_scalar"(%[[C]]) {other = 1 : i64}
// CHECK-NEXT: %[[B:.+]] = "aten.remainder_scalar"(%[[A]]) {other = 2 : i64}
// CHECK-NEXT: %[[K2:.+]] = "aten.mul_scalar"(%[[B]]) {other = 2 : i64}
// CHECK-NEXT: %[[P:.+]]:2 = "nn.attention"(%arg0, %[[K1]], %[[V1]], %[[Q]], %[[K2]])
// CHECK-NEXT: %{{.+}}:3 = "nn.merge_attention"(%[[O]]#0, %{{.+}}, %[[O]]#1, %[[P]]#0, %[[P]]#1)
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %k: tensor<3x2x4x4xf32, {cp = "shard(2)"}>, %v: tensor<3x2x4x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0:2 = "nn.attention"(%q, %k, %v) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x4x4xf32, {cp = "shard(2)"}>, tensor<3x2x4x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    return %0#0 : tensor<3x4x8x4xf32>
  }
}

// -----

// With as many keys as queries the own block is causal by itself, and the other one is seen whole or not at all.

// CHECK: %{{.+}}:2 = "nn.attention"(%arg0, %arg0, %arg0) {causal = true
// CHECK: %[[H:.+]] = "aten.gt_tensor"
// CHECK: %[[M:.+]] = "aten.where_scalarself"(%[[H]], %{{.+}}) {{.*}} -> tensor<1x1xf32>
// CHECK-NEXT: %{{.+}}:2 = "nn.attention"(%arg0, %{{.+}}, %{{.+}}, %[[M]], {{.*}}) {causal = false
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0:2 = "nn.attention"(%q, %q, %q) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    return %0#0 : tensor<3x4x8x4xf32>
  }
}

// -----

// A block that the mask hides from all queries of all ranks is not passed on: here each query sees its own key alone.

// CHECK: "nn.attention"(%arg0, %arg0, %arg0, %{{.+}})
// CHECK-NOT: comm.permute
// CHECK: return
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %m: tensor<8x8xf32>) -> (tensor<3x4x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0:2 = "nn.attention"(%q, %q, %q, %m) {band = {highest = 0 : i64, lowest = 0 : i64}, causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<8x8xf32>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    return %0#0 : tensor<3x4x8x4xf32>
  }
}

// -----

// Zigzag: an input is brought to it once. Behind propagation and partition, a step is two attentions of half the queries
// on half the keys; which operands the second one has, the order of the two ranks says.

// RUN: stretto opt -p "choose-attention{plan=%S/plans/zigzag.plan},propagate-placements,partition-tensors" %s | filecheck %s

// CHECK: %[[G:.+]] = "comm.all_gather"(%arg0)
// CHECK: %[[Z:.+]] = "aten.cat_default"({{.*}} -> tensor<3x4x4x4xf32, {comm.blocks = [array<i64: 2, 4, -4>], cp = "shard(2)"}>
// CHECK: %[[O:.+]]:2 = "nn.attention"(%[[Z]], %[[Z]], %[[Z]]) {causal = true
// CHECK: %[[K:.+]] = "comm.permute"(%[[Z]])
// CHECK: %[[B:.+]] = "aten.lt_tensor"
// CHECK: "nn.attention"({{.*}}causal = false{{.*}}(tensor<3x4x2x4xf32>, tensor<3x4x2x4xf32>, tensor<3x4x2x4xf32>)
// CHECK: %[[Q:.+]] = "aten.where_self"(%[[B]], %{{.+}}, %{{.+}}) {{.*}} -> tensor<3x4x2x4xf32>
// CHECK: "nn.attention"(%[[Q]], %{{.+}}, %{{.+}}) {causal = false
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}> {aten.argument = {index = 0, kind = "input", name = "q"}}) -> (tensor<3x4x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0:2 = "nn.attention"(%q, %q, %q) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    return %0#0 : tensor<3x4x8x4xf32>
  }
}

// -----

// Queries go round: to the rank before, whose keys they meet, and what came of it goes back.

// RUN: stretto opt -p "choose-attention{plan=%S/plans/bidirectional.plan},propagate-placements,partition-tensors" %s | filecheck %s

// CHECK: %[[O:.+]]:2 = "nn.attention"(%arg0, %arg1, %arg1)
// CHECK: %[[Q:.+]] = "comm.permute"(%arg0) {axes = ["cp"], shift = 3 : i64}
// CHECK: %[[P:.+]]:2 = "nn.attention"(%[[Q]], %arg1, %arg1)
// CHECK-NEXT: %[[B:.+]] = "comm.permute"(%[[P]]#0) {axes = ["cp"], shift = 1 : i64}
// CHECK-NEXT: %[[L:.+]] = "comm.permute"(%[[P]]#1) {axes = ["cp"], shift = 1 : i64}
// CHECK-NEXT: "nn.merge_attention"(%[[O]]#0, %{{.+}}, %[[O]]#1, %[[B]], %[[L]])
// CHECK: %[[Q2:.+]] = "comm.permute"(%[[Q]]) {axes = ["cp"], shift = 3 : i64}
// CHECK: %[[P2:.+]]:2 = "nn.attention"(%[[Q2]], %arg1, %arg1)
// CHECK-NEXT: "comm.permute"(%[[P2]]#0) {axes = ["cp"], shift = 2 : i64}
module attributes {comm.level = "aten", comm.mesh = [["cp", 4]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %k: tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0:2 = "nn.attention"(%q, %k, %k) {causal = false, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x8x4xf32, {cp = "shard(2)"}>, tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    return %0#0 : tensor<3x4x8x4xf32>
  }
}

// -----

// A sum along tokens that a rank has a part of goes on from the totals of the ranks before it.

// RUN: stretto opt -p "choose-attention{plan=%S/plans/state.plan},propagate-placements,partition-tensors" %s | filecheck %s

// CHECK: %[[S:.+]] = "aten.cumsum_default"(%arg0) {dim = 2 : i64} : {{.*}} -> tensor<3x2x2x4xf32, {cp = "shard(2)"}>
// CHECK-NEXT: %[[T:.+]] = "aten.slice_tensor"(%[[S]]) {dim = 2 : i64, end = 2 : i64, start = 1 : i64}
// CHECK-NEXT: %[[G:.+]] = "comm.all_gather"(%[[T]]) {{.*}} -> tensor<3x2x4x4xf32>
// CHECK: "aten.lt_tensor"
// CHECK: %[[B:.+]] = "aten.sum_dim_intlist"
// CHECK-NEXT: "aten.add_tensor"(%[[S]], %[[B]])
module attributes {comm.level = "aten", comm.mesh = [["cp", 4]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%x: tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x2x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0 = "aten.cumsum_default"(%x) {dim = 2 : i64} : (tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> tensor<3x2x8x4xf32>
    return %0 : tensor<3x2x8x4xf32>
  }
}

// -----

// From the end: chunks lie in reverse between the flips, and the totals are those of the ranks after it.

// CHECK: %[[F:.+]] = "aten.flip_default"(%arg0) {{.*}} -> tensor<3x2x2x4xf32, {comm.blocks = [array<i64: 2, -8>], cp = "shard(2)"}>
// CHECK-NEXT: %[[S:.+]] = "aten.cumsum_default"(%[[F]])
// CHECK: "aten.gt_tensor"
// CHECK: %[[A:.+]] = "aten.add_tensor"(%[[S]]
// CHECK-NEXT: "aten.flip_default"(%[[A]]) {{.*}} -> tensor<3x2x2x4xf32, {cp = "shard(2)"}>
module attributes {comm.level = "aten", comm.mesh = [["cp", 4]], comm.activations = [], comm.tokens = array<i64>} {
  func.func @main(%x: tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x2x8x4xf32> {aten.argument = {index = 0, kind = "output", name = "out"}}) {
    %0 = "aten.flip_default"(%x) {dims = array<i64: 2>} : (tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> tensor<3x2x8x4xf32>
    %1 = "aten.cumsum_default"(%0) {dim = 2 : i64} : (tensor<3x2x8x4xf32>) -> tensor<3x2x8x4xf32>
    %2 = "aten.flip_default"(%1) {dims = array<i64: 2>} : (tensor<3x2x8x4xf32>) -> tensor<3x2x8x4xf32>
    return %2 : tensor<3x2x8x4xf32>
  }
}

// -----

// The model repeats each of two heads for two queries. On a ring attention reads the two, and so do their gradients.

// RUN: stretto opt -p "choose-attention{plan=%S/plans/ring.plan}" %s | filecheck %s

// CHECK: %[[O:.+]]:2 = "nn.attention"(%arg0, %arg1, %arg1)
// CHECK-NEXT: %[[G:.+]]:3 = "nn.attention_backward"(%arg0, %arg0, %arg1, %arg1, %[[O]]#0, %[[O]]#1)
// CHECK-NEXT: %[[V:.+]] = "aten.unsqueeze_default"(%[[G]]#2) {dim = 2 : i64}
// CHECK-NEXT: return %[[O]]#0, %[[G]]#1, %[[V]]
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]]} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %k: tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x2x8x4xf32>, tensor<3x2x1x8x4xf32>) {
    %0 = "aten.unsqueeze_default"(%k) {dim = 2 : i64} : (tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> tensor<3x2x1x8x4xf32>
    %1 = "aten.expand_default"(%0) {size = array<i64: 3, 2, 2, 8, 4>} : (tensor<3x2x1x8x4xf32>) -> tensor<3x2x2x8x4xf32>
    %2 = "aten.reshape_default"(%1) {shape = array<i64: 3, 4, 8, 4>} : (tensor<3x2x2x8x4xf32>) -> tensor<3x4x8x4xf32>
    %3:2 = "nn.attention"(%q, %2, %2) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    %4:3 = "nn.attention_backward"(%q, %q, %2, %2, %3#0, %3#1) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>, tensor<3x4x8xf32>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>)
    %5 = "aten.reshape_default"(%4#1) {shape = array<i64: 3, 2, 2, 8, 4>} : (tensor<3x4x8x4xf32>) -> tensor<3x2x2x8x4xf32>
    %6 = "aten.sum_dim_intlist"(%5) {dim = array<i64: 2>, keepdim = false} : (tensor<3x2x2x8x4xf32>) -> tensor<3x2x8x4xf32>
    %7 = "aten.reshape_default"(%4#2) {shape = array<i64: 3, 2, 2, 8, 4>} : (tensor<3x4x8x4xf32>) -> tensor<3x2x2x8x4xf32>
    %8 = "aten.sum_dim_intlist"(%7) {dim = array<i64: 2>, keepdim = true} : (tensor<3x2x2x8x4xf32>) -> tensor<3x2x1x8x4xf32>
    return %3#0, %6, %8 : tensor<3x4x8x4xf32>, tensor<3x2x8x4xf32>, tensor<3x2x1x8x4xf32>
  }
}

// -----

// Where something else reads the gradient of the copies, the backward keeps them.

// CHECK: %[[W:.+]] = "aten.reshape_default"({{.*}} -> tensor<3x4x8x4xf32>
// CHECK: "nn.attention"(%arg0, %arg1, %arg1)
// CHECK: %[[G:.+]]:3 = "nn.attention_backward"(%arg0, %arg0, %[[W]], %[[W]],
// CHECK-NEXT: return %{{.+}}, %[[G]]#1
module attributes {comm.level = "aten", comm.mesh = [["cp", 2]]} {
  func.func @main(%q: tensor<3x4x8x4xf32, {cp = "shard(2)"}>, %k: tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>) {
    %0 = "aten.unsqueeze_default"(%k) {dim = 2 : i64} : (tensor<3x2x8x4xf32, {cp = "shard(2)"}>) -> tensor<3x2x1x8x4xf32>
    %1 = "aten.expand_default"(%0) {size = array<i64: 3, 2, 2, 8, 4>} : (tensor<3x2x1x8x4xf32>) -> tensor<3x2x2x8x4xf32>
    %2 = "aten.reshape_default"(%1) {shape = array<i64: 3, 4, 8, 4>} : (tensor<3x2x2x8x4xf32>) -> tensor<3x4x8x4xf32>
    %3:2 = "nn.attention"(%q, %2, %2) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8xf32>)
    %4:3 = "nn.attention_backward"(%q, %q, %2, %2, %3#0, %3#1) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0>} : (tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32, {cp = "shard(2)"}>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>, tensor<3x4x8xf32>) -> (tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>)
    return %3#0, %4#1 : tensor<3x4x8x4xf32>, tensor<3x4x8x4xf32>
  }
}
