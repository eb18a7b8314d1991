//! The periodic chores of a running server.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{interval, sleep};

use crate::auth::Auth;
use crate::model::mailbox::Mailboxes;
use crate::net::tls::Tls;
use crate::node::settings::Settings;
use crate::node::sharing;
use crate::node::{self, Node};
use crate::policy::load::Again;
use crate::sink::Sinks;
use crate::store::Cleaner;

/// How often a part of the mailboxes is searched for expired messages.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait before a file is tried again whose reason may have passed, the first time and at most.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Rolls back failing policies, and drops policy sets that no message needs any more. Waits for no reload.
pub(super) async fn roll_back(node: Arc<Node>) {
    let mut tick = interval(*node.config.plugins.watch_interval_ms);
    loop {
        tick.tick().await;
        node.policies.retire();
        node.roll_back().await;
        node.loader.settle(&node.policies);
    }
}

/// Tries files again that were refused for a reason that may have passed, more and more seldom.
pub(super) async fn retry_plugins(node: Arc<Node>) {
    let (first, last) = RETRY_PAUSES;
    let mut pause = first;
    loop {
        sleep(pause).await;
        if node.policies.rejected().iter().any(|rejected| rejected.is_retried) {
            node.reload(Again::Passing, None).await;
            pause = (pause * 2).min(last);
        } else {
            pause = first;
        }
    }
}

/// Takes the policies on which the nodes of a cluster have agreed.
pub(super) async fn share_policies(node: Arc<Node>) {
    sharing::keep(node).await;
}

/// Reloads when the files have changed and stayed the same for one interval, so that a copy in progress is not read.
pub(super) async fn watch_plugins(node: Arc<Node>) {
    let config = &node.config.plugins;
    if !config.watch {
        return;
    }
    let mut tick = interval(*config.watch_interval_ms);
    // None yet, so that the first stable fingerprint reloads, even that of an empty folder: files may have changed during the first load.
    let (mut seen, mut taken) = (None, None);
    let mut is_readable = true;
    loop {
        tick.tick().await;
        match node.loader.fingerprint() {
            Ok(now) => {
                let now = Some(now);
                if now == seen && now != taken {
                    node.reload(Again::No, None).await;
                    taken.clone_from(&now);
                }
                is_readable = true;
                seen = now;
            }
            // The current policies keep serving. The error is logged once, and the source is tried again with each tick.
            Err(error) if is_readable => {
                is_readable = false;
                tracing::error!(dir = ?config.dir, "the plugins can't be listed; the current policies keep serving: {error}");
            }
            Err(_) => {}
        }
    }
}

/// Reads the configuration again and reloads the policies whenever an operator asks for it. Files that were refused before are tried again, and
/// so are sinks that have stopped.
pub(super) async fn reload_at(settings: Arc<Settings>, sinks: Arc<Sinks>, requests: Arc<Mutex<mpsc::Receiver<()>>>) {
    let mut requests = requests.lock().await;
    while requests.recv().await.is_some() {
        sinks.resume();
        // The outcome is in the log.
        drop(settings.reload().await);
    }
}

/// Reloads changed keys of users' tokens, a changed certificate, and changed secrets of sinks.
pub(super) async fn watch_keys(auth: Arc<Auth>, tls: Option<Arc<Tls>>, sinks: Arc<Sinks>, every: Duration) {
    let mut tick = interval(every);
    loop {
        tick.tick().await;
        let (auth, tls, sinks) = (auth.clone(), tls.clone(), sinks.clone());
        // Files are read on a thread that may block. Failures are logged there.
        let _ = tokio::task::spawn_blocking(move || {
            auth.refresh();
            sinks.refresh();
            if let Some(tls) = tls {
                tls.refresh();
            }
        })
        .await;
    }
}

/// Fetches the keys that issuers publish, at intervals.
pub(super) async fn follow_issuers(auth: Arc<Auth>) {
    auth.follow().await;
}

/// Notes what readers have read, and what has expired.
pub(super) async fn note_marks(node: Arc<Node>) {
    if !node.store.is_kept() {
        return;
    }
    let mut tick = interval(*node.config.store.marks_interval_ms);
    loop {
        tick.tick().await;
        // While the store is behind, the mailboxes remember that they have something to note: that is bounded, and what waits would not be.
        if node.store.admit().is_err() {
            continue;
        }
        let mut changes = node.store.changes();
        node.model.mailboxes.note_marks(&mut changes);
        // Nobody waits for marks.
        drop(node.store.append(changes));
    }
}

/// Has the sinks deliver while this process decides, until `end`.
pub(super) async fn deliver(node: Arc<Node>, sinks: Arc<Sinks>, mut end: watch::Receiver<bool>) {
    loop {
        // All are cancel safe. The sender lives as long as the server serves.
        tokio::select! {
            _ = end.wait_for(|end| *end) => return,
            () = node.store.until(true) => {}
        }
        sinks.start().await;
        let is_over = tokio::select! {
            _ = end.wait_for(|end| *end) => true,
            () = node.store.until(false) => false,
        };
        sinks.finish().await;
        if is_over {
            return;
        }
    }
}

/// Keeps the store small.
pub(super) async fn clean(cleaner: Option<Cleaner>) {
    if let Some(cleaner) = cleaner {
        cleaner.run().await;
    }
}

/// Takes a sample of the figures at each interval.
pub(super) async fn sample(node: Arc<Node>) {
    let mut tick = interval(node::INTERVAL);
    loop {
        tick.tick().await;
        node.stats.sample(&node);
    }
}

/// Drops expired messages and state, and instances that nobody needs, a part at a time.
pub(super) async fn sweep(node: Arc<Node>) {
    let mut tick = interval(SWEEP_INTERVAL);
    for round in 0.. {
        tick.tick().await;
        node.model.mailboxes.sweep(round);
        node.dispatch.tell_of_expired();
        if round % Mailboxes::SWEEP_ROUNDS == 0 {
            node.model.sweep();
            node.format.sweep();
            node.dispatch.milestones.sweep(node.model.clock.now_ms());
            node.policies.current().policies.iter().for_each(|policy| policy.shrink());
        }
    }
}
