// RUN: stretto opt -p "check-batch{plan=%S/plans/two_stages_alone.plan}" %s | filecheck %s

// The labels' rows are tied to those of the logits. Of the results the logits have a row for each row of the batch; the
// counts of classes have as many rows by chance.

// CHECK: module attributes {{.*}}comm.batch_results = array<i64: 1>
module attributes {comm.mesh = [["pp", 2], ["dp", 2]]} {
func.func @main(
  %w: tensor<6x4xf32> {aten.argument = {index = -1, kind = "parameter", name = "head.weight", owner = "linear"}},
  %x: tensor<4x6xf32> {aten.argument = {index = 0, kind = "input", name = "x"}},
  %y: tensor<4xi64> {aten.argument = {index = 1, kind = "input", name = "y"}})
  -> (tensor<f32> {aten.argument = {index = 0, kind = "output", name = "loss"}},
      tensor<4x4xf32> {aten.argument = {index = 1, kind = "output", name = "logits"}},
      tensor<4xf32> {aten.argument = {index = 2, kind = "output", name = "sums"}}) {
  %l = "aten.mm_default"(%x, %w) : (tensor<4x6xf32>, tensor<6x4xf32>) -> tensor<4x4xf32>
  %s = "aten.sum_dim_intlist"(%l) {dim = array<i64: 0>, keepdim = false} : (tensor<4x4xf32>) -> tensor<4xf32>
  %n:3 = "nn.cross_entropy"(%l, %y) {ignore_index = -100 : i64} : (tensor<4x4xf32>, tensor<4xi64>) -> (tensor<f32>, tensor<f32>, tensor<4xf32>)
  return %n#0, %l, %s : tensor<f32>, tensor<4x4xf32>, tensor<4xf32>
}
}

// -----
// RUN: stretto opt -p "check-batch{plan=%S/plans/feed_forward.plan}" %s | filecheck %s

// Over ranks nothing is noted: values stay what they are, whatever is cut.

// CHECK: module attributes {comm.mesh = {{.*}}} {
// CHECK-NEXT: func.func @main
module attributes {comm.mesh = [["dp", 2], ["tp", 2]]} {
func.func @main(
  %x: tensor<4x6xf32> {aten.argument = {index = 0, kind = "input", name = "x"}},
  %table: tensor<4x6xf32> {aten.argument = {index = 1, kind = "input", name = "table"}}) -> (tensor<4x4xf32>) {
  %t = "aten.t_default"(%table) : (tensor<4x6xf32>) -> tensor<6x4xf32>
  %s = "aten.mm_default"(%x, %t) : (tensor<4x6xf32>, tensor<6x4xf32>) -> tensor<4x4xf32>
  return %s : tensor<4x4xf32>
}
}
