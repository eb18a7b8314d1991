use std::num::NonZeroUsize;

use super::*;
use crate::net::problem::DETAIL_BYTES_MAX;

const LIMITS: config::Events = config::Events {
    body_bytes_max: NonZeroUsize::new(1000).unwrap(),
    event_bytes_max: NonZeroUsize::new(100).unwrap(),
    batch_max: NonZeroUsize::new(2).unwrap(),
    dedup_window_ms: config::Milliseconds::new(1),
    dedup_entries_max: NonZeroUsize::new(1).unwrap(),
    receipts_bytes_max: NonZeroUsize::MIN,
};

fn json(members: &str) -> Result<Event, Problem> {
    structured(&format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t",{members}}}"#), true, &LIMITS).map(|parsed| parsed.event)
}

fn http(headers: &[(&'static str, &'static str)], body: &[u8]) -> Result<Request, Problem> {
    let pairs = headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(name, value);
    }
    read(&map, body, &LIMITS)
}

fn binary(headers: &[(&'static str, &'static str)], body: &[u8]) -> Result<Event, Problem> {
    let all = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    match http(&[&all[..], headers].concat(), body)? {
        Request::One(parsed) => Ok(parsed.event),
        Request::Batch(_) => panic!("one event is no batch"),
    }
}

#[test]
fn data_is_what_its_content_type_says() {
    let text = |text: &str| Body::Text(text.into());
    let value = |text: &str| Body::Json(text.into());
    for (members, data) in [
        (r#""data":{"n": 1.50}"#, Some(value(r#"{"n": 1.50}"#))),
        (r#""data":"a""#, Some(value(r#""a""#))),
        (r#""data":null"#, Some(value("null"))),
        (r#""datacontenttype":"application/json; charset=utf-8","data":null"#, Some(value("null"))),
        (r#""datacontenttype":"text/plain","data":null"#, None),
        (r#""datacontenttype":"text/plain","data":"a\nb""#, Some(text("a\nb"))),
        (r#""datacontenttype":"application/geo+json","data":"{}""#, Some(value(r#""{}""#))),
        (r#""datacontenttype":"text/json","data_base64":"WzFd""#, Some(value("[1]"))),
        (r#""datacontenttype":"text/plain","data_base64":"WzFd""#, Some(text("[1]"))),
        (r#""datacontenttype":"text/plain","data_base64":"/w==""#, Some(Body::Binary(vec![255]))),
        (r#""datacontenttype":"text/plain;charset=UTF-8","data_base64":"WzFd""#, Some(text("[1]"))),
        (r#""datacontenttype":"text/plain; charset=\"us-ascii\"","data_base64":"WzFd""#, Some(text("[1]"))),
        (r#""datacontenttype":"text/plain; charset=utf-16","data_base64":"WzFd""#, Some(Body::Binary(b"[1]".into()))),
        (r#""datacontenttype":"text/plain; charset=iso-8859-1","data_base64":"w6Q=""#, Some(Body::Binary(vec![0xC3, 0xA4]))),
        (r#""datacontenttype":"application/xml","data":"<a/>""#, Some(text("<a/>"))),
        (r#""datacontenttype":"application/xml","data_base64":"PGEvPg==""#, Some(text("<a/>"))),
        (r#""datacontenttype":"image/svg+xml","data_base64":"PGEvPg==""#, Some(text("<a/>"))),
        (r#""datacontenttype":"application/xml","data_base64":"/w==""#, Some(Body::Binary(vec![255]))),
        (r#""datacontenttype":"image/png","data_base64":"WzFd""#, Some(Body::Binary(b"[1]".into()))),
        (r#""data_base64":"WzFd""#, Some(Body::Binary(b"[1]".into()))),
        (r#""subject":"x""#, None),
    ] {
        assert_eq!(json(members).unwrap().data, data, "{members}");
    }
}

#[test]
fn bytes_whose_type_nobody_named_are_opaque_unless_a_body_is_json() {
    assert_eq!(json(r#""data_base64":"WzFd""#).unwrap().content_type, OPAQUE);
    assert_eq!(json(r#""data":1"#).unwrap().content_type, "application/json");
    let (bare, bytes) = (binary(&[], b" {\"a\":1}\n").unwrap(), binary(&[], b"{").unwrap());
    assert_eq!((bare.content_type.as_str(), bare.data), ("application/json", Some(Body::Json("{\"a\":1}".into()))));
    assert_eq!((bytes.content_type.as_str(), bytes.data), (OPAQUE, Some(Body::Binary(b"{".into()))));
    assert_eq!(binary(&[("content-type", "application/json")], b"{").unwrap_err().code, "data");
    assert_eq!(binary(&[], b"").unwrap().data, None);
}

#[test]
fn xml_is_text_in_every_mode_and_an_event_format_in_none() {
    for media_type in ["application/xml", "text/xml", "application/atom+xml; charset=utf-8"] {
        let event = binary(&[("content-type", media_type)], "<ä/>".as_bytes()).unwrap();
        assert_eq!(event.data, Some(Body::Text("<ä/>".into())), "{media_type}");
    }
    let latin = binary(&[("content-type", "application/xml")], b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><\xE4/>").unwrap();
    assert!(matches!(latin.data, Some(Body::Binary(_))));
    for media_type in ["application/cloudevents+xml", "application/cloudevents-batch+xml; charset=utf-8", "application/cloudevents"] {
        let problem = http(&[("content-type", media_type), ("ce-id", "1")], b"<event/>").unwrap_err();
        assert_eq!((problem.status.as_u16(), problem.code), (415, "event_format"), "{media_type}");
        assert!(problem.detail.contains("application/cloudevents+json"), "{}", problem.detail);
    }
}

#[test]
fn a_byte_order_mark_before_json_is_ignored() {
    let event = "\u{feff}{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}";
    assert!(matches!(http(&[("content-type", "application/cloudevents+json")], event.as_bytes()), Ok(Request::One(_))));
    let batch = format!("\u{feff}[{}]", event.trim_start_matches('\u{feff}'));
    assert!(matches!(http(&[("content-type", "application/cloudevents-batch+json")], batch.as_bytes()), Ok(Request::Batch(_))));
    let mark = "\u{feff}1".as_bytes();
    assert_eq!(binary(&[("content-type", "application/json")], mark).unwrap().data, Some(Body::Json("1".into())));
    assert_eq!(binary(&[("content-type", "text/plain")], mark).unwrap().data, Some(Body::Text("\u{feff}1".into())));
    assert_eq!(http(&[], "\u{feff}\u{feff}1".as_bytes()).unwrap_err().code, "json");
    assert_eq!(http(&[], b"\xFF\xFE{\0}\0").unwrap_err().code, "json");
}

#[test]
fn half_a_surrogate_pair_is_refused_wherever_it_stands() {
    for members in [r#""data":"\ud800""#, r#""data":{"\udc00":1}"#, r#""subject":"\ud800x""#, r#""ext":"\udfff""#, r#""\ud800":1"#] {
        let problem = json(members).unwrap_err();
        assert_eq!(problem.code, "json", "{members}");
        assert!(problem.detail.contains("half of a character"), "{members}: {}", problem.detail);
    }
    let problem = binary(&[("content-type", "application/json")], br#""\ud800""#).unwrap_err();
    assert!(problem.code == "data" && problem.detail.contains("half of a character"), "{problem:?}");
    assert!(json(r#""data":"\ud83d\ude97","subject":"\ud83d\ude97""#).is_ok());
}

#[test]
fn a_source_is_a_uri_reference_and_a_dataschema_a_uri() {
    for good in [
        "/s",
        "//host/a",
        "a",
        "urn:uuid:6e8bc430-9c3a",
        "https://[::1]/a?b=c#d",
        "mailto:me@example.com",
        "%C3%A4",
        "?",
        "#",
        "1-555-123-4567",
    ] {
        assert!(is_uri_reference(good), "{good}");
    }
    for bad in ["", "a b", " a", "ä", "{a}", "a\\b", "<a>", "\"a\"", "%", "%a", "%4g", "a#b#c", "a|b", "a^b", "a`b"] {
        assert!(!is_uri_reference(bad), "{bad}");
    }
    let schema = |value: &str| json(&format!(r#""dataschema":"{value}""#));
    for good in ["https://example.com/schema", "urn:a", "a+b-c.1:"] {
        let extensions = schema(good).unwrap().extensions;
        assert_eq!(extensions, [("dataschema".to_owned(), good.to_owned())], "policies see it");
    }
    for bad in ["", "schema", "/schema", "//a/b", ":a", "1a:b", "https://a b"] {
        assert_eq!(schema(bad).unwrap_err().code, "attribute", "{bad}");
    }
    assert_eq!(json(r#""dataschema":7"#).unwrap_err().code, "attribute");
    assert_eq!(json(r#""dataschema":null"#).unwrap().extensions, []);
    assert_eq!(binary(&[("ce-dataschema", "urn:a")], b"").unwrap().extensions, [("dataschema".to_owned(), "urn:a".to_owned())]);
    assert_eq!(binary(&[("ce-dataschema", "a")], b"").unwrap_err().code, "attribute");
}

#[test]
fn a_subject_is_not_empty_and_a_time_is_rfc_3339() {
    assert_eq!(json(r#""subject":"""#).unwrap_err().code, "attribute");
    assert_eq!(binary(&[("ce-subject", "")], b"").unwrap_err().code, "attribute");
    assert_eq!(json(r#""subject":null"#).unwrap().subject, None);
    for (time, is_taken) in [
        ("9999-12-31T23:59:59Z", true),
        ("2018-04-05t17:31:00.123456789012z", true),
        ("2016-12-31T23:59:60Z", true),
        ("2018-W14-4T17:31:00Z", false),
        ("2018-04-05T17:31:00", false),
        ("2018-04-05T24:00:00Z", false),
        ("", false),
    ] {
        match json(&format!(r#""time":"{time}""#)) {
            Ok(event) => assert!(is_taken && event.time.as_deref() == Some(time), "{time}"),
            Err(problem) => assert!(!is_taken && problem.code == "attribute" && problem.detail.contains("`time`"), "{time}"),
        }
    }
}

#[test]
fn a_headers_value_leaves_its_quotes_and_one_round_of_percent_encoding() {
    for (header, value) in [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("Euro%20%e2%82%ac", "Euro €"),
        ("%61b", "ab"),
        ("100%2525", "100%25"),
        ("\"Euro %E2%82%AC\"", "Euro €"),
        (r#""say \"hi\" \\ 50%25""#, r#"say "hi" \ 50%"#),
        ("\"", "\""),
        ("a\"b\"", "a\"b\""),
    ] {
        assert_eq!(binary(&[("ce-subject", header)], b"").unwrap().subject.unwrap(), value, "{header}");
    }
    for header in ["%C0%A0", "%FF", "\"%ff\""] {
        assert_eq!(binary(&[("ce-subject", header)], b"").unwrap_err().code, "attribute", "{header}");
    }
}

#[test]
fn an_extension_has_a_plain_name_one_value_and_no_control_characters() {
    let extensions = json(r#""a":"x","b2":true,"c":-7,"gone":null,"d":"""#).unwrap().extensions;
    let expected = [("a", "x"), ("b2", "true"), ("c", "-7"), ("d", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(extensions, expected);
    for bad in [r#""A":"x""#, r#""a_b":"x""#, r#""":"x""#, r#""a":1.5"#, r#""a":2147483648"#, r#""a":[]"#, r#""a":{}"#, r#""a":"\n""#] {
        assert_eq!(json(bad).unwrap_err().code, "attribute", "{bad}");
    }
    let bad: [&[(&str, &str)]; 6] = [
        &[("ce-a", "x"), ("ce-a", "y")],
        &[("ce-id", "2")],
        &[("ce-a-b", "x")],
        &[("ce-datacontenttype", "text/plain")],
        &[("ce-data", "x")],
        &[("ce-a", "%0A")],
    ];
    for headers in bad {
        assert_eq!(binary(headers, b"").unwrap_err().code, "attribute", "{headers:?}");
    }
}

#[test]
fn the_media_type_says_the_mode_in_any_case_and_with_any_parameters() {
    let event = br#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
    for media_type in ["application/cloudevents+json", "Application/CloudEvents+JSON;charset=UTF-8", "application/json", "text/json"] {
        assert!(matches!(http(&[("content-type", media_type)], event), Ok(Request::One(_))), "{media_type}");
    }
    let batch = http(&[("content-type", "application/cloudevents-batch+json ; charset=utf-8")], b"[]");
    assert!(matches!(batch, Ok(Request::Batch(items)) if items.is_empty()));
    // The mode is structured although there are headers too: a gateway may have added them.
    assert!(http(&[("content-type", "application/cloudevents+json"), ("ce-id", "2")], event).is_ok());
    assert!(matches!(http(&[], event), Ok(Request::One(_))));
}

#[test]
fn the_short_form_needs_a_type_and_nothing_else_until_it_says_a_specversion() {
    let short = |text: &str| structured(text, false, &LIMITS);
    let parsed = short(r#"{"type":"t"}"#).unwrap();
    assert!(!parsed.id_given && !parsed.event.id.is_empty());
    assert_eq!(parsed.event.source, SHORT_FORM_SOURCE);
    assert!(short(r#"{"type":"t","id":"7"}"#).unwrap().id_given);
    for text in ["{}", r#"{"type":null}"#, r#"{"type":""}"#, r#"{"type":"t","id":""}"#, r#"{"type":"t","specversion":"1.0","id":"1"}"#] {
        assert_eq!(short(text).unwrap_err().code, "missing_attribute", "{text}");
    }
}

#[test]
fn a_producer_is_not_told_back_all_that_it_sent() {
    let long = "\u{1}".repeat(DETAIL_BYTES_MAX);
    let version = serde_json::json!({"specversion": long, "id": "1", "source": "/s", "type": "t"}).to_string();
    for text in [version, format!(r#"{{"type":"t","{}":1.5}}"#, "x".repeat(DETAIL_BYTES_MAX))] {
        assert_eq!(structured(&text, false, &LIMITS).unwrap_err().detail.len(), DETAIL_BYTES_MAX, "{text}");
    }
}

#[test]
fn an_attribute_is_bounded_and_printable() {
    let long = "x".repeat(ATTRIBUTE_BYTES_MAX + 1);
    for name in ["subject", "time", "datacontenttype", "extension"] {
        assert_eq!(json(&format!(r#""{name}":"{long}""#)).unwrap_err().code, "attribute", "{name}");
    }
    assert_eq!(json(r#""subject":"a\u0000""#).unwrap_err().code, "attribute");
    assert_eq!(json(r#""time":"yesterday""#).unwrap_err().code, "attribute");
    assert_eq!(json(r#""source":"/a b""#).unwrap_err().code, "attribute");
    assert_eq!(json(&format!(r#""{long}":"x""#)).unwrap_err().code, "attribute");
    let many: Vec<String> = (0..=EXTENSIONS_MAX).map(|number| format!(r#""x{number}":1"#)).collect();
    assert_eq!(json(&many.join(",")).unwrap_err().code, "attribute");
}
