// RUN: stretto opt -p "schedule-lanes" %s | filecheck %s

// Products that need nothing of the sum run beside it; the wait stands before the first use.

// CHECK: "comm.all_reduce_start"
// CHECK-NEXT: %[[A:.+]] = "aten.mm_default"(%arg1, %arg1)
// CHECK-NEXT: "comm.wait"
// CHECK-NEXT: "aten.neg_default"
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<64x64xf32, {tp = "partial(sum)"}>, %y: tensor<64x64xf32>) -> tensor<64x64xf32> {
  %0 = "comm.all_reduce_start"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %1 = "comm.wait"(%0) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %2 = "aten.neg_default"(%1) : (tensor<64x64xf32>) -> tensor<64x64xf32>
  %3 = "aten.mm_default"(%y, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %4 = "aten.add_tensor"(%2, %3) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %4 : tensor<64x64xf32>
}
}

// -----

// A list that nobody takes stands behind what is in it, wherever that goes.

// CHECK: "comm.all_reduce_start"
// CHECK-NEXT: "aten.mm_default"(%arg1, %arg1)
// CHECK-NEXT: "comm.wait"
// CHECK: builtin.unrealized_conversion_cast
// CHECK-NEXT: return
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<64x64xf32, {tp = "partial(sum)"}>, %y: tensor<64x64xf32>) -> tensor<64x64xf32> {
  %0 = "comm.all_reduce_start"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %1 = "comm.wait"(%0) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %2 = "aten.neg_default"(%1) : (tensor<64x64xf32>) -> tensor<64x64xf32>
  %list = builtin.unrealized_conversion_cast %1, %2 : tensor<64x64xf32>, tensor<64x64xf32> to tuple<tensor<64x64xf32>, tensor<64x64xf32>>
  %3 = "aten.mm_default"(%y, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %4 = "aten.add_tensor"(%2, %3) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %4 : tensor<64x64xf32>
}
}

// -----

// Of two collectives on one lane the one that more work waits for goes first. It is computed first, too.

// CHECK: %[[N:.+]] = "aten.mm_default"(%arg1, %arg1)
// CHECK-NEXT: "comm.all_reduce_start"(%[[N]])
// CHECK-NEXT: "aten.mm_default"(%arg0, %arg0)
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<64x64xf32>, %y: tensor<64x64xf32>) -> (tensor<64x64xf32>, tensor<64x64xf32>) {
  %a = "aten.mm_default"(%x, %x) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32, {tp = "partial(sum)"}>
  %b = "aten.mm_default"(%y, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32, {tp = "partial(sum)"}>
  %0 = "comm.all_reduce_start"(%a) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %1 = "comm.all_reduce_start"(%b) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %2 = "comm.wait"(%0) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %3 = "comm.wait"(%1) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %4 = "aten.mm_default"(%3, %3) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %5 = "aten.mm_default"(%4, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %2, %5 : tensor<64x64xf32>, tensor<64x64xf32>
}
}

// -----

// RUN: stretto opt -p "schedule-lanes{kinds=all_gather}" %s | filecheck %s

// Must not fire: sums are not to be hidden.

// CHECK: "comm.all_reduce_start"
// CHECK-NEXT: "comm.wait"
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<64x64xf32, {tp = "partial(sum)"}>, %y: tensor<64x64xf32>) -> tensor<64x64xf32> {
  %0 = "comm.all_reduce_start"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %1 = "comm.wait"(%0) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %2 = "aten.neg_default"(%1) : (tensor<64x64xf32>) -> tensor<64x64xf32>
  %3 = "aten.mm_default"(%y, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %4 = "aten.add_tensor"(%2, %3) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %4 : tensor<64x64xf32>
}
}

// -----

// RUN: stretto opt -p "schedule-lanes" %s | filecheck %s

// Must not fire: the product beside the sum would be alive beside it, and the peak would rise.

// CHECK: "aten.sum_default"
// CHECK-NEXT: "aten.mm_default"(%arg1, %arg1)
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<64x64xf32, {tp = "partial(sum)"}>, %y: tensor<64x64xf32>) -> (tensor<f32>, tensor<64x64xf32>) {
  %n = "aten.neg_default"(%x) : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> tensor<64x64xf32, {tp = "partial(sum)"}>
  %0 = "comm.all_reduce_start"(%n) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %1 = "comm.wait"(%0) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %2 = "aten.sum_default"(%1) : (tensor<64x64xf32>) -> tensor<f32>
  %3 = "aten.mm_default"(%y, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %2, %3 : tensor<f32>, tensor<64x64xf32>
}
}

// -----

// RUN: stretto opt -p "cap-memory{plan=%S/plans/cap_growth.plan},schedule-lanes" %s | filecheck %s

// The same, where the plan allows more memory.

// CHECK-NOT: comm.caps
// CHECK: "comm.all_reduce_start"
// CHECK-NEXT: "aten.mm_default"
// CHECK-NEXT: "comm.wait"
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<64x64xf32, {tp = "partial(sum)"}>, %y: tensor<64x64xf32>) -> (tensor<f32>, tensor<64x64xf32>) {
  %n = "aten.neg_default"(%x) : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> tensor<64x64xf32, {tp = "partial(sum)"}>
  %0 = "comm.all_reduce_start"(%n) {axes = ["tp"], reduce = "sum"} : (tensor<64x64xf32, {tp = "partial(sum)"}>) -> !async.value<tensor<64x64xf32>>
  %1 = "comm.wait"(%0) : (!async.value<tensor<64x64xf32>>) -> tensor<64x64xf32>
  %2 = "aten.sum_default"(%1) : (tensor<64x64xf32>) -> tensor<f32>
  %3 = "aten.mm_default"(%y, %y) : (tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return %2, %3 : tensor<f32>, tensor<64x64xf32>
}
}
