//! A driver's answer on the socket reaches the backend: the bundled policies, and a sink that hears what policies make.

use serde_json::{Value, json};

use super::A;
use crate::support::TestServer;
use crate::support::backend::Backend;

#[tokio::test]
async fn a_drivers_answer_reaches_the_backend_once_and_nobody_elses_does() {
    let backend = Backend::start().await;
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, A).unwrap();
    let sink = format!("[sinks.b]\nurl = \"http://{}/\"\nevents = [\"pooling.*\"]\nsecret_files = [{secret:?}]\n", backend.address);
    let server = TestServer::with(&sink).await;
    let (mut driver, mut bob, mut stranger) = (server.connect("2002").await, server.connect("bob").await, server.connect_v1("2003").await);
    stranger.json().await;
    let offer = r#"{"type":"pooling.request.created","data":{"request_id":18446744073709551616,"rider_id":1001,"candidate_driver_ids":[2002,"bob"]}}"#;
    let request = server.http.post(server.url("/events")).header("Content-Type", "application/json").body(offer);
    let receipt: Value = request.send().await.unwrap().json().await.unwrap();
    let asked: Vec<(&Value, &Value)> =
        receipt["policies"].as_array().unwrap().iter().map(|policy| (&policy["name"], &policy["deliveries"])).collect();
    assert_eq!(asked, [(&json!("pooling"), &json!(1)), (&json!("offers"), &json!(0))]);
    assert!(driver.text().await.contains("18446744073709551616") && bob.text().await.contains("pooling_offer"));
    let accept = r#"{"type":"offer_accept","request_id":18446744073709551616,"driver_id":"bob"}"#;
    driver.send(accept).await;
    driver.send(accept).await;
    bob.send(r#"{"type":"offer_decline","request_id":"18446744073709551616"}"#).await;
    stranger.send_json(json!({ "type": "message", "data": { "type": "offer_accept", "request_id": 42 } })).await;
    let error = stranger.json().await;
    assert_eq!((&error["type"], &error["data"]["code"]), (&json!("error"), &json!("no_offer")), "{error}");
    let received = backend.accepts(2).await;
    let mut told: Vec<String> = received
        .iter()
        .map(|one| {
            let (event, text) = (one.json(), String::from_utf8(one.body.to_vec()).unwrap());
            assert_eq!((&event["source"], one.signed_by(A)), (&json!("/policies/offers"), vec![true]));
            let data = text.split("\"data\":").nth(1).unwrap().trim_end_matches('}').to_owned();
            format!("{} {} {data}", event["type"].as_str().unwrap(), event["subject"].as_str().unwrap())
        })
        .collect();
    told.sort();
    assert_eq!(
        told,
        [
            r#"pooling.offer.accepted 2002 {"request_id":18446744073709551616,"driver_id":2002"#,
            r#"pooling.offer.declined bob {"request_id":18446744073709551616,"driver_id":"bob""#,
        ]
    );
    tokio::time::sleep(crate::support::QUIET).await;
    assert_eq!(backend.received().len(), 2, "an answer that is repeated is one event");
}
