//! Hostile plugins: each is loaded into one server process, does its worst, and ends as stated, while its neighbour's messages
//! arrive as ever. `docs/hostile-plugins.md` has the same list for people, and a test holds the two together.

mod answers;
mod compiling;
mod files;
mod floods;
mod loading;
mod memory;
mod neighbour;
mod time;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::support::process::ServerProcess;
use crate::support::wat::Guest;
use crate::support::{Client, SOON, TestServer, plugins};
use neighbour::Neighbour;

/// A guard against hanging, not a measure: a case ends in milliseconds, on a busy machine in seconds, since plugins are compiled
/// at the lowest priority.
const CASE_DEADLINE: Duration = Duration::from_secs(60);

/// What a report may have: 4 KiB of detail, and names around it.
const REASON_BYTES_MAX: usize = 5000;

/// Half of the memory of one instance by default: one that stays behind would show. The allocator's own noise is 1 to 3 MiB.
const NOISE_BYTES: u64 = 8 << 20;

/// Every guest says that this is its version.
const VERSION: &str = "6.6.6";

/// One hostile plugin and its stated outcome.
struct Case {
    /// Also the policy's name.
    name: &'static str,
    does: &'static str,
    outcome: Outcome,
    /// The setting, or the rule, that bounds it.
    bound: &'static str,
    component: fn() -> Vec<u8>,
    call: Call,
    /// Keys of its table in the configuration, and of the limits in it.
    policy: &'static str,
    limits: &'static str,
    /// Bytes of its events' data.
    data_bytes: usize,
}

enum Outcome {
    /// At load, with a reason that contains this.
    Refused(&'static str),
    /// A fault of this kind, with a detail that contains this.
    Fault(&'static str, &'static str),
    /// In words, and as an assertion.
    Answer(&'static str, fn(&Told)),
}
use Outcome::{Answer, Fault, Refused};

/// What makes the plugin act, once it is loaded.
#[derive(Clone, Copy)]
enum Call {
    /// So many events; what is stated is about the last one, and the ones before are routed.
    Route(usize),
    Format,
    Opened,
    Received,
    Closed,
}

impl Call {
    fn function(self) -> &'static str {
        match self {
            Call::Route(_) => "route",
            Call::Format => "format",
            Call::Opened => "opened",
            Call::Received => "received",
            Call::Closed => "closed",
        }
    }
}

/// What a case leaves out.
const CASE: Case = Case {
    name: "",
    does: "",
    outcome: Refused(""),
    bound: "",
    component: Vec::new,
    call: Call::Route(1),
    policy: "",
    limits: "",
    data_bytes: 0,
};

/// What came of a case that was answered.
struct Told {
    receipts: Vec<Value>,
    /// Its entry in `GET policies`.
    policy: Value,
    metrics: String,
    /// Lines of the server's log that it wrote.
    logged: usize,
    /// How a session that spoke with it ended, if it did.
    closed: Option<(u16, String)>,
    /// Messages that the session got before.
    replies: usize,
}

impl Told {
    /// The receipt of the last event.
    fn receipt(&self) -> &Value {
        self.receipts.last().expect("an event was published")
    }

    fn metric(&self, series: &str) -> u64 {
        let line = self.metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }
}

/// Cases that share a server, and what is in its `[plugins]` and after.
struct Theme {
    cases: Vec<Case>,
    plugins: &'static str,
    more: &'static str,
    /// All cases are run again until memory grows no more; more often than this, and it grows for ever.
    passes_max: usize,
}

/// A line of the table in the documentation.
struct Row<'a> {
    name: &'a str,
    does: &'a str,
    outcome: &'a str,
    bound: &'a str,
}

/// A guest that is called for its own events only, and for direct messages.
fn hostile(guest: Guest<'_>) -> Vec<u8> {
    let events: &[&str] = if guest.role == "formatting" { &["signalpost.direct"] } else { &["hostile.*"] };
    Guest { version: VERSION, events, ..guest }.component()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As a careful deployment does it: written elsewhere, then moved over the old file.
fn place(dir: &Path, name: &str, bytes: &[u8]) {
    let unfinished = dir.join(".unfinished");
    std::fs::write(&unfinished, bytes).unwrap();
    std::fs::rename(unfinished, dir.join(format!("{name}.wasm"))).unwrap();
}

/// A policy's entry in `GET policies`.
async fn policy(server: &TestServer, name: &str) -> Value {
    let policies = server.get("/policies").await;
    let found = policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == name);
    found.unwrap_or_else(|| panic!("{name} serves: {policies}")).clone()
}

impl Theme {
    /// A server with the bundled policy, and the settings of all cases.
    fn server(&self, dir: &Path) -> ServerProcess {
        let mut settings = format!(
            "[plugins]\non_bad = \"skip\"\nwatch = false\nwatch_interval_ms = 20\nretire_ms = 0\ncache_dir = {:?}\n{}\n[log]\nformat = \"json\"\n\
             [mailboxes]\nkeep_ms = 500\n{}\n",
            dir.join("compiled"),
            self.plugins,
            self.more
        );
        for Case { name, policy, limits, .. } in &self.cases {
            settings += &format!("[policies.{name}]\n{policy}\n[policies.{name}.limits]\n{limits}\n");
        }
        ServerProcess::start(dir, &settings)
    }

    /// Each case once, each beside the neighbour.
    async fn pass(&self, process: &ServerProcess, dir: &Path) {
        let mut neighbour = Neighbour::of(&process.server).await;
        let mut failed = Vec::new();
        for case in &self.cases {
            let run = AssertUnwindSafe(timeout(CASE_DEADLINE, case.run(process, dir))).catch_unwind();
            match run.await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => failed.push(format!("{} hangs", case.name)),
                Err(_) => failed.push(case.name.to_owned()),
            }
            case.remove(&process.server, dir).await;
            neighbour.goes_on(case.name).await;
        }
        assert!(failed.is_empty(), "these did not end as stated, see above: {failed:?}");
    }

    async fn withstand(self) {
        let dir = plugins(&["pooling"]);
        if !self.plugins.is_empty() {
            // The bundled plugin is compiled before there is little time or memory for it.
            drop(Theme::default().server(dir.path()));
        }
        let process = self.server(dir.path());
        let mut resident = Vec::new();
        for _ in 0..self.passes_max {
            self.pass(&process, dir.path()).await;
            resident.push(settled(&process).await);
            if let [.., before, after] = resident[..]
                && after < before + NOISE_BYTES
            {
                return;
            }
        }
        assert_eq!(self.passes_max, 1, "what each pass takes is not there for the next: {resident:?}");
    }
}

impl Default for Theme {
    fn default() -> Theme {
        Theme { cases: Vec::new(), plugins: "", more: "", passes_max: 6 }
    }
}

/// Bytes in memory once nobody is connected and no message is kept.
async fn settled(process: &ServerProcess) -> u64 {
    let waiting = async {
        while process.server.metric("signalpost_mailboxes").await > 100.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(CASE_DEADLINE, waiting).await.expect("what nobody collects is forgotten");
    process.resident_bytes()
}

impl Case {
    async fn run(&self, process: &ServerProcess, dir: &Path) {
        let (name, server) = (self.name, &process.server);
        let component = (self.component)();
        let digest = digest(&component);
        place(dir, name, &component);
        let (status, answer) = server.reload().await;
        if let Refused(reason) = self.outcome {
            let refused = server.get("/policies").await["rejected"][0].clone();
            let told = refused["reason"].as_str().unwrap_or_else(|| panic!("{name} is refused: {answer}"));
            assert!(told.contains(reason) && told.len() < REASON_BYTES_MAX, "{name}: {told}");
            assert_eq!((status, &refused["name"]), (422, &json!(name)));
            // A file that is too large is not read.
            let read = self.bound != "plugins.file_bytes_max";
            assert_eq!(refused["digest"], if read { json!(digest) } else { Value::Null });
            // A problem tells the first kilobyte.
            let detail = answer["detail"].as_str().unwrap();
            assert!(detail.len() > 20 && format!("{name}: {told}").starts_with(detail), "{answer}");
        } else {
            assert_eq!((status, &answer["changed"]), (200, &json!([name])), "{name}: {answer}");
            let told = self.call(process).await;
            match self.outcome {
                Fault(kind, detail) => self.check_fault(&told, kind, detail, &digest),
                Answer(_, holds) => holds(&told),
                Refused(_) => unreachable!("refused above"),
            }
        }
    }

    async fn remove(&self, server: &TestServer, dir: &Path) {
        std::fs::remove_file(dir.join(format!("{}.wasm", self.name))).unwrap();
        assert_eq!(server.reload().await.0, 200);
    }

    /// The report names all that its author asks for.
    fn check_fault(&self, told: &Told, kind: &str, detail: &str, digest: &str) {
        let (name, fault) = (self.name, &told.policy["last_fault"]);
        let said = fault["detail"].as_str().unwrap_or_else(|| panic!("{name} faults: {} {:?}", told.policy, told.receipts));
        assert_eq!(fault["kind"], kind, "{name}: {fault}");
        assert!(said.contains(detail) || fault["backtrace"].to_string().contains(detail), "{name}: {fault}");
        assert!(fault.to_string().len() < REASON_BYTES_MAX, "{name}: {fault}");
        assert_eq!((&fault["policy"], &fault["version"]), (&json!(name), &json!(VERSION)), "{fault}");
        assert_eq!((&fault["digest"], &fault["function"]), (&json!(digest), &json!(self.call.function())), "{fault}");
        assert_eq!(told.policy["counters"]["faults"], 1, "{name}");
        if let Some((last, before)) = told.receipts.split_last() {
            assert_eq!(fault["event"], last["id"]);
            if let Call::Route(_) = self.call {
                assert_eq!(&last["policies"][0]["fault"], fault, "the receipt and the policy's page say the same");
                assert!(before.iter().all(|receipt| receipt["policies"][0]["outcome"] == "routed"), "{name}: {before:?}");
            }
        }
    }

    fn outcome(&self) -> String {
        match self.outcome {
            Refused(reason) => format!("refused at load: “{}”", reason.trim_end()),
            Fault(kind, detail) => format!("fault `{kind}` in `{}`: “{detail}”", self.call.function()),
            Answer(words, _) => words.to_owned(),
        }
    }

    async fn call(&self, process: &ServerProcess) -> Told {
        let server = &process.server;
        let (mut receipts, mut closed, mut replies) = (Vec::new(), None, 0);
        let its_lines = format!("\"policy\":\"{}\"", self.name);
        let logged_before = process.logged(&its_lines);
        match self.call {
            Call::Route(times) => {
                for _ in 0..times {
                    receipts.push(server.publish("hostile.go", json!("x".repeat(self.data_bytes))).await);
                }
            }
            Call::Format => {
                let _victim = server.connect("victim").await;
                receipts.push(server.post("/users/victim/messages", json!({ "n": 1 })).await);
                self.faults(server).await;
            }
            Call::Opened => closed = Some(server.connect("victim").await.closed().await),
            Call::Received => {
                let mut victim = server.connect("victim").await;
                victim.send("\"hello\"").await;
                (replies, closed) = conversation(&mut victim).await;
            }
            Call::Closed => {
                drop(server.connect("victim").await);
                self.faults(server).await;
            }
        }
        let metrics = server.http.get(format!("http://{}/metrics", server.address)).send().await.unwrap().text().await.unwrap();
        let logged = process.logged(&its_lines) - logged_before;
        Told { receipts, policy: policy(server, self.name).await, metrics, logged, closed, replies }
    }

    /// Waits for its first fault, where nobody else would tell.
    async fn faults(&self, server: &TestServer) {
        let waiting = async {
            while policy(server, self.name).await["last_fault"].is_null() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{} faults", self.name));
    }
}

/// Messages until the client's ping is answered or the socket closes: everything that was sent before has been handled then.
async fn conversation(client: &mut Client) -> (usize, Option<(u16, String)>) {
    use tokio_tungstenite::tungstenite::Message;
    client.send(Message::Ping("done".into())).await;
    let mut replies = 0;
    loop {
        match client.message().await {
            Message::Pong(_) => return (replies, None),
            Message::Close(frame) => return (replies, frame.map(|frame| (frame.code.into(), frame.reason.to_string()))),
            _ => replies += 1,
        }
    }
}

#[tokio::test]
async fn loops_end_at_their_deadline() {
    time::theme().withstand().await;
}

#[tokio::test]
async fn memory_tables_stacks_and_handles_are_bounded() {
    memory::theme().withstand().await;
}

#[tokio::test]
async fn answers_that_lie_are_faults() {
    answers::theme().withstand().await;
}

#[tokio::test]
async fn floods_are_cut_and_counted() {
    floods::theme().withstand().await;
}

#[tokio::test]
async fn what_breaks_the_contract_is_refused() {
    loading::theme().withstand().await;
}

#[tokio::test]
async fn what_would_exhaust_the_compiler_is_refused() {
    compiling::theme().withstand().await;
    compiling::memory_theme().withstand().await;
}

/// The table of `docs/hostile-plugins.md`, which is for people what the cases are for the machine.
#[test]
fn the_documentation_lists_every_case_with_its_outcome() {
    let themes = [
        time::theme(),
        memory::theme(),
        answers::theme(),
        floods::theme(),
        loading::theme(),
        compiling::theme(),
        compiling::memory_theme(),
    ];
    let line = |name: &str, does: &str, outcome: &str, bound: &str| format!("| `{name}` | {does} | {outcome} | {bound} |");
    let cases = themes.iter().flat_map(|theme| &theme.cases);
    let mut expected: Vec<String> = cases.map(|case| line(case.name, case.does, &case.outcome(), case.bound)).collect();
    expected.extend(files::ROWS.iter().map(|row| line(row.name, row.does, row.outcome, row.bound)));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hostile-plugins.md");
    let text = std::fs::read_to_string(path).unwrap();
    let listed: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let missing: Vec<&String> = expected.iter().filter(|line| !listed.contains(&line.as_str())).collect();
    let unknown: Vec<&&str> = listed.iter().filter(|line| !expected.iter().any(|known| known == *line)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "to add: {missing:#?}\nto remove: {unknown:#?}");
    let mut names: Vec<&str> = listed.iter().filter_map(|line| line.split('`').nth(1)).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), listed.len(), "each name once");
}
