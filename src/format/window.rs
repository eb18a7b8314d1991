//! Which shapes are kept: those that were made last, up to a number of bytes.
//!
//! A shape is wanted by the other sessions of its class, mostly at once, and by those that replay. A mailbox's bounds don't
//! count it, so that a message in a hundred languages would be kept a hundredfold for as long as one reader is away.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Weak};

use crate::types::delivery::Message;
use parking_lot::Mutex;

/// The shape's place, its class, its entry here, and the message's own frame, which lives as long as that entry.
const OVERHEAD_BYTES: usize = size_of::<Message>() + 256;

#[derive(Debug)]
pub(super) struct Window {
    bytes_max: usize,
    made: Mutex<Made>,
}

/// In the order in which they were made. Those of messages that are gone still count, until they are the oldest.
#[derive(Debug, Default)]
struct Made {
    shapes: VecDeque<(Weak<Message>, usize)>,
    bytes: usize,
}

impl Window {
    pub fn new(bytes_max: usize) -> Window {
        Window { bytes_max, made: Mutex::default() }
    }

    /// Counts a shape that was just made, and forgets the oldest for it.
    pub fn keep(&self, message: &Arc<Message>, bytes: usize) {
        let bytes = bytes + OVERHEAD_BYTES;
        let made = &mut *self.made.lock();
        made.shapes.push_back((Arc::downgrade(message), bytes));
        made.bytes += bytes;
        while let Some((oldest, bytes)) = made.shapes.front()
            && (made.bytes > self.bytes_max || oldest.strong_count() == 0)
        {
            made.bytes -= bytes;
            if let Some(message) = oldest.upgrade() {
                message.forget_shapes();
            }
            made.shapes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::event::Body;

    #[test]
    fn the_shapes_that_were_made_last_are_kept() {
        let window = Window::new(4 * (OVERHEAD_BYTES + 1000));
        let messages: Vec<_> = (0..6).map(|n| Arc::new(Message::new(n.to_string(), "a".into(), Body::Text("x".into()), 1))).collect();
        for message in &messages {
            message.shape(1, &[]).set(Ok(message.body.clone())).unwrap();
            window.keep(message, 1000);
        }
        let kept: Vec<bool> = messages.iter().map(|message| message.shape(1, &[]).initialized()).collect();
        assert_eq!(kept, [false, false, true, true, true, true]);
    }

    #[test]
    fn the_window_itself_is_bounded() {
        let message = || Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".into()), 1));
        let window = Window::new(10 * OVERHEAD_BYTES);
        let lasting = message();
        window.keep(&lasting, 0);
        for _ in 0..1000 {
            window.keep(&message(), 0);
        }
        let made = window.made.lock();
        assert_eq!((made.shapes.len(), made.bytes), (1, OVERHEAD_BYTES), "those that are gone go first");
        assert!(made.shapes.capacity() <= 16);
    }
}
