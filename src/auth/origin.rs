//! Origins: which web pages may use the server from a browser (RFC 6454). Other clients send none and are not asked.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{HOST, HeaderMap, ORIGIN};

/// Whose pages are the server's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Those of the host that is asked, whatever its name.
    Named,
    /// Only where that is an address or this machine: whoever owns a name can have it mean this server's address (DNS rebinding), and their
    /// page would be let in to a server that asks nobody.
    Numbered,
}

/// # Errors
/// The request comes from a page that is neither of a listed origin nor of the server's own.
pub fn allowed(headers: &HeaderMap, listed: &[String], own: Own) -> Result<(), ()> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let (origin, None) = (origins.next(), origins.next()) else { return Err(()) };
    let Some(origin) = origin else { return Ok(()) };
    let origin = origin.to_str().map_err(|_| ())?;
    if listed.iter().any(|listed| listed == origin) || is_own(origin, headers, own) {
        return Ok(());
    }
    Err(())
}

/// Whether the page was served by the host that it asks. The scheme is not compared: TLS may end in front of this server.
fn is_own(origin: &str, headers: &HeaderMap, own: Own) -> bool {
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    !host.is_empty() && authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host)) && (own == Own::Named || is_numbered(host))
}

/// Whether a name server has no say in what this host, with a port or without, means.
fn is_numbered(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok()
        || inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn ask(headers: &[(&'static str, &str)]) -> Result<(), ()> {
        ask_as(Own::Named, headers)
    }

    fn ask_as(own: Own, headers: &[(&'static str, &str)]) -> Result<(), ()> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        allowed(&map, &["https://app.example.com".to_owned(), "https://staging.example.com:8443".to_owned()], own)
    }

    #[test]
    fn pages_of_listed_origins_and_of_the_server_itself_may() {
        for origin in ["https://app.example.com", "https://staging.example.com:8443", "http://localhost:8080", "https://localhost:8080"] {
            assert_eq!(ask(&[("host", "localhost:8080"), ("origin", origin)]), Ok(()), "{origin}");
        }
        assert_eq!(ask(&[("host", "localhost:8080")]), Ok(()), "no browser, no origin");
        assert_eq!(ask(&[("host", "LocalHost:8080"), ("origin", "http://localhost:8080")]), Ok(()));
    }

    #[test]
    fn a_name_that_was_made_to_mean_this_server_is_not_its_own() {
        for host in ["evil.net", "evil.net:8080", "localhost.evil.net:8080", "127.0.0.1.evil.net", "[evil]:80", "localhost:80:80"] {
            let origin = format!("http://{host}");
            assert_eq!(ask(&[("host", host), ("origin", &origin)]), Ok(()), "{host}");
            assert_eq!(ask_as(Own::Numbered, &[("host", host), ("origin", &origin)]), Err(()), "{host}");
        }
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "192.0.2.1", "[::1]:8080", "[2001:db8::1]"] {
            let origin = format!("http://{host}");
            assert_eq!(ask_as(Own::Numbered, &[("host", host), ("origin", &origin)]), Ok(()), "{host}");
        }
        let listed = [("host", "app.example.com"), ("origin", "https://app.example.com")];
        assert_eq!(ask_as(Own::Numbered, &listed), Ok(()));
    }

    /// What published bypasses looked like: prefixes, suffixes, substrings, other schemes and ports, null, user info.
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
            "https://app.example.com/",
            "https://app.example.com ,https://evil.net",
            "HTTPS://APP.EXAMPLE.COM",
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
            assert_eq!(ask(&[("host", "localhost:8080"), ("origin", origin)]), Err(()), "{origin}");
        }
        assert_eq!(ask(&[("origin", "http://localhost:8080")]), Err(()), "no host");
        assert_eq!(ask(&[("host", ""), ("origin", "http://")]), Err(()));
        let twice = [("host", "localhost:8080"), ("origin", "https://app.example.com"), ("origin", "https://evil.net")];
        assert_eq!(ask(&twice), Err(()));
        let hosts = [("host", "localhost:8080"), ("host", "evil.net"), ("origin", "https://evil.net")];
        assert_eq!(ask(&hosts), Err(()));
    }
}
