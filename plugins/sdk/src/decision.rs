//! Who is told, and what; or "no", and why.

use crate::bindings::host::signalpost::policy::types::{Body, Decision, Delivery, Membership, Priority, Recipients, Refusal};

/// Bytes of a refusal's detail: some sentences. It is in the receipt, and in a client's error frame.
const DETAIL_BYTES_MAX: usize = 1_024;

/// Whom a delivery is for: `to::group("pool:7")`.
pub mod to {
    use crate::bindings::host::signalpost::policy::types::{Recipients, SessionAddress};

    /// One user, on all their devices.
    pub fn user(user: impl Into<String>) -> Recipients {
        Recipients::User(user.into())
    }

    /// Users. One who is named twice is told once.
    pub fn users<U: Into<String>>(users: impl IntoIterator<Item = U>) -> Recipients {
        Recipients::Users(users.into_iter().map(Into::into).collect())
    }

    /// The members of a group, as they are when the delivery is posted.
    pub fn group(group: impl Into<String>) -> Recipients {
        Recipients::Group(group.into())
    }

    /// Every user with at least one open session.
    pub fn everyone() -> Recipients {
        Recipients::Everyone
    }

    /// One session of a user, and no other device of theirs.
    pub fn session(user: impl Into<String>, session: impl Into<String>) -> Recipients {
        Recipients::Session(SessionAddress { user: user.into(), session: session.into() })
    }
}

/// A message for these recipients, which is kept as long as the server keeps any.
pub fn tell(to: Recipients, message: impl Into<Body>) -> Delivery {
    Delivery { message: Some(message.into()), ..forward(to) }
}

/// The event's data as it is, for these recipients.
pub fn forward(to: Recipients) -> Delivery {
    Delivery { to, except: Vec::new(), message: None, ttl_ms: None, keep_ms: None, collapse_key: None, priority: Priority::Normal }
}

impl Delivery {
    /// Leaves these users out too.
    pub fn except<U: Into<String>>(mut self, users: impl IntoIterator<Item = U>) -> Delivery {
        self.except.extend(users.into_iter().map(Into::into));
        self
    }

    /// The message is worthless after this many milliseconds, and then not sent.
    pub fn ttl_ms(mut self, milliseconds: u32) -> Delivery {
        self.ttl_ms = Some(milliseconds);
        self
    }

    /// How many milliseconds it is kept for a user who is away. 0: only sessions that are open now get it.
    pub fn keep_ms(mut self, milliseconds: u32) -> Delivery {
        self.keep_ms = Some(milliseconds);
        self
    }

    /// Replaces an unread delivery with the same key, and is replaced by the next one.
    pub fn collapse(mut self, key: impl Into<String>) -> Delivery {
        self.collapse_key = Some(key.into());
        self
    }

    /// What goes first when a mailbox is full.
    pub fn priority(mut self, priority: Priority) -> Delivery {
        self.priority = priority;
        self
    }
}

/// Whatever the order of these calls, the host carries out joins, deliveries, leaves and ends in this order: a delivery to a
/// group reaches those who join by the same decision and those who leave by it.
impl Decision {
    /// Nobody is told, and nothing changes.
    pub fn nothing() -> Decision {
        Decision { joins: Vec::new(), deliveries: Vec::new(), leaves: Vec::new(), ends: Vec::new() }
    }

    /// Tells these recipients too.
    pub fn tell(self, to: Recipients, message: impl Into<Body>) -> Decision {
        self.deliver(tell(to, message))
    }

    /// Posts this delivery too.
    pub fn deliver(mut self, delivery: Delivery) -> Decision {
        self.deliveries.push(delivery);
        self
    }

    /// Makes the user a member of the group.
    pub fn join(mut self, group: impl Into<String>, user: impl Into<String>) -> Decision {
        self.joins.push(Membership { group: group.into(), user: user.into() });
        self
    }

    /// Takes the user out of the group.
    pub fn leave(mut self, group: impl Into<String>, user: impl Into<String>) -> Decision {
        self.leaves.push(Membership { group: group.into(), user: user.into() });
        self
    }

    /// Ends the group: all members leave.
    pub fn end_group(mut self, group: impl Into<String>) -> Decision {
        self.ends.push(group.into());
        self
    }
}

/// `Ok(tell(…).ttl_ms(5000).into())`.
impl From<Delivery> for Decision {
    fn from(delivery: Delivery) -> Decision {
        Decision::nothing().deliver(delivery)
    }
}

/// `deliveries.collect()`.
impl FromIterator<Delivery> for Decision {
    fn from_iter<I: IntoIterator<Item = Delivery>>(deliveries: I) -> Decision {
        Decision { deliveries: deliveries.into_iter().collect(), ..Decision::nothing() }
    }
}

impl Refusal {
    /// `code` is stable, for programs: ASCII letters, digits, `_`, `-` and `.`. `detail` tells people what is wrong and what to do; it is
    /// cut to 1 KiB, since it may quote what a producer or a client wrote.
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Refusal {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Refusal { code: code.into(), detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusals_detail_is_cut_at_a_whole_character() {
        let detail = |text: String| Refusal::new("invalid_field", text).detail.len();
        assert_eq!(detail("x".repeat(1024)), 1024);
        assert_eq!(detail("x".repeat(100_000)), 1024);
        assert_eq!(detail(format!("{}é", "x".repeat(1023))), 1023);
    }
}
