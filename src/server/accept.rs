//! Accepts connections. The number of open ones is bounded by permits.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::unconstrained;

use super::{Server, Stage};
use crate::config;
use crate::http::routes::{Front, Line};
use crate::net::head_timer::HeadTimer;
use crate::net::permits::{Client, ConnectionPermits};
use crate::net::stream::{Stream, Takeover};
use crate::net::wire::Wire;

/// How long to wait before accepting again after an error, such as a lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

impl Server {
    pub(super) async fn accept_all(&self, permits: &[Arc<ConnectionPermits>], stage: &watch::Sender<Stage>, working: &mpsc::Sender<()>) {
        let accepting = self.listeners.iter().zip(permits);
        let accepting = accepting.map(|((listener, front), permits)| self.accept(listener, front, permits, stage, working));
        futures_util::future::join_all(accepting).await;
    }

    /// Accepts the connections of one listener. Never returns.
    async fn accept(
        &self,
        listener: &TcpListener,
        front: &Arc<Front>,
        permits: &Arc<ConnectionPermits>,
        stage: &watch::Sender<Stage>,
        working: &mpsc::Sender<()>,
    ) {
        let write_deadline = *self.node.config.sockets.write_deadline_ms;
        let mut http = http1(&self.node.config.http);
        while let Some(permit) = permits.free().await {
            let (tcp, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("can't accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let client = Client::from(address.ip());
            let Some(permit) = permits.take(permit, client) else { continue };
            let _ = tcp.set_nodelay(true);
            let tls = match self.tls.as_ref().map(|tls| tls.accept()).transpose() {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::warn!("can't start TLS: {error}");
                    continue;
                }
            };
            let stream = TokioIo::new(Stream::new(Wire::new(tcp, tls), permit, write_deadline));
            http.timer(HeadTimer::default());
            let line = Arc::new(Line { front: front.clone(), client, takeover: Takeover::default() });
            let takeover = line.takeover.clone();
            let answer = service_fn(move |request| line.clone().answer(request));
            let mut connection = http.serve_connection(stream, answer).with_upgrades();
            let (mut stage, working) = (stage.subscribe(), working.clone());
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = served(&mut connection, &takeover) => {}
                    () = reaches(&mut stage, Stage::Finishing) => {
                        Pin::new(&mut connection).graceful_shutdown();
                        tokio::select! {
                            biased;
                            () = served(&mut connection, &takeover) => {}
                            () = reaches(&mut stage, Stage::Over) => {}
                        }
                    }
                }
                if takeover.is_asked()
                    && let Some(parts) = connection.into_parts()
                {
                    takeover.hand_over((parts.io.into_inner(), parts.read_buf));
                }
                drop(working);
            });
        }
    }
}

fn http1(limits: &config::Http) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Receipts are short: copying one behind its head costs less than a list of buffers.
    http.writev(false);
    // A producer may close its side once it has sent a request; that request still counts.
    http.half_close(true);
    http.header_read_timeout(*limits.header_deadline_ms);
    http.max_buf_size(limits.header_bytes_max.get());
    http.max_headers(limits.headers_max.get());
    http
}

/// Serves a connection until it ends, or a handler asks for it.
async fn served(connection: &mut (impl Future + Unpin), takeover: &Takeover) {
    poll_fn(|context| {
        let ended = Pin::new(&mut *connection).poll(context).is_ready();
        if ended || takeover.is_asked() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Resolves when the server is at this stage. It is polled whenever its connection is: once it waits, that costs a look at a number.
async fn reaches(now: &mut watch::Receiver<Stage>, stage: Stage) {
    let news = now.clone();
    let mut reached = pin!(unconstrained(now.wait_for(|now| *now >= stage)));
    let mut is_waiting = false;
    poll_fn(|context| {
        // An error means that the server is gone, so the stage is over.
        if is_waiting && matches!(news.has_changed(), Ok(false)) {
            return Poll::Pending;
        }
        is_waiting = true;
        reached.as_mut().poll(context).map(drop)
    })
    .await;
}

pub(super) fn bind(address: std::net::SocketAddr, backlog: u32) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}
