// RUN: stretto opt -p "cap-experts{plan=%S/plans/capacity.plan}" %s | filecheck %s

// Of 8 rows for 4 experts an expert takes 3, 1.5 times the even share; products drop the same rows.

// CHECK: %[[KEPT:.*]] = "nn.kept_experts"(%arg2) {capacity = 3 : i64, count = 4 : i64}
// CHECK: "nn.expert_linear"(%arg0, %{{.*}}, %[[KEPT]]) {capacity = 3 : i64}
// CHECK: "nn.expert_outer_products"(%arg0, %arg3, %[[KEPT]], %{{.*}}) {capacity = 3 : i64}
module attributes {comm.level = "aten", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<4x5x6xf32> {aten.argument = {kind = "parameter", name = "mlp.experts.up"}}, %e: tensor<8xi64>, %g: tensor<8x5xf32>) -> (tensor<8x5xf32>, tensor<4x6x5xf32>) {
    %0 = "aten.transpose_int"(%w) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<4x5x6xf32>) -> tensor<4x6x5xf32>
    %1 = "nn.expert_linear"(%x, %0, %e) : (tensor<8x6xf32>, tensor<4x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %2 = "nn.expert_outer_products"(%x, %g, %e, %0) : (tensor<8x6xf32>, tensor<8x5xf32>, tensor<8xi64>, tensor<4x6x5xf32>) -> tensor<4x6x5xf32>
    return %1, %2 : tensor<8x5xf32>, tensor<4x6x5xf32>
  }
}

// -----

// The statement is about other experts, which take all rows; and 2 rows of 2 experts are not more than 1.5 each.

// CHECK-NOT: kept_experts
module attributes {comm.level = "aten", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<4x6x5xf32> {aten.argument = {kind = "parameter", name = "mlp.others.up"}}, %e: tensor<8xi64>, %v: tensor<2x6x5xf32> {aten.argument = {kind = "parameter", name = "mlp.experts.up"}}, %d: tensor<2xi64>, %y: tensor<2x6xf32>) -> (tensor<8x5xf32>, tensor<2x5xf32>) {
    %1 = "nn.expert_linear"(%x, %w, %e) : (tensor<8x6xf32>, tensor<4x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %2 = "nn.expert_linear"(%y, %v, %d) : (tensor<2x6xf32>, tensor<2x6x5xf32>, tensor<2xi64>) -> tensor<2x5xf32>
    return %1, %2 : tensor<8x5xf32>, tensor<2x5xf32>
  }
}
