//! The line from POST to socket.

use serde_json::json;

use crate::support::TestServer;

#[tokio::test]
async fn a_match_reaches_both_devices_of_the_rider_and_the_driver_and_nobody_else() {
    let server = TestServer::start().await;
    let mut phone = server.connect("1001").await;
    let mut tablet = server.connect("1001").await;
    let mut driver = server.connect("2002").await;
    let mut stranger = server.connect("3003").await;
    let receipt =
        server.publish("pooling.match.found", json!({ "request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 })).await;
    assert_eq!(receipt["recipients"], 2);
    assert_eq!(receipt["posted"], 2);
    assert_eq!(receipt["policies"][0]["name"], "pooling");
    for client in [&mut phone, &mut tablet, &mut driver] {
        let text = client.text().await;
        let original =
            r#"{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!""#;
        assert!(text.starts_with(original), "{text}");
    }
    stranger.quiet().await;
}
