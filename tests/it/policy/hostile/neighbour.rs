//! The neighbour of a hostile plugin: a pool whose rider reads on two devices what the bundled policy routes, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{SOON, TestServer};

const RIDER: &str = "rider";
const DEVICES: usize = 2;

/// Pause between two messages: traffic, not load.
const PAUSE: Duration = Duration::from_millis(2);

pub struct Neighbour {
    published: Arc<AtomicU64>,
    read: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Neighbour {
    pub async fn of(server: &TestServer) -> Neighbour {
        let (mut read, mut tasks) = (Vec::new(), Vec::new());
        for _ in 0..DEVICES {
            let mut device = server.connect(RIDER).await;
            let count = Arc::new(AtomicU64::new(0));
            read.push(count.clone());
            tasks.push(tokio::spawn(async move {
                assert_eq!(device.json().await["type"], "pooling_match");
                for number in 0.. {
                    let message = device.json().await;
                    assert_eq!((&message["type"], &message["number"]), (&json!("trip_started"), &json!(number)), "in order, each once");
                    count.store(number + 1, Ordering::SeqCst);
                }
            }));
        }
        let found = json!({ "request_id": 1, "rider_id": RIDER, "driver_id": "driver", "pool_id": 7 });
        assert_eq!(server.publish("pooling.match.found", found).await["posted"], 2);
        let published = Arc::new(AtomicU64::new(0));
        let (http, url, count) = (server.http.clone(), server.url("/events"), published.clone());
        tasks.push(tokio::spawn(async move {
            for number in 0_u64.. {
                let event = json!({ "type": "pooling.trip.started", "data": { "pool_id": 7, "by": "driver", "number": number } });
                let answer = timeout(SOON, http.post(&url).json(&event).send()).await.expect("an answer in time").unwrap();
                let receipt: Value = answer.json().await.unwrap();
                assert_eq!(receipt["posted"], 1, "{receipt}");
                count.store(number + 1, Ordering::SeqCst);
                tokio::time::sleep(PAUSE).await;
            }
        }));
        Neighbour { published, read, tasks }
    }

    /// Waits until every device has read all that was published by now, and more.
    pub async fn goes_on(&mut self, during: &str) {
        let target = self.published.load(Ordering::SeqCst) + 3;
        let reading = async {
            while self.read.iter().any(|read| read.load(Ordering::SeqCst) < target) {
                for task in &mut self.tasks {
                    if task.is_finished() {
                        panic!("beside {during}: {:?}", task.await);
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(SOON, reading).await.unwrap_or_else(|_| panic!("the traffic beside {during} goes on"));
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
