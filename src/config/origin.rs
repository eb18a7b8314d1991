//! Web origins (RFC 6454) and the authority that `Host` names (RFC 3986, section 3.2), in the form in which they are compared.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A host, and a port if one is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    pub host: Host,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an IPv4 address, in small letters.
    Name(String),
    V6(Ipv6Addr),
}

/// An origin, with its port even if that is the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub scheme: String,
    pub authority: Authority,
}

/// A host as it is written.
enum Written<'a> {
    Name(&'a str),
    V6(Ipv6Addr),
}

impl Authority {
    /// Reads an authority without user information. Returns `None` if the text is not one.
    pub fn parse(text: &str) -> Option<Authority> {
        let (host, port) = written(text)?;
        let host = match host {
            Written::Name(name) => Host::Name(name.to_ascii_lowercase()),
            Written::V6(address) => Host::V6(address),
        };
        Some(Authority { host, port })
    }

    /// Says whether a text is an authority without user information.
    pub fn is_one(text: &str) -> bool {
        is_plain(text) || written(text).is_some()
    }
}

/// Returns whether a text is a name or an IPv4 address of the usual characters, with or without a port: quick, since each request has one.
fn is_plain(text: &str) -> bool {
    let is_usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let (name, port) = text.as_bytes().split_at(text.bytes().take_while(|byte| is_usual(byte)).count());
    let is_port = |port: &[u8]| (1..=4).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    match port {
        [] => !name.is_empty(),
        // Five digits that begin with 1 to 5 are below 65,536.
        [b':', b'1'..=b'5', rest @ ..] if rest.len() == 4 => !name.is_empty() && is_port(rest),
        [b':', port @ ..] => !name.is_empty() && is_port(port),
        _ => false,
    }
}

fn written(text: &str) -> Option<(Written<'_>, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            (Written::V6(address.parse().ok()?), if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => {
            let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
            let is_name = !name.is_empty() && name.bytes().all(is_name_byte);
            (Written::Name(is_name.then_some(name)?), port)
        }
    };
    // A colon without a port is the default port.
    let port = port.filter(|port| !port.is_empty());
    if port.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return None;
    }
    Some((host, port.map(str::parse).transpose().ok()?))
}

impl Host {
    /// Says whether the host is an address or this machine, so that no name server decides what it means.
    pub fn is_numbered(&self) -> bool {
        match self {
            Host::V6(_) => true,
            Host::Name(name) => name == "localhost" || name.parse::<Ipv4Addr>().is_ok(),
        }
    }
}

impl Host {
    /// Says whether the host is this machine.
    pub fn is_localhost(&self) -> bool {
        match self {
            Host::V6(address) => address.to_canonical().is_loopback(),
            Host::Name(name) => name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback()),
        }
    }
}

impl Origin {
    /// Reads an origin as browsers write it, in any case. Returns `None` if the text is not one.
    pub fn parse(text: &str) -> Option<Origin> {
        let (scheme, rest) = text.split_once("://")?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let is_plain = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
        if !is_scheme || !is_plain || rest.ends_with(':') {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let Authority { host, port } = Authority::parse(rest)?;
        let port = port.or(default_port(&scheme));
        Some(Origin { scheme, authority: Authority { host, port } })
    }
}

/// Returns the port that a scheme has if none is named.
pub fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Says whether a text is RFC 3986's `reg-name`: unreserved characters, percent-encoding and sub-delimiters.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        for good in ["https://app.example.com", "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost", "http://a:80"] {
            assert!(Origin::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "*",
            "null",
            "app.example.com",
            "://a",
            "1://a",
            "https://",
            "https://:443",
            "https://a:",
            "https://a:port",
            "https://a:65536",
            "https://a:1:1",
            "https://app.example.com/",
            "https://app.example.com?x",
            "https://user@a",
            "https://*.a",
            "https://[a]",
            "https://[::1]x",
            "https://[::1",
            "https://ä",
        ] {
            assert_eq!(Origin::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn origins_are_equal_in_any_case_and_with_or_without_the_default_port() {
        for same in [
            ["http://a", "http://a:80"],
            ["https://a", "https://a:443"],
            ["https://a:0443", "https://a"],
            ["HTTPS://App.Example.COM", "https://app.example.com"],
            ["http://[::1]", "http://[0:0:0:0:0:0:0:1]:80"],
            ["http://[2001:DB8::A]:81", "http://[2001:db8::a]:81"],
        ] {
            assert_eq!(Origin::parse(same[0]), Origin::parse(same[1]), "{same:?}");
        }
        for different in [
            ["http://a", "https://a"],
            ["http://a", "http://a:443"],
            ["https://a", "https://a:80"],
            ["http://a", "http://a.b"],
            ["http://a", "http://a."],
            ["capacitor://a", "capacitor://a:80"],
        ] {
            assert_ne!(Origin::parse(different[0]), Origin::parse(different[1]), "{different:?}");
        }
    }

    #[test]
    fn an_authority_is_a_host_with_or_without_a_port() {
        let named = |name: &str, port| Some(Authority { host: Host::Name(name.into()), port });
        assert_eq!(Authority::parse("A.example"), named("a.example", None));
        assert_eq!(Authority::parse("a:8080"), named("a", Some(8080)));
        assert_eq!(Authority::parse("a:"), named("a", None));
        assert_eq!(Authority::parse("a_b~%41"), named("a_b~%41", None));
        assert_eq!(Authority::parse("[::1]:1"), Some(Authority { host: Host::V6(Ipv6Addr::LOCALHOST), port: Some(1) }));
        for bad in ["", ":80", "a b", "a/b", "u@a", "a,b:x", "a:-1", "a:+1", "a:1:2", "a:99999", "::1", "[::1", "[::1]1", "[v]", "ä"] {
            assert_eq!(Authority::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_plain_authority_is_one() {
        for plain in ["localhost", "localhost:8080", "127.0.0.1:1", "a-b.example.com:59999", "A:12345"] {
            assert!(is_plain(plain) && written(plain).is_some(), "{plain}");
        }
        for other in ["", ":80", "a:", "a:b", "a:65536", "a:99999", "a:123456", "a:1:2", "a b", "[::1]:80", "a/b", "a@b", "é"] {
            assert!(!is_plain(other), "{other}");
        }
        for slow in ["a:65535", "a:60000", "a:", "[::1]:80", "a_b"] {
            assert!(Authority::is_one(slow), "{slow}");
        }
        assert!(!["a:65536", "", ":80", "a:b", "a:1:2"].iter().any(|text| Authority::is_one(text)));
    }
}
