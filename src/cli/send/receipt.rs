//! A receipt in words. The server may be older or newer than this client; what it says that is not known here is shown as it is.

use std::fmt::Write;

use crate::cli::terminal::{count, plain};
use crate::dispatch::{Consulted, Dropped, Receipt};

/// Returns the lines that tell a receipt.
pub(in crate::cli) fn for_people(answer: &str) -> String {
    // serde would read a list as the members in their order.
    let is_object = answer.trim_ascii_start().starts_with('{');
    let Some(receipt) = is_object.then(|| serde_json::from_str::<Receipt>(answer).ok()).flatten() else {
        return format!("accepted; the receipt has an unknown format: {}\n", plain(answer));
    };
    let mut out = first_line(&receipt);
    let names: Vec<_> = receipt.policies.iter().map(|policy| plain(format!("{} {}", policy.name, policy.version).trim())).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    // Writing to a string can't fail.
    for (name, policy) in names.iter().zip(&receipt.policies) {
        let _ = writeln!(out, "  {name:width$}  {}", outcome(policy));
    }
    for dropped in &receipt.dropped {
        let _ = writeln!(out, "  {} dropped: {}{}", dropped.count, plain(dropped.reason.name()), users(dropped));
    }
    if receipt.joins_refused > 0 {
        let _ = writeln!(out, "  {} refused by a limit on groups", count(receipt.joins_refused as u64, "join", "joins"));
    }
    if let Some(note) = &receipt.note {
        let _ = writeln!(out, "  note: {}", plain(note));
    }
    out
}

fn first_line(receipt: &Receipt) -> String {
    let id = if receipt.id.is_empty() { String::new() } else { format!(" {}", plain(&receipt.id)) };
    if receipt.duplicate {
        return format!("duplicate{id}: published before, so nothing was posted again\n");
    }
    let dropped: usize = receipt.dropped.iter().map(|dropped| dropped.count).sum();
    let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
    let recipients = count(receipt.recipients as u64, "recipient", "recipients");
    format!("published{id} → {recipients}, {} posted{dropped}\n", receipt.posted)
}

/// Tells what one policy did.
fn outcome(policy: &Consulted) -> String {
    let mut out = plain(policy.outcome.name());
    let reason = match (&policy.refusal, &policy.fault) {
        (Some(refusal), _) => Some((refusal.code.as_str(), refusal.detail.as_str())),
        (None, Some(fault)) => Some(fault.kind_and_detail()),
        (None, None) => None,
    };
    // Deliveries say nothing about a policy that gave a reason, or was not called.
    if let Some((code, detail)) = reason {
        let _ = write!(out, ": {}: {}", plain(code), plain(detail));
    } else if !policy.outcome.is_failure() {
        let _ = write!(out, ": {}", count(policy.deliveries as u64, "delivery", "deliveries"));
    }
    if let Some(letter) = policy.dead_letter {
        let _ = write!(out, "; kept as dead letter {letter}");
    }
    out
}

/// Names the users of dropped messages. A receipt has some of them.
fn users(dropped: &Dropped) -> String {
    if dropped.users.is_empty() {
        return String::new();
    }
    let named: Vec<_> = dropped.users.iter().map(|user| plain(user.as_str())).collect();
    let more = dropped.count.saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(", for {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_told_in_words() {
        let receipt = r#"{"id":"evt_1","source":"s","duplicate":false,"policies":[
            {"name":"pooling","version":"0.1.0","outcome":"routed","deliveries":2},
            {"name":"chat","version":"0.1.0","outcome":"refused","deliveries":0,"refusal":{"code":"bad-data","detail":"text is missing"}},
            {"name":"x","version":"1","outcome":"faulted","deliveries":0,"fault":{"policy":"x","version":"1","digest":"d","function":"route",
              "kind":"deadline","detail":"5 ms are over","at":"2030-01-01T00:00:00.000Z"},"dead_letter":7},
            {"name":"y","version":"1","outcome":"circuit_open","deliveries":0,"dead_letter":8}],
            "recipients":5,"posted":1,"dropped":[{"reason":"away","count":3,"users":["1002","1003"]},{"reason":"expired","count":1,"users":[]}],
            "joins_refused":1}"#;
        assert_eq!(
            for_people(receipt),
            "published evt_1 → 5 recipients, 1 posted, 4 dropped\n  \
               pooling 0.1.0  routed: 2 deliveries\n  \
               chat 0.1.0     refused: bad-data: text is missing\n  \
               x 1            faulted: deadline: 5 ms are over; kept as dead letter 7\n  \
               y 1            circuit_open; kept as dead letter 8\n  \
               3 dropped: away, for 1002, 1003 and 1 more\n  \
               1 dropped: expired\n  \
               1 join refused by a limit on groups\n"
        );
    }

    #[test]
    fn a_receipt_of_another_version_is_told_as_far_as_it_is_known() {
        assert_eq!(for_people("{}"), "published → 0 recipients, 0 posted\n");
        assert_eq!(for_people(r#"{"id":"7","duplicate":true}"#), "duplicate 7: published before, so nothing was posted again\n");
        assert_eq!(
            for_people(r#"{"recipients":0,"note":"no policy wanted this event type"}"#),
            "published → 0 recipients, 0 posted\n  note: no policy wanted this event type\n"
        );
        let newer = r#"{"id":"7","more":{},"policies":[{"name":"a","version":"1","outcome":"postponed","deliveries":1,"until":9}],
            "dropped":[{"reason":"\u001b[2J","count":2,"users":["1"]}]}"#;
        assert_eq!(
            for_people(newer),
            "published 7 → 0 recipients, 0 posted, 2 dropped\n  a 1  postponed: 1 delivery\n  2 dropped: \\u{1b}[2J, for 1 and 1 more\n"
        );
        assert!(for_people("[]").contains("an unknown format"));
    }
}
