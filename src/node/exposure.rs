//! What anybody may do without authentication, if other machines can reach the server.

use crate::auth::Auth;
use crate::config::Config;

/// Returns a sentence for the log and `/readyz`, if other machines can reach the server and it doesn't authenticate them.
pub fn exposed(config: &Config, auth: &Auth) -> Option<&'static str> {
    let is_reached = |address| !is_loopback(address);
    let (asks_keys, asks_tokens) = auth.asks();
    let connects = is_reached(config.listen) && !asks_tokens;
    let publishes = is_reached(config.listen) && !asks_keys;
    let operates = is_reached(config.operate_listen.unwrap_or(config.listen)) && !asks_keys;
    match (connects, publishes, operates) {
        (false, false, false) => None,
        (true, false, false) => Some("anybody who reaches this server may connect as any user"),
        (false, true, false) => Some("anybody who reaches this server may publish"),
        (false, false, true) => Some("anybody who reaches this server may operate"),
        (true, true, false) => Some("anybody who reaches this server may connect as any user and publish"),
        (true, false, true) => Some("anybody who reaches this server may connect as any user and operate"),
        (false, true, true) => Some("anybody who reaches this server may publish and operate"),
        (true, true, true) => Some("anybody who reaches this server may connect as any user, publish and operate"),
    }
}

fn is_loopback(address: std::net::SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Scope;
    use crate::metrics::Metrics;

    #[test]
    fn what_anybody_may_do_is_said_of_the_address_where_they_may() {
        let says = |settings: &str| {
            let overrides: toml::Table = settings.parse().unwrap();
            let (mut config, _) = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap();
            let address = |name: &str| overrides.get(name).and_then(|address| address.as_str()?.parse().ok());
            config.listen = address("listen").unwrap_or(config.listen);
            config.operate_listen = address("operate_listen");
            if overrides.contains_key("keys") {
                let sha256 = "0".repeat(64);
                config.auth.keys.push(crate::config::ApiKey { name: "x".into(), sha256, scopes: vec![Scope::Publish] });
            }
            let auth = Auth::new(&config.auth, Arc::new(Metrics::new().unwrap())).unwrap();
            exposed(&config, &auth).map(|says| says.trim_start_matches("anybody who reaches this server may "))
        };
        assert_eq!(says(""), None);
        assert_eq!(says("listen = \"[::1]:1\"\noperate_listen = \"127.0.0.1:1\""), None);
        assert_eq!(says("listen = \"0.0.0.0:1\""), Some("connect as any user, publish and operate"));
        assert_eq!(says("listen = \"0.0.0.0:1\"\nkeys = 1"), Some("connect as any user"));
        assert_eq!(says("listen = \"0.0.0.0:1\"\noperate_listen = \"127.0.0.1:1\""), Some("connect as any user and publish"));
        assert_eq!(says("operate_listen = \"[::]:1\""), Some("operate"));
        assert_eq!(says("operate_listen = \"[::]:1\"\nkeys = 1"), None);
    }
}
