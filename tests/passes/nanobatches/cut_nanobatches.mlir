// RUN: stretto opt -p "cut-nanobatches{plan=%S/plans/nanobatches.plan}" %s | filecheck %s

// By turns: each ends with a collective. A sum over the tokens is added up, an all_gather of another dim is of a part.

// CHECK: %[[X0:.+]] = "aten.slice_tensor"(%arg0) {dim = 1 : i64, end = 2 : i64, start = 0 : i64}
// CHECK-NEXT: %[[H0:.+]] = "nn.linear"(%[[X0]], %arg1)
// CHECK-NEXT: %[[Y0:.+]] = "comm.all_reduce"(%[[H0]])
// CHECK-NEXT: %[[X1:.+]] = "aten.slice_tensor"(%arg0) {dim = 1 : i64, end = 4 : i64, start = 2 : i64}
// CHECK-NEXT: %[[H1:.+]] = "nn.linear"(%[[X1]], %arg1)
// CHECK-NEXT: %[[Y1:.+]] = "comm.all_reduce"(%[[H1]])
// CHECK-NEXT: %[[G0:.+]] = "aten.gelu_default"(%[[Y0]])
// CHECK-NEXT: %[[W0:.+]] = "nn.sum_of_outer_products"(%[[X0]], %[[G0]])
// CHECK-NEXT: %[[G1:.+]] = "aten.gelu_default"(%[[Y1]])
// CHECK-NEXT: %[[W1:.+]] = "nn.sum_of_outer_products"(%[[X1]], %[[G1]])
// CHECK-NEXT: %[[W:.+]] = "aten.add_tensor"(%[[W0]], %[[W1]])
// CHECK: %[[G:.+]] = "aten.cat_default"
// CHECK-NEXT: return %[[G]], %[[W]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<2x4x8xf32> {aten.argument = {kind = "input", name = "x"}}, %w: tensor<8x16xf32>) -> (tensor<2x4x16xf32>, tensor<8x16xf32>) {
    %h = "nn.linear"(%x, %w) {operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<2x4x8xf32>, tensor<8x16xf32>) -> tensor<2x4x16xf32, {tp = "partial(sum)"}>
    %y = "comm.all_reduce"(%h) {axes = ["tp"], reduce = "sum"} : (tensor<2x4x16xf32, {tp = "partial(sum)"}>) -> tensor<2x4x16xf32>
    %g = "aten.gelu_default"(%y) : (tensor<2x4x16xf32>) -> tensor<2x4x16xf32>
    %dw = "nn.sum_of_outer_products"(%x, %g) : (tensor<2x4x8xf32>, tensor<2x4x16xf32>) -> tensor<8x16xf32>
    return %g, %dw : tensor<2x4x16xf32>, tensor<8x16xf32>
  }
}

// -----

// RUN: stretto opt -p "cut-nanobatches{plan=%S/plans/nanobatches_in_sequence.plan}" %s | filecheck %s

// In sequence, of two sizes: causal attention of a part of the queries reads all keys, and counts from where it begins.
// What another module does runs once.

// CHECK: "aten.slice_tensor"(%arg0) {dim = 1 : i64, end = 1 : i64, start = 0 : i64}
// CHECK: %[[Q0:.+]] = "aten.transpose_int"
// CHECK: %[[Q1:.+]] = "aten.transpose_int"
// CHECK: %[[K:.+]] = "aten.cat_default"(%{{.+}}) {dim = 2 : i64}
// CHECK-NEXT: %[[O0:.+]]:2 = "nn.attention"(%[[Q0]], %[[K]], %[[K]])
// CHECK-NEXT: %[[S:.+]] = "aten.full_default"() {dtype = i64, fill_value = 1 : i64, size = []}
// CHECK-NEXT: %[[O1:.+]]:2 = "nn.attention"(%[[Q1]], %[[K]], %[[K]], %[[S]])
// CHECK: %[[O:.+]] = "aten.cat_default"
// CHECK-NEXT: %[[G:.+]] = "aten.gelu_default"(%[[O]])
// CHECK-NEXT: return %[[G]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<1x4x8xf32> {aten.argument = {kind = "input", name = "x"}}) -> tensor<1x2x4x4xf32> {
    %r = "aten.reshape_default"(%x) {shape = array<i64: 1, 4, 2, 4>} : (tensor<1x4x8xf32>) -> tensor<1x4x2x4xf32> loc("attention")
    %q = "aten.transpose_int"(%r) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<1x4x2x4xf32>) -> tensor<1x2x4x4xf32> loc("attention")
    %o:2 = "nn.attention"(%q, %q, %q) {causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0>} : (tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>) -> (tensor<1x2x4x4xf32>, tensor<1x2x4xf32>) loc("attention")
    %g = "aten.gelu_default"(%o#0) : (tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32> loc("gelu")
    return %g : tensor<1x2x4x4xf32>
  }
}

// -----

// Must not fire: a sequence shorter than the statement asks for.

// RUN: stretto opt -p "cut-nanobatches{plan=%S/plans/nanobatches_from.plan}" %s | filecheck %s

// CHECK-NOT: aten.slice
// CHECK: aten.gelu
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<1x4x8xf32> {aten.argument = {kind = "input", name = "x"}}) -> tensor<1x4x8xf32> {
    %g = "aten.gelu_default"(%x) : (tensor<1x4x8xf32>) -> tensor<1x4x8xf32>
    return %g : tensor<1x4x8xf32>
  }
}
