//! Origins: which web pages may use the server from a browser (RFC 6454). Other clients send no `Origin` and are not checked.

use http::header::{HOST, HeaderMap, HeaderValue, ORIGIN};

use crate::config::{Authority, Origin, default_port};

/// The origins whose pages may use the server.
#[derive(Debug)]
pub struct Origins {
    listed: Vec<Origin>,
    own: Own,
}

/// Which pages count as the server's own, because their origin is the host that the request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Those of any host.
    Named,
    /// Only if the host is an IP address or `localhost`. A DNS name can be rebound to this server's address, and its pages would then
    /// count as same-origin on a server without authentication.
    Numbered,
}

impl Origins {
    /// `listed` are settings, which were checked when they were read.
    pub fn new(listed: &[String], own: Own) -> Origins {
        Origins { listed: listed.iter().filter_map(|origin| Origin::parse(origin)).collect(), own }
    }

    /// Says whether a request comes from no page, from one of a listed origin, or from one of the server's own.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        if !headers.contains_key(ORIGIN) {
            return true;
        }
        only(headers).is_some_and(|(origin, _)| self.listed.contains(&origin) || self.is_own(&origin, headers))
    }

    /// Returns the header of a request from a page of a listed origin.
    pub fn listed<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        only(headers).filter(|(origin, _)| self.listed.contains(origin)).map(|(_, header)| header)
    }

    /// Says whether the page was served by the host that the request names. The scheme is not compared: TLS may end in front of this
    /// server. A `Host` without a port has the default one of the origin's scheme.
    fn is_own(&self, origin: &Origin, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Some(host) = host.to_str().ok().and_then(Authority::parse) else { return false };
        matches!(origin.scheme.as_str(), "http" | "https")
            && host.host == origin.authority.host
            && host.port.or(default_port(&origin.scheme)) == origin.authority.port
            && (self.own == Own::Named || host.host.is_numbered())
    }
}

/// Returns the origin that a request names, if it names one.
fn only(headers: &HeaderMap) -> Option<(Origin, &HeaderValue)> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let (Some(header), None) = (origins.next(), origins.next()) else { return None };
    Some((Origin::parse(header.to_str().ok()?)?, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(headers: &[(&'static str, &str)]) -> bool {
        allows_as(Own::Named, headers)
    }

    fn allows_as(own: Own, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Origins::new(&["https://app.example.com".to_owned(), "https://staging.example.com:8443".to_owned()], own).allow(&map)
    }

    #[test]
    fn pages_of_listed_origins_and_of_the_server_itself_may() {
        for origin in [
            "https://app.example.com",
            "https://app.example.com:443",
            "HTTPS://APP.EXAMPLE.COM",
            "https://staging.example.com:8443",
            "http://localhost:8080",
            "https://localhost:8080",
        ] {
            assert!(allows(&[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
        assert!(allows(&[("host", "localhost:8080")]), "no browser, no origin");
        assert!(allows(&[("host", "LocalHost:8080"), ("origin", "http://localhost:8080")]));
    }

    #[test]
    fn a_default_port_is_the_same_whether_it_is_named_or_not() {
        for (host, origin) in [
            ("a", "http://a:80"),
            ("a:80", "http://a"),
            ("a", "https://a:443"),
            ("a:443", "https://a"),
            ("a:", "http://a"),
            ("[::1]:80", "http://[::1]"),
        ] {
            assert!(allows(&[("host", host), ("origin", origin)]), "{host} {origin}");
        }
        for (host, origin) in [("a:443", "http://a"), ("a:80", "https://a"), ("a", "http://a:443"), ("a", "https://a:80")] {
            assert!(!allows(&[("host", host), ("origin", origin)]), "{host} {origin}");
        }
    }

    #[test]
    fn a_name_that_was_made_to_mean_this_server_is_not_its_own() {
        for host in ["evil.net", "evil.net:8080", "localhost.evil.net:8080", "127.0.0.1.evil.net"] {
            let origin = format!("http://{host}");
            assert!(allows(&[("host", host), ("origin", &origin)]), "{host}");
            assert!(!allows_as(Own::Numbered, &[("host", host), ("origin", &origin)]), "{host}");
        }
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "192.0.2.1", "[::1]:8080", "[2001:db8::1]"] {
            let origin = format!("http://{host}");
            assert!(allows_as(Own::Numbered, &[("host", host), ("origin", &origin)]), "{host}");
        }
        let listed = [("host", "app.example.com"), ("origin", "https://app.example.com")];
        assert!(allows_as(Own::Numbered, &listed));
    }

    /// Tries what published bypasses looked like: prefixes, suffixes, substrings, other schemes and ports, null, user info.
    #[test]
    fn pages_of_any_other_origin_may_not() {
        let bad = [
            "null",
            "",
            "*",
            "https://app.example.com.evil.net",
            "https://evilapp.example.com",
            "https://evil.net/https://app.example.com",
            "https://evil.net?https://app.example.com",
            "https://evil.net#app.example.com",
            "https://app.example.com@evil.net",
            "https://app_example.com",
            "https://appxexample.com",
            "http://app.example.com",
            "https://app.example.com:444",
            "https://app.example.com:80",
            "https://app.example.com/",
            "https://app.example.com ,https://evil.net",
            "HTTP://APP.EXAMPLE.COM",
            "https://sub.app.example.com",
            "https://example.com",
            "app.example.com",
            "file://",
            "http://localhost",
            "http://localhost:80801",
            "http://localhost:8080.evil.net",
            "http://127.0.0.1:8080",
            "ws://localhost:8080",
            "https://\u{e4}pp.example.com",
        ];
        for origin in bad {
            assert!(!allows(&[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
        assert!(!allows(&[("origin", "http://localhost:8080")]), "no host");
        for host in ["", "[evil]:80", "localhost:80:80"] {
            assert!(!allows(&[("host", host), ("origin", &format!("http://{host}"))]), "{host}");
        }
        let twice = [("host", "localhost:8080"), ("origin", "https://app.example.com"), ("origin", "https://evil.net")];
        assert!(!allows(&twice));
        let hosts = [("host", "localhost:8080"), ("host", "evil.net"), ("origin", "https://evil.net")];
        assert!(!allows(&hosts));
    }
}
