//! At night a notice is marked `"silent": true`, so that no phone rings; one that is urgent is not.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Fields, Object, Policy, Refusal, Routing, clock, export, tell, to};

/// Hours of the reader's own day, from 0 to 23. `from` is quiet, `to` is not; the night may span midnight.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Quiet {
    from: u64,
    to: u64,
}

impl Default for Quiet {
    fn default() -> Quiet {
        Quiet { from: 22, to: 7 }
    }
}

const DAY_MIN: i64 = 24 * 60;

impl Policy for Quiet {
    const EVENTS: &'static [&'static str] = &["notice.posted"];

    fn check(&self) -> Result<(), String> {
        if self.from > 23 || self.to > 23 { Err("`from` and `to` are hours of a day: 0 to 23".to_owned()) } else { Ok(()) }
    }
}

impl Routing for Quiet {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let data = event.fields()?;
        let urgent = data.get("urgent").is_some_and(|urgent| urgent.get() == "true");
        let notice = Object::new("notice").rest(&data, &["user_id", "utc_offset_min", "urgent"]);
        let silent = !urgent && self.is_night(utc_offset_min(&data)?);
        let notice = if silent { notice.value("silent", &true) } else { notice };
        Ok(tell(to::user(data.id("user_id")?), notice).into())
    }
}

impl Quiet {
    fn is_night(&self, utc_offset_min: i64) -> bool {
        let minute = (clock::now_ms() / 60_000) as i64 + utc_offset_min;
        let hour = (minute.rem_euclid(DAY_MIN) / 60) as u64;
        if self.from <= self.to { (self.from..self.to).contains(&hour) } else { hour >= self.from || hour < self.to }
    }
}

/// Returns by how much the reader's clock is ahead of UTC.
fn utc_offset_min(data: &Fields) -> Result<i64, Refusal> {
    let expected = "minutes between -1440 and 1440";
    let minutes: i64 = data.parsed("utc_offset_min", expected)?;
    if (-DAY_MIN..=DAY_MIN).contains(&minutes) { Ok(minutes) } else { Err(data.invalid("utc_offset_min", expected)) }
}

export!(Quiet: routing);
