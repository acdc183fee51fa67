// RUN: stretto opt -p "raise-experts" %s | filecheck %s

// Rows sorted by expert, multiplied in groups, weighted, and put back: the same on rows in the order of tokens.

// CHECK: %[[SCORES:.+]]:2 = "aten.topk_default"
// CHECK: %[[E:.+]] = "aten.reshape_default"(%[[SCORES]]#1)
// CHECK: %[[X:.+]] = "aten.reshape_default"({{.*}}) {shape = array<i64: 8, 6>} : (tensor<4x2x6xf32>) -> tensor<8x6xf32>
// CHECK: %[[Y:.+]] = "nn.expert_linear"(%[[X]], %arg1, %[[E]])
// CHECK-NEXT: %[[A:.+]] = "aten.relu_default"(%[[Y]])
// CHECK-NOT: sort
// CHECK: return %[[A]]
func.func @main(%x: tensor<4x6xf32>, %w: tensor<3x6x5xf32>, %scores: tensor<4x3xf32>) -> tensor<8x5xf32> {
  %0:2 = "aten.topk_default"(%scores) {k = 2 : i64, dim = -1 : i64, largest = true, sorted = true} : (tensor<4x3xf32>) -> (tensor<4x2xf32>, tensor<4x2xi64>)
  %1 = "aten.reshape_default"(%0#1) {shape = array<i64: 8>} : (tensor<4x2xi64>) -> tensor<8xi64>
  %2:2 = "aten.sort_default"(%1) {dim = -1 : i64, descending = false} : (tensor<8xi64>) -> (tensor<8xi64>, tensor<8xi64>)
  %3 = "aten.scalar_tensor_default"() {dtype = i64, s = 2 : i64} : () -> tensor<i64>
  %4 = "aten.floor_divide_default"(%2#1, %3) : (tensor<8xi64>, tensor<i64>) -> tensor<8xi64>
  %5 = builtin.unrealized_conversion_cast %4 : tensor<8xi64> to tuple<tensor<8xi64>>
  %6 = "aten.index_tensor"(%x, %5) {indices_present = [true]} : (tensor<4x6xf32>, tuple<tensor<8xi64>>) -> tensor<8x6xf32>
  %7 = "aten.u_to_copy_default"(%2#0) {dtype = f32} : (tensor<8xi64>) -> tensor<8xf32>
  %8 = "aten.histc_default"(%7) {bins = 3 : i64, max = 2 : i64, min = 0 : i64} : (tensor<8xf32>) -> tensor<3xf32>
  %9 = "aten.cumsum_default"(%8) {dim = 0 : i64, dtype = i32} : (tensor<3xf32>) -> tensor<3xi32>
  %10 = "stretto.grouped_mm_default"(%6, %w, %9) : (tensor<8x6xf32>, tensor<3x6x5xf32>, tensor<3xi32>) -> tensor<8x5xf32>
  %11 = "aten.relu_default"(%10) : (tensor<8x5xf32>) -> tensor<8x5xf32>
  %12 = "aten.arange_default"() {end = 8 : i64} : () -> tensor<8xi64>
  %13 = builtin.unrealized_conversion_cast %2#1 : tensor<8xi64> to tuple<tensor<8xi64>>
  %14 = "aten.index_put_default"(%12, %13, %12) {accumulate = false, indices_present = [true]} : (tensor<8xi64>, tuple<tensor<8xi64>>, tensor<8xi64>) -> tensor<8xi64>
  %15 = builtin.unrealized_conversion_cast %14 : tensor<8xi64> to tuple<tensor<8xi64>>
  %16 = "aten.index_tensor"(%11, %15) {indices_present = [true]} : (tensor<8x5xf32>, tuple<tensor<8xi64>>) -> tensor<8x5xf32>
  return %16 : tensor<8x5xf32>
}

// -----

// Groups that end where the sorted experts do not are left: the counts here begin at 1.

// CHECK: "stretto.grouped_mm_default"
// CHECK-NOT: nn.expert_linear
func.func @main(%x: tensor<8x6xf32>, %w: tensor<3x6x5xf32>, %scores: tensor<8x3xf32>) -> tensor<8x5xf32> {
  %0 = "aten.argmax_default"(%scores) {dim = 1 : i64, keepdim = false} : (tensor<8x3xf32>) -> tensor<8xi64>
  %2:2 = "aten.sort_default"(%0) {dim = -1 : i64, descending = false} : (tensor<8xi64>) -> (tensor<8xi64>, tensor<8xi64>)
  %5 = builtin.unrealized_conversion_cast %2#1 : tensor<8xi64> to tuple<tensor<8xi64>>
  %6 = "aten.index_tensor"(%x, %5) {indices_present = [true]} : (tensor<8x6xf32>, tuple<tensor<8xi64>>) -> tensor<8x6xf32>
  %7 = "aten.u_to_copy_default"(%2#0) {dtype = f32} : (tensor<8xi64>) -> tensor<8xf32>
  %8 = "aten.histc_default"(%7) {bins = 3 : i64, max = 3 : i64, min = 1 : i64} : (tensor<8xf32>) -> tensor<3xf32>
  %9 = "aten.cumsum_default"(%8) {dim = 0 : i64, dtype = i32} : (tensor<3xf32>) -> tensor<3xi32>
  %10 = "stretto.grouped_mm_default"(%6, %w, %9) : (tensor<8x6xf32>, tensor<3x6x5xf32>, tensor<3xi32>) -> tensor<8x5xf32>
  return %10 : tensor<8x5xf32>
}

// -----

// A matrix chosen for each row: rows times matrices, and matrices times columns; the sums of the backward too.

// CHECK: %[[E:.+]] = "aten.argmax_default"
// CHECK: %[[Y:.+]] = "nn.expert_linear"(%arg0, %arg1, %[[E]]) : {{.*}} -> tensor<8x5xf32>
// CHECK: %[[T:.+]] = "aten.transpose_int"(%arg1) {dim0 = 1 : i64, dim1 = 2 : i64}
// CHECK: %[[G:.+]] = "nn.expert_linear"(%arg2, %[[T]], %[[E]]) : {{.*}} -> tensor<8x6xf32>
// CHECK: %[[D:.+]] = "nn.expert_outer_products"(%arg0, %arg2, %[[E]], %arg1) : {{.*}} -> tensor<3x6x5xf32>
// CHECK-NOT: aten.bmm
// CHECK: return %[[Y]], %[[G]], %[[D]]
func.func @main(%x: tensor<8x6xf32>, %w: tensor<3x6x5xf32>, %g: tensor<8x5xf32>, %scores: tensor<8x3xf32>) -> (tensor<8x5xf32>, tensor<8x6xf32>, tensor<3x6x5xf32>) {
  %0 = "aten.argmax_default"(%scores) {dim = 1 : i64, keepdim = false} : (tensor<8x3xf32>) -> tensor<8xi64>
  %1 = builtin.unrealized_conversion_cast %0 : tensor<8xi64> to tuple<tensor<8xi64>>
  %2 = "aten.index_tensor"(%w, %1) {indices_present = [true]} : (tensor<3x6x5xf32>, tuple<tensor<8xi64>>) -> tensor<8x6x5xf32>
  %3 = "aten.unsqueeze_default"(%x) {dim = 1 : i64} : (tensor<8x6xf32>) -> tensor<8x1x6xf32>
  %4 = "aten.bmm_default"(%3, %2) : (tensor<8x1x6xf32>, tensor<8x6x5xf32>) -> tensor<8x1x5xf32>
  %5 = "aten.squeeze_dim"(%4) {dim = 1 : i64} : (tensor<8x1x5xf32>) -> tensor<8x5xf32>
  %6 = "aten.unsqueeze_default"(%g) {dim = 2 : i64} : (tensor<8x5xf32>) -> tensor<8x5x1xf32>
  %7 = "aten.bmm_default"(%2, %6) : (tensor<8x6x5xf32>, tensor<8x5x1xf32>) -> tensor<8x6x1xf32>
  %8 = "aten.squeeze_dim"(%7) {dim = 2 : i64} : (tensor<8x6x1xf32>) -> tensor<8x6xf32>
  %9 = "aten.transpose_int"(%3) {dim0 = 1 : i64, dim1 = 2 : i64} : (tensor<8x1x6xf32>) -> tensor<8x6x1xf32>
  %10 = "aten.unsqueeze_default"(%g) {dim = 1 : i64} : (tensor<8x5xf32>) -> tensor<8x1x5xf32>
  %11 = "aten.bmm_default"(%9, %10) : (tensor<8x6x1xf32>, tensor<8x1x5xf32>) -> tensor<8x6x5xf32>
  %12 = "aten.zeros_default"() {dtype = f32, size = array<i64: 3, 6, 5>} : () -> tensor<3x6x5xf32>
  %13 = "aten.index_put_default"(%12, %1, %11) {accumulate = true, indices_present = [true]} : (tensor<3x6x5xf32>, tuple<tensor<8xi64>>, tensor<8x6x5xf32>) -> tensor<3x6x5xf32>
  return %5, %8, %13 : tensor<8x5xf32>, tensor<8x6xf32>, tensor<3x6x5xf32>
}

// -----

// Numbers that no router chose may be those of no expert, so they are left.

// CHECK: "aten.bmm_default"
// CHECK-NOT: nn.expert_linear
func.func @main(%x: tensor<8x1x6xf32>, %w: tensor<3x6x5xf32>, %e: tensor<8xi64>) -> tensor<8x1x5xf32> {
  %1 = builtin.unrealized_conversion_cast %e : tensor<8xi64> to tuple<tensor<8xi64>>
  %2 = "aten.index_tensor"(%w, %1) {indices_present = [true]} : (tensor<3x6x5xf32>, tuple<tensor<8xi64>>) -> tensor<8x6x5xf32>
  %4 = "aten.bmm_default"(%x, %2) : (tensor<8x1x6xf32>, tensor<8x6x5xf32>) -> tensor<8x1x5xf32>
  return %4 : tensor<8x1x5xf32>
}

// -----

// The sorted products are used as they are too: nothing is raised, else they would be computed twice.

// CHECK: %[[Y:.+]] = "stretto.grouped_mm_default"
// CHECK-NOT: nn.expert_linear
// CHECK: %[[BACK:.+]] = "aten.index_tensor"(%[[Y]]
// CHECK: return %[[BACK]], %[[Y]]
func.func @main(%x: tensor<8x6xf32>, %w: tensor<3x6x5xf32>, %scores: tensor<8x3xf32>) -> (tensor<8x5xf32>, tensor<8x5xf32>) {
  %0 = "aten.argmax_default"(%scores) {dim = 1 : i64, keepdim = false} : (tensor<8x3xf32>) -> tensor<8xi64>
  %2:2 = "aten.sort_default"(%0) {dim = -1 : i64, descending = false} : (tensor<8xi64>) -> (tensor<8xi64>, tensor<8xi64>)
  %5 = builtin.unrealized_conversion_cast %2#1 : tensor<8xi64> to tuple<tensor<8xi64>>
  %6 = "aten.index_tensor"(%x, %5) {indices_present = [true]} : (tensor<8x6xf32>, tuple<tensor<8xi64>>) -> tensor<8x6xf32>
  %7 = "aten.u_to_copy_default"(%2#0) {dtype = f32} : (tensor<8xi64>) -> tensor<8xf32>
  %8 = "aten.histc_default"(%7) {bins = 3 : i64, max = 2 : i64, min = 0 : i64} : (tensor<8xf32>) -> tensor<3xf32>
  %9 = "aten.cumsum_default"(%8) {dim = 0 : i64, dtype = i32} : (tensor<3xf32>) -> tensor<3xi32>
  %10 = "stretto.grouped_mm_default"(%6, %w, %9) : (tensor<8x6xf32>, tensor<3x6x5xf32>, tensor<3xi32>) -> tensor<8x5xf32>
  %11:2 = "aten.sort_default"(%2#1) {dim = -1 : i64, descending = false} : (tensor<8xi64>) -> (tensor<8xi64>, tensor<8xi64>)
  %15 = builtin.unrealized_conversion_cast %11#1 : tensor<8xi64> to tuple<tensor<8xi64>>
  %16 = "aten.index_tensor"(%10, %15) {indices_present = [true]} : (tensor<8x5xf32>, tuple<tensor<8xi64>>) -> tensor<8x5xf32>
  return %16, %10 : tensor<8x5xf32>, tensor<8x5xf32>
}

// -----

// A bias chosen for each row is a product with ones.

// CHECK: %[[E:.+]] = "aten.argmax_default"
// CHECK: %[[Y:.+]] = "nn.expert_linear"(%arg0, %arg1, %[[E]])
// CHECK: %[[ONES:.+]] = "aten.full_default"() {{.*}} -> tensor<8x1xf32>
// CHECK: %[[B:.+]] = "aten.unsqueeze_default"(%arg2) {dim = 1 : i64} : (tensor<3x5xf32>) -> tensor<3x1x5xf32>
// CHECK: %[[R:.+]] = "nn.expert_linear"(%[[ONES]], %[[B]], %[[E]])
// CHECK: "aten.add_tensor"
func.func @main(%x: tensor<8x6xf32>, %w: tensor<3x6x5xf32>, %b: tensor<3x5xf32>, %scores: tensor<8x3xf32>) -> tensor<8x5xf32> {
  %0 = "aten.argmax_default"(%scores) {dim = 1 : i64, keepdim = false} : (tensor<8x3xf32>) -> tensor<8xi64>
  %1 = builtin.unrealized_conversion_cast %0 : tensor<8xi64> to tuple<tensor<8xi64>>
  %2 = "aten.index_tensor"(%w, %1) {indices_present = [true]} : (tensor<3x6x5xf32>, tuple<tensor<8xi64>>) -> tensor<8x6x5xf32>
  %3 = "aten.unsqueeze_default"(%x) {dim = 1 : i64} : (tensor<8x6xf32>) -> tensor<8x1x6xf32>
  %4 = "aten.bmm_default"(%3, %2) : (tensor<8x1x6xf32>, tensor<8x6x5xf32>) -> tensor<8x1x5xf32>
  %5 = "aten.squeeze_dim"(%4) {dim = 1 : i64} : (tensor<8x1x5xf32>) -> tensor<8x5xf32>
  %6 = "aten.index_tensor"(%b, %1) {indices_present = [true]} : (tensor<3x5xf32>, tuple<tensor<8xi64>>) -> tensor<8x5xf32>
  %7 = "aten.add_tensor"(%5, %6) {alpha = 1 : i64} : (tensor<8x5xf32>, tensor<8x5xf32>) -> tensor<8x5xf32>
  return %7 : tensor<8x5xf32>
}
