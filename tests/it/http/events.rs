//! Publishing: every form that CloudEvents 1.0 gives an event over HTTP, the short form, and messages to one user.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, SOON, TestServer, wat};

mod direct;
mod formats;
mod hanging_up;

const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json; charset=UTF-8");
const BATCHED: (&str, &str) = ("content-type", "application/cloudevents-batch+json; charset=UTF-8");

/// What the examples of the JSON format have in common, as the policy sees it.
const SPECIFIED: &str = "/mycontext\ncom.example.someevent\n-\n2018-04-05T17:31:00Z";
const EXTENSIONS: &str = "comexampleextension1=value\ncomexampleothervalue=5";

/// The six examples of section 3.2 of the JSON format: the event, what else its attributes say, and its data in a frame.
fn specified() -> [(&'static str, String, Message); 6] {
    let attributes = |id: &str, content_type: &str| format!("{id}\n{SPECIFIED}\n{content_type}\n{EXTENSIONS}");
    [
        (
            r#"{
                "specversion" : "1.0",
                "type" : "com.example.someevent",
                "source" : "/mycontext",
                "id" : "A234-1234-1234",
                "time" : "2018-04-05T17:31:00Z",
                "comexampleextension1" : "value",
                "comexampleothervalue" : 5,
                "datacontenttype" : "application/vnd.apache.thrift.binary",
                "data_base64" : "AAH+/w=="
            }"#,
            attributes("A234-1234-1234", "application/vnd.apache.thrift.binary"),
            Message::binary(vec![0, 1, 254, 255]),
        ),
        (
            r#"{
                "specversion" : "1.0",
                "type" : "com.example.someevent",
                "source" : "/mycontext",
                "id" : "B234-1234-1234",
                "time" : "2018-04-05T17:31:00Z",
                "comexampleextension1" : "value",
                "comexampleothervalue" : 5,
                "unsetextension": null,
                "datacontenttype" : "application/xml",
                "data" : "<much wow=\"xml\"/>"
            }"#,
            attributes("B234-1234-1234", "application/xml"),
            Message::text("<much wow=\"xml\"/>"),
        ),
        (
            r#"{
                "specversion" : "1.0",
                "type" : "com.example.someevent",
                "source" : "/mycontext",
                "subject": null,
                "id" : "C234-1234-1234",
                "time" : "2018-04-05T17:31:00Z",
                "comexampleextension1" : "value",
                "comexampleothervalue" : 5,
                "datacontenttype" : "application/json",
                "data" : {
                    "appinfoA" : "abc",
                    "appinfoB" : 123,
                    "appinfoC" : true
                }
            }"#,
            attributes("C234-1234-1234", "application/json"),
            Message::text(
                r#"{
                    "appinfoA" : "abc",
                    "appinfoB" : 123,
                    "appinfoC" : true
                }"#,
            ),
        ),
        (
            r#"{
                "specversion" : "1.0",
                "type" : "com.example.someevent",
                "source" : "/mycontext",
                "subject": null,
                "id" : "C234-1234-1234",
                "time" : "2018-04-05T17:31:00Z",
                "comexampleextension1" : "value",
                "comexampleothervalue" : 5,
                "datacontenttype" : "application/json",
                "data" : 1.5
            }"#,
            attributes("C234-1234-1234", "application/json"),
            Message::text("1.5"),
        ),
        (
            r#"{
                "specversion" : "1.0",
                "type" : "com.example.someevent",
                "source" : "/mycontext",
                "subject": null,
                "id" : "D234-1234-1234",
                "time" : "2018-04-05T17:31:00Z",
                "comexampleextension1" : "value",
                "comexampleothervalue" : 5,
                "data" : "I'm just a string"
            }"#,
            attributes("D234-1234-1234", "application/json"),
            Message::text("\"I'm just a string\""),
        ),
        (
            r#"{
                "specversion" : "1.0",
                "type" : "com.example.someevent",
                "source" : "/mycontext",
                "id" : "D234-1234-1234",
                "data_base64" : "eyAieHl6IjogMTIzIH0="
            }"#,
            "D234-1234-1234\n/mycontext\ncom.example.someevent\n-\n-\napplication/octet-stream".to_owned(),
            Message::binary(br#"{ "xyz": 123 }"#.to_vec()),
        ),
    ]
}

/// A server whose only policy forwards every event: its attributes to one client, its data to another.
struct Witness {
    server: TestServer,
    attributes: Client,
    data: Client,
    _plugins: tempfile::TempDir,
}

impl Witness {
    async fn start() -> Witness {
        Witness::with("").await
    }

    async fn with(events: &str) -> Witness {
        let plugins = tempfile::tempdir().unwrap();
        std::fs::write(plugins.path().join("witness.wasm"), wat::witness()).unwrap();
        let server = TestServer::with(&format!("[plugins]\ndir = {:?}\n[events]\n{events}", plugins.path())).await;
        let (attributes, data) = (server.connect("attributes").await, server.connect("data").await);
        Witness { server, attributes, data, _plugins: plugins }
    }

    /// The event arrives with these attributes and this data.
    async fn sees(&mut self, attributes: &str, data: &Message) {
        assert_eq!(self.attributes.text().await, attributes);
        assert_eq!(self.data.message().await, *data, "{attributes}");
    }

    async fn publish(&self, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        request(&self.server, Method::POST, "/events", headers, body).await
    }
}

/// A status, a media type and a JSON body.
#[derive(Debug)]
struct Answer {
    status: u16,
    media_type: String,
    body: Value,
}

impl Answer {
    fn accepted(self) -> Value {
        self.batch(202)
    }

    /// The answer to a batch, with this status.
    fn batch(self, status: u16) -> Value {
        assert_eq!((self.status, self.media_type.as_str()), (status, "application/json"), "{}", self.body);
        self.body
    }

    fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!(self.media_type, "application/problem+json");
        assert_eq!((self.body["status"].as_u64(), &self.body["type"]), (Some(status.into()), &json!("about:blank")));
        assert!(self.body["title"].is_string() && !self.body["detail"].as_str().unwrap().is_empty(), "{}", self.body);
    }
}

async fn request(server: &TestServer, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
    let mut request = server.http.request(method, server.url(path)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    let media_type = response.headers().get("content-type").unwrap().to_str().unwrap().to_owned();
    Answer { status: response.status().as_u16(), media_type, body: response.json().await.unwrap() }
}

#[tokio::test]
async fn numbers_reach_the_socket_with_all_their_digits() {
    const NUMBERS: &str =
        r#"{"large":123456789012345678901234567890,"small":0.1000000000000000055511151231257827,"zero":-0.0,"power":1E400}"#;
    let mut witness = Witness::start().await;
    let event = format!(r#"{{"specversion":"1.0","type":"a","source":"/s","id":"1","data":{NUMBERS}}}"#);
    witness.publish(&[STRUCTURED], event).await.accepted();
    assert_eq!(witness.data.text().await, NUMBERS);
    witness.publish(&[("content-type", "application/json")], format!(r#"{{"type":"a","data":{NUMBERS}}}"#)).await.accepted();
    assert_eq!(witness.data.text().await, NUMBERS);
    request(&witness.server, Method::POST, "/users/data/messages", &[], NUMBERS).await.accepted();
    assert_eq!(witness.data.text().await, NUMBERS);
    let mut v1 = witness.server.connect_v1("data").await;
    assert_eq!(v1.json().await["type"], "hello");
    request(&witness.server, Method::POST, "/users/data/messages", &[], NUMBERS).await.accepted();
    assert!(v1.text().await.ends_with(&format!(r#""type":"message","data":{NUMBERS}}}"#)));
}

/// Headers and a body, and the status and the code that they get.
type Case<'a> = (Vec<(&'a str, &'a str)>, Vec<u8>, u16, &'a str);

#[tokio::test]
async fn each_bad_event_is_refused_by_name_and_the_neighbour_reads_on() {
    let mut witness = Witness::with("body_bytes_max = 4096\nevent_bytes_max = 1024\nbatch_max = 3").await;
    let event = |members: &str| format!(r#"{{"specversion":"1.0","type":"a","source":"/s","id":"1"{members}}}"#).into_bytes();
    let plain = [("content-type", "application/json")];
    let named = [("ce-specversion", "1.0"), ("ce-type", "a"), ("ce-source", "/s"), ("ce-id", "1")];
    let without = |name: &str| named.into_iter().filter(|(header, _)| *header != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| [&named[..], &[(name, value)]].concat();
    let long = "x".repeat(1025);
    let cases: Vec<Case<'_>> = vec![
        (vec![STRUCTURED], b"{".into(), 400, "json"),
        (vec![STRUCTURED], b"".into(), 400, "json"),
        (vec![STRUCTURED], b"[]".into(), 400, "json"),
        (vec![STRUCTURED], b"{\"type\":\"\xff\"}".into(), 400, "json"),
        (plain.into(), b"nonsense".into(), 400, "json"),
        (plain.into(), b"\xff\xfe".into(), 400, "json"),
        (plain.into(), br#"{"data":{}}"#.into(), 400, "missing_attribute"),
        (plain.into(), br#"{"type":7}"#.into(), 400, "attribute"),
        (vec![STRUCTURED], br#"{"specversion":"1.0","source":"/s","id":"1"}"#.into(), 400, "missing_attribute"),
        (vec![STRUCTURED], br#"{"specversion":"1.0","type":"a","source":"/s"}"#.into(), 400, "missing_attribute"),
        (vec![STRUCTURED], br#"{"specversion":"1.0","type":"a","id":"1"}"#.into(), 400, "missing_attribute"),
        (vec![STRUCTURED], br#"{"type":"a","source":"/s","id":"1"}"#.into(), 400, "missing_attribute"),
        (vec![STRUCTURED], br#"{"specversion":"0.3","type":"a","source":"/s","id":"1"}"#.into(), 400, "specversion"),
        (plain.into(), br#"{"specversion":"0.3","type":"a","source":"/s","id":"1"}"#.into(), 400, "specversion"),
        (vec![STRUCTURED], event(r#","data":1,"data_base64":"AA==""#), 400, "data"),
        (vec![STRUCTURED], event(r#","data_base64":"A?==""#), 400, "data"),
        (vec![STRUCTURED], event(r#","datacontenttype":"application/json","data_base64":"AA==""#), 400, "data"),
        (vec![STRUCTURED], event(r#","data_base64":7"#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"tomorrow""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"2018-04-05""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"2018-W14-4T17:31:00Z""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"2018-04-05T17:31:00""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"2018-04-05T17:31:00,5Z""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"20180405T173100Z""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","time":"2018-04-05T24:00:00Z""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","subject":"""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","dataschema":"""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","dataschema":"/relative""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","dataschema":7"#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","data":"\ud800""#), 400, "json"),
        (vec![STRUCTURED], event(r#","subject":"\udc00""#), 400, "json"),
        (plain.into(), br#"{"type":"\ud83d"}"#.into(), 400, "json"),
        (vec![STRUCTURED], event(r#","source":"not a uri""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","no_such":"x""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","Upper":"x""#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","nested":{}"#), 400, "attribute"),
        (vec![STRUCTURED], event(r#","real":1.5"#), 400, "attribute"),
        (vec![STRUCTURED], event(&format!(r#","long":"{long}""#)), 400, "attribute"),
        (vec![STRUCTURED], event(&format!(r#","data":"{long}""#)), 413, "event_too_large"),
        (vec![STRUCTURED], event(&format!(r#","data":"{}""#, "x".repeat(4096))), 413, "body_too_large"),
        (vec![BATCHED], b"{}".into(), 400, "json"),
        (vec![BATCHED], b"[1,2,3,4]".into(), 413, "batch_too_large"),
        (vec![("content-type", "text/plain")], b"hello".into(), 415, "media_type"),
        (vec![("content-type", "application/x-www-form-urlencoded")], b"type=a".into(), 415, "media_type"),
        (vec![("content-type", "application/cloudevents+avro")], b"Obj".into(), 415, "event_format"),
        (vec![("content-type", "application/cloudevents+xml")], b"<event/>".into(), 415, "event_format"),
        (vec![("content-type", "application/cloudevents-batch+protobuf")], b"".into(), 415, "event_format"),
        (without("ce-specversion"), b"".into(), 400, "missing_attribute"),
        (without("ce-type"), b"".into(), 400, "missing_attribute"),
        (without("ce-source"), b"".into(), 400, "missing_attribute"),
        (without("ce-id"), b"".into(), 400, "missing_attribute"),
        (with("content-type", "application/json"), b"{".into(), 400, "data"),
        (with("content-type", "application/json"), b"\xff".into(), 400, "data"),
        (with("content-type", "application/json"), br#""\ud800""#.into(), 400, "data"),
        (with("ce-subject", ""), b"".into(), 400, "attribute"),
        (with("ce-dataschema", "relative"), b"".into(), 400, "attribute"),
        (with("content-type", "text/plain"), long.clone().into_bytes(), 413, "event_too_large"),
        (with("ce-time", "noon"), b"".into(), 400, "attribute"),
        (with("ce-no-such", "x"), b"".into(), 400, "attribute"),
        (with("ce-subject", "%FF"), b"".into(), 400, "attribute"),
        (with("ce-id", "2"), b"".into(), 400, "attribute"),
    ];
    let count = cases.len();
    for (number, (headers, body, status, code)) in cases.into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        let answer = witness.publish(&headers, body).await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (status, Some(code)), "{headers:?} {shown}: {}", answer.body);
        answer.is_problem(status, code);
        let receipt = witness.server.publish("neighbour", json!(number)).await;
        assert_eq!(receipt["posted"], 2);
        assert_eq!(witness.data.text().await, number.to_string());
    }
    let served = witness.server.metric(r#"signalpost_events_total{outcome="routed"}"#).await;
    assert_eq!(served, count as f64, "no bad event was published");
    assert_eq!(witness.server.metric(r#"signalpost_http_problems_total{code="specversion"}"#).await, 2.0);
}

#[tokio::test]
async fn the_same_source_and_id_are_published_once() {
    let mut witness = Witness::start().await;
    let event = |source: &str, id: &str| json!({ "specversion": "1.0", "type": "a", "source": source, "id": id, "data": [source, id] });
    let mut receipts = Vec::new();
    for (source, id) in [("/a", "1"), ("/a", "1"), ("/b", "1"), ("/a", "2"), ("/b", "1")] {
        receipts.push(witness.publish(&[STRUCTURED], event(source, id).to_string()).await.accepted());
    }
    // The identity is that of the event, not of the form in which it comes.
    let binary = [("ce-specversion", "1.0"), ("ce-type", "a"), ("ce-source", "/a"), ("ce-id", "2")];
    receipts.push(witness.publish(&binary, "").await.accepted());
    let duplicates: Vec<bool> = receipts.iter().map(|receipt| receipt["duplicate"].as_bool().unwrap()).collect();
    assert_eq!(duplicates, [false, true, false, false, true, true]);
    assert_eq!((&receipts[1]["id"], &receipts[1]["source"], &receipts[1]["posted"]), (&json!("1"), &json!("/a"), &json!(0)));
    assert_eq!(receipts[1]["policies"], json!([]), "no policy is asked again");
    for expected in [r#"["/a","1"]"#, r#"["/b","1"]"#, r#"["/a","2"]"#] {
        assert_eq!(witness.data.text().await, expected);
    }
    witness.data.quiet().await;
}

#[tokio::test]
async fn events_without_an_id_are_never_duplicates() {
    let mut witness = Witness::start().await;
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3 {
        let receipt = witness.server.publish("a", json!("same")).await;
        assert_eq!(receipt["duplicate"], false);
        ids.insert(receipt["id"].to_string());
        assert_eq!(witness.data.text().await, "\"same\"");
    }
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn a_type_that_no_policy_wants_is_accepted_with_a_note() {
    let server = TestServer::start().await;
    let receipt = server.publish("billing.invoice.paid", json!({})).await;
    assert_eq!(receipt["note"], "no policy wanted this event type");
    assert_eq!((&receipt["policies"], &receipt["recipients"], &receipt["posted"]), (&json!([]), &json!(0), &json!(0)));
    assert_eq!(server.metric(r#"signalpost_events_total{outcome="unwanted"}"#).await, 1.0);
}

#[tokio::test]
async fn a_wrong_address_or_method_is_a_problem_document() {
    let server = TestServer::start().await;
    for (method, path) in [(Method::GET, "/nothing"), (Method::POST, "/event"), (Method::POST, "/users/1/messages/2"), (Method::GET, "/")] {
        request(&server, method, path, &[], "").await.is_problem(404, "not_found");
    }
    for (method, path) in [(Method::GET, "/events"), (Method::PUT, "/events"), (Method::DELETE, "/policies"), (Method::POST, "/users/1")] {
        request(&server, method, path, &[], "").await.is_problem(405, "method_not_allowed");
    }
    let response = server.http.get(server.url("/events")).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST");
    for path in ["/users//messages", "/users/1/2/messages", "/users/1/messages/", "/events/", "/eventsx", "//events"] {
        request(&server, Method::POST, path, &[], "1").await.is_problem(404, "not_found");
    }
    for (path, method) in ["/events", "/users/1/messages"].into_iter().flat_map(|path| [(path, "GET"), (path, "DELETE"), (path, "OPTIONS")])
    {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let response = server.http.request(method.clone(), server.url(path)).send().await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["allow"]), (405, &"POST".parse().unwrap()), "{method} {path}");
    }
    let outside = server.http.get(format!("http://{}/elsewhere", server.address)).send().await.unwrap();
    assert_eq!((outside.status().as_u16(), outside.json::<Value>().await.unwrap()["code"].clone()), (404, json!("not_found")));
}

#[tokio::test]
async fn a_path_that_is_no_text_is_a_problem_document_too() {
    let server = TestServer::start().await;
    for (method, path) in [(Method::GET, "/users/%FF"), (Method::GET, "/ws/%FF"), (Method::POST, "/users/%FF/messages")] {
        let response = server.http.request(method, server.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 400, "{path}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "user_id", "{path}");
    }
}

#[tokio::test]
async fn a_message_with_an_idempotency_key_is_sent_once_to_each_user() {
    let server = TestServer::start().await;
    let (mut one, mut other) = (server.connect("1").await, server.connect("2").await);
    let tell = async |user: &str, key: &'static str, body: Value| {
        let request = server.http.post(server.url(&format!("/users/{user}/messages"))).header("Idempotency-Key", key).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, first) = tell("1", "k-1", json!(1)).await;
    assert_eq!((status, &first["duplicate"], &first["posted"], &first["id"]), (202, &json!(false), &json!(1), &json!("k-1")));
    let (status, again) = tell("1", "\"k-1\"", json!(1)).await;
    assert_eq!((status, &again["duplicate"], &again["posted"]), (202, &json!(true), &json!(0)), "quotes are the header's");
    assert_eq!(tell("2", "k-1", json!(2)).await.1["posted"], 1, "another user's key is another one");
    assert_eq!(tell("1", "k-2", json!(3)).await.1["posted"], 1);
    assert_eq!((one.text().await, one.text().await, other.text().await), ("1".into(), "3".into(), "2".into()));
    for wrong in ["", "\"\""] {
        let (status, problem) = tell("1", wrong, json!(1)).await;
        assert_eq!((status, &problem["code"]), (400, &json!("idempotency_key")), "{wrong:?}");
    }
}

#[tokio::test]
async fn an_event_that_every_policy_refused_may_come_again_with_its_id() {
    let server = TestServer::start().await;
    let event = json!({ "type": "pooling.match.found", "id": "7", "source": "/me", "data": {} });
    for _ in 0..2 {
        let receipt = server.post("/events", event.clone()).await;
        assert_eq!((&receipt["duplicate"], &receipt["policies"][0]["outcome"]), (&json!(false), &json!("refused")), "{receipt}");
    }
    let data = json!({ "request_id": 42, "rider_id": 1, "driver_id": 2, "pool_id": "p" });
    let good = json!({ "type": "pooling.match.found", "id": "7", "source": "/me", "data": data });
    assert_eq!(server.post("/events", good.clone()).await["policies"][0]["outcome"], "routed");
    assert_eq!(server.post("/events", good).await["duplicate"], true);
}

#[tokio::test]
async fn a_text_to_one_user_is_a_bare_frame_and_a_string_in_an_envelope() {
    let server = TestServer::start().await;
    let mut plain = server.connect("1001").await;
    let mut enveloped = server.connect_v1("1001").await;
    enveloped.json().await;
    let send = async |content_type: &str, body: &[u8]| {
        let request = server.http.post(server.url("/users/1001/messages")).header("content-type", content_type);
        let answer = request.body(body.to_vec()).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["code"].clone())
    };
    let accepted = (202, Value::Null);
    for (content_type, text) in [
        ("text/plain", "Your driver is here"),
        ("Text/Plain; charset=\"UTF-8\"", "Gr\u{fc}\u{df}e \"quoted\"\nsecond line"),
        ("text/plain", r#"{"type":"looks like JSON"}"#),
        ("text/plain", ""),
        ("text/plain", "\u{feff} a mark and blanks stay "),
    ] {
        assert_eq!(send(content_type, text.as_bytes()).await, accepted, "{text}");
        assert_eq!(plain.text().await, text);
        let envelope = enveloped.json().await;
        assert_eq!((&envelope["type"], &envelope["data"]), (&json!("message"), &json!(text)));
    }
    // Any other type is JSON, as before.
    for content_type in ["application/json", "text/plainer", "application/x-www-form-urlencoded"] {
        assert_eq!(send(content_type, b" \"quoted\" ").await, accepted, "{content_type}");
        assert_eq!(plain.text().await, "\"quoted\"");
        assert_eq!(enveloped.json().await["data"], "quoted");
        assert_eq!(send(content_type, b"bare").await, (400, json!("json")), "{content_type}");
    }
    for (content_type, bytes) in [("text/plain", &b"\xff"[..]), ("text/plain; charset=latin1", b"x")] {
        assert_eq!(send(content_type, bytes).await, (400, json!("text")), "{content_type}");
    }
    plain.quiet().await;
}

#[tokio::test]
async fn the_time_of_an_accepted_request_is_measured_and_the_process_tells_its_figures() {
    let server = TestServer::start().await;
    server.post("/users/1/messages", json!("x")).await;
    server.publish("pooling.trip.started", json!({})).await;
    let refused = server.http.post(server.url("/events")).body("{").send().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert_eq!(server.metric("signalpost_publish_seconds_count").await, 2.0);
    assert!(server.metric("process_resident_memory_bytes").await > 1e6);
    assert_eq!(server.metric(concat!("signalpost_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")).await, 1.0);
}
