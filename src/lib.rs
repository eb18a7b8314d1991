pub mod close;
pub mod config;
pub mod delivery;
pub mod dialogue;
pub mod dispatch;
pub mod event;
pub mod format;
pub mod groups;
pub mod ingress;
pub mod json;
pub mod mailbox;
pub mod metrics;
pub mod operate;
pub mod policy;
pub mod problem;
pub mod server;
pub mod session;
pub mod state;
pub mod stream;
pub mod websocket;

/// Locks a mutex whose content stays whole when its holder panics: all our critical sections are short and don't call out.
fn lock<T: ?Sized>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
