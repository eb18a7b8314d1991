//! The requests that the producers publish, each with its marker and the number of readers that it must reach.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use super::crowd::Crowd;
use super::dialect::Dialect;
use super::ledger::Ledger;

/// Events per request of [`Traffic::Batch`], and of the requests that make and end groups.
const BATCH: u32 = 100;

const JSON: &str = "application/json";
const CLOUDEVENTS_BATCH: &str = "application/cloudevents-batch+json";

/// The kind of requests. All but the first need the bundled `pooling` policy, or channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// One message to one user in each request.
    Direct,
    /// A match in each request: two readers.
    Routed,
    /// A hundred matches in each request, as a CloudEvents batch.
    Batch,
    /// A chat message to the group of all users in each request, or a message to the channel of all.
    FanOut,
}

/// A request to be posted.
#[derive(Debug, Default)]
pub struct Request {
    pub path: String,
    pub content_type: &'static str,
    pub body: Vec<u8>,
    pub events: u64,
    /// The number of deliveries that the receipts must report.
    pub deliveries: u64,
}

/// Composes requests for a crowd.
#[derive(Debug)]
pub struct Composer {
    dialect: Dialect,
    pub traffic: Traffic,
    /// Padding of each message.
    pub filling: String,
    /// The groups that the run made, by their rider; they are ended after the run.
    pools: Mutex<BTreeSet<u32>>,
}

impl Composer {
    pub fn new(dialect: Dialect, traffic: Traffic, message_bytes: usize) -> Composer {
        Composer { dialect, traffic, filling: "x".repeat(message_bytes), pools: Mutex::default() }
    }

    /// Returns the number of the ledger's lanes for this many producers: one each, and two for [`Composer::before`] and
    /// [`Composer::after`].
    pub fn lanes(producers: u32) -> u32 {
        producers + 2
    }

    /// Composes the next request of a lane. `user` is the recipient, or the first of a batch.
    pub fn compose(&self, crowd: &Crowd, lane: u32, user: u32, at: Duration, request: &mut Request) {
        request.body.clear();
        request.content_type = JSON;
        request.events = 1;
        match self.traffic {
            Traffic::Direct => {
                let run = &crowd.readers().run;
                self.message(request, crowd, format_args!("{run}-{user}"), |ledger, body| ledger.send(lane, at, &[user], body));
                request.deliveries = 1;
            }
            Traffic::FanOut if self.dialect.has_channels() => {
                let run = &crowd.readers().run;
                self.message(request, crowd, format_args!("{run}"), |ledger, body| ledger.send_to_all(lane, at, body));
                request.deliveries = u64::from(crowd.readers().users);
            }
            Traffic::Routed => {
                request.path = "/events".to_owned();
                request.body.extend_from_slice(br#"{"type":"pooling.match.found","data":"#);
                request.deliveries = self.pair(crowd, lane, user, at, &mut request.body);
                request.body.push(b'}');
            }
            Traffic::Batch => {
                let users = crowd.readers().users.max(1);
                self.batch(request, BATCH, crowd, lane, "pooling.match.found", |offset, body| {
                    self.pair(crowd, lane, (user + offset) % users, at, body)
                });
            }
            Traffic::FanOut => {
                request.path = "/events".to_owned();
                let run = &crowd.readers().run;
                // Writing to a vector can't fail, here and below.
                let _ = write!(request.body, r#"{{"type":"pooling.chat.message","data":{{"pool_id":"{run}","from":"load","#);
                crowd.ledger().send_to_all(lane, at, &mut request.body);
                let _ = write!(request.body, r#","text":"{}"}}}}"#, self.filling);
                request.deliveries = u64::from(crowd.readers().users);
            }
        }
    }

    /// Returns the requests that make the group of all users, if the traffic needs one. Each is entered in the ledger when it
    /// is composed.
    pub fn before<'a>(&'a self, crowd: &'a Crowd, lane: u32) -> impl Iterator<Item = Request> + 'a {
        let users = if self.makes_group_of_all() { crowd.readers().users } else { 0 };
        let riders: Vec<u32> = (0..users).step_by(2).collect();
        let chunks: Vec<Vec<u32>> = riders.chunks(BATCH as usize).map(<[u32]>::to_vec).collect();
        chunks.into_iter().map(move |riders| {
            let mut request = Request::default();
            self.batch(&mut request, riders.len() as u32, crowd, lane, "pooling.match.found", |index, body| {
                let rider = riders.get(index as usize).copied().unwrap_or_default();
                self.found(crowd, lane, [rider, (rider + 1).min(users - 1)], &crowd.readers().run, crowd.now(), body)
            });
            request
        })
    }

    /// Returns a message to each of this many users without a socket. These messages are not entered in the ledger.
    pub fn for_the_away<'a>(&'a self, crowd: &'a Crowd, users: u32) -> impl Iterator<Item = Request> + 'a {
        (0..users).map(move |user| {
            let mut request = Request::default();
            let run = &crowd.readers().run;
            self.message(&mut request, crowd, format_args!("{run}-away-{user}"), |_, body| body.extend_from_slice(br#""away":true"#));
            (request.content_type, request.events, request.deliveries) = (JSON, 1, 1);
            request
        })
    }

    fn makes_group_of_all(&self) -> bool {
        self.traffic == Traffic::FanOut && !self.dialect.has_channels()
    }

    /// Composes a message to a user or a channel, with the members that `mark` writes into it.
    fn message(
        &self,
        request: &mut Request,
        crowd: &Crowd,
        channel: std::fmt::Arguments<'_>,
        mark: impl FnOnce(&mut Ledger, &mut Vec<u8>),
    ) {
        request.body.extend_from_slice(br#"{"type":"load","#);
        mark(&mut crowd.ledger(), &mut request.body);
        let _ = write!(request.body, r#","details":"{}"}}"#, self.filling);
        self.dialect.address(channel, &mut request.path, &mut request.body);
    }

    /// Returns the requests that end the groups, so that the run leaves none in the server.
    pub fn after<'a>(&'a self, crowd: &'a Crowd, lane: u32) -> impl Iterator<Item = Request> + 'a {
        let riders: Vec<u32> = self.pools.lock().iter().copied().collect();
        let to_all = self.makes_group_of_all();
        let mut chunks: Vec<Vec<u32>> = riders.chunks(BATCH as usize).map(<[u32]>::to_vec).collect();
        if to_all {
            chunks.push(vec![0]);
        }
        chunks.into_iter().map(move |riders| {
            let mut request = Request::default();
            self.batch(&mut request, riders.len() as u32, crowd, lane, "pooling.match.cancelled", |index, body| {
                let rider = riders.get(index as usize).copied().unwrap_or_default();
                let pool = if to_all { crowd.readers().run.clone() } else { crowd.user(rider) };
                let _ = write!(body, r#"{{"request_id":1,"pool_id":"{pool}","by":"load","reason":"the end","#);
                let readers = if to_all {
                    // A message to everybody needs a lane without messages to some users.
                    crowd.ledger().send_to_all(lane + 1, crowd.now(), body);
                    u64::from(crowd.readers().users)
                } else {
                    let pair = readers(self.pair_of(crowd, rider));
                    crowd.ledger().send(lane, crowd.now(), &pair, body);
                    pair.len() as u64
                };
                body.push(b'}');
                readers
            });
            request
        })
    }

    /// Writes the data of a match between a user and the next one, and returns the number of its readers.
    fn pair(&self, crowd: &Crowd, lane: u32, rider: u32, at: Duration, body: &mut Vec<u8>) -> u64 {
        self.pools.lock().insert(rider);
        self.found(crowd, lane, self.pair_of(crowd, rider), &crowd.user(rider), at, body)
    }

    fn pair_of(&self, crowd: &Crowd, rider: u32) -> [u32; 2] {
        [rider, (rider + 1) % crowd.readers().users.max(1)]
    }

    fn found(&self, crowd: &Crowd, lane: u32, [rider, driver]: [u32; 2], pool: &str, at: Duration, body: &mut Vec<u8>) -> u64 {
        let run = &crowd.readers().run;
        let _ = write!(body, r#"{{"request_id":42,"rider_id":"{run}-{rider}","driver_id":"{run}-{driver}","pool_id":"{pool}","#);
        let readers = readers([rider, driver]);
        crowd.ledger().send(lane, at, &readers, body);
        let _ = write!(body, r#","notes":"{}"}}"#, self.filling);
        readers.len() as u64
    }

    /// Composes a CloudEvents batch of `count` events. `data` writes an event's data and returns the number of its readers.
    fn batch(
        &self,
        request: &mut Request,
        count: u32,
        crowd: &Crowd,
        lane: u32,
        kind: &str,
        mut data: impl FnMut(u32, &mut Vec<u8>) -> u64,
    ) {
        let body = &mut request.body;
        request.path = "/events".to_owned();
        request.content_type = CLOUDEVENTS_BATCH;
        request.events = u64::from(count);
        request.deliveries = 0;
        body.push(b'[');
        for index in 0..count {
            if index > 0 {
                body.push(b',');
            }
            // This number grows with each event, so the ids are unique.
            let id = crowd.ledger().owed();
            let run = &crowd.readers().run;
            let _ = write!(body, r#"{{"specversion":"1.0","id":"{run}-{lane}-{id}","source":"/load","type":"{kind}","data":"#);
            request.deliveries += data(index, body);
            body.push(b'}');
        }
        body.push(b']');
    }
}

/// Returns the readers of a message to a pair; a user who is both reads it once.
fn readers([rider, driver]: [u32; 2]) -> Vec<u32> {
    if rider == driver { vec![rider] } else { vec![rider, driver] }
}
