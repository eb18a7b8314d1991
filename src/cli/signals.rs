//! The signals of a serving process, received on a thread of their own: nothing that the server does can hold them up.

use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// How long the log may take to write its last lines before the process is ended.
const LAST_LINES: Duration = Duration::from_millis(100);

/// What operators ask for.
pub struct Signals {
    /// The first SIGINT or SIGTERM. The second one ends the process, for an operator who won't wait.
    pub stop: oneshot::Receiver<()>,
    /// Each SIGHUP.
    pub reloads: mpsc::Receiver<()>,
}

/// The operating system's signals, and their receivers.
struct Watch {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: [Signal; 2],
    stop: Option<oneshot::Sender<()>>,
    reloads: mpsc::Sender<()>,
    patience: Duration,
}

/// Starts to receive signals. A process that does not stop within `patience` after the first signal is ended.
///
/// # Errors
/// The operating system's.
pub fn receive(patience: Duration) -> anyhow::Result<Signals> {
    let runtime = Builder::new_current_thread().enable_all().build().context("can't start the thread that receives signals")?;
    let of = |kind: SignalKind| {
        let _entered = runtime.enter();
        signal(kind).context("can't receive signals")
    };
    let (stop, stopped) = oneshot::channel();
    // One reload takes all changes, so at most one further request has to wait.
    let (reloads, reloaded) = mpsc::channel(1);
    let watch = Watch {
        interrupt: of(SignalKind::interrupt())?,
        terminate: of(SignalKind::terminate())?,
        hangup: of(SignalKind::hangup())?,
        user: [of(SignalKind::user_defined1())?, of(SignalKind::user_defined2())?],
        stop: Some(stop),
        reloads,
        patience,
    };
    let receive = move || runtime.block_on(watch.run());
    std::thread::Builder::new().name("signals".to_owned()).spawn(receive).context("can't start the thread that receives signals")?;
    Ok(Signals { stop: stopped, reloads: reloaded })
}

impl Watch {
    async fn run(mut self) {
        let mut deadline = None;
        let [one, two] = &mut self.user;
        loop {
            let late = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let asked_to_stop = tokio::select! {
                _ = self.interrupt.recv() => true,
                _ = self.terminate.recv() => true,
                _ = self.hangup.recv() => {
                    let _ = self.reloads.try_send(());
                    false
                }
                _ = one.recv() => false,
                _ = two.recv() => false,
                () = late => {
                    tracing::error!("the stop takes too long: the process ends now");
                    std::thread::sleep(LAST_LINES);
                    std::process::exit(1);
                }
            };
            if asked_to_stop {
                match self.stop.take() {
                    Some(stop) => drop(stop.send(())),
                    None => std::process::exit(130),
                }
                deadline = Some(Instant::now() + self.patience);
            }
        }
    }
}
