use super::*;

fn token(user: &str, seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "sub": user, "exp": now + seconds });
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

/// A server that asks users for tokens.
async fn asking(users: &str) -> (TestServer, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let toml = format!("[auth.users]\nalgorithms = [\"HS256\"]\nkey_files = [{file:?}]\nleeway_s = 0\nexpiry_grace_ms = 100\n{users}");
    (TestServer::with(&toml).await, dir)
}

#[tokio::test]
async fn a_stream_and_what_is_posted_for_it_show_a_token_of_their_user() {
    let (server, _dir) = asking("token_in_query = true").await;
    let unauthorized = (401, json!("unauthorized"));
    let url = server.url("/sse/1001");
    assert_eq!(answer(server.http.get(&url)).await, unauthorized);
    assert_eq!(answer(server.http.get(&url).bearer_auth(token("1002", 60))).await, unauthorized);
    let (_by_query, _) = Events::greeted(server.http.get(format!("{url}?access_token={}", token("1001", 60)))).await;
    let (mut events, _) = Events::greeted(server.http.get(&url).bearer_auth(token("1001", 60))).await;
    let to = || server.http.post(server.url(&format!("/sse/1001/{}", events.session)));
    let ping = r#"{"type":"ping"}"#;
    assert_eq!(answer(to().body(ping)).await, unauthorized);
    assert_eq!(answer(to().bearer_auth(token("1002", 60)).body(ping)).await, unauthorized);
    // A frame's own token counts, and not the header's.
    let bad = json!({ "type": "auth", "token": token("1002", 60) }).to_string();
    assert_eq!(answer(to().bearer_auth(token("1001", 60)).body(bad)).await, unauthorized);
    assert_eq!(answer(to().bearer_auth(token("1001", 60)).body(ping)).await, accepted());
    events.named("pong").await;
    assert_eq!(server.metric(r#"signalpost_auth_refused_total{reason="no_token"}"#).await, 2.0);
    assert_eq!(server.metric(r#"signalpost_auth_refused_total{reason="other_user"}"#).await, 3.0);
}

#[tokio::test]
async fn a_stream_whose_token_ends_is_closed_with_4001_and_loses_nothing() {
    let (server, _dir) = asking("").await;
    let url = server.url("/sse/1001");
    let (mut events, _) = Events::greeted(server.http.get(&url).bearer_auth(token("1001", 2))).await;
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(events.data().await, 1);
    let (code, _) = events.closed().await;
    assert_eq!(code, 4001);
    server.post("/users/1001/messages", json!(2)).await;
    let again = server.http.get(&url).bearer_auth(token("1001", 60)).header("last-event-id", &events.last_id);
    let (mut events, resume) = Events::greeted(again).await;
    assert_eq!(resume, json!({ "recovered": true, "from": 1 }));
    assert_eq!(events.data().await, 2);
}

#[tokio::test]
async fn a_posted_token_lets_a_stream_go_on() {
    let (server, _dir) = asking("").await;
    let first = token("1001", 2);
    let (mut events, _) = Events::greeted(server.http.get(server.url("/sse/1001")).bearer_auth(&first)).await;
    let to = || server.http.post(server.url(&format!("/sse/1001/{}", events.session)));
    let fresh = token("1001", 60);
    let frame = json!({ "type": "auth", "token": fresh }).to_string();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(answer(to().bearer_auth(&first).body(frame)).await, accepted());
    let auth = events.named("auth").await;
    assert!(auth["data"]["token_ends_in_ms"].as_u64().is_some_and(|ends| ends > 50_000), "{auth}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let to = || server.http.post(server.url(&format!("/sse/1001/{}", events.session)));
    assert_eq!(answer(to().bearer_auth(&first).body(r#"{"type":"ping"}"#)).await.0, 401, "the first token is over");
    assert_eq!(answer(to().bearer_auth(&fresh).body(r#"{"type":"ping"}"#)).await, accepted());
    events.named("pong").await;
}
