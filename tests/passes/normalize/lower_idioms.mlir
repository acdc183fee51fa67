// RUN: stretto opt -p "lower-idioms" %s | filecheck %s

// A norm is the operations that it stands for.

// CHECK: func.func @main
// CHECK-NOT: nn.
// CHECK: "aten.rsqrt_default"
// CHECK: %[[Y:.+]] = "aten.mul_tensor"({{.+}}, %arg1)
// CHECK-NEXT: return %[[Y]]
func.func @main(%x: tensor<4x8xf32>, %w: tensor<8xf32>) -> tensor<4x8xf32> {
  %0:2 = "nn.rms_norm"(%x, %w) {eps = 9.9999999999999995E-7 : f64} : (tensor<4x8xf32>, tensor<8xf32>) -> (tensor<4x8xf32>, tensor<4x1xf32>)
  return %0#0 : tensor<4x8xf32>
}

// -----

// What stands for its results keeps their placements.

// CHECK: return %{{.+}} : tensor<4x8xf32, {tp = "shard(0)"}>
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<4x8xf32, {tp = "shard(0)"}>, %w: tensor<8xf32>) -> tensor<4x8xf32, {tp = "shard(0)"}> {
    %0:2 = "nn.rms_norm"(%x, %w) {eps = 9.9999999999999995E-7 : f64} : (tensor<4x8xf32, {tp = "shard(0)"}>, tensor<8xf32>) -> (tensor<4x8xf32, {tp = "shard(0)"}>, tensor<4x1xf32, {tp = "shard(0)"}>)
    return %0#0 : tensor<4x8xf32, {tp = "shard(0)"}>
  }
}

// -----

// Must not fire: an operation of torch's own stays.

// CHECK: %[[R:.+]] = "aten.relu_default"(%arg0)
// CHECK-NEXT: return %[[R]]
func.func @main(%x: tensor<4x8xf32>) -> tensor<4x8xf32> {
  %0 = "aten.relu_default"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  return %0 : tensor<4x8xf32>
}

// -----

// A part of attention is added at the larger of the two logarithms; a row that saw no key before adds nothing.

// CHECK: %[[H:.+]] = "aten.maximum_default"(%arg2, %arg4)
// CHECK: "aten.exp_default"
// CHECK: "aten.where_{{.+}}"
// CHECK: %[[T:.+]] = "aten.add_tensor"({{.*}} -> tensor<2x3x4x5xf32>
// CHECK: return %[[T]], %{{.+}}, %[[H]]
func.func @main(%t: tensor<2x3x4x5xf32>, %w: tensor<2x3x4xf32>, %h: tensor<2x3x4xf32>, %o: tensor<2x3x4x5xf32>, %l: tensor<2x3x4xf32>) -> (tensor<2x3x4x5xf32>, tensor<2x3x4xf32>, tensor<2x3x4xf32>) {
  %0:3 = "nn.merge_attention"(%t, %w, %h, %o, %l) : (tensor<2x3x4x5xf32>, tensor<2x3x4xf32>, tensor<2x3x4xf32>, tensor<2x3x4x5xf32>, tensor<2x3x4xf32>) -> (tensor<2x3x4x5xf32>, tensor<2x3x4xf32>, tensor<2x3x4xf32>)
  return %0#0, %0#1, %0#2 : tensor<2x3x4x5xf32>, tensor<2x3x4xf32>, tensor<2x3x4xf32>
}
