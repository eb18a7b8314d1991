use super::*;

#[tokio::test]
async fn pages_of_listed_origins_may_read_streams_and_nothing_else() {
    const PAGE: &str = "https://app.example.com";
    let server = TestServer::with(&format!("[auth]\norigins = [\"{PAGE}\"]")).await;
    let (mut events, _) = Events::greeted(server.http.get(server.url("/sse/1001")).header("origin", PAGE)).await;
    let to = |method, path: &str| server.http.request(method, server.url(path)).header("origin", PAGE);
    let post = format!("/sse/1001/{}", events.session);
    let good = to(Method::POST, &post).body(r#"{"type":"ping"}"#).send().await.unwrap();
    let bad = to(Method::POST, "/sse/1001/x").body("").send().await.unwrap();
    let long = to(Method::GET, &format!("/sse/{}", "x".repeat(200))).send().await.unwrap();
    assert_eq!([good.status(), bad.status(), long.status()].map(|status| status.as_u16()), [202, 404, 400]);
    events.named("pong").await;
    for headers in [events.response.headers(), good.headers(), bad.headers(), long.headers()] {
        assert_eq!((&headers["access-control-allow-origin"], &headers["vary"]), (&PAGE.parse().unwrap(), &"origin".parse().unwrap()));
        assert!(!headers.contains_key("access-control-allow-credentials"));
    }
    for path in ["/sse/1001", &post] {
        let asked = to(Method::OPTIONS, path).header("access-control-request-method", "POST");
        let asked = asked.header("access-control-request-headers", "authorization").send().await.unwrap();
        assert_eq!(asked.status(), 204);
        for (name, value) in [
            ("access-control-allow-origin", PAGE),
            ("access-control-allow-methods", "GET, POST"),
            ("access-control-allow-headers", "authorization, content-type, last-event-id"),
            ("vary", "origin"),
        ] {
            assert_eq!(asked.headers()[name], value, "{path}");
        }
    }

    for origin in [
        "https://evil.example.com",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "https://app.example.com:8443",
        "null",
    ] {
        for (method, path) in [(Method::GET, "/sse/1001"), (Method::POST, &*post), (Method::OPTIONS, "/sse/1001")] {
            let refused = server.http.request(method, server.url(path)).header("origin", origin).send().await.unwrap();
            assert_eq!(refused.status(), 403, "{origin}");
            assert!(refused.headers().keys().all(|name| !name.as_str().starts_with("access-control")), "{origin}");
        }
    }
    // A page of the server itself needs no leave, and a program is no page.
    let own = server.http.get(server.url("/sse/1001")).header("origin", format!("http://{}", server.address));
    for request in [own, server.http.get(server.url("/sse/1001"))] {
        let (events, _) = Events::greeted(request).await;
        assert_eq!(events.response.headers()["vary"], "origin");
        assert!(!events.response.headers().contains_key("access-control-allow-origin"));
    }
    // Other addresses are not for pages of other origins to read.
    for (method, path) in [(Method::GET, "/users/1001"), (Method::POST, "/events"), (Method::OPTIONS, "/events"), (Method::GET, "/ws/1001")]
    {
        let answered = to(method, path).send().await.unwrap();
        assert!(answered.headers().keys().all(|name| !name.as_str().starts_with("access-control")), "{path}");
    }
}
