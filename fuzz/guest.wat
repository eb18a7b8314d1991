;; A guest that answers whatever it is sent: the bytes lie at the beginning of its memory, and the answer is "at 0".
;; The first page is the answer's, the second has its description, the rest is for what the host hands in.
(module
  (memory (export "memory") 5)
  (global $heap (mut i32) (i32.const 131072))
  (data (i32.const 65600) "guest1.0.0*")

  (func (export "cabi_realloc") (param $old i32) (param $old_bytes i32) (param $align i32) (param $bytes i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and
      (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
    (global.set $heap (i32.add (local.get $at) (local.get $bytes)))
    (local.get $at))

  (func $answer (param $from i32) (param $bytes i32) (result i32)
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536))
    (memory.copy (i32.const 0) (local.get $from) (local.get $bytes))
    (i32.const 0))
  (func $free (param i32) (global.set $heap (i32.const 131072)))

  (func (export "signalpost:policy/plugin@0.1.0#describe") (result i32)
    (i32.store (i32.const 65536) (i32.const 65600)) (i32.store (i32.const 65540) (i32.const 5))
    (i32.store (i32.const 65544) (i32.const 65605)) (i32.store (i32.const 65548) (i32.const 5))
    (i32.store (i32.const 65552) (i32.const 65568)) (i32.store (i32.const 65556) (i32.const 1))
    (i32.store (i32.const 65568) (i32.const 65610)) (i32.store (i32.const 65572) (i32.const 1))
    (i32.const 65536))
  (func (export "signalpost:policy/plugin@0.1.0#configure") (param i32 i32) (result i32)
    (i32.store8 (i32.const 65580) (i32.const 0))
    (i32.const 65580))

  ;; An event's data: present at 64, its case at 68, its bytes at 72.
  (func (export "signalpost:policy/routing@0.1.0#route") (param $event i32) (result i32)
    (call $answer (i32.load offset=72 (local.get $event)) (i32.load offset=76 (local.get $event))))
  (func (export "cabi_post_signalpost:policy/routing@0.1.0#route") (param i32) (call $free (local.get 0)))

  (func (export "signalpost:policy/formatting@0.1.0#vary") (result i32)
    (i64.store (i32.const 65536) (i64.const 0))
    (i32.const 65536))
  (func (export "signalpost:policy/formatting@0.1.0#format")
    (param $id i32) (param $id_bytes i32) (param $type i32) (param $type_bytes i32)
    (param $kind i32) (param $body i32) (param $body_bytes i32) (param $reader i32) (param $readers i32) (result i32)
    (call $answer (local.get $body) (local.get $body_bytes)))
  (func (export "cabi_post_signalpost:policy/formatting@0.1.0#format") (param i32) (call $free (local.get 0)))

  ;; A session is its id, its user, its subprotocol if it has one, and its attributes.
  (func (export "signalpost:policy/sessions@0.1.0#opened") (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $answer (i32.const 0) (i32.const 0)))
  (func (export "cabi_post_signalpost:policy/sessions@0.1.0#opened") (param i32) (call $free (local.get 0)))
  (func (export "signalpost:policy/sessions@0.1.0#received")
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (param $kind i32) (param $body i32) (param $body_bytes i32) (result i32)
    (call $answer (local.get $body) (local.get $body_bytes)))
  (func (export "cabi_post_signalpost:policy/sessions@0.1.0#received") (param i32) (call $free (local.get 0)))
  (func (export "signalpost:policy/sessions@0.1.0#closed") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $answer (i32.const 0) (i32.const 0)))
  (func (export "cabi_post_signalpost:policy/sessions@0.1.0#closed") (param i32) (call $free (local.get 0))))
