//! A cache of the newest shapes, up to a number of bytes.
//!
//! The other sessions of a class need a shape too, mostly at once, or when they replay. Shapes are not kept with the message: mailboxes'
//! bounds don't count them, so a message in a hundred languages would take a hundred times its size while one reader is away.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::mem::size_of;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use indexmap::{Equivalent, IndexSet};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::model::dead_letters::Failure;
use crate::types::delivery::{Message, PolicySetId};
use crate::types::drop_reason::DropReason;
use crate::types::event::Body;

/// What one class of readers sees of a message, or why it is dropped.
pub type Shaped = Result<Arc<Body>, DropReason>;

/// A message as one class of readers sees it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub shaped: Shaped,
    /// How long each policy took, if that is recorded.
    pub took: Vec<(Arc<str>, Duration)>,
    /// The policy that gave no answer, if one did not. Its `on_fault` decided what is seen.
    pub failure: Option<Failure>,
}

/// Bytes that a slot counts in addition to its shape: the message's own allocation, which its weak reference keeps, the slot, and its
/// entries in the set and the queue.
const OVERHEAD_BYTES: usize = size_of::<Message>() + size_of::<Slot>() + 64;

#[derive(Debug)]
pub(super) struct Shapes {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    slots: IndexSet<Arc<Slot>, RandomState>,
    /// In the order in which they were first requested. Slots of messages that are gone still count until they are the oldest.
    order: VecDeque<Arc<Slot>>,
    bytes: usize,
}

/// The shape of one message for one policy set and class (the values of the attributes that its formatting varies on). The first
/// reader makes the shape, and the others wait for it. The weak reference keeps the message's address from being reused.
#[derive(Debug)]
pub(super) struct Slot {
    message: Weak<Message>,
    policies: PolicySetId,
    class: Box<[Option<Box<str>>]>,
    pub(super) shape: OnceCell<Shape>,
    /// Bytes that the slot counts; 0 once it is dropped from the cache.
    bytes: AtomicUsize,
}

/// The key of a slot, borrowed: looking one up costs no allocation.
struct Wanted<'a> {
    message: *const Message,
    policies: PolicySetId,
    class: &'a [Option<&'a str>],
}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.message.as_ptr().hash(state);
        self.policies.hash(state);
        self.class.iter().for_each(|value| value.as_deref().hash(state));
    }
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.message.hash(state);
        self.policies.hash(state);
        self.class.iter().for_each(|value| value.hash(state));
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Slot) -> bool {
        self.message.ptr_eq(&other.message) && self.policies == other.policies && self.class == other.class
    }
}

impl Eq for Slot {}

impl Equivalent<Arc<Slot>> for Wanted<'_> {
    fn equivalent(&self, known: &Arc<Slot>) -> bool {
        self.message == known.message.as_ptr()
            && self.policies == known.policies
            && self.class.iter().copied().eq(known.class.iter().map(Option::as_deref))
    }
}

impl Shapes {
    pub fn new(bytes_max: usize) -> Shapes {
        Shapes { bytes_max, kept: Mutex::default() }
    }

    /// Returns the slot of a message and class, which is made if it is not there.
    pub fn slot(&self, message: &Arc<Message>, policies: PolicySetId, class: &[Option<&str>]) -> Arc<Slot> {
        let kept = &mut *self.kept.lock();
        if let Some(slot) = kept.slots.get(&Wanted { message: Arc::as_ptr(message), policies, class }) {
            return slot.clone();
        }
        let bytes = OVERHEAD_BYTES + class.iter().flatten().map(|value| value.len()).sum::<usize>();
        let class = class.iter().map(|value| value.map(Box::from)).collect();
        let (message, shape) = (Arc::downgrade(message), OnceCell::new());
        let slot = Arc::new(Slot { message, policies, class, shape, bytes: AtomicUsize::new(bytes) });
        kept.slots.insert(slot.clone());
        kept.order.push_back(slot.clone());
        kept.bytes += bytes;
        kept.forget_over(self.bytes_max);
        slot
    }

    /// Returns the shape, if it is in the cache.
    pub fn get(&self, message: &Arc<Message>, policies: PolicySetId, class: &[Option<&str>]) -> Option<Shape> {
        let kept = self.kept.lock();
        kept.slots.get(&Wanted { message: Arc::as_ptr(message), policies, class })?.shape.get().cloned()
    }

    /// Drops the oldest shapes whose messages are gone.
    pub fn sweep(&self) {
        self.kept.lock().forget_over(self.bytes_max);
    }

    /// Counts the bytes of a shape that was just made.
    pub fn made(&self, slot: &Slot, bytes: usize) {
        let kept = &mut *self.kept.lock();
        // The slot may have been dropped from the cache while its shape was made.
        if slot.bytes.load(Ordering::Relaxed) > 0 {
            slot.bytes.fetch_add(bytes, Ordering::Relaxed);
            kept.bytes += bytes;
            kept.forget_over(self.bytes_max);
        }
    }
}

impl Kept {
    /// Drops the oldest slots: those over the bound, and those whose message is gone. Their current readers keep them.
    fn forget_over(&mut self, bytes_max: usize) {
        while let Some(oldest) = self.order.front()
            && (self.bytes > bytes_max || oldest.message.strong_count() == 0)
        {
            self.slots.swap_remove(oldest);
            self.bytes -= oldest.bytes.swap(0, Ordering::Relaxed);
            self.order.pop_front();
        }
        if self.order.is_empty() && self.order.capacity() > 0 {
            // What held the shapes of a crowd is given back with them.
            *self = Kept::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: PolicySetId = PolicySetId(1);

    fn message() -> Arc<Message> {
        Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".into()), SET))
    }

    fn make(shapes: &Shapes, message: &Arc<Message>, class: &[Option<&str>], bytes: usize) {
        let shape = Shape { shaped: Ok(message.body.clone()), took: Vec::new(), failure: None };
        let slot = shapes.slot(message, SET, class);
        slot.shape.set(shape).unwrap();
        shapes.made(&slot, bytes);
    }

    #[test]
    fn a_class_of_a_message_has_one_slot() {
        let shapes = Shapes::new(1 << 20);
        let (one, other) = (message(), message());
        make(&shapes, &one, &[Some("de"), None], 1);
        assert!(shapes.get(&one, SET, &[Some("de"), None]).is_some());
        assert!(shapes.get(&one, SET, &[None, Some("de")]).is_none());
        assert!(shapes.get(&one, PolicySetId(2), &[Some("de"), None]).is_none());
        assert!(shapes.get(&other, SET, &[Some("de"), None]).is_none(), "an equal message is another one");
    }

    #[test]
    fn the_shapes_that_were_made_last_are_kept() {
        let shapes = Shapes::new(4 * (OVERHEAD_BYTES + 1000));
        let messages: Vec<_> = (0..6).map(|_| message()).collect();
        for message in &messages {
            make(&shapes, message, &[], 1000);
        }
        let kept: Vec<bool> = messages.iter().map(|message| shapes.get(message, SET, &[]).is_some()).collect();
        assert_eq!(kept, [false, false, true, true, true, true]);
    }

    #[test]
    fn shapes_of_messages_that_are_gone_are_swept_though_no_message_comes() {
        let shapes = Shapes::new(1 << 20);
        let (gone, there) = (message(), message());
        make(&shapes, &gone, &[], 1000);
        make(&shapes, &there, &[], 1000);
        drop(gone);
        shapes.sweep();
        assert_eq!((shapes.kept.lock().bytes, shapes.get(&there, SET, &[]).is_some()), (OVERHEAD_BYTES + 1000, true));
        drop(there);
        shapes.sweep();
        let kept = shapes.kept.lock();
        assert_eq!((kept.bytes, kept.slots.capacity(), kept.order.capacity()), (0, 0, 0));
    }

    #[test]
    fn shapes_of_messages_that_are_gone_go_first() {
        let shapes = Shapes::new(10 * OVERHEAD_BYTES);
        let lasting = message();
        make(&shapes, &lasting, &[], 0);
        for _ in 0..1000 {
            make(&shapes, &message(), &[], 0);
        }
        let kept = shapes.kept.lock();
        assert!(kept.bytes <= 10 * OVERHEAD_BYTES && kept.order.len() == kept.slots.len(), "{}", kept.bytes);
        assert!(kept.order.capacity() <= 16);
    }
}
