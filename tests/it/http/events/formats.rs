use super::*;

#[tokio::test]
async fn the_examples_of_the_json_format_are_taken_in_structured_mode() {
    let mut witness = Witness::with("dedup_window_ms = 0").await;
    for (event, attributes, data) in specified() {
        let receipt = witness.publish(&[STRUCTURED], event).await.accepted();
        assert_eq!(receipt["id"], *attributes.lines().next().unwrap());
        assert_eq!((&receipt["source"], &receipt["duplicate"], &receipt["posted"]), (&json!("/mycontext"), &json!(false), &json!(2)));
        witness.sees(&attributes, &data).await;
    }
}

#[tokio::test]
async fn the_examples_of_the_json_format_are_taken_in_a_batch() {
    let mut witness = Witness::with("dedup_window_ms = 0").await;
    let events: Vec<&str> = specified().into_iter().map(|(event, ..)| event).collect();
    let receipts = witness.publish(&[BATCHED], format!("[{}]", events.join(","))).await.accepted();
    assert_eq!(receipts.as_array().unwrap().len(), 6);
    for ((_, attributes, data), receipt) in specified().into_iter().zip(receipts.as_array().unwrap()) {
        assert_eq!(receipt["posted"], 2);
        witness.sees(&attributes, &data).await;
    }
}

#[tokio::test]
async fn the_examples_of_the_json_format_are_taken_in_binary_mode() {
    let mut witness = Witness::with("dedup_window_ms = 0").await;
    let common = [
        ("ce-specversion", "1.0"),
        ("ce-type", "com.example.someevent"),
        ("ce-source", "/mycontext"),
        ("ce-time", "2018-04-05T17:31:00Z"),
        ("ce-comexampleextension1", "value"),
        ("ce-comexampleothervalue", "5"),
    ];
    for (id, content_type, body, data) in [
        ("A234-1234-1234", "application/vnd.apache.thrift.binary", &b"\0\x01\xfe\xff"[..], Message::binary(vec![0, 1, 254, 255])),
        ("B234-1234-1234", "application/xml", b"<much wow=\"xml\"/>", Message::text("<much wow=\"xml\"/>")),
        (
            "C234-1234-1234",
            "application/json",
            b"{\n  \"appinfoA\" : \"abc\",\n  \"appinfoB\" : 123,\n  \"appinfoC\" : true\n}\n",
            Message::text("{\n  \"appinfoA\" : \"abc\",\n  \"appinfoB\" : 123,\n  \"appinfoC\" : true\n}"),
        ),
        ("C234-1234-1234", "application/json", b"1.5", Message::text("1.5")),
        ("D234-1234-1234", "application/json", b"\"I'm just a string\"", Message::text("\"I'm just a string\"")),
        ("E234-1234-1234", "text/plain; charset=utf-8", "Grüße".as_bytes(), Message::text("Grüße")),
    ] {
        let headers = [&common[..], &[("ce-id", id), ("content-type", content_type)]].concat();
        assert_eq!(witness.publish(&headers, body).await.accepted()["id"], id);
        witness.sees(&format!("{id}\n{SPECIFIED}\n{content_type}\n{EXTENSIONS}"), &data).await;
    }
    // The last example has no Content-Type; and one without data has no body.
    let bare = [("ce-specversion", "1.0"), ("ce-type", "com.example.someevent"), ("ce-source", "/mycontext"), ("ce-id", "D234-1234-1234")];
    witness.publish(&bare, r#"{ "xyz": 123 }"#).await.accepted();
    let attributes = "D234-1234-1234\n/mycontext\ncom.example.someevent\n-\n-\napplication/json";
    witness.sees(attributes, &Message::text(r#"{ "xyz": 123 }"#)).await;
    witness.publish(&bare, "").await.accepted();
    witness.sees(attributes, &Message::text("null")).await;
}

#[tokio::test]
async fn the_examples_of_the_http_binding_are_taken() {
    let mut witness = Witness::start().await;
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-type", "com.example.someevent"),
        ("ce-time", "2018-04-05T03:56:24Z"),
        ("ce-id", "1234-1234-1234"),
        ("ce-source", "/mycontext/subcontext"),
        ("content-type", "application/json; charset=utf-8"),
    ];
    witness.publish(&headers, r#"{"application": "data"}"#).await.accepted();
    let attributes =
        "1234-1234-1234\n/mycontext/subcontext\ncom.example.someevent\n-\n2018-04-05T03:56:24Z\napplication/json; charset=utf-8";
    witness.sees(attributes, &Message::text(r#"{"application": "data"}"#)).await;

    let structured = r#"{"specversion":"1.0","type":"com.example.someevent","source":"/s","id":"1","data":{"application": "data"}}"#;
    witness.publish(&[("content-type", "application/cloudevents+json; charset=utf-8")], structured).await.accepted();
    witness.sees("1\n/s\ncom.example.someevent\n-\n-\napplication/json", &Message::text(r#"{"application": "data"}"#)).await;

    let batch = r#"[
        {"specversion":"1.0","type":"com.example.someevent","source":"/s","id":"2","data":{"application": "data"}},
        {"specversion":"1.0","type":"com.example.someotherevent","source":"/s","id":"3","data":["application", "data"]}
    ]"#;
    witness.publish(&[("content-type", "application/cloudevents-batch+json; charset=utf-8")], batch).await.accepted();
    witness.sees("2\n/s\ncom.example.someevent\n-\n-\napplication/json", &Message::text(r#"{"application": "data"}"#)).await;
    witness.sees("3\n/s\ncom.example.someotherevent\n-\n-\napplication/json", &Message::text(r#"["application", "data"]"#)).await;
}

#[tokio::test]
async fn an_empty_batch_is_accepted_and_does_nothing() {
    let mut witness = Witness::start().await;
    assert_eq!(witness.publish(&[BATCHED], "[]").await.accepted(), json!([]));
    witness.data.quiet().await;
}

#[tokio::test]
async fn a_batch_answers_each_of_its_events_and_the_good_ones_are_published() {
    let mut witness = Witness::start().await;
    let batch = r#"[
        {"specversion":"1.0","type":"a","source":"/s","id":"1","data":1},
        {"specversion":"1.0","type":"a","source":"/s","data":2},
        {"specversion":"0.3","type":"a","source":"/s","id":"3","data":3},
        {"specversion":"1.0","type":"a","source":"/s","id":"1","data":4},
        17,
        {"specversion":"1.0","type":"a","source":"/s","id":"6","data":6}
    ]"#;
    let items = witness.publish(&[BATCHED], batch).await.batch(207);
    let codes: Vec<&Value> = items.as_array().unwrap().iter().map(|item| &item["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("missing_attribute"), &json!("specversion"), &Value::Null, &json!("json"), &Value::Null]);
    assert_eq!((&items[1]["status"], &items[1]["title"]), (&json!(400), &json!("Bad Request")));
    assert_eq!((&items[0]["posted"], &items[3]["duplicate"], &items[5]["id"]), (&json!(2), &json!(true), &json!("6")));
    assert_eq!([witness.data.text().await, witness.data.text().await], ["1", "6"]);
    witness.data.quiet().await;
    assert_eq!(witness.server.metric(r#"signalpost_events_total{outcome="rejected"}"#).await, 3.0);
    assert_eq!(witness.server.metric(r#"signalpost_events_total{outcome="duplicate"}"#).await, 1.0);
    assert_eq!(witness.server.metric(r#"signalpost_events_total{outcome="routed"}"#).await, 2.0);
}

#[tokio::test]
async fn the_status_of_a_batch_says_whether_all_of_it_was_accepted_or_a_part_or_nothing() {
    let mut witness = Witness::start().await;
    let good = |id: u32| format!(r#"{{"specversion":"1.0","type":"a","source":"/s","id":"{id}","data":{id}}}"#);
    let bad = r#"{"specversion":"1.0","type":"a","source":"/s"}"#.to_owned();
    for (batch, status) in [
        (vec![good(1), good(2)], 202),
        // A repetition was accepted before.
        (vec![good(1)], 202),
        (vec![good(3), bad.clone()], 207),
        (vec![bad.clone(), good(3)], 207),
        (vec![bad.clone()], 400),
        (vec![bad.clone(), bad.clone()], 400),
    ] {
        let items = witness.publish(&[BATCHED], format!("[{}]", batch.join(","))).await.batch(status);
        assert_eq!(items.as_array().unwrap().len(), batch.len());
        for (item, event) in items.as_array().unwrap().iter().zip(&batch) {
            assert_eq!(item["code"].is_null(), *event != bad, "{items}");
        }
    }
    for id in [1, 2, 3] {
        assert_eq!(witness.data.text().await, id.to_string());
    }
    witness.data.quiet().await;
    let looked = request(&witness.server, Method::POST, "/events?dry_run=true", &[BATCHED], format!("[{},{bad}]", good(4))).await;
    looked.batch(207);
}

#[tokio::test]
async fn a_body_in_a_content_coding_is_refused_and_not_taken_for_the_message() {
    let mut witness = Witness::start().await;
    for path in ["/events", "/users/data/messages"] {
        let post = |coding: &'static [&'static str]| {
            let body = json!({ "type": "a", "data": coding }).to_string();
            let request = witness.server.http.post(witness.server.url(path)).header("content-type", "application/json").body(body);
            coding.iter().fold(request, |request, coding| request.header("content-encoding", *coding)).send()
        };
        for coding in [&["gzip"][..], &["GZIP"], &["br"], &["identity, gzip"], &["identity", "deflate"], &["x"]] {
            let response = post(coding).await.unwrap();
            assert_eq!(response.headers()["accept-encoding"], "identity", "{coding:?}");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.status(), 415, "{coding:?}");
            assert_eq!(response.json::<Value>().await.unwrap()["code"], "content_encoding");
        }
        for coding in [&[][..], &[""], &["identity"], &["Identity, IDENTITY"]] {
            assert_eq!(post(coding).await.unwrap().status(), 202, "{coding:?}");
            assert!(witness.data.text().await.contains(&json!(coding).to_string()));
        }
        witness.data.quiet().await;
    }
    let other =
        witness.server.http.post(witness.server.url("/events")).header("content-type", "text/plain").body("x").send().await.unwrap();
    assert_eq!((other.status().as_u16(), other.headers().get("accept-encoding")), (415, None), "a media type is no coding");
}

#[tokio::test]
async fn a_policy_sees_the_dataschema_among_the_extensions() {
    let mut witness = Witness::start().await;
    let event = r#"{"specversion":"1.0","type":"a","source":"/s","id":"1","dataschema":"https://example.com/s#1","x":1,"data":1}"#;
    witness.publish(&[STRUCTURED], event).await.accepted();
    witness.sees("1\n/s\na\n-\n-\napplication/json\ndataschema=https://example.com/s#1\nx=1", &Message::text("1")).await;
    let headers = [("ce-specversion", "1.0"), ("ce-type", "a"), ("ce-source", "/s"), ("ce-id", "2"), ("ce-dataschema", "urn:a:1")];
    witness.publish(&headers, "2").await.accepted();
    witness.sees("2\n/s\na\n-\n-\napplication/json\ndataschema=urn:a:1", &Message::text("2")).await;
}

#[tokio::test]
async fn a_time_keeps_all_that_rfc_3339_allows() {
    let mut witness = Witness::with("dedup_window_ms = 0").await;
    for time in [
        "9999-12-31T23:59:59Z",
        "2018-04-05T17:31:00.123456789012Z",
        "2018-04-05t17:31:00z",
        "2016-12-31T23:59:60Z",
        "2018-04-05T17:31:00-00:00",
    ] {
        let event = format!(r#"{{"specversion":"1.0","type":"a","source":"/s","id":"1","time":"{time}","data":1}}"#);
        witness.publish(&[STRUCTURED], event).await.accepted();
        witness.sees(&format!("1\n/s\na\n-\n{time}\napplication/json"), &Message::text("1")).await;
    }
}

#[tokio::test]
async fn a_byte_order_mark_before_json_is_ignored() {
    let mut witness = Witness::start().await;
    witness.publish(&[], "\u{feff}{\"type\":\"a\",\"data\":1}").await.accepted();
    assert_eq!(witness.data.text().await, "1");
    request(&witness.server, Method::POST, "/users/data/messages", &[], "\u{feff}[2]").await.accepted();
    assert_eq!(witness.data.text().await, "[2]");
}

#[tokio::test]
async fn the_short_form_gets_an_id_and_a_source() {
    let mut witness = Witness::start().await;
    let receipt = witness.publish(&[("content-type", "application/json")], r#"{"type":"a.b","data":{"x": 1}}"#).await.accepted();
    let id = receipt["id"].as_str().unwrap();
    assert!(id.len() >= 32, "{id}");
    witness.sees(&format!("{id}\n/\na.b\n-\n-\napplication/json"), &Message::text(r#"{"x": 1}"#)).await;
    // With what a producer wants to add; a Content-Type is not needed.
    let more = r#"{"type":"a.b","id":"7","source":"/me","subject":"x","time":"2018-04-05T17:31:00+02:00","tenant":"north","data":[]}"#;
    witness.publish(&[], more).await.accepted();
    witness.sees("7\n/me\na.b\nx\n2018-04-05T17:31:00+02:00\napplication/json\ntenant=north", &Message::text("[]")).await;
}

#[tokio::test]
async fn attributes_in_headers_are_percent_decoded() {
    let mut witness = Witness::start().await;
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-type", "com.example.someevent"),
        ("ce-source", "/mycontext"),
        ("ce-id", "%221%22"),
        ("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("ce-lower", "%e2%82%ac"),
        ("ce-needless", "%61%62"),
        ("ce-once", "50%2525"),
        ("ce-quoted", r#""a \"b\" %E2%82%AC""#),
    ];
    witness.publish(&headers, "").await.accepted();
    let (attributes, mut extensions) = {
        let seen = witness.attributes.text().await;
        let mut lines: Vec<String> = seen.lines().map(str::to_owned).collect();
        (lines.drain(..6).collect::<Vec<_>>(), lines)
    };
    assert_eq!(attributes[..4], ["\"1\"", "/mycontext", "com.example.someevent", "Euro € 😀"]);
    extensions.sort();
    assert_eq!(extensions, ["lower=€", "needless=ab", "once=50%25", "quoted=a \"b\" €"]);

    let overlong = [&headers[..4], &[("ce-subject", "%C0%A0")]].concat();
    witness.publish(&overlong, "").await.is_problem(400, "attribute");
}
