//! The opening handshake of RFC 6455, section 4.2: what the request must have, and what the session learns from it.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use http::header::{
    CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};

use crate::config::Sockets;
use crate::net::problem::Problem;
use crate::net::websocket;

/// Bytes of a client's key.
const KEY_BYTES: usize = 16;

/// Reads the key of any client that encodes 16 bytes, also if the bits that its last letter leaves over are not zero.
const KEY_ENCODING: GeneralPurpose = GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// A request that may become a session.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    pub subprotocol: Option<&'static str>,
}

impl Handshake {
    /// Reads a request for a WebSocket, which may speak this subprotocol.
    ///
    /// # Errors
    /// What the request lacks.
    pub fn read<B>(request: &Request<B>, subprotocol: &'static str) -> Result<Handshake, Problem> {
        let headers = request.headers();
        let names = |name, token| tokens(headers, name).any(|part| part.eq_ignore_ascii_case(token));
        let upgrades = names(UPGRADE, "websocket") && names(CONNECTION, "upgrade");
        if request.method() != Method::GET || request.version() < Version::HTTP_11 || !upgrades {
            return Err(Problem::new(
                StatusCode::UPGRADE_REQUIRED,
                "websocket_required",
                "this is a WebSocket address: connect with a WebSocket client, which sends `Connection: Upgrade` and `Upgrade: websocket` \
                 over HTTP/1.1",
            ));
        }
        if only(headers, SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
            let detail = "send one Sec-WebSocket-Version, with the value 13";
            return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_version", detail));
        }
        let is_key = |key: &&HeaderValue| KEY_ENCODING.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == KEY_BYTES);
        let Some(key) = only(headers, SEC_WEBSOCKET_KEY).filter(is_key) else {
            let detail = "send one Sec-WebSocket-Key, of 16 bytes in base64";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "websocket_key", detail));
        };
        // Case-sensitive: the selected subprotocol must be exactly one that the client offered (RFC 6455, section 4.1).
        let subprotocol = tokens(headers, SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == subprotocol).then_some(subprotocol);
        Ok(Handshake { accept: websocket::accept_key(key.as_bytes()), subprotocol })
    }

    /// Makes the 101 that turns the connection into a WebSocket.
    pub fn response<B: Default>(&self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(subprotocol) = self.subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
        }
        response
    }
}

/// Returns the session attributes in a query string: those that the configuration names; of each the first.
///
/// # Errors
/// A value is over its limit.
pub fn attributes(query: &str, sockets: &Sockets) -> Result<Vec<(String, String)>, Problem> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let is_wanted = sockets.attributes.iter().any(|known| *known == name) && !attributes.iter().any(|(seen, _)| *seen == name);
        if !is_wanted {
            continue;
        }
        if value.len() > sockets.attribute_bytes_max.get() {
            let detail = format!("the attribute {name} has {} bytes, over the limit of {}", value.len(), sockets.attribute_bytes_max.get());
            return Err(Problem::new(StatusCode::BAD_REQUEST, "attribute_too_long", detail));
        }
        attributes.push((name.into_owned(), value.into_owned()));
    }
    Ok(attributes)
}

/// Returns the parts of a comma-separated header.
fn tokens(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// Returns the value of a header that is there once.
fn only(headers: &HeaderMap, name: http::HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::session::protocol::V1;

    /// Returns the request of RFC 6455, section 1.3, with these headers over it; an empty value removes one.
    fn request(changes: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::new(());
        let headers = request.headers_mut();
        let whole = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in whole.iter().chain(changes) {
            headers.remove(*name);
            if !value.is_empty() {
                headers.insert(*name, HeaderValue::from_static(value));
            }
        }
        request
    }

    fn read(changes: &[(&'static str, &'static str)]) -> Result<Handshake, (u16, &'static str)> {
        refused(&request(changes))
    }

    fn refused(request: &Request<()>) -> Result<Handshake, (u16, &'static str)> {
        Handshake::read(request, V1).map_err(|problem| (problem.status.as_u16(), problem.code))
    }

    fn sockets() -> Sockets {
        Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.sockets
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_the_rfc_says() {
        let response = read(&[]).unwrap().response::<()>();
        assert_eq!(response.status(), 101);
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("upgrade"), Some("websocket"));
        assert_eq!(header("connection"), Some("Upgrade"));
        assert_eq!(header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(header("sec-websocket-protocol"), None);
    }

    #[test]
    fn tokens_are_found_in_any_case_and_among_others() {
        let mut proxied = request(&[("connection", "keep-alive,  UPGRADE"), ("upgrade", "h2c")]);
        proxied.headers_mut().append("upgrade", HeaderValue::from_static("WebSocket"));
        assert!(Handshake::read(&proxied, V1).is_ok());
        assert_eq!(read(&[("connection", "upgraded")]).unwrap_err(), (426, "websocket_required"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let required = (426, "websocket_required");
        assert_eq!(read(&[("connection", "")]).unwrap_err(), required);
        assert_eq!(read(&[("upgrade", "")]).unwrap_err(), required);
        assert_eq!(read(&[("upgrade", "h2c")]).unwrap_err(), required);
        assert_eq!(read(&[("sec-websocket-version", "")]).unwrap_err(), (426, "websocket_version"));
        assert_eq!(read(&[("sec-websocket-version", "8")]).unwrap_err(), (426, "websocket_version"));
        let mut post = request(&[]);
        *post.method_mut() = Method::POST;
        assert_eq!(refused(&post).unwrap_err(), required);
        let mut old = request(&[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(refused(&old).unwrap_err(), required);
    }

    #[test]
    fn a_key_is_16_bytes_in_base64_and_there_once() {
        for bad in [
            "",
            "dGhlIHNhbXBsZQ==",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZSE=",
            "dGhlIHNhbXBsZSBub25jZSEh",
            "dGhlIHNhbXBsZSBub25jZ===",
            "dGhlIHNhbXBsZSBub25-_w==",
            "dGhlIHNhbXBsZSBub25j Q==",
            "????????????????????????",
        ] {
            assert_eq!(read(&[("sec-websocket-key", bad)]).unwrap_err(), (400, "websocket_key"), "{bad}");
        }
        assert!(read(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZR==")]).is_ok(), "bits that are left over don't matter");
        let mut two = request(&[]);
        two.headers_mut().append("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(refused(&two).unwrap_err(), (400, "websocket_key"));
        let mut two = request(&[]);
        two.headers_mut().append("sec-websocket-version", HeaderValue::from_static("13"));
        assert_eq!(refused(&two).unwrap_err(), (426, "websocket_version"));
    }

    #[test]
    fn a_subprotocol_is_selected_by_its_exact_name() {
        let selected = |offer| read(&[("sec-websocket-protocol", offer)]).unwrap().subprotocol;
        assert_eq!(selected("chat, signalpost.v1"), Some(V1));
        assert_eq!(selected("signalpost.v1,signalpost.v2"), Some(V1));
        for offer in ["", "chat", "signalpost.v2", "signalpost.v10", "SIGNALPOST.V1"] {
            assert_eq!(selected(offer), None, "{offer}");
        }
        let response = read(&[("sec-websocket-protocol", "signalpost.v1")]).unwrap().response::<()>();
        assert_eq!(response.headers()["sec-websocket-protocol"], V1);
    }

    #[test]
    fn attributes_are_the_configured_names_the_first_of_each_decoded() {
        let read = |query: &str| attributes(query, &sockets()).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read(""), []);
        assert_eq!(read("&&=&x=1&Locale=de&user=1"), []);
        assert_eq!(read("locale=de&format=compact&locale=fr"), [pair("locale", "de"), pair("format", "compact")]);
        assert_eq!(read("format&locale=a=b"), [pair("format", ""), pair("locale", "a=b")]);
        assert_eq!(read("locale=%C3%A9+%2B%26"), [pair("locale", "é +&")]);
        assert_eq!(read("%6Cocale=de&locale=fr"), [pair("locale", "de")], "names are decoded too");
        assert_eq!(read("locale=%FF%"), [pair("locale", "\u{FFFD}%")]);
    }

    #[test]
    fn an_attribute_is_measured_in_bytes_after_decoding() {
        let sockets = sockets();
        let query = |times: usize| format!("x={}&locale={}", "y".repeat(1000), "%C3%A9".repeat(times));
        assert_eq!(attributes(&query(32), &sockets).unwrap()[0].1.len(), sockets.attribute_bytes_max.get());
        let problem = attributes(&query(33), &sockets).unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.code), (400, "attribute_too_long"));
    }
}
