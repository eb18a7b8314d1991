//! A load generator that checks every message: users by the thousand on real sockets, producers on real connections.
//!
//! The `signalpost-load` command and the stress program share it. A [`Crowd`] holds the readers' sockets, a [`Producer`]
//! publishes, the [`Ledger`] records which messages each reader is owed, and [`run`] combines them and returns a [`Report`].
//! Everything runs on one thread with one read buffer and speaks just enough HTTP and WebSocket, so that it costs less than a
//! fast server does. It depends on the server's protocol only, not on its code. A [`Dialect`] is the protocol of another
//! server, so that both are measured and checked in the same way.

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
mod stream;
mod tokens;
mod traffic;

pub use crowd::{Crowd, Readers};
pub use dialect::Dialect;
pub use frames::{client_frame, first_frame};
pub use histogram::Histogram;
pub use ledger::{Findings, Ledger};
pub use pace::Pace;
pub use process::{Process, own_processor_time, raise_open_files_limit};
pub use producer::{Answer, Producer};
pub use report::{Connecting, Generator, Latency, Progress, Report, Server};
pub use scenario::{Plan, Scenario, run};
pub use stream::Stream;
pub use tokens::Signer;
pub use traffic::Traffic;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};

/// Connections from one local address: fewer than the 28,000 ports that Linux assigns by default.
const CONNECTIONS_PER_ADDRESS: u32 = 20_000;

/// The server under test.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Where producers connect: the same address, except for NATS.
    pub producers: SocketAddr,
    pub dialect: Dialect,
    /// The value of the `Host` header.
    pub authority: String,
    /// The path before `/ws`, `/events` and `/users`, without a slash at its end.
    pub base_path: String,
    pub credentials: Credentials,
}

/// What a server with authentication is shown.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The producers' API key.
    pub key: Option<String>,
    /// Makes a user's token.
    pub token: Option<Arc<TokenOf>>,
}

/// Returns the token of the user with this id.
pub type TokenOf = dyn Fn(&str) -> String + Send + Sync;

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Only whether there are any, not the secrets themselves.
        f.debug_struct("Credentials").field("key", &self.key.is_some()).field("token", &self.token.is_some()).finish()
    }
}

impl Target {
    /// A server at this address, with the default base path and without authentication.
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

    /// Opens the `number`th connection. One local address has too few ports for a large crowd, so a server on 127.0.0.1 is
    /// reached from several loopback addresses.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn connect(&self, number: u32) -> std::io::Result<TcpStream> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let spread = number / CONNECTIONS_PER_ADDRESS;
        if spread > 0 && self.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            // 127.0.0.2, 127.0.0.3 and so on, at a port that the system chooses.
            let local = u32::from(Ipv4Addr::LOCALHOST).saturating_add(spread);
            socket.bind((Ipv4Addr::from(local), 0).into())?;
        }
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}
