//! What safety costs: one call of a policy with each bound and without, and the steps around it. docs/performance.md has results.
//!
//!     cargo bench -p calls
//!
//! The guests run on their own here, in an engine like the server's but for the bound in question, or by the server's own code.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::process::ExitCode;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use divan::{AllocProfiler, Bencher, black_box};
use http::{HeaderMap, HeaderName, HeaderValue};
use signalpost::config::Config;
use signalpost::internals::benching::{Device, Line, Loaded, Published, Unshaped, proven};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};

mod guest {
    wasmtime::component::bindgen!({ path: "../../wit", world: "host", ownership: Borrowing { duplicate_if_necessary: true } });
}

use guest::exports::signalpost::policy::{formatting, plugin, routing};
use guest::signalpost::policy::state;
use guest::signalpost::policy::types::{self, BodyParam, BodyResult};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

const PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins");
const KIND: &str = "pooling.match.found";
const MATCH: &str = r#"{"request_id":42,"rider_id":1001,"driver_id":2002,"pool_id":7}"#;
const MESSAGE: &str =
    r#"{"type":"pooling_match","request_id":42,"status":"matched","details":"You have been matched for a pooling request!"}"#;
const READER: [(&str, &str); 2] = [("format", "compact"), ("locale", "de")];

fn main() -> ExitCode {
    // Plugins are compiled by a child of the same binary.
    if std::env::args().nth(1).is_some_and(|argument| argument == "compile-component") {
        return signalpost::cli::main();
    }
    divan::main();
    ExitCode::SUCCESS
}

/// Which bounds a guest has, as `policy::engine` and `policy::plugin` set them.
#[derive(Clone, Copy)]
struct Bounds {
    epochs: bool,
    limiter: bool,
    output: bool,
    backtrace: bool,
}

const NONE: Bounds = Bounds { epochs: false, limiter: false, output: false, backtrace: false };
const ALL: Bounds = Bounds { epochs: true, limiter: true, output: true, backtrace: true };
const BOUNDS: [(&str, Bounds); 6] = [
    ("none", NONE),
    ("epochs", Bounds { epochs: true, ..NONE }),
    ("limiter", Bounds { limiter: true, ..NONE }),
    ("output", Bounds { output: true, ..NONE }),
    ("backtrace", Bounds { backtrace: true, ..NONE }),
    ("all", ALL),
];

/// Grants everything and counts it.
struct StoreLimits(usize);

impl ResourceLimiter for StoreLimits {
    fn memory_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.0 = desired;
        Ok(desired <= 16 << 20)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= 20_000)
    }
}

/// A guest that is called directly.
struct Bare {
    store: Store<StoreLimits>,
    routing: Option<routing::Guest>,
    formatting: Option<formatting::Guest>,
    bounds: Bounds,
}

impl Bare {
    fn new(name: &str, bounds: Bounds) -> Bare {
        let mut config = wasmtime::Config::new();
        config.max_wasm_stack(256 << 10);
        config.concurrency_support(false);
        config.native_unwind_info(false);
        config.epoch_interruption(bounds.epochs);
        config.wasm_backtrace_max_frames(if bounds.backtrace { std::num::NonZeroUsize::new(20) } else { None });
        let engine = Engine::new(&config).unwrap();
        if bounds.epochs {
            let weak = engine.weak();
            thread::spawn(move || {
                while let Some(engine) = weak.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let component = Component::from_file(&engine, format!("{PLUGINS}/{name}.wasm")).unwrap();
        let mut linker = Linker::new(&engine);
        // Of what the host offers, a match takes this alone: it remembers who drives.
        let mut state = linker.instance("signalpost:policy/state@0.1.0").unwrap();
        state.func_wrap("set", |_, _: (String, Vec<u8>, Option<u32>)| Ok((Ok::<(), state::Error>(()),))).unwrap();
        linker.define_unknown_imports_as_traps(&component).unwrap();
        let pre = linker.instantiate_pre(&component).unwrap();
        let mut store = Store::new(&engine, StoreLimits(0));
        if bounds.limiter {
            store.limiter(|growth| growth);
        }
        if bounds.output {
            store.set_hostcall_fuel(1 << 20);
        }
        if bounds.epochs {
            store.set_epoch_deadline(1000);
            store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Continue(1)));
        }
        let instance = pre.instantiate(&mut store).unwrap();
        let settings = plugin::GuestIndices::new(&pre).unwrap().load(&mut store, &instance).unwrap();
        settings.call_configure(&mut store, "{}").unwrap().unwrap();
        Bare {
            routing: routing::GuestIndices::new(&pre).ok().map(|indices| indices.load(&mut store, &instance).unwrap()),
            formatting: formatting::GuestIndices::new(&pre).ok().map(|indices| indices.load(&mut store, &instance).unwrap()),
            store,
            bounds,
        }
    }

    fn begin(&mut self) {
        if self.bounds.epochs {
            self.store.set_epoch_deadline(2);
        }
    }

    fn route(&mut self) -> usize {
        self.begin();
        let event = types::Event {
            id: "1",
            source: "/",
            type_: KIND,
            subject: None,
            time: None,
            content_type: "application/json",
            extensions: &[],
            data: Some(BodyParam::Json(MATCH)),
        };
        self.routing.as_ref().unwrap().call_route(&mut self.store, event).unwrap().unwrap().deliveries.len()
    }

    fn format(&mut self) -> usize {
        self.begin();
        let message = formatting::Message { id: "1", event_type: KIND, body: BodyParam::Json(MESSAGE) };
        match self.formatting.as_ref().unwrap().call_format(&mut self.store, message, &READER).unwrap().unwrap() {
            Some(BodyResult::Json(text)) => text.len(),
            _ => panic!("JSON stays JSON"),
        }
    }
}

/// The configuration with the repository's plugins, and `toml` over it.
fn config(toml: &str) -> Config {
    let mut flags: toml::Table = toml.parse().unwrap();
    let plugins = flags.entry("plugins").or_insert_with(|| toml::Table::new().into());
    plugins.as_table_mut().unwrap().insert("dir".into(), PLUGINS.into());
    Config::load(None, flags, std::iter::empty()).unwrap().0
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
static LINE: LazyLock<Line> = LazyLock::new(|| line(""));

fn line(toml: &str) -> Line {
    RUNTIME.block_on(Line::new(config(toml))).unwrap()
}

fn policy(line: &Line, name: &str) -> Loaded {
    line.policy(name).unwrap()
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn event() -> Published {
    let body = format!(r#"{{"type":"{KIND}","data":{MATCH}}}"#);
    LINE.read(&HeaderMap::new(), body.as_bytes()).unwrap()
}

fn message() -> Unshaped {
    Unshaped::new(KIND, MESSAGE).unwrap()
}

/// A warm instance, called directly, with one bound, none, or all.
mod guest_alone {
    use super::*;

    #[divan::bench(args = BOUNDS.map(|(name, _)| name))]
    fn route(bencher: Bencher<'_, '_>, name: &str) {
        let mut guest = Bare::new("pooling", bounds(name));
        bencher.bench_local(|| guest.route());
    }

    #[divan::bench(args = BOUNDS.map(|(name, _)| name))]
    fn format(bencher: Bencher<'_, '_>, name: &str) {
        let mut guest = Bare::new("compact", bounds(name));
        bencher.bench_local(|| guest.format());
    }

    fn bounds(name: &str) -> Bounds {
        BOUNDS.into_iter().find(|(known, _)| *known == name).unwrap().1
    }
}

/// The same call as the server makes it: instance from the pool, deadline, breaker, histogram, proof of the answer.
mod by_the_server {
    use super::*;

    #[divan::bench(args = ["reuse", "fresh"])]
    fn route(bencher: Bencher<'_, '_>, isolation: &str) {
        let line = line(&format!("policies.pooling.isolation = \"{isolation}\""));
        let (policy, event) = (policy(&line, "pooling"), event());
        bencher.bench_local(|| policy.route(&event).unwrap());
    }

    #[divan::bench(args = ["reuse", "fresh"])]
    fn format(bencher: Bencher<'_, '_>, isolation: &str) {
        let line = line(&format!("policies.compact.isolation = \"{isolation}\""));
        let (policy, message) = (policy(&line, "compact"), message());
        bencher.bench_local(|| policy.format(&message, &READER).unwrap());
    }
}

/// What the server does around the guest, piece by piece.
mod pieces {
    use super::*;

    #[divan::bench]
    fn clock_twice_and_histogram(bencher: Bencher<'_, '_>) {
        let options = prometheus::HistogramOpts::new("calls", "Calls.");
        let buckets = vec![1e-6, 5e-6, 25e-6, 100e-6, 500e-6, 2.5e-3, 10e-3, 50e-3, 250e-3];
        let histogram = prometheus::Histogram::with_opts(options.buckets(buckets)).unwrap();
        bencher.bench_local(|| {
            let started = std::time::Instant::now();
            histogram.observe(black_box(started).elapsed().as_secs_f64());
        });
    }

    /// Once at the first look, and at each tick after it: a call within one tick pays nothing.
    #[divan::bench]
    fn processor_time() -> i64 {
        rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_nsec
    }

    #[divan::bench]
    fn proof_that_a_body_is_json() -> bool {
        proven(black_box(MESSAGE)).is_ok()
    }
}

/// The stations of the line.
mod stations {
    use super::*;

    #[divan::bench(args = ["structured", "binary", "batch", "short"])]
    fn parse(bencher: Bencher<'_, '_>, form: &str) {
        let attributes = format!(r#""specversion":"1.0","id":"1","source":"/s","type":"{KIND}""#);
        let structured = format!(r#"{{{attributes},"data":{MATCH}}}"#);
        let (headers, body) = match form {
            "structured" => (headers(&[("content-type", "application/cloudevents+json")]), structured),
            "batch" => {
                let batch = vec![structured; 10].join(",");
                (headers(&[("content-type", "application/cloudevents-batch+json")]), format!("[{batch}]"))
            }
            "binary" => {
                let attributes = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", KIND)];
                (headers(&[&attributes[..], &[("content-type", "application/json")]].concat()), MATCH.to_owned())
            }
            _ => (headers(&[("content-type", "application/json")]), format!(r#"{{"type":"{KIND}","data":{MATCH}}}"#)),
        };
        bencher.bench_local(|| LINE.read(&headers, body.as_bytes()).unwrap());
    }

    #[divan::bench]
    fn mailbox_post_and_take(bencher: Bencher<'_, '_>) {
        let (device, message) = (LINE.connect("poster", Vec::new()).unwrap(), message());
        bencher.bench_local(|| {
            LINE.post(&device, &message);
            device.take()
        });
    }

    /// 2,000 readers of one message, in this many classes.
    #[divan::bench(args = [1, 8, 2_000])]
    fn shape_for_2000_readers_of_classes(bencher: Bencher<'_, '_>, classes: usize) {
        let attributes = |index: usize| vec![("locale".to_owned(), format!("x{}", index % classes))];
        let connect = |index: usize| LINE.connect(&format!("reader-{classes}-{index}"), attributes(index)).unwrap();
        let readers: Vec<Device> = (0..2_000).map(connect).collect();
        let shape = async |message: Unshaped| {
            let mut bytes = 0;
            for reader in &readers {
                bytes += LINE.shape(&message, reader).await.unwrap();
            }
            bytes
        };
        bencher.with_inputs(message).bench_local_values(|message| RUNTIME.block_on(shape(message)));
    }

    /// From a parsed event to two mailboxes and back out: all but HTTP, formatting and the socket.
    #[divan::bench]
    fn dispatch(bencher: Bencher<'_, '_>) {
        let devices = ["1001", "2002"].map(|user| LINE.connect(user, Vec::new()).unwrap());
        let event = event();
        bencher.bench_local(|| {
            let posted = LINE.publish(event.clone());
            assert_eq!(devices.iter().map(Device::take).sum::<usize>(), posted);
            posted
        });
    }
}
