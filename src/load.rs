//! Load: users by the thousand on real sockets, producers on real connections, and a check of every single message.
//!
//! For `signalpost load` and for the stress program. A [`Crowd`] is the readers, a [`Producer`] publishes, the [`Ledger`] knows
//! who is owed what, and [`run`] puts them together into a [`Report`]. All of it is one thread that shares one read buffer, speaks
//! just enough HTTP and WebSocket, and knows nothing of the server but its protocol: beside a fast server it must not be the one
//! who is slow. A [`Dialect`] is a protocol of another server, so that both are measured and checked alike.

mod crowd;
mod dialect;
mod frames;
mod histogram;
mod ledger;
mod pace;
mod process;
mod producer;
mod report;
mod scenario;
mod traffic;

pub use crowd::{Crowd, Readers};
pub use dialect::Dialect;
pub use frames::{client_frame, first_frame};
pub use histogram::Histogram;
pub use ledger::{Findings, Ledger};
pub use pace::Pace;
pub use process::{Process, own_processor_time};
pub use producer::{Answer, Producer};
pub use report::{Connecting, Generator, Latency, Progress, Report, Server};
pub use scenario::{Plan, Scenario, run};
pub use traffic::Traffic;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};

/// Connections from one local address: below the 28,000 ports that Linux gives out by default.
const CONNECTIONS_PER_ADDRESS: u32 = 20_000;

/// Where the server is.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Where producers connect: the same address, but for NATS.
    pub producers: SocketAddr,
    pub dialect: Dialect,
    /// As `Host` says it.
    pub authority: String,
    /// Before `/ws`, `/events` and `/users`; without a slash at its end.
    pub base_path: String,
    pub credentials: Credentials,
}

/// What is shown to a server that asks.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The producers' API key.
    pub key: Option<String>,
    /// Makes a user's token.
    pub token: Option<Arc<TokenOf>>,
}

/// The token of the user with this id.
pub type TokenOf = dyn Fn(&str) -> String + Send + Sync;

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not what they are.
        f.debug_struct("Credentials").field("key", &self.key.is_some()).field("token", &self.token.is_some()).finish()
    }
}

impl Target {
    /// A server on this address, with the default base path.
    pub fn at(address: SocketAddr) -> Target {
        Target {
            address,
            producers: address,
            dialect: Dialect::Signalpost,
            authority: address.to_string(),
            base_path: "/api/pool".to_owned(),
            credentials: Credentials::default(),
        }
    }

    /// The `number`th connection. A server on loopback is reached from several addresses of it, since one has too few ports.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn connect(&self, number: u32) -> std::io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let spread = number / CONNECTIONS_PER_ADDRESS;
        if spread > 0 && self.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            // 127.0.0.2 and on; the port is the system's choice.
            let local = u32::from(Ipv4Addr::LOCALHOST).saturating_add(spread);
            socket.bind((Ipv4Addr::from(local), 0).into())?;
        }
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}

/// SplitMix64: the same seed makes the same choices.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..bound`; 0 where the bound is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        // The product's upper half is below the bound, so it fits.
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u32
    }
}

/// Takes as many file descriptors as the system grants this process: one goes to each connection. How many that are, where there is a
/// limit.
pub fn raise_open_files_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Refused, the old limit stays, and who needs more is told by the first connection that fails.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}
