//! Shadows: candidates make calls again that the live policies have made, on what those calls read, and are compared with them. Off the path:
//! on a thread of the lowest priority, which a bounded queue feeds. What does not fit into the queue is skipped, and counted.

use std::sync::Weak;
use std::thread;

use super::compare::{Comparison, Kind, compare};
use super::notation;
use crate::config::CandidateMode;
use crate::metrics::CandidateCall;
use crate::policy::Policies;
use crate::policy::call::{Arguments, Call};
use crate::policy::candidate::{Candidate, Example};
use crate::policy::taps::Shadowed;

/// The lowest priority, as `nice` counts.
const NICENESS_LOWEST: i32 = 19;

/// Runs the candidates on a thread of their own, until the node is gone.
///
/// # Errors
/// The system refuses a thread.
pub fn start(policies: Weak<Policies>, calls: Shadowed) -> std::io::Result<()> {
    thread::Builder::new().name("shadow".to_owned()).spawn(move || {
        // An error means that candidates run at the server's own priority: they are few enough.
        let _ = rustix::process::setpriority_process(None, NICENESS_LOWEST);
        while let Some(call) = calls.next() {
            let Some(policies) = policies.upgrade() else { return };
            if let Some(candidate) = policies.candidate(&call.policy) {
                run(&candidate, &call);
            }
        }
    })?;
    Ok(())
}

/// Lets a candidate make a call again, and counts how it compares.
fn run(candidate: &Candidate, call: &Call) {
    let Some(policy) = candidate.on_trial(CandidateMode::Shadow) else { return };
    let (name, metrics) = (&*candidate.name, policy.metrics());
    let played = policy.play(&call.arguments, &call.vary, &call.reads);
    let count = |outcome| metrics.candidate_call(name, outcome);
    let mut tally = candidate.tally.lock();
    let Ok(played) = played else {
        tally.inconclusive += 1;
        return count(CandidateCall::Inconclusive);
    };
    if let Some((_, took)) = &played {
        metrics.candidate_time(name, "live").observe(call.took.as_secs_f64());
        metrics.candidate_time(name, "candidate").observe(took.as_secs_f64());
    }
    let comparison = match &played {
        Some((answer, _)) if *answer == call.answer => Comparison::Same,
        Some((answer, _)) => {
            let expected = notation::outcome(&call.arguments, &call.answer);
            compare("", &expected, &notation::outcome(&call.arguments, answer), &call.reads)
        }
        // The candidate doesn't want this type of event.
        None => Comparison::Differs(vec![(Kind::Outcome, format!("{} ≠ unwanted", notation::outcome(&call.arguments, &call.answer).0))]),
    };
    match comparison {
        Comparison::Same => {
            tally.same += 1;
            count(CandidateCall::Same);
        }
        Comparison::Unknown(_) => {
            tally.inconclusive += 1;
            count(CandidateCall::Inconclusive);
        }
        Comparison::Differs(lines) => {
            tally.differ += 1;
            count(CandidateCall::Differs);
            let is_fault = lines.iter().any(|(kind, _)| *kind == Kind::Fault);
            tally.faults += u64::from(is_fault && call.answer.is_ok());
            for kind in Kind::ALL {
                let of_kind: Vec<String> = lines.iter().filter(|(known, _)| *known == kind).map(|(_, line)| line.clone()).collect();
                if !of_kind.is_empty() {
                    metrics.candidate_differences.with_label_values(&[name, kind.name()]).inc();
                    tally.note(kind.name(), example(call, of_kind));
                }
            }
        }
    }
}

fn example(call: &Call, lines: Vec<String>) -> Example {
    let event = match &call.arguments {
        Arguments::Route(event) => Some(event.id.clone()),
        Arguments::Format(message, ..) => Some(message.event_id.clone()),
        Arguments::Opened(_) | Arguments::Received(..) | Arguments::Closed(..) => None,
    };
    let event_type = call.arguments.event_type().map(str::to_owned);
    Example { at: call.at, function: call.arguments.function().name(), event_type, event, lines }
}
