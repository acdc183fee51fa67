// RUN: stretto opt -p "start-collectives" %s | filecheck %s

// The wait stands right before the first use; what was between runs meanwhile.

// CHECK: %[[F:.+]] = "comm.all_reduce_start"(%arg0) {axes = ["tp"], reduce = "sum"} : {{.*}} -> !async.value<tensor<4xf32>>
// CHECK-NEXT: %[[E:.+]] = "aten.exp_default"(%arg1)
// CHECK-NEXT: %[[V:.+]] = "comm.wait"(%[[F]])
// CHECK-NEXT: "aten.mul_tensor"(%[[V]], %[[E]])
// CHECK-NEXT: "aten.neg_default"(%[[V]])
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>, %y: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "aten.exp_default"(%y) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = "aten.mul_tensor"(%0, %1) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  %3 = "aten.neg_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  return %2, %3 : tensor<4xf32>, tensor<4xf32>
}
}

// -----

// A result that is only returned is waited for at the end; the order of starts is the order of the collectives.

// CHECK: %[[A:.+]] = "comm.all_gather_start"(%arg0)
// CHECK-NEXT: %[[B:.+]] = "comm.reduce_scatter_start"(%arg1)
// CHECK-NEXT: "comm.wait"(%[[A]])
// CHECK-NEXT: "comm.wait"(%[[B]])
// CHECK-NEXT: return
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<2xf32, {tp = "shard(0)"}>, %y: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<2xf32, {tp = "shard(0)"}>) {
  %0 = "comm.all_gather"(%x) {axes = ["tp"], dim = 0 : i64} : (tensor<2xf32, {tp = "shard(0)"}>) -> tensor<4xf32>
  %1 = "comm.reduce_scatter"(%y) {axes = ["tp"], dim = 0 : i64, reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<2xf32, {tp = "shard(0)"}>
  return %0, %1 : tensor<4xf32>, tensor<2xf32, {tp = "shard(0)"}>
}
}

// -----

// Must not fire: nothing to send.

// CHECK-NOT: _start
// CHECK-NOT: comm.wait
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32>) -> tensor<2xf32, {tp = "shard(0)"}> {
  %0 = "comm.shard"(%x) {axes = ["tp"], dim = 0 : i64, chunk = 2 : i64} : (tensor<4xf32>) -> tensor<2xf32, {tp = "shard(0)"}>
  return %0 : tensor<2xf32, {tp = "shard(0)"}>
}
}

// -----

// A receive starts before the task that stands before the one that takes it; two from one rank keep their order.

// CHECK-LABEL: func.func @main_1
// CHECK: call @f(%arg0) {microbatch = 0 : i64}
// CHECK-NEXT: %[[A:.+]] = "comm.receive_start"() {axis = "pp", dtype = f32, peer = 0 : i64
// CHECK-NEXT: call @f(%arg0) {microbatch = 1 : i64}
// CHECK-NEXT: %[[B:.+]] = "comm.receive_start"() {axis = "pp", dtype = f32, peer = 0 : i64
// CHECK-NEXT: %[[VA:.+]] = "comm.wait"(%[[A]])
// CHECK-NEXT: call @f(%[[VA]]) {microbatch = 2 : i64}
// CHECK-NEXT: %[[VB:.+]] = "comm.wait"(%[[B]])
// CHECK-NEXT: call @f(%[[VB]]) {microbatch = 3 : i64}
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 4]], comm.pipeline = "pp"} {
func.func @main_0(%x: tensor<4xf32> {aten.argument = {order = 0 : i64}}) {
  "comm.send"(%x) {axis = "pp", peer = 1 : i64} : (tensor<4xf32>) -> ()
  "comm.send"(%x) {axis = "pp", peer = 1 : i64} : (tensor<4xf32>) -> ()
  return
}
func.func @main_1(%x: tensor<4xf32> {aten.argument = {order = 0 : i64}}) -> (tensor<4xf32> {aten.argument = {order = 0 : i64}}, tensor<4xf32> {aten.argument = {order = 1 : i64}}) {
  %0 = func.call @f(%x) {microbatch = 0 : i64} : (tensor<4xf32>) -> tensor<4xf32>
  %1 = func.call @f(%x) {microbatch = 1 : i64} : (tensor<4xf32>) -> tensor<4xf32>
  %a = "comm.receive"() {axis = "pp", peer = 0 : i64, size = array<i64: 4>, dtype = f32} : () -> tensor<4xf32>
  %2 = func.call @f(%a) {microbatch = 2 : i64} : (tensor<4xf32>) -> tensor<4xf32>
  %b = "comm.receive"() {axis = "pp", peer = 0 : i64, size = array<i64: 4>, dtype = f32} : () -> tensor<4xf32>
  %3 = func.call @f(%b) {microbatch = 3 : i64} : (tensor<4xf32>) -> tensor<4xf32>
  return %2, %3 : tensor<4xf32>, tensor<4xf32>
}
func.func private @f(%x: tensor<4xf32>) -> tensor<4xf32> {
  return %x : tensor<4xf32>
}
}

// -----

// A sum that only other ranks want is waited for before the second task from there.

// CHECK: %[[F:.+]] = "comm.all_reduce_start"(%arg0)
// CHECK-NEXT: call @work
// CHECK-NEXT: "comm.wait"(%[[F]])
// CHECK-NEXT: call @work
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
  func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>, %y: tensor<4xf32>) -> tensor<4xf32> {
    %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
    %1 = call @work(%y) : (tensor<4xf32>) -> tensor<4xf32>
    %2 = call @work(%1) : (tensor<4xf32>) -> tensor<4xf32>
    return %2 : tensor<4xf32>
  }
  func.func private @work(%x: tensor<4xf32>) -> tensor<4xf32> {
    %0 = "aten.neg_default"(%x) : (tensor<4xf32>) -> tensor<4xf32>
    return %0 : tensor<4xf32>
  }
}

// -----

// Of a bucket, each result is waited for before its own first use.

// CHECK: %[[F:.+]] = "comm.all_reduce_coalesced_start"
// CHECK-NEXT: %[[FS:.+]]:2 = builtin.unrealized_conversion_cast %[[F]]
// CHECK-NEXT: %[[B:.+]] = "comm.wait"(%[[FS]]#1)
// CHECK-NEXT: %[[N:.+]] = "aten.neg_default"(%[[B]])
// CHECK-NEXT: %[[A:.+]] = "comm.wait"(%[[FS]]#0)
// CHECK-NEXT: return %[[A]], %[[N]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>, %y: tensor<2xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<2xf32>) {
  %t = builtin.unrealized_conversion_cast %x, %y : tensor<4xf32, {tp = "partial(sum)"}>, tensor<2xf32, {tp = "partial(sum)"}> to tuple<tensor<4xf32, {tp = "partial(sum)"}>, tensor<2xf32, {tp = "partial(sum)"}>>
  %s = "comm.all_reduce_coalesced"(%t) {axes = ["tp"], reduce = "sum"} : (tuple<tensor<4xf32, {tp = "partial(sum)"}>, tensor<2xf32, {tp = "partial(sum)"}>>) -> tuple<tensor<4xf32>, tensor<2xf32>>
  %r:2 = builtin.unrealized_conversion_cast %s : tuple<tensor<4xf32>, tensor<2xf32>> to tensor<4xf32>, tensor<2xf32>
  %n = "aten.neg_default"(%r#1) : (tensor<2xf32>) -> tensor<2xf32>
  return %r#0, %n : tensor<4xf32>, tensor<2xf32>
}
}

// -----
// RUN: stretto opt -p "canonicalize,cse,hoist-collectives,start-collectives" %s | filecheck %s

// A rotated body keeps what it starts for the next one and waits for what the last one started; its own collective is
// split beside them. Two equal calls stay two.

// CHECK: %[[F:.+]] = "comm.all_gather_start"(%arg0)
// CHECK-NEXT: %[[A:.+]]:2 = call @body(%[[F]], {{.+}})
// CHECK-NEXT: %[[B:.+]]:2 = call @body(%[[A]]#1, {{.+}})
// CHECK-NEXT: %[[W:.+]] = "comm.wait"(%[[B]]#1)
// CHECK-LABEL: func.func private @body
// CHECK-NEXT: %[[X:.+]] = "comm.wait"(%arg0)
// CHECK-NEXT: %[[S:.+]] = "comm.all_reduce_start"(%[[X]])
// CHECK-NEXT: %[[G:.+]] = "comm.all_gather_start"(%arg1)
// CHECK-NEXT: %[[Y:.+]] = "comm.wait"(%[[S]])
// CHECK-NEXT: return %[[Y]], %[[G]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<2xf32, {tp = "shard(0)"}>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %f = "comm.all_gather_start"(%x) {axes = ["tp"], dim = 0 : i64} : (tensor<2xf32, {tp = "shard(0)"}>) -> !async.value<tensor<4xf32>>
  %0:2 = func.call @body(%f, %x) : (!async.value<tensor<4xf32>>, tensor<2xf32, {tp = "shard(0)"}>) -> (tensor<4xf32>, !async.value<tensor<4xf32>>)
  %1:2 = func.call @body(%0#1, %x) : (!async.value<tensor<4xf32>>, tensor<2xf32, {tp = "shard(0)"}>) -> (tensor<4xf32>, !async.value<tensor<4xf32>>)
  %2 = "comm.wait"(%1#1) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>
  return %0#0, %1#0, %2 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
func.func private @body(%f: !async.value<tensor<4xf32>>, %next: tensor<2xf32, {tp = "shard(0)"}>) -> (tensor<4xf32>, !async.value<tensor<4xf32>>) {
  %x = "comm.wait"(%f) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>
  %y = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "max"} : (tensor<4xf32>) -> tensor<4xf32>
  %g = "comm.all_gather_start"(%next) {axes = ["tp"], dim = 0 : i64} : (tensor<2xf32, {tp = "shard(0)"}>) -> !async.value<tensor<4xf32>>
  return %y, %g : tensor<4xf32>, !async.value<tensor<4xf32>>
}
}

// -----
// RUN: stretto opt -p "start-collectives" %s | filecheck %s

// A receive whose task waits for it inside starts before the task in front of that one, too.

// CHECK-LABEL: func.func @main_1
// CHECK: %[[F:.+]] = "comm.receive_start"()
// CHECK-NEXT: call @f(%arg0) {microbatch = 1 : i64}
// CHECK-NEXT: call @g(%[[F]]) {microbatch = 0 : i64}
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["microbatch", 2]], comm.pipeline = "pp"} {
func.func @main_0(%x: tensor<4xf32> {aten.argument = {order = 0 : i64}}) {
  "comm.send"(%x) {axis = "pp", peer = 1 : i64} : (tensor<4xf32>) -> ()
  return
}
func.func @main_1(%x: tensor<4xf32> {aten.argument = {order = 0 : i64}}) -> (tensor<4xf32> {aten.argument = {order = 0 : i64}}, tensor<4xf32> {aten.argument = {order = 1 : i64}}) {
  %0 = func.call @f(%x) {microbatch = 1 : i64} : (tensor<4xf32>) -> tensor<4xf32>
  %a = "comm.receive_start"() {axis = "pp", peer = 0 : i64, size = array<i64: 4>, dtype = f32} : () -> !async.value<tensor<4xf32>>
  %1 = func.call @g(%a) {microbatch = 0 : i64} : (!async.value<tensor<4xf32>>) -> tensor<4xf32>
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
func.func private @f(%x: tensor<4xf32>) -> tensor<4xf32> {
  return %x : tensor<4xf32>
}
func.func private @g(%f: !async.value<tensor<4xf32>>) -> tensor<4xf32> {
  %0 = "comm.wait"(%f) : (!async.value<tensor<4xf32>>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
}

// -----

// The start is on the lane that the collective names; the wait is on the default one.

// CHECK: "comm.all_reduce_start"(%arg0) {axes = ["tp"], lane = "comm.tp", reduce = "sum"}
// CHECK-NEXT: "comm.wait"(%{{.+}}) :
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32> {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum", lane = "comm.tp"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
}

// -----
// RUN: stretto opt -p "start-collectives{max-in-flight=64}" %s | filecheck %s

// Two sums of 16 bytes have 64 bytes under way, with operands and results. The third starts behind the wait for the
// first, the fourth behind that for the second.

// CHECK: %[[A:.+]] = "comm.all_reduce_start"(%arg0)
// CHECK-NEXT: %[[B:.+]] = "comm.all_reduce_start"(%arg1)
// CHECK-NEXT: "comm.wait"(%[[A]])
// CHECK-NEXT: %[[C:.+]] = "comm.all_reduce_start"(%arg2)
// CHECK-NEXT: "comm.wait"(%[[B]])
// CHECK-NEXT: %[[D:.+]] = "comm.all_reduce_start"(%arg3)
// CHECK-NEXT: "comm.wait"(%[[C]])
// CHECK-NEXT: "comm.wait"(%[[D]])
// CHECK-NEXT: return
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%a: tensor<4xf32, {tp = "partial(sum)"}>, %b: tensor<4xf32, {tp = "partial(sum)"}>, %c: tensor<4xf32, {tp = "partial(sum)"}>, %d: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%a) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%b) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %2 = "comm.all_reduce"(%c) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %3 = "comm.all_reduce"(%d) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  return %0, %1, %2, %3 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
}

// -----
// RUN: stretto opt -p "start-collectives{max-calls=1}" %s | filecheck %s

// A collective is under way during one call, and waited for before the next.

// CHECK: %[[A:.+]] = "comm.all_reduce_start"(%arg0)
// CHECK-NEXT: %[[H:.+]] = call @layer(%arg1)
// CHECK-NEXT: "comm.wait"(%[[A]])
// CHECK-NEXT: %[[I:.+]] = call @layer(%[[H]])
// CHECK-NEXT: %[[J:.+]] = call @layer(%[[I]])
module attributes {comm.level = "comm", comm.mesh = [["dp", 2]]} {
func.func @main(%x: tensor<4xf32, {dp = "partial(sum)"}>, %y: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["dp"], reduce = "sum"} : (tensor<4xf32, {dp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = func.call @layer(%y) : (tensor<4xf32>) -> tensor<4xf32>
  %2 = func.call @layer(%1) : (tensor<4xf32>) -> tensor<4xf32>
  %3 = func.call @layer(%2) : (tensor<4xf32>) -> tensor<4xf32>
  return %0, %3 : tensor<4xf32>, tensor<4xf32>
}
func.func private @layer(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = "aten.exp_default"(%x) : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
}

// -----

// RUN: stretto opt -p "start-collectives{max-in-flight=0}" %s | filecheck %s

// A wait stays behind a send, which another rank may need before it starts the same sum.

// CHECK-LABEL: func.func @main_0
// CHECK: %[[A:.+]] = "comm.all_reduce_start"(%arg0)
// CHECK-NEXT: %[[B:.+]] = "comm.all_reduce_start"(%arg0)
// CHECK-NEXT: "comm.send"
// CHECK-NEXT: "comm.wait"(%[[A]])
// CHECK-NEXT: "comm.wait"(%[[B]])
// CHECK-LABEL: func.func @main_1
module attributes {comm.level = "comm", comm.mesh = [["pp", 2], ["tp", 2], ["microbatch", 1]], comm.pipeline = "pp"} {
func.func @main_0(%x: tensor<4xf32> {aten.argument = {order = 0 : i64}}) -> (tensor<4xf32> {aten.argument = {order = 0 : i64}}, tensor<4xf32> {aten.argument = {order = 1 : i64}}) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "max"} : (tensor<4xf32>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "min"} : (tensor<4xf32>) -> tensor<4xf32>
  "comm.send"(%x) {axis = "pp", peer = 1 : i64} : (tensor<4xf32>) -> ()
  return %0, %1 : tensor<4xf32>, tensor<4xf32>
}
func.func @main_1() {
  %a = "comm.receive"() {axis = "pp", peer = 0 : i64, size = array<i64: 4>, dtype = f32} : () -> tensor<4xf32>
  return
}
}

// -----

// RUN: stretto opt -p "start-collectives{kinds=all_gather}" %s | filecheck %s

// A kind that is not named is waited for where it starts.

// CHECK: %[[A:.+]] = "comm.all_gather_start"(%arg0)
// CHECK-NEXT: %[[B:.+]] = "comm.all_reduce_start"(%arg1)
// CHECK-NEXT: %[[V:.+]] = "comm.wait"(%[[B]])
// CHECK-NEXT: "aten.exp_default"(%arg2)
// CHECK-NEXT: %[[G:.+]] = "comm.wait"(%[[A]])
// CHECK-NEXT: return %[[G]], %[[V]]
module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<2xf32, {tp = "shard(0)"}>, %y: tensor<4xf32, {tp = "partial(sum)"}>, %z: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %0 = "comm.all_gather"(%x) {axes = ["tp"], dim = 0 : i64} : (tensor<2xf32, {tp = "shard(0)"}>) -> tensor<4xf32>
  %1 = "comm.all_reduce"(%y) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %2 = "aten.exp_default"(%z) : (tensor<4xf32>) -> tensor<4xf32>
  return %0, %1, %2 : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}
}
