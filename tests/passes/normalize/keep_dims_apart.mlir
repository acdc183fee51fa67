// RUN: stretto opt -p "keep-dims-apart,canonicalize" %s | filecheck %s

// A linear layer, and the gradients of its weight and bias: examples and tokens stay apart.

// CHECK: @main(%arg0: tensor<2x3x4xf32>, %arg1: tensor<4x5xf32>, %arg2: tensor<5xf32>, %arg3: tensor<2x3x5xf32>)
// CHECK-NEXT: %[[Y:.+]] = "nn.linear"(%arg0, %arg1, %arg2) {{.*}} -> tensor<2x3x5xf32>
// CHECK-NEXT: %[[W:.+]] = "nn.sum_of_outer_products"(%arg3, %arg0) : {{.*}} -> tensor<5x4xf32>
// CHECK-NEXT: %[[B:.+]] = "aten.sum_dim_intlist"(%arg3) {dim = array<i64: 0, 1>, keepdim = false} : {{.*}} -> tensor<5xf32>
// CHECK-NEXT: return %[[Y]], %[[W]], %[[B]]
func.func @main(%x: tensor<2x3x4xf32>, %w: tensor<4x5xf32>, %b: tensor<5xf32>, %g: tensor<2x3x5xf32>) -> (tensor<2x3x5xf32>, tensor<5x4xf32>, tensor<5xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 4>} : (tensor<2x3x4xf32>) -> tensor<6x4xf32>
  %1 = "aten.addmm_default"(%b, %0, %w) : (tensor<5xf32>, tensor<6x4xf32>, tensor<4x5xf32>) -> tensor<6x5xf32>
  %2 = "aten.reshape_default"(%1) {shape = array<i64: 2, 3, 5>} : (tensor<6x5xf32>) -> tensor<2x3x5xf32>
  %3 = "aten.reshape_default"(%g) {shape = array<i64: 6, 5>} : (tensor<2x3x5xf32>) -> tensor<6x5xf32>
  %4 = "aten.t_default"(%3) : (tensor<6x5xf32>) -> tensor<5x6xf32>
  %5 = "aten.mm_default"(%4, %0) : (tensor<5x6xf32>, tensor<6x4xf32>) -> tensor<5x4xf32>
  %6 = "aten.sum_dim_intlist"(%3) {dim = array<i64: 0>, keepdim = true} : (tensor<6x5xf32>) -> tensor<1x5xf32>
  %7 = "aten.reshape_default"(%6) {shape = array<i64: 5>} : (tensor<1x5xf32>) -> tensor<5xf32>
  return %2, %5, %7 : tensor<2x3x5xf32>, tensor<5x4xf32>, tensor<5xf32>
}

// -----

// Heads that are merged into features stay merged; a gradient that comes merged is taken apart as the other operand is.

// CHECK: %[[X:.+]] = "aten.reshape_default"(%arg0) {shape = array<i64: 2, 3, 8>}
// CHECK-NEXT: %[[Y:.+]] = "nn.linear"(%[[X]], %arg1) {{.*}} -> tensor<2x3x5xf32>
// CHECK-NEXT: %[[R:.+]] = "aten.reshape_default"(%[[Y]]) {shape = array<i64: 6, 5>}
// CHECK-NEXT: %[[G:.+]] = "aten.reshape_default"(%arg2) {shape = array<i64: 2, 3, 5>}
// CHECK: %[[W:.+]] = "nn.sum_of_outer_products"(%[[G]], %{{.+}}) : {{.*}} -> tensor<5x8xf32>
// CHECK-NEXT: return %[[R]], %[[W]]
func.func @main(%x: tensor<2x3x4x2xf32>, %w: tensor<8x5xf32>, %g: tensor<6x5xf32>) -> (tensor<6x5xf32>, tensor<5x8xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 8>} : (tensor<2x3x4x2xf32>) -> tensor<6x8xf32>
  %1 = "aten.mm_default"(%0, %w) : (tensor<6x8xf32>, tensor<8x5xf32>) -> tensor<6x5xf32>
  %2 = "aten.t_default"(%g) : (tensor<6x5xf32>) -> tensor<5x6xf32>
  %3 = "aten.mm_default"(%2, %0) : (tensor<5x6xf32>, tensor<6x8xf32>) -> tensor<5x8xf32>
  return %1, %3 : tensor<6x5xf32>, tensor<5x8xf32>
}

// -----

// A loss over the tokens of all examples.

// CHECK: %[[L:.+]]:3 = "nn.cross_entropy"(%arg0, %arg1) {{.*}} -> (tensor<f32>, tensor<f32>, tensor<2x3xf32>)
// CHECK: %[[D:.+]] = "nn.cross_entropy_backward"(%arg2, %arg0, %arg1, %[[L]]#2) {{.*}} -> tensor<2x3x7xf32>
// CHECK-NEXT: return %[[L]]#0, %[[D]]
func.func @main(%x: tensor<2x3x7xf32>, %y: tensor<2x3xi64>, %s: tensor<f32>) -> (tensor<f32>, tensor<2x3x7xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 7>} : (tensor<2x3x7xf32>) -> tensor<6x7xf32>
  %1 = "aten.reshape_default"(%y) {shape = array<i64: 6>} : (tensor<2x3xi64>) -> tensor<6xi64>
  %t, %n, %l = "nn.cross_entropy"(%0, %1) {ignore_index = -100 : i64} : (tensor<6x7xf32>, tensor<6xi64>) -> (tensor<f32>, tensor<f32>, tensor<6xf32>)
  %2 = "nn.cross_entropy_backward"(%s, %0, %1, %l) {ignore_index = -100 : i64} : (tensor<f32>, tensor<6x7xf32>, tensor<6xi64>, tensor<6xf32>) -> tensor<6x7xf32>
  %3 = "aten.reshape_default"(%2) {shape = array<i64: 2, 3, 7>} : (tensor<6x7xf32>) -> tensor<2x3x7xf32>
  return %t, %3 : tensor<f32>, tensor<2x3x7xf32>
}

// -----

// A loss with weights of classes over the tokens of all examples, as log_softmax and a sum: nothing merges them.

// CHECK: %[[P:.+]] = "aten.u_log_softmax_default"(%arg0) {dim = 2 : i64, {{.*}} -> tensor<2x3x7xf32>
// CHECK-NEXT: %[[L:.+]] = "nn.nll_loss"(%[[P]], %arg1, %arg2) {{.*}} -> tensor<2x3xf32>
// CHECK-NEXT: %[[S:.+]] = "aten.sum_default"(%[[L]])
// CHECK-NEXT: %[[G:.+]] = "aten.expand_default"(%arg3) {size = array<i64: 2, 3>}
// CHECK-NEXT: %[[D:.+]] = "nn.nll_loss_backward"(%[[G]], %[[P]], %arg1, %arg2) {{.*}} -> tensor<2x3x7xf32>
// CHECK-NEXT: %[[X:.+]] = "aten.u_log_softmax_backward_data_default"(%[[D]], %[[P]]) {dim = 2 : i64
// CHECK-NEXT: return %[[S]], %[[X]]
func.func @main(%x: tensor<2x3x7xf32>, %y: tensor<2x3xi64>, %w: tensor<7xf32>, %s: tensor<f32>) -> (tensor<f32>, tensor<2x3x7xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 7>} : (tensor<2x3x7xf32>) -> tensor<6x7xf32>
  %1 = "aten.reshape_default"(%y) {shape = array<i64: 6>} : (tensor<2x3xi64>) -> tensor<6xi64>
  %2 = "aten.u_log_softmax_default"(%0) {dim = 1 : i64, half_to_float = false} : (tensor<6x7xf32>) -> tensor<6x7xf32>
  %t, %n = "aten.nll_loss_forward_default"(%2, %1, %w) {ignore_index = -100 : i64, reduction = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1>} : (tensor<6x7xf32>, tensor<6xi64>, tensor<7xf32>) -> (tensor<f32>, tensor<f32>)
  %3 = "aten.nll_loss_backward_default"(%s, %2, %1, %w, %s) {ignore_index = -100 : i64, reduction = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1>} : (tensor<f32>, tensor<6x7xf32>, tensor<6xi64>, tensor<7xf32>, tensor<f32>) -> tensor<6x7xf32>
  %4 = "aten.u_log_softmax_backward_data_default"(%3, %2) {dim = 1 : i64, input_dtype = f32} : (tensor<6x7xf32>, tensor<6x7xf32>) -> tensor<6x7xf32>
  %5 = "aten.reshape_default"(%4) {shape = array<i64: 2, 3, 7>} : (tensor<6x7xf32>) -> tensor<2x3x7xf32>
  return %t, %5 : tensor<f32>, tensor<2x3x7xf32>
}

// -----

// Row by row: what broadcasts over rows keeps doing so, a number for each row is summed over their dims.

// CHECK: %[[M:.+]] = "aten.mul_tensor"(%arg0, %arg1) : {{.*}} -> tensor<2x3x7xf32>
// CHECK-NEXT: %[[A:.+]] = "aten.amax_default"(%[[M]]) {dim = array<i64: 2>, keepdim = true} : {{.*}} -> tensor<2x3x1xf32>
// CHECK-NEXT: %[[D:.+]] = "aten.sub_tensor"(%[[M]], %[[A]]) {{.*}} -> tensor<2x3x7xf32>
// CHECK-NEXT: %[[O:.+]] = "aten.full_default"() {fill_value = 1.{{0+}}e+00 : f64, size = array<i64: 2, 3, 7>}
// CHECK-NEXT: %[[E:.+]] = "aten.add_tensor"(%[[D]], %[[O]])
// CHECK-NEXT: %[[R:.+]] = "aten.sum_dim_intlist"(%[[E]]) {dim = array<i64: 2>, keepdim = false} : {{.*}} -> tensor<2x3xf32>
// CHECK-NEXT: %[[S:.+]] = "aten.sum_default"(%[[R]])
// CHECK-NEXT: return %[[S]]
func.func @main(%x: tensor<2x3x7xf32>, %w: tensor<7xf32>) -> tensor<f32> {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 7>} : (tensor<2x3x7xf32>) -> tensor<6x7xf32>
  %1 = "aten.mul_tensor"(%0, %w) : (tensor<6x7xf32>, tensor<7xf32>) -> tensor<6x7xf32>
  %2 = "aten.amax_default"(%1) {dim = array<i64: -1>, keepdim = true} : (tensor<6x7xf32>) -> tensor<6x1xf32>
  %3 = "aten.sub_tensor"(%1, %2) : (tensor<6x7xf32>, tensor<6x1xf32>) -> tensor<6x7xf32>
  %4 = "aten.full_default"() {size = array<i64: 6, 7>, fill_value = 1.0 : f64} : () -> tensor<6x7xf32>
  %5 = "aten.add_tensor"(%3, %4) : (tensor<6x7xf32>, tensor<6x7xf32>) -> tensor<6x7xf32>
  %6 = "aten.sum_dim_intlist"(%5) {dim = array<i64: 1>, keepdim = false} : (tensor<6x7xf32>) -> tensor<6xf32>
  %7 = "aten.sum_default"(%6) : (tensor<6xf32>) -> tensor<f32>
  return %7 : tensor<f32>
}

// -----

// A sum that runs along the rows stays, and so does a mean loss, which `split-means` makes a sum first.

// CHECK: "aten.cumsum_default"(%{{.+}}) {dim = 0 : i64} : (tensor<6x7xf32>)
// CHECK: "aten.nll_loss_forward_default"
// CHECK-NOT: nn.nll_loss
func.func @main(%x: tensor<2x3x7xf32>, %y: tensor<2x3xi64>) -> (tensor<6x7xf32>, tensor<f32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 7>} : (tensor<2x3x7xf32>) -> tensor<6x7xf32>
  %1 = "aten.reshape_default"(%y) {shape = array<i64: 6>} : (tensor<2x3xi64>) -> tensor<6xi64>
  %2 = "aten.cumsum_default"(%0) {dim = 0 : i64} : (tensor<6x7xf32>) -> tensor<6x7xf32>
  %t, %n = "aten.nll_loss_forward_default"(%0, %1) {ignore_index = -100 : i64, reduction = 1 : i64, operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<6x7xf32>, tensor<6xi64>) -> (tensor<f32>, tensor<f32>)
  return %2, %t : tensor<6x7xf32>, tensor<f32>
}

// -----

// Rows that were never merged stay, and so do those whose dims are cut anew: 6 features of 4 are no 8 of 3.

// CHECK-NOT: nn.linear
// CHECK: "aten.mm_default"
// CHECK: "aten.mm_default"
// CHECK-NOT: nn.linear
func.func @main(%a: tensor<6x4xf32>, %w: tensor<4x5xf32>, %b: tensor<2x6x2xf32>) -> (tensor<6x5xf32>, tensor<6x5xf32>) {
  %0 = "aten.mm_default"(%a, %w) : (tensor<6x4xf32>, tensor<4x5xf32>) -> tensor<6x5xf32>
  %1 = "aten.reshape_default"(%b) {shape = array<i64: 6, 4>} : (tensor<2x6x2xf32>) -> tensor<6x4xf32>
  %2 = "aten.mm_default"(%1, %w) : (tensor<6x4xf32>, tensor<4x5xf32>) -> tensor<6x5xf32>
  return %0, %2 : tensor<6x5xf32>, tensor<6x5xf32>
}

// -----

// A score of each row, by an index of its rows in order: a gather, and its backward a scatter_add. -1 is the last class.

// CHECK-NOT: aten.index
// CHECK: %[[N:.+]] = "aten.lt_scalar"(%arg1) {other = 0 : i64} : {{.*}} -> tensor<2x3xi1>
// CHECK-NEXT: %[[A:.+]] = "aten.add_scalar"(%arg1) {other = 7 : i64} : {{.*}} -> tensor<2x3xi64>
// CHECK-NEXT: %[[Y:.+]] = "aten.where_self"(%[[N]], %[[A]], %arg1) : {{.*}} -> tensor<2x3xi64>
// CHECK-NEXT: %[[I:.+]] = "aten.unsqueeze_default"(%[[Y]]) {dim = 2 : i64}
// CHECK-NEXT: %[[G:.+]] = "aten.gather_default"(%arg0, %[[I]]) {dim = 2 : i64} : {{.*}} -> tensor<2x3x1xf32>
// CHECK-NEXT: %[[P:.+]] = "aten.squeeze_dim"(%[[G]]) {dim = 2 : i64} : {{.*}} -> tensor<2x3xf32>
// CHECK: "aten.scatter_add_default"(%arg0, %{{.+}}, %{{.+}}) {dim = 2 : i64} : (tensor<2x3x7xf32>, tensor<2x3x1xi64>, tensor<2x3x1xf32>) -> tensor<2x3x7xf32>
// CHECK-NOT: aten.index
func.func @main(%x: tensor<2x3x7xf32>, %y: tensor<2x3xi64>) -> (tensor<2x3xf32>, tensor<2x3x7xf32>) {
  %0 = "aten.reshape_default"(%x) {shape = array<i64: 6, 7>} : (tensor<2x3x7xf32>) -> tensor<6x7xf32>
  %1 = "aten.reshape_default"(%y) {shape = array<i64: 6>} : (tensor<2x3xi64>) -> tensor<6xi64>
  %2 = "aten.arange_default"() {end = 6 : i64} : () -> tensor<6xi64>
  %3 = builtin.unrealized_conversion_cast %2, %1 : tensor<6xi64>, tensor<6xi64> to tuple<tensor<6xi64>, tensor<6xi64>>
  %4 = "aten.index_tensor"(%0, %3) {indices_present = [true, true]} : (tensor<6x7xf32>, tuple<tensor<6xi64>, tensor<6xi64>>) -> tensor<6xf32>
  %5 = "aten.index_put_default"(%0, %3, %4) {accumulate = true, indices_present = [true, true]} : (tensor<6x7xf32>, tuple<tensor<6xi64>, tensor<6xi64>>, tensor<6xf32>) -> tensor<6x7xf32>
  %6 = "aten.reshape_default"(%4) {shape = array<i64: 2, 3>} : (tensor<6xf32>) -> tensor<2x3xf32>
  %7 = "aten.reshape_default"(%5) {shape = array<i64: 2, 3, 7>} : (tensor<6x7xf32>) -> tensor<2x3x7xf32>
  return %6, %7 : tensor<2x3xf32>, tensor<2x3x7xf32>
}

// -----

// Rows in another order stay an index, and so does one that overwrites.

// CHECK: "aten.index_tensor"
// CHECK: "aten.index_put_default"
// CHECK-NOT: aten.gather
func.func @main(%x: tensor<6x7xf32>, %y: tensor<6xi64>, %z: tensor<6xi64>) -> (tensor<6xf32>, tensor<6x7xf32>) {
  %2 = "aten.arange_default"() {end = 6 : i64} : () -> tensor<6xi64>
  %3 = builtin.unrealized_conversion_cast %z, %y : tensor<6xi64>, tensor<6xi64> to tuple<tensor<6xi64>, tensor<6xi64>>
  %4 = "aten.index_tensor"(%x, %3) {indices_present = [true, true]} : (tensor<6x7xf32>, tuple<tensor<6xi64>, tensor<6xi64>>) -> tensor<6xf32>
  %5 = builtin.unrealized_conversion_cast %2, %y : tensor<6xi64>, tensor<6xi64> to tuple<tensor<6xi64>, tensor<6xi64>>
  %6 = "aten.index_put_default"(%x, %5, %4) {accumulate = false, indices_present = [true, true]} : (tensor<6x7xf32>, tuple<tensor<6xi64>, tensor<6xi64>>, tensor<6xf32>) -> tensor<6x7xf32>
  return %4, %6 : tensor<6xf32>, tensor<6x7xf32>
}

// -----

// A sum of a scalar along its only "dim", as torch allows, has no rows.

// CHECK: @main(%arg0: tensor<f64>)
// CHECK-NEXT: %[[S:.+]] = "aten.sum_dim_intlist"(%arg0) {dim = array<i64: -1>, keepdim = false}
// CHECK-NEXT: return %[[S]]
func.func @main(%x: tensor<f64>) -> tensor<f64> {
  %0 = "aten.sum_dim_intlist"(%x) {dim = array<i64: -1>, keepdim = false} : (tensor<f64>) -> tensor<f64>
  return %0 : tensor<f64>
}
