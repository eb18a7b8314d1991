//! What the server remembers: mailboxes, groups, and the policies' state.

pub mod groups;
pub mod mailbox;
pub mod state;
