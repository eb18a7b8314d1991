//! A receipt in words. Members that are missing are left out: the server may be older or newer than this client.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::terminal::{count, plain, word};

/// More would scroll away what matters; `--json` has them all.
const DROPPED_LINES_MAX: usize = 20;

#[derive(Deserialize)]
struct Receipt {
    id: Option<Value>,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    policies: Vec<Policy>,
    recipients: Option<u64>,
    posted: Option<u64>,
    #[serde(default)]
    dropped: Vec<Dropped>,
    note: Option<String>,
}

#[derive(Deserialize)]
struct Policy {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    outcome: String,
    deliveries: Option<u64>,
    refusal: Option<Reason>,
    fault: Option<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    /// A refusal has a code, a fault a kind.
    #[serde(alias = "kind")]
    code: Option<String>,
    detail: Option<String>,
}

#[derive(Deserialize)]
struct Dropped {
    user: Option<Value>,
    reason: Option<Value>,
}

pub(in crate::cli) fn for_people(answer: &str) -> String {
    let Ok(receipt) = serde_json::from_str::<Receipt>(answer) else {
        return format!("accepted; the receipt has an unknown format: {}\n", plain(answer));
    };
    let mut out = first_line(&receipt);
    let names: Vec<_> = receipt.policies.iter().map(|policy| plain(format!("{} {}", policy.name, policy.version).trim())).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    // Writing to a string can't fail.
    for (name, policy) in names.iter().zip(&receipt.policies) {
        let _ = writeln!(out, "  {name:width$}  {}", outcome(policy));
    }
    for Dropped { user, reason } in receipt.dropped.iter().take(DROPPED_LINES_MAX) {
        let [user, reason] = [user, reason].map(|value| value.as_ref().map_or("?".to_owned(), word));
        let _ = writeln!(out, "  dropped for {user}: {reason}");
    }
    if let Some(more) = receipt.dropped.len().checked_sub(DROPPED_LINES_MAX).filter(|more| *more > 0) {
        let _ = writeln!(out, "  and dropped for {more} more; --json shows all");
    }
    if let Some(note) = &receipt.note {
        let _ = writeln!(out, "  note: {}", plain(note));
    }
    out
}

fn first_line(receipt: &Receipt) -> String {
    let id = receipt.id.as_ref().map(|id| format!(" {}", word(id))).unwrap_or_default();
    let recipients = receipt.recipients.map(|number| count(number, "recipient", "recipients"));
    let posted = receipt.posted.map(|number| format!("{number} posted"));
    let dropped = Some(receipt.dropped.len()).filter(|number| *number > 0).map(|number| format!("{number} dropped"));
    let numbers: Vec<_> = [recipients, posted, dropped].into_iter().flatten().collect();
    match (receipt.duplicate, numbers.is_empty()) {
        (true, _) => format!("duplicate{id}: published before, so nothing was posted again\n"),
        (false, true) => format!("published{id}\n"),
        (false, false) => format!("published{id} → {}\n", numbers.join(", ")),
    }
}

fn outcome(policy: &Policy) -> String {
    let deliveries = policy.deliveries.map(|number| count(number, "delivery", "deliveries"));
    let reason = policy
        .refusal
        .as_ref()
        .or(policy.fault.as_ref())
        .map(|Reason { code, detail }| [code, detail].into_iter().flatten().map(|text| plain(text)).collect::<Vec<_>>().join(": "));
    // Deliveries say nothing about a policy that gave a reason instead.
    match (plain(&policy.outcome), reason.or(deliveries)) {
        (outcome, Some(more)) => format!("{outcome}: {more}"),
        (outcome, None) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_told_in_words() {
        let receipt = r#"{"id":"evt_1","source":"s","duplicate":false,"policies":[
            {"name":"pooling","version":"0.1.0","outcome":"routed","deliveries":2},
            {"name":"chat","version":"0.1.0","outcome":"refused","deliveries":0,"refusal":{"code":"bad-data","detail":"text is missing"}},
            {"name":"x","version":"1","outcome":"fault","fault":{"kind":"deadline","detail":"5 ms are over"}}],
            "recipients":2,"posted":1,"dropped":[{"user":"1002","reason":"away"}]}"#;
        assert_eq!(
            for_people(receipt),
            "published evt_1 → 2 recipients, 1 posted, 1 dropped\n  \
               pooling 0.1.0  routed: 2 deliveries\n  \
               chat 0.1.0     refused: bad-data: text is missing\n  \
               x 1            fault: deadline: 5 ms are over\n  \
               dropped for 1002: away\n"
        );
    }

    #[test]
    fn a_receipt_may_lack_anything() {
        assert_eq!(for_people("{}"), "published\n");
        assert_eq!(for_people(r#"{"id":7,"duplicate":true}"#), "duplicate 7: published before, so nothing was posted again\n");
        assert_eq!(
            for_people(r#"{"recipients":0,"note":"no policy wanted this event type"}"#),
            "published → 0 recipients\n  note: no policy wanted this event type\n"
        );
        assert!(for_people("[]").contains("an unknown format"));
    }

    #[test]
    fn a_long_list_of_the_dropped_is_cut() {
        let dropped = vec![serde_json::json!({"user": 1}); 25];
        let text = for_people(&serde_json::json!({"dropped": dropped}).to_string());
        assert!(text.ends_with("  dropped for 1: ?\n  and dropped for 5 more; --json shows all\n"), "{text}");
    }
}
