//! The server's bounds on what a policy answers, as they are by default. An answer over one of them is a fault, so what a producer
//! sends is refused before it becomes such an answer: `Id`, `List`, `Event::data` and `Event::fields` see to that.
//!
//! A policy can't ask the server for its configuration. An operator who lowers one of the settings that are named here makes the
//! difference between the two a fault again.

/// Bytes of a user's id: `sockets.user_id_bytes_max`.
pub const ID_BYTES_MAX: usize = 128;

/// Bytes of a group's name, of a collapse key and of an event type: `groups.name_bytes_max`.
pub const NAME_BYTES_MAX: usize = 128;

/// Deliveries, replies, drafts and group changes of one answer: `limits.items_max`. It also bounds the lists and the objects that
/// are read from events, since a policy that takes time for each of them has a deadline.
pub const ITEMS_MAX: usize = 1_000;

/// Names and values of what is read from JSON, the nested ones among them; an empty list or object counts twice. A client or a producer can put
/// more of them into one frame or event than a call has time for, since each may become a string, a list or an entry of a map. A thousand
/// items of four members each have less. How deep they are nested is bounded too, by `serde_json`: 127 levels.
pub const VALUES_MAX: usize = 10_000;

/// Bytes of one message, and of one event's data: `events.event_bytes_max`.
pub const MESSAGE_BYTES_MAX: usize = 262_144;

/// Bytes of one answer: `limits.output_bytes_max`.
pub const ANSWER_BYTES_MAX: usize = 1_048_576;

/// Bytes of an event's data. A message that passes them on has room for what the policy adds.
pub const DATA_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 1_024;
