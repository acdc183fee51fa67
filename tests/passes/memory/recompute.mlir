// RUN: stretto opt -p "recompute{plan=%S/plans/recompute.plan}" %s | filecheck %s

// The backward of a layer takes what enters the module, and computes the module's inside again before its first use.
// What another module's backward reads (%n) is kept.

// CHECK: %[[F:.+]] = call @layers_forward(%arg0, %arg1)
// CHECK-NEXT: %{{.+}} = call @layers_backward(%arg2, %[[F]], %arg0, %arg1)
// CHECK: @layers_forward(%arg0: tensor<4x8xf32>, %arg1: tensor<8x8xf32>) -> tensor<4x8xf32>
// CHECK: @layers_backward(
// CHECK-NEXT: "aten.tanh_backward_default"(%arg0, %arg1)
// CHECK-NEXT: %[[H:.+]] = "aten.mm_default"(%arg2, %arg3) {recomputed = true}
// CHECK-NEXT: "aten.gelu_backward_default"(%{{.+}}, %[[H]])
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>, %dy: tensor<4x8xf32> {aten.argument = {kind = "tangent"}}) -> (tensor<4x8xf32>, tensor<8x8xf32>) {
    %f:3 = func.call @layers_forward(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>) loc("layers.0")
    %b:2 = func.call @layers_backward(%dy, %f#1, %f#2, %w, %x) : (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>, tensor<8x8xf32>, tensor<4x8xf32>) -> (tensor<8x8xf32>, tensor<4x8xf32>) loc(fused<{backward = true}>["layers.0"])
    return %f#0, %b#0 : tensor<4x8xf32>, tensor<8x8xf32>
  }
  func.func private @layers_forward(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>) {
    %h = "aten.mm_default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32> loc("layers.*.mlp.up")
    %g = "aten.gelu_default"(%h) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("layers.*.mlp")
    %n = "aten.tanh_default"(%g) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("layers.*.norm")
    return %n, %h, %n : tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>
  }
  func.func private @layers_backward(%dy: tensor<4x8xf32>, %h: tensor<4x8xf32>, %n: tensor<4x8xf32>, %w: tensor<8x8xf32>, %x: tensor<4x8xf32>) -> (tensor<8x8xf32>, tensor<4x8xf32>) {
    %dn = "aten.tanh_backward_default"(%dy, %n) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = true}>["layers.*.norm"])
    %dh = "aten.gelu_backward_default"(%dn, %h) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = true}>["layers.*.mlp"])
    %xt = "aten.t_default"(%x) : (tensor<4x8xf32>) -> tensor<8x4xf32> loc(fused<{backward = true}>["layers.*.mlp.up"])
    %dw = "aten.mm_default"(%xt, %dh) : (tensor<8x4xf32>, tensor<4x8xf32>) -> tensor<8x8xf32> loc(fused<{backward = true}>["layers.*.mlp.up"])
    return %dw, %dh : tensor<8x8xf32>, tensor<4x8xf32>
  }
}

// -----

// In one function, `cse` merges no copy with the forward. By kind, no result is kept, whoever reads it.

// RUN: stretto opt -p "recompute{plan=%S/plans/recompute_gelu.plan},canonicalize,cse" %s | filecheck %s

// CHECK: %[[H:.+]] = "aten.mm_default"(%arg0, %arg1)
// CHECK-NEXT: "aten.gelu_default"(%[[H]]) :
// CHECK: %[[G:.+]] = "aten.gelu_default"(%[[H]]) {recomputed = true}
// CHECK-NEXT: "aten.t_default"(%[[G]])
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>, %dy: tensor<4x8xf32> {aten.argument = {kind = "tangent"}}) -> (tensor<4x8xf32>, tensor<8x8xf32>) {
    %h = "aten.mm_default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32> loc("up")
    %g = "aten.gelu_default"(%h) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("act")
    %y = "aten.mm_default"(%g, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32> loc("down")
    %dt = "aten.t_default"(%g) : (tensor<4x8xf32>) -> tensor<8x4xf32> loc(fused<{backward = true}>["down"])
    %dw = "aten.mm_default"(%dt, %dy) : (tensor<8x4xf32>, tensor<4x8xf32>) -> tensor<8x8xf32> loc(fused<{backward = true}>["down"])
    return %y, %dw : tensor<4x8xf32>, tensor<8x8xf32>
  }
}

// -----

// The result of a collective is kept; what is computed from it is computed again.

// RUN: stretto opt -p "recompute{plan=%S/plans/recompute.plan}" %s | filecheck %s

// CHECK: %[[A:.+]] = "comm.all_gather"(%arg0)
// CHECK-NOT: "comm.all_gather"
// CHECK: %[[G:.+]] = "aten.gelu_default"(%[[A]]) {recomputed = true}
// CHECK: "aten.gelu_backward_default"(%arg1, %[[G]])
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<2x8xf32>, %dy: tensor<4x8xf32> {aten.argument = {kind = "tangent"}}) -> (tensor<4x8xf32>, tensor<4x8xf32>) {
    %a = "comm.all_gather"(%x) {axes = ["dp"], dim = 0 : i64} : (tensor<2x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %g = "aten.gelu_default"(%a) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %y = "aten.tanh_default"(%g) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %d = "aten.gelu_backward_default"(%dy, %g) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = true}>["h.mlp"])
    return %y, %d : tensor<4x8xf32>, tensor<4x8xf32>
  }
}

// -----

// `collectives again` runs it again.

// RUN: stretto opt -p "recompute{plan=%S/plans/recompute_all.plan},cse" %s | filecheck %s

// CHECK: %[[A:.+]] = "comm.all_gather"(%arg0) {axes = ["dp"], dim = 0 : i64, recomputed = true}
// CHECK: %[[G:.+]] = "aten.gelu_default"(%[[A]]) {recomputed = true}
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<2x8xf32>, %dy: tensor<4x8xf32> {aten.argument = {kind = "tangent"}}) -> (tensor<4x8xf32>, tensor<4x8xf32>) {
    %a = "comm.all_gather"(%x) {axes = ["dp"], dim = 0 : i64} : (tensor<2x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %g = "aten.gelu_default"(%a) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %y = "aten.tanh_default"(%g) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %d = "aten.gelu_backward_default"(%dy, %g) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = true}>["h.mlp"])
    return %y, %d : tensor<4x8xf32>, tensor<4x8xf32>
  }
}

// -----

// A concatenation of the backward is of what is computed again, also where its reader reads that too.

// RUN: stretto opt -p "recompute{plan=%S/plans/recompute.plan}" %s | filecheck %s

// CHECK: %[[G:.+]] = "aten.gelu_default"(%arg0) {recomputed = true}
// CHECK-NEXT: %[[L:.+]] = builtin.unrealized_conversion_cast %[[G]], %[[G]]
// CHECK-NEXT: %[[C:.+]] = "aten.cat_default"(%[[L]])
// CHECK-NEXT: "aten.mm_default"(%[[C]], %[[G]])
// CHECK-NEXT: return
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<8x8xf32>, %dy: tensor<8x8xf32> {aten.argument = {kind = "tangent"}}) -> (tensor<8x8xf32>, tensor<16x8xf32>) {
    %g = "aten.gelu_default"(%x) : (tensor<8x8xf32>) -> tensor<8x8xf32> loc("h.mlp")
    %y = "aten.tanh_default"(%g) : (tensor<8x8xf32>) -> tensor<8x8xf32> loc("h.mlp")
    %l = builtin.unrealized_conversion_cast %g, %g : tensor<8x8xf32>, tensor<8x8xf32> to tuple<tensor<8x8xf32>, tensor<8x8xf32>>
    %c = "aten.cat_default"(%l) {dim = 0 : i64} : (tuple<tensor<8x8xf32>, tensor<8x8xf32>>) -> tensor<16x8xf32> loc(fused<{backward = true}>["h.mlp"])
    %d = "aten.mm_default"(%c, %g) : (tensor<16x8xf32>, tensor<8x8xf32>) -> tensor<16x8xf32> loc(fused<{backward = true}>["h.mlp"])
    return %y, %d : tensor<8x8xf32>, tensor<16x8xf32>
  }
}

// -----

// Must not fire: the backward of another module reads what the module makes.

// RUN: stretto opt -p "recompute{plan=%S/plans/recompute.plan}" %s | filecheck %s

// CHECK-NOT: recomputed
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
  func.func @main(%x: tensor<4x8xf32>, %dy: tensor<4x8xf32> {aten.argument = {kind = "tangent"}}) -> (tensor<4x8xf32>, tensor<4x8xf32>) {
    %g = "aten.gelu_default"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("h.mlp")
    %y = "aten.tanh_default"(%g) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("h.act")
    %d = "aten.tanh_backward_default"(%dy, %g) : (tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32> loc(fused<{backward = true}>["h.act"])
    return %y, %d : tensor<4x8xf32>, tensor<4x8xf32>
  }
}
