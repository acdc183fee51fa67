// RUN: stretto opt -p "exchange-experts{plan=%S/plans/experts.plan}" %s | filecheck %s

// Each rank has a part of every expert; it exchanges them for whole ones before a product, and their gradients back.

// CHECK: %[[W:.+]] = "aten.stack_default"
// CHECK: %[[V:.+]] = "comm.reshard"(%[[W]]) {use = 0 : i64} : (tensor<2x5x6xf32>) -> tensor<2x5x6xf32, {ep = "shard(0)"}>
// CHECK: %[[T:.+]] = "aten.transpose_int"(%[[V]])
// CHECK: "nn.expert_linear"(%arg0, %[[T]], %arg3)
// CHECK: %[[G:.+]] = "nn.expert_outer_products"
// CHECK: %[[H:.+]] = "aten.transpose_int"(%[[G]])
// CHECK: %[[B:.+]] = "comm.reshard"(%[[H]]) : (tensor<2x5x6xf32>) -> tensor<2x5x6xf32, {ep = "shard(2)"}>
// CHECK: "aten.select_int"(%[[B]]) {dim = 0 : i64, index = 0 : i64}
// CHECK: "aten.select_int"(%[[B]]) {dim = 0 : i64, index = 1 : i64}
module attributes {comm.level = "aten", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %a: tensor<5x6xf32, {ep = "shard(1)"}> {aten.argument = {kind = "parameter", name = "mlp.experts.0.up"}}, %b: tensor<5x6xf32, {ep = "shard(1)"}> {aten.argument = {kind = "parameter", name = "mlp.experts.1.up"}}, %e: tensor<8xi64>, %g: tensor<8x5xf32>) -> (tensor<8x5xf32>, tensor<5x6xf32>, tensor<5x6xf32>) {
    %p = builtin.unrealized_conversion_cast %a, %b : tensor<5x6xf32, {ep = "shard(1)"}>, tensor<5x6xf32, {ep = "shard(1)"}> to tuple<tensor<5x6xf32>, tensor<5x6xf32>>
    %w = "aten.stack_default"(%p) : (tuple<tensor<5x6xf32>, tensor<5x6xf32>>) -> tensor<2x5x6xf32>
    %t = "aten.transpose_int"(%w) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<2x5x6xf32>) -> tensor<2x6x5xf32>
    %0 = "nn.expert_linear"(%x, %t, %e) : (tensor<8x6xf32>, tensor<2x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %1 = "nn.expert_outer_products"(%x, %g, %e, %t) : (tensor<8x6xf32>, tensor<8x5xf32>, tensor<8xi64>, tensor<2x6x5xf32>) -> tensor<2x6x5xf32>
    %2 = "aten.transpose_int"(%1) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<2x6x5xf32>) -> tensor<2x5x6xf32>
    %3 = "aten.select_int"(%2) {dim = 0 : i64, index = 0 : i64} : (tensor<2x5x6xf32>) -> tensor<5x6xf32>
    %4 = "aten.select_int"(%2) {dim = 0 : i64, index = 1 : i64} : (tensor<2x5x6xf32>) -> tensor<5x6xf32>
    return %0, %3, %4 : tensor<8x5xf32>, tensor<5x6xf32>, tensor<5x6xf32>
  }
}

// -----

// Experts of one parameter, which is cut by experts already, stay.

// RUN: stretto opt -p "exchange-experts{plan=%S/plans/experts.plan}" %s | filecheck %s

// CHECK: @main
// CHECK-NOT: comm.reshard
module attributes {comm.level = "aten", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<4x6x5xf32, {ep = "shard(0)"}> {aten.argument = {kind = "parameter", name = "mlp.experts.up"}}, %e: tensor<8xi64>) -> tensor<8x5xf32> {
    %0 = "nn.expert_linear"(%x, %w, %e) : (tensor<8x6xf32>, tensor<4x6x5xf32, {ep = "shard(0)"}>, tensor<8xi64>) -> tensor<8x5xf32>
    return %0 : tensor<8x5xf32>
  }
}
