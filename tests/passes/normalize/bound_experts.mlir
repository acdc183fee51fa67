// RUN: stretto opt -p "bound-experts{plan=%S/plans/experts.plan}" %s | filecheck %s

// A product by expert, and the gradient of its weight, get the bound of the statement that matches the weight.

// CHECK: "nn.expert_linear"(%arg0, %{{.*}}, %arg2) {bound = 1.500000e+00 : f64}
// CHECK: "nn.expert_outer_products"(%arg0, %arg3, %arg2, %{{.*}}) {bound = 1.500000e+00 : f64}
module attributes {comm.level = "aten", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<4x5x6xf32> {aten.argument = {kind = "parameter", name = "mlp.experts.up"}}, %e: tensor<8xi64>, %g: tensor<8x5xf32>) -> (tensor<8x5xf32>, tensor<4x6x5xf32>) {
    %0 = "aten.transpose_int"(%w) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<4x5x6xf32>) -> tensor<4x6x5xf32>
    %1 = "nn.expert_linear"(%x, %0, %e) : (tensor<8x6xf32>, tensor<4x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %2 = "nn.expert_outer_products"(%x, %g, %e, %0) : (tensor<8x6xf32>, tensor<8x5xf32>, tensor<8xi64>, tensor<4x6x5xf32>) -> tensor<4x6x5xf32>
    return %1, %2 : tensor<8x5xf32>, tensor<4x6x5xf32>
  }
}

// -----

// The statement is about other experts, which have room for all rows.

// CHECK: "nn.expert_linear"(%arg0, %arg1, %arg2) :
module attributes {comm.level = "aten", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<4x6x5xf32> {aten.argument = {kind = "parameter", name = "mlp.others.up"}}, %e: tensor<8xi64>) -> tensor<8x5xf32> {
    %1 = "nn.expert_linear"(%x, %w, %e) : (tensor<8x6xf32>, tensor<4x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    return %1 : tensor<8x5xf32>
  }
}
