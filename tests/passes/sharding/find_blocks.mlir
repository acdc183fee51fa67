// RUN: stretto opt -p "find-blocks" %s | filecheck %s

// What the columns of a projection are split into is cut by itself; the bias follows from its own uses.

// CHECK: module attributes {comm.blocks = [array<i64: 8, 4, 4>]
// CHECK: @main(%arg0: tensor<4x6xf32>, %arg1: tensor<16x6xf32, {comm.blocks = [array<i64: 0, 8, 4, 4>], tp = "shard(0)"}>
// CHECK-SAME: %arg2: tensor<16xf32, {comm.blocks = [array<i64: 0, 8, 4, 4>], tp = "shard(0)"}>
module attributes {comm.level = "aten", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<4x6xf32>, %w: tensor<16x6xf32, {tp = "shard(0)"}> {aten.argument = {kind = "parameter", name = "qkv.weight"}}, %b: tensor<16xf32, {tp = "shard(0)"}> {aten.argument = {kind = "parameter", name = "qkv.bias"}}) -> (tensor<4x8xf32>, tensor<4x4xf32>) {
    %0 = "aten.t_default"(%w) : (tensor<16x6xf32, {tp = "shard(0)"}>) -> tensor<6x16xf32>
    %1 = "aten.addmm_default"(%b, %x, %0) {alpha = 1 : i64, beta = 1 : i64} : (tensor<16xf32, {tp = "shard(0)"}>, tensor<4x6xf32>, tensor<6x16xf32>) -> tensor<4x16xf32>
    %2 = "aten.slice_tensor"(%1) {dim = 1 : i64, end = 8 : i64, start = 0 : i64, step = 1 : i64} : (tensor<4x16xf32>) -> tensor<4x8xf32>
    %3 = "aten.slice_tensor"(%1) {dim = 1 : i64, end = 12 : i64, start = 8 : i64, step = 1 : i64} : (tensor<4x16xf32>) -> tensor<4x4xf32>
    return %2, %3 : tensor<4x8xf32>, tensor<4x4xf32>
  }
}

// -----

// On a rank, a slice takes its chunk of the block.

// RUN: stretto opt -p "find-blocks,propagate-placements,partition-tensors" %s | filecheck %s

// CHECK: %[[Y:.+]] = "aten.mm_default"(%arg0, %arg1) : {{.*}} -> tensor<4x8xf32, {comm.blocks = [array<i64: 1, 8, 4, 4>], tp = "shard(1)"}>
// CHECK-NEXT: %[[K:.+]] = "aten.slice_tensor"(%[[Y]]) {dim = 1 : i64, end = 6 : i64, start = 4 : i64, step = 1 : i64} : {{.*}} -> tensor<4x2xf32, {tp = "shard(1)"}>
// CHECK-NEXT: "comm.all_gather"(%[[K]])
module attributes {comm.level = "aten", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<4x6xf32>, %w: tensor<6x16xf32, {tp = "shard(1)"}> {aten.argument = {kind = "parameter", name = "qkv.weight"}}) -> tensor<4x4xf32> {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x6xf32>, tensor<6x16xf32, {tp = "shard(1)"}>) -> tensor<4x16xf32>
    %1 = "aten.slice_tensor"(%0) {dim = 1 : i64, end = 12 : i64, start = 8 : i64, step = 1 : i64} : (tensor<4x16xf32>) -> tensor<4x4xf32>
    return %1 : tensor<4x4xf32>
  }
}

// -----

// Must not fire: blocks that two ranks do not divide, a dim that `store` cuts, and a projection that stays whole.

// RUN: stretto opt -p "find-blocks" %s | filecheck %s

// CHECK-NOT: comm.blocks
module attributes {comm.level = "aten", comm.mesh = [["dp", 2], ["tp", 2]]} {
  func.func @main(%x: tensor<4x6xf32>, %w: tensor<6x10xf32, {tp = "shard(1)"}> {aten.argument = {kind = "parameter", name = "odd"}}, %u: tensor<6x8xf32, {dp = "shard(1)"}> {aten.argument = {kind = "parameter", name = "stored", stored = ["dp"]}}, %v: tensor<6x8xf32, {tp = "shard(1)"}> {aten.argument = {kind = "parameter", name = "whole"}}) -> (tensor<4x5xf32>, tensor<4x4xf32>, tensor<4x8xf32>) {
    %0 = "aten.mm_default"(%x, %w) : (tensor<4x6xf32>, tensor<6x10xf32, {tp = "shard(1)"}>) -> tensor<4x10xf32>
    %1 = "aten.slice_tensor"(%0) {dim = 1 : i64, end = 5 : i64, start = 0 : i64, step = 1 : i64} : (tensor<4x10xf32>) -> tensor<4x5xf32>
    %2 = "aten.mm_default"(%x, %u) : (tensor<4x6xf32>, tensor<6x8xf32, {dp = "shard(1)"}>) -> tensor<4x8xf32>
    %3 = "aten.slice_tensor"(%2) {dim = 1 : i64, end = 4 : i64, start = 0 : i64, step = 1 : i64} : (tensor<4x8xf32>) -> tensor<4x4xf32>
    %4 = "aten.mm_default"(%x, %v) : (tensor<4x6xf32>, tensor<6x8xf32, {tp = "shard(1)"}>) -> tensor<4x8xf32>
    return %1, %3, %4 : tensor<4x5xf32>, tensor<4x4xf32>, tensor<4x8xf32>
  }
}
