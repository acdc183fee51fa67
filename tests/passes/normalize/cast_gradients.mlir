// RUN: stretto opt -p "cast-gradients{reduce=bf16}" %s | filecheck %s

// A cast at the end is taken apart: the result says what is reduced before it.

// CHECK: kind = "gradient", name = "w", reduce = "bfloat16"
// CHECK: %[[G:.+]] = "aten.mm_default"
// CHECK-NEXT: %[[C:.+]] = "aten.u_to_copy_default"(%[[G]]) {dtype = f32}
// CHECK-NEXT: return %[[C]]
func.func @main(%w: tensor<4x4xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4x4xbf16>)
    -> (tensor<4x4xf32> {aten.argument = {kind = "gradient", name = "w"}}) {
  %0 = "aten.mm_default"(%a, %a) : (tensor<4x4xbf16>, tensor<4x4xbf16>) -> tensor<4x4xbf16>
  %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<4x4xbf16>) -> tensor<4x4xf32>
  return %1 : tensor<4x4xf32>
}

// -----

// A cast that rounds is a value of the model's: it stays, and the gradient is cast as it is.

// CHECK: reduce = "bfloat16"
// CHECK: %[[R:.+]] = "aten.u_to_copy_default"(%arg1) {dtype = bf16}
// CHECK-NEXT: %[[C:.+]] = "aten.u_to_copy_default"(%[[R]]) {dtype = f32}
// CHECK-NEXT: return %[[C]]
func.func @main(%w: tensor<4xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4xf32>)
    -> (tensor<4xf32> {aten.argument = {kind = "gradient", name = "w"}}) {
  %0 = "aten.u_to_copy_default"(%a) {dtype = bf16} : (tensor<4xf32>) -> tensor<4xbf16>
  %1 = "aten.u_to_copy_default"(%0) {dtype = f32} : (tensor<4xbf16>) -> tensor<4xf32>
  return %1 : tensor<4xf32>
}

// -----

// RUN: stretto opt -p "cast-gradients{reduce=fp64}" %s | filecheck %s

// A longer format is cast to and back.

// CHECK: kind = "gradient", name = "w", reduce = "float64"
// CHECK: %[[C:.+]] = "aten.u_to_copy_default"(%arg1) {dtype = f64}
// CHECK-NEXT: %[[D:.+]] = "aten.u_to_copy_default"(%[[C]]) {dtype = f32}
// CHECK-NEXT: return %[[D]]
func.func @main(%w: tensor<4xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4xbf16>)
    -> (tensor<4xf32> {aten.argument = {kind = "gradient", name = "w"}}) {
  %0 = "aten.u_to_copy_default"(%a) {dtype = f32} : (tensor<4xbf16>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// RUN: stretto opt -p "cast-gradients" %s | filecheck %s

// Without an option a gradient is reduced in its own format, after the cast.

// CHECK: kind = "gradient", name = "w", reduce = "float32"
// CHECK: %[[C:.+]] = "aten.u_to_copy_default"(%arg1) {dtype = f32}
// CHECK-NEXT: return %[[C]]
func.func @main(%w: tensor<4xf32> {aten.argument = {kind = "parameter", name = "w"}}, %a: tensor<4xbf16>)
    -> (tensor<4xf32> {aten.argument = {kind = "gradient", name = "w"}}) {
  %0 = "aten.u_to_copy_default"(%a) {dtype = f32} : (tensor<4xbf16>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----

// RUN: stretto opt -p "cast-gradients{reduce=bf16}" %s | filecheck %s

// Must not fire: the gradient of an input is not added up as a parameter's is.

// CHECK-NOT: reduce
// CHECK: return %arg0
func.func @main(%x: tensor<4xf32> {aten.argument = {kind = "input", name = "x"}})
    -> (tensor<4xf32> {aten.argument = {kind = "gradient", name = "x"}}) {
  return %x : tensor<4xf32>
}
