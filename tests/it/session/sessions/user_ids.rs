use super::*;

#[tokio::test]
async fn a_user_id_may_be_a_number_a_word_or_anything_percent_encoded() {
    let server = TestServer::start().await;
    let ids = [
        ("1001", json!(1001), "1001"),
        ("alice", json!("alice"), "alice"),
        ("J%C3%BCrgen%20M%2F7", json!("Jürgen M/7"), "Jürgen M/7"),
        ("%F0%9F%9A%97%3F%23%25", json!("🚗?#%"), "🚗?#%"),
    ];
    for (path, id, name) in ids {
        let mut client = server.connect(path).await;
        server.post(&format!("/users/{path}/messages"), json!("direct")).await;
        assert_eq!(client.text().await, "\"direct\"");
        let data = json!({ "request_id": 1, "rider_id": id, "driver_id": "away", "pool_id": name });
        server.publish("pooling.match.found", data).await;
        assert_eq!(client.json().await["type"], "pooling_match", "{name}");
        let presence = server.get(&format!("/users/{path}")).await;
        assert_eq!((&presence["user"], &presence["online"]), (&json!(name), &json!(true)));
    }
}

#[tokio::test]
async fn a_user_id_that_is_too_long_or_unprintable_is_refused_everywhere() {
    let server = TestServer::start().await;
    // The limit counts bytes after decoding.
    let longest = "%C3%A9".repeat(64);
    let mut client = server.connect(&longest).await;
    server.post(&format!("/users/{longest}/messages"), json!(1)).await;
    assert_eq!(client.text().await, "1");
    for id in [&"x".repeat(129), &"%C3%A9".repeat(65), "a%0Ab", "a%00", "%20a", "a%20"] {
        let refused = (400, "user_id".to_owned());
        assert_eq!(problem(server.http.get(server.url(&format!("/ws/{id}"))).send().await.unwrap()).await, refused, "{id}");
        assert_eq!(problem(server.http.get(server.url(&format!("/users/{id}"))).send().await.unwrap()).await, refused, "{id}");
        let ending = server.http.delete(server.url(&format!("/users/{id}/sessions"))).send().await.unwrap();
        assert_eq!(problem(ending).await, refused, "{id}");
        let telling = server.http.post(server.url(&format!("/users/{id}/messages"))).json(&json!(1)).send().await.unwrap();
        assert_eq!(problem(telling).await, refused, "{id}");
    }
    assert_eq!(server.metric(r#"signalpost_http_problems_total{code="user_id"}"#).await, 24.0);
}
