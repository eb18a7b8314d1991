use super::*;

#[tokio::test]
async fn a_file_that_is_moved_over_the_old_one_takes_effect() {
    let (old, new) = (teller("1", "old"), teller("1", "new"));
    let dir = folder(&[("p.wasm", &old)]);
    let server = watching(dir.path(), "").await;
    let mut user = server.connect("1").await;
    server.publish("a", json!(1)).await;
    assert_eq!(user.text().await, "\"old\"");
    replace(dir.path(), "p.wasm", &new);
    let policies = until(&server, "the new file serves", |policies| policy(policies, "p")["digest"] == digest(&new)).await;
    assert_eq!(policies["revision"], 2);
    assert_eq!(policy(&policies, "p")["counters"]["calls"], 0);
    server.publish("a", json!(1)).await;
    assert_eq!(user.text().await, "\"new\"", "on the same socket");
    assert_eq!(server.metric(SWAPPED).await, 1.0);
}

#[tokio::test]
async fn files_that_come_and_go_take_effect() {
    let dir = folder(&[("a.wasm", &teller("1", "a"))]);
    let server = watching(dir.path(), "").await;
    let mut user = server.connect("1").await;
    replace(dir.path(), "b.wasm", &teller("1", "b"));
    until(&server, "the second comes", |policies| names(policies) == ["a", "b"]).await;
    server.publish("x", json!(1)).await;
    assert_eq!([user.text().await, user.text().await], ["\"a\"", "\"b\""]);
    std::fs::remove_file(dir.path().join("a.wasm")).unwrap();
    until(&server, "the first goes", |policies| names(policies) == ["b"]).await;
    server.publish("x", json!(1)).await;
    assert_eq!(user.text().await, "\"b\"");
    std::fs::remove_file(dir.path().join("b.wasm")).unwrap();
    until(&server, "the last goes", |policies| names(policies).is_empty()).await;
    assert_eq!(server.publish("x", json!(1)).await["note"], "no policy wanted this event type");
}

#[tokio::test]
async fn a_file_that_is_written_slowly_serves_once_it_is_whole() {
    let (old, new) = (teller("1", "old"), teller("1", "new"));
    let dir = folder(&[("p.wasm", &old)]);
    let server = watching(dir.path(), "").await;
    let mut user = server.connect("1").await;
    // In place, with pauses that are longer than the watcher's patience: what is there is refused, and the old one serves.
    let path = dir.path().join("p.wasm");
    std::fs::write(&path, &new[..new.len() / 2]).unwrap();
    until(&server, "half a file is refused", |policies| !policies["rejected"].as_array().unwrap().is_empty()).await;
    server.publish("a", json!(1)).await;
    assert_eq!(user.text().await, "\"old\"");
    std::fs::write(&path, &new[..new.len() - 1]).unwrap();
    server.metric_reaches(REFUSED, 2.0).await;
    std::fs::write(&path, &new).unwrap();
    let policies = until(&server, "the whole file serves", |policies| policy(policies, "p")["digest"] == digest(&new)).await;
    assert_eq!(policies["rejected"], json!([]));
    server.publish("a", json!(1)).await;
    assert_eq!(user.text().await, "\"new\"");
}

#[tokio::test]
async fn a_file_that_grows_steadily_is_not_read_before_it_rests() {
    let new = teller("1", "new");
    let dir = folder(&[("p.wasm", &teller("1", "old"))]);
    let server = TestServer::with(&settings(dir.path(), "watch_interval_ms = 250", "")).await;
    let path = dir.path().join("p.wasm");
    std::fs::write(&path, b"").unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    for part in new.chunks(new.len() / 20 + 1) {
        std::io::Write::write_all(&mut file, part).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    until(&server, "the whole file serves", |policies| policy(policies, "p")["digest"] == digest(&new)).await;
    assert_eq!((server.metric(REFUSED).await, server.metric(SWAPPED).await), (0.0, 1.0));
}

#[tokio::test]
async fn a_refused_replacement_leaves_the_old_one_serving_until_a_good_one_comes() {
    let (old, new) = (teller("1", "old"), teller("1", "new"));
    let dir = folder(&[("p.wasm", &old)]);
    let server = watching(dir.path(), "").await;
    let mut user = server.connect("1").await;
    replace(dir.path(), "p.wasm", b"bad");
    let policies = until(&server, "it is refused", |policies| policies["rejected"] != json!([])).await;
    assert_eq!(rejected(&policies, "p")["reason"], "is not WebAssembly: the file does not begin with its magic number");
    assert_eq!(rejected(&policies, "p")["digest"], digest(b"bad"));
    assert_eq!((&policies["revision"], &policy(&policies, "p")["digest"]), (&json!(1), &json!(digest(&old))));
    assert_eq!((server.metric(REFUSED).await, server.metric(SWAPPED).await), (1.0, 0.0));
    server.publish("a", json!(1)).await;
    assert_eq!(user.text().await, "\"old\"");
    // A neighbour's change is not held up by it.
    replace(dir.path(), "q.wasm", &teller("1", "q"));
    let policies = until(&server, "a second policy comes", |policies| names(policies) == ["p", "q"]).await;
    assert_eq!(rejected(&policies, "p")["digest"], digest(b"bad"), "and it is still shown");
    replace(dir.path(), "p.wasm", &new);
    let policies = until(&server, "the good one serves", |policies| policy(policies, "p")["digest"] == digest(&new)).await;
    assert_eq!((&policies["revision"], &policies["rejected"]), (&json!(3), &json!([])));
    server.publish("a", json!(1)).await;
    assert_eq!([user.text().await, user.text().await], ["\"new\"", "\"q\""]);
    assert_eq!((server.metric(REFUSED).await, server.metric(SWAPPED).await), (1.0, 2.0));
}

#[tokio::test]
async fn going_back_to_the_file_that_serves_heals_too() {
    let old = teller("1", "old");
    let dir = folder(&[("p.wasm", &old)]);
    let server = watching(dir.path(), "").await;
    replace(dir.path(), "p.wasm", b"bad");
    until(&server, "it is refused", |policies| policies["rejected"] != json!([])).await;
    replace(dir.path(), "p.wasm", &old);
    let policies = until(&server, "it is healed", |policies| policies["rejected"] == json!([])).await;
    assert_eq!(policies["revision"], 1, "the same policy goes on");
}

#[tokio::test]
async fn of_two_files_that_change_together_neither_is_taken_when_one_is_bad() {
    let dir = folder(&[("a.wasm", &teller("1", "old a")), ("b.wasm", &teller("1", "old b"))]);
    let server = still(dir.path(), "").await;
    let mut user = server.connect("1").await;
    replace(dir.path(), "a.wasm", &teller("1", "new a"));
    replace(dir.path(), "b.wasm", b"bad");
    let (status, problem) = server.reload().await;
    assert_eq!((status, &problem["code"]), (422, &json!("policy_refused")));
    assert_eq!(problem["detail"], "b: is not WebAssembly: the file does not begin with its magic number");
    server.publish("x", json!(1)).await;
    assert_eq!([user.text().await, user.text().await], ["\"old a\"", "\"old b\""]);
    assert_eq!(server.get("/policies").await["revision"], 1);
    assert_eq!(server.metric(REFUSED).await, 1.0);
    replace(dir.path(), "b.wasm", &teller("1", "new b"));
    assert_eq!(server.reload().await, (200, json!({ "revision": 2, "changed": ["a", "b"] })));
    server.publish("x", json!(1)).await;
    assert_eq!([user.text().await, user.text().await], ["\"new a\"", "\"new b\""]);
}

#[tokio::test]
async fn a_reload_reports_what_it_changed() {
    let dir = folder(&[("a.wasm", &teller("1", "a")), ("b.wasm", &teller("1", "b"))]);
    let server = still(dir.path(), "").await;
    assert_eq!(server.reload().await, (200, json!({ "revision": 1, "changed": [] })));
    replace(dir.path(), "a.wasm", &teller("1", "more"));
    std::fs::remove_file(dir.path().join("b.wasm")).unwrap();
    assert_eq!(server.reload().await, (200, json!({ "revision": 2, "changed": ["a", "b"] })));
    assert_eq!(names(&server.get("/policies").await), ["a"]);
    assert_eq!(server.reload().await, (200, json!({ "revision": 2, "changed": [] })));
}

#[tokio::test]
async fn with_watch_off_nothing_changes_by_itself() {
    let dir = folder(&[("a.wasm", &teller("1", "a"))]);
    let server = TestServer::with(&settings(dir.path(), "watch = false\nwatch_interval_ms = 5", "")).await;
    replace(dir.path(), "b.wasm", &teller("1", "b"));
    tokio::time::sleep(crate::support::QUIET).await;
    assert_eq!(names(&server.get("/policies").await), ["a"]);
    server.reload().await;
    assert_eq!(names(&server.get("/policies").await), ["a", "b"]);
}

/// One producer publishes all the time while `change` is called with 0, 1, 2 …; every message arrives once and in order. Says by whom
/// each was formatted, without repetitions.
async fn under_fire(dir: &Path, changes: usize, change: impl Fn(usize)) -> Vec<Option<String>> {
    let server = Arc::new(watching(dir, "").await);
    let (mut plain, mut v1) = (server.connect("1").await, server.connect_v1("1").await);
    assert_eq!(v1.json().await["type"], "hello");
    let done = Arc::new(AtomicBool::new(false));
    let producing = tokio::spawn({
        let (server, done) = (server.clone(), done.clone());
        async move {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) && count < 100_000 {
                let receipt = server.publish("pooling.trip.started", json!({ "pool_id": 7, "by": 2, "n": count })).await;
                assert_eq!((&receipt["policies"][0]["outcome"], &receipt["posted"]), (&json!("routed"), &json!(1)), "{receipt}");
                count += 1;
            }
            count
        }
    });
    let reading = tokio::spawn(async move {
        let mut by: Vec<Option<String>> = Vec::new();
        let mut next = 0;
        loop {
            let message = plain.json().await;
            let envelope = v1.json().await;
            let inner = if message["by"].is_string() { &message["message"] } else { &message };
            let of_v1 = if envelope["data"]["message"].is_object() { &envelope["data"]["message"] } else { &envelope["data"] };
            if inner["type"] == "end" {
                return (next, by);
            }
            assert_eq!((inner["n"].as_u64(), of_v1["n"].as_u64()), (Some(next), Some(next)), "{message} {envelope}");
            let name = message["by"].as_str().filter(|_| message["message"].is_object()).map(str::to_owned);
            if by.last() != Some(&name) {
                by.push(name);
            }
            next += 1;
        }
    });
    for round in 0..changes {
        let revision = server.get("/policies").await["revision"].clone();
        change(round);
        until(&server, "the change is taken", |policies| policies["revision"] != revision).await;
        until_more(&server).await;
    }
    done.store(true, Ordering::Relaxed);
    let published: u64 = timeout(SOON, producing).await.unwrap().unwrap();
    server.post("/users/1/messages", json!({ "type": "end" })).await;
    let (read, by) = timeout(SOON, reading).await.unwrap().unwrap();
    assert_eq!(read, published, "nothing is lost");
    assert!(published >= 10 * changes as u64, "{published} messages are traffic");
    by
}

/// Waits until twenty more messages have been posted, so that each policy set serves some.
async fn until_more(server: &TestServer) {
    let posted = server.metric("signalpost_messages_posted_total").await;
    let waiting = async {
        while server.metric("signalpost_messages_posted_total").await < posted + 20.0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, waiting).await.expect("traffic goes on");
}

/// Tells user 1 about every event, as it is.
fn routing_to_one() -> Vec<u8> {
    let body = "(call $forward (global.get $user) (global.get $user_bytes))";
    Guest { strings: &[("user", "1")], ..Guest::routing(body) }.component()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_formatting_policy_is_replaced_under_fire_and_no_message_is_lost_doubled_or_out_of_order() {
    let dir = folder(&[("pooling.wasm", &routing_to_one()), ("compact.wasm", &wrapper("a"))]);
    let (a, b) = (wrapper("a"), wrapper("b"));
    let by = under_fire(dir.path(), 10, |round| replace(dir.path(), "compact.wasm", if round % 2 == 0 { &b } else { &a })).await;
    let expected: Vec<Option<String>> = (0..11).map(|round| Some(if round % 2 == 0 { "a".into() } else { "b".into() })).collect();
    assert_eq!(by, expected, "each set's messages are shaped by it, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_formatting_policy_comes_and_goes_under_fire_and_no_message_is_lost_doubled_or_out_of_order() {
    let dir = folder(&[("pooling.wasm", &routing_to_one())]);
    let wrapping = wrapper("a");
    let by = under_fire(dir.path(), 6, |round| {
        if round % 2 == 0 {
            replace(dir.path(), "compact.wasm", &wrapping);
        } else {
            std::fs::remove_file(dir.path().join("compact.wasm")).unwrap();
        }
    })
    .await;
    assert_eq!(by, [None, Some("a".into()), None, Some("a".into()), None, Some("a".into()), None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routing_policy_is_replaced_under_fire_and_no_message_is_lost_doubled_or_out_of_order() {
    let dir = folder(&[("pooling.wasm", &routing_to_one())]);
    let body = "(call $forward (global.get $user) (global.get $user_bytes))";
    let other = Guest { version: "2.0.0", strings: &[("user", "1")], ..Guest::routing(body) }.component();
    let one = routing_to_one();
    under_fire(dir.path(), 6, |round| replace(dir.path(), "pooling.wasm", if round % 2 == 0 { &other } else { &one })).await;
}
