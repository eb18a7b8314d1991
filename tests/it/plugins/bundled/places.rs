use super::*;

/// A thousand places of driver 3 in pool 7, 111 m apart, as one batch.
fn ride() -> String {
    let place = |step: u32| {
        let data = json!({ "pool_id": 7, "driver_id": 3, "lat": f64::from(step) / 1000.0, "lon": 13.4, "step": step });
        json!({ "specversion": "1.0", "type": "pooling.driver.location", "source": "/car", "id": step.to_string(), "data": data })
    };
    Value::from((1..=1000).map(place).collect::<Vec<_>>()).to_string()
}

async fn publish_ride(server: &TestServer) -> Vec<Value> {
    let request = server.http.post(server.url("/events")).header("content-type", "application/cloudevents-batch+json").body(ride());
    let receipts: Vec<Value> = request.send().await.unwrap().json().await.unwrap();
    assert!(receipts.iter().all(|receipt| receipt["policies"][0]["outcome"] == "routed"), "{receipts:?}");
    receipts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_places_ends_with_the_newest_for_every_rider_and_never_goes_back() {
    let server = TestServer::start().await;
    let riders: Vec<String> = (0..10).map(|rider| format!("rider-{rider}")).collect();
    let users: Vec<&str> = riders.iter().map(String::as_str).chain(["3"]).collect();
    let mut crowd = Crowd::connect(&server, &users).await;
    pool(&server, json!(7), json!(3), riders.iter().map(|rider| json!(rider))).await;
    crowd.told(&server).await;
    for receipt in publish_ride(&server).await {
        assert_eq!(receipt["recipients"], 10);
    }
    for (user, told) in crowd.told(&server).await {
        let steps: Vec<u64> = told.iter().map(|text| serde_json::from_str::<Value>(text).unwrap()["step"].as_u64().unwrap()).collect();
        assert!(steps.is_sorted_by(|earlier, later| earlier < later), "{user}: {steps:?}");
        assert_eq!(steps.last().copied(), (user != "3").then_some(1000), "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rider_who_does_not_read_gets_the_newest_place_only() {
    let more = "[sockets]\nwrite_deadline_ms = 60000\n[mailboxes]\nbytes_max = 16777216\n";
    for (user, subprotocol) in [("1", None), ("2", Some("signalpost.v1"))] {
        let server = TestServer::with(more).await;
        let mut request = server.socket_url(user).into_client_request().unwrap();
        if let Some(name) = subprotocol {
            request.headers_mut().insert("Sec-WebSocket-Protocol", name.parse().unwrap());
        }
        // Little fits into the kernel's buffers, so that the mailbox is where things wait.
        let tcp = tokio::net::TcpSocket::new_v4().unwrap();
        tcp.set_recv_buffer_size(16 << 10).unwrap();
        let tcp = tcp.connect(server.address).await.unwrap();
        let path = request.uri().path().to_owned();
        let (socket, answer) = tokio_tungstenite::client_async(request, MaybeTlsStream::Plain(tcp)).await.unwrap();
        let mut rider = Client::of(&path, socket, &answer);
        pool(&server, json!(7), json!(3), [json!(user)]).await;
        let large = json!("x".repeat(200_000));
        let mut stuffed = 0;
        while !is_behind(&server, user).await {
            server.post(&format!("/users/{user}/messages"), large.clone()).await;
            stuffed += 1;
            assert!(stuffed < 60, "the socket takes no end");
        }
        publish_ride(&server).await;
        server.post(&format!("/users/{user}/messages"), json!("mark")).await;
        let mut steps = Vec::new();
        loop {
            let text = rider.text().await;
            let value: Value = serde_json::from_str(&text).unwrap();
            let message = if subprotocol.is_some() { &value["data"] } else { &value };
            if *message == json!("mark") {
                break;
            }
            steps.extend(message["step"].as_u64());
        }
        assert_eq!(steps, [1000]);
    }
}

/// The user's only session has not taken the newest message for a while.
async fn is_behind(server: &TestServer, user: &str) -> bool {
    for _ in 0..20 {
        let presence = server.get(&format!("/users/{user}")).await;
        if presence["sessions"][0]["seq"] == presence["mailbox"]["seq"] {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

#[tokio::test]
async fn places_are_not_kept_for_a_rider_who_is_away() {
    let server = TestServer::start().await;
    pool(&server, json!(7), json!(3), [json!("away")]).await;
    let receipts = publish_ride(&server).await;
    assert_eq!(receipts[999]["dropped"], json!([{ "reason": "away", "count": 1, "users": ["away"] }]));
    let mut crowd = Crowd::connect(&server, &["away"]).await;
    let told = crowd.told_once(&server).await;
    assert!(told.len() == 1 && told[0].1.contains("pooling_match"), "{told:?}");
    assert_eq!(server.metric(r#"signalpost_messages_dropped_total{reason="away"}"#).await, 1000.0);
}

#[tokio::test]
async fn a_car_that_hardly_moves_is_not_sent() {
    let server = TestServer::with("[policies.pooling.settings]\nlocation_repeat_ms = 60000").await;
    let mut crowd = Crowd::connect(&server, &["1", "2"]).await;
    pool(&server, json!(7), json!(3), [json!(1), json!(2)]).await;
    crowd.told(&server).await;
    let place = async |driver: u32, lat: f64| {
        let data = json!({ "pool_id": 7, "driver_id": driver, "lat": lat, "lon": 13.4 });
        server.publish("pooling.driver.location", data).await["posted"].as_u64().unwrap()
    };
    assert_eq!(place(3, 52.5).await, 2, "the first");
    assert_eq!(place(3, 52.500_05).await, 0, "5.6 m");
    assert_eq!(place(4, 52.500_05).await, 2, "another car's first");
    assert_eq!(place(3, 52.500_08).await, 0, "8.9 m from the place that was sent");
    assert_eq!(place(3, 52.500_1).await, 2, "11.1 m from it");
    crowd.told(&server).await;

    let server = TestServer::with("[policies.pooling.settings]\nlocation_min_metres = 0").await;
    let mut crowd = Crowd::connect(&server, &["1"]).await;
    pool(&server, json!(7), json!(3), [json!(1)]).await;
    crowd.told(&server).await;
    for _ in 0..2 {
        server.publish("pooling.driver.location", json!({ "pool_id": 7, "driver_id": 3, "lat": 1, "lon": 1 })).await;
        assert_eq!(crowd.told_once(&server).await.len(), 1);
    }
}

#[tokio::test]
async fn a_car_that_stands_still_is_sent_again_after_a_while() {
    let server = TestServer::with("[policies.pooling.settings]\nlocation_repeat_ms = 100").await;
    let _rider = server.connect("1").await;
    pool(&server, json!(7), json!(3), [json!(1)]).await;
    let place = json!({ "pool_id": 7, "driver_id": 3, "lat": 1, "lon": 1 });
    assert_eq!(server.publish("pooling.driver.location", place.clone()).await["posted"], 1);
    let again = async {
        while server.publish("pooling.driver.location", place.clone()).await["posted"] == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, again).await.expect("it is sent again");
}
