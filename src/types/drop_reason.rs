//! Why messages are dropped: one table, the same in receipts, metrics and docs.

use serde::{Deserialize, Serialize};

/// Why a user did not read a message that was for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The user has no session, and the message was for open sessions only.
    Away,
    /// Less important than everything that fills the user's mailbox.
    MailboxFull,
    /// All mailboxes together are full.
    ServerFull,
    /// Past its time to live.
    Expired,
    /// The user was away for as long as the message was kept.
    Uncollected,
    /// Replaced by a newer one with the same key.
    Collapsed,
    /// Made room for a newer one in a full mailbox.
    Evicted,
    /// Beyond the number of recipients that one event of this policy may have.
    TooManyRecipients,
    /// A formatting policy dropped it for this reader.
    Formatted,
    /// A formatting policy refused it, or failed and its `on_fault` is to drop.
    FormatFailed,
    /// A formatting policy failed on it, and it is kept as a dead letter.
    DeadLetter,
}

impl DropReason {
    pub const ALL: [DropReason; 11] = [
        DropReason::Away,
        DropReason::MailboxFull,
        DropReason::ServerFull,
        DropReason::Expired,
        DropReason::Uncollected,
        DropReason::Collapsed,
        DropReason::Evicted,
        DropReason::TooManyRecipients,
        DropReason::Formatted,
        DropReason::FormatFailed,
        DropReason::DeadLetter,
    ];

    pub fn name(self) -> &'static str {
        match self {
            DropReason::Away => "away",
            DropReason::MailboxFull => "mailbox_full",
            DropReason::ServerFull => "server_full",
            DropReason::Expired => "expired",
            DropReason::Uncollected => "uncollected",
            DropReason::Collapsed => "collapsed",
            DropReason::Evicted => "evicted",
            DropReason::TooManyRecipients => "too_many_recipients",
            DropReason::Formatted => "formatted",
            DropReason::FormatFailed => "format_failed",
            DropReason::DeadLetter => "dead_letter",
        }
    }
}
