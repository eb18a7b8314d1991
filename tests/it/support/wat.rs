//! Policies in WebAssembly text: small enough to do exactly one thing, also what no compiler would let them do.
//!
//! [`Guest`] is a skeleton with everything a policy must have; a test writes the body of one function. The layout of
//! memory follows the canonical ABI of the component model for the types in `wit/policy.wit`.

use wit_component::metadata::Bindgen;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// Where a guest's constant strings begin; below are the fixed places of what it returns.
const STRINGS: usize = 1024;

/// Where its heap begins.
const HEAP: usize = 8192;

/// A policy whose functions do what their text says. What is left as [`Guest::routing`] or [`Guest::formatting`] made it works.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    /// `routing`, `formatting` or `sessions`.
    pub role: &'a str,
    /// Host interfaces that it imports. The functions that it uses are imported in `fields`.
    pub imports: &'a [&'a str],
    pub version: &'a str,
    pub events: &'a [&'a str],
    /// Constants: `(name, text)` becomes the globals `$name` and `$name_bytes`.
    pub strings: &'a [(&'a str, &'a str)],
    /// Further fields of the module; imports first.
    pub fields: &'a str,
    pub memory: &'a str,
    /// The body of `describe`, or nothing for one that says `version` and `events`.
    pub describe: &'a str,
    /// The body of `configure`, with `$settings` and `$settings_bytes`; it returns the address of a `result<_, string>`.
    pub configure: &'a str,
    /// The body of `route`, with `$event`, of `format`, with `$body`, `$body_bytes` and so on, or of `received`. It returns the
    /// address of the result. `$local` and `$other` are free to use.
    pub body: &'a str,
    /// The body of `vary`; it returns the address of a list.
    pub vary: &'a str,
    /// The bodies of `opened` and `closed`; they return the address of a `result<response, refusal>`.
    pub opened: &'a str,
    pub closed: &'a str,
    /// What `cabi_realloc` does first, with `$old`, `$old_bytes`, `$align` and `$bytes`.
    pub on_realloc: &'a str,
    /// What the role's function does when the host has taken its result.
    pub post_return: &'a str,
}

impl<'a> Guest<'a> {
    /// Wants all events. In its body:
    ///
    /// - `(call $nobody)` decides that nobody is told;
    /// - `(call $tell user user_bytes message message_bytes)` tells one user one JSON message;
    /// - `(call $forward user user_bytes)` tells one user the event's data as it is;
    /// - `(call $refuse code code_bytes detail detail_bytes)` refuses.
    pub const fn routing(body: &'a str) -> Guest<'a> {
        Guest {
            role: "routing",
            imports: &[],
            version: "1.0.0",
            events: &["*"],
            strings: &[],
            fields: "",
            memory: "2",
            describe: "(call $description)",
            configure: "(call $configured)",
            body,
            vary: "(i64.store (i32.const 448) (i64.const 0)) (i32.const 448)",
            opened: "(call $silent)",
            closed: "(call $silent)",
            on_realloc: "",
            post_return: "",
        }
    }

    /// Wants all events and varies on nothing. `(call $shaped text bytes)` returns a JSON body.
    pub fn formatting(body: &'a str) -> Guest<'a> {
        Guest { role: "formatting", ..Guest::routing(body) }
    }

    /// Speaks with clients; `body` is that of `received`. In it:
    ///
    /// - `(call $not_mine)` leaves the message to others;
    /// - `(drop (call $silent))`, then whatever is stored at `$response`, then `(call $mine)` takes it.
    pub fn sessions(body: &'a str) -> Guest<'a> {
        Guest { role: "sessions", ..Guest::routing(body) }
    }

    pub fn component(&self) -> Vec<u8> {
        component(&[self.role], self.imports, &self.module())
    }

    pub fn module(&self) -> String {
        let mut strings: Vec<(String, &str)> = self.strings.iter().map(|(name, text)| (name.to_string(), *text)).collect();
        strings.push(("described_name".into(), "wat"));
        strings.push(("described_version".into(), self.version));
        strings.extend(self.events.iter().enumerate().map(|(index, event)| (format!("event_{index}"), *event)));
        let (mut constants, mut at) = (String::new(), STRINGS);
        for (name, text) in &strings {
            let bytes: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
            let size = text.len();
            constants += &format!("(data (i32.const {at}) \"{bytes}\")\n");
            constants += &format!("(global ${name} i32 (i32.const {at})) (global ${name}_bytes i32 (i32.const {size}))\n");
            at += size;
        }
        assert!(at <= HEAP, "the strings fit");
        let events: String = (0..self.events.len())
            .map(|index| {
                let place = 600 + 8 * index;
                format!(
                    "(i32.store (i32.const {place}) (global.get $event_{index}))
                     (i32.store (i32.const {}) (global.get $event_{index}_bytes))",
                    place + 4
                )
            })
            .collect();
        let Guest { fields, memory, describe, configure, body, .. } = self;
        let role = match self.role {
            "routing" => ROUTING.to_owned(),
            "formatting" => FORMATTING.replace("VARY", self.vary),
            _ => SESSIONS.replace("OPENED", self.opened).replace("CLOSED", self.closed),
        };
        let role = role.replace("BODY", body).replace("POST_RETURN", self.post_return);
        let common = COMMON.replace("ON_REALLOC", self.on_realloc);
        format!(
            r#"(module
              {fields}
              (memory (export "memory") {memory})
              (global $heap (mut i32) (i32.const {HEAP}))
              {constants}
              {common}
              (func $description (result i32)
                {events}
                (i32.store (i32.const 16) (global.get $described_name))
                (i32.store (i32.const 20) (global.get $described_name_bytes))
                (i32.store (i32.const 24) (global.get $described_version))
                (i32.store (i32.const 28) (global.get $described_version_bytes))
                (i32.store (i32.const 32) (i32.const 600))
                (i32.store (i32.const 36) (i32.const {event_count}))
                (i32.const 16))
              (func (export "signalpost:policy/plugin@0.1.0#describe") (result i32) {describe})
              (func (export "signalpost:policy/plugin@0.1.0#configure") (param $settings i32) (param $settings_bytes i32) (result i32)
                {configure})
              {role})"#,
            event_count = self.events.len(),
        )
    }
}

const COMMON: &str = r#"
  (func $realloc (export "cabi_realloc") (param $old i32) (param $old_bytes i32) (param $align i32) (param $bytes i32) (result i32)
    (local $at i32) (local $end i32)
    ON_REALLOC
    (local.set $at (i32.and
      (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
    (local.set $end (i32.add (local.get $at) (local.get $bytes)))
    (block $fits
      (loop $more
        (br_if $fits (i32.le_u (local.get $end) (i32.shl (memory.size) (i32.const 16))))
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (br $more)))
    (memory.copy (local.get $at) (local.get $old) (local.get $old_bytes))
    (global.set $heap (local.get $end))
    (local.get $at))
  ;; Nothing that a call allocated is needed after it.
  (func $free (global.set $heap (i32.const 8192)))
  (func $configured (result i32)
    (i32.store8 (i32.const 256) (i32.const 0))
    (i32.const 256))
  (func $unfit (param $reason i32) (param $bytes i32) (result i32)
    (i32.store8 (i32.const 256) (i32.const 1))
    (i32.store (i32.const 260) (local.get $reason))
    (i32.store (i32.const 264) (local.get $bytes))
    (i32.const 256))
  ;; Appends to what begins at $text.
  (global $text (mut i32) (i32.const 0))
  (global $text_bytes (mut i32) (i32.const 0))
  (func $append (param $from i32) (param $bytes i32)
    (if (i32.eqz (global.get $text_bytes))
      (then (global.set $text (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 65536)))))
    (memory.copy (i32.add (global.get $text) (global.get $text_bytes)) (local.get $from) (local.get $bytes))
    (global.set $text_bytes (i32.add (global.get $text_bytes) (local.get $bytes))))
"#;

/// The decision stands at 288, its deliveries at 352.
const ROUTING: &str = r#"
  (func $decided (param $deliveries i32) (result i32)
    (memory.fill (i32.const 288) (i32.const 0) (i32.const 36))
    (i32.store (i32.const 300) (i32.const 352))
    (i32.store (i32.const 304) (local.get $deliveries))
    (i32.const 288))
  ;; A delivery to one user at $at: of a json (0), text (1) or binary (2) message, or of the event's data (-1).
  (func $delivery (param $at i32) (param $user i32) (param $user_bytes i32) (param $kind i32) (param $message i32) (param $message_bytes i32)
    (memory.fill (local.get $at) (i32.const 0) (i32.const 76))
    (i32.store (i32.add (local.get $at) (i32.const 4)) (local.get $user))
    (i32.store (i32.add (local.get $at) (i32.const 8)) (local.get $user_bytes))
    (if (i32.ge_s (local.get $kind) (i32.const 0))
      (then
        (i32.store8 (i32.add (local.get $at) (i32.const 28)) (i32.const 1))
        (i32.store8 (i32.add (local.get $at) (i32.const 32)) (local.get $kind))
        (i32.store (i32.add (local.get $at) (i32.const 36)) (local.get $message))
        (i32.store (i32.add (local.get $at) (i32.const 40)) (local.get $message_bytes))))
    (i32.store8 (i32.add (local.get $at) (i32.const 72)) (i32.const 1)))
  (func $nobody (result i32) (call $decided (i32.const 0)))
  (func $tell (param $user i32) (param $user_bytes i32) (param $message i32) (param $message_bytes i32) (result i32)
    (call $delivery (i32.const 352)
      (local.get $user) (local.get $user_bytes) (i32.const 0) (local.get $message) (local.get $message_bytes))
    (call $decided (i32.const 1)))
  (func $forward (param $user i32) (param $user_bytes i32) (result i32)
    (call $delivery (i32.const 352) (local.get $user) (local.get $user_bytes) (i32.const -1) (i32.const 0) (i32.const 0))
    (call $decided (i32.const 1)))
  (func $refuse (param $code i32) (param $code_bytes i32) (param $detail i32) (param $detail_bytes i32) (result i32)
    (i32.store8 (i32.const 288) (i32.const 1))
    (i32.store (i32.const 292) (local.get $code))
    (i32.store (i32.const 296) (local.get $code_bytes))
    (i32.store (i32.const 300) (local.get $detail))
    (i32.store (i32.const 304) (local.get $detail_bytes))
    (i32.const 288))
  (func (export "signalpost:policy/routing@0.1.0#route") (param $event i32) (result i32)
    (local $local i32) (local $other i32)
    BODY)
  (func (export "cabi_post_signalpost:policy/routing@0.1.0#route") (param i32)
    (global.set $text_bytes (i32.const 0)) (call $free) POST_RETURN)
"#;

/// The result stands at 512.
const FORMATTING: &str = r#"
  (func $shaped (param $message i32) (param $message_bytes i32) (result i32)
    (memory.fill (i32.const 512) (i32.const 0) (i32.const 20))
    (i32.store8 (i32.const 516) (i32.const 1))
    (i32.store (i32.const 524) (local.get $message))
    (i32.store (i32.const 528) (local.get $message_bytes))
    (i32.const 512))
  (func (export "signalpost:policy/formatting@0.1.0#vary") (result i32) VARY)
  (func (export "signalpost:policy/formatting@0.1.0#format")
    (param $id i32) (param $id_bytes i32) (param $type i32) (param $type_bytes i32)
    (param $kind i32) (param $body i32) (param $body_bytes i32) (param $reader i32) (param $readers i32) (result i32)
    (local $local i32) (local $other i32)
    BODY)
  (func (export "cabi_post_signalpost:policy/formatting@0.1.0#format") (param i32)
    (global.set $text_bytes (i32.const 0)) (call $free) POST_RETURN)
"#;

/// The response stands at 836; before it the tag of opened's and closed's result (832), or the two of received's (828).
const SESSIONS: &str = r#"
  (global $response i32 (i32.const 836))
  (func $silent (result i32)
    (memory.fill (i32.const 828) (i32.const 0) (i32.const 68))
    (i32.const 832))
  (func $not_mine (result i32)
    (drop (call $silent))
    (i32.const 828))
  (func $mine (result i32)
    (i32.store8 (i32.const 832) (i32.const 1))
    (i32.const 828))
  (func (export "signalpost:policy/sessions@0.1.0#opened")
    (param $id i32) (param $id_bytes i32) (param $user i32) (param $user_bytes i32)
    (param $sub i32) (param $subprotocol i32) (param $subprotocol_bytes i32) (param $attributes i32) (param $attributes_count i32)
    (result i32)
    OPENED)
  (func (export "signalpost:policy/sessions@0.1.0#received")
    (param $id i32) (param $id_bytes i32) (param $user i32) (param $user_bytes i32)
    (param $sub i32) (param $subprotocol i32) (param $subprotocol_bytes i32) (param $attributes i32) (param $attributes_count i32)
    (param $kind i32) (param $body i32) (param $body_bytes i32)
    (result i32)
    (local $local i32) (local $other i32)
    BODY)
  (func (export "signalpost:policy/sessions@0.1.0#closed")
    (param $id i32) (param $id_bytes i32) (param $user i32) (param $user_bytes i32)
    (param $sub i32) (param $subprotocol i32) (param $subprotocol_bytes i32) (param $attributes i32) (param $attributes_count i32)
    (param $code i32)
    (result i32)
    CLOSED)
  (func (export "cabi_post_signalpost:policy/sessions@0.1.0#received") (param i32) (call $free) POST_RETURN)
"#;

/// A component around a core module that exports these roles and imports these host interfaces.
pub fn component(roles: &[&str], imports: &[&str], module: &str) -> Vec<u8> {
    let exports: String = roles.iter().map(|role| format!("include signalpost:policy/{role}-policy@0.1.0;\n")).collect();
    let imports: String = imports.iter().map(|name| format!("import signalpost:policy/{name}@0.1.0;\n")).collect();
    component_of(&format!("world guest {{ {exports} {imports} }}"), module)
}

/// A component around a core module, for the world `guest` in this WIT.
pub fn component_of(wit: &str, module: &str) -> Vec<u8> {
    let mut resolve = Bindgen::default().resolve;
    resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/wit")).unwrap();
    let package = resolve.push_source("guest.wit", &format!("package test:guest; {wit}")).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let encoded = ComponentEncoder::default().validate(true).module(&module).and_then(|encoder| encoder.encode());
    encoded.unwrap_or_else(|error| panic!("{error:?}"))
}

/// Tells `attributes` what the event's attributes are, a line each, and `data` its data as it is.
pub fn witness() -> Vec<u8> {
    // An event's layout: id 0, source 8, type 16, subject 24 (option), time 36 (option), content-type 48, extensions 56, data 64.
    let body = r#"
      (call $line (i32.load (local.get $event)) (i32.load offset=4 (local.get $event)))
      (call $line (i32.load offset=8 (local.get $event)) (i32.load offset=12 (local.get $event)))
      (call $line (i32.load offset=16 (local.get $event)) (i32.load offset=20 (local.get $event)))
      (if (i32.load8_u offset=24 (local.get $event))
        (then (call $line (i32.load offset=28 (local.get $event)) (i32.load offset=32 (local.get $event))))
        (else (call $line (global.get $none) (global.get $none_bytes))))
      (if (i32.load8_u offset=36 (local.get $event))
        (then (call $line (i32.load offset=40 (local.get $event)) (i32.load offset=44 (local.get $event))))
        (else (call $line (global.get $none) (global.get $none_bytes))))
      (call $append (i32.load offset=48 (local.get $event)) (i32.load offset=52 (local.get $event)))
      (local.set $local (i32.load offset=56 (local.get $event)))
      (local.set $other (i32.add (local.get $local) (i32.mul (i32.load offset=60 (local.get $event)) (i32.const 16))))
      (block $done
        (loop $next
          (br_if $done (i32.ge_u (local.get $local) (local.get $other)))
          (call $append (global.get $newline) (global.get $newline_bytes))
          (call $append (i32.load (local.get $local)) (i32.load offset=4 (local.get $local)))
          (call $append (global.get $equals) (global.get $equals_bytes))
          (call $append (i32.load offset=8 (local.get $local)) (i32.load offset=12 (local.get $local)))
          (local.set $local (i32.add (local.get $local) (i32.const 16)))
          (br $next)))
      (call $delivery (i32.const 352)
        (global.get $attributes) (global.get $attributes_bytes) (i32.const 1) (global.get $text) (global.get $text_bytes))
      (call $delivery (i32.const 428)
        (global.get $data) (global.get $data_bytes) (i32.const -1) (i32.const 0) (i32.const 0))
      (call $decided (i32.const 2))"#;
    let fields = "(func $line (param $from i32) (param $bytes i32)
        (call $append (local.get $from) (local.get $bytes))
        (call $append (global.get $newline) (global.get $newline_bytes)))";
    let strings = &[("none", "-"), ("newline", "\n"), ("equals", "="), ("attributes", "attributes"), ("data", "data")];
    Guest { strings, fields, ..Guest::routing(body) }.component()
}

/// A formatting policy that puts each message into `{"by":"NAME","message":…}`.
pub fn wrapper(name: &str) -> Vec<u8> {
    let before = format!(r#"{{"by":"{name}","message":"#);
    let body = "(call $append (global.get $before) (global.get $before_bytes))
                (call $append (local.get $body) (local.get $body_bytes))
                (call $append (global.get $after) (global.get $after_bytes))
                (call $shaped (global.get $text) (global.get $text_bytes))";
    let strings = &[("before", before.as_str()), ("after", "}")];
    Guest { strings, version: "2.0.0", ..Guest::formatting(body) }.component()
}

/// Takes a client's message, and answers it with this many events of the type in the string `type`, without data.
pub fn drafts(count: u32) -> String {
    let end = 8192 + 32 * count;
    format!(
        "(drop (call $silent))
        (memory.fill (i32.const 8192) (i32.const 0) (i32.const {}))
        (local.set $local (i32.const 8192))
        (loop $on
          (i32.store (local.get $local) (global.get $type))
          (i32.store offset=4 (local.get $local) (global.get $type_bytes))
          (i32.store8 offset=20 (local.get $local) (i32.const 1))
          (local.set $local (i32.add (local.get $local) (i32.const 32)))
          (br_if $on (i32.lt_u (local.get $local) (i32.const {end}))))
        (i32.store offset=40 (global.get $response) (i32.const 8192))
        (i32.store offset=44 (global.get $response) (i32.const {count}))
        (call $mine)",
        32 * count
    )
}
