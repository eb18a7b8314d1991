//! What a session has to send: frames in their order, and the seq up to which they cover the mailbox. Pure: no socket, no mailbox.
//!
//! The mailbox is read again only when everything is written. So what a client doesn't read stays in the mailbox, whose bounds then apply,
//! and a session holds at most `sockets.write_bytes_max` and one message.

use super::framing::Framing;
use crate::types::event::Body;

#[derive(Debug)]
pub struct Outbox {
    pub framing: Framing,
    /// The epoch of the mailbox, if its messages are sent with it.
    epoch: Box<str>,
    bytes: Vec<u8>,
    /// How much of `bytes` is written.
    written: usize,
    /// The seq of the last message in `bytes`, or of a later one that formatting dropped; 0 before the first.
    last: u64,
    /// The number of messages in `bytes`.
    messages: u64,
}

/// What was sent when the last byte was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Whether any message was sent or dropped.
    pub is_any: bool,
    pub messages: u64,
}

impl Outbox {
    /// `epoch`: that of the mailbox, for a framing that sends it with each message.
    pub fn new(framing: Framing, epoch: Box<str>) -> Outbox {
        Outbox { framing, epoch, bytes: Vec::new(), written: 0, last: 0, messages: 0 }
    }

    /// Returns whether everything is written, so that more may be taken from the mailbox.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns whether there is nothing to write and no seq to note.
    pub fn is_idle(&self) -> bool {
        self.bytes.is_empty() && self.last == 0
    }

    /// Returns the number of bytes that it holds, after formatting and framing.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the framing and the buffer to which control frames are appended.
    pub fn frames(&mut self) -> (Framing, &mut Vec<u8>) {
        (self.framing, &mut self.bytes)
    }

    /// Appends a message. `None` means that formatting dropped it for this reader; only its seq is noted.
    pub fn message(&mut self, seq: u64, body: Option<&Body>) {
        self.last = seq;
        if let Some(body) = body {
            self.messages += 1;
            self.framing.message(&self.epoch, seq, body, &mut self.bytes);
        }
    }

    /// Returns the bytes that are still to be written.
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// Notes that `count` more bytes are written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
    }

    /// Returns what was sent, once everything is written. Frees the buffer: an idle session holds none.
    pub fn finish(&mut self) -> Sent {
        let sent = Sent { is_any: self.last > 0, messages: self.messages };
        *self = Outbox::new(self.framing, std::mem::take(&mut self.epoch));
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Body {
        Body::Text("x".into())
    }

    #[test]
    fn messages_are_sent_with_their_last_byte() {
        let mut outbox = Outbox::new(Framing::Plain, Box::default());
        assert!(outbox.is_idle());
        outbox.message(3, Some(&body()));
        outbox.message(5, Some(&body()));
        assert_eq!((outbox.len(), outbox.rest().len(), outbox.is_empty()), (6, 6, false));
        outbox.wrote(2);
        assert_eq!((outbox.rest().len(), outbox.is_empty()), (4, false), "half a frame is not sent");
        outbox.wrote(4);
        assert!(outbox.rest().is_empty());
        assert_eq!(outbox.finish(), Sent { is_any: true, messages: 2 });
        assert!(outbox.is_idle() && outbox.bytes.capacity() == 0);
    }

    #[test]
    fn a_message_that_formatting_drops_is_dealt_with_and_not_sent() {
        let mut outbox = Outbox::new(Framing::V1, Box::default());
        outbox.message(3, None);
        assert!(outbox.is_empty() && !outbox.is_idle());
        assert_eq!(outbox.finish(), Sent { is_any: true, messages: 0 });
    }

    #[test]
    fn control_frames_deal_with_no_message() {
        let mut outbox = Outbox::new(Framing::V1, Box::default());
        let (framing, out) = outbox.frames();
        framing.resumed("", true, 3, out);
        assert!(!outbox.is_empty());
        outbox.wrote(outbox.len());
        assert_eq!(outbox.finish(), Sent::default());
    }
}
