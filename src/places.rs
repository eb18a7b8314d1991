//! Places: how many connections there may be, in all and from one client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Http;
use crate::lock;
use crate::metrics::Metrics;

/// What tells clients with IPv6 apart: one of them has a whole /64.
const NETWORK_BITS: u32 = 64;

/// The places of a server.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    all_max: u32,
    /// 0 is no bound.
    per_address_max: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
    metrics: Arc<Metrics>,
}

/// A connection's, for as long as it is open.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    client: IpAddr,
    places: Arc<Places>,
}

impl Places {
    pub fn new(http: &Http, metrics: Arc<Metrics>) -> Arc<Places> {
        let all_max = u32::try_from(http.connections_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let all = Arc::new(Semaphore::new(all_max as usize));
        Arc::new(Places { all, all_max, per_address_max: http.connections_per_address_max, taken: Mutex::default(), metrics })
    }

    /// Waits until there is a place. `None` never happens: nobody closes the semaphore.
    pub async fn free(&self) -> Option<OwnedSemaphorePermit> {
        self.all.clone().acquire_owned().await.ok()
    }

    /// Waits until all are free.
    pub async fn all_free(&self) {
        let _ = self.all.acquire_many(self.all_max).await;
    }

    /// A place for a connection from this address, unless too many come from there.
    pub fn take(self: &Arc<Self>, permit: OwnedSemaphorePermit, address: IpAddr) -> Option<Place> {
        let client = client(address);
        if self.per_address_max > 0 {
            let mut taken = lock(&self.taken);
            let of_client = taken.entry(client).or_default();
            if *of_client >= self.per_address_max {
                self.metrics.connections_refused.inc();
                return None;
            }
            *of_client += 1;
        }
        self.metrics.connections.inc();
        Some(Place { _permit: permit, client, places: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.metrics.connections.dec();
        if self.places.per_address_max > 0 {
            let mut taken = lock(&self.places.taken);
            if let Some(of_client) = taken.get_mut(&self.client) {
                *of_client -= 1;
                if *of_client == 0 {
                    taken.remove(&self.client);
                }
            }
        }
    }
}

fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> NETWORK_BITS << NETWORK_BITS).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn places(per_address_max: usize) -> Arc<Places> {
        let (mut config, _) = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap();
        config.http.connections_per_address_max = per_address_max;
        Places::new(&config.http, Arc::new(Metrics::new().unwrap()))
    }

    #[tokio::test]
    async fn an_address_has_so_many_and_gets_them_back() {
        let places = places(2);
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = places.take(places.free().await.unwrap(), here);
        let second = places.take(places.free().await.unwrap(), "::ffff:192.0.2.1".parse().unwrap());
        assert!(first.is_some() && second.is_some());
        assert!(places.take(places.free().await.unwrap(), here).is_none());
        assert!(places.take(places.free().await.unwrap(), there).is_some());
        drop(first);
        let again = places.take(places.free().await.unwrap(), here);
        assert!(again.is_some());
        drop((second, again));
        assert!(lock(&places.taken).is_empty());
        assert_eq!(places.all.available_permits(), places.all_max as usize);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let of = |text: &str| client(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_ne!(of("2001:db8:1:3::1"), of("2001:db8:1:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
