//! Below HTTP: connections with and without TLS, an HTTP client, WebSocket frames, and limits on connections, bodies, sessions and open files. Problem documents too, since
//! a handshake is refused with one.

pub mod bodies;
pub mod client;
pub mod feed;
pub mod head_timer;
pub mod open_files;
pub mod permits;
pub mod problem;
pub mod rate;
pub mod stream;
pub mod tls;
pub mod turns;
pub mod websocket;
pub mod wire;
