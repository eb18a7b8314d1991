//! What the producers publish: the requests, each with its marker and the number of readers it must reach.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use super::crowd::Crowd;
use super::dialect::Dialect;
use super::ledger::Ledger;
use parking_lot::Mutex;

/// Events in a request of [`Traffic::Batch`], and of those that make and end groups.
const BATCH: u32 = 100;

const JSON: &str = "application/json";
const CLOUDEVENTS_BATCH: &str = "application/cloudevents-batch+json";

/// What is published. All but the first need the bundled `pooling` policy, or channels.
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
    /// What the receipts must say.
    pub deliveries: u64,
}

/// Composes requests for a crowd.
#[derive(Debug)]
pub struct Composer {
    dialect: Dialect,
    pub traffic: Traffic,
    /// Bytes that each message is filled up with.
    pub filling: String,
    /// Groups that were made, by their rider; they are ended when all is over.
    pools: Mutex<BTreeSet<u32>>,
}

impl Composer {
    pub fn new(dialect: Dialect, traffic: Traffic, message_bytes: usize) -> Composer {
        Composer { dialect, traffic, filling: "x".repeat(message_bytes), pools: Mutex::default() }
    }

    /// Lanes of the ledger for this many producers: one each, and two for [`Composer::before`] and [`Composer::after`].
    pub fn lanes(producers: u32) -> u32 {
        producers + 2
    }

    /// The next request of a lane. `user` chooses the recipient, or the first of a hundred.
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

    /// The requests that make the group of all users, where it is needed. Each is owed from when it is composed.
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

    /// A message to each of so many users who aren't there. The ledger knows nothing of them.
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

    /// A message to a user or a channel, with what `mark` writes into it.
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

    /// The requests that end what was made, so that nothing of the run is left in the server.
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
                    // Everybody reads it, so it has a lane apart from those who read of their pair.
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

    /// The data of a match of a user and the next one; how many readers it has.
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

    /// A CloudEvents batch of `count` events, whose data `data` writes; it returns the readers of each.
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
            // What is owed grows with each event, so that no two have the same id.
            let id = crowd.ledger().owed();
            let run = &crowd.readers().run;
            let _ = write!(body, r#"{{"specversion":"1.0","id":"{run}-{lane}-{id}","source":"/load","type":"{kind}","data":"#);
            request.deliveries += data(index, body);
            body.push(b'}');
        }
        body.push(b']');
    }
}

/// Who reads what goes to a pair: a user who is both is told once.
fn readers([rider, driver]: [u32; 2]) -> Vec<u32> {
    if rider == driver { vec![rider] } else { vec![rider, driver] }
}
