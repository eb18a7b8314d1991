//! Permits bound the connections and the sessions, in total and from each client address. A connection waits for its permit in the
//! listen backlog; a session that can't have one is refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;

/// The bits of an IPv6 address that distinguish clients: each client has a whole /64.
const NETWORK_BITS: u32 = 64;

/// A client as the bounds count it: an IPv4 address or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

/// The permits for the connections of one listener.
#[derive(Debug)]
pub struct ConnectionPermits {
    all: Arc<Semaphore>,
    all_max: u32,
    clients: Arc<Clients>,
    metrics: Arc<Metrics>,
}

/// The permit of a connection, held while it is open.
#[derive(Debug)]
pub struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
    _of_client: OfClient,
    metrics: Arc<Metrics>,
}

/// The permits for the sessions of a server, including sessions that have not sent their token yet.
#[derive(Debug)]
pub struct SessionPermits {
    all: Arc<Semaphore>,
    clients: Arc<Clients>,
}

/// The permit of a session, held while it is open.
#[derive(Debug)]
pub struct SessionPermit {
    _permit: OwnedSemaphorePermit,
    _of_client: OfClient,
}

/// Whose permits are exhausted: those of all clients or those of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    All,
    Client,
}

/// Counts the connections or sessions of each client.
#[derive(Debug)]
struct Clients {
    /// 0 means no bound, and then nothing is counted.
    each_max: usize,
    taken: Mutex<HashMap<Client, usize>>,
}

/// One counted connection or session of a client.
#[derive(Debug)]
struct OfClient {
    client: Client,
    clients: Arc<Clients>,
}

impl ConnectionPermits {
    pub fn new(all_max: usize, per_address_max: usize, metrics: Arc<Metrics>) -> Arc<ConnectionPermits> {
        let all_max = u32::try_from(all_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let all = Arc::new(Semaphore::new(all_max as usize));
        Arc::new(ConnectionPermits { all, all_max, clients: Clients::new(per_address_max), metrics })
    }

    /// Waits for a free permit. Never returns `None`: the semaphore is never closed.
    pub async fn free(&self) -> Option<OwnedSemaphorePermit> {
        self.all.clone().acquire_owned().await.ok()
    }

    /// Waits until all permits are free.
    pub async fn all_free(&self) {
        let _ = self.all.acquire_many(self.all_max).await;
    }

    /// Returns a permit for a connection of this client, unless the client has too many.
    pub fn take(&self, permit: OwnedSemaphorePermit, client: Client) -> Option<ConnectionPermit> {
        let Some(of_client) = self.clients.take(client) else {
            self.metrics.connections_refused.inc();
            return None;
        };
        self.metrics.connections.inc();
        Some(ConnectionPermit { _permit: permit, _of_client: of_client, metrics: self.metrics.clone() })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl SessionPermits {
    pub fn new(all_max: usize, per_address_max: usize) -> SessionPermits {
        let all = Arc::new(Semaphore::new(all_max.min(Semaphore::MAX_PERMITS)));
        SessionPermits { all, clients: Clients::new(per_address_max) }
    }

    /// Returns a permit for a session of this client.
    ///
    /// # Errors
    /// No permit is free, or the client has too many sessions.
    pub fn take(&self, client: Client) -> Result<SessionPermit, Exhausted> {
        let of_client = self.clients.take(client).ok_or(Exhausted::Client)?;
        let permit = self.all.clone().try_acquire_owned().map_err(|_| Exhausted::All)?;
        Ok(SessionPermit { _permit: permit, _of_client: of_client })
    }
}

impl Clients {
    fn new(each_max: usize) -> Arc<Clients> {
        Arc::new(Clients { each_max, taken: Mutex::default() })
    }

    fn take(self: &Arc<Self>, client: Client) -> Option<OfClient> {
        if self.each_max > 0 {
            let mut taken = self.taken.lock();
            let of_client = taken.entry(client).or_default();
            if *of_client >= self.each_max {
                return None;
            }
            *of_client += 1;
        }
        Some(OfClient { client, clients: self.clone() })
    }
}

impl Drop for OfClient {
    fn drop(&mut self) {
        if self.clients.each_max > 0 {
            let mut taken = self.clients.taken.lock();
            if let Some(of_client) = taken.get_mut(&self.client) {
                *of_client -= 1;
                if *of_client == 0 {
                    taken.remove(&self.client);
                }
            }
        }
    }
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Client {
        Client(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> NETWORK_BITS << NETWORK_BITS).into(),
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Client {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[tokio::test]
    async fn an_address_has_so_many_and_gets_them_back() {
        let permits = ConnectionPermits::new(10, 2, Arc::new(Metrics::new().unwrap()));
        let (here, there) = (client("192.0.2.1"), client("192.0.2.2"));
        let first = permits.take(permits.free().await.unwrap(), here);
        let second = permits.take(permits.free().await.unwrap(), client("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(permits.take(permits.free().await.unwrap(), here).is_none());
        assert!(permits.take(permits.free().await.unwrap(), there).is_some());
        drop(first);
        let again = permits.take(permits.free().await.unwrap(), here);
        assert!(again.is_some());
        drop((second, again));
        assert!(permits.clients.taken.lock().is_empty());
        assert_eq!(permits.all.available_permits(), permits.all_max as usize);
    }

    #[test]
    fn a_session_that_finds_no_place_takes_none() {
        let permits = SessionPermits::new(3, 2);
        let (here, there) = (client("192.0.2.1"), client("192.0.2.2"));
        let of_here: Vec<SessionPermit> = (0..2).map(|_| permits.take(here).unwrap()).collect();
        assert_eq!(permits.take(here).unwrap_err(), Exhausted::Client);
        let of_there = permits.take(there).unwrap();
        assert_eq!(permits.take(there).unwrap_err(), Exhausted::All);
        drop(of_here);
        let again = permits.take(there).expect("what was refused is not counted");
        drop((of_there, again));
        assert!(permits.clients.taken.lock().is_empty());
        assert_eq!(permits.all.available_permits(), 3);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let of = |text: &str| client(text).0.to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_ne!(of("2001:db8:1:3::1"), of("2001:db8:1:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
