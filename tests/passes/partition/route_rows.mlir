// RUN: stretto opt -p "route-rows" %s | filecheck %s

// Two products with an activation between them: rows go to their experts once, and come back once.

// CHECK: %[[S:.+]], %[[ORDER:.+]] = {{.*}}
// CHECK-DAG: "comm.all_to_all"({{.*}}) {axes = ["ep"], concat_dim = 0 : i64, split_dim = 0 : i64} : (tensor<4xi64>) -> tensor<4xi64>
// CHECK: %[[SENT:.+]] = "aten.index_tensor"(%arg0
// CHECK-NEXT: %[[CAME:.+]] = "comm.all_to_all_rows"(%[[SENT]], %[[OUT:.+]], %[[IN:.+]]) {axes = ["ep"], bound = 12 : i64} : {{.*}} -> tensor<12x6xf32>
// CHECK: %[[H:.+]] = "stretto.grouped_mm_default"({{.*}}, %arg1, %[[ENDS:.+]]) : {{.*}} -> tensor<12x5xf32>
// CHECK: %[[A:.+]] = "aten.relu_default"(%[[H]]) : (tensor<12x5xf32>) -> tensor<12x5xf32>
// CHECK-NEXT: %[[Y:.+]] = "stretto.grouped_mm_default"(%[[A]], %arg2, %[[ENDS]])
// CHECK: %[[HOME:.+]] = "comm.all_to_all_rows"({{.*}}, %[[IN]], %[[OUT]]) {axes = ["ep"], bound = 8 : i64} : {{.*}} -> tensor<8x6xf32>
// CHECK-NOT: all_to_all_rows
// CHECK: return
module attributes {comm.level = "comm", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<2x6x5xf32>, %v: tensor<2x5x6xf32>, %e: tensor<8xi64>) -> tensor<8x6xf32> {
    %0 = "comm.expert_linear"(%x, %w, %e) {axes = ["ep"], bound = 12 : i64, capped = false} : (tensor<8x6xf32>, tensor<2x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %1 = "aten.relu_default"(%0) : (tensor<8x5xf32>) -> tensor<8x5xf32>
    %2 = "comm.expert_linear"(%1, %v, %e) {axes = ["ep"], bound = 12 : i64, capped = false} : (tensor<8x5xf32>, tensor<2x5x6xf32>, tensor<8xi64>) -> tensor<8x6xf32>
    return %2 : tensor<8x6xf32>
  }
}

// -----

// Where nothing cuts experts, rows are sorted and nothing is sent; the rows of a token in a row are read from the token.

// CHECK: %[[K:.+]] = "aten.div_scalar_mode"({{.*}}) {other = 2 : i64, rounding_mode = "floor"}
// CHECK: "aten.index_tensor"(%arg0, {{.*}}) {{.*}} -> tensor<8x6xf32>
// CHECK: "stretto.grouped_mm_default"
// CHECK-NOT: comm.
// CHECK: return
module attributes {comm.level = "comm", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<4x6xf32>, %w: tensor<3x6x5xf32>, %e: tensor<8xi64>) -> tensor<8x5xf32> {
    %0 = "aten.unsqueeze_default"(%x) {dim = 1 : i64} : (tensor<4x6xf32>) -> tensor<4x1x6xf32>
    %1 = "aten.expand_default"(%0) {size = array<i64: 4, 2, 6>, implicit = false} : (tensor<4x1x6xf32>) -> tensor<4x2x6xf32>
    %2 = "aten.reshape_default"(%1) {shape = array<i64: 8, 6>} : (tensor<4x2x6xf32>) -> tensor<8x6xf32>
    %3 = "comm.expert_linear"(%2, %w, %e) {axes = [], bound = 8 : i64, capped = false} : (tensor<8x6xf32>, tensor<3x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    return %3 : tensor<8x5xf32>
  }
}

// -----

// A sum over the rows of an expert mixes rows: what it makes is sent on its own.

// CHECK-COUNT-2: "comm.all_to_all_rows"
// CHECK: "stretto.grouped_outer_products_default"({{.*}}) : (tensor<16x6xf32>, tensor<16x5xf32>, tensor<2xi64>) -> tensor<2x6x5xf32>
module attributes {comm.level = "comm", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %g: tensor<8x5xf32>, %e: tensor<8xi64>) -> tensor<2x6x5xf32> {
    %0 = "comm.expert_outer_products"(%x, %g, %e) {axes = ["ep"], bound = 16 : i64, capped = false, count = 2 : i64} : (tensor<8x6xf32>, tensor<8x5xf32>, tensor<8xi64>) -> tensor<2x6x5xf32>
    return %0 : tensor<2x6x5xf32>
  }
}

// -----

// A bias is a product with ones, which are not sent; it is added where the experts are, and one sum comes back.

// CHECK: "comm.all_to_all_rows"({{.*}}) {axes = ["ep"], bound = 16 : i64} : {{.*}} -> tensor<16x6xf32>
// CHECK: %[[ONES:.+]] = "aten.full_default"() {dtype = f32, fill_value = 1.000000e+00 : f64, size = array<i64: 16, 1>}
// CHECK: "stretto.grouped_mm_default"(%[[ONES]], %arg2
// CHECK: "aten.add_tensor"({{.*}}) {{.*}} -> tensor<16x5xf32>
// CHECK: "comm.all_to_all_rows"({{.*}}) {axes = ["ep"], bound = 8 : i64} : {{.*}} -> tensor<8x5xf32>
// CHECK-NOT: all_to_all_rows
// CHECK: "aten.mul_tensor"(%{{.*}}, %arg4)
module attributes {comm.level = "comm", comm.mesh = [["ep", 2]]} {
  func.func @main(%x: tensor<8x6xf32>, %w: tensor<2x6x5xf32>, %b: tensor<2x1x5xf32>, %e: tensor<8xi64>, %s: tensor<8x1xf32>) -> tensor<8x5xf32> {
    %0 = "comm.expert_linear"(%x, %w, %e) {axes = ["ep"], bound = 16 : i64, capped = false} : (tensor<8x6xf32>, tensor<2x6x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %1 = "aten.full_default"() {size = array<i64: 16, 1>, fill_value = 1.0 : f64, dtype = f32} : () -> tensor<16x1xf32>
    %2 = "comm.shard"(%1) {axes = ["ep"], dim = 0 : i64, chunk = 8 : i64} : (tensor<16x1xf32>) -> tensor<8x1xf32>
    %3 = "comm.expert_linear"(%2, %b, %e) {axes = ["ep"], bound = 16 : i64, capped = false} : (tensor<8x1xf32>, tensor<2x1x5xf32>, tensor<8xi64>) -> tensor<8x5xf32>
    %4 = "aten.add_tensor"(%0, %3) {alpha = 1 : i64} : (tensor<8x5xf32>, tensor<8x5xf32>) -> tensor<8x5xf32>
    %5 = "aten.mul_tensor"(%4, %s) : (tensor<8x5xf32>, tensor<8x1xf32>) -> tensor<8x5xf32>
    return %5 : tensor<8x5xf32>
  }
}
