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
