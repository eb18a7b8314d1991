//! docs/openapi.yaml and docs/asyncapi.yaml are kept by hand. That they are true of each answer and frame is checked wherever tests see one
//! (`support::described`); here is what they have to have, and how they are served.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::{Value, json};

use crate::support::TestServer;
use crate::support::described::documents::{self, Operation, operations};
use crate::support::described::{example, is_client_frame};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap()
}

/// Writes JSON with a line for each member down to this depth, so that a change of one is a change of one line.
fn lines(value: &Value, depth: usize) -> String {
    match value {
        Value::Object(members) if depth > 0 => {
            let member = |(name, member): (&String, &Value)| format!("{}: {}", json!(name), lines(member, depth - 1));
            format!("{{\n{}\n}}", members.iter().map(member).collect::<Vec<_>>().join(",\n"))
        }
        _ => value.to_string(),
    }
}

#[test]
fn the_served_files_are_made_of_those_in_docs() {
    let mut stale = Vec::new();
    for (path, document) in
        [("src/http/descriptions/openapi.json", documents::openapi()), ("src/http/descriptions/asyncapi.json", documents::asyncapi())]
    {
        let made = lines(document, 3) + "\n";
        if text(path) != made {
            std::fs::write(file(path), made).unwrap();
            stale.push(path);
        }
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"), "{path}");
    }
    assert!(stale.is_empty(), "{stale:?} were not made of the files in docs/; they are now, so run the tests again");
}

#[tokio::test]
async fn a_server_describes_itself_at_its_own_base_path_and_asks_for_no_key() {
    let key =
        "[[auth.keys]]\nname = \"a\"\nsha256 = \"0000000000000000000000000000000000000000000000000000000000000000\"\nscopes = [\"read\"]\n";
    for base in ["/api/pool", "/x/y", ""] {
        let server = TestServer::with(&format!("base_path = {base:?}\noperate_listen = \"127.0.0.1:0\"\n{key}")).await;
        for (address, name) in
            [(server.address, "openapi"), (server.operators, "openapi"), (server.address, "asyncapi"), (server.operators, "asyncapi")]
        {
            let answer = reqwest::get(format!("http://{address}{base}/{name}.json")).await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &"application/json".parse().unwrap()));
            let document: Value = answer.json().await.unwrap();
            let mut expected = if name == "openapi" { documents::openapi().to_string() } else { documents::asyncapi().to_string() };
            expected = expected.replace("/api/pool", base);
            assert!(document == serde_json::from_str::<Value>(&expected).unwrap(), "{name} at {base:?}");
            let places = if name == "openapi" { &document["paths"] } else { &document["channels"]["socket"]["address"] };
            let socket = format!("{base}/ws/{{user_id}}");
            assert!(places.get(&socket).is_some() || *places == socket, "{places}");
        }
        let index: Value = reqwest::get(format!("http://{}/", server.address)).await.unwrap().json().await.unwrap();
        assert_eq!(index["openapi"], format!("{base}/openapi.json"));
        assert_eq!(index["asyncapi"], format!("{base}/asyncapi.json"));
    }
}

/// The paths that the code gives the router, and those to which producers POST, which don't pass it.
fn routes() -> BTreeSet<String> {
    let code = text("src/http/routes.rs") + &text("src/http/console.rs");
    let below = code.split(".route(&below(\"").skip(1).map(|rest| format!("/api/pool{}", rest.split('"').next().unwrap()));
    let at_the_root = code.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let of_producers = ["/events", "/users/{user_id}/messages"].map(|path| format!("/api/pool{path}"));
    below.chain(at_the_root).chain(of_producers).collect()
}

#[tokio::test]
async fn paths_and_methods_are_those_of_the_routes() {
    let described: BTreeSet<String> = operations().iter().map(|operation| operation.path.clone()).collect();
    assert_eq!(described, routes());
    let server = TestServer::start().await;
    for path in described {
        // A method that no address takes is answered with those that this one does, which the client compares with the description.
        let url = format!("http://{}{}", server.address, path.replace(['{', '}'], ""));
        assert_eq!(server.http.request("BREW".parse().unwrap(), url).send().await.unwrap().status(), 405, "{path}");
    }
}

/// The texts of a list in a description.
fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// The texts in quotes in the first list of the code after this.
fn listed(code: &str, after: &str) -> Vec<String> {
    let list = code.split_once(after).unwrap().1.split_once("= &[").unwrap().1.split("];").next().unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_codes_of_problems_are_those_of_the_code_and_each_is_answered_by_an_operation() {
    let known = listed(&text("src/net/problem.rs"), "const CODES: ");
    assert!(known.len() > 50 && known.is_sorted(), "{known:?}");
    assert_eq!(words(&documents::openapi()["components"]["schemas"]["ProblemCode"]["enum"]), known);
    let problem = text("src/net/problem.rs");
    let (before, rest) = problem.split_once("const CODES: ").unwrap();
    let used = [before, rest.split_once("];").unwrap().1].concat();
    let others = sources(&file("src")).into_iter().filter(|path| !path.ends_with("net/problem.rs"));
    let code: String = others.map(|path| std::fs::read_to_string(path).unwrap()).chain([used]).collect();
    for code_of_problem in &known {
        assert!(code.contains(&format!("\"{code_of_problem}\"")), "nothing answers {code_of_problem}");
    }
    // What any address may answer is said once, at the top.
    let mut answered = BTreeSet::from(["method_not_allowed".to_owned()]);
    for operation in operations() {
        for response in operation.description()["responses"].as_object().unwrap().values() {
            let response = response["$ref"].as_str().map_or(response, |reference| documents::openapi().pointer(&reference[1..]).unwrap());
            let parts = response.pointer("/content/application~1problem+json/schema/allOf").and_then(Value::as_array);
            let codes = parts.into_iter().flatten().filter_map(|part| part.pointer("/properties/code/enum")?.as_array()).flatten();
            answered.extend(codes.map(|code| code.as_str().unwrap().to_owned()));
        }
    }
    assert_eq!(answered, known.iter().cloned().collect());
    let page = text("docs/protocol.md");
    let table = page.split_once("\n## Errors\n").unwrap().1;
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').nth(1));
    let explained: BTreeSet<String> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    assert_eq!(explained, known.into_iter().collect(), "docs/protocol.md");
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|kind| kind == "rs"))
        .collect()
}

#[test]
fn close_codes_are_those_of_the_clients_table_which_is_the_codes() {
    let table: Value = serde_json::from_str(&text("clients/close-codes.json")).unwrap();
    let rows = |codes: &Value| -> Vec<Value> {
        codes.as_array().unwrap().iter().map(|row| json!([row["code"], row["then"], row["means"]])).collect()
    };
    let described = documents::asyncapi();
    assert_eq!(rows(&described["x-close-codes"]), rows(&table["codes"]));
    // A stream is never closed by its client's frame, and has no pings.
    let of_streams = described["components"]["schemas"]["Close"]["properties"]["code"]["enum"].as_array().unwrap();
    let known: Vec<&Value> = table["codes"].as_array().unwrap().iter().map(|row| &row["code"]).collect();
    assert!(of_streams.iter().all(|code| known.contains(&code)), "{of_streams:?}");
}

#[test]
fn the_codes_of_a_sockets_errors_are_those_of_the_code() {
    let described = BTreeSet::from_iter(words(&documents::asyncapi()["components"]["schemas"]["ErrorCode"]["examples"]));
    let refusals = text("src/dispatch/session_policies.rs");
    let errors = text("src/session/conversation.rs");
    let of_refusals = refusals.split("Refusal { code: \"").skip(1);
    let of_errors = errors.split("self.error(").skip(1).filter_map(|rest| rest.lines().next()?.split_once('"').map(|(_, code)| code));
    let known: BTreeSet<&str> = of_refusals.chain(of_errors).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(described, known);
    let page = text("docs/protocol.md");
    for code in described {
        assert!(page.contains(&format!("\n| `{code}` |")), "docs/protocol.md does not explain {code}");
    }
}

#[test]
fn the_tables_of_words_are_those_of_the_code() {
    let schemas = &documents::openapi()["components"]["schemas"];
    let code = text("src/types/drop_reason.rs");
    let reasons: Vec<&str> = code.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\",")).collect();
    assert_eq!(words(&schemas["DropReason"]["enum"]), reasons);
    let code = text("src/types/fault.rs");
    let kinds: Vec<&str> = code.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\",")).collect();
    assert_eq!(words(&schemas["Fault"]["properties"]["kind"]["enum"]), kinds);
}

/// An API key with one scope, and its table in the configuration.
fn key(scope: &str) -> (String, String) {
    let key = format!("signalpost_{scope}");
    let digest: String =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    (key, format!("[[auth.keys]]\nname = \"{scope}\"\nsha256 = \"{digest}\"\nscopes = [\"{scope}\"]\n"))
}

#[tokio::test]
async fn each_operation_asks_for_the_scope_that_is_described_and_for_nothing_else() {
    let keys = ["publish", "read", "operate"].map(|scope| (scope, key(scope)));
    let server = TestServer::with(&keys.iter().map(|(_, (_, table))| table.as_str()).collect::<String>()).await;
    let ask = async |operation: &Operation, key: Option<&str>| {
        let url = format!("http://{}{}", server.address, operation.path.replace(['{', '}'], ""));
        let mut request = server.http.request(operation.method.clone(), url);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let (mut open, mut asking) = (0, 0);
    for operation in operations() {
        let place = format!("{} {}", operation.method, operation.path);
        let wanted = operation.description().pointer("/security/0/apiKey/0").and_then(Value::as_str);
        // It ends when its session does.
        if operation.path.contains("/sse/") && operation.method == Method::GET {
            assert_eq!(wanted, None);
            continue;
        }
        let without = ask(operation, None).await;
        let Some(wanted) = wanted else {
            assert_ne!(without, 401, "{place}");
            open += 1;
            continue;
        };
        assert_eq!(without, 401, "{place}");
        for (scope, (key, _)) in &keys {
            let status = ask(operation, Some(key)).await;
            assert_eq!(status != 401, *scope == wanted, "{place} with {scope}: {status}");
        }
        asking += 1;
    }
    assert!(open > 10 && asking > 15, "{open} and {asking}");
}

#[tokio::test]
async fn a_path_that_is_no_text_is_answered_as_described() {
    let server = TestServer::start().await;
    for operation in operations().iter().filter(|operation| operation.path.contains('{')) {
        let parts = operation.path.split('/').map(|part| if part.starts_with('{') { "%FF" } else { part });
        let url = format!("http://{}{}", server.address, parts.collect::<Vec<_>>().join("/"));
        let status = server.http.request(operation.method.clone(), url).send().await.unwrap().status().as_u16();
        let expected = if operation.method == Method::OPTIONS { 204 } else { 400 };
        assert!(status == expected || status == 404, "{} {}: {status}", operation.method, operation.path);
    }
}

#[tokio::test]
async fn a_frame_of_a_client_is_taken_if_and_only_if_it_is_described() {
    let server = TestServer::start().await;
    let mut client = server.connect_v1("1").await;
    client.json().await;
    let long = "x".repeat(65);
    for frame in [
        json!({ "type": "ack", "seq": 0 }),
        json!({ "type": "ack", "seq": u64::MAX }),
        json!({ "type": "ack", "seq": 0, "more": [1] }),
        json!({ "type": "ack" }),
        json!({ "type": "ack", "seq": -1 }),
        json!({ "type": "ack", "seq": 1.5 }),
        json!({ "type": "ack", "seq": "1" }),
        json!({ "type": "resume" }),
        json!({ "type": "resume", "seq": 1, "epoch": "e" }),
        json!({ "type": "resume", "seq": 1 }),
        json!({ "type": "resume", "epoch": "e" }),
        json!({ "type": "resume", "seq": 1, "epoch": 7 }),
        json!({ "type": "auth", "token": "x" }),
        json!({ "type": "auth" }),
        json!({ "type": "auth", "token": 7 }),
        json!({ "type": "message", "data": null }),
        json!({ "type": "message", "data": [], "id": "7" }),
        json!({ "type": "message", "data": {}, "id": "7", "want": "taken" }),
        json!({ "type": "message" }),
        json!({ "type": "message", "data": 1, "id": "" }),
        json!({ "type": "message", "data": 1, "id": 7 }),
        json!({ "type": "message", "data": 1, "id": long }),
        json!({ "type": "message", "data": 1, "want": "taken" }),
        json!({ "type": "message", "data": 1, "id": "7", "want": "stored" }),
        json!({ "type": "ping" }),
        json!({ "type": "ping", "id": 7 }),
        json!({ "type": "pong" }),
        json!({ "type": "hello" }),
        json!({ "type": 7 }),
        json!({}),
        json!([]),
        json!("ack"),
    ] {
        client.send_json(frame.clone()).await;
        // Answers come in the order of frames, so all of those to this one precede the answer to the ping.
        client.send_json(json!({ "type": "ping" })).await;
        let mut pongs = if frame["type"] == "ping" { 2 } else { 1 };
        let mut is_taken = true;
        while pongs > 0 {
            let answer = client.json().await;
            is_taken &= answer["data"]["code"] != "invalid_frame";
            pongs -= usize::from(answer["type"] == "pong");
        }
        assert_eq!(is_client_frame(&frame), is_taken, "{frame}");
    }
}

/// Each example with the place of its shape.
fn examples(document: &Value) -> Vec<(String, Value)> {
    fn look(value: &Value, place: &str, found: &mut Vec<(String, Value)>) {
        if let Some(members) = value.as_object() {
            let named = members.get("examples").and_then(Value::as_object).filter(|_| members.contains_key("schema"));
            found.extend(named.into_iter().flat_map(|named| named.values()).map(|one| (format!("{place}/schema"), one["value"].clone())));
            let payloads = members.get("examples").and_then(Value::as_array).filter(|_| members.contains_key("payload"));
            found.extend(payloads.into_iter().flatten().map(|one| (format!("{place}/payload"), one["payload"].clone())));
            let one = members.get("example").filter(|_| members.contains_key("schema"));
            found.extend(one.map(|one| (format!("{place}/schema"), one.clone())));
            for (name, member) in members {
                look(member, &format!("{place}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            look(item, &format!("{place}/{index}"), found);
        }
    }
    let mut found = Vec::new();
    look(document, "", &mut found);
    found
}

#[tokio::test]
async fn the_examples_are_as_described_and_a_server_takes_them() {
    for document in [documents::openapi(), documents::asyncapi()] {
        let found = examples(document);
        assert!(found.len() >= 2, "{found:?}");
        found.iter().for_each(|(shape, value)| example(document, shape, value));
    }
    let server = TestServer::start().await;
    let mut posted = BTreeMap::new();
    for (place, value) in examples(documents::openapi()) {
        let Some((path, rest)) = place.strip_prefix("/paths/").and_then(|rest| rest.split_once("/post/requestBody/content/")) else {
            continue;
        };
        let (path, media_type) = (path.replace("~1", "/"), rest.split('/').next().unwrap().replace("~1", "/"));
        let body = if media_type == "text/plain" { value.as_str().unwrap().to_owned() } else { value.to_string() };
        let url = format!("http://{}{}", server.address, path.replace("{user_id}", "1001"));
        let answer = server.http.post(url).header("content-type", &media_type).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 202, "{path} {value}");
        *posted.entry(path).or_insert(0) += 1;
    }
    assert_eq!(posted, BTreeMap::from([("/api/pool/events".to_owned(), 2), ("/api/pool/users/{user_id}/messages".to_owned(), 2)]));
}
