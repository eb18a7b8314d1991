//! The order of commits, if other nodes make the same changes: one commit at a time, from its first change until it is handed to the store.
//! So what a node absorbs in the order of the store adds up to the same memory.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::net::turns::aside;

/// Gives turns.
#[derive(Debug, Default)]
pub struct Order {
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    last: u64,
}

/// The turn of one commit. The next one's is when it is dropped.
#[derive(Debug)]
pub struct Turn {
    order: Arc<Order>,
    number: u64,
}

impl Order {
    /// Waits for a turn. A thread that has one must not ask for another.
    pub fn turn(self: &Arc<Order>) -> Turn {
        let mut state = self.state.lock();
        if state.is_taken {
            drop(state);
            // A commit with many recipients takes milliseconds.
            state = aside(|| {
                let mut state = self.state.lock();
                self.free.wait_while(&mut state, |state| state.is_taken);
                state
            });
        }
        state.is_taken = true;
        state.last += 1;
        Turn { order: self.clone(), number: state.last }
    }
}

impl Turn {
    /// Returns the number of this commit: 1 for the first.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.order.state.lock().is_taken = false;
        self.order.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn turns_follow_each_other_and_their_numbers_count_up() {
        let (order, inside, last) = (Arc::new(Order::default()), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let turn = order.turn();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "alone");
                        assert_eq!(last.swap(turn.number(), Ordering::SeqCst) + 1, turn.number());
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(last.into_inner(), 2000);
    }
}
