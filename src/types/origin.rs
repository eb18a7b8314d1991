//! Where an event comes from, for figures and traces: when the server accepted it, and the trace that it is part of. It is not part of what
//! the event says: policies don't see it, no store keeps it, and any two are equal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

/// The origin of an event and of the messages that were made of it.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// When its request, or the client's message, was taken. `None` if an earlier process did, or if it is tried again.
    pub accepted: Option<Instant>,
    /// `None` unless the event is sampled, so that one branch is all that traces cost the others.
    pub trace: Option<Arc<TraceContext>>,
}

/// The span of a request, as those that follow from it need it.
#[derive(Debug)]
pub struct TraceContext {
    pub trace_id: u128,
    pub span_id: u64,
    /// The header `tracestate`, which is passed on.
    pub state: Option<Box<str>>,
    /// When the request was taken, on both clocks: the times of its spans are counted from here.
    pub began: (Instant, SystemTime),
    /// Deliveries of the request that may still have a span.
    deliveries: AtomicUsize,
}

/// What `traceparent` says (W3C Trace Context, section 3.2), in a header or in an event's attribute of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: u128,
    pub span_id: u64,
    pub is_sampled: bool,
}

/// Says that any two are equal: see the module.
impl PartialEq for Origin {
    fn eq(&self, _: &Origin) -> bool {
        true
    }
}

impl Eq for Origin {}

impl Origin {
    /// Returns the id of its trace, as logs have it.
    pub fn trace_id(&self) -> Option<impl std::fmt::Display + std::fmt::Debug> {
        self.trace.as_ref().map(|trace| TraceId(trace.trace_id))
    }
}

impl TraceContext {
    pub fn new(trace_id: u128, span_id: u64, state: Option<&str>, began: Instant, deliveries_max: usize) -> TraceContext {
        let began = (began, SystemTime::now().checked_sub(began.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH));
        TraceContext { trace_id, span_id, state: state.map(Box::from), began, deliveries: AtomicUsize::new(deliveries_max) }
    }

    /// Returns the time of day of a moment after its request was taken.
    pub fn at(&self, moment: Instant) -> SystemTime {
        self.began.1 + moment.saturating_duration_since(self.began.0)
    }

    /// Returns whether one more delivery may have a span, and counts it.
    pub fn takes_delivery(&self) -> bool {
        self.deliveries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl TraceParent {
    /// Reads a `traceparent`. One of a later version may have more at its end. `None` if it is invalid, and then it has to be ignored.
    pub fn parse(text: &str) -> Option<TraceParent> {
        let mut parts = text.trim().splitn(5, '-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = u8::try_from(hex(version, 2)?).ok().filter(|version| *version != u8::MAX)?;
        if version == 0 && parts.next().is_some() {
            return None;
        }
        let trace_id = hex(trace_id, 32).filter(|id| *id != 0)?;
        let span_id = u64::try_from(hex(span_id, 16)?).ok().filter(|id| *id != 0)?;
        Some(TraceParent { trace_id, span_id, is_sampled: hex(flags, 2)? & 1 == 1 })
    }
}

/// Reads lower-case hexadecimal digits, exactly this number of them.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Writes an id as traces have it.
struct TraceId(u128);

impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let read = |text: &str| TraceParent::parse(text).map(|parent| (parent.trace_id, parent.span_id, parent.is_sampled));
        let (trace, span) = (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7);
        for (text, expected) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some((trace, span, true))),
            (" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00 ", Some((trace, span, false))),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03", Some((trace, span, true))),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", Some((trace, span, true))),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", None),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x", None),
            ("", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn a_request_has_spans_for_its_first_deliveries() {
        let context = TraceContext::new(1, 2, None, Instant::now(), 2);
        assert_eq!([(); 4].map(|()| context.takes_delivery()), [true, true, false, false]);
    }

    #[test]
    fn logs_have_the_id_as_traces_do() {
        let trace = Some(Arc::new(TraceContext::new(0xabc, 2, None, Instant::now(), 2)));
        let origin = Origin { accepted: None, trace };
        assert_eq!(origin.trace_id().map(|id| id.to_string()).unwrap(), format!("{}abc", "0".repeat(29)));
        assert_eq!(origin, Origin::default());
    }
}
