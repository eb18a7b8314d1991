//! One function per event: who is told, and what.

#[cfg(test)]
mod tests;

use signalpost_plugin::bounds::{ANSWER_BYTES_MAX, NAME_BYTES_MAX};
use signalpost_plugin::{Decision, Event, Fields, Id, Object, Priority, RawValue, Refusal, serde_json, state, tell, to};

use crate::Pooling;
use crate::location::{self, Position};
use crate::pool::Pool;

pub const EVENTS: [&str; 12] = [
    "pooling.request.created",
    "pooling.match.found",
    "pooling.match.accepted",
    "pooling.match.cancelled",
    "pooling.driver.location",
    "pooling.driver.arriving",
    "pooling.trip.started",
    "pooling.trip.completed",
    "pooling.fare.updated",
    "pooling.chat.message",
    "pooling.offer.accepted",
    "pooling.offer.declined",
];

/// Bytes of all messages of one fare: a thousand for each share. An answer has room for them, and a call has time.
const FARE_BYTES_MAX: usize = ANSWER_BYTES_MAX / 4;

/// Shares of one fare: more than a bus has seats. With all of them a call takes a third of its deadline.
const SHARES_MAX: usize = 250;

/// Members of all messages of one fare: twenty for each share, which take a call no longer.
const FARE_MEMBERS_MAX: usize = 5_000;

pub fn decide(event: &Event, data: &Fields, settings: &Pooling) -> Result<Decision, Refusal> {
    match event.type_.as_str() {
        "pooling.request.created" => request_created(data, settings),
        "pooling.match.found" => match_found(data),
        "pooling.match.accepted" => match_accepted(data),
        "pooling.match.cancelled" => match_cancelled(data),
        "pooling.driver.location" => driver_location(event, data, settings),
        "pooling.driver.arriving" => driver_arriving(data),
        "pooling.trip.started" => to_the_others("trip_started", data, "by", Priority::High),
        "pooling.trip.completed" => trip_completed(data),
        "pooling.fare.updated" => fare_updated(data),
        "pooling.chat.message" => chat_message(data),
        "pooling.offer.accepted" | "pooling.offer.declined" => offer_answered(data),
        other => Err(Refusal::new("unknown_event", format!("`pooling` has no rule for `{other}`: it knows {}", EVENTS.join(", ")))),
    }
}

fn request_created(data: &Fields, settings: &Pooling) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    data.id("rider_id")?;
    let drivers = data.ids("candidate_driver_ids")?;
    // A driver need not know who else was asked.
    let message = Object::new("pooling_offer").rest(data, &["candidate_driver_ids"]);
    Ok(tell(to::users(drivers), message).ttl_ms(settings.offer_ttl_ms).into())
}

/// Clients of the first hour read exactly these four members in this order; further ones follow them.
fn match_found(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    let (rider, driver) = (data.id("rider_id")?, data.id("driver_id")?);
    let pool = Pool::of(data)?;
    pool.is_driven_by(&driver);
    let message = Object::new("pooling_match")
        .raw("request_id", data.require("request_id", Id::EXPECTED)?)
        .text("status", "matched")
        .text("details", "You have been matched for a pooling request!")
        .rest(data, &[]);
    let joined = Decision::nothing().join(&pool.group, &rider).join(&pool.group, &driver);
    Ok(joined.deliver(tell(to::users([rider, driver]), message).priority(Priority::High)))
}

fn match_accepted(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    to_the_others("pooling_accepted", data, "by", Priority::High)
}

/// A rider who cancels leaves, and the others go on. Without the driver, or without a rider, there is no ride.
fn match_cancelled(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    let told = to_the_others("pooling_cancelled", data, "by", Priority::High)?;
    let (pool, by) = (Pool::of(data)?, data.id("by")?);
    if !pool.ends_without(&by) {
        return Ok(told.leave(pool.group, by));
    }
    pool.is_over();
    Ok(told.end_group(pool.group))
}

fn trip_completed(data: &Fields) -> Result<Decision, Refusal> {
    let told = to_the_others("trip_completed", data, "by", Priority::High)?;
    let pool = Pool::of(data)?;
    pool.is_over();
    Ok(told.end_group(pool.group))
}

/// Only the newest position is worth anything, and only to those who look at the map now: it replaces an unread one, it is
/// not kept for the absent, and it goes first when a mailbox is full.
fn driver_location(event: &Event, data: &Fields, settings: &Pooling) -> Result<Decision, Refusal> {
    let (pool, driver) = (Pool::of(data)?, data.id("driver_id")?);
    let position = Position { lat: degrees(data, "lat", 90)?, lon: degrees(data, "lon", 180)? };
    let key = location_key(&pool, &driver)?;
    let is_newest = event.unix_ns().is_none_or(|unix_ns| is_newest(&key, unix_ns, settings));
    if !is_newest || !has_moved(&key, position, settings) {
        return Ok(Decision::nothing());
    }
    if pool.is_read_without(&driver) {
        // A store without room must not hide the car: the position is sent, and so is the next one.
        let _ = state::set_bytes(&key, &position.to_bytes(), Some(settings.location_repeat_ms));
    } else {
        // Nobody has this position, so it is no reason to keep the next one back.
        state::delete(&key);
    }
    let delivery = tell(to::group(pool.group), Object::new("driver_location").rest(data, &[])).except([driver]);
    Ok(delivery.ttl_ms(settings.location_ttl_ms).keep_ms(0).collapse(key).priority(Priority::Low).into())
}

/// The key of a car in a pool, under which a newer position replaces an older one.
fn location_key(pool: &Pool, driver: &Id) -> Result<String, Refusal> {
    let pool = pool.id.as_str();
    // The length tells where the pool ends, since ids may contain colons.
    let before = format!("location:{}:{pool}:", pool.len());
    driver.prefixed(&before, "driver_id").map_err(|_| {
        let bytes_max = NAME_BYTES_MAX - "location:100::".len();
        let bytes = pool.len() + driver.as_str().len();
        Refusal::new(
            "invalid_field",
            format!("`pool_id` and `driver_id` have {bytes} bytes: they should have at most {bytes_max} together"),
        )
    })
}

/// Remembers the time of a position unless a later one is known, and says whether none is.
fn is_newest(key: &str, unix_ns: i64, settings: &Pooling) -> bool {
    let key = format!("time:{key}");
    let newest = state::get_bytes(&key).and_then(|bytes| bytes.try_into().ok()).map(i64::from_le_bytes);
    let is_newest = newest.is_none_or(|newest| newest <= unix_ns);
    if is_newest {
        // Without room for it, positions are sent in the order in which they come.
        let _ = state::set_bytes(&key, &unix_ns.to_le_bytes(), Some(settings.location_order_ms));
    }
    is_newest
}

/// Compares a car's position with the last one that was read.
///
/// Two positions of one car in the same instant may both pass, since reading and writing are two steps: one message too many,
/// and the collapse key lets the newer one win.
fn has_moved(key: &str, position: Position, settings: &Pooling) -> bool {
    let last = state::get_bytes(key).and_then(|bytes| Position::from_bytes(&bytes));
    location::is_worth_sending(last, position, settings.location_min_metres)
}

fn driver_arriving(data: &Fields) -> Result<Decision, Refusal> {
    data.number("eta_s")?;
    to_the_others("driver_arriving", data, "driver_id", Priority::Normal)
}

/// Nobody learns what another rider pays.
fn fare_updated(data: &Fields) -> Result<Decision, Refusal> {
    data.id("pool_id")?;
    let shares = data.objects("shares")?;
    if shares.len() > SHARES_MAX {
        return Err(data.invalid("shares", &format!("a list of at most {SHARES_MAX} objects")));
    }
    check_size(data, &shares)?;
    let deliveries = shares.iter().map(|share| {
        let rider = share.id("rider_id")?;
        share.text("currency")?;
        let message = Object::new("fare_updated")
            .raw("pool_id", data.require("pool_id", Id::EXPECTED)?)
            .raw("amount", amount(share, "amount")?)
            .raw("currency", share.require("currency", "a currency code")?)
            .rest(share, &[])
            .rest(data, &["shares"]);
        Ok(tell(to::user(rider), message))
    });
    deliveries.collect()
}

/// Each share's message repeats the rest of the data, so that they are more than the data's own bound allows for.
fn check_size(data: &Fields, shares: &[Fields]) -> Result<(), Refusal> {
    let size = |fields: &Fields| {
        let members = fields.iter().filter(|(name, _)| *name != "shares");
        members.fold((0, 0), |(members, bytes), (name, value)| (members + 1, bytes + name.len() + value.get().len()))
    };
    let (rest_members, rest_bytes) = size(data);
    let (members, bytes) = shares
        .iter()
        .map(size)
        .fold((0, 0), |(all_members, all_bytes), (members, bytes)| (all_members + members + rest_members, all_bytes + bytes + rest_bytes));
    if members > FARE_MEMBERS_MAX || bytes > FARE_BYTES_MAX {
        let detail = format!(
            "`shares` makes {} messages, which would repeat the rest of the data and have {members} members and {bytes} bytes: they should \
             have at most {FARE_MEMBERS_MAX} members and {FARE_BYTES_MAX} bytes together",
            shares.len()
        );
        return Err(Refusal::new("invalid_field", detail));
    }
    Ok(())
}

fn chat_message(data: &Fields) -> Result<Decision, Refusal> {
    data.text("text")?;
    to_the_others("chat_message", data, "from", Priority::Normal)
}

/// A driver's answer to an offer is for the backend, and for nobody's socket.
fn offer_answered(data: &Fields) -> Result<Decision, Refusal> {
    data.id("request_id")?;
    data.id("driver_id")?;
    Ok(Decision::nothing())
}

/// Tells the pool's group, but not the user who caused the event and so knows about it.
fn to_the_others(message_type: &str, data: &Fields, cause: &str, priority: Priority) -> Result<Decision, Refusal> {
    let pool = Pool::of(data)?;
    let message = Object::new(message_type).rest(data, &[]);
    Ok(tell(to::group(pool.group), message).except([data.id(cause)?]).priority(priority).into())
}

/// Reads degrees of latitude (`most` 90) or longitude (180).
fn degrees(data: &Fields, name: &str, most: u8) -> Result<f64, Refusal> {
    let expected = format!("a number of degrees between -{most} and {most}");
    let degrees: f64 = data.parsed(name, &expected)?;
    if degrees.abs() <= f64::from(most) { Ok(degrees) } else { Err(data.invalid(name, &expected)) }
}

/// Reads money as it was written: a number, or a string if the producer doesn't trust a reader's numbers.
fn amount<'a>(data: &Fields<'a>, name: &str) -> Result<&'a RawValue, Refusal> {
    let expected = "an amount, which is a number or a decimal string";
    let value = data.require(name, expected)?;
    let number = value.get().trim_matches('"');
    // JSON's rule for numbers, which knows no `NaN`, and no `+5` either.
    serde_json::from_str::<f64>(number).map(|_| value).map_err(|_| data.invalid(name, expected))
}
